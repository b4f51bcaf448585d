"""Outputs that are one file with the voxels in a row: TIFF and v3draw.

The file has its full size from the start, so that a full disk shows before the work,
and units are written in place with `pwrite`: no memory map, whose pages would count
as this process's memory. Which units are whole stands in a second file, `NAME.units`,
as one checksum each, written after the unit's own bytes are on the disk: a unit torn
by a kill has no entry, or one that does not match, and is written again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import struct
import threading
import zlib
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._atomic import partial_name
from neurodeploy_runtime._errors import OutputError, ResumeError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._sink import MakeableSink, SinkSpec, already_there

UNIT_BYTES = 64 << 20
_RECORDS_AT = 4096
_RECORD = struct.Struct("<II")
_WRITTEN = 0x4E444F4B


class RandomAccessFile:
    """A file read and written at offsets, from any thread."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def write_at(self, data: memoryview, offset: int) -> None:
        """Write all of `data`; a short write goes on where it stopped."""
        while data:
            if hasattr(os, "pwrite"):
                done = os.pwrite(self._fd, data, offset)
            else:  # Windows
                with self._lock:
                    os.lseek(self._fd, offset, os.SEEK_SET)
                    done = os.write(self._fd, data)
            data, offset = data[done:], offset + done

    def read_at(self, out: memoryview, offset: int) -> None:
        """Fill `out`; a file that ends before is an OSError."""
        while out:
            if hasattr(os, "preadv"):
                done = os.preadv(self._fd, [out], offset)
            else:  # macOS before 11, Windows
                with self._lock:
                    os.lseek(self._fd, offset, os.SEEK_SET)
                    data = os.read(self._fd, len(out))
                done = len(data)
                out[:done] = data
            if done == 0:
                raise OSError(errno.EIO, f"the file ends before byte {offset}")
            out, offset = out[done:], offset + done

    def size(self) -> int:
        """Bytes the file has now."""
        return os.fstat(self._fd).st_size

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        getattr(os, "fdatasync", os.fsync)(self._fd)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)


def allocate(path: Path, size: int) -> None:
    """Give a file its full size, its new bytes zero, and the disk blocks for them."""
    with path.open("r+b") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                # Some file systems cannot reserve; a full disk then shows later.
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def flat_grain(spec: SinkSpec) -> Shape:
    """A unit of at most 64 MiB that suits blocks: deep rather than wide.

    Whole planes where 64 of them fit, else whole rows, else pieces of rows of 4 kB.

    >>> flat_grain(SinkSpec((1000, 512, 512), np.dtype("uint8")))
    (64, 512, 512)
    >>> flat_grain(SinkSpec((20000, 20000, 30000), np.dtype("uint8")))
    (64, 256, 4096)
    """
    voxels = UNIT_BYTES // spec.dtype.itemsize
    nz, ny, nx = spec.shape
    z = min(64, nz)
    y = min(ny, 256)
    x = nx if z * y * nx <= voxels else max(voxels // (z * y) // 256 * 256, 256)
    if x == nx:
        y = min(ny, voxels // (z * nx))
        y = ny if y == ny else max(y // 64 * 64, 1)
    return z, y, x


class FlatSink(MakeableSink):
    """Voxels in z, y, x order at one offset of a file of known size."""

    def __init__(self, path: Path, spec: SinkSpec, grain: Shape, data_at: int) -> None:
        super().__init__(path, spec, grain)
        self._data_at = data_at
        self._file = RandomAccessFile(path)
        try:
            self._records = RandomAccessFile(records_path(path))
        except OSError:
            self._file.close()
            raise
        self._grid = tuple(-(-n // g) for n, g in zip(spec.shape, grain, strict=True))

    @classmethod
    def create(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, overwrite: bool
    ) -> Self:
        """Make the file under another name, then give it its own: whole, or not there.

        The checksums come second: a file without them has no unit that is held.
        """
        if spec.dtype.name not in ("uint8", "uint16", "float32"):
            raise OutputError(
                f"a file of kind {cls.kind} cannot hold {spec.dtype.name}: "
                "write OME-Zarr, or convert to uint16"
            )
        grain = _clipped(grain or cls.own_grain(spec), spec.shape)
        # First, because some file systems fill the disk before they say it is full.
        free = shutil.disk_usage(path.parent).free
        if cls.bytes_needed(spec) > free:
            raise OutputError(
                f"{path} takes {cls.bytes_needed(spec) / 1e9:.2f} GB and "
                f"{path.parent} has {free / 1e9:.2f} GB free: make room, or write "
                "elsewhere"
            )
        partial = partial_name(path)
        try:
            data_at, size = cls._lay_out(partial, spec)
            allocate(partial, size)
            if overwrite:
                records_path(path).unlink(missing_ok=True)
                partial.replace(path)
            else:
                publish(partial, path)
            sync_folder(path.parent)
            _make_records(path, spec, grain)
        except FileExistsError:
            raise already_there(path) from None
        except OSError as error:
            raise OutputError(
                f"{path} of {spec.bytes / 1e9:.2f} GB could not be made "
                f"({error.strerror}): make room, or write elsewhere"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        return cls(path, spec, grain, data_at)

    @classmethod
    def reopen(cls, path: Path, spec: SinkSpec, grain: Shape | None) -> Self:
        """Open an unfinished file; its shape, dtype and grain must be the same."""
        grain = _clipped(grain or cls.own_grain(spec), spec.shape)
        if not path.is_file():
            raise ResumeError(
                f"{path} cannot be continued: it is not there; start again"
            )
        data_at = cls._data_offset(path, spec)
        if not records_path(path).is_file():
            _make_records(path, spec, grain)
        sink = cls(path, spec, grain, data_at)
        try:
            sink._check_records()
        except ResumeError:
            sink.close()
            raise
        return sink

    @classmethod
    def may_replace(cls, path: Path) -> bool:
        """Any file, or a link to one."""
        return not path.is_dir()

    @classmethod
    def own_grain(cls, spec: SinkSpec) -> Shape:
        """At most 64 MiB, deep rather than wide."""
        return flat_grain(spec)

    @classmethod
    @abstractmethod
    def _lay_out(cls, path: Path, spec: SinkSpec) -> tuple[int, int]:
        """Write the header to `path`; where the voxels begin, and the file's size."""

    @classmethod
    @abstractmethod
    def _data_offset(cls, path: Path, spec: SinkSpec) -> int:
        """Where the voxels begin in a file made before, or a ResumeError."""

    @property
    def scratch(self) -> tuple[Path, ...]:
        """The checksums of the units."""
        return (records_path(self.path),)

    def _write(self, unit: Box, voxels: NDArray[Any]) -> None:
        data = _bytes_of(np.ascontiguousarray(voxels))
        self._records.write_at(memoryview(bytes(_RECORD.size)), self._record_at(unit))
        for at, offset, length in self._runs(unit):
            self._file.write_at(data[at : at + length], offset)
        self._file.sync()
        record = _RECORD.pack(_WRITTEN, zlib.crc32(data))
        self._records.write_at(memoryview(record), self._record_at(unit))
        self._records.sync()

    def _present(self, unit: Box) -> bool:
        *_, (_, offset, length) = self._runs(unit)
        return self._record_of(unit)[0] and offset + length <= self._file.size()

    def _holds(self, unit: Box) -> bool:
        written, checksum = self._record_of(unit)
        return written and checksum == zlib.crc32(_bytes_of(self.read(unit)))

    def _record_of(self, unit: Box) -> tuple[bool, int]:
        """Whether a unit was written, and its checksum."""
        record = bytearray(_RECORD.size)
        self._records.read_at(memoryview(record), self._record_at(unit))
        written, checksum = _RECORD.unpack(record)
        return written == _WRITTEN, checksum

    def read(self, box: Box) -> NDArray[Any]:
        """What was written, any box of it; zeros where nothing was."""
        self._check_box(box)
        voxels = np.empty(box.shape, self.dtype)
        data = _bytes_of(voxels)
        for at, offset, length in self._runs(box):
            self._file.read_at(data[at : at + length], offset)
        return voxels

    def close(self) -> None:
        """Let go of the files."""
        self._file.close()
        self._records.close()

    def _runs(self, box: Box) -> Iterator[tuple[int, int, int]]:
        """Neighbours in the box that are neighbours in the file.

        Yields where they begin in the box, where in the file, and their length; bytes.
        """
        _, ny, nx = self.shape
        z, y, x = box.shape
        if x == nx and y == ny:
            length, starts = z * y * x, [box.start[0] * ny * nx]
        elif x == nx:
            length = y * x
            starts = [
                (k * ny + box.start[1]) * nx for k in range(box.start[0], box.stop[0])
            ]
        else:
            length = x
            starts = [
                (k * ny + j) * nx + box.start[2]
                for k in range(box.start[0], box.stop[0])
                for j in range(box.start[1], box.stop[1])
            ]
        size = self.dtype.itemsize
        for number, start in enumerate(starts):
            yield number * length * size, self._data_at + start * size, length * size

    def _record_at(self, unit: Box) -> int:
        z, y, x = (a // g for a, g in zip(unit.start, self.grain, strict=True))
        number = (z * self._grid[1] + y) * self._grid[2] + x
        return _RECORDS_AT + number * _RECORD.size

    def _check_records(self) -> None:
        head = bytearray(_RECORDS_AT)
        try:
            self._records.read_at(memoryview(head), 0)
            found = json.loads(head.decode("ascii"))
        except (OSError, ValueError):
            found = None
        wanted = _geometry(self.spec, self.grain, self._file.size())
        if found != wanted:
            raise ResumeError(
                f"{self.path} cannot be continued: {records_path(self.path).name} "
                f"says {found}, this run {wanted}; start again"
            )


def records_path(path: Path) -> Path:
    """Where the checksums of the units of `path` lie."""
    return path.with_name(path.name + ".units")


def _bytes_of(voxels: NDArray[Any]) -> memoryview:
    return voxels.reshape(-1).view(np.uint8).data


def _geometry(spec: SinkSpec, grain: Shape, size: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "bytes": size,
        "shape": list(spec.shape),
        "dtype": spec.dtype.name,
        "grain": list(grain),
    }


def _make_records(path: Path, spec: SinkSpec, grain: Shape) -> None:
    units = math.prod(-(-n // g) for n, g in zip(spec.shape, grain, strict=True))
    head = json.dumps(_geometry(spec, grain, path.stat().st_size)).encode("ascii")
    records = records_path(path)
    partial = partial_name(records)
    try:
        partial.write_bytes(head.ljust(_RECORDS_AT))
        allocate(partial, _RECORDS_AT + units * _RECORD.size)
        # Where another process was faster, its records are as good.
        with contextlib.suppress(FileExistsError):
            publish(partial, records)
        sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Give a finished file its name, unless the name is taken: FileExistsError."""
    try:
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError as error:
        # A file system without hard links: exFAT, some network shares.
        if path.exists():
            raise FileExistsError(path) from error
        partial.rename(path)
        return
    partial.unlink()


def _clipped(grain: Shape, shape: Shape) -> Shape:
    if min(grain) < 1:
        raise OutputError(f"a unit of {grain} voxels is empty: use at least 1 per axis")
    z, y, x = (min(g, n) for g, n in zip(grain, shape, strict=True))
    return z, y, x
