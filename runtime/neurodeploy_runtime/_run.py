"""One segmentation of one volume into one output, from plan to final name."""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime import volumes
from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import (
    InputError,
    OutputError,
    ResumeError,
    RunError,
    SettingsError,
)
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Journal, checksum, write_atomically
from neurodeploy_runtime._memory import (
    Footprint,
    MemoryPlan,
    choose_regions,
    ring_depth,
)
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._outlet import SEAM, Output, PlaneKind, UnitOutlet
from neurodeploy_runtime._picture import draw_picture
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._projections import (
    Projections,
    load_projections,
    save_projections,
)
from neurodeploy_runtime._provenance import content_digest
from neurodeploy_runtime._reader import PlaneReader
from neurodeploy_runtime._report import Report, machine, out_of_range, versions
from neurodeploy_runtime._rss import current_rss, machine_memory, peak_rss
from neurodeploy_runtime._settings import OutputKind, SegmentSettings
from neurodeploy_runtime._skip import BackgroundSkip
from neurodeploy_runtime._stream import RegionStream
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.engines import Engine
from neurodeploy_runtime.volumes import (
    Sink,
    SinkKind,
    Source,
    attach_sink,
    open_volume,
    required_bytes,
    sink_kind,
)
from neurodeploy_runtime.volumes._scratch import ScratchSource

#: Recorded units that are read again when a run continues: all up to this many bytes,
#: beyond that the last ones of each region.
VERIFY_BYTES = 4_000_000_000

#: Chunks that would be decoded this often, on average, go through a scratch file.
TWICE = 1.5


@dataclass(frozen=True)
class Progress:
    """How far a run is; voxels of the output."""

    done_voxels: int
    total_voxels: int
    resumed_voxels: int
    seconds: float


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Paths:
    """Where a run writes. The final names are taken at the end only."""

    output: Path
    outputs: tuple[tuple[PlaneKind, Path], ...]
    work: Path
    report: Path
    picture: Path

    def beside(self, ending: str) -> Path:
        """A name beside the output, such as ``big.seg.skip.tif``."""
        base = self.output.name.removesuffix(self.output.suffix)
        return self.output.with_name(f"{base}.{ending}")

    @classmethod
    def of(cls, output: Path, kind: OutputKind) -> Paths:
        """The names that belong to an output."""
        base = output.name.removesuffix(output.suffix)
        outputs: tuple[tuple[PlaneKind, Path], ...]
        if kind == "both":
            second = output.with_name(f"{base}.probability{output.suffix}")
            outputs = (("mask", output), ("probability", second))
        else:
            outputs = ((kind, output),)
        return cls(
            output,
            outputs,
            output.with_name(f"{output.name}.neurodeploy"),
            output.with_name(f"{base}.json"),
            output.with_name(f"{base}.png"),
        )


class SegmentRun:
    """What `Segmenter.segment` does for one volume."""

    def __init__(
        self,
        bundle: Bundle,
        engines: Sequence[Engine],
        source: Source,
        output: Path,
        settings: SegmentSettings,
        *,
        overwrite: bool,
        progress: ProgressCallback | None,
        cancel: threading.Event | None,
        notes: dict[str, Any],
    ) -> None:
        self._bundle = bundle
        self._engines = engines
        self._source = source
        self._settings = settings
        self._overwrite = overwrite
        self._progress = progress
        self._cancel = cancel
        self._notes = notes
        self._clock = Clock()
        self._paths = Paths.of(output, settings.output_kind)
        self._kind: SinkKind = sink_kind(output)
        whole = Box.whole(source.shape)
        self._roi = settings.roi or whole
        if not whole.contains(self._roi) or self._roi.voxels == 0:
            raise SettingsError(
                f"roi {self._roi} does not lie inside the volume, which is {whole}"
            )
        self._plan = TilePlan.of(bundle.spec, source.shape, settings.overlap)
        threshold = settings.threshold
        self._threshold = bundle.spec.threshold if threshold is None else threshold
        self._journal = Journal(self._paths.work, settings.worker[0])
        self._lock = threading.Lock()
        self._done_voxels = 0
        self._resumed_voxels = 0
        self._foreground = 0
        self._tiles_run = 0
        self._warnings: list[str] = []
        self._saved = 0.0
        self._start = time.perf_counter()
        self._skip: BackgroundSkip | None = None
        self._seam: Sink | None = None
        self._tissue: TissueMask | None = None
        self._tissue_digest: str | None = None
        if settings.tissue is not None:
            with open_volume(settings.tissue) as mask:
                self._tissue = TissueMask.read(mask, source.shape)
                self._tissue_digest = mask.fingerprint()

    # -- the whole -------------------------------------------------------------

    def execute(self) -> Report | None:
        """Run it; None where other workers still have shares to do."""
        self._check_output()
        fresh = not self._journal.exists
        with self._clock.stage("look at the volume"):
            normalisation = self._normalise()
        plan = {
            "identity": self._identity(normalisation),
            "normalisation": normalisation.to_json(),
            "warnings": self._warnings,
        }
        memory = self.plan_memory()
        if fresh:
            self._check_disk()
            self._journal.begin(plan)
        else:
            fresh = self._go_on(plan)
        try:
            self._journal.lock()
            outputs = self._open_outputs()
        except BaseException:
            self._journal.close()
            if fresh:
                shutil.rmtree(self._paths.work, ignore_errors=True)
            raise
        try:
            done = self._verified(outputs)
            self._stream_all(memory, outputs, normalisation, done)
            finished = self._finish(outputs, normalisation, memory)
        except InputError:
            # The input itself is at fault: nothing of this run can be gone on with.
            self._close(outputs)
            shutil.rmtree(self._paths.work, ignore_errors=True)
            raise
        finally:
            self._close(outputs)
        return finished

    def _close(self, outputs: list[Output]) -> None:
        """Close the sinks, once, and give the worker's place back."""
        while outputs:
            outputs.pop().sink.close()
        if self._seam is not None:
            self._seam.close()
            self._seam = None
        self._journal.close()

    # -- before ----------------------------------------------------------------

    def _check_output(self) -> None:
        folder = self._paths.output.parent
        if not folder.is_dir():
            raise OutputError(f"the folder {folder} does not exist: make it first")
        if not self._overwrite and not self._journal.exists:
            for _, path in self._paths.outputs:
                if path.exists():
                    raise OutputError(
                        f"{path} exists: choose another name with -o, or pass "
                        "--overwrite"
                    )
        source = Path(str(self._source.path))
        for _, path in self._paths.outputs:
            if source.exists() and path.exists() and path.samefile(source):
                raise OutputError(f"{path} is the input: it is never overwritten")

    def _go_on(self, plan: dict[str, Any]) -> bool:
        """Go on with what lies here, or start again where that is allowed."""
        try:
            self._journal.check(plan)
        except ResumeError:
            if not self._overwrite:
                raise
            self._journal.lock()
            self._journal.close()
            shutil.rmtree(self._paths.work)
            self._check_disk()
            self._journal.begin(plan)
            return True
        return False

    def _normalise(self) -> Normalisation:
        if self._settings.normalisation is not None:
            return self._settings.normalisation
        histogram: Histogram = survey(self._source)
        normalisation = histogram.freeze(self._bundle.spec.normalisation)
        self._warnings += out_of_range(self._bundle.spec, normalisation, histogram)
        return normalisation

    def _identity(self, normalisation: Normalisation) -> dict[str, Any]:
        """What makes two runs the same run: one bit of any of it changes the result."""
        engine = self._engines[0]
        return {
            "input": {
                "fingerprint": self._source.fingerprint(),
                "shape": list(self._source.shape),
                "dtype": self._source.dtype.name,
            },
            "model": {"name": self._bundle.spec.name, "digest": self._bundle.digest},
            "engine": engine.describe(),
            "tiles": {
                "tile": list(self._plan.tile),
                "window": list(self._plan.window),
                "overlap": [axis.overlap for axis in self._plan.axes],
                "flips": self._settings.flips,
            },
            "normalisation": normalisation.to_json(),
            "threshold": self._threshold,
            "skip": None
            if self._settings.skip is None
            else vars(self._settings.skip).copy(),
            "output": {
                "format": self._kind,
                "kind": self._settings.output_kind,
                "roi": str(self._roi),
            },
            "seam_map": self._settings.seam_map,
            "tissue": self._tissue_digest,
            "workers": self._settings.worker[1],
        }

    @property
    def kind(self) -> SinkKind:
        """The format of the output."""
        return self._kind

    def plan_memory(self) -> MemoryPlan:
        """The regions in which the memory cap holds; nothing is written."""
        total = machine_memory()
        cap = self._settings.memory_bytes
        if cap is None:
            cap = (total or 8_000_000_000) // 2
        footprint = Footprint(
            base_bytes=current_rss() + int(self._source.memory_bytes),
            voxel_bytes=self._source.dtype.itemsize,
            grain=self._grain(),
            extent=self._roi.shape,
            outputs=len(self._paths.outputs),
            seam=self._settings.seam_map,
            slots=2 * len(self._engines) + 2,
            batch=self._engines[0].batch,
        )
        memory = choose_regions(self._plan, self._roi, footprint, cap)
        if len(memory.regions) == 1 or not self._source.compressed:
            return memory
        # Cutting planes that are decoded as a whole needs a scratch file, and copying
        # into it a buffer of its own.
        depth = self._source.shape[0]
        if self._source.amplification((depth, *memory.regions[0].shape[1:])) < TWICE:
            return memory
        plane = prod(self._source.shape[1:]) * self._source.dtype.itemsize
        buffer = max(64 * 2**20, plane) + self._source.chunk[0] * plane
        footprint = replace(footprint, base_bytes=footprint.base_bytes + buffer)
        memory = choose_regions(self._plan, self._roi, footprint, cap)
        return replace(memory, scratch=True)

    def _grain(self) -> Shape:
        """The unit of this output: the format's own for such a volume."""
        return default_grain(self._kind, self._roi.shape)

    def _check_disk(self) -> None:
        need = sum(
            required_bytes(self._kind, self._roi.shape, np.uint8)
            for _ in self._paths.outputs
        )
        free = shutil.disk_usage(self._paths.output.parent).free
        if need > free:
            raise OutputError(
                f"the output may take {need / 1e9:.2f} GB and "
                f"{self._paths.output.parent} has {free / 1e9:.2f} GB free: make room, "
                "or choose another place with -o"
            )

    def _open_outputs(self) -> list[Output]:
        outputs: list[Output] = []
        try:
            for kind, path in self._paths.outputs:
                target = self._working(kind, path)
                sink: Sink = attach_sink(
                    target,
                    self._kind,
                    self._roi.shape,
                    np.uint8,
                    self._source.voxel_size_um,
                    grain=self._grain(),
                    pooling="max" if kind == "mask" else "mean",
                )
                outputs.append(Output(kind, sink))
            if self._settings.seam_map:
                self._seam = self._open_seam(outputs[0].sink.grain)
        except BaseException:
            for output in outputs:
                output.sink.close()
            raise
        return outputs

    def _open_seam(self, grain: Shape) -> Sink:
        """A TIFF of an eighth of the extent, whose units are those of the output."""
        shape, units, size = (
            tuple(-(-n // SEAM) for n in self._roi.shape),
            tuple(-(-n // SEAM) for n in grain),
            self._source.voxel_size_um,
        )
        return attach_sink(
            self._paths.work / "seam.tif",
            "tiff",
            shape,  # type: ignore[arg-type]
            np.uint8,
            tuple(SEAM * n for n in size) if size else None,  # type: ignore[arg-type]
            grain=units,  # type: ignore[arg-type]
        )

    def _working(self, kind: PlaneKind, path: Path) -> Path:
        """Where an output is while it is written.

        A run killed while it gave final names may have given this one: then it is
        there already.
        """
        working = self._paths.work / f"{kind}{path.suffix}"
        named = (self._paths.work / "naming").exists()
        return path if named and path.exists() and not working.exists() else working

    def _verified(self, outputs: Sequence[Output]) -> frozenset[Shape]:
        """The units that need not be done again: recorded, present and readable."""
        records = self._journal.records()
        whole = Box.whole(self._roi.shape)
        units = {
            unit.start: unit
            for unit in whole.grid(outputs[0].sink.grain)
            if unit.start in records
        }
        good = set()
        budget = VERIFY_BYTES
        for start, unit in reversed(units.items()):
            sums = records[start].checksums
            if len(sums) != len(outputs):
                continue
            budget -= unit.voxels * len(outputs)
            intact = budget < 0 or all(
                checksum(output.sink.read(unit)) == expected
                for output, expected in zip(outputs, sums, strict=True)
            )
            if intact:
                good.add(start)
                self._resumed_voxels += unit.voxels
        return frozenset(good)

    # -- the run ---------------------------------------------------------------

    def _shares(self, regions: Sequence[Box], grain: Shape) -> list[Box]:
        """The regions as far as this worker has them: whole layers of units."""
        i, n = self._settings.worker
        if n == 1:
            return list(regions)
        depth = self._roi.shape[0]
        rows = -(-depth // grain[0])
        if n > rows:
            raise SettingsError(
                f"{n} workers are too many: this output has {rows} layers of units, "
                f"{grain[0]} planes each; use at most {rows}"
            )
        first = (i - 1) * rows // n * grain[0] + self._roi.start[0]
        last = min(i * rows // n * grain[0], depth) + self._roi.start[0]
        return [
            Box((first, *region.start[1:]), (last, *region.stop[1:]))
            for region in regions
        ]

    def _stream_all(
        self,
        memory: MemoryPlan,
        outputs: Sequence[Output],
        normalisation: Normalisation,
        done: frozenset[Shape],
    ) -> None:
        grain = outputs[0].sink.grain
        image = Projections(self._roi, self._source.dtype)
        result = Projections(self._roi, np.dtype(np.uint8))
        self._pictures = (image, result)
        for path in self._paths.work.glob("projections-*.npz"):
            load_projections(path, image, result)
        settings = self._settings
        if settings.skip is not None:
            self._skip = BackgroundSkip(
                settings.skip, self._plan.counts, self._plan.window, self._threshold
            )
        self._stream_start = time.perf_counter()
        self._tell()
        shares = self._shares(memory.regions, grain)
        for chapter in self._chapters(memory, grain):
            parts = [
                part
                for share in shares
                for part in self._undone(share.intersect(chapter), grain, done)
            ]
            if parts:
                with self._readable(memory, parts) as source:
                    for part in parts:
                        self._stream(source, part, outputs, normalisation, done)
                        # Stages hold each other through their callbacks: without this
                        # their buffers would live on beside those of the next region.
                        gc.collect()
        self._stream_s = time.perf_counter() - self._stream_start

    def _undone(self, region: Box, grain: Shape, done: frozenset[Shape]) -> list[Box]:
        """Runs of unit layers of a region in which something is left to do."""
        z0 = self._roi.start[0]
        inside = region.shift(tuple(-a for a in self._roi.start))  # type: ignore[arg-type]
        parts: list[list[int]] = []
        for z in range(inside.start[0], inside.stop[0], grain[0]):
            top = min(z + grain[0], inside.stop[0])
            layer = Box((z, *inside.start[1:]), (top, *inside.stop[1:]))
            if all(unit.start in done for unit in layer.grid(grain)):
                continue
            if parts and parts[-1][1] == z:
                parts[-1][1] = top
            else:
                parts.append([z, top])
        return [
            Box((a + z0, *region.start[1:]), (b + z0, *region.stop[1:]))
            for a, b in parts
        ]

    def _chapters(self, memory: MemoryPlan, grain: Shape) -> list[Box]:
        """Ranges of planes that are segmented one after the other.

        One, but where planes that are compressed as a whole have to be cut: they go
        through a scratch file, decoded once, and the disk may not hold all of them.
        """
        if not memory.scratch:
            return [self._roi]
        plane = self._source.shape[1] * self._source.shape[2]
        plane *= self._source.dtype.itemsize
        free = shutil.disk_usage(self._paths.work).free * 4 // 5
        planes = free // plane - 2 * self._plan.tile[0]
        height = max(grain[0], planes // grain[0] * grain[0])
        (z0, y0, x0), (z1, y1, x1) = self._roi.start, self._roi.stop
        return [
            Box((z, y0, x0), (min(z + height, z1), y1, x1))
            for z in range(z0, z1, height)
        ]

    def _readable(
        self, memory: MemoryPlan, parts: Sequence[Box]
    ) -> AbstractContextManager[Source]:
        """Where the planes of these regions are read from."""
        if not memory.scratch:
            return nullcontext(self._source)
        axis, depth = self._plan.axes[0], self._source.shape[0]
        first = min(part.start[0] for part in parts)
        last = max(part.stop[0] for part in parts)
        layers = axis.meeting(first, last, depth)
        planes = axis.reads(layers[0], depth)[0], axis.reads(layers[-1], depth)[1]
        with self._clock.stage("scratch"):
            return ScratchSource(self._source, self._paths.work, planes)

    def _stream(
        self,
        source: Source,
        region: Box,
        outputs: Sequence[Output],
        normalisation: Normalisation,
        done: frozenset[Shape],
    ) -> None:
        image, result = self._pictures
        (y0, y1), (x0, x1) = self._plan.layer(region).reads
        axis = self._plan.axes[0]
        layers = axis.meeting(region.start[0], region.stop[0], self._plan.shape[0])
        ring = PlaneRing(
            ring_depth(self._plan, region),
            (y1 - y0, x1 - x0),
            self._source.dtype,
            axis.reads(layers[0], self._plan.shape[0])[0],
        )
        outlet = UnitOutlet(
            outputs,
            region,
            self._roi.start,
            self._threshold,
            journal=self._journal,
            projections=result,
            written=self._written,
            skip=done,
            seam=self._seam,
            tissue=self._tissue,
            clock=self._clock,
        )
        stream = RegionStream(
            self._plan,
            region,
            ring,
            self._engines,
            normalisation,
            outlet.emit,
            dtype=self._source.dtype,
            depth=self._source.shape[0],
            clock=self._clock,
            flips=self._settings.flips,
            seam=self._settings.seam_map,
            skip=self._skip,
            tissue=self._tissue,
        )

        def stop(error: BaseException) -> None:
            outlet.abort(error)
            stream.stop(error)

        reader = PlaneReader(
            source,
            self._plan,
            region,
            ring,
            projections=image,
            clock=self._clock,
            on_error=stop,
        )
        outlet.start(stop)
        reader.start()
        try:
            stream.run(self._cancel)
            outlet.finish()
            if outlet.error is not None:
                raise outlet.error
            self._tiles_run += stream.tiles_run
        except BaseException as error:
            outlet.abort(error)
            raise
        finally:
            ring.close()
            reader.join()
            outlet.join()
            self._save_pictures()

    def _written(self, unit: Box, foreground: int) -> None:
        with self._lock:
            self._done_voxels += unit.voxels
            self._foreground += foreground
        now = time.perf_counter()
        if now - self._saved > 10:
            self._saved = now
            self._save_pictures()
        self._tell()

    def _save_pictures(self) -> None:
        image, result = self._pictures
        path = self._paths.work / f"projections-{self._settings.worker[0]}.npz"
        try:
            save_projections(path, image, result)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error}") from error

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(
                Progress(
                    self._done_voxels + self._resumed_voxels,
                    self._roi.voxels,
                    self._resumed_voxels,
                    time.perf_counter() - self._start,
                )
            )

    # -- after -----------------------------------------------------------------

    def _finish(
        self,
        outputs: list[Output],
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report | None:
        records = self._journal.records()
        units = list(Box.whole(self._roi.shape).grid(outputs[0].sink.grain))
        missing = [unit for unit in units if unit.start not in records]
        if missing and self._settings.worker[1] == 1:
            raise RunError(
                f"{len(missing)} of {len(units)} units of {self._paths.output} are not "
                "done: run the same command again"
            )
        if missing or not self._journal.claim_finish():
            return None
        try:
            return self._give_names(outputs, normalisation, memory)
        except BaseException:
            (self._paths.work / "finish.lock").unlink(missing_ok=True)
            raise

    def _give_names(
        self,
        outputs: list[Output],
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report:
        image, result = self._pictures
        for path in self._paths.work.glob("projections-*.npz"):
            load_projections(path, image, result)
        skip = None
        if self._skip is not None:
            skip = self._skip.report(self._foreground)
            self._check_skip(skip)
        records = self._journal.records()
        content = {
            path.name: {
                "grain": list(outputs[i].sink.grain),
                "digest": content_digest(records, i),
            }
            for i, (_, path) in enumerate(self._paths.outputs)
        }
        # In the output itself lies what decides its bytes, and nothing else: two runs
        # are the same file. The command and the times are in the report.
        inside = {
            **self._identity(normalisation),
            "versions": versions(),
            "machine": machine(),
        }
        provenance = {
            **inside,
            "notes": self._notes,
            "input_file": self._source.describe(),
            "content": content,
            "command": sys.argv,
        }
        with self._clock.stage("finish"):
            for output in outputs:
                output.sink.finish(inside)
        size = self._source.voxel_size_um
        png = draw_picture(image, result, size[0] / size[2] if size else 1.0)
        wall = max(self._stream_s, 1e-9)
        seconds = {k: round(v, 3) for k, v in sorted(self._clock.seconds.items())}
        report = Report(
            output=str(self._paths.output),
            outputs=[str(path) for _, path in self._paths.outputs],
            picture=str(self._paths.picture),
            shape=self._roi.shape,
            voxels=self._roi.voxels,
            resumed_voxels=self._resumed_voxels,
            foreground_voxels=self._foreground,
            tiles_run=self._tiles_run,
            redundancy=round(memory.redundancy, 4),
            wall_s=round(wall, 3),
            seconds=seconds,
            engine_busy=round(seconds.get("infer", 0.0) / wall / len(self._engines), 4),
            mvoxel_per_s=round(self._done_voxels / wall / 1e6, 4),
            peak_rss_bytes=peak_rss(),
            memory_plan_bytes=memory.peak_bytes,
            warnings=self._warnings,
            provenance=provenance,
            skip=skip,
        )
        self._paths.picture.write_bytes(png)
        write_atomically(
            self._paths.report, json.dumps(report.to_json(), indent=1, default=str)
        )
        if self._skip is not None:
            _save_skip_map(self._paths, self._skip)
        if self._seam is not None:
            self._seam.finish({})
        self._close(outputs)
        (self._paths.work / "naming").touch()
        if (self._paths.work / "seam.tif").exists():
            (self._paths.work / "seam.tif").replace(self._paths.beside("seam.tif"))
        for kind, path in self._paths.outputs:
            working = self._working(kind, path)
            if working != path:
                if path.is_dir():
                    shutil.rmtree(path)
                working.replace(path)
        shutil.rmtree(self._paths.work, ignore_errors=True)
        return report

    def _check_skip(self, skip: dict[str, Any]) -> None:
        limit = self._settings.skip.limit_lost if self._settings.skip else math.inf
        upper = skip["lost_share_upper"]
        if upper is not None and upper > limit:
            raise RunError(
                f"skipping background may have lost up to {upper:.2%} of the "
                f"foreground, more than the limit of {limit:.2%} (of {skip['audited']} "
                f"skipped tiles that were run, {skip['audited_with_foreground']} held "
                "some): run again without --skip-background, or with a lower "
                "--skip-sigma"
            )


def _save_skip_map(paths: Paths, skip: BackgroundSkip) -> None:
    import tifffile

    tifffile.imwrite(paths.beside("skip.tif"), skip.map * 255, photometric="minisblack")


def default_grain(kind: SinkKind, shape: Shape) -> Shape:
    """The durable unit of an output of this shape.

    A multiple of 64 on every axis, so that shards hold whole chunks. Files written
    plane by plane take whole rows, of at most about 16 million voxels a unit.
    """
    depth, height, width = shape
    if kind == "ome-zarr":
        return 256, 256, 256
    if kind == "precomputed":
        # Its order of chunks decides.
        return volumes.default_grain(kind, shape, np.uint8)
    z = 64
    y = max(64, min(height, 16_777_216 // (z * width) // 64 * 64 or 64))
    del depth
    return z, y, width
