"""The paper's table at toy size: does a 2D donor help, inflated which way?

    python benchmarks/transfer.py [--seeds 3] [--steps 150] [--donor-steps 400]

{scratch, average, center} × {without, with depth} in the paper's `slice` mode, trained
on equal samples and seeds, and scored on held-out simulated volumes. No published
donor is downloaded: the donor is a small 2D ViT that this script pre-trains itself by
masked auto-encoding (He et al., arXiv 2111.06377) on the photographs that ship inside
scikit-image and scikit-learn. It shows the mechanism, not the paper's 8.71 points.

"Without depth": the patch sees one slice, so that no inflation is needed and average
and center are the same thing. The answer is checked: before training, the tokens of a
transferred encoder equal the donor's on the middle slice to 1e-4.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from neurodeploy.data import IGNORE, AnnotatedVolume
from neurodeploy.networks import Network, NetworkConfig
from neurodeploy.simulate import LIGHT_SHEET, SimulationSettings, simulate_volume
from neurodeploy.training import TrainSettings, train
from neurodeploy.training import _loop as loop
from neurodeploy.transfer import GRAY_RANGE, Donor, donor_from_timm, transfer

SIDE, PATCH, WIDTH, DEPTH, HEADS = 64, 16, 96, 4, 3


def photographs():
    """Gray photographs of scikit-image and scikit-learn, in [0, 1]."""
    from skimage import color, data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "camera", "coffee", "chelsea", "rocket", "brick", "grass")
    pictures = []
    for name in names:
        try:
            pictures.append(getattr(data, name)())
        except Exception as error:  # some are downloaded, and there may be no network
            print(f"left out {name}: {type(error).__name__}")
    pictures += list(load_sample_images().images)
    gray = [color.rgb2gray(p) if p.ndim == 3 else p / 255 for p in pictures]
    return [torch.from_numpy(np.asarray(g, np.float32)) for g in gray]


def pretrain(steps):
    """A 2D ViT that fills in the three quarters of a photograph it is not shown."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=SIDE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        num_classes=0,
    )  # fmt: skip
    head = nn.Linear(WIDTH, PATCH * PATCH)
    mask_token = nn.Parameter(torch.zeros(WIDTH))
    pictures = photographs()
    optimiser = torch.optim.AdamW(
        [*model.parameters(), *head.parameters(), mask_token], lr=1e-3
    )
    rng = np.random.default_rng(0)
    mean = torch.tensor((0.485, 0.456, 0.406))[:, None, None]
    std = torch.tensor((0.229, 0.224, 0.225))[:, None, None]
    losses = []
    for _ in range(steps):
        batch = []
        for _ in range(32):
            picture = pictures[rng.integers(len(pictures))]
            step = int(rng.integers(1, 4))
            y = int(rng.integers(picture.shape[0] - SIDE * step + 1))
            x = int(rng.integers(picture.shape[1] - SIDE * step + 1))
            crop = picture[y : y + SIDE * step : step, x : x + SIDE * step : step]
            batch.append(torch.flip(crop, [1]) if rng.random() < 0.5 else crop)
        gray = torch.stack(batch)[:, None]
        patches = functional.unfold(gray, PATCH, stride=PATCH).transpose(1, 2)
        target = (patches - patches.mean(-1, keepdim=True)) / (
            patches.std(-1, keepdim=True) + 0.05
        )
        tokens = model.patch_embed((gray - mean) / std)
        hidden = torch.from_numpy(rng.random(tokens.shape[:2]) < 0.6)
        tokens = torch.where(hidden[..., None], mask_token, tokens)
        tokens = model.norm(model.blocks(model._pos_embed(tokens)))[:, 1:]
        loss = ((head(tokens) - target) ** 2).mean(-1)[hidden].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    print(
        f"donor: ViT of width {WIDTH}, pre-trained here on {len(pictures)} "
        f"photographs for {steps} steps; masked error {np.mean(losses[:20]):.3f} -> "
        f"{np.mean(losses[-20:]):.3f}"
    )
    return donor_from_timm(model.eval(), "self-pretrained"), model


def simulated(seed):
    volume = simulate_volume(SimulationSettings((24, 128, 128), LIGHT_SHEET), seed)
    labels = np.where(volume.ignore & (volume.truth == 0), IGNORE, volume.truth)
    return AnnotatedVolume(volume.image, labels.astype(np.uint8), f"simulated {seed}")


def config(depth):
    return NetworkConfig(
        mode="slice", tile=(depth, SIDE, SIDE), patch=(depth, PATCH, PATCH),
        width=WIDTH, depth=DEPTH, heads=HEADS, taps=(2, 4), tap_channels=16,
        half_channels=16, quarter_channels=32,
    )  # fmt: skip


def check(donor: Donor, model):
    """A transferred encoder says on any stack what the donor says of its middle."""
    network = Network(config(5)).eval()
    transfer(donor, network.encoder, "center")
    low, high = GRAY_RANGE
    stack = torch.rand(1, 1, 5, SIDE, SIDE) * (high - low) + low
    gray = (stack[:, 0, 2] - low) / (high - low)
    mean = torch.tensor(donor.mean)[:, None, None]
    std = torch.tensor(donor.std)[:, None, None]
    with torch.no_grad():
        theirs = model.forward_features((gray[:, None] - mean) / std)
        ours = network.encoder(stack)[-1]
    worst = float((ours - theirs).abs().max())
    assert worst < 1e-4, worst
    print(f"tokens of the transferred encoder: within {worst:.1e} of the donor's")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--donor-steps", type=int, default=400)
    options = parser.parse_args()
    donor, model = pretrain(options.donor_steps)
    check(donor, model)
    # The loop asks for a donor by name; here it is the one in memory.
    loop.load_donor = lambda *_: donor
    training = [simulated(seed) for seed in range(4)]
    held = [simulated(seed) for seed in range(100, 103)]
    print(
        f"{options.steps} steps of 8 crops, {len(training)} training and {len(held)} "
        f"held-out volumes, {options.seeds} seeds; mean ± s.d. over seeds"
    )
    for depth in (1, 5):
        for init, how in (
            ("scratch", "center"), ("donor", "average"), ("donor", "center"),
        ):  # fmt: skip
            scores = []
            for seed in range(options.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    settings = TrainSettings(
                        out=str(Path(folder) / "run"), init=init, inflate=how,
                        seed=seed, steps=options.steps, batch=8, warmup=20, ema=0.98,
                        layer_decay=1.0, validate_every=options.steps,
                        save_every=options.steps, network=config(depth),
                    )  # fmt: skip
                    result = train(dataclasses.replace(settings), training, held)
                    scores.append((result.score.dice, result.score.average_precision))
            dice, ap = np.array(scores).T * 100
            label = "scratch" if init == "scratch" else how
            print(
                f"{'with' if depth > 1 else 'without':7s} depth  {label:8s} "
                f"Dice {dice.mean():5.2f} ± {dice.std(ddof=1):.2f}   "
                f"AP {ap.mean():5.2f} ± {ap.std(ddof=1):.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
