"""The project's own networks, of both modes and every size, and real microscopy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from neurodeploy.networks import Network, NetworkConfig, probability_module
from neurodeploy_export import (
    BuildSettings,
    ExportSettings,
    ParityLimits,
    export_bundle,
    tiles_from_volume,
)
from neurodeploy_runtime import ArraySource, InputError, ModelSpec, open_volume

#: A random network answers a half everywhere, so labels there mean nothing.
LOOSE = ParityLimits(1.0, 0.0, 0.01, 0.005)


def spec_of(config: NetworkConfig) -> ModelSpec:
    return ModelSpec(
        name="random",
        mode=config.mode,
        tile=config.tile,
        window=config.window,
        overlap=(0.0 if config.mode == "slice" else 0.25, 0.25, 0.25),
        threshold=0.5,
        max_batch=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["volume", "slice"])
@pytest.mark.parametrize(
    ("width", "depth", "heads"), [(192, 12, 3), (384, 12, 6), (1024, 24, 16)]
)
def test_every_size_in_both_modes_exports_and_builds(
    tmp_path: Path, mode: str, width: int, depth: int, heads: int
) -> None:
    pytest.importorskip("tensorrt_rtx")
    tile = (16, 32, 32) if mode == "volume" else (5, 32, 32)
    config = NetworkConfig(
        mode=mode,  # type: ignore[arg-type]
        tile=tile,
        patch=(8, 16, 16) if mode == "volume" else (5, 16, 16),
        width=width,
        depth=depth,
        heads=heads,
        taps=(depth // 2, depth),
    )
    torch.manual_seed(0)
    tiles = np.random.default_rng(0).normal(0, 1, (1, 1, *tile)).astype(np.float32)
    made = export_bundle(
        probability_module(Network(config)),
        spec_of(config),
        tiles,
        ExportSettings(precision="fp16", limits_fp32=LOOSE, limits_fp16=LOOSE),
        tmp_path / "b",
        engine=BuildSettings(library="tensorrt_rtx"),
    )
    assert made.spec.parity["engine"]["network_half_share"] > 0.9
    assert made.spec.parity["steps"]["onnx"]["max_difference"] < 1e-4


def test_tiles_are_cut_where_the_signal_is() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(1000, 50, (24, 64, 64))
    image[9:14, 40:46, 33:60] += 2000
    spec = spec_of(NetworkConfig(tile=(8, 16, 16), patch=(4, 8, 8), taps=(1,), depth=1))
    source = ArraySource(image.clip(0).astype(np.uint16))
    tiles = tiles_from_volume(source, spec, count=3)
    assert tiles.shape == (3, 1, 8, 16, 16)
    bright = (tiles > 3).reshape(3, -1).mean(axis=1)
    # One of median brightness first, and then the brightest.
    assert bright[0] < 0.01
    assert (bright[1:] > 0.05).all()
    assert abs(float(np.median(tiles[0]))) < 0.2  # normalised by the background
    # A single one, as where many volumes give a few, holds signal.
    (alone,) = tiles_from_volume(source, spec, count=1)
    assert (alone > 3).mean() == bright.max()
    small = ArraySource(image[:4].clip(0).astype(np.uint16))
    with pytest.raises(InputError, match="4 < 8 on axis z"):
        tiles_from_volume(small, spec, count=3)


def test_tiles_of_real_microscopy_hold_signal(shared_data: Path) -> None:
    files = sorted((shared_data / "trailmap").rglob("*volume*.tif*"))
    assert files
    spec = spec_of(NetworkConfig(tile=(32, 64, 64)))
    with open_volume(files[0]) as source:
        tiles = tiles_from_volume(source, spec, count=2)
    assert np.isfinite(tiles).all()
    assert (tiles[1] > 3).mean() >= (tiles[0] > 3).mean()
