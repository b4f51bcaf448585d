"""The network that `peers.py` runs in every engine: MONAI's UNETR on a ViT-S.

Its weights are random, but for the last layer, which is fitted to simulated neurites
by least squares, with its bias such that as many voxels are called neurite as truly
are: labels then mean something, and so does counting those that change. A trained
network's would change less: its logits lie farther from its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import UNETR
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurodeploy.simulate import SimulationSettings, simulate_volume
from neurodeploy_runtime import Histogram, Normalisation

#: Logits that the last layer is fitted to, for neurite and background.
LOGIT = 4.0


@dataclass(frozen=True)
class Size:
    """What decides the cost; the defaults are the network of the published figures."""

    tile: int = 96
    width: int = 384
    heads: int = 6
    features: int = 16


TINY = Size(tile=32, width=48, heads=3, features=4)


class Probability(nn.Module):
    """Logits as probabilities."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(voxels))


def unetr(size: Size, last: Path) -> Probability:
    """The network; its last layer is read from `last`, or fitted and written there."""
    torch.manual_seed(0)
    network = UNETR(
        in_channels=1,
        out_channels=1,
        img_size=(size.tile,) * 3,
        feature_size=size.features,
        hidden_size=size.width,
        mlp_dim=4 * size.width,
        num_heads=size.heads,
    ).eval()
    final = network.out.conv.conv
    if last.is_file():
        with np.load(last, allow_pickle=False) as values:
            weights = values["weights"]
    else:
        weights = _fit(network, size)
        np.savez(last, weights=weights)
    with torch.no_grad():
        final.weight.copy_(torch.from_numpy(weights[:-1]).reshape(final.weight.shape))
        final.bias.fill_(float(weights[-1]))
    return Probability(network).eval()


def _fit(network: nn.Module, size: Size) -> np.ndarray:
    """Least squares of the last features on +-LOGIT, both classes weighing alike.

    The bias then makes the share of neurite that of the truth.
    """
    volume = simulate_volume(SimulationSettings(shape=(size.tile,) * 3), seed=11)
    voxels = torch.from_numpy(normalisation(volume.image).apply(volume.image))
    kept: list[torch.Tensor] = []
    handle = network.out.register_forward_hook(
        lambda module, inputs, output: kept.append(inputs[0])
    )
    with torch.inference_mode():
        network(voxels[None, None])
    handle.remove()
    features = kept[0][0].flatten(1).double().numpy()
    features = np.vstack([features, np.ones_like(features[:1])])
    truth = volume.truth.ravel() > 0
    weight = np.where(truth, 0.5 / max(1, truth.sum()), 0.5 / max(1, (~truth).sum()))
    target = np.where(truth, LOGIT, -LOGIT)
    left = (features * weight) @ features.T + 1e-9 * np.eye(len(features))
    solved = np.linalg.solve(left, (features * weight) @ target)
    solved[-1] -= np.quantile(solved @ features, 1 - truth.mean())
    return solved.astype(np.float32)


def normalisation(image: np.ndarray) -> Normalisation:
    histogram = Histogram(image.dtype)
    histogram.add(image)
    return histogram.freeze("background-asinh")


def flop_per_tile(network: nn.Module, size: Size) -> float:
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        network(torch.zeros(1, 1, *(size.tile,) * 3))
    return float(counter.get_total_flops())


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
