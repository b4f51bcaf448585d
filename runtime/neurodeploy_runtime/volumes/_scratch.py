"""Planes decoded once into a file, to be read in any order afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import (
    CancelledError,
    OutputError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._raw import RawPlanes, RawSource

#: Planes are copied in groups of at most this much, so that they decode side by side.
_GROUP_BYTES = 64 * 2**20


class ScratchSource(Source):
    """A range of the planes of a volume, uncompressed in a temporary file.

    It has the shape of the whole volume and its boxes; only those inside `planes` can
    be read. The other source stays the caller's and is not needed any more. The file
    goes away with `close`, and with the process where the system can delete open files.
    Decoding stops with a CancelledError when `cancel` is set, within a group of planes.
    """

    compressed = False

    def __init__(
        self,
        source: Source,
        folder: Path,
        planes: tuple[int, int] | None = None,
        *,
        threads: int = 1,
        cancel: threading.Event | None = None,
    ) -> None:
        begin, end = planes or (0, source.shape[0])
        if not 0 <= begin < end <= source.shape[0]:
            raise SettingsError(
                f"planes {begin} to {end} are not inside a volume of {source.shape[0]}"
            )
        self.shape = source.shape
        self.dtype = source.dtype
        self.voxel_size_um = source.voxel_size_um
        self.chunk = (1, 1, source.shape[2])
        self.path = source.path
        self.format = f"{source.format}, through a scratch file"
        self._fingerprint = source.fingerprint()
        self._planes = (begin, end)
        shape = (end - begin, *self.shape[1:])
        plane_bytes = shape[1] * shape[2] * self.dtype.itemsize
        file, self._temporary = _reserve(folder, shape[0] * plane_bytes)
        try:
            with os.fdopen(file, "wb", buffering=0) as out:
                self._raw = RawSource(
                    RawPlanes(
                        shape,
                        self.dtype,
                        (self._temporary,),
                        np.zeros(shape[0], np.int64),
                        plane_bytes * np.arange(shape[0], dtype=np.int64),
                    ),
                    ReadOptions(threads=threads),
                    path=self._temporary,
                    format="scratch",
                    voxel_size_um=None,
                )
                if os.name == "posix":
                    self._temporary.unlink()
                try:
                    _copy(source, begin, end, out, cancel)
                except BaseException:
                    self._raw.close()
                    raise
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        self.memory_bytes = self._raw.memory_bytes

    def amplification(self, box_shape: tuple[int, int, int]) -> float:
        """1.0: every voxel can be reached alone."""
        return 1.0

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Source.read`; boxes outside the planes held here are an error."""
        out = self._output(box, out)
        begin, end = self._planes
        if box.voxels and not begin <= box.start[0] < box.stop[0] <= end:
            raise SettingsError(
                f"box {box} is not inside the planes {begin} to {end} of this scratch "
                "file"
            )
        return self._raw.read(box.shift((-begin, 0, 0)), out) if box.voxels else out

    def fingerprint(self) -> str:
        """That of the source the planes came from."""
        return self._fingerprint

    def close(self) -> None:
        """Delete the file."""
        self._raw.close()
        self._temporary.unlink(missing_ok=True)


def _reserve(folder: Path, size: int) -> tuple[int, Path]:
    """A temporary file of that size, which the disk has room for."""
    try:
        free = shutil.disk_usage(folder).free
        if free < size:
            raise OutputError(
                f"a scratch file of {size / 2**30:.1f} GB does not fit into {folder}, "
                f"which has {free / 2**30:.1f} GB free: make room, or raise the "
                "memory cap"
            )
        file, name = tempfile.mkstemp(".scratch", ".neurodeploy-", folder)
    except OSError as error:
        raise OutputError(
            f"a scratch file cannot be made in {folder}: {error.strerror or error}"
        ) from error
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file, 0, size)
        else:
            os.truncate(file, size)
    except OSError as error:
        os.close(file)
        Path(name).unlink(missing_ok=True)
        raise OutputError(
            f"a scratch file of {size / 2**30:.1f} GB cannot be made in {folder}: "
            f"{error.strerror or error}"
        ) from error
    return file, Path(name)


def _copy(
    source: Source, begin: int, end: int, out: Any, cancel: threading.Event | None
) -> None:
    _, rows, columns = source.shape
    plane_bytes = rows * columns * source.dtype.itemsize
    depth = source.chunk[0]
    group = max(1, _GROUP_BYTES // plane_bytes // depth) * depth
    buffer = np.empty((min(group + depth, end - begin), rows, columns), source.dtype)
    z = begin
    while z < end:
        if cancel is not None and cancel.is_set():
            raise CancelledError("stopped by the caller")
        stop = min(end, (z // depth) * depth + group)
        part = buffer[: stop - z]
        read_patiently(source, Box((z, 0, 0), (stop, rows, columns)), part)
        data = part.reshape(-1).view(np.uint8).data
        try:
            while len(data):
                data = data[out.write(data) :]
        except OSError as error:
            raise WriteError(
                f"planes {z} to {stop - 1} cannot be written to the scratch file: "
                f"{error.strerror or error}"
            ) from error
        z = stop
