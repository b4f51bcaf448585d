"""Networks of both modes answer their window, at the cost that is said."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neurodeploy._errors import ConfigError
from neurodeploy.networks import Network, NetworkConfig, cost, probability_module
from neurodeploy.training import predict
from neurodeploy_runtime import EngineError


def small(**changes: object) -> NetworkConfig:
    return NetworkConfig(
        **{
            "tile": (8, 32, 32), "width": 24, "depth": 2, "taps": (1, 2),
            "half_channels": 4, "quarter_channels": 8, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        small(),
        small(patch=(8, 8, 8), register_tokens=2, layer_scale=True, qk_norm=True),
        small(tile=(8, 28, 56), patch=(4, 14, 14), class_token=False),
        small(mode="slice", tile=(5, 32, 48), patch=(5, 16, 16), pre_norm=True),
        small(mode="slice", tile=(3, 28, 28), patch=(3, 14, 14), depth_position=False),
    ],
)
def test_a_network_answers_its_window(config):
    network = Network(config)
    logits = network(torch.randn(2, 1, *config.tile))
    assert logits.shape == (2, 1, *config.window)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize(
    "config",
    [small(), small(mode="slice", tile=(5, 32, 48), patch=(5, 16, 16))],
)
def test_voxels_leave_as_they_entered(config):
    decoder = Network(config).decoder
    voxels = torch.randn(2, 1, *config.tile)
    picture = decoder._picture(voxels)
    if config.mode == "slice":  # the middle slice's four channels
        picture = picture[:, 8:12]
        voxels = voxels[:, :, 2:3]
    assert torch.equal(decoder._window(picture), voxels)


def test_patches_are_those_of_the_convolution():
    config = small(patch=(8, 8, 16), tile=(16, 24, 32))
    encoder = Network(config).encoder
    voxels = torch.randn(2, 1, *config.tile)
    expected = encoder.patch_embed(voxels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.patches(voxels), expected, atol=1e-5, rtol=0)


def test_probabilities_are_the_sigmoid_of_the_logits():
    network = Network(small())
    voxels = torch.randn(1, 1, 8, 32, 32)
    with torch.no_grad():
        given = probability_module(network)(voxels)
        assert torch.equal(given, torch.sigmoid(network(voxels)))
    assert not network.training


def test_the_default_network_is_within_its_budget():
    config = NetworkConfig()
    measured = cost(Network(config), config)
    assert measured.flop_per_voxel <= 40e3
    assert measured.parameters * 6 <= 16e6  # float32 and float16 side by side


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tile": (8, 30, 32)}, "axis y: use 32"),
        ({"patch": (2, 16, 16)}, "axis z"),
        ({"patch": (4, 14, 14)}, "axis y: use 56"),
        ({"mode": "slice", "tile": (4, 32, 32), "patch": (4, 16, 16)}, "odd depth"),
        ({"heads": 5}, "5 heads"),
        ({"taps": (3,)}, "taps"),
        ({"taps": (1, 1)}, "a block twice"),
        ({"mode": "depth"}, "volume or slice"),
    ],
)
def test_a_configuration_that_cannot_be_says_what_can(changes, said):
    with pytest.raises(ConfigError, match=said):
        small(**changes)


class Echo(nn.Module):
    """A network that answers the voxels of its window themselves."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, voxels: Tensor) -> Tensor:
        if self.config.mode == "slice":
            middle = self.config.tile[0] // 2
            return voxels[:, :, middle : middle + 1]
        return voxels


@pytest.mark.parametrize(
    "config",
    [small(), small(mode="slice", tile=(5, 32, 32), patch=(5, 16, 16))],
    ids=["volume", "slice"],
)
@pytest.mark.parametrize("shape", [(13, 50, 41), (8, 32, 32), (3, 10, 70)])
def test_prediction_puts_every_tile_in_its_place(config, shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 1000, shape).astype(np.uint16)
    from neurodeploy_runtime._normalise import Normalisation

    constants = Normalisation("background-asinh", 400.0, 100.0)
    given = predict(Echo(config), config, image, constants)
    expected = 1 / (1 + np.exp(-constants.apply(image)))
    np.testing.assert_allclose(given, expected, atol=1e-6)


def test_an_answer_that_is_no_number_names_its_tile():
    config = small()
    network = Network(config)
    torch.nn.init.constant_(network.decoder.head.bias, torch.nan)
    image = np.random.default_rng(0).integers(0, 9, (8, 32, 40)).astype(np.uint8)
    with pytest.raises(EngineError, match=r"NaN in the tile at voxel \[0, 0, 0\]"):
        predict(network, config, image)
