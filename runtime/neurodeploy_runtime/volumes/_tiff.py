"""TIFF in all its dialects: tifffile finds the planes, the tables read them."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, NeurodeployError, said_by
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime.volumes._axes import Layout, layout_of, pick
from neurodeploy_runtime.volumes._base import ReadOptions, Source, checked_dtype
from neurodeploy_runtime.volumes._chunk_table import ChunkTable, ChunkTableSource
from neurodeploy_runtime.volumes._raw import RawPlanes, RawSource
from neurodeploy_runtime.volumes._voxel_size import (
    VoxelSize,
    imagej_voxel_size,
    ome_voxel_size,
)

# What tifffile logs of a damaged file is raised here as one sentence; without any
# handler Python would print it to stderr as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

#: How many bytes one stored byte can become, at most, by codec.
_RATIOS = {1: 1, 5: 2800, 8: 1100, 32946: 1100, 32773: 64}
_ANY_RATIO = 70_000

_CODECS = {1: "uncompressed", 5: "LZW", 8: "zlib", 32946: "zlib", 50000: "zstd"}

#: Codecs whose planes may each have their own tables.
JPEG = (6, 7, 34892, 33007)

_FLAVOURS = {"imagej": ", ImageJ", "ome": ", OME", "mmstack": ", Micro-Manager"}


def open_(path: Path, options: ReadOptions) -> Source:
    """Open a TIFF of one 3D series, in one file or in the files its OME-XML names."""
    where = str(path)
    try:
        with tifffile.TiffFile(path) as tif:
            found = _find(tif, path, options)
    except NeurodeployError:
        raise
    except Exception as error:  # of any kind: a damaged header leads anywhere
        raise InputError(
            f"{where} cannot be read as a TIFF: {said_by(error)}"
        ) from error
    return found.source(path, options)


@dataclass(frozen=True)
class Segments:
    """The strips or tiles of the planes of a series, as tifffile gives them."""

    files: list[Path]
    #: One row a page, one column a segment.
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    #: Of each page: its file, and its decoder with what that needs besides the bytes.
    file: NDArray[np.int64]
    decoder: list[tuple[Callable[..., Any], dict[str, Any]]]
    #: Whether all pages have the layout of the first, down to the byte order.
    alike: bool


@dataclass(frozen=True)
class FoundVolume:
    """A volume in a TIFF, on the way from its structure to a source."""

    where: str
    format: str
    voxel_size_um: VoxelSize | None
    layout: Layout
    dtype: np.dtype[Any]
    page: PageLayout
    #: Where the data is one run of bytes in one file.
    contiguous: tuple[Path, int] | None
    segments: Segments | None

    def source(self, path: Path, options: ReadOptions) -> Source:
        """Open it."""
        table: RawPlanes | ChunkTable
        if self.contiguous is not None:
            file, offset = self.contiguous
            table = RawPlanes.of_array(self.layout, self.page.stored, file, offset)
        else:
            assert self.segments is not None
            table = self._raw_of_strips(self.segments) or self._chunks(self.segments)
        if isinstance(table, RawPlanes):
            return RawSource(
                table,
                options,
                path=path,
                format=self.format,
                voxel_size_um=self.voxel_size_um,
            )
        return ChunkTableSource(
            table,
            options,
            path=path,
            format=self.format,
            voxel_size_um=self.voxel_size_um,
            compressed=self.page.compression != 1,
        )

    def _of_volume(self, per_plane: NDArray[Any]) -> NDArray[Any]:
        """Of an array whose first axis is every plane stored, those of the volume."""
        stored = per_plane.reshape(*self.layout.stored[:-2], *per_plane.shape[1:])
        index: list[int | slice] = list(self.layout.index[:-2])
        index[self.layout.zyx[0]] = slice(None)
        picked: NDArray[Any] = stored[tuple(index)]
        return picked

    def _raw(
        self, files: list[Path], file: NDArray[Any], offset: NDArray[Any]
    ) -> RawPlanes:
        return RawPlanes(
            self.layout.shape,
            self.page.stored,
            tuple(files),
            self._of_volume(file),
            self._of_volume(offset),
        )

    def _raw_of_strips(self, segments: Segments) -> RawPlanes | None:
        """Planes, where the strips of each follow each other and need no decoding."""
        page = self.page
        if not page.final or page.tiled or not segments.alike:
            return None
        starts = segments.offset.reshape(-1, page.grid[1])
        strip = page.chunk[1] * page.chunk[2] * page.stored.itemsize
        expected = starts[:, :1] + strip * np.arange(page.grid[1])
        if (starts <= 0).any() or (starts != expected).any():
            return None
        file = np.repeat(segments.file, page.planes)
        return self._raw(segments.files, file, starts[:, 0])

    def _chunks(self, segments: Segments) -> ChunkTable:
        page = self.page
        shape, chunk = self.layout.shape, page.chunk
        deep = chunk[0] > 1
        if deep and (len(segments.offset) > 1 or len(self.layout.stored) > 3):
            raise InputError(
                f"{self.where} has tiles of {chunk[0]} planes in several pages or "
                "channels: save it as a stack of planes"
            )
        rows = (-1, *page.grid[1:]) if deep else (-1, page.grid[1], page.grid[2])
        offset, size = (
            array.reshape(rows) for array in (segments.offset, segments.size)
        )
        # Which page a plane belongs to, and its number in there, for the decoder.
        pages = np.repeat(np.arange(len(segments.offset)), page.grid[0] * page.samples)
        within = np.tile(np.arange(page.grid[0] * page.samples), len(segments.offset))
        if not deep:
            offset, size, pages, within = map(
                self._of_volume, (offset, size, pages, within)
            )
        whole_plane = (size == 0).all(axis=(1, 2)) if not page.tiled else None
        if whole_plane is not None and whole_plane.any():
            raise InputError(
                f"{self.where} holds nothing for plane {int(whole_plane.argmax())} of "
                f"{shape[0]}: its writer was interrupted"
            )
        decoders, per_plane = segments.decoder, page.grid[1] * page.grid[2]

        def decode(data: bytearray, place: Shape) -> NDArray[Any]:
            z, y, x = place
            function, more = decoders[pages[z]]
            index = int(within[z]) * per_plane + y * page.grid[2] + x
            voxels, _, _ = function(data, index, **more)
            array: NDArray[Any] = voxels[..., 0]
            return array

        def name(place: Shape) -> str:
            z, y, x = place
            if page.tiled:
                return f"tile {y}, {x} of plane {z * chunk[0]}"
            return f"plane {z}" if page.grid[1] == 1 else f"strip {y} of plane {z}"

        file = np.broadcast_to(segments.file[pages][:, None, None], offset.shape)
        return ChunkTable(
            shape=shape,
            dtype=self.dtype,
            chunk=chunk,
            files=tuple(segments.files),
            file=file,
            offset=offset,
            size=size,
            decode=decode,
            name=name,
            fill=page.fill,
            max_ratio=_RATIOS.get(page.compression, _ANY_RATIO),
        )


@dataclass(frozen=True)
class PageLayout:
    """How every page of a series holds its voxels."""

    #: (separate samples, depth, length, width).
    shaped: tuple[int, int, int, int]
    chunk: Shape
    stored: np.dtype[Any]
    compression: int
    tiled: bool
    #: Whether the bytes are the voxels, but for their order.
    final: bool
    fill: float

    @classmethod
    def of(cls, page: Any) -> PageLayout:
        """From tifffile's page."""
        samples, depth, length, width, _ = page.shaped
        chunk = (
            (page.tiledepth, page.tilelength, page.tilewidth)
            if page.is_tiled
            else (1, min(page.rowsperstrip, length), width)
        )
        if min(samples, depth, length, width, *chunk) < 1:
            raise InputError(
                f"{page.parent.filehandle.path} is empty: it has planes of "
                f"({length}, {width}) voxels in pieces of {chunk}"
            )
        final = (
            page.compression == 1
            and page.predictor == 1
            and page.fillorder == 1
            and page.bitspersample == 8 * page.dtype.itemsize
        )
        return cls(
            (samples, depth, length, width),
            chunk,
            page.dtype.newbyteorder(page.parent.byteorder),
            int(page.compression),
            bool(page.is_tiled),
            final,
            page.nodata,
        )

    @property
    def samples(self) -> int:
        """Planes of separate samples."""
        return self.shaped[0]

    @property
    def planes(self) -> int:
        """Planes in a page."""
        return self.shaped[0] * self.shaped[1]

    @property
    def plane_bytes(self) -> int:
        """Bytes of a plane, decoded."""
        return self.shaped[2] * self.shaped[3] * self.stored.itemsize

    @property
    def grid(self) -> Shape:
        """Segments of one sample of a page."""
        z, y, x = (-(-n // c) for n, c in zip(self.shaped[1:], self.chunk, strict=True))
        return z, y, x


def _find(tif: tifffile.TiffFile, path: Path, options: ReadOptions) -> FoundVolume:
    where = str(path)
    if tif.is_ome and tif.ome_metadata and "BinaryOnly" in tif.ome_metadata:
        master = _attribute(tif.ome_metadata, "BinaryOnly", "MetadataFile")
        if master is not None:
            raise InputError(
                f"{where} is one part of an OME-TIFF set: open {master} instead"
            )
    number, series = _series(tif, where, options)
    level = _pick_level(series, options, where)
    page = level.keyframe
    dtype = grey_dtype(page, where)
    axes, shape = _squeezed(level)
    _check_whole(tif, series, where)
    layout = layout_of(axes, shape, options, where)
    if layout.zyx[1:] != (len(layout.stored) - 2, len(layout.stored) - 1):
        raise InputError(
            f"{where} stores planes that are not (y, x): save it as z planes"
        )
    pages = PageLayout.of(page)
    if layout.shape[1:] != pages.shaped[2:]:
        raise InputError(
            f"{where} says that its planes are of {layout.shape[1:]} voxels, and its "
            f"pages hold {pages.shaped[2:]}: save it with a page for each plane"
        )
    contiguous = segments = None
    if level.dataoffset is not None and pages.final and not pages.tiled:
        contiguous = (_path(page), int(level.dataoffset))
    else:
        segments = _segments(level, pages, where)
        stored = len(segments.offset) * pages.planes
        if stored != prod(layout.stored[:-2]):
            raise InputError(
                f"{where} says {prod(layout.stored[:-2])} planes and holds {stored}: "
                "it was cut short or its writer was interrupted"
            )
    return FoundVolume(
        where=where,
        format=format_of(tif, pages) + _FLAVOURS.get(series.kind, ""),
        voxel_size_um=_voxel_size(tif, series, level, number),
        layout=layout,
        dtype=dtype,
        page=pages,
        contiguous=contiguous,
        segments=segments,
    )


def grey_dtype(page: Any, where: str) -> np.dtype[Any]:
    """The dtype of a page's voxels; raises where they are colours or no numbers."""
    if page.dtype is None:
        raise InputError(
            f"{where} holds voxels of {page.bitspersample} bits that are no number "
            "known here: convert it to uint8, uint16 or float32"
        )
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise InputError(
            f"{where} is a colour image with a palette: save it as a grey stack"
        )
    if page.samplesperpixel > 1 and (
        page.planarconfig == 1 or page.photometric == tifffile.PHOTOMETRIC.RGB
    ):
        raise InputError(
            f"{where} is a colour image ({page.samplesperpixel} samples a voxel): "
            "save one channel of it as a grey stack"
        )
    return checked_dtype(np.dtype(page.dtype), where)


def _series(
    tif: tifffile.TiffFile, where: str, options: ReadOptions
) -> tuple[int, tifffile.TiffPageSeries]:
    series = list(enumerate(tif.series))
    if not series:
        raise InputError(f"{where} holds no image")
    if options.dataset is not None:
        for number, one in series:
            if options.dataset == str(number):
                return number, one
        raise InputError(
            f"{where} has no image {options.dataset!r}: choose dataset 0 to "
            f"{len(series) - 1}"
        )
    full = [s for s in series if not s[1].keyframe.is_reduced] or series
    if len(full) > 1:
        shapes = ", ".join(str(s.shape) for _, s in full[:4])
        raise InputError(
            f"{where} holds {len(full)} images of shapes {shapes}"
            f"{' …' if len(full) > 4 else ''}: choose one with dataset 0 to "
            f"{len(series) - 1}, or save the volume alone"
        )
    return full[0]


def _pick_level(
    series: tifffile.TiffPageSeries, options: ReadOptions, where: str
) -> tifffile.TiffPageSeries:
    """The level of a pyramid that was asked for."""
    return series.levels[pick("level", len(series.levels), options, where)]


def _squeezed(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Axes and extents, without those that a dialect always writes (T, C, S)."""
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    if series.kind == "shaped" and len(shape) == 3:
        return axes, shape  # its writer meant three axes, whatever their extents
    kept = [
        (letter, extent)
        for letter, extent in zip(axes, shape, strict=True)
        if extent != 1 or letter in "YX"
    ]
    return "".join(letter for letter, _ in kept), tuple(n for _, n in kept)


def _check_whole(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, where: str
) -> None:
    """Raise where the file says that it should hold more planes than it does."""
    page = series.keyframe
    held = prod(series.get_shape(squeeze=False)) // max(1, prod(page.shape))
    said = held
    if tif.is_imagej and tif.imagej_metadata:
        metadata = tif.imagej_metadata
        said = prod(int(metadata.get(n, 1)) for n in ("slices", "frames", "channels"))
    elif tif.is_shaped and tif.shaped_metadata:
        said = prod(tif.shaped_metadata[0]["shape"]) // max(1, prod(page.shape))
    elif series.kind != "ome" and not tif.is_ndpi:
        intact, whole = _chain(tif)
        if not whole:
            raise InputError(
                f"{where} is cut short after plane {intact - 1}: the entry of the "
                "next plane lies beyond its end; copy it again"
            )
    if said > held and len(tif.series) == 1:
        size = tif.filehandle.size
        # Of a broken chain of planes a series shows the first alone.
        plane = max(held, _chain(tif)[0] - 1)
        if page.is_final and page.nbytes and page.dataoffsets:
            plane = max(0, size - page.dataoffsets[0]) // page.nbytes
        raise InputError(
            f"{where} is cut short in plane {min(plane, said - 1)} of {said}: it ends "
            f"after {size} bytes; copy it again"
        )


def _chain(tif: tifffile.TiffFile) -> tuple[int, bool]:
    """How many entries of planes are in the file, and whether the last one says end."""
    layout, file, size = tif.tiff, tif.filehandle, tif.filehandle.size
    file.seek(layout.offsetsize)  # classic 4, BigTIFF 8: where the first entry lies
    offset = _unpack(layout.offsetformat, file.read(layout.offsetsize))
    seen: set[int] = set()
    while offset:
        if offset in seen:
            return len(seen), False
        file.seek(min(offset, size))
        count = _unpack(layout.tagnoformat, file.read(layout.tagnosize))
        if count is None or count > 4096:
            return len(seen), False
        file.seek(offset + layout.tagnosize + count * layout.tagsize)
        seen.add(offset)
        offset = _unpack(layout.offsetformat, file.read(layout.offsetsize))
    return len(seen), offset is not None


def _unpack(form: str, data: bytes) -> int | None:
    if len(data) != struct.calcsize(form):
        return None
    return int(struct.unpack(form, data)[0])


def _segments(
    series: tifffile.TiffPageSeries, page: PageLayout, where: str
) -> Segments:
    count = prod(page.grid) * page.samples
    planes = len(series)
    files: dict[Path, int] = {}
    alike, known, layout = True, None, page
    file, offsets, sizes, decoders = [], [], [], []
    for number, frame in enumerate(_pages(series)):
        if frame is None:
            raise InputError(
                f"{where} lacks plane {number} of {planes}: {_missing(series)}"
            )
        key = frame.keyframe
        if key is not known:  # most pages share one
            known, layout = key, PageLayout.of(key)
            alike &= layout == page
        if (
            layout.shaped != page.shaped
            or layout.chunk != page.chunk
            or layout.stored.newbyteorder("=") != page.stored.newbyteorder("=")
        ):
            raise InputError(
                f"{_path(frame)} holds planes of {key.shape} {key.dtype} voxels, "
                f"others of the set {page.shaped[2:]} {page.stored.name}: save them "
                "alike"
            )
        if not (len(frame.dataoffsets) == count == len(frame.databytecounts)):
            raise InputError(
                f"{where} is damaged: plane {number} is in {count} pieces, and it "
                f"lists {len(frame.dataoffsets)} places and "
                f"{len(frame.databytecounts)} sizes"
            )
        more: dict[str, Any] = {}
        if page.compression in JPEG:
            more = {"jpegtables": frame.jpegtables, "jpegheader": key.jpegheader}
        file.append(files.setdefault(_path(frame), len(files)))
        offsets.append(frame.dataoffsets)
        sizes.append(frame.databytecounts)
        decoders.append((key.decode, more))
    return Segments(
        list(files),
        np.asarray(offsets, np.int64),
        np.asarray(sizes, np.int64),
        np.asarray(file, np.int64),
        decoders,
        alike,
    )


def _pages(series: tifffile.TiffPageSeries) -> Iterator[Any]:
    for number in range(len(series)):
        yield series[number]


def _path(page: Any) -> Path:
    return Path(page.parent.filehandle.path)


def _missing(series: tifffile.TiffPageSeries) -> str:
    """Which file of an OME-TIFF set is not beside the others."""
    assert series.parent is not None
    xml = series.parent.ome_metadata or ""
    folder = _path(series.keyframe).parent
    names = set()
    for node in ElementTree.fromstring(xml).iter():
        name = node.attrib.get("FileName")
        if name and not (folder / Path(name).name).exists():
            names.add(Path(name).name)
    if not names:
        return "its OME-XML names no data for it"
    return (
        f"{', '.join(sorted(names)[:3])}{' …' if len(names) > 3 else ''} "
        f"of the OME-TIFF set is missing in {folder}"
    )


def _attribute(xml: str, element: str, attribute: str) -> str | None:
    for node in ElementTree.fromstring(xml).iter():
        if node.tag.rpartition("}")[2] == element:
            return node.attrib.get(attribute)
    return None


def format_of(tif: tifffile.TiffFile, page: PageLayout) -> str:
    """The dialect, for people."""
    codec = _CODECS.get(page.compression)
    if codec is None:
        codec = tifffile.COMPRESSION(page.compression).name.lower()
    pieces = "tiles" if page.tiled else "planes" if page.grid[1] == 1 else "strips"
    return f"{'BigTIFF' if tif.is_bigtiff else 'TIFF'}, {codec} {pieces}"


def _voxel_size(
    tif: tifffile.TiffFile,
    series: tifffile.TiffPageSeries,
    level: tifffile.TiffPageSeries,
    number: int,
) -> VoxelSize | None:
    size: VoxelSize | None = None
    if tif.is_ome and tif.ome_metadata:
        size = ome_voxel_size(tif.ome_metadata, number)
    elif tif.is_imagej and tif.imagej_metadata:
        tags = tif.pages.first.tags
        size = imagej_voxel_size(
            tif.imagej_metadata, (tags.valueof(282), tags.valueof(283))
        )
    if size is None or level is series:
        return size
    full, reduced = dict(_extents(series)), dict(_extents(level))
    z, y, x = (
        um * full.get(axis, 1) / reduced.get(axis, 1)
        for axis, um in zip("ZYX", size, strict=True)
    )
    return z, y, x


def _extents(series: tifffile.TiffPageSeries) -> Iterator[tuple[str, int]]:
    yield from zip(series.axes, series.shape, strict=True)
