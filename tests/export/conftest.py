"""A small network of the risky kind, exported once for all tests of the export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_unetr import TILE, make_network, make_spec
from torch import nn

from neurodeploy_export import ExportSettings, export_bundle
from neurodeploy_runtime import Bundle, ModelSpec


@pytest.fixture(scope="session")
def network() -> nn.Module:
    return make_network()


@pytest.fixture
def new_network() -> Callable[..., nn.Module]:
    """Makes networks of the same weights that a test may spoil."""
    return make_network


@pytest.fixture(scope="session")
def spec() -> ModelSpec:
    return make_spec()


@pytest.fixture(scope="session")
def tiles() -> NDArray[np.float32]:
    """Noise with a bright line in it; asymmetric on every axis."""
    rng = np.random.default_rng(5)
    tiles = rng.normal(0, 0.4, (3, 1, *TILE)).astype(np.float32)
    for i in range(8):
        tiles[:, 0, i, i + 2, 3 : 5 + i] = 4
    return tiles


@pytest.fixture(scope="session")
def bundle(
    tmp_path_factory: pytest.TempPathFactory,
    network: nn.Module,
    spec: ModelSpec,
    tiles: NDArray[np.float32],
) -> Bundle:
    """Exported in FP32 and FP16; tests that change it copy it first."""
    return export_bundle(
        network,
        spec,
        tiles,
        ExportSettings(precision="fp16"),
        tmp_path_factory.mktemp("export") / "tiny",
    )


@pytest.fixture
def folder_is_empty(tmp_path: Path) -> Iterator[Path]:
    """A folder that has to be empty, but for pictures, when the test is over."""
    yield tmp_path
    left = [p.name for p in tmp_path.iterdir() if not p.name.endswith(".png")]
    assert not left
