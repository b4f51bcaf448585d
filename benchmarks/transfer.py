"""The paper's table at toy size: does a 2D donor help, inflated which way?

    python benchmarks/transfer.py [--seeds 3] [--steps 150] [--donor-steps 1500]

{scratch, average, center} × {without, with depth} in the paper's `slice` mode, trained
on equal samples and seeds, and scored on held-out simulated volumes; then scratch and
center, with depth, over the number of training volumes (data efficiency). No published
donor is downloaded: the donor is a small 2D ViT that this script pre-trains itself by
masked auto-encoding (He et al., arXiv 2111.06377) on the photographs that ship inside
scikit-image and scikit-learn. It shows the mechanism, not the paper's 8.71 points.
Figures go to results/transfer.json, the curve to results/transfer.png.

"Without depth": the patch sees one slice, so that no inflation is needed and average
and center are the same thing: it is run once. The answer is checked: before training,
the tokens of a transferred encoder equal the donor's on the middle slice to 1e-4.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from _results import RESULTS, save, stamp, table
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
    told = (
        f"donor: a ViT of width {WIDTH} pre-trained here on {len(pictures)} "
        f"photographs for {steps} steps, masked error {np.mean(losses[:20]):.3f} to "
        f"{np.mean(losses[-20:]):.3f}"
    )
    print(told, flush=True)
    return donor_from_timm(model.eval(), "self-pretrained"), model, told


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


def score(donor, init, how, depth, seed, steps, training, held):
    """Dice and average precision, in points, of one training."""
    # The loop asks for a donor by name; here it is the one in memory.
    loop.load_donor = lambda *_: donor
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            out=str(Path(folder) / "run"), init=init, inflate=how,
            seed=seed, steps=steps, batch=8, warmup=20, ema=0.98,
            layer_decay=1.0, validate_every=steps,
            save_every=steps, network=config(depth),
        )  # fmt: skip
        result = train(settings, training, held)
    return result.score.dice * 100, result.score.average_precision * 100


def described(scores):
    """Mean and standard deviation over seeds of (Dice, AP) pairs."""
    dice, ap = np.array(scores).T
    return {
        "dice": dice.tolist(),
        "average_precision": ap.tolist(),
        "dice_mean": float(dice.mean()),
        "dice_sd": float(dice.std(ddof=1)) if len(dice) > 1 else 0.0,
        "ap_mean": float(ap.mean()),
        "ap_sd": float(ap.std(ddof=1)) if len(ap) > 1 else 0.0,
    }


def shown(row):
    return [
        row["init"],
        "with" if row["depth"] > 1 else "without",
        f"{row['dice_mean']:.2f} ± {row['dice_sd']:.2f}",
        f"{row['ap_mean']:.2f} ± {row['ap_sd']:.2f}",
    ]


def draw(curve):
    """Dice over the number of training volumes, as a picture."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for init in ("scratch", "center"):
        rows = [row for row in curve if row["init"] == init]
        axes.errorbar(
            [row["volumes"] for row in rows],
            [row["dice_mean"] for row in rows],
            [row["dice_sd"] for row in rows],
            marker="o", capsize=3, label=init,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set(xlabel="training volumes", ylabel="best Dice on held-out volumes, points")
    axes.legend()
    figure.savefig(RESULTS / "transfer.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--donor-steps", type=int, default=1500)
    parser.add_argument("--volumes", type=int, nargs="+", default=[1, 2, 4, 8])
    options = parser.parse_args()
    started = stamp()
    donor, model, pretraining = pretrain(options.donor_steps)
    check(donor, model)
    training = [simulated(seed) for seed in range(max(*options.volumes, 4))]
    held = [simulated(seed) for seed in range(100, 103)]
    seeds = range(options.seeds)
    rows, curve = [], []
    for name, init, how, depth in (
        ("scratch", "scratch", "center", 1),
        ("average = center", "donor", "center", 1),
        ("scratch", "scratch", "center", 5),
        ("average", "donor", "average", 5),
        ("center", "donor", "center", 5),
    ):
        scores = [
            score(donor, init, how, depth, seed, options.steps, training[:4], held)
            for seed in seeds
        ]
        rows.append({"init": name, "depth": depth, **described(scores)})
        print(*shown(rows[-1]), flush=True)
    for volumes in options.volumes:
        for name, init in (("scratch", "scratch"), ("center", "donor")):
            known = [r for r in rows if r["init"] == name and r["depth"] == 5]
            if volumes == 4:
                curve.append({**known[0], "volumes": volumes})
                continue
            scores = [
                score(
                    donor, init, "center", 5, s, options.steps, training[:volumes], held
                )
                for s in seeds
            ]
            curve.append({"init": name, "volumes": volumes, **described(scores)})
            print(volumes, name, f"{curve[-1]['dice_mean']:.2f}", flush=True)
    what = (
        f"{options.steps} steps of 8 crops, 4 training and {len(held)} held-out "
        f"simulated volumes, {options.seeds} seeds, mean ± s.d.; {pretraining}"
    )
    grid = table(["start", "depth", "best Dice", "average precision"], map(shown, rows))
    summary = (
        f"**Transfer, at toy size** ({what}; it shows the mechanism, not the paper's "
        f"8.71 points)\n\n{grid}\n\n"
        "![Dice over the number of training volumes](benchmarks/results/transfer.png)"
    )
    save(
        "transfer",
        {"what": what, "table": rows, "curve": curve, "summary": summary},
        started,
    )
    draw(curve)
    print(grid)


if __name__ == "__main__":
    main()
