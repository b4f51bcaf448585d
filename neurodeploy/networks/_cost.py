"""What a network costs, counted and not estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from neurodeploy.networks._config import NetworkConfig


@dataclass(frozen=True)
class Cost:
    """The work and the size of a network.

    `flop_per_tile` counts a multiplication and its addition as two.
    """

    flop_per_tile: float
    flop_per_voxel: float
    parameters: int


def cost(network: nn.Module, config: NetworkConfig) -> Cost:
    """Count the operations of one tile, and per voxel of the tile that enters."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.zeros(1, 1, *config.tile, device=device))
    network.train(training)
    total = float(counter.get_total_flops())
    return Cost(
        flop_per_tile=total,
        flop_per_voxel=total / math.prod(config.tile),
        parameters=sum(p.numel() for p in network.parameters()),
    )
