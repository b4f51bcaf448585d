"""A network and volumes that train in seconds."""

import numpy as np
import pytest

from neurodeploy.data import AnnotatedVolume
from neurodeploy.networks import NetworkConfig
from neurodeploy.training import TrainSettings

TINY = NetworkConfig(
    tile=(8, 16, 16),
    patch=(4, 16, 16),
    width=24,
    depth=1,
    heads=3,
    taps=(1,),
    tap_channels=4,
    half_channels=4,
    quarter_channels=8,
)


def bar_volume(seed: int, name: str = "bar") -> AnnotatedVolume:
    """A bright bar through noise, whose mask is known."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((12, 24, 24), np.uint8)
    at = int(rng.integers(6, 16))
    labels[5:8, at : at + 4, :] = 1
    image = rng.normal(200, 10, labels.shape) + 150.0 * labels
    return AnnotatedVolume(image.astype(np.uint16), labels, f"{name} {seed}")


@pytest.fixture
def volumes() -> list[AnnotatedVolume]:
    return [bar_volume(0), bar_volume(1), bar_volume(2)]


@pytest.fixture
def another() -> AnnotatedVolume:
    """None of `volumes`."""
    return bar_volume(3)


@pytest.fixture
def tiny_settings(tmp_path) -> TrainSettings:
    return TrainSettings(
        out=str(tmp_path / "run"),
        steps=6,
        batch=2,
        warmup=2,
        log_every=1,
        save_every=2,
        validate_every=3,
        precision="fp32",
        device="cpu",
        network=TINY,
    )
