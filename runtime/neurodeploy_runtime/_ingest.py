"""A volume of any format rewritten as sharded OME-Zarr, in one bounded pass.

For files that are read more than once and that are slow to read in boxes: a stack of
compressed planes decodes a whole plane for every voxel.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._durable import durable_units
from neurodeploy_runtime._errors import (
    MemoryCapError,
    OutputError,
    ResumeError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._identity import refuse_changed
from neurodeploy_runtime._ingest_plan import (
    BUFFERS,
    WRITERS,
    check_disk,
    choose_shards,
)
from neurodeploy_runtime._input_place import lies_inside, refuse_input
from neurodeploy_runtime._journal import Journal, checksum
from neurodeploy_runtime._patience import patiently, read_patiently
from neurodeploy_runtime._progress import Progress, ProgressCallback
from neurodeploy_runtime._report import versions
from neurodeploy_runtime.volumes import (
    ReadPlan,
    ScratchSource,
    Sink,
    Source,
    attach_sink,
    sink_kind,
)
from neurodeploy_runtime.volumes._open_sink import may_replace

#: Memory where nobody says: what every machine beside a microscope has.
MEMORY_BYTES = 4_000_000_000
#: In the working folder: the store until it has its name, and that it is being given.
STORE, NAMING = "volume.zarr", "naming"


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
    resumed_voxels: int = 0
    """Of earlier calls; they count in no rate."""

    @property
    def mvoxel_per_s(self) -> float:
        """Million voxels of the volume that this call copied in a second."""
        voxels = math.prod(self.shape) - self.resumed_voxels
        return voxels / 1e6 / max(self.seconds, 1e-9)

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
    takes its name when it is whole. One that was stopped lies in ``OUTPUT.ingest`` and
    the same call goes on with it: shards that are recorded are not made again, and the
    last 4 GB of them are read before they are believed.

    Parameters
    ----------
    output
        The store to make; its name ends in ``.zarr``.
    memory_bytes
        What this process may hold. Where a row of shards of whole planes is more, its
        planes go through a scratch file.
    overwrite
        Replace a store that is there, and start again where an unfinished one is of
        another input.
    scratch
        Folder for that file; the output's own where None.
    progress
        Called after every shard, from this thread.

    Raises
    ------
    OutputError
        `output` is there already, is no Zarr name, or the disk is too small.
    ResumeError
        What lies there unfinished is of another input, or somebody works on it.
    MemoryCapError
        Less memory than the smallest shards need.
    ReadError, WriteError
        The input or the disk failed; the same call goes on.
    """
    began = time.monotonic()
    if sink_kind(output) != "ome-zarr":
        raise OutputError(f"{output} is not the name of a Zarr store: end it in .zarr")
    if lies_inside(output, source.path):
        raise SettingsError(f"{output} lies inside the input: choose another place")
    _check_place(source, output, overwrite)
    work = output.with_name(f"{output.name}.ingest")
    journal = Journal(work)
    journal.lock()
    try:
        grain, plan = _begin(journal, source, output, memory_bytes, overwrite)
        source.keep(plan.cache_bytes)
        with _attached(journal, source, grain, overwrite) as sink:
            place = scratch or output.parent
            resumed = _copy(source, sink, plan, place, journal, progress)
            refuse_changed(source, journal, _made(source, grain)["identity"])
            sink.finish(
                {
                    "ingested_from": source.describe(),
                    "fingerprint": source.fingerprint(),
                    "versions": versions(),
                }
            )
        _give_name(work, output)
        # The store is whole and has its name, whatever else lies in the folder.
        with contextlib.suppress(OutputError):
            journal.remove()
    except BaseException:
        if not journal.exists:
            with contextlib.suppress(OutputError, ResumeError):
                journal.remove()
        raise
    finally:
        journal.close()
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
        resumed_voxels=resumed,
    )


def _check_place(source: Source, output: Path, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise OutputError(
            f"{output} cannot be written: the folder {output.parent} is not there"
        )
    work = output.with_name(f"{output.name}.ingest")
    refuse_input((output, work), source.path, source.files)
    if not output.exists() and not output.is_symlink():
        return
    if not overwrite:
        _forget_named(output)
        raise OutputError(
            f"{output} is already there: choose another name, or pass --overwrite"
        )
    if not may_replace(output, "ome-zarr"):
        raise OutputError(
            f"{output} is no Zarr store, so it is not replaced: choose another name"
        )


def _forget_named(output: Path) -> None:
    """Remove what a kill right behind the last rename has left of this very store."""
    work = output.with_name(f"{output.name}.ingest")
    if (work / NAMING).exists() and not (work / STORE).exists():
        journal = Journal(work)
        with contextlib.suppress(OutputError, ResumeError):
            journal.lock()
            journal.remove()
        journal.close()


def _begin(
    journal: Journal, source: Source, output: Path, memory_bytes: int, overwrite: bool
) -> tuple[Shape, ReadPlan]:
    """Go on with what lies here, or begin: the shards, and how the input is read."""
    if journal.exists and (journal.folder / STORE).exists():
        try:
            chosen = choose_shards(source, memory_bytes, _begun_with(journal))
            journal.check(_made(source, chosen[0]))
            return chosen
        except (ResumeError, MemoryCapError):
            if not overwrite:
                raise
    chosen = choose_shards(source, memory_bytes)
    journal.clear()
    check_disk(source, output, chosen[1])
    journal.begin(_made(source, chosen[0]))
    return chosen


def _attached(journal: Journal, source: Source, grain: Shape, overwrite: bool) -> Sink:
    """The store, open; with `overwrite` a damaged one is begun again."""

    def attach() -> Sink:
        return attach_sink(
            journal.folder / STORE,
            "ome-zarr",
            source.shape,
            source.dtype,
            source.voxel_size_um,
            grain=grain,
            pooling="mean",
        )

    try:
        return attach()
    except ResumeError:
        if not overwrite:
            raise
        journal.clear()
        journal.begin(_made(source, grain))
        return attach()


def _made(source: Source, grain: Shape) -> dict[str, Any]:
    """What is being made, for the journal."""
    size = source.voxel_size_um
    identity = {
        "input": {
            "fingerprint": source.fingerprint(),
            "shape": list(source.shape),
            "dtype": source.dtype.name,
        },
        "output": {
            "format": "ome-zarr",
            "kind": "ingest",
            "grain": list(grain),
            "voxel_size_um": None if size is None else list(size),
        },
    }
    return {"identity": identity}


def _begun_with(journal: Journal) -> object:
    """The shards of what lies here unfinished: they are gone on with."""
    if not journal.exists:
        return None
    place: Any = journal.read_plan()
    for name in ("identity", "output", "grain"):
        place = place.get(name) if isinstance(place, dict) else None
    return place


def _give_name(work: Path, output: Path) -> None:
    """Put the whole store in its place; at no moment is there none of the two."""
    try:
        (work / NAMING).touch()
        if output.exists():
            output.rename(work / "replaced")
        (work / STORE).rename(output)
    except OSError as error:
        raise WriteError(
            f"{output} is whole and cannot be given its name ({error}): see to the "
            "folder, then run the same command again"
        ) from error


def _copy(
    source: Source,
    sink: Sink,
    plan: ReadPlan,
    scratch: Path,
    journal: Journal,
    progress: ProgressCallback | None,
) -> int:
    """Copy what is not there yet; the voxels that were."""
    total = math.prod(sink.shape)
    there = durable_units([sink], journal.records())
    units = [unit for unit in sink.units() if unit.start not in there]
    resumed = done = total - sum(unit.voxels for unit in units)
    began = time.monotonic()
    if not units:
        return resumed
    largest = max(unit.voxels for unit in units)
    buffers: SimpleQueue[NDArray[Any]] = SimpleQueue()
    for _ in range(BUFFERS):
        buffers.put(np.empty(largest, sink.dtype))

    def write(unit: Box, flat: NDArray[Any]) -> int:
        try:
            voxels = flat[: unit.voxels].reshape(unit.shape)
            if voxels.any() or not sink.sparse:
                patiently(partial(sink.write, unit, voxels), stop)
            with recording:
                journal.record(unit, (checksum(voxels),))
            return unit.voxels
        finally:
            buffers.put(flat)

    def tell(written: Future[int]) -> None:
        nonlocal done
        done += written.result()
        if progress is not None:
            progress(Progress(done, total, resumed, time.monotonic() - began))

    stop = threading.Event()
    recording = threading.Lock()
    writing: list[Future[int]] = []
    with (
        ThreadPoolExecutor(WRITERS, "neurodeploy-write") as writers,
        ExitStack() as end,
    ):
        # Whatever ends this, no write goes on being patient.
        end.callback(stop.set)
        for reader, unit in _in_order(source, sink, plan, scratch, there):
            flat = buffers.get()
            # A buffer is free, so one write is over: its error comes up here.
            while writing and writing[0].done():
                tell(writing.pop(0))
            read_patiently(reader, unit, flat[: unit.voxels].reshape(unit.shape))
            writing.append(writers.submit(write, unit, flat))
        for written in writing:
            tell(written)
    return resumed


def _in_order(
    source: Source,
    sink: Sink,
    plan: ReadPlan,
    scratch: Path,
    there: frozenset[Shape],
) -> Iterator[tuple[Source, Box]]:
    """Every unit that is not there and what to read it from, layer after layer."""
    nz, ny, nx = sink.shape
    for z in range(0, nz, sink.grain[0]):
        layer = Box((z, 0, 0), (min(z + sink.grain[0], nz), ny, nx))
        units = [unit for unit in layer.grid(sink.grain) if unit.start not in there]
        if not units:
            continue
        with ExitStack() as stack:
            reader = source
            if plan.how == "scratch":
                planes = (layer.start[0], layer.stop[0])
                reader = stack.enter_context(ScratchSource(source, scratch, planes))
            for unit in units:
                yield reader, unit
