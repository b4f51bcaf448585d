"""A volume segmented slab by slab, into the caller's hands and onto no disk."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._at_exit import at_exit
from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._errors import CancelledError, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._reader import PlaneReader, ring_of
from neurodeploy_runtime._run_memory import RunMemory
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._stream import RegionStream
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.arrays import PlaneKind
from neurodeploy_runtime.engines import Engine
from neurodeploy_runtime.volumes import Source
from neurodeploy_runtime.volumes._plain import open_plain

Slab = tuple[Box, NDArray[np.uint8]]


class Slabs:
    """The slabs of one volume, made while they are iterated; see `Segmenter.stream`.

    What cannot be done is refused here, before anything is read or started.
    """

    def __init__(
        self,
        bundle: Bundle,
        engines: list[Engine],
        settings: SegmentSettings,
        source: Source,
        planes: int,
    ) -> None:
        if planes < 1:
            raise SettingsError(f"slabs of {planes} planes hold nothing: use 1 or more")
        self._bundle = bundle
        self._engines = engines
        self._settings = settings
        self._source = source
        self._planes = planes
        self._kind: PlaneKind = _one_kind(settings)
        self._region = settings.region_of(source.shape)
        self._plan = TilePlan.of(bundle.spec, source.shape, settings.overlap)
        self._tissue: TissueMask | None = None
        if settings.tissue is not None:
            with open_plain(settings.tissue) as mask:
                self._tissue = TissueMask.read(mask, source.shape)
        memory = RunMemory(
            self._plan,
            self._region,
            source,
            engines,
            settings,
            # Whole planes leave here: none can be cut, so the cap holds or is refused.
            grain=(planes, *self._region.shape[1:]),
            outputs=1,
            cap_bytes=settings.memory_bytes or sys.maxsize,
        )
        memory.choose()
        #: Why tiles that could lie on a GPU do not.
        self.notes: list[str] = memory.notes

    def __iter__(self) -> Iterator[Slab]:
        spec, source, region = self._bundle.spec, self._source, self._region
        threshold = self._settings.threshold or spec.threshold
        normalisation = self._settings.normalisation
        if normalisation is None:
            normalisation = survey(source).freeze(spec.normalisation)
        finished: Channel[tuple[int, NDArray[np.uint8]]] = Channel(2)
        gathered: list[NDArray[np.uint8]] = []

        def emit(z: int, blend: BlendRing) -> None:
            at = (z - region.start[0]) % self._planes
            if at == 0:
                deep = min(self._planes, region.stop[0] - z)
                gathered.append(np.empty((deep, *region.shape[1:]), np.uint8))
            slab = gathered[-1]
            blend.quantise(z, self._kind, threshold, slab[at])
            if self._tissue is not None:
                slab[at] *= self._tissue.plane(z, *region.start[1:], slab[at].shape)
            if at + 1 == len(slab):
                finished.put((z - at, gathered.pop()))

        ring = ring_of(self._plan, region, source.dtype)
        stream = RegionStream(
            self._plan,
            region,
            ring,
            self._engines,
            normalisation,
            emit,
            dtype=source.dtype,
            depth=source.shape[0],
            flips=self._settings.flips,
            tissue=self._tissue,
        )
        reader = PlaneReader(
            source,
            self._plan,
            region,
            ring,
            projections=None,
            clock=stream.clock,
            on_error=stream.stop,
        )

        def work() -> None:
            try:
                stream.run()
                finished.end()
            except BaseException as error:
                finished.fail(error)

        worker = threading.Thread(target=work, name="segment", daemon=True)

        def stop() -> None:
            error = CancelledError("the reader of the stream has gone")
            finished.fail(error)
            stream.stop(error)
            if worker.ident is not None:  # Ctrl-C may fall before it is started
                worker.join()
            reader.join()

        forget_exit = at_exit(stop)
        try:
            reader.start()
            worker.start()
            while (item := finished.get()) is not None:
                z, part = item
                yield (
                    Box((z, *region.start[1:]), (z + len(part), *region.stop[1:])),
                    part,
                )
        finally:
            stop()
            forget_exit()


def _one_kind(settings: SegmentSettings) -> PlaneKind:
    """What a slab holds; what only a file has a place for is refused by name."""
    asked = {
        'output_kind "both"': settings.output_kind == "both",
        "seam_map": settings.seam_map,
        "skip": settings.skip is not None,
        f"worker {settings.worker}": settings.worker != (1, 1),
    }
    for name, is_asked in asked.items():
        if is_asked:
            raise SettingsError(
                f"{name} is for files: an array or a stream gives one kind of plane, "
                "every tile of it run; use `Segmenter.segment`, or leave it out"
            )
    return "mask" if settings.output_kind == "mask" else "probability"
