"""What a machine sustains beside a camera, measured and reckoned."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass, replace
from math import isqrt, prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import NeurodeployError, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._report import machine, versions
from neurodeploy_runtime.engines import (
    Engine,
    EngineSettings,
    choose_engine,
    open_engine,
    open_engines,
    tile_seconds,
)
from neurodeploy_runtime.live._buffers import UNKNOWN_DEPTH, checked_bytes, ring_planes
from neurodeploy_runtime.live._plane_copy import copy_seconds, past_the_cache
from neurodeploy_runtime.live._segmenter import LiveSegmenter
from neurodeploy_runtime.live._settings import LiveSettings


@dataclass(frozen=True)
class RigReport:
    """What was found, for planes of `plane_shape` at `rate_hz`.

    Attributes
    ----------
    tile_s
        Seconds of the engine for one tile, the median; `tile_p99_s` its 99th
        percentile.
    overhead
        Share that the live path adds to the engine's time, measured on
        `measured_shape`.
    sustained_hz
        Planes per second that this machine keeps up with.
    lag_planes
        Least and most planes that must come after a plane before its result is due.
    delay_s
        Least and most seconds from a plane to its result at `rate_hz`; None where the
        rate is not sustained, because it then grows.
    push_p50_s, push_p99_s
        Seconds to copy a plane into the ring, while an engine is busy.
    copy_s
        Seconds to copy a plane while nothing is busy: as things are, and where the
        program is started so that planes are copied past the cache; None where that
        makes no difference or could not be seen.
    full_after_s
        Seconds until the ring is full at `rate_hz`; None where it never is.
    advice
        What to change, with figures.
    """

    model: str
    engine: dict[str, Any]
    not_used: list[str]
    plane_shape: tuple[int, int]
    dtype: str
    rate_hz: float
    tiles_per_layer: int
    tile_s: float
    tile_p99_s: float
    overhead: float
    measured_shape: tuple[int, int]
    sustained_hz: float
    sustains: bool
    lag_planes: tuple[int, int]
    delay_s: tuple[float, float] | None
    push_p50_s: float
    push_p99_s: float
    copy_s: tuple[float, float] | None
    ring_planes: int
    memory_bytes: int
    full_after_s: float | None
    advice: list[str]
    machine: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def measure_rig(
    bundle: Bundle | None,
    plane_shape: tuple[int, int],
    rate_hz: float,
    dtype: DTypeLike = "uint16",
    settings: LiveSettings | None = None,
    *,
    seconds: float = 10.0,
    engine: Engine | None = None,
) -> RigReport:
    """Measure this machine for about `seconds`, and reckon what it sustains.

    The engine's time is measured tile by tile; the live path runs in full on planes
    that are small enough for the time there is; a push is measured with planes of the
    whole size, while the engine is busy. `engine` is used instead of opening one.

    Raises
    ------
    SettingsError
        A rate or shape makes no sense.
    MemoryCapError
        Planes of this size take more memory than they may.
    DeviceError
        The engine that was asked for is not possible here.
    """
    if not rate_hz > 0 or min(plane_shape) < 1 or seconds <= 0:
        raise SettingsError(
            f"planes of {plane_shape} at {rate_hz} per second for {seconds} s cannot "
            "be measured: all must be above 0"
        )
    bundle = bundle or load_bundle()
    settings = settings or LiveSettings()
    kind = np.dtype(dtype)
    plan = TilePlan.of(bundle.spec, (UNKNOWN_DEPTH, *plane_shape), settings.overlap)
    z_axis = plan.axes[0]
    ring = ring_planes(z_axis, settings)
    outlet = settings.outlet_planes or z_axis.window
    not_used: list[str] = []
    opened = engine is None
    if engine is None:
        choice = choose_engine(bundle, settings.engine)
        (engine,) = open_engines(bundle, [choice])
        not_used = [*choice.passed_over, *engine.notes]
    try:
        need = checked_bytes(plan, kind, ring, outlet, [engine], settings.memory_bytes)
        engine.warm_up()
        tiles = len(plan.layer(Box.whole(plan.shape)))
        times = tile_seconds(engine, 3, seconds=seconds / 4)
        tile_s = float(np.median(times))
        flips = 4 if settings.flips else 1
        small, overhead = _live_overhead(
            bundle, engine, plane_shape, kind, settings, tile_s * flips, seconds / 2
        )
        pushes = _push_times(engine, plane_shape, kind, seconds / 8)
        fast = (
            _half(bundle, engine, settings.engine, tile_s, seconds / 8)
            if opened
            else None
        )
    finally:
        if opened:
            engine.close()
    # Behind the engine, which would disturb it.
    copies = copy_seconds(prod(plane_shape) * kind.itemsize)
    # The last batch of a layer takes as long as a full one.
    layer_s = _run(tiles, engine.batch) * tile_s * flips * (1 + overhead)
    sustained = z_axis.stride / layer_s
    lag = z_axis.lag
    sustains = sustained >= rate_hz
    return RigReport(
        model=bundle.spec.name,
        engine=engine.describe(),
        not_used=not_used,
        plane_shape=plane_shape,
        dtype=kind.name,
        rate_hz=rate_hz,
        tiles_per_layer=tiles,
        tile_s=tile_s,
        tile_p99_s=float(np.quantile(times, 0.99)),
        overhead=overhead,
        measured_shape=small,
        sustained_hz=sustained,
        sustains=sustains,
        lag_planes=lag,
        delay_s=(
            (lag[0] / rate_hz + layer_s, lag[1] / rate_hz + layer_s)
            if sustains
            else None
        ),
        push_p50_s=float(np.median(pushes)),
        push_p99_s=float(np.quantile(pushes, 0.99)),
        copy_s=copies,
        ring_planes=ring,
        memory_bytes=need,
        full_after_s=None if sustains else ring / (rate_hz - sustained),
        advice=_advice(
            bundle,
            plan,
            rate_hz,
            sustained,
            lag,
            settings,
            not_used,
            fast,
            engine.batch,
        )
        + _copy_advice(copies),
        machine=machine(),
        versions=versions(),
    )


def _run(tiles: int, batch: int) -> int:
    """Tiles that are computed for so many, in whole batches."""
    return -(-tiles // batch) * batch


def _half(
    bundle: Bundle,
    engine: Engine,
    asked: EngineSettings,
    tile_s: float,
    seconds: float,
) -> float | None:
    """How much faster the same engine is in bfloat16; None where it is not."""
    if asked.precision != "auto" or engine.precision != "fp32":
        return None
    settings = replace(
        asked,
        engine=engine.name,  # type: ignore[arg-type]
        device=engine.device,
        precision="bf16",
    )
    try:
        with open_engine(bundle, settings) as other:
            times = tile_seconds(other, 3, seconds=seconds)
    except NeurodeployError:
        return None
    gain = tile_s / float(np.median(times))
    return gain if gain > 1.1 else None


def _live_overhead(
    bundle: Bundle,
    engine: Engine,
    plane_shape: tuple[int, int],
    dtype: np.dtype[Any],
    settings: LiveSettings,
    tile_s: float,
    seconds: float,
) -> tuple[tuple[int, int], float]:
    """The live path's time over the engine's own, on planes of a size that fits.

    Both are taken from the same run: time with an engine computing, of all time
    between the first layer's start and the last one's end.
    """
    plan = TilePlan.of(bundle.spec, (UNKNOWN_DEPTH, *plane_shape), settings.overlap)
    layers = 3
    side = max(1, int((seconds / layers / max(tile_s, 1e-9)) ** 0.5))
    height, width = (
        min(n, axis.stride * (side - 1) + axis.window)
        for n, axis in zip(plane_shape, plan.axes[1:], strict=True)
    )
    rng = np.random.default_rng(0)
    plane = (rng.random((height, width)) * 255).astype(dtype)
    fixed = settings.normalisation or Normalisation(
        bundle.spec.normalisation, 128.0, 40.0
    )
    made = replace(settings, normalisation=fixed, when_full="block", timeout_s=3600.0)
    done = threading.Event()
    with LiveSegmenter(
        bundle,
        (height, width),
        dtype,
        made,
        engines=[engine],
        on_plane=lambda plane: done.set(),
    ) as live:
        z_axis = plan.axes[0]
        planes = z_axis.window + (layers - 1) * z_axis.stride
        for _ in range(planes):
            live.push(plane)
        live.finish()
        live.flush(3600.0)
        seconds_by = live.stage_seconds
        wall = live.wall_s
    # Before the first tile nothing can be computed, and that is no overhead.
    busy = seconds_by.get("infer", 0.0)
    first = seconds_by.get("wait for planes", 0.0)
    return (height, width), max(0.0, (wall - first) / max(busy, 1e-9) - 1)


def _push_times(
    engine: Engine,
    plane_shape: tuple[int, int],
    dtype: np.dtype[Any],
    seconds: float,
) -> NDArray[np.float64]:
    """Seconds to copy a plane into touched memory while the engine computes."""
    ring = np.zeros((4, *plane_shape), dtype)
    plane = np.ones(plane_shape, dtype)
    stop = threading.Event()

    def load() -> None:
        voxels = np.zeros(engine.input_shape, np.float32)
        answer = np.zeros(engine.output_shape, np.float32)
        while not stop.is_set():
            engine.infer(voxels, answer)

    worker = threading.Thread(
        target=lambda: engine.in_each(load), name="load", daemon=True
    )
    worker.start()
    times: list[float] = []
    end = time.perf_counter() + seconds
    try:
        while len(times) < 20 or (time.perf_counter() < end and len(times) < 5000):
            start = time.perf_counter()
            np.copyto(ring[len(times) % 4], plane)
            times.append(time.perf_counter() - start)
            time.sleep(0.001)
    finally:
        stop.set()
        worker.join()
    return np.array(times)


def _advice(
    bundle: Bundle,
    plan: TilePlan,
    rate_hz: float,
    sustained: float,
    lag: tuple[int, int],
    settings: LiveSettings,
    not_used: list[str],
    fast: float | None,
    batch: int,
) -> list[str]:
    """What would make a difference, with what it would give."""
    advice = []
    shape = plan.shape[1:]
    tiles = _run(plan.counts[1] * plan.counts[2], batch)

    def with_plan(other: TilePlan) -> float:
        share = _run(other.counts[1] * other.counts[2], batch) / tiles
        return sustained / share * other.axes[0].stride / plan.axes[0].stride

    if sustained < rate_hz:
        advice.append(
            f"acquire at most {sustained:.3g} planes/s, or leave tiles out with "
            f'when_full="drop": {sustained / rate_hz:.0%} of the planes are kept'
        )
        for factor in (2, 4, 8):
            small = (max(1, shape[0] // factor), max(1, shape[1] // factor))
            rate = with_plan(replace(plan, shape=(plan.shape[0], *small)))
            if rate >= rate_hz or factor == 8:
                advice.append(
                    f"bin {factor} × {factor} in the camera: {rate:.3g} planes/s"
                    f"{'' if rate >= rate_hz else ', which is still too few'} (the "
                    "network then sees voxels of another size)"
                )
                break
        batches = int(sustained * tiles / rate_hz / batch)
        side = isqrt(batches * batch)
        height, width = (
            min(n, axis.window + (side - 1) * axis.stride)
            for n, axis in zip(shape, plan.axes[1:], strict=True)
        )
        advice.append(
            f"segment a part of the plane: {height} × {width} keeps up"
            if side
            else "no part of the plane is small enough: one tile takes too long"
        )
        if fast is not None:
            advice.append(
                f"--precision bf16: {fast * sustained:.3g} planes/s; look at what "
                "`neurodeploy verify` says of it"
            )
        if any(axis.overlap for axis in plan.axes):
            none = TilePlan.of(bundle.spec, plan.shape, 0.0)
            advice.append(
                f"overlap 0 gives {with_plan(none):.3g} planes/s, with seams between "
                "tiles"
            )
        if settings.flips:
            advice.append(f"without flips: {4 * sustained:.3g} planes/s")
        advice += [f"not used: {reason}" for reason in not_used]
    if bundle.spec.mode == "volume":
        advice.append(
            f"the delay is set by tiles of {plan.window[0]} planes: up to {lag[1]} "
            f"planes, {lag[1] / rate_hz:.3g} s at this rate; a model of mode slice "
            "answers after its margin alone"
        )
    return advice


def _copy_advice(copies: tuple[float, float] | None) -> list[str]:
    """How planes are copied faster, where they would be by a tenth at least."""
    variable = past_the_cache()
    if copies is None or variable is None or copies[1] > 0.9 * copies[0]:
        return []
    ((name, value),) = variable.items()
    as_is, past = (seconds * 1e3 for seconds in copies)
    return [
        f"start the program that pushes with {name}={value}: its planes are then "
        f"copied past the cache, by themselves in {past:.2f} ms instead of {as_is:.2f}"
    ]
