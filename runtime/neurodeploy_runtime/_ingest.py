"""A volume of any format rewritten as sharded OME-Zarr, in one bounded pass.

For files that are read more than once and that are slow to read in boxes: a stack of
compressed planes decodes a whole plane for every voxel.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import MemoryCapError, OutputError, SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._progress import Progress, ProgressCallback
from neurodeploy_runtime._report import versions
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime.volumes import (
    ReadPlan,
    ScratchSource,
    Sink,
    Source,
    create_sink,
    plan_reading,
    required_bytes,
    sink_kind,
)
from neurodeploy_runtime.volumes._sink_chunked import tensorstore

#: Memory where nobody says: what every machine beside a microscope has.
MEMORY_BYTES = 4_000_000_000

#: Units that are being written, and buffers: one more is being read into.
_WRITERS = 2
_BUFFERS = _WRITERS + 1
#: What writing a unit holds beside its buffer, over the unit: the levels made of it
#: and the compressed shards.
_WRITING = 2.5
#: What else came to be held, measured: libraries that load late, memory that threads
#: keep for their next allocation.
_OVERHEAD_BYTES = 40_000_000
#: What a scratch file's planes are copied through.
_SCRATCH_BUFFER_BYTES = 64 * 2**20
#: Shards, the best first: thinner ones need fewer planes of a stack at a time.
_GRAINS: tuple[Shape, ...] = (
    (256, 256, 256),
    (128, 256, 256),
    (64, 256, 256),
    (64, 128, 128),
)
#: Boxes of the volume that are compressed to learn what disk it will take.
_SAMPLES = 9


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did."""

    output: str
    shape: Shape
    dtype: str
    grain: Shape
    levels: int
    input_bytes: int
    """Of the voxels, uncompressed."""
    output_bytes: int
    """On the disk, with the coarser levels."""
    seconds: float
    reading: ReadPlan

    @property
    def mvoxel_per_s(self) -> float:
        """Million voxels of the volume in a second."""
        return math.prod(self.shape) / 1e6 / max(self.seconds, 1e-9)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def ingest(
    source: Source,
    output: Path,
    *,
    memory_bytes: int = MEMORY_BYTES,
    overwrite: bool = False,
    scratch: Path | None = None,
    progress: ProgressCallback | None = None,
) -> IngestReport:
    """Rewrite `source` as sharded OME-Zarr with its pyramid, each chunk decoded once.

    Voxels, type and voxel size stay as they are; coarser levels are means. The output
    takes its name when it is whole: one that was stopped leaves nothing of that name.

    Parameters
    ----------
    output
        The store to make; its name ends in ``.zarr``.
    memory_bytes
        What this process may hold. Where a row of shards of whole planes is more, its
        planes go through a scratch file.
    scratch
        Folder for that file; the output's own where None.
    progress
        Called after every shard, from this thread.

    Raises
    ------
    OutputError
        `output` is there already, is no Zarr name, or the disk is too small.
    MemoryCapError
        Less memory than the smallest shards need.
    ReadError, WriteError
        The input or the disk failed; nothing is left.
    """
    began = time.monotonic()
    if sink_kind(output) != "ome-zarr":
        raise OutputError(f"{output} is not the name of a Zarr store: end it in .zarr")
    if source.path != output and _inside(output, source):
        raise SettingsError(f"{output} lies inside the input: choose another place")
    grain, plan = _choose(source, memory_bytes)
    partial = output.with_name(f"{output.name}.partial")
    with _named_when_whole(partial, output, overwrite=overwrite):
        _check_disk(source, output, plan)
        source.keep(plan.cache_bytes)
        with create_sink(
            partial,
            "ome-zarr",
            source.shape,
            source.dtype,
            source.voxel_size_um,
            grain=grain,
            pooling="mean",
            overwrite=True,
        ) as sink:
            _copy(source, sink, plan, scratch or output.parent, progress)
            sink.finish(
                {
                    "ingested_from": source.describe(),
                    "fingerprint": source.fingerprint(),
                    "versions": versions(),
                }
            )
    levels = sum(1 for entry in output.iterdir() if entry.is_dir())
    return IngestReport(
        output=str(output),
        shape=source.shape,
        dtype=source.dtype.name,
        grain=grain,
        levels=levels,
        input_bytes=math.prod(source.shape) * source.dtype.itemsize,
        output_bytes=sum(f.stat().st_size for f in output.rglob("*") if f.is_file()),
        seconds=round(time.monotonic() - began, 3),
        reading=plan,
    )


def _inside(output: Path, source: Source) -> bool:
    return (
        isinstance(source.path, Path)
        and source.path.resolve() in output.resolve().parents
    )


def _choose(source: Source, memory_bytes: int) -> tuple[Shape, ReadPlan]:
    """Shards and a way to read that fit the cap, the largest shards first.

    Shards whose planes stay in memory go before larger ones that need a scratch file.
    """
    tensorstore()  # loaded, it counts as held
    held = current_rss() + _OVERHEAD_BYTES
    # What the source takes beside the chunks it keeps.
    source.keep(0)
    working = held + source.memory_bytes
    plane_bytes = source.shape[1] * source.shape[2] * source.dtype.itemsize
    scratched: tuple[Shape, ReadPlan] | None = None
    for grain in _GRAINS:
        unit = Box.whole(source.shape).intersect(Box.whole(grain)).voxels
        unit *= source.dtype.itemsize
        fixed = working + int(unit * (_BUFFERS + _WRITERS * _WRITING))
        smallest = fixed
        plan = plan_reading(source, grain, max(0, memory_bytes - fixed))
        if plan.how == "scratch":
            layer = min(grain[0], source.shape[0]) * plane_bytes
            # At least the planes of a chunk, of which the next one's come along.
            least = 2 * source.chunk[0] * plane_bytes
            smallest += min(layer, max(_SCRATCH_BUFFER_BYTES, least))
        if smallest > memory_bytes:
            continue
        if plan.how != "scratch":
            return grain, plan
        scratched = scratched or (grain, plan)
    if scratched is None:
        raise MemoryCapError(
            f"{memory_bytes / 1e9:.2f} GB are too little to ingest this volume: "
            f"give --memory {math.ceil(smallest / 1e7) * 10}MB or more"
        )
    return scratched


def _check_disk(source: Source, output: Path, plan: ReadPlan) -> None:
    free = shutil.disk_usage(output.parent).free
    most = required_bytes("ome-zarr", source.shape, source.dtype)
    if most + plan.disk_bytes <= free:
        return
    likely = int(most * _compressed_share(source) * 1.1)
    if likely + plan.disk_bytes > free:
        raise OutputError(
            f"{output} will take about {likely / 1e9:.1f} GB, its scratch file "
            f"{plan.disk_bytes / 1e9:.1f} GB, and {output.parent} has "
            f"{free / 1e9:.1f} GB free: make room, or write elsewhere"
        )


def _compressed_share(source: Source) -> float:
    """What zstd leaves of some boxes of the volume, over what they were."""
    import imagecodecs

    depth, rows, columns = source.shape
    size = min(4, depth), min(256, rows), min(256, columns)
    before = after = 0
    for number in range(_SAMPLES):
        # Along the diagonal, both ends included.
        z, y, x = (
            (n - s) * number // (_SAMPLES - 1)
            for n, s in zip(source.shape, size, strict=True)
        )
        box = Box((z, y, x), (z + size[0], y + size[1], x + size[2]))
        voxels = source.read(box)
        before += voxels.nbytes
        after += len(imagecodecs.zstd_encode(voxels.tobytes(), level=1))
    return after / before


def _copy(
    source: Source,
    sink: Sink,
    plan: ReadPlan,
    scratch: Path,
    progress: ProgressCallback | None,
) -> None:
    total = math.prod(sink.shape)
    done = 0
    began = time.monotonic()
    largest = next(sink.units()).voxels
    buffers: SimpleQueue[NDArray[Any]] = SimpleQueue()
    for _ in range(_BUFFERS):
        buffers.put(np.empty(largest, sink.dtype))

    def write(unit: Box, flat: NDArray[Any]) -> int:
        try:
            voxels = flat[: unit.voxels].reshape(unit.shape)
            if voxels.any() or not sink.sparse:
                sink.write(unit, voxels)
        finally:
            buffers.put(flat)
        return unit.voxels

    writing: list[Future[int]] = []
    with ThreadPoolExecutor(_WRITERS, "neurodeploy-write") as writers:
        for reader, unit in _in_order(source, sink, plan, scratch):
            flat = buffers.get()
            # A buffer is free, so one write is over: its error comes up here.
            while writing and writing[0].done():
                done += writing.pop(0).result()
                if progress is not None:
                    progress(Progress(done, total, 0, time.monotonic() - began))
            reader.read(unit, flat[: unit.voxels].reshape(unit.shape))
            writing.append(writers.submit(write, unit, flat))
        for future in writing:
            done += future.result()
            if progress is not None:
                progress(Progress(done, total, 0, time.monotonic() - began))


def _in_order(
    source: Source, sink: Sink, plan: ReadPlan, scratch: Path
) -> Iterator[tuple[Source, Box]]:
    """Every unit and what to read it from, layer after layer of shards."""
    nz, ny, nx = sink.shape
    for z in range(0, nz, sink.grain[0]):
        layer = Box((z, 0, 0), (min(z + sink.grain[0], nz), ny, nx))
        with ExitStack() as stack:
            reader = source
            if plan.how == "scratch":
                planes = (layer.start[0], layer.stop[0])
                reader = stack.enter_context(ScratchSource(source, scratch, planes))
            for unit in layer.grid(sink.grain):
                yield reader, unit


@contextmanager
def _named_when_whole(
    partial: Path, output: Path, *, overwrite: bool
) -> Iterator[None]:
    """Give what lies at `partial` its name afterwards, or remove it."""
    if output.exists():
        if not overwrite:
            raise OutputError(
                f"{output} is already there: choose another name, or pass --overwrite"
            )
        if not any((output / n).is_file() for n in ("zarr.json", ".zgroup", ".zarray")):
            raise OutputError(
                f"{output} is no Zarr store, so it is not replaced: choose another name"
            )
    if not output.parent.is_dir():
        raise OutputError(
            f"{output} cannot be written: the folder {output.parent} is not there"
        )
    try:
        yield
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
