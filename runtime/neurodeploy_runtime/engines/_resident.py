"""Whether tiles stay on an engine's GPU between its calls."""

from __future__ import annotations

import numpy as np

from neurodeploy_runtime._errors import DeviceError, EngineError, GpuMemoryError
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime.arrays import Arrays, HostArrays, _cuda
from neurodeploy_runtime.engines._base import Engine, EngineSettings


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


def require_same_bits(arrays: Arrays) -> None:
    """Hold a small tile on a GPU to the bits that the host gives.

    Raises
    ------
    DeviceError
        CuPy does not work on this machine, or gives other bits.
    GpuMemoryError
        There is no memory left on the GPU.
    """
    try:
        same = _agrees(arrays)
    except GpuMemoryError:
        raise
    except EngineError as error:
        raise DeviceError(_does_not_work(error)) from error
    if not same:
        raise DeviceError(
            f"blending on {arrays.place} does not give the bits that the host gives: "
            "pass --blend-on host, and report this GPU and CuPy version"
        )


def settle_residence(engine: Engine, settings: EngineSettings) -> None:
    """See that tiles can stay on an engine's GPU, before anything relies on it.

    Where nobody asked for it they stay on the host instead, and the engine's `notes`
    say why.

    Raises
    ------
    DeviceError
        It was asked for and is not possible.
    GpuMemoryError
        It was asked for and there is no memory for it.
    """
    if not engine.resident:
        return
    try:
        try:
            arrays = engine.arrays()
        except GpuMemoryError:
            raise
        except EngineError as error:
            raise DeviceError(_does_not_work(error)) from error
        require_same_bits(arrays)
    except (DeviceError, GpuMemoryError) as error:
        if settings.blend_on == "gpu":
            raise
        engine.resident = False
        engine.notes = (*engine.notes, f"tiles on the GPU: {error}")


def _does_not_work(error: EngineError) -> str:
    return (
        f"CuPy does not work here: {error}; install the CuPy of this driver's CUDA, or "
        "pass --blend-on host"
    )


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
        no_number = place.keep(np.array([0, np.nan, 1], np.float32))
        finite = np.array([place.finite(total), place.finite(no_number)])
        found.append((place.fetch(tile), place.fetch(total), levels, spread, finite))
    return all(np.array_equal(a, b) for a, b in zip(*found, strict=True))
