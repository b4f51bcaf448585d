"""v3draw, the raw stacks of Vaa3D: 43 bytes of header, then the voxels.

Source: Vaa3D's `stackutil.cpp`, `saveStack2Raw`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurodeploy_runtime._errors import OutputError, ResumeError
from neurodeploy_runtime.volumes._sink import SinkSpec
from neurodeploy_runtime.volumes._sink_flat import FlatSink

_KEY = b"raw_image_stack_by_hpeng"
# Key, byte order, bytes per voxel, then the extents x, y, z, channel.
_ORDER = "<" if sys.byteorder == "little" else ">"
_HEADER = struct.Struct(f"{_ORDER}24sch4i")


class V3drawSink(FlatSink):
    """A v3draw file. The format has no place for a voxel size nor for provenance."""

    kind = "v3draw"

    @classmethod
    def bytes_needed(cls, spec: SinkSpec) -> int:
        """Exactly what it takes, and the checksums."""
        return _HEADER.size + spec.bytes + (1 << 20)

    @classmethod
    def _lay_out(cls, path: Path, spec: SinkSpec) -> tuple[int, int]:
        path.write_bytes(_header(spec))
        return _HEADER.size, _HEADER.size + spec.bytes

    @classmethod
    def _data_offset(cls, path: Path, spec: SinkSpec) -> int:
        with path.open("rb") as file:
            if file.read(_HEADER.size) != _header(spec):
                raise ResumeError(
                    f"{path} cannot be continued: its header is not that of a v3draw "
                    f"of {spec.dtype.name} {spec.shape}; start again"
                )
        return _HEADER.size

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Nothing is left to do: the header was whole from the start.

        `metadata` has no place in this format; keep it beside the file.
        """
        self._file.sync()


def _header(spec: SinkSpec) -> bytes:
    nz, ny, nx = spec.shape
    if max(spec.shape) > 0x7FFFFFFF:
        raise OutputError(
            f"v3draw has no room for an extent of {max(spec.shape)} voxels: "
            "write TIFF or OME-Zarr"
        )
    mark = b"L" if sys.byteorder == "little" else b"B"
    return _HEADER.pack(_KEY, mark, spec.dtype.itemsize, nx, ny, nz, 1)
