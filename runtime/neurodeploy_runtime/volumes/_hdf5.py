"""HDF5 of Imaris, of BigDataViewer, and any array in an HDF5 by its name.

h5py lists where the chunks lie, once; they are read and decoded past it, because the
library holds one lock for all threads (259 against 490 MB/s with two).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, NeurodeployError, said_by
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime.volumes._axes import Layout, layout_of, pick
from neurodeploy_runtime.volumes._base import ReadOptions, Source, checked_dtype
from neurodeploy_runtime.volumes._chunk_table import ChunkTable, ChunkTableSource
from neurodeploy_runtime.volumes._raw import RawPlanes, RawSource
from neurodeploy_runtime.volumes._voxel_size import VoxelSize, micrometres

_SHUFFLE, _CHECKSUM = 2, 3


@dataclass(frozen=True)
class Codec:
    """A filter of HDF5: its name, how it is undone, and how far it can inflate."""

    name: str
    #: Stored bytes and the bytes expected to bytes.
    decode: Callable[[Any, int], Any]
    max_ratio: float


#: By the number under which a filter is registered with the HDF Group.
CODECS = {
    1: Codec("zlib", lambda data, n: imagecodecs.deflate_decode(data, out=n), 1100),
    32000: Codec("LZF", lambda data, n: imagecodecs.lzf_decode(data, out=n), 140),
    32004: Codec("LZ4", lambda data, n: imagecodecs.lz4h5_decode(data, out=n), 260),
    32015: Codec("zstd", lambda data, n: imagecodecs.zstd_decode(data, out=n), 70_000),
}

#: How many arrays an error lists.
_LISTED = 6


@dataclass(frozen=True)
class FoundArray:
    """The array of an HDF5 that holds the volume."""

    data: Any
    layout: Layout
    #: Extents without what Imaris adds to fill its last chunks.
    shape: Shape
    dtype: np.dtype[Any]
    voxel_size_um: VoxelSize | None
    format: str


def open_(path: Path, options: ReadOptions) -> Source:
    """Open an Imaris file, a BigDataViewer HDF5, or the array that `dataset` names.

    In a BigDataViewer file `channel` chooses among the setups, whatever they stand for.
    """
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            found = _find(file, path, options)
            return _source(found, path, options)
    except NeurodeployError:
        raise
    except Exception as error:  # of any kind: a damaged file leads h5py anywhere
        raise InputError(f"{path} cannot be read as HDF5: {said_by(error)}") from error


def _find(file: Any, path: Path, options: ReadOptions) -> FoundArray:
    if options.dataset is not None:
        return _named(file, path, options)
    if "DataSet" in file and "ResolutionLevel 0" in file["DataSet"]:
        return _imaris(file, path, options)
    if "t00000" in file:
        return _bigdataviewer(file, path, options)
    return _named(file, path, options)


def _named(file: Any, path: Path, options: ReadOptions) -> FoundArray:
    options.refuse("a plain HDF5 file", "level")
    name = options.dataset
    if name is None:
        arrays = _arrays(file)
        if len(arrays) != 1:
            raise InputError(
                f"{path} holds {len(arrays) or 'no'} arrays of 3 or more axes"
                + (f" ({', '.join(arrays[:_LISTED])}): " if arrays else ": ")
                + "name one by dataset"
            )
        (name,) = arrays
    data = file.get(name)
    if not isinstance(data, h5py.Dataset):
        raise InputError(
            f"{path} has no array {name!r}: it has {', '.join(_arrays(file)[:_LISTED])}"
        )
    where = f"{path}:{name}"
    dtype = checked_dtype(data.dtype, where)
    layout = layout_of("Q" * (data.ndim - 2) + "YX", data.shape, options, where)
    return FoundArray(data, layout, layout.shape, dtype, None, "HDF5")


def _arrays(file: Any) -> list[str]:
    names: list[str] = []

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.ndim >= 3:
            names.append(name)

    file.visititems(visit)
    return names


def _imaris(file: Any, path: Path, options: ReadOptions) -> FoundArray:
    options.refuse("an Imaris file", "axes")
    where = str(path)
    levels = file["DataSet"]
    level = pick("level", _count(levels, r"ResolutionLevel \d+"), options, where)
    times = levels[f"ResolutionLevel {level}"]
    time = pick("time", _count(times, r"TimePoint \d+"), options, where)
    channels = times[f"TimePoint {time}"]
    channel = pick("channel", _count(channels, r"Channel \d+"), options, where)
    group = channels[f"Channel {channel}"]
    data = group["Data"]
    z, y, x = (
        int(_text(group.attrs.get(f"ImageSize{axis}"), str(extent)))
        for axis, extent in zip("ZYX", data.shape, strict=True)
    )
    if not all(1 <= n <= m for n, m in zip((z, y, x), data.shape, strict=True)):
        raise InputError(
            f"{where} is damaged: it says {(z, y, x)} voxels and stores {data.shape}"
        )
    voxel_size: VoxelSize | None = None
    image = file.get("DataSetInfo/Image")
    if image is not None:
        voxel_size = _imaris_voxel_size(image.attrs, (z, y, x))
    return FoundArray(
        data,
        Layout(data.shape, (0, 1, 2), (0, 0, 0)),
        (z, y, x),
        checked_dtype(data.dtype, where),
        voxel_size,
        "Imaris",
    )


def _imaris_voxel_size(attributes: Any, shape: Shape) -> VoxelSize | None:
    unit = _text(attributes.get("Unit"), "um")
    sizes = []
    for number, extent in zip((2, 1, 0), shape, strict=True):  # 0 is x
        try:
            low = float(_text(attributes.get(f"ExtMin{number}"), ""))
            high = float(_text(attributes.get(f"ExtMax{number}"), ""))
        except ValueError:
            return None
        size = micrometres((high - low) / extent, unit)
        if size is None:
            return None
        sizes.append(size)
    z, y, x = sizes
    return z, y, x


def _text(value: Any, default: str) -> str:
    """An attribute of Imaris: a string stored as an array of single characters."""
    if value is None:
        return default
    if isinstance(value, np.ndarray):
        return b"".join(value.astype("S1").ravel().tolist()).decode("latin-1")
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bigdataviewer(file: Any, path: Path, options: ReadOptions) -> FoundArray:
    options.refuse("a BigDataViewer file", "axes")
    where = str(path)
    time = pick("time", _count(file, r"t\d{5}"), options, where)
    # By number: the names have two digits, and from 100 on three.
    setups = sorted(
        (name for name in file[f"t{time:05d}"] if re.fullmatch(r"s\d+", name)),
        key=lambda name: int(name[1:]),
    )
    setup = setups[pick("channel", len(setups), options, where)]
    levels = file[f"t{time:05d}/{setup}"]
    level = pick("level", _count(levels, r"\d+"), options, where)
    data = levels[f"{level}/cells"]
    dtype = checked_dtype(data.dtype, where)
    if dtype == np.int16:  # Java has no unsigned type: the bits are those of uint16
        dtype = np.dtype(np.uint16)
    factors = (1.0, 1.0, 1.0)
    if f"{setup}/resolutions" in file:
        x, y, z = (float(n) for n in file[f"{setup}/resolutions"][level])
        factors = (z, y, x)
    full = _bigdataviewer_voxel_size(path, int(setup[1:]))
    voxel_size = full and (
        full[0] * factors[0],
        full[1] * factors[1],
        full[2] * factors[2],
    )
    layout = layout_of("ZYX", data.shape, ReadOptions(), where)
    return FoundArray(data, layout, layout.shape, dtype, voxel_size, "BigDataViewer")


def _bigdataviewer_voxel_size(path: Path, setup: int) -> VoxelSize | None:
    """From the XML that lies beside the file, where it does."""
    xml = path.with_suffix(".xml")
    if not xml.is_file():
        return None
    try:
        for view in ElementTree.parse(xml).iter("ViewSetup"):
            size = view.findtext("voxelSize/size")
            if view.findtext("id") == str(setup) and size is not None:
                unit = view.findtext("voxelSize/unit")
                x, y, z = (micrometres(float(n), unit) for n in size.split())
                return None if z is None or y is None or x is None else (z, y, x)
    except (ElementTree.ParseError, ValueError):
        return None
    return None


def _count(group: Any, pattern: str) -> int:
    return sum(1 for name in group if re.fullmatch(pattern, name))


def _source(found: FoundArray, path: Path, options: ReadOptions) -> Source:
    data = found.data
    where = f"{path}:{data.name}"
    if data.is_virtual or data.external:
        raise InputError(
            f"{where} lies in other files: open those, or copy it into one file"
        )
    stored = data.dtype
    if found.dtype == np.uint16:
        stored = np.dtype(np.uint16).newbyteorder(stored.byteorder)
    if data.chunks is None:
        offset = data.id.get_offset()
        if offset is None:
            raise InputError(f"{where} holds no voxels: its writer was interrupted")
        return RawSource(
            RawPlanes.of_array(found.layout, stored, path, int(offset)),
            options,
            path=path,
            format=f"{found.format}, uncompressed",
            voxel_size_um=found.voxel_size_um,
        )
    properties = data.id.get_create_plist()
    filters = [properties.get_filter(i) for i in range(properties.get_nfilters())]
    unknown = [
        f"{name.decode(errors='replace') or 'unnamed'} ({code})"
        for code, _, _, name in filters
        if code not in CODECS and code not in (_SHUFFLE, _CHECKSUM)
    ]
    if unknown:
        raise InputError(
            f"{where} is compressed by the HDF5 filter {', '.join(unknown)}, which is "
            "not read here: rewrite it with gzip, or as OME-Zarr"
        )
    codes = [int(code) for code, _, _, _ in filters]
    table = _table(found, stored, codes, path, where)
    names = [CODECS[code].name for code in codes if code in CODECS]
    return ChunkTableSource(
        table,
        options,
        path=path,
        format=f"{found.format}, {'+'.join(names) or 'uncompressed'} chunks",
        voxel_size_um=found.voxel_size_um,
        compressed=bool(names),
    )


def _table(
    found: FoundArray,
    stored: np.dtype[Any],
    codes: list[int],
    path: Path,
    where: str,
) -> ChunkTable:
    data, layout = found.data, found.layout
    cell: tuple[int, ...] = tuple(int(n) for n in data.chunks)
    z, y, x = (cell[axis] for axis in layout.zyx)
    chunk = (z, y, x)
    grid = tuple(-(-n // c) for n, c in zip(found.shape, chunk, strict=True))
    entries = np.array(_chunks(data.id), np.int64).reshape(-1, data.ndim + 3)
    if prod(grid) > 64 * (len(entries) + 2**20):
        raise InputError(f"{where} is damaged: it has {found.shape} voxels in {chunk}")
    place = entries[:, : data.ndim] // np.array(cell)
    kept = np.ones(len(entries), bool)
    for axis, index in enumerate(layout.index):
        if axis not in layout.zyx:
            kept &= place[:, axis] == index // cell[axis]
    for axis, count in zip(layout.zyx, grid, strict=True):
        kept &= place[:, axis] < count
    at = tuple(place[kept][:, axis] for axis in layout.zyx)
    offset, size, mask = (np.zeros(grid, np.int64) for _ in range(3))
    for array, column in ((offset, 0), (size, 1), (mask, 2)):
        array[at] = entries[kept][:, data.ndim + column]

    inside = tuple(
        slice(None) if axis in layout.zyx else index % cell[axis]
        for axis, index in enumerate(layout.index)
    )
    order = np.argsort(np.argsort(layout.zyx))
    chunk_bytes = prod(cell) * stored.itemsize
    skipped = mask  # bit n of a chunk's mask: its filter n was left out

    def decode(raw: bytearray, place: Shape) -> NDArray[Any]:
        content: Any = raw
        for number, code in reversed(list(enumerate(codes))):
            if int(skipped[place]) >> number & 1:
                continue
            if code == _CHECKSUM:
                content = memoryview(content)[:-4]
            elif code == _SHUFFLE:
                flat = np.frombuffer(content, np.uint8)
                content = flat.reshape(stored.itemsize, -1).T.tobytes()
            else:
                more = 4 if _CHECKSUM in codes[:number] else 0
                content = CODECS[code].decode(content, chunk_bytes + more)
        if len(content) != chunk_bytes:
            raise ValueError(f"it gives {len(content)} bytes in place of {chunk_bytes}")
        voxels = np.frombuffer(content, stored).reshape(cell)[inside]
        # A view would keep the other channels of a chunk in memory with it.
        native: NDArray[Any] = voxels.transpose(order).astype(
            found.dtype, copy=prod(cell) > prod(chunk)
        )
        return native

    fill = 0 if data.fillvalue is None else float(data.fillvalue)
    if fill < 0 and found.dtype == np.uint16:
        fill += 2**16
    return ChunkTable(
        shape=found.shape,
        dtype=found.dtype,
        chunk=chunk,
        files=(path,),
        file=np.broadcast_to(np.int64(0), grid),
        offset=offset,
        size=size,
        decode=decode,
        name=lambda place: f"chunk {place[0]}, {place[1]}, {place[2]}",
        fill=fill,
        max_ratio=prod(CODECS[code].max_ratio for code in codes if code in CODECS),
        decoded_bytes=chunk_bytes,
    )


def _chunks(identifier: Any) -> list[tuple[int, ...]]:
    """Of every stored chunk its first voxel, its byte, its size and its filter mask."""
    found: list[tuple[int, ...]] = []

    def note(info: Any) -> None:
        found.append(
            (*info.chunk_offset, info.byte_offset, info.size, info.filter_mask)
        )

    if hasattr(identifier, "chunk_iter"):
        identifier.chunk_iter(note)
    else:
        for number in itertools.count():
            if number >= identifier.get_num_chunks():
                break
            note(identifier.get_chunk_info(number))
    return found
