"""Where finished planes go: quantised, gathered into units, made durable."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import CancelledError, WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Journal, checksum
from neurodeploy_runtime._patience import is_passing, patiently
from neurodeploy_runtime._projections import Projections
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.arrays import PlaneKind
from neurodeploy_runtime.volumes import Sink

#: One voxel of a seam map stands for this many on each axis.
SEAM = 8


def foreground_level(kind: PlaneKind, threshold: float) -> int:
    """The least value of an output's voxel that is foreground, 1 to 255."""
    return 1 if kind == "mask" else max(1, round(255 * threshold))


def pool_seam(disagreement: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The largest disagreement of each cell of 8 × 8, as uint8.

    Probabilities differ by a standard deviation of at most one half: 255 is that.
    """
    cells = disagreement
    for axis in (0, 1):
        edges = np.arange(0, cells.shape[axis], SEAM)
        cells = np.maximum.reduceat(cells, edges, axis=axis)
    return np.rint(np.minimum(cells, 0.5) * np.float32(510)).astype(np.uint8)


@dataclass(frozen=True)
class Output:
    """One of the files that a run writes."""

    kind: PlaneKind
    sink: Sink


@dataclass
class _Slab:
    """One unit-deep slab of a region, for every output."""

    box: Box
    parts: list[NDArray[np.uint8]]
    #: How much tiles disagreed, at 1/8 resolution, where that is asked for.
    seam: NDArray[np.uint8] | None = None


class UnitOutlet:
    """Gathers the planes of a region into units and writes them, from its own thread.

    Two slabs go round: one is filled while the other becomes durable.

    Parameters
    ----------
    outputs
        Of one grain.
    origin
        Where the outputs' first voxel lies in the volume.
    skip
        Units that are durable already: they are not written again.
    seam
        Takes the seam map: how much overlapping tiles disagreed, at 1/8 resolution.
    tissue
        What lies outside it is background.
    written
        Called with each unit (in output coordinates) when it is recorded.
    failed
        Called instead with a unit that the disk refused again and again, for a reason
        that may pass; the others go on. None: it ends the run.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        region: Box,
        origin: Shape,
        threshold: float,
        *,
        journal: Journal | None,
        projections: Projections,
        written: Callable[[Box], None],
        failed: Callable[[Box, WriteError], None] | None = None,
        skip: frozenset[Shape] = frozenset(),
        seam: Sink | None = None,
        tissue: TissueMask | None = None,
        clock: Clock,
    ) -> None:
        self._tissue = tissue
        self._seam = seam
        self._outputs = outputs
        self._region = region
        self._origin = origin
        self._threshold = threshold
        self._journal = journal
        self._projections = projections
        self._written = written
        self._failed = failed
        self._stop = threading.Event()
        self._skip = skip
        self._clock = clock
        self._grain = outputs[0].sink.grain
        self._extent = outputs[0].sink.shape
        self._free: Channel[list[NDArray[np.uint8]]] = Channel(2)
        self._full: Channel[_Slab] = Channel(2)
        depth = min(self._grain[0], self._extent[0])
        for _ in range(2):
            parts = [np.empty((depth, *region.shape[1:]), np.uint8) for _ in outputs]
            for part in parts:
                part.fill(0)
            self._free.put(parts)
        self._slab: _Slab | None = None
        self._on_error: Callable[[BaseException], None] = lambda error: None
        #: What ended the writing, if not :meth:`finish`.
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._write_all, name="write")

    @staticmethod
    def nbytes(outputs: int, grain: Shape, extent: Shape, plane: int) -> int:
        """Bytes that it will hold for regions of `plane` voxels a plane."""
        return 2 * outputs * min(grain[0], extent[0]) * plane

    def start(self, on_error: Callable[[BaseException], None]) -> None:
        """Begin writing; `on_error` is called from the writing thread."""
        self._on_error = on_error
        self._thread.start()

    def emit(self, z: int, blend: BlendRing) -> None:
        """Take plane z of the volume from the ring."""
        oz = z - self._origin[0]
        if self._slab is None:
            with self._clock.stage("wait for the writer"):
                parts = self._free.get()
            if parts is None:
                raise CancelledError("the run was stopped")
            start = oz // self._grain[0] * self._grain[0]
            stop = min(start + self._grain[0], self._region.stop[0] - self._origin[0])
            oy, ox = (self._region.start[i] - self._origin[i] for i in (1, 2))
            height, width = self._region.shape[1:]
            self._slab = _Slab(
                Box((start, oy, ox), (stop, oy + height, ox + width)), parts
            )
            if self._seam is not None:
                shape = tuple(-(-n // SEAM) for n in self._slab.box.shape)
                self._slab.seam = np.zeros(shape, np.uint8)
        slab = self._slab
        at = oz - slab.box.start[0]
        with self._clock.stage("quantise"):
            for output, part in zip(self._outputs, slab.parts, strict=True):
                blend.quantise(z, output.kind, self._threshold, part[at])
                if self._tissue is not None:
                    y0, x0 = self._region.start[1:]
                    part[at] *= self._tissue.plane(z, y0, x0, part[at].shape)
            if slab.seam is not None:
                into = slab.seam[at // SEAM]
                np.maximum(into, pool_seam(blend.disagreement_of(z)), out=into)
            self._projections.add(
                z, self._region.start[1], self._region.start[2], slab.parts[0][at]
            )
        if oz + 1 == slab.box.stop[0]:
            self._full.put(slab)
            self._slab = None

    def finish(self) -> None:
        """Wait until everything that was emitted is durable."""
        self._full.end()
        self.join()

    def abort(self, error: BaseException) -> None:
        """Stop writing; a unit on its way to the disk is completed."""
        self._stop.set()
        self._free.fail(error)
        self._full.fail(error)

    def join(self) -> None:
        """Wait for the end of the thread."""
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _write_all(self) -> None:
        try:
            while (slab := self._full.get()) is not None:
                with self._clock.stage("write"):
                    self._write(slab)
                self._free.put(slab.parts)
        except BaseException as error:
            self.error = self.error or error
            self._on_error(error)

    def _write(self, slab: _Slab) -> None:
        for unit in slab.box.grid(self._grain):
            if unit.start in self._skip:
                continue
            try:
                sums, foreground = self._write_unit(unit, slab)
            except WriteError as error:
                if self._failed is None or not is_passing(error):
                    raise
                self._failed(unit, error)
                continue
            if self._journal is not None:
                self._journal.record(unit, sums, foreground)
            self._written(unit)

    def _write_unit(self, unit: Box, slab: _Slab) -> tuple[tuple[int, ...], int]:
        """Make a unit of every output durable; checksums, and voxels of foreground."""
        z, y, x = slab.box.start
        inside = unit.shift((-z, -y, -x)).slices
        sums: list[int] = []
        foreground = 0
        for output, part in zip(self._outputs, slab.parts, strict=True):
            voxels: NDArray[Any] = np.ascontiguousarray(part[inside])
            if not sums:
                level = foreground_level(output.kind, self._threshold)
                foreground = int(np.count_nonzero(voxels >= level))
            # A unit of zeros of a chunked store is a record without a shard.
            if not output.sink.sparse or voxels.any():
                patiently(partial(output.sink.write, unit, voxels), self._stop)
            sums.append(checksum(voxels))
        if self._seam is not None and slab.seam is not None:
            seam = partial(self._write_seam, self._seam, unit, slab)
            patiently(seam, self._stop)
        return tuple(sums), foreground

    def _write_seam(self, sink: Sink, unit: Box, slab: _Slab) -> None:
        (z0, y0, x0), (z1, y1, x1) = (
            tuple(-(-n // SEAM) for n in corner) for corner in (unit.start, unit.stop)
        )
        small = Box((z0, y0, x0), (z1, y1, x1))
        z, y, x = (-(n // SEAM) for n in slab.box.start)
        assert slab.seam is not None
        part = slab.seam[small.shift((z, y, x)).slices]
        sink.write(small, np.ascontiguousarray(part))
