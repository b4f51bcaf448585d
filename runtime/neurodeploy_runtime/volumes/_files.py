"""Bytes at offsets of one or many files, for many threads at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from neurodeploy_runtime._errors import InputError, ReadError

#: More files than this are opened for every read, so that a folder of 20 000 planes
#: needs no more descriptors than any other input.
KEPT_OPEN = 64

#: Linux reads no more than 2 GiB less a page at a time.
_LARGEST_READ = 2**30


class Files:
    """Files that are read at offsets. A context manager: it owns their descriptors.

    Reading is by `preadv` into the caller's memory and never by a memory map, whose
    pages would count as memory of this process. Where the system has no `preadv`
    (Windows), a lock holds each seek and read together.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        try:
            stats = [path.stat() for path in self.paths]
        except OSError as error:
            raise InputError(
                f"{error.filename} cannot be read: {error.strerror}"
            ) from error
        #: Bytes of each file when it was opened.
        self.sizes = tuple(stat.st_size for stat in stats)
        #: Modification times, ns.
        self.mtimes_ns = tuple(stat.st_mtime_ns for stat in stats)
        self._lock = threading.Lock()
        self._kept: dict[int, int] = {}
        self._closed = False
        if len(self.paths) <= KEPT_OPEN:
            try:
                for index in range(len(self.paths)):
                    self._kept[index] = self._open(index)
            except OSError as error:
                self.close()
                raise InputError(
                    f"{error.filename} cannot be read: {error.strerror}"
                ) from error

    def changed(self) -> Path | None:
        """The first file that is not of the size and time that it was opened with."""
        for path, size, mtime_ns in zip(
            self.paths, self.sizes, self.mtimes_ns, strict=True
        ):
            try:
                stat = path.stat()
            except OSError:
                return path
            if (stat.st_size, stat.st_mtime_ns) != (size, mtime_ns):
                return path
        return None

    def read_into(self, file: int, offset: int, out: memoryview, what: str) -> None:
        """Fill `out` from `offset` on; raises ReadError that names `what` is read."""
        done = 0
        try:
            with self._descriptor(file) as descriptor:
                while done < len(out):
                    got = self._read(
                        descriptor, out[done : done + _LARGEST_READ], offset + done
                    )
                    if got == 0:
                        raise ReadError(
                            f"{what} of {self.paths[file]} cannot be read: the file "
                            f"ends {len(out) - done} bytes too early"
                        )
                    done += got
        except OSError as error:
            raise ReadError(
                f"{what} of {self.paths[file]} cannot be read: "
                f"{error.strerror or error}"
            ) from error

    def read(self, file: int, offset: int, size: int, what: str) -> bytearray:
        """`size` bytes from `offset` on."""
        data = bytearray(size)
        self.read_into(file, offset, memoryview(data), what)
        return data

    def close(self) -> None:
        """Close what is open."""
        self._closed = True
        kept, self._kept = self._kept, {}
        for descriptor in kept.values():
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self, index: int) -> int:
        return os.open(self.paths[index], os.O_RDONLY | getattr(os, "O_BINARY", 0))

    @contextmanager
    def _descriptor(self, index: int) -> Iterator[int]:
        if self._closed:
            raise ReadError(f"{self.paths[index]} is closed: open the volume again")
        kept = self._kept.get(index)
        if kept is not None:
            yield kept
            return
        descriptor = self._open(index)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _read(self, descriptor: int, out: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(descriptor, [out], offset)
        with self._lock:
            os.lseek(descriptor, offset, os.SEEK_SET)
            data = os.read(descriptor, len(out))
        out[: len(data)] = data
        return len(data)
