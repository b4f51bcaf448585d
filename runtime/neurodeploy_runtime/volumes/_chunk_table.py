"""Compressed chunks at offsets of files: read, decoded in threads, kept for a while.

A library that knows the format (tifffile, h5py) builds the table once; reading never
goes through it again. That is what makes it exact from many threads: tifffile's pages
share one file position and gave wrong pages of an uncompressed file from four threads.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, NeurodeployError, ReadError, said_by
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._files import Files
from neurodeploy_runtime.volumes._workers import Workers

#: Stored bytes of the first and of the last chunk that go into a fingerprint.
_PRINTED_BYTES = 2**20


@dataclass(frozen=True)
class ChunkTable:
    """Where the chunks of a volume lie, on a regular grid anchored at its origin."""

    shape: Shape
    dtype: np.dtype[Any]
    chunk: Shape
    files: tuple[Path, ...]
    #: Which file, at which byte, how many bytes: one array each, of the grid's shape.
    file: NDArray[np.integer[Any]]
    offset: NDArray[np.integer[Any]]
    #: 0 for a chunk that is not stored and holds `fill`.
    size: NDArray[np.integer[Any]]
    #: Stored bytes and place in the grid to voxels: the chunk, whole, or cut to the
    #: volume. Called from many threads.
    decode: Callable[[bytearray, Shape], NDArray[Any]]
    #: What a chunk is called in an error.
    name: Callable[[Shape], str]
    fill: float = 0
    #: No codec of this format makes its output larger than its input by more.
    max_ratio: float = 1.0
    #: Bytes that are decoded for a chunk where those are more than its voxels: those of
    #: other channels among them.
    decoded_bytes: int = 0

    @property
    def grid(self) -> Shape:
        """Chunks on z, y, x."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))
        return z, y, x

    def box(self, place: Shape) -> Box:
        """The voxels of a chunk that lie inside the volume."""
        a0, a1, a2 = (p * c for p, c in zip(place, self.chunk, strict=True))
        b0, b1, b2 = (p * c + c for p, c in zip(place, self.chunk, strict=True))
        return Box((a0, a1, a2), (b0, b1, b2)).intersect(Box.whole(self.shape))

    def check(self, sizes: tuple[int, ...], where: str) -> None:
        """Raise InputError where a chunk lies outside its file or cannot be whole."""
        for array in (self.file, self.offset, self.size):
            if array.shape != self.grid:
                raise InputError(
                    f"{where} is damaged: it lists {array.shape} chunks where "
                    f"{self.grid} make {self.shape} voxels"
                )
        stored = self.size > 0
        if (self.size < 0).any() or (self.offset[stored] < 0).any():
            raise InputError(f"{where} is damaged: a chunk lies before its beginning")
        length = np.asarray(sizes, np.uint64)[self.file]
        # Unsigned, so that a damaged offset does not wrap around.
        end = self.offset.astype(np.uint64) + self.size.astype(np.uint64)
        if cut := _first(stored & (end > length)):
            file = int(self.file[cut])
            raise InputError(
                f"{self.files[file]} is cut short in {self.name(cut)} of "
                f"{self.shape[0]} planes: it has {sizes[file]} bytes and needs "
                f"{int(end[cut])} for that; copy it again"
            )
        full = prod(min(c, n) for c, n in zip(self.chunk, self.shape, strict=True))
        needed = full * self.dtype.itemsize
        # Chunks at the far edges may be cut: only the first one is surely whole.
        first = (0, 0, 0)
        if stored[first] and needed > 4096 + self.max_ratio * int(self.size[first]):
            raise InputError(
                f"{where} is damaged: {self.name(first)} should hold {needed} bytes, "
                f"which {int(self.size[first])} stored bytes cannot give"
            )


def _first(mask: NDArray[np.bool_]) -> Shape | None:
    flat = mask.ravel()
    index = int(flat.argmax())
    if not flat.size or not flat[index]:
        return None
    z, y, x = (int(n) for n in np.unravel_index(index, mask.shape))
    return z, y, x


class ChunkCache:
    """Decoded chunks, the last used kept up to `limit_bytes`; each decoded once.

    Threads that ask for a chunk which another one is decoding wait for that one. Where
    the limit is not 0, a chunk larger than it is kept until another is asked for: the
    next box often lies in the same.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._chunks: OrderedDict[Shape, Future[NDArray[Any]]] = OrderedDict()
        self._bytes = 0
        #: How many chunks were loaded so far.
        self.loads = 0

    def get(self, place: Shape, load: Callable[[Shape], NDArray[Any]]) -> NDArray[Any]:
        """The chunk, from memory or by `load`; not to be written to."""
        with self._lock:
            future = self._chunks.get(place)
            mine = future is None
            if future is None:
                # What is kept beyond the limit makes room for what is decoded now.
                self._evict()
                future = self._chunks[place] = Future()
            else:
                self._chunks.move_to_end(place)
        if not mine:
            return future.result()
        try:
            chunk = load(place)
        except BaseException as error:
            with self._lock:
                del self._chunks[place]
            future.set_exception(error)
            raise
        future.set_result(chunk)
        with self._lock:
            self.loads += 1
            self._bytes += chunk.nbytes
            self._evict(place if self.limit_bytes else None)
        return chunk

    def resize(self, limit_bytes: int) -> None:
        """Keep at most this much from now on."""
        with self._lock:
            self.limit_bytes = limit_bytes
            self._evict()

    def _evict(self, newest: Shape | None = None) -> None:
        while self._bytes > self.limit_bytes:
            done = (p for p, f in self._chunks.items() if f.done() and p != newest)
            oldest = next(done, None)
            if oldest is None:
                return
            self._bytes -= self._chunks.pop(oldest).result().nbytes


class ChunkTableSource(Source):
    """A volume in compressed chunks that a table points to."""

    def __init__(
        self,
        table: ChunkTable,
        options: ReadOptions,
        *,
        path: Path,
        format: str,
        voxel_size_um: tuple[float, float, float] | None,
        compressed: bool = True,
    ) -> None:
        self.shape = table.shape
        self.dtype = table.dtype
        self.chunk = table.chunk
        self.compressed = compressed
        self.voxel_size_um = voxel_size_um
        self.path = path
        self.format = format
        self._table = table
        self._files = Files(table.files)
        try:
            table.check(self._files.sizes, str(path))
        except BaseException:
            self._files.close()
            raise
        self._cache = ChunkCache(options.cache_bytes)
        self._workers = Workers(options.threads, "neurodeploy-read")
        self._threads = options.threads
        self._at_once = options.threads
        self._gate: AbstractContextManager[object] = nullcontext()
        self.keep(options.cache_bytes)

    @property
    def decoded(self) -> int:
        """How many chunks were decoded so far."""
        return self._cache.loads

    def keep(self, cache_bytes: int) -> None:
        """See `Source.keep`."""
        self._cache.resize(cache_bytes)
        self._plan_memory()

    def decode_at_once(self, chunks: int) -> int:
        """See `Source.decode_at_once`."""
        self._at_once = max(1, min(chunks, self._threads))
        few = self._at_once < self._threads
        self._gate = threading.BoundedSemaphore(self._at_once) if few else nullcontext()
        self._plan_memory()
        return self._at_once

    def _plan_memory(self) -> None:
        chunk_bytes = prod(self.chunk) * self.dtype.itemsize
        everything = prod(self._table.grid) * chunk_bytes
        # A chunk as stored, decoded, and once more where a predictor is undone.
        working = 3 * self._at_once * max(chunk_bytes, self._table.decoded_bytes)
        self.memory_bytes = min(self._cache.limit_bytes, everything) + working

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Source.read`."""
        out = self._output(box, out)
        if box.voxels == 0:
            return out
        slabs, rows, columns = (
            range(a // c, -(-b // c))
            for a, b, c in zip(box.start, box.stop, self.chunk, strict=True)
        )
        places = itertools.product(slabs, rows, columns)
        gate = self._gate

        def copy(place: Shape) -> None:
            chunk_box = self._table.box(place)
            common = chunk_box.intersect(box)
            part = common.shift(_minus(chunk_box.start)).slices
            target = common.shift(_minus(box.start)).slices
            if self._table.size[place] == 0:
                out[target] = self._table.fill
                return
            with gate:  # until it is copied: so long the chunk is held
                out[target] = self._cache.get(place, self._load)[part]

        self._workers.each(copy, places)
        return out

    def _load(self, place: Shape) -> NDArray[Any]:
        table = self._table
        what = table.name(place)
        stored = self._files.read(
            int(table.file[place]),
            int(table.offset[place]),
            int(table.size[place]),
            what,
        )
        try:
            chunk = table.decode(stored, place)
        except NeurodeployError:
            raise
        except Exception as error:
            raise ReadError(
                f"{what} of {self.path} cannot be decoded: {said_by(error)}; copy "
                "the file again, or leave that part out by a region of interest"
            ) from error
        inside = table.box(place).shape
        if any(n < m for n, m in zip(chunk.shape, inside, strict=True)):
            raise ReadError(
                f"{what} of {self.path} decodes to {chunk.shape} voxels in place of "
                f"{inside}: the file is damaged"
            )
        return chunk

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        table = self._table
        digest = fingerprint_of(self, self._files)
        # Where its chunks lie: another channel's lie elsewhere.
        digest.update(table.file.tobytes() + table.offset.tobytes())
        last = tuple(n - 1 for n in table.grid)
        for place in ((0, 0, 0), last):
            size = min(_PRINTED_BYTES, int(table.size[place]))
            digest.update(
                self._files.read(
                    int(table.file[place]), int(table.offset[place]), size, "a chunk"
                )
            )
        return str(digest.hexdigest())

    def close(self) -> None:
        """See `Source.close`."""
        self._workers.close()
        self._files.close()
        self._cache.resize(0)


def fingerprint_of(source: Source, files: Files) -> Any:
    """A digest that holds all of a fingerprint but the bytes of chunks."""
    digest = hashlib.sha256(
        f"{source.format}|{source.shape}|{source.dtype.name}".encode()
    )
    for size, mtime in zip(files.sizes, files.mtimes_ns, strict=True):
        digest.update(f"|{size},{mtime}".encode())
    return digest


def _minus(start: Shape) -> Shape:
    z, y, x = start
    return -z, -y, -x
