"""What a segmentation will take, before it begins: tiles, memory, disk, time."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._memory import MemoryPlan
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._outputs import default_grain
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._run import SegmentRun
from neurodeploy_runtime._segmenter import Segmenter
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._shares import scratch_chapters
from neurodeploy_runtime._skip import BackgroundSkip, SkipSettings
from neurodeploy_runtime._stream import FLIPS
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime.engines import Engine, same_engine, tile_seconds
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.volumes import Source, required_bytes

#: Tiles that are read to calibrate, and the seconds after which they do.
TILES = 8
BUDGET_S = 15.0


@dataclass(frozen=True)
class Calibration:
    """What one tile took here: medians of `tiles` real tiles of this volume.

    Attributes
    ----------
    infer_s
        Of a tile in the engine, at the batch that a run has.
    handle_s
        Of a tile outside it: normalised, weighted, added.
    read_bytes_per_s
        Voxels decoded, in bytes; planes or chunks read as a whole.
    background
        Share of these tiles in which nothing rises above the noise.
    """

    tiles: int
    infer_s: float
    handle_s: float
    read_bytes_per_s: float
    background: float


@dataclass(frozen=True)
class Forecast:
    """What a segmentation will take.

    `seconds` and `mvoxel_per_s` are None where nothing was calibrated. Bytes are of
    this process, libraries and network included; `device_bytes` is what tiles, and
    their sums where they lie there, take on a GPU, without the network's own workspace.
    `read_amplification` is bytes decoded over those of what is segmented.
    """

    shape: Shape
    dtype: str
    input_format: str
    tile: Shape
    tiles: int
    tiles_run: int
    redundancy: float
    regions: int
    region_shape: Shape
    memory_bytes: int
    memory_cap_bytes: int | None
    device_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    scratch_bytes: int
    read_amplification: float
    engine: dict[str, Any]
    passed_over: tuple[str, ...]
    calibration: Calibration | None
    seconds: float | None
    mvoxel_per_s: float | None
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def forecast(
    segmenter: Segmenter, source: Source, output: str | Path, *, calibrate: bool = True
) -> Forecast:
    """Plan what ``segmenter.segment(source, output)`` would do; nothing is written.

    With `calibrate`, the engine is timed, and up to `TILES` tiles spread over the
    volume are read and handled: some `BUDGET_S` seconds at most, and two calls of the
    engine at least.

    Raises
    ------
    RequestError
        The request cannot be done, for the reason that `segment` would give.
    """
    settings = segmenter.settings
    run = SegmentRun(
        segmenter.bundle,
        segmenter.engines,
        source,
        Path(output),
        settings,
        overwrite=True,
        progress=None,
        cancel=None,
        notes={},
    )
    run.check_place()
    memory = run.plan_memory()
    roi = settings.roi or Box.whole(source.shape)
    plan = TilePlan.of(segmenter.bundle.spec, source.shape, settings.overlap)
    outputs = 2 if settings.output_kind == "both" else 1
    disk_bytes = outputs * required_bytes(run.kind, roi.shape, np.uint8)
    free = shutil.disk_usage(Path(output).absolute().parent).free
    chapters = [roi]
    if memory.scratch:
        grain = default_grain(run.kind, roi.shape)
        plane_bytes = source.shape[1] * source.shape[2] * source.dtype.itemsize
        chapters = scratch_chapters(plan, roi, grain, plane_bytes, free - disk_bytes)
    parts = [
        region.intersect(chapter) for chapter in chapters for region in memory.regions
    ]
    tiles_run = sum(plan.tiles_in(part) for part in parts)
    loaded = (
        [_whole_planes(plan, source, chapter) for chapter in chapters]
        if memory.scratch
        else [_reads(plan, part) for part in parts]
    )
    amplification = sum(source.decoded_voxels(box) for box in loaded) / roi.voxels
    measured = _calibrate(segmenter, source, plan, roi) if calibrate else None
    engine = segmenter.engines[0]
    seconds = None
    if measured is not None:
        left_out = 0.0
        if settings.skip is not None:
            left_out = measured.background * (1 - settings.skip.audit_share)
        seconds = _seconds(
            measured,
            tiles_run * (1 - left_out) * (len(FLIPS) if settings.flips else 1),
            tiles_run,
            amplification * roi.voxels * source.dtype.itemsize,
            gpus=0 if engine.device == "cpu" else len(segmenter.engines),
        )
    return Forecast(
        shape=roi.shape,
        dtype=source.dtype.name,
        input_format=source.format,
        tile=plan.tile,
        tiles=plan.tiles_in(roi),
        tiles_run=tiles_run,
        redundancy=tiles_run * prod(plan.tile) / roi.voxels,
        regions=len(memory.regions),
        region_shape=memory.regions[0].shape,
        memory_bytes=memory.peak_bytes,
        memory_cap_bytes=settings.memory_bytes,
        device_bytes=_device_bytes(engine, memory),
        disk_bytes=disk_bytes,
        disk_free_bytes=free,
        # The file of one chapter is gone before the next one's is made.
        scratch_bytes=max(box.voxels for box in loaded) * source.dtype.itemsize
        if memory.scratch
        else 0,
        read_amplification=amplification,
        engine=same_engine(segmenter.engines),
        passed_over=tuple(segmenter.choice["passed_over"]),
        calibration=measured,
        seconds=seconds,
        mvoxel_per_s=None if seconds is None else roi.voxels / seconds / 1e6,
        advice=(
            *_advice(segmenter, plan, roi, memory, amplification, measured),
            *_not_counted(settings),
        ),
    )


def _whole_planes(plan: TilePlan, source: Source, chapter: Box) -> Box:
    """What goes through a scratch file for a chapter."""
    first, last = plan.planes_read(chapter.start[0], chapter.stop[0])
    return Box((first, 0, 0), (last, *source.shape[1:]))


def _reads(plan: TilePlan, region: Box) -> Box:
    """What is read of the volume to segment a region."""
    z0, z1 = plan.planes_read(region.start[0], region.stop[0])
    (y0, y1), (x0, x1) = plan.layer(region).reads
    return Box((z0, y0, x0), (z1, y1, x1))


def _device_bytes(engine: Engine, memory: MemoryPlan) -> int:
    if engine.device == "cpu":
        return 0
    batch = 4 * (prod(engine.input_shape) + prod(engine.output_shape))
    return memory.device_bytes or batch


def _not_counted(settings: SegmentSettings) -> Iterator[str]:
    if settings.tissue is not None:
        yield "the tissue mask is not counted here: fewer tiles will be run"


def _seconds(
    measured: Calibration, runs: float, tiles: int, read_bytes: float, *, gpus: int
) -> float:
    """Wall time: engines on a CPU share its cores with all else; `gpus` share tiles."""
    infer = runs * measured.infer_s
    handle = tiles * measured.handle_s
    read = read_bytes / measured.read_bytes_per_s
    if not gpus:
        return infer + (handle + read) / usable_cores()
    return max(infer / gpus, handle, read)


def _calibrate(
    segmenter: Segmenter, source: Source, plan: TilePlan, roi: Box
) -> Calibration:
    settings, engine = segmenter.settings, segmenter.engines[0]
    normalisation = settings.normalisation
    if normalisation is None:
        normalisation = survey(source).freeze(segmenter.bundle.spec.normalisation)
    judge = BackgroundSkip(
        settings.skip or SkipSettings(), plan.counts, plan.window, 0.5
    )
    # Only where the noise is known is a tile known to hold nothing else.
    judged = normalisation.kind == "background-asinh"
    voxels = np.zeros(engine.input_shape, np.float32)
    answer = np.zeros(engine.output_shape, np.float32)
    infers = tile_seconds(engine, 1, seconds=BUDGET_S / 5)
    handles: list[float] = []
    read_s = read_bytes = 0.0
    background = 0
    end = time.perf_counter() + BUDGET_S * 4 / 5
    for tile in _spread(plan, roi):
        box = _box(plan, tile)
        start = time.perf_counter()
        raw = read_patiently(source, box)
        read_s += time.perf_counter() - start
        read_bytes += source.decoded_voxels(box) * source.dtype.itemsize
        background += judged and not judge.decide(tile, [raw], normalisation)[0]
        start = time.perf_counter()
        _fill(plan, tile, raw, normalisation, voxels[0, 0])
        filled = time.perf_counter() - start
        region = _window(plan, tile)
        ring = BlendRing(plan, region)
        start = time.perf_counter()
        ring.add(*tile, answer[0, 0], last=tile[0] + 1 == plan.counts[0])
        handles.append(filled + time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return Calibration(
        tiles=len(handles),
        infer_s=statistics.median(infers),
        handle_s=statistics.median(handles),
        read_bytes_per_s=read_bytes / max(read_s, 1e-9),
        background=background / len(handles),
    )


def _spread(plan: TilePlan, roi: Box) -> list[Shape]:
    """Up to `TILES` tiles of a region, by a fixed draw: tissue is never in corners."""
    ranges = [
        axis.meeting(a, b, extent)
        for axis, a, b, extent in zip(
            plan.axes, roi.start, roi.stop, plan.shape, strict=True
        )
    ]
    every = prod(len(r) for r in ranges)
    rng = np.random.default_rng(0)
    drawn = (
        range(every)
        if every <= TILES
        else sorted({int(n) for n in rng.integers(0, every, 4 * TILES)})
    )
    order = rng.permutation(np.asarray(drawn))[:TILES]
    tiles = []
    for n in order:
        z, y, x = np.unravel_index(int(n), tuple(len(r) for r in ranges))
        tiles.append((ranges[0][int(z)], ranges[1][int(y)], ranges[2][int(x)]))
    return tiles


def _box(plan: TilePlan, tile: Shape) -> Box:
    """What a tile reads of the volume."""
    spans = [
        axis.reads(k, extent)
        for axis, k, extent in zip(plan.axes, tile, plan.shape, strict=True)
    ]
    (z0, z1), (y0, y1), (x0, x1) = spans
    return Box((z0, y0, x0), (z1, y1, x1))


def _window(plan: TilePlan, tile: Shape) -> Box:
    """What a tile answers for, inside the volume."""
    starts = [k * axis.stride for axis, k in zip(plan.axes, tile, strict=True)]
    stops = [
        min(start + axis.window, extent)
        for start, axis, extent in zip(starts, plan.axes, plan.shape, strict=True)
    ]
    return Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))


def _fill(
    plan: TilePlan,
    tile: Shape,
    raw: NDArray[Any],
    normalisation: Normalisation,
    out: NDArray[np.float32],
) -> None:
    for i, (axis, k, extent) in enumerate(
        zip(plan.axes, tile, plan.shape, strict=True)
    ):
        index = axis.mirrored(k, extent)
        if index is not None:
            raw = raw.take(index, i)
    normalisation.apply(raw, out)


def _advice(
    segmenter: Segmenter,
    plan: TilePlan,
    roi: Box,
    memory: MemoryPlan,
    amplification: float,
    measured: Calibration | None,
) -> Sequence[str]:
    engine, settings = segmenter.engines[0], segmenter.settings
    advice = []
    if engine.device == "cpu":
        if engine.name == "onnxruntime" and find_spec("openvino") is None:
            advice.append(
                "OpenVINO runs networks faster on CPUs and is not installed: "
                'pip install "neurodeploy[openvino]"'
            )
        if engine.name == "openvino" and engine.precision == "fp32" and _has_bf16():
            advice.append(
                "this CPU multiplies in bf16: --precision bf16; `neurodeploy "
                "benchmark` shows how many labels that changes"
            )
    if len(memory.regions) > 1:
        whole = plan.tiles_in(roi)
        run = sum(plan.tiles_in(region) for region in memory.regions)
        if run > 1.02 * whole:
            advice.append(
                f"the memory cap cuts planes into {len(memory.regions)} regions, which "
                f"runs {run / whole - 1:.0%} more tiles: a larger --memory"
            )
    if memory.scratch:
        advice.append(
            "planes are decoded into a scratch file first, because regions cut them: "
            "a larger --memory, or `neurodeploy ingest` where the volume is read again"
        )
    elif amplification > 2:
        advice.append(
            f"reading decodes {amplification:.1f} times what is used: "
            "`neurodeploy ingest` rewrites the volume in chunks"
        )
    if measured is not None and measured.background >= 0.25 and settings.skip is None:
        advice.append(
            f"{measured.background:.0%} of the {measured.tiles} tiles looked at are "
            "background: --skip-background leaves such tiles out and audits that"
        )
    return advice


def _has_bf16() -> bool:
    """Whether the kernel says that this CPU multiplies bf16."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in text or "avx512_bf16" in text
