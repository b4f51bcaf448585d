"""The network as it trains, and as it leaves for the exporter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neurodeploy.networks._config import NetworkConfig
from neurodeploy.networks._decoder import Decoder
from neurodeploy.networks._encoder import Encoder


class Network(nn.Module):
    """A Vision Transformer over volumes with a light convolutional decoder.

    Takes (B, 1, *tile) normalised voxels and gives (B, 1, *window) **logits**; see
    :func:`probability_module`.

    >>> config = NetworkConfig(tile=(8, 32, 32), width=24, depth=1, taps=(1,))
    >>> Network(config)(torch.zeros(2, 1, 8, 32, 32)).shape
    torch.Size([2, 1, 8, 32, 32])
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def forward(self, voxels: Tensor) -> Tensor:
        """Logits of the window's voxels."""
        logits: Tensor = self.decoder(voxels, self.encoder(voxels))
        return logits


class ProbabilityNetwork(nn.Module):
    """A network with its sigmoid, in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, voxels: Tensor) -> Tensor:
        """(B, 1, *window) float32 probabilities of (B, 1, *tile) voxels."""
        logits: Tensor = self.network(voxels)
        return torch.sigmoid(logits)


def probability_module(network: nn.Module) -> nn.Module:
    """Wrap a network of logits so that it gives probabilities, for the exporter.

    The network is not copied; it is put into evaluation mode.
    """
    return ProbabilityNetwork(network).eval()
