"""Every engine that is possible here, end to end on one volume, in turn.

Each run is a process of its own: its peak of memory is its own, and thread pools and
allocators of one library do not wait in another's way.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import DeviceError, EngineError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._report import machine, versions
from neurodeploy_runtime.engines import EngineSettings, tile_seconds
from neurodeploy_runtime.engines._base import EngineName, PrecisionName
from neurodeploy_runtime.engines._choose import ADAPTERS, require_device
from neurodeploy_runtime.engines._cuda_driver import Device
from neurodeploy_runtime.measure._peaks import Peaks, measure_peaks
from neurodeploy_runtime.volumes import open_volume

#: A line of a measuring process that holds what it found.
MARK = "MEASURED "

#: Precisions worth comparing, by device.
PRECISIONS: dict[str, tuple[PrecisionName, ...]] = {
    "cuda": ("fp32", "fp16"),
    "cpu": ("fp32", "bf16"),
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    """An engine in a precision, and why it cannot run here, if so."""

    settings: EngineSettings
    why_not: str | None

    @property
    def name(self) -> str:
        """Such as ``openvino bf16 on cpu``."""
        s = self.settings
        return f"{s.engine} {s.precision} on {s.device}"


@dataclass(frozen=True)
class Measured:
    """One engine, end to end.

    Attributes
    ----------
    mvoxel_per_s
        Unique voxels of the volume per second; `spread` is its least and most.
    seconds
        By stage; stages overlap. Of the median run, as all that follows.
    tile_s
        Of one tile in the engine alone, before and after the run, batch divided out.
    over_tiles
        Wall time over tiles run times `tile_s`: 1 where nothing but the network counts.
    gflop_per_s, peak_share
        Achieved end to end; None where the bundle does not say what a tile costs. A
        share above 1 says that the peak was underestimated.
    moved_share
        Bytes that the stages around the network move, over what could be copied.
    agreement
        Share of voxels with the label of the first fp32 engine; `dice` of the
        foreground.
    """

    name: str
    engine: dict[str, Any]
    mvoxel_per_s: float
    spread: tuple[float, float]
    wall_s: float
    seconds: dict[str, float]
    engine_busy: float
    tiles: int
    tile_s: float
    over_tiles: float
    peak_rss_bytes: int | None
    device_bytes: int | None
    gflop_per_s: float | None
    peak_share: float | None
    moved_share: float
    agreement: float | None
    dice: float | None
    bottleneck: str


@dataclass(frozen=True)
class Comparison:
    """All engines on one volume, and those that could not run."""

    shape: Shape
    redundancy: float
    repeat: int
    rows: tuple[Measured, ...]
    impossible: dict[str, str]
    peaks: Peaks
    machine: dict[str, Any]
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def candidates(bundle: Bundle, settings: EngineSettings) -> list[Candidate]:
    """The engines that `settings` allow (`auto`: all), and which are possible here.

    Raises
    ------
    SettingsError
        The device is none, or several.
    """
    require_device(settings.device)
    found = []
    for adapter in ADAPTERS:
        if settings.engine not in ("auto", adapter.name):
            continue
        device = settings.device
        if device == "auto":
            device = "cuda:0" if adapter.device == "cuda" else "cpu"
        if not device.startswith(adapter.device):
            continue
        engine: EngineName = adapter.name  # type: ignore[assignment]
        for precision in PRECISIONS[adapter.device]:
            if settings.precision not in ("auto", precision):
                continue
            asked = replace(settings, engine=engine, device=device, precision=precision)
            found.append(Candidate(asked, adapter.why_not(bundle, asked)))
    return found


def compare_engines(
    bundle: Bundle,
    path: str | Path,
    *,
    settings: EngineSettings | None = None,
    roi: Box | None = None,
    reading: Mapping[str, Any] | None = None,
    repeat: int = 3,
    peaks: Peaks | None = None,
    say: Say = lambda text: None,
) -> Comparison:
    """Segment a volume (or its `roi`) with every engine, in turn, `repeat` times.

    `reading` is what :func:`open_volume` is told: a channel, axes.

    Raises
    ------
    DeviceError
        No engine is possible here.
    EngineError
        One that should be possible failed; the text is what it said.
    """
    every = candidates(bundle, settings or EngineSettings())
    possible = [c for c in every if c.why_not is None]
    impossible = {c.name: c.why_not for c in every if c.why_not is not None}
    if not possible:
        raise DeviceError(
            "no engine can be measured here: "
            + (
                "; ".join(f"{name}: {why}" for name, why in impossible.items())
                or "there is none of that name, on that device and in that precision"
            )
        )
    say("measuring what this machine multiplies and copies")
    peaks = peaks or measure_peaks()
    # The first fp32 engine of the plain kind is what the others are held to.
    order = sorted(
        possible,
        key=lambda c: (
            c.settings.precision != "fp32",
            c.settings.engine != "onnxruntime",
        ),
    )
    runs: dict[str, list[dict[str, Any]]] = {}
    labels: dict[str, tuple[float, float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="neurodeploy-") as folder,
        open_volume(path, **(reading or {})) as source,
    ):
        region = roi or Box.whole(source.shape)
        itemsize = source.dtype.itemsize
        plan = TilePlan.of(bundle.spec, source.shape)
        for round_ in range(repeat):
            for candidate in order:
                say(f"{candidate.name}, {round_ + 1} of {repeat}")
                out = Path(folder) / f"{len(runs)}-{candidate.settings.precision}.tif"
                if candidate.name in runs:
                    out = Path(runs[candidate.name][0]["output"])
                found = _in_process(
                    bundle, path, candidate.settings, roi, reading or {}, out
                )
                runs.setdefault(candidate.name, []).append(found)
        reference = runs[order[0].name][0]["output"]
        for candidate in order:
            labels[candidate.name] = agreement(
                reference, runs[candidate.name][0]["output"]
            )
    rows = tuple(
        _measured(
            candidate.name,
            runs[candidate.name],
            plan,
            region,
            itemsize,
            peaks,
            bundle,
            labels[candidate.name] if candidate is not order[0] else None,
        )
        for candidate in order
    )
    return Comparison(
        shape=region.shape,
        redundancy=plan.tiles_in(region) * prod(plan.tile) / region.voxels,
        repeat=repeat,
        rows=rows,
        impossible=impossible,
        peaks=peaks,
        machine=machine(),
        versions=versions(),
    )


def middle(plan: TilePlan, tiles: int) -> Box:
    """A box in the middle of a volume for which about `tiles` tiles suffice.

    It begins where the tile before no longer reaches and ends where the next begins,
    so that no tile is run for a corner only; at an end of the volume it goes on to it.

    >>> from neurodeploy_runtime import Axis
    >>> axes = Axis(32, 0, 8), Axis(64, 0, 16), Axis(64, 0, 16)
    >>> plan = TilePlan((96, 960, 960), axes)
    >>> plan.tiles_in(middle(plan, 27))
    27
    """
    most = plan.counts
    counts = [1, 1, 1]
    while prod(counts) < tiles and tuple(counts) != most:
        room = [i for i in range(3) if counts[i] < most[i]]
        axis = min(room, key=lambda i: counts[i])
        counts[axis] += 1
    start, stop = [], []
    for axis_, n, every, extent in zip(
        plan.axes, counts, most, plan.shape, strict=True
    ):
        first = (every - n) // 2
        start.append(first * axis_.stride + axis_.overlap if first else 0)
        stop.append(extent if first + n == every else (first + n) * axis_.stride)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def agreement(reference: str | Path, other: str | Path) -> tuple[float, float]:
    """Share of equal labels, and Dice, of two masks; plane by plane.

    Two masks without any foreground have a Dice of 1.
    """
    equal = both = either = total = 0
    # The axes are said for results of one plane.
    with (
        open_volume(reference, axes="zyx") as a,
        open_volume(other, axes="zyx") as b,
    ):
        for z in range(a.shape[0]):
            box = Box((z, 0, 0), (z + 1, *a.shape[1:]))
            left, right = a.read(box) > 0, b.read(box) > 0
            total += left.size
            equal += int(np.count_nonzero(left == right))
            both += int(np.count_nonzero(left & right))
            either += int(np.count_nonzero(left)) + int(np.count_nonzero(right))
    return equal / total, 2 * both / either if either else 1.0


def _in_process(
    bundle: Bundle,
    path: str | Path,
    settings: EngineSettings,
    roi: Box | None,
    reading: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    request = {
        "bundle": str(bundle.path),
        "input": str(path),
        "reading": dict(reading),
        "engine": asdict(settings),
        "roi": None if roi is None else [list(roi.start), list(roi.stop)],
        "output": str(out),
    }
    child = subprocess.run(
        [sys.executable, "-m", "neurodeploy_runtime.measure"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    for line in child.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise EngineError(
        f"{settings.engine} {settings.precision} on {settings.device} ended with exit "
        f"code {child.returncode}: {last}"
    )


def measure_one(request: dict[str, Any]) -> dict[str, Any]:
    """One run, in this process, which should be a fresh one."""
    from neurodeploy_runtime._bundle import load_bundle
    from neurodeploy_runtime._segmenter import Segmenter
    from neurodeploy_runtime._settings import SegmentSettings

    # JSON knows no tuples.
    reading: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in request["reading"].items()
    }
    box = request["roi"]
    roi = None if box is None else Box(tuple(box[0]), tuple(box[1]))
    settings = SegmentSettings(engine=EngineSettings(**request["engine"]), roi=roi)
    bundle = load_bundle(request["bundle"])
    with (
        open_volume(request["input"], **reading) as source,
        Segmenter(bundle, settings) as segmenter,
    ):
        engine = segmenter.engines[0]
        before = tile_seconds(engine)
        start = time.perf_counter()
        report = segmenter.segment(source, request["output"], overwrite=True)
        wall_s = time.perf_counter() - start
        after = tile_seconds(engine)
        described = engine.describe()
        # Behind this it has given its memory back.
        device_bytes = _gpu_bytes(described["device"])
    if report is None:
        raise EngineError("the run did not end")
    return {
        "output": request["output"],
        "engine": described,
        "tile_s": statistics.median(before + after),
        # The report's own time is that of the stream: to the user's file it is longer
        # by what is done before and after.
        "wall_s": wall_s,
        "voxels": report.voxels,
        "seconds": report.seconds,
        "engine_busy": report.engine_busy * report.wall_s / wall_s,
        "tiles": report.tiles_run,
        "peak_rss_bytes": report.peak_rss_bytes,
        "device_bytes": device_bytes,
    }


def _gpu_bytes(device: str) -> int | None:
    """Bytes in use on a GPU, by whatever program; None where it is none."""
    if not device.startswith("cuda"):
        return None
    with Device(int(device.partition(":")[2] or 0)) as gpu:
        return gpu.used_bytes()


def _measured(
    name: str,
    runs: Sequence[dict[str, Any]],
    plan: TilePlan,
    region: Box,
    itemsize: int,
    peaks: Peaks,
    bundle: Bundle,
    labels: tuple[float, float] | None,
) -> Measured:
    ordered = sorted(runs, key=lambda run: float(run["wall_s"]))
    middle = ordered[len(ordered) // 2]
    rates = [run["voxels"] / run["wall_s"] / 1e6 for run in ordered]
    wall, tiles, tile_s = middle["wall_s"], middle["tiles"], middle["tile_s"]
    flop = bundle.spec.flop_per_tile
    on_cpu = middle["engine"]["device"] == "cpu"
    peak = peaks.best(middle["engine"]["precision"]) if on_cpu else None
    achieved = flop * tiles / wall if flop else None
    share = achieved / peak if achieved and peak else None
    moved = moved_bytes(plan, tiles, region, itemsize) / wall
    return Measured(
        name=name,
        engine=middle["engine"],
        mvoxel_per_s=statistics.median(rates),
        spread=(min(rates), max(rates)),
        wall_s=wall,
        seconds=middle["seconds"],
        engine_busy=middle["engine_busy"],
        tiles=tiles,
        tile_s=tile_s,
        over_tiles=wall / (tiles * tile_s),
        peak_rss_bytes=max(r["peak_rss_bytes"] or 0 for r in runs) or None,
        device_bytes=middle["device_bytes"],
        gflop_per_s=achieved / 1e9 if achieved else None,
        peak_share=share,
        moved_share=moved / peaks.copy_bytes_per_s,
        agreement=labels[0] if labels else None,
        dice=labels[1] if labels else None,
        bottleneck=bottleneck(middle["seconds"], middle["engine_busy"], share),
    )


def moved_bytes(plan: TilePlan, tiles: int, region: Box, itemsize: int) -> int:
    """Bytes that the stages around the network read and write, at the least.

    Planes are read once and looked at once more; a tile is read, written normalised,
    read by the engine; its answer is written, read and added to a sum that is read and
    written; a finished voxel is read, and its byte written twice.
    """
    tile, window = prod(plan.tile), prod(plan.window)
    per_tile = tile * (itemsize + 4 + 4) + window * (4 + 4 + 4 + 4)
    return tiles * per_tile + region.voxels * (2 * itemsize + 4 + 2)


#: What each stage but the network is, and what makes it faster; in the order in which
#: a voxel meets them. Reading includes decoding, and writing encoding.
CURES = {
    "look at the volume": "looking at the volume for its normalisation: rewrite the "
    "volume with `neurodeploy ingest`, or use a faster disk",
    "scratch": "decoding into a scratch file: a larger --memory, or rewrite the volume "
    "with `neurodeploy ingest`",
    "read": "reading: rewrite the volume with `neurodeploy ingest`, or use a faster "
    "disk",
    "picture": "adding up the picture of the input: several workers (--worker)",
    "normalise": "normalising: several workers (--worker)",
    "blend": "blending: a smaller --overlap, or several workers (--worker)",
    "quantise": "turning probabilities into labels: several workers (--worker)",
    "write": "writing: use a faster disk, or OME-Zarr output, which leaves empty units "
    "out",
    "finish": "finishing the output: use a faster disk, or TIFF output, which has no "
    "coarser levels",
}

#: Every stage that is shown, the network's between normalising and blending.
STAGES = (*list(CURES)[:5], "infer", *list(CURES)[5:])


def bottleneck(seconds: dict[str, float], busy: float, peak_share: float | None) -> str:
    """One sentence: what the run waited for, and what to do.

    Every stage counts but those in which a thread waits for another one.

    >>> bottleneck({"infer": 1.0, "read": 8.0, "blend": 0.5}, 0.12, None)
    'reading: rewrite the volume with `neurodeploy ingest`, or use a faster disk'
    """
    work = {k: s for k, s in seconds.items() if not k.startswith("wait ")}
    slowest = max(work, key=lambda stage: work[stage], default="infer")
    if slowest != "infer":
        return CURES.get(slowest, f"{slowest}: several workers (--worker)")
    text = f"the network, {busy:.0%} of the time"
    if peak_share is not None and peak_share > 1:
        return (
            f"{text}, faster than the matrix product that was measured: the peak of "
            "this machine was underestimated, measure again when nothing else runs"
        )
    if peak_share is not None and peak_share > 0.6:
        return (
            f"{text} at {peak_share:.0%} of what this machine multiplies: only a "
            "cheaper network, a lower precision or fewer voxels are faster"
        )
    return f"{text}: a lower precision, --skip-background or a GPU are faster"
