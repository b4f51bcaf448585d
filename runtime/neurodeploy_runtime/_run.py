"""One segmentation of one volume into one output, from plan to final name."""

from __future__ import annotations

import gc
import json
import math
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import (
    InputError,
    MemoryCapError,
    ResumeError,
    RunError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._interrupt import interrupt_sets
from neurodeploy_runtime._journal import Journal, write_atomically
from neurodeploy_runtime._memory import (
    Footprint,
    MemoryPlan,
    choose_regions,
    ring_depth,
)
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._outlet import UnitOutlet
from neurodeploy_runtime._outputs import OutputSet, check_disk, default_grain
from neurodeploy_runtime._paths import Paths
from neurodeploy_runtime._picture import draw_picture
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._progress import Progress, ProgressCallback
from neurodeploy_runtime._projections import (
    Projections,
    load_projections,
    save_projections,
)
from neurodeploy_runtime._reader import PlaneReader
from neurodeploy_runtime._report import Report, machine, out_of_range, versions
from neurodeploy_runtime._rss import current_rss, machine_memory, peak_rss
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._shares import chapters, undone, worker_shares
from neurodeploy_runtime._skip import BackgroundSkip
from neurodeploy_runtime._stream import RegionStream, arrays_of
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.engines import Engine, same_engine
from neurodeploy_runtime.volumes import (
    SinkKind,
    Source,
    open_volume,
    sink_kind,
)
from neurodeploy_runtime.volumes._scratch import ScratchSource

#: So many units that cannot be written are no moment of the disk's.
MOST_FAILED = 16

#: Chunks that would be decoded this often, on average, go through a scratch file.
TWICE = 1.5


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
        self._done_voxels = 0
        self._resumed_voxels = 0
        self._tiles_run = 0
        self._warnings: list[str] = []
        self._failed: list[str] = []
        self._saved = 0.0
        self._start = time.perf_counter()
        #: Only asked where tiles lie and what is free there; each stream makes its own.
        self._arrays = arrays_of(engines)
        self._skip: BackgroundSkip | None = None
        self._tissue: TissueMask | None = None
        self._tissue_digest: str | None = None
        if settings.tissue is not None:
            with open_volume(settings.tissue) as mask:
                self._tissue = TissueMask.read(mask, source.shape)
                self._tissue_digest = mask.fingerprint()

    # -- the whole -------------------------------------------------------------

    def execute(self) -> Report | None:
        """Run it; None where other workers still have shares to do."""
        self._paths.check(
            Path(str(self._source.path)),
            may_exist=self._overwrite or self._journal.exists,
        )
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
            check_disk(self._paths, self._kind, self._roi.shape)
            self._journal.begin(plan)
        else:
            fresh = self._go_on(plan)
        # Only who has the place may remove anything here.
        self._journal.lock()
        try:
            outputs = self._open_outputs()
        except BaseException:
            if fresh:
                shutil.rmtree(self._paths.work, ignore_errors=True)
            self._journal.close()
            raise
        try:
            done = outputs.verified(self._journal.records())
            self._resumed_voxels = sum(
                unit.voxels
                for unit in Box.whole(self._roi.shape).grid(outputs.grain)
                if unit.start in done
            )
            self._stream_all(memory, outputs, normalisation, done)
            return self._finish(outputs, normalisation, memory)
        except InputError:
            # The input itself is at fault: nothing of this run can be gone on with.
            outputs.close()
            shutil.rmtree(self._paths.work, ignore_errors=True)
            raise
        finally:
            outputs.close()
            self._journal.close()

    # -- before ----------------------------------------------------------------

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
            check_disk(self._paths, self._kind, self._roi.shape)
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
        size = self._source.voxel_size_um
        return {
            "input": {
                "fingerprint": self._source.fingerprint(),
                "shape": list(self._source.shape),
                "dtype": self._source.dtype.name,
            },
            "model": {"name": self._bundle.spec.name, "digest": self._bundle.digest},
            "engine": same_engine(self._engines),
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
                "voxel_size_um": None if size is None else list(size),
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
        """The regions in which the memory cap holds; nothing is written.

        Tiles that nobody asked to have on a GPU leave it where it is too small.
        """
        try:
            return self._plan_memory()
        except MemoryCapError as error:
            asked = self._settings.engine.blend_on == "gpu"
            if self._arrays.free_bytes is None or asked:
                raise
            self._engines[0].resident = False
            self._arrays = arrays_of(self._engines)
            self._warnings.append(f"tiles are blended on the host: {error}")
            return self._plan_memory()

    def _plan_memory(self) -> MemoryPlan:
        cap = self._settings.memory_bytes
        if cap is None:
            cap = (machine_memory() or 8_000_000_000) // 2
        footprint = self._footprint()
        memory = choose_regions(self._plan, self._roi, footprint, cap)
        depth = self._source.shape[0]
        if (
            len(memory.regions) > 1
            and self._source.compressed
            and self._source.amplification((depth, *memory.regions[0].shape[1:]))
            >= TWICE
        ):
            # Cutting planes that are decoded as a whole needs a scratch file, and
            # copying into it a buffer of its own.
            plane = prod(self._source.shape[1:]) * self._source.dtype.itemsize
            buffer = max(64 * 2**20, plane) + self._source.chunk[0] * plane
            footprint = replace(
                footprint, base_bytes=footprint.base_bytes + buffer, chunk=None
            )
            memory = choose_regions(self._plan, self._roi, footprint, cap)
            return replace(memory, scratch=True)
        if footprint.chunk is not None:
            self._source.keep(memory.cache_bytes)
        return memory

    def _footprint(self) -> Footprint:
        deep = self._source.compressed and self._source.chunk[0] > 1
        if deep:
            # What it keeps is counted with the region, which decides how much.
            self._source.keep(0)
        return Footprint(
            base_bytes=current_rss() + int(self._source.memory_bytes),
            voxel_bytes=self._source.dtype.itemsize,
            grain=self._grain(),
            extent=self._roi.shape,
            outputs=len(self._paths.outputs),
            slots=2 * len(self._engines) + 2,
            batch=self._engines[0].batch,
            seam=self._settings.seam_map,
            chunk=self._source.chunk if deep else None,
            gpu_bytes=None
            if self._arrays.free_bytes is None
            else int(0.9 * self._arrays.free_bytes),
        )

    def _grain(self) -> Shape:
        """The unit of this output: the format's own for such a volume."""
        return default_grain(self._kind, self._roi.shape)

    def _open_outputs(self) -> OutputSet:
        return OutputSet(
            self._paths,
            self._kind,
            self._roi.shape,
            self._grain(),
            self._source.voxel_size_um,
            seam=self._settings.seam_map,
        )

    # -- the run ---------------------------------------------------------------

    def _stream_all(
        self,
        memory: MemoryPlan,
        outputs: OutputSet,
        normalisation: Normalisation,
        done: frozenset[Shape],
    ) -> None:
        grain = outputs.grain
        image = Projections(self._roi, self._source.dtype)
        result = Projections(self._roi, np.dtype(np.uint8))
        self._pictures = (image, result)
        for path in self._paths.work.glob("projections-*.npz"):
            load_projections(path, image, result)
        settings = self._settings
        if settings.skip is not None:
            self._skip = BackgroundSkip(
                settings.skip,
                self._plan.counts,
                self._plan.window,
                self._threshold,
                self._paths.work / f"skip-{settings.worker[0]}.log",
            )
        self._stream_start = time.perf_counter()
        self._tell()
        shares = worker_shares(memory.regions, self._roi, grain, settings.worker)
        for chapter in self._chapters(memory, grain):
            parts = [
                part
                for share in shares
                for part in undone(share.intersect(chapter), self._roi, grain, done)
            ]
            if parts:
                with self._readable(memory, parts) as source:
                    for part in parts:
                        self._stream(source, part, outputs, normalisation, done)
                        # Stages hold each other through their callbacks: without this
                        # their buffers would live on beside those of the next region.
                        gc.collect()
        self._stream_s = time.perf_counter() - self._stream_start
        if self._failed:
            units = "1 unit" if len(self._failed) == 1 else f"{len(self._failed)} units"
            raise WriteError(
                f"{units} could not be written, all others are done "
                f"({self._failed[0]}): run the same command again to write those; "
                f"{self._journal.folder} lists them in failed-*.log"
            )

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
        return chapters(self._roi, grain, free // plane - 2 * self._plan.tile[0])

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
        outputs: OutputSet,
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
            outputs.outputs,
            region,
            self._roi.start,
            self._threshold,
            journal=self._journal,
            projections=result,
            written=self._written,
            failed=self._set_aside,
            skip=done,
            seam=outputs.seam,
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
        interrupted = threading.Event()
        with interrupt_sets(interrupted):
            outlet.start(stop)
            reader.start()
            try:
                stream.run(self._cancel, interrupted)
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

    def _written(self, unit: Box) -> None:
        self._done_voxels += unit.voxels
        now = time.perf_counter()
        if now - self._saved > 10:
            self._saved = now
            self._save_pictures()
        self._tell()

    def _set_aside(self, unit: Box, error: WriteError) -> None:
        """Go on without a unit; but where hardly any can be written, give up."""
        self._journal.record_failure(unit, str(error))
        self._failed.append(str(error))
        if len(self._failed) >= MOST_FAILED:
            raise WriteError(
                f"{len(self._failed)} units could not be written ({error}): see to the "
                "disk, then run the same command again"
            )

    def _save_pictures(self) -> None:
        image, result = self._pictures
        path = self._paths.work / f"projections-{self._settings.worker[0]}.npz"
        try:
            save_projections(path, image, result)
        except OSError as error:
            raise WriteError(
                f"cannot write {path} ({error}): make room, then run the same command "
                "again"
            ) from error

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
        outputs: OutputSet,
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report | None:
        records = self._journal.records()
        units = list(Box.whole(self._roi.shape).grid(outputs.grain))
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
        outputs: OutputSet,
        normalisation: Normalisation,
        memory: MemoryPlan,
    ) -> Report:
        image, result = self._pictures
        for path in self._paths.work.glob("projections-*.npz"):
            load_projections(path, image, result)
        records = self._journal.records()
        foreground = sum(record.foreground for record in records.values())
        skip = None
        if self._skip is not None:
            self._skip.recall(self._paths.work.glob("skip-*.log"))
            skip = self._skip.report(foreground)
            self._check_skip(skip)
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
            "tiles_on": self._arrays.place,
            "content": outputs.content(records),
            "command": sys.argv,
        }
        with self._clock.stage("finish"):
            outputs.finish(inside)
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
            foreground_voxels=foreground,
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
            self._skip.save(self._paths.beside("skip.tif"))
        outputs.close()
        self._paths.give_names()
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
