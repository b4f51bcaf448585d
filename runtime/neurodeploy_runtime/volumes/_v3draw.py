"""Vaa3D's files: the header that v3draw and v3dpbd share, and v3draw itself.

After `stackutil.cpp` of Vaa3D: magic of 24 bytes, `L` or `B` for the byte order, the
type as int16, the extents x, y, z, c as four int32 (in old files int16), then voxels
with x fastest. Nothing says how large a voxel is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime.volumes._axes import layout_of
from neurodeploy_runtime.volumes._base import ReadOptions, Source
from neurodeploy_runtime.volumes._raw import RawPlanes, RawSource

RAW = b"raw_image_stack_by_hpeng"
RAW_5D = b"raw5image_stack_by_hpeng"
PBD = b"v3d_volume_pkbitdf_encod"

_VOXELS = {1: "u1", 2: "u2", 4: "f4"}


@dataclass(frozen=True)
class Header:
    """What every file of Vaa3D begins with."""

    #: ``<`` or ``>``.
    order: str
    #: 1, 2, 4: bytes of a voxel; 33: a voxel of 3 bits, in a v3dpbd only.
    code: int
    #: Extents in storage order: (t,) c, z, y, x.
    stored: tuple[int, ...]
    #: Bytes of the header, where the voxels begin.
    size: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of a voxel, in the file's byte order."""
        return np.dtype(self.order + _VOXELS[self.code if self.code != 33 else 1])

    @property
    def axes(self) -> str:
        """Names of the axes."""
        return "TCZYX"[-len(self.stored) :]


def read_header(path: Path) -> Header:
    """Read and check it; raises InputError."""
    with path.open("rb") as file:
        head = file.read(47)
    magic = head[:24]
    if len(head) < 35:
        raise InputError(f"{path} is cut short in its header: copy it again")
    order = {b"L": "<", b"B": ">"}.get(head[24:25])
    if order is None:
        raise InputError(
            f"{path} is damaged: its byte order is {head[24:25]!r}, not 'L' or 'B'"
        )
    code = int(np.frombuffer(head, order + "i2", 1, 25)[0])
    allowed = (1, 2, 33) if magic == PBD else (1, 2, 4)
    if code not in allowed:
        raise InputError(
            f"{path} holds voxels of type {code}: this format knows "
            f"{', '.join(map(str, allowed))}"
        )
    axes = 5 if magic == RAW_5D else 4
    header = _header(head, order, code, "i4", axes)
    if magic == RAW and (header is None or not _fits(header, path)):
        old = _header(head, order, code, "i2", axes)
        if old is not None and _fits(old, path):
            return old
    if header is None:
        raise InputError(f"{path} is damaged: its header says no extents above 0")
    return header


def _header(
    head: bytes, order: str, code: int, integer: str, axes: int
) -> Header | None:
    kind = np.dtype(order + integer)
    size = 27 + axes * kind.itemsize
    if len(head) < size:
        return None
    stored = tuple(int(n) for n in np.frombuffer(head, kind, axes, 27)[::-1])
    return Header(order, code, stored, size) if min(stored) > 0 else None


def _fits(header: Header, path: Path) -> bool:
    voxels = prod(header.stored)
    return path.stat().st_size == header.size + voxels * header.dtype.itemsize


def open_(path: Path, options: ReadOptions) -> Source:
    """Open a v3draw (also named raw), of 1, 2 or 4 bytes a voxel."""
    options.refuse("a v3draw file", "dataset", "level", "axes")
    header = read_header(path)
    layout = layout_of(header.axes, header.stored, options, str(path))
    planes = RawPlanes.of_array(layout, header.dtype, path, header.size)
    if not _fits(header, path):
        needed = header.size + prod(header.stored) * header.dtype.itemsize
        raise InputError(
            f"{path} has {path.stat().st_size} bytes where its header of "
            f"{header.stored} voxels says {needed}: copy it again"
        )
    return RawSource(planes, options, path=path, format="v3draw", voxel_size_um=None)
