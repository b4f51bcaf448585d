"""Whether tiles stay on an engine's GPU between its calls."""

from __future__ import annotations

import numpy as np

from neurodeploy_runtime._errors import DeviceError
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime.arrays import Arrays, HostArrays, _cuda
from neurodeploy_runtime.engines._base import EngineSettings


def why_not_resident(settings: EngineSettings) -> str | None:
    """Why what was asked for cannot be had; None where it can, or nothing was."""
    if settings.blend_on != "gpu":
        return None
    if not settings.device.startswith("cuda"):
        return f"blending on the GPU needs an engine there, not on {settings.device}"
    return _cuda.why_not()


def stays_resident(settings: EngineSettings) -> bool:
    """Whether an engine on a GPU keeps its tiles there."""
    if settings.blend_on == "auto":
        return _cuda.why_not() is None
    return settings.blend_on == "gpu"


def resident_arrays(index: int) -> Arrays:
    """Arrays on GPU `index`, that were seen to give what the host gives.

    Raises
    ------
    DeviceError
        CuPy does not work on this machine, or gives other bits.
    """
    try:
        arrays = _cuda.CudaArrays(index)
        same = _agrees(arrays)
    except Exception as error:
        raise DeviceError(
            f"CuPy does not work on GPU {index} ({type(error).__name__}: {error}): "
            "install the CuPy of this driver's CUDA, or pass --blend-on host"
        ) from error
    if not same:
        raise DeviceError(
            f"blending on GPU {index} does not give the bits that the host gives: pass "
            "--blend-on host, and report this GPU and CuPy version"
        )
    return arrays


def _agrees(arrays: Arrays) -> bool:
    """Whether a small tile has the same bits here as on the host, step by step."""
    rng = np.random.default_rng(0)
    # So normalised, sums lie on both sides of 0 and of the threshold, and below 1.
    shape = 3, 32, 32
    raw = rng.integers(0, 2**16, shape, np.uint16)
    weights = rng.random(shape[1:], np.float32)
    depth = rng.random(shape[0], np.float32)
    found = []
    for place in (HostArrays(), arrays):
        tile, total, squares = (place.zeros(shape) for _ in range(3))
        voxels = Normalisation("background-asinh", 20000.0, 40000.0)
        place.normalise([raw], place.prepare(voxels, raw.dtype), tile)
        kept = place.keep(weights), place.keep(depth)
        with place.step():
            for _ in range(2):
                place.add_weighted(tile, *kept, total, squares)
        levels = np.empty((2, *shape[1:]), np.uint8)
        place.quantise("mask", 0.1, total[0], levels[0])
        place.quantise("probability", 0.0, total[1], levels[1])
        spread = np.stack([place.spread(total[z], squares[z]) for z in range(3)])
        found.append((place.fetch(tile), place.fetch(total), levels, spread))
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
