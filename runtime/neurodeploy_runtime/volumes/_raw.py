"""Uncompressed planes at offsets of files, read straight into the caller's array."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._axes import Layout
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._chunk_table import fingerprint_of
from neurodeploy_runtime.volumes._files import Files
from neurodeploy_runtime.volumes._workers import Workers

#: One read; it bounds the memory of a read that is not straight into the result.
_PIECE_BYTES = 4 * 2**20

#: Bytes between two pieces of a row that are read and thrown away rather than skipped:
#: a system call costs about as much as copying them.
_GAP_BYTES = 8192


@dataclass(frozen=True)
class RawPlanes:
    """Planes whose rows follow each other, each plane anywhere in some file."""

    shape: Shape
    #: As stored, with its byte order.
    stored: np.dtype[Any]
    files: tuple[Path, ...]
    #: Which file and at which byte each plane begins: one array each, of z.
    file: NDArray[np.integer[Any]]
    offset: NDArray[np.integer[Any]]

    @classmethod
    def of_array(
        cls, layout: Layout, stored: np.dtype[Any], path: Path, offset: int
    ) -> RawPlanes:
        """The volume inside an array that begins at byte `offset`, in C order."""
        *leading, rows, columns = layout.stored
        if layout.zyx[1:] != (len(leading), len(leading) + 1):
            raise InputError(
                f"{path} stores planes that are not (y, x): save it as z planes"
            )
        index: list[int | slice] = list(layout.index[:-2])
        index[layout.zyx[0]] = slice(None)
        # Strides, and not an array of every plane, so that extents a damaged header
        # makes up cost nothing.
        strides = np.cumprod([1, *leading[:0:-1]], dtype=object)[::-1]
        first = sum(
            i * s for i, s in zip(index, strides, strict=True) if isinstance(i, int)
        )
        step = strides[layout.zyx[0]]
        plane_bytes = rows * columns * stored.itemsize
        last = first + step * (layout.shape[0] - 1)
        size = path.stat().st_size
        if offset + (last + 1) * plane_bytes > size:
            held = max(0, size - offset) // max(1, plane_bytes)
            cut = max(0, -(-(held - first) // step)) if held >= first else 0
            raise InputError(
                f"{path} is cut short in plane {cut} of {layout.shape[0]}: it has "
                f"{size} bytes and needs {offset + (last + 1) * plane_bytes}; copy it "
                "again"
            )
        planes = first + step * np.arange(layout.shape[0], dtype=np.int64)
        return cls(
            layout.shape,
            stored,
            (path,),
            np.zeros(layout.shape[0], np.int64),
            offset + planes * plane_bytes,
        )

    @property
    def plane_bytes(self) -> int:
        """Bytes of one plane."""
        return self.shape[1] * self.shape[2] * self.stored.itemsize

    def check(self, sizes: tuple[int, ...], where: str) -> None:
        """Raise InputError where a plane lies outside its file."""
        for z, (file, offset) in enumerate(zip(self.file, self.offset, strict=True)):
            end = int(offset) + self.plane_bytes
            if offset < 0:
                raise InputError(f"{where} is damaged: plane {z} lies before byte 0")
            if end > sizes[file]:
                raise InputError(
                    f"{self.files[file]} is cut short in plane {z} of "
                    f"{self.shape[0]}: it has {sizes[file]} bytes and needs {end} "
                    "for that; copy it again"
                )


class RawSource(Source):
    """A volume of uncompressed planes."""

    def __init__(
        self,
        planes: RawPlanes,
        options: ReadOptions,
        *,
        path: Path,
        format: str,
        voxel_size_um: tuple[float, float, float] | None,
    ) -> None:
        self.shape = planes.shape
        self.dtype = planes.stored.newbyteorder("=")
        self.chunk = (1, 1, planes.shape[2])
        self.compressed = False
        self.voxel_size_um = voxel_size_um
        self.path = path
        self.format = format
        self.memory_bytes = options.threads * max(
            _PIECE_BYTES, self.shape[2] * self.dtype.itemsize
        )
        self._planes = planes
        self._files = Files(planes.files)
        try:
            planes.check(self._files.sizes, str(path))
        except BaseException:
            self._files.close()
            raise
        self._workers = Workers(options.threads, "neurodeploy-read")
        self._local = threading.local()

    def amplification(self, box_shape: Shape) -> float:
        """1.0: every voxel can be reached alone."""
        return 1.0

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Source.read`."""
        out = self._output(box, out)
        if box.voxels == 0:
            return out
        rows = max(1, _PIECE_BYTES // (self.shape[2] * self.dtype.itemsize))
        pieces = Box((0, 0, 0), box.shape).grid((1, rows, box.shape[2]))

        def copy(piece: Box) -> None:
            self._read_rows(piece.shift(box.start), out[piece.slices])

        self._workers.each(copy, pieces)
        return out

    def _read_rows(self, piece: Box, out: NDArray[Any]) -> None:
        """Rows of one plane into an array of the same shape."""
        z, y, x = piece.start
        _, rows, width = piece.shape
        item, pitch = self.dtype.itemsize, self.shape[2]
        file = int(self._planes.file[z])
        start = int(self._planes.offset[z]) + (y * pitch + x) * item
        what = f"plane {z}"
        if (pitch - width) * item <= _GAP_BYTES or pitch <= 4 * width:
            span = (rows - 1) * pitch + width
            straight = width == pitch and out.flags.c_contiguous
            flat = out.reshape(-1) if straight else self._buffer(rows * pitch)
            self._files.read_into(file, start, _bytes(flat[:span]), what)
            if not straight:
                out[0] = flat.reshape(rows, pitch)[:, :width]
        else:
            line = self._buffer(width)
            for row in range(rows):
                self._files.read_into(
                    file, start + row * pitch * item, _bytes(line), what
                )
                out[0, row] = line
        if not self._planes.stored.isnative:
            out.byteswap(inplace=True)

    def _buffer(self, voxels: int) -> NDArray[Any]:
        """Room of this thread, the same at every call: fresh memory costs a fault."""
        buffer: NDArray[Any] | None = getattr(self._local, "buffer", None)
        if buffer is None or len(buffer) < voxels:
            buffer = self._local.buffer = np.empty(voxels, self.dtype)
        return buffer[:voxels]

    def fingerprint(self) -> str:
        """See `Source.fingerprint`."""
        digest = fingerprint_of(self, self._files)
        # Where its planes lie: another channel's lie elsewhere.
        digest.update(self._planes.file.tobytes() + self._planes.offset.tobytes())
        row_bytes = self.shape[2] * self.dtype.itemsize
        for z, y in ((0, 0), (self.shape[0] - 1, self.shape[1] - 1)):
            offset = int(self._planes.offset[z]) + y * row_bytes
            file = int(self._planes.file[z])
            digest.update(self._files.read(file, offset, row_bytes, f"plane {z}"))
        return str(digest.hexdigest())

    def close(self) -> None:
        """See `Source.close`."""
        self._workers.close()
        self._files.close()


def _bytes(flat: NDArray[Any]) -> memoryview:
    return flat.view(np.uint8).data
