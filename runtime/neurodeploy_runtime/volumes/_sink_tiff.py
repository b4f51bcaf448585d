"""TIFF: a preallocated, uncompressed stack that Fiji opens.

Up to 3.9 GB it is a classic TIFF with ImageJ's description, which Fiji opens with its
voxel size and without a plugin; above, where a classic TIFF ends, a BigTIFF with
OME-XML, which Fiji opens through Bio-Formats. Every plane has its own directory, so
that any TIFF library sees all planes, and the planes lie in a row, so that any can be
mapped. The provenance is known only at the end: the header keeps room for it, in
ImageJ's `Info` (Image > Show Info) or in an OME comment.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast
from xml.sax.saxutils import escape

import tifffile

from neurodeploy_runtime._errors import ResumeError, WriteError
from neurodeploy_runtime.volumes._sink import SinkSpec
from neurodeploy_runtime.volumes._sink_flat import FlatSink

# Leaves a classic TIFF, of 32-bit offsets, room for the directories of its planes.
CLASSIC_LIMIT_BYTES = 3_900_000_000
_RESERVED = 32768
_MARK = "neurodeploy: "

_OME = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:schemaLocation="http://www.openmicroscopy.org/Schemas/OME/2016-06 '
    'http://www.openmicroscopy.org/Schemas/OME/2016-06/ome.xsd" '
    'Creator="neurodeploy"><Image ID="Image:0" Name="volume">'
    '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="{type}" SizeX="{x}" '
    'SizeY="{y}" SizeZ="{z}" SizeC="1" SizeT="1" BigEndian="{big}"{size}>'
    '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
    '<TiffData IFD="0" PlaneCount="{z}"/></Pixels>'
    '<AnnotationRef ID="Annotation:0"/></Image><StructuredAnnotations>'
    '<CommentAnnotation ID="Annotation:0" Namespace="neurodeploy">'
    "<Value>{provenance}</Value></CommentAnnotation></StructuredAnnotations></OME>"
)


class TiffSink(FlatSink):
    """A TIFF stack; classic with ImageJ's metadata, or BigTIFF with OME-XML."""

    kind = "tiff"

    @classmethod
    def bytes_needed(cls, spec: SinkSpec) -> int:
        """The voxels, a directory for every plane, the checksums."""
        return spec.bytes + 512 * spec.shape[0] + (1 << 20)

    @classmethod
    def _lay_out(cls, path: Path, spec: SinkSpec) -> tuple[int, int]:
        big = spec.bytes > CLASSIC_LIMIT_BYTES
        nz, ny, nx = spec.shape
        with tifffile.TiffWriter(path, bigtiff=big, imagej=not big, ome=False) as file:
            placed = file.write(
                None,
                # T, Z, C, Y, X, S: of three extents, tifffile takes a last one of 1
                # for samples. It cannot be asked so for a TIFF that is not ImageJ's.
                shape=(nz, ny, nx) if big else (1, nz, 1, ny, nx, 1),
                dtype=spec.dtype,
                photometric="minisblack",
                software="neurodeploy",
                returnoffset=True,
                **(_ome_tags(spec) if big else _imagej_tags(spec)),
            )
        return int(cast(Any, placed)[0]), path.stat().st_size

    @classmethod
    def _data_offset(cls, path: Path, spec: SinkSpec) -> int:
        wanted = (spec.shape[0], spec.shape[1:], spec.dtype)
        try:
            with tifffile.TiffFile(path) as file:
                page = file.pages.first
                found = (len(file.pages), page.shape, page.dtype)
                data_at = int(page.dataoffsets[0])
        except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
            raise ResumeError(
                f"{path} cannot be continued: it is no whole TIFF ({error}); "
                "start again"
            ) from error
        if found != wanted:
            raise ResumeError(
                f"{path} cannot be continued: its planes, shape and dtype are "
                f"{found}, not {wanted}; start again"
            )
        return data_at

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Write the provenance into the room that the header keeps for it."""
        head = bytearray(self._data_at)
        self._file.read_at(memoryview(head), 0)
        imagej = self.spec.bytes <= CLASSIC_LIMIT_BYTES
        # ImageJ keeps its Info as UTF-16, of the file's byte order.
        order = "le" if sys.byteorder == "little" else "be"
        encoding = f"utf-16-{order}" if imagej else "utf-8"
        mark = _MARK.encode(encoding)
        at = head.find(mark)
        if at < 0:
            raise WriteError(
                f"{self.path} has no room for its provenance: its header was "
                "changed by another program; write it again"
            )
        text = _fitting(metadata, xml=not imagej).ljust(_RESERVED)
        self._file.write_at(memoryview(text.encode(encoding)), at + len(mark))
        self._file.sync()


def _imagej_tags(spec: SinkSpec) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "TZCYXS", "Info": _MARK + " " * _RESERVED}
    if spec.voxel_size_um is None:
        return {"metadata": metadata}
    z, y, x = spec.voxel_size_um
    metadata |= {"spacing": z, "unit": "um"}
    return {"metadata": metadata, "resolution": (1 / x, 1 / y)}


def _ome_tags(spec: SinkSpec) -> dict[str, Any]:
    nz, ny, nx = spec.shape
    size = ""
    tags: dict[str, Any] = {"metadata": None}
    if spec.voxel_size_um is not None:
        z, y, x = spec.voxel_size_um
        # The unit of PhysicalSize is µm where none is named.
        size = f' PhysicalSizeX="{x!r}" PhysicalSizeY="{y!r}" PhysicalSizeZ="{z!r}"'
        tags |= {"resolution": (1e4 / x, 1e4 / y), "resolutionunit": "CENTIMETER"}
    tags["description"] = _OME.format(
        type={"float32": "float"}.get(spec.dtype.name, spec.dtype.name),
        x=nx,
        y=ny,
        z=nz,
        big=str(sys.byteorder == "big").lower(),
        size=size,
        provenance=_MARK + " " * _RESERVED,
    )
    return tags


def _fitting(metadata: Mapping[str, Any], *, xml: bool) -> str:
    """The provenance as ASCII JSON that fits; it names the entries that do not."""
    kept = dict(metadata)
    left_out: list[str] = []
    while True:
        named = kept | ({"left_out_too_long": left_out} if left_out else {})
        text = json.dumps(named)
        text = escape(text) if xml else text
        if len(text) <= _RESERVED:
            return text
        longest = max(kept, key=lambda key: len(json.dumps(kept[key])))
        left_out.append(longest)
        del kept[longest]
