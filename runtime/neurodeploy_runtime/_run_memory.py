"""What one run may hold: the regions it is cut into, and where its tiles lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

from neurodeploy_runtime._errors import MemoryCapError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._memory import Footprint, MemoryPlan, choose_regions
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._reader import planes_at_once
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime._settings import SegmentSettings
from neurodeploy_runtime._stream import arrays_of, slots_of
from neurodeploy_runtime.arrays import Arrays
from neurodeploy_runtime.engines import Engine
from neurodeploy_runtime.volumes import Source

#: Chunks that would be decoded this often, on average, go through a scratch file.
TWICE = 1.5


class RunMemory:
    """Plans the memory of one run, on the host and on a GPU.

    Parameters
    ----------
    plan
        The tiles of the volume.
    roi
        The box of it that is segmented.
    grain
        The unit in which results leave, and of which two are held for each of
        `outputs`.
    cap_bytes
        What the process may hold, all included.
    """

    def __init__(
        self,
        plan: TilePlan,
        roi: Box,
        source: Source,
        engines: Sequence[Engine],
        settings: SegmentSettings,
        *,
        grain: Shape,
        outputs: int,
        cap_bytes: int,
    ) -> None:
        self._plan = plan
        self._roi = roi
        self._source = source
        self._engines = engines
        self._settings = settings
        self._grain = grain
        self._outputs = outputs
        self._cap_bytes = cap_bytes
        #: Only asked where tiles lie and what is free there; each stream makes its own.
        self.arrays: Arrays = arrays_of(engines)
        #: Why tiles that could lie on a GPU do not.
        self.notes: list[str] = []

    def choose(self) -> MemoryPlan:
        """The regions in which the cap holds; nothing large is allocated.

        Tiles that nobody asked to have on a GPU leave it where it is too small.

        Raises
        ------
        MemoryCapError
            No region is small enough.
        """
        try:
            return self._regions()
        except MemoryCapError as error:
            asked = self._settings.engine.blend_on == "gpu"
            if self.arrays.free_bytes is None or asked:
                raise
            self._engines[0].resident = False
            self.arrays = arrays_of(self._engines)
            self.notes.append(f"tiles are blended on the host: {error}")
            return self._regions()

    def _regions(self) -> MemoryPlan:
        """By the chunks that one read decodes; by fewer at a time where those are much.

        What threads work in is charged for every chunk that is decoded at once.
        """
        most = chunks = self._source.decode_at_once(self._chunks_of_a_read())
        while True:
            try:
                memory = self._regions_for_now()
            except MemoryCapError:
                if chunks == 1:
                    raise
                chunks = self._source.decode_at_once(chunks // 2)
                continue
            if chunks < most:
                self.notes.append(
                    f"at most {chunks} of the input's chunks are decoded at a time, "
                    f"not {most}, so that the memory cap holds"
                )
            return memory

    def _chunks_of_a_read(self) -> int:
        planes = planes_at_once(self._plan, self._roi, self._source.dtype)
        depth, *sizes = self._source.chunk
        # Planes that do not begin where a chunk does touch one more.
        chunks = -(-min(planes, self._source.shape[0]) // depth) + (depth > 1)
        spans = self._plan.layer(self._roi).reads
        for (start, stop), size in zip(spans, sizes, strict=True):
            chunks *= -(-stop // size) - start // size
        return chunks

    def _regions_for_now(self) -> MemoryPlan:
        footprint = self._footprint()
        # Cutting planes that are loaded as a whole needs a scratch file, and copying
        # into it a buffer of its own.
        plane = prod(self._source.shape[1:]) * self._source.dtype.itemsize
        buffer = max(64 * 2**20, plane) + self._source.chunk[0] * plane
        with_scratch = replace(
            footprint, base_bytes=footprint.base_bytes + buffer, chunk=None
        )
        try:
            memory = choose_regions(self._plan, self._roi, footprint, self._cap_bytes)
        except MemoryCapError:
            _, *unit = map(min, self._grain, self._roi.shape)
            if self._needs_scratch((unit[0], unit[1])):
                # Refused with what would do, the scratch file and all.
                choose_regions(self._plan, self._roi, with_scratch, self._cap_bytes)
            raise
        if self._needs_scratch(memory.regions[0].shape[1:]):
            memory = choose_regions(
                self._plan, self._roi, with_scratch, self._cap_bytes
            )
            return replace(memory, scratch=True)
        if footprint.chunk is not None:
            self._source.keep(memory.cache_bytes)
        return memory

    def _needs_scratch(self, area: tuple[int, int]) -> bool:
        """Whether planes cut into pieces of this extent would be loaded repeatedly."""
        return (
            area != self._roi.shape[1:]
            and self._source.loads_whole_chunks
            and self._source.amplification((self._source.shape[0], *area)) >= TWICE
        )

    def _finishing(self) -> int:
        """Two floats of a spread, one of a probability, none of a mask."""
        if self._settings.seam_map:
            return 8
        if self._settings.output_kind != "mask":
            return 4
        return 0 if self._settings.tissue is None else 1

    def _footprint(self) -> Footprint:
        deep = self._source.chunk[0] > 1
        if deep:
            # What it keeps is counted with the region, which decides how much.
            self._source.keep(0)
        return Footprint(
            base_bytes=current_rss() + int(self._source.memory_bytes),
            voxel_bytes=self._source.dtype.itemsize,
            grain=self._grain,
            extent=self._roi.shape,
            outputs=self._outputs,
            slots=slots_of(self._engines),
            batch=self._engines[0].batch,
            seam=self._settings.seam_map,
            flips=self._settings.flips,
            finishing=self._finishing(),
            chunk=self._source.chunk if deep else None,
            gpu_bytes=None
            if self.arrays.free_bytes is None
            else int(0.9 * self.arrays.free_bytes),
        )
