"""The regions of a volume, segmented one after the other into open outputs."""

from __future__ import annotations

import gc
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np

from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._interrupt import interrupt_sets
from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime._memory import MemoryPlan
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._outlet import UnitOutlet
from neurodeploy_runtime._outputs import OutputSet
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._projections import (
    Projections,
    load_projections,
    save_projections,
)
from neurodeploy_runtime._reader import PlaneReader, ring_of
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._shares import scratch_chapters, undone, worker_shares
from neurodeploy_runtime._skip import BackgroundSkip
from neurodeploy_runtime._stream import RegionStream
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.engines import Engine
from neurodeploy_runtime.volumes import Source
from neurodeploy_runtime.volumes._scratch import ScratchSource

#: So many units that cannot be written are no moment of the disk's.
MOST_FAILED = 16
#: The picture that is kept for a restart is at most this old.
SAVE_S = 10.0


class RegionRun:
    """Streams what is not done yet, and counts.

    Parameters
    ----------
    roi
        The box of the volume that the outputs hold.
    threshold
        Probability from which a voxel is foreground.
    journal
        Records each unit that is durable.
    work
        The folder beside the output, for a scratch file and the pictures.
    advanced
        Called with the number of voxels that this run has made durable.
    """

    def __init__(
        self,
        plan: TilePlan,
        roi: Box,
        source: Source,
        engines: Sequence[Engine],
        settings: SegmentSettings,
        *,
        threshold: float,
        journal: Journal,
        work: Path,
        tissue: TissueMask | None,
        clock: Clock,
        cancel: threading.Event | None,
        advanced: Callable[[int], None],
    ) -> None:
        self._plan = plan
        self._roi = roi
        self._source = source
        self._engines = engines
        self._settings = settings
        self._threshold = threshold
        self._journal = journal
        self._work = work
        self._tissue = tissue
        self._clock = clock
        self._cancel = cancel
        self._advanced = advanced
        self._failed: list[str] = []
        #: Names of projections that an earlier run kept and that cannot be read.
        self.lost_pictures: set[str] = set()
        self._saved = 0.0
        self.done_voxels = 0
        self.tiles_run = 0
        #: Seconds from the first region to the end of the last one.
        self.wall_s = 0.0
        self.image = Projections(roi, source.dtype)
        self.result = Projections(roi, np.dtype(np.uint8))
        self.skip: BackgroundSkip | None = None
        if settings.skip is not None:
            self.skip = BackgroundSkip(
                settings.skip,
                plan.counts,
                plan.window,
                threshold,
                work / f"skip-{settings.worker[0]}.log",
            )

    def execute(
        self,
        memory: MemoryPlan,
        outputs: OutputSet,
        normalisation: Normalisation,
        done: frozenset[Shape],
    ) -> None:
        """Segment this worker's share of what is not among the `done` units.

        Raises
        ------
        WriteError
            Units could not be written; all others are done.
        """
        start = time.perf_counter()
        grain = outputs.grain
        self.gather_pictures()
        self._advanced(0)
        shares = worker_shares(memory.regions, self._roi, grain, self._settings.worker)
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
        self.wall_s = time.perf_counter() - start
        if self._failed:
            units = "1 unit" if len(self._failed) == 1 else f"{len(self._failed)} units"
            raise WriteError(
                f"{units} could not be written, all others are done "
                f"({self._failed[0]}): run the same command again to write those; "
                f"{self._journal.folder} lists them in failed-*.log"
            )

    def gather_pictures(self) -> None:
        """Take in what earlier runs and other workers have seen."""
        for path in self._work.glob("projections-*.npz"):
            if not load_projections(path, self.image, self.result):
                self.lost_pictures.add(path.name)

    # -- what is read ----------------------------------------------------------

    def _chapters(self, memory: MemoryPlan, grain: Shape) -> list[Box]:
        """Ranges of planes that are segmented one after the other.

        One, but where planes that are compressed as a whole have to be cut: they go
        through a scratch file, decoded once, and the disk may not hold all of them.
        """
        if not memory.scratch:
            return [self._roi]
        plane = self._source.shape[1] * self._source.shape[2]
        plane *= self._source.dtype.itemsize
        free = shutil.disk_usage(self._work).free
        return scratch_chapters(self._plan, self._roi, grain, plane, free)

    def _readable(
        self, memory: MemoryPlan, parts: Sequence[Box]
    ) -> AbstractContextManager[Source]:
        """Where the planes of these regions are read from."""
        if not memory.scratch:
            return nullcontext(self._source)
        first = min(part.start[0] for part in parts)
        last = max(part.stop[0] for part in parts)
        planes = self._plan.planes_read(first, last)
        with self._clock.stage("scratch"):
            return ScratchSource(self._source, self._work, planes, cancel=self._cancel)

    # -- one region ------------------------------------------------------------

    def _stream(
        self,
        source: Source,
        region: Box,
        outputs: OutputSet,
        normalisation: Normalisation,
        done: frozenset[Shape],
    ) -> None:
        ring = ring_of(self._plan, region, self._source.dtype)
        outlet = UnitOutlet(
            outputs.outputs,
            region,
            self._roi.start,
            self._threshold,
            journal=self._journal,
            projections=self.result,
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
            skip=self.skip,
            tissue=self._tissue,
            said=self._journal.note,
        )

        def stop(error: BaseException) -> None:
            outlet.abort(error)
            stream.stop(error)

        reader = PlaneReader(
            source,
            self._plan,
            region,
            ring,
            projections=self.image,
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
                self.tiles_run += stream.tiles_run
            except BaseException as error:
                outlet.abort(error)
                raise
            finally:
                ring.close()
                reader.join()
                outlet.join()
                self._save_pictures()

    def _written(self, unit: Box) -> None:
        self.done_voxels += unit.voxels
        now = time.perf_counter()
        if now - self._saved > SAVE_S:
            self._saved = now
            self._save_pictures()
        self._advanced(self.done_voxels)

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
        path = self._work / f"projections-{self._settings.worker[0]}.npz"
        try:
            save_projections(path, self.image, self.result)
        except OSError as error:
            raise WriteError(
                f"cannot write {path} ({error}): make room, then run the same command "
                "again"
            ) from error
