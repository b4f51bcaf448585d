"""MONAI's UNETR on a ViT-S, trained as `cost.py` and `folds.py` train networks of ours.

The same samples, loss, schedule and running average; only the network is another, and
its tile, of which a step sees as many voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from _unetr import Size, flop_per_tile, parameters
from monai.networks.nets import UNETR
from torch import nn

from neurodeploy.data import AnnotatedVolume, Samples
from neurodeploy.networks import NetworkConfig
from neurodeploy.training import TrainSettings
from neurodeploy.training._losses import segmentation_loss
from neurodeploy.training._optimiser import RunningAverage, learning_rate

#: Smaller than that of `peers.py`: the cubes are 64 voxels wide. Its cost per voxel is
#: the same but for the attention, a hundredth of it.
SIZE = Size(tile=64)
#: For `predict`, which asks for the tile alone.
CONFIG = NetworkConfig(tile=(SIZE.tile,) * 3)


@dataclass(frozen=True)
class TrainedUnetr:
    """The network with its averaged weights, and what it costs."""

    network: nn.Module
    flop_per_voxel: float
    parameters: int


def new_unetr() -> nn.Module:
    """With random weights; logits (B, 1, z, y, x) of voxels of that shape."""
    torch.manual_seed(0)
    network = UNETR(
        in_channels=1,
        out_channels=1,
        img_size=CONFIG.tile,
        feature_size=SIZE.features,
        hidden_size=SIZE.width,
        mlp_dim=4 * SIZE.width,
        num_heads=SIZE.heads,
    )
    # As ours begins: neurites are a few per cent of the voxels.
    nn.init.constant_(network.out.conv.conv.bias, -2.0)
    return network


def train_unetr(
    settings: TrainSettings,
    volumes: Sequence[AnnotatedVolume],
    rate: float,
    start: nn.Module | None = None,
) -> TrainedUnetr:
    """Train it with these settings, but for the learning rate and the batch.

    From random weights, or on from those of `start`.
    """
    network = new_unetr() if start is None else start
    batch = max(1, settings.batch * prod(settings.network.tile) // prod(CONFIG.tile))
    samples = Samples(
        volumes,
        CONFIG.tile,
        CONFIG.tile,
        settings.augmentation,
        settings.seed,
        settings.shares,
        settings.neurite_share,
    )
    decaying = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.98),
    )
    average = RunningAverage(network, settings.ema)
    network.train()
    for step in range(settings.steps):
        crops = [samples[step * batch + i] for i in range(batch)]
        voxels = torch.stack([torch.from_numpy(v) for v, _ in crops])
        labels = torch.stack([torch.from_numpy(m) for _, m in crops])
        share = learning_rate(step, settings) / settings.learning_rate
        for group in optimiser.param_groups:
            group["lr"] = rate * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(voxels)
        loss = segmentation_loss(logits, labels, settings.loss)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
        optimiser.step()
        average.update(network, step + 1)
    network.load_state_dict(average.tensors)
    network.eval()
    return TrainedUnetr(
        network,
        flop_per_tile(network, SIZE) / prod(CONFIG.tile),
        parameters(network),
    )
