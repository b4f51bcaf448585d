"""The optimiser, its schedule, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from neurodeploy.networks import Network
from neurodeploy.training._settings import TrainSettings


def build_optimiser(
    network: Network, settings: TrainSettings, transfer: Sequence[Mapping[str, Any]]
) -> torch.optim.AdamW:
    """AdamW with a group per parameter kind and, for a transferred encoder, per layer.

    `transfer` is what became of each parameter of the donor, empty without one: what
    no donor gave learns at the full rate, wherever it lies. Norms, biases, embeddings
    and tokens do not decay. Layer-wise learning rates as in BEiT (arXiv 2106.08254):
    the group's ``scale`` multiplies the schedule.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    depth = network.config.depth
    new = {f"encoder.{row['parameter']}" for row in transfer if row["rule"] == "new"}
    for name, parameter in network.named_parameters():
        scale = 1.0
        if transfer and name.startswith("encoder.") and name not in new:
            layer = 0
            if name.startswith("encoder.blocks."):
                layer = int(name.split(".")[2]) + 1
            elif name.startswith("encoder.norm."):
                layer = depth
            scale = settings.layer_decay ** (depth + 1 - layer)
        decays = parameter.ndim > 1 and not name.endswith(("_embed", "_token"))
        groups.setdefault((scale, decays), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "scale": scale,
                "weight_decay": settings.weight_decay if decays else 0.0,
            }
            for (scale, decays), parameters in groups.items()
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then a cosine down to a hundredth, at a step from 0."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    span = max(1, settings.steps - settings.warmup)
    share = min(1.0, (step - settings.warmup) / span)
    return settings.learning_rate * (
        0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))
    )


class RunningAverage:
    """An exponential moving average of a network's weights and statistics.

    The decay grows towards its final value, so that early averages are not those of
    the first weights. Where these were trained before, `tuned_for` says for how many
    steps they are now: they keep a share of the average then, at most exp(-2) at the
    end, and with it what the network knew (Wortsman et al., arXiv 2109.01903).
    """

    def __init__(
        self, network: nn.Module, decay: float, *, tuned_for: int | None = None
    ) -> None:
        self.ramp = tuned_for is None
        self.decay = decay if tuned_for is None else min(decay, 1 - 2 / tuned_for)
        self.tensors = {
            name: tensor.detach().clone()
            for name, tensor in network.state_dict().items()
        }

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the network's weights, after `step` steps."""
        decay = self.decay
        if self.ramp:
            decay = min(decay, (1 + step) / (10 + step))
        for name, tensor in network.state_dict().items():
            mean = self.tensors[name]
            if tensor.is_floating_point():
                mean.lerp_(tensor, 1 - decay)
            else:
                mean.copy_(tensor)
