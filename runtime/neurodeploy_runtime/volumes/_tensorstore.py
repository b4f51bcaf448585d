"""Zarr v2 and v3, OME-Zarr, N5 and Neuroglancer precomputed, local or on a server.

One adapter, because one library reads them all: https://google.github.io/tensorstore.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import tensorstore as ts
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, ReadError, said_by
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._axes import Layout, layout_of, pick
from neurodeploy_runtime.volumes._base import ReadOptions, Source, checked_dtype
from neurodeploy_runtime.volumes._store_metadata import (
    ArrayPlace,
    n5_place,
    named_axes,
    ome_levels,
    precomputed_sizes,
)
from neurodeploy_runtime.volumes._voxel_size import VoxelSize

#: A server that refuses is given up after some seconds, not after minutes.
_RETRIES = {"max_retries": 5, "initial_delay": "500ms", "max_delay": "4s"}

#: A server that has sent next to nothing for so long is asked again.
_SILENT_S = 20

#: Names that an error lists at most.
_LISTED = 12


def open_(path: Path | str, options: ReadOptions) -> Source:
    """Open a store, the image in it, and the level, channel and time of that."""
    store = _Store(path, options)
    found = _find(store, options)
    layout = layout_of(found.place.axes, found.array.shape, options, found.where)
    return TensorStoreSource(path, store, found, layout, options)


def _context(cache_bytes: int, threads: int) -> Any:
    # The library takes it from there alone, when it first asks a server.
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENT_S))
    return ts.Context(
        {
            "cache_pool": {"total_bytes_limit": cache_bytes},
            "data_copy_concurrency": {"limit": threads},
            # Waiting for a disk costs no core; a server takes more at a time, by its
            # own limit.
            "file_io_concurrency": {"limit": max(4, threads)},
            "http_request_retries": _RETRIES,
            "s3_request_retries": _RETRIES,
            "gcs_request_retries": _RETRIES,
        }
    )


class _Store:
    """A folder of keys, local or on a server."""

    def __init__(self, path: Path | str, options: ReadOptions) -> None:
        address = os.fspath(path)
        self.where = address.rstrip("/")
        self.local = Path(address).absolute() if isinstance(path, Path) else None
        if address.startswith("file://"):
            self.local = Path(address.removeprefix("file://"))
        self.context = _context(options.cache_bytes, options.threads)
        self._read_json: dict[str, Any] = {}
        #: What the server said where it let nobody read; None where it never did.
        self.denied: str | None = None

    def kvstore(self, key: str = "") -> Any:
        """The specification of a folder in the store, for TensorStore."""
        end = f"{key.strip('/')}/" if key.strip("/") else ""
        if self.local is not None:
            return {"driver": "file", "path": f"{self.local}/{end}"}
        return f"{self.where}/{end}"

    def json(self, key: str) -> Mapping[str, Any] | None:
        """A JSON object of the store; None where there is none of that name."""
        if key not in self._read_json:
            self._read_json[key] = self._fetch(key)
        found: Mapping[str, Any] | None = self._read_json[key]
        return found

    def _fetch(self, key: str) -> Mapping[str, Any] | None:
        folder, _, name = key.rpartition("/")
        try:
            kvstore = ts.KvStore.open(self.kvstore(folder), context=self.context)
            answer = kvstore.result().read(name).result()
        except (ValueError, OSError) as error:
            said = _sentence(error)
            if self.local is None and said.startswith("PERMISSION_DENIED"):
                # S3 says so of a missing key to who may not list the bucket.
                self.denied = said
                return None
            raise InputError(f"{self.where} cannot be read: {said}") from error
        if answer.state != "value":
            return None
        try:
            content = json.loads(answer.value)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{self.where} is damaged: {key} is no JSON ({error})"
            ) from error
        if not isinstance(content, Mapping):
            raise InputError(f"{self.where} is damaged: {key} is no JSON object")
        return content

    @property
    def documents(self) -> str:
        """All metadata that was read, as one text."""
        return json.dumps(self._read_json, sort_keys=True)

    def open(self, driver: str, key: str, **more: Any) -> Any:
        """An array of the store."""
        spec = {
            "driver": driver,
            "kvstore": self.kvstore(key),
            # The input does not change while it is read; its fingerprint sees to that.
            "recheck_cached_data": "open",
            "recheck_cached_metadata": "open",
            **more,
        }
        try:
            return ts.open(spec, open=True, read=True, context=self.context).result()
        except (ValueError, OSError, NotImplementedError) as error:
            name = f"{self.where}/{key}".rstrip("/")
            raise InputError(f"{name} cannot be opened: {_sentence(error)}") from error

    def children(self) -> list[str]:
        """Folders at the root of a local store, for an error to list."""
        if self.local is None or not self.local.is_dir():
            return []
        with os.scandir(self.local) as entries:
            return sorted(e.name for e in entries if e.is_dir())[:_LISTED]


@dataclass(frozen=True)
class _Found:
    """An array that was opened, and what the store says of it."""

    array: Any
    place: ArrayPlace
    format: str
    where: str


def _find(store: _Store, options: ReadOptions) -> _Found:
    key = (options.dataset or "").strip("/")
    where = f"{store.where}/{key}".rstrip("/")
    prefix = f"{key}/" if key else ""
    node = store.json(f"{prefix}zarr.json")
    if node is not None:
        return _zarr3(store, key, node, options, where)
    if any(store.json(f"{prefix}{n}") is not None for n in (".zarray", ".zattrs")):
        return _zarr2(store, key, options, where)
    info = store.json(f"{prefix}info")
    if info is not None:
        return _precomputed(store, key, info, options, where)
    attributes = store.json(f"{prefix}attributes.json")
    if attributes is not None:
        return _n5(store, key, attributes, options, where)
    if store.json(f"{prefix}.zgroup") is not None:
        raise _no_image(store, where)
    if store.denied is not None:
        raise InputError(
            f"{where} cannot be read: the server says {store.denied}, as it may of "
            "what is not there; look at the address, and at who may read it"
        )
    if options.dataset:
        raise InputError(f"{store.where} has no array {key!r}" + _listed(store))
    raise InputError(
        f"{where} is neither Zarr, N5 nor precomputed: it has no zarr.json, .zarray, "
        ".zattrs, attributes.json or info" + _listed(store)
    )


def _zarr3(
    store: _Store, key: str, node: Mapping[str, Any], options: ReadOptions, where: str
) -> _Found:
    if node.get("node_type") == "array":
        pick("level", 1, options, where)
        array = store.open("zarr3", key)
        axes = named_axes(node.get("dimension_names"), array.rank)
        return _Found(array, ArrayPlace(key, axes, None), "Zarr v3", where)
    attributes = _object(node.get("attributes"))
    ome = _object(attributes.get("ome"))
    multiscales = ome.get("multiscales") or attributes.get("multiscales")
    if not multiscales:
        raise _no_image(store, where)
    return _level("zarr3", store, key, multiscales, options, where, ome.get("version"))


def _object(value: Any) -> Mapping[str, Any]:
    """A JSON object that may be absent; of anything else, nothing is known."""
    return value if isinstance(value, Mapping) else {}


def _zarr2(store: _Store, key: str, options: ReadOptions, where: str) -> _Found:
    prefix = f"{key}/" if key else ""
    attributes = store.json(f"{prefix}.zattrs") or {}
    if store.json(f"{prefix}.zarray") is not None:
        pick("level", 1, options, where)
        array = store.open("zarr", key)
        axes = named_axes(attributes.get("_ARRAY_DIMENSIONS"), array.rank)
        return _Found(array, ArrayPlace(key, axes, None), "Zarr v2", where)
    multiscales = attributes.get("multiscales")
    if not multiscales:
        raise _no_image(store, where)
    return _level("zarr", store, key, multiscales, options, where, None)


def _level(
    driver: str,
    store: _Store,
    key: str,
    multiscales: Any,
    options: ReadOptions,
    where: str,
    version: str | None,
) -> _Found:
    places = ome_levels(multiscales, where)
    number = pick("level", len(places), options, where)
    place = places[number]
    folder = "/".join(part for part in (key, place.path) if part)
    version = version or multiscales[0].get("version")
    name = f"OME-Zarr {version or ''}".strip()
    array = store.open(driver, folder)
    if array.rank != len(place.axes):
        raise InputError(
            f"{where} is damaged: its metadata names {len(place.axes)} axes and its "
            f"array {folder} has {array.rank}"
        )
    # The metadata names the level from the image; a fingerprint, from the root.
    place = replace(place, path=folder)
    return _Found(array, place, f"{name}, level {number}", where)


def _n5(
    store: _Store,
    key: str,
    attributes: Mapping[str, Any],
    options: ReadOptions,
    where: str,
) -> _Found:
    folder = key
    parents: list[Mapping[str, Any]] = []
    if "dimensions" not in attributes:
        # A group of levels, as BigStitcher and n5-viewer write them: s0, s1, …
        levels = 0
        prefix = f"{key}/" if key else ""
        while store.json(f"{prefix}s{levels}/attributes.json") is not None:
            levels += 1
        if levels == 0:
            raise _no_image(store, where)
        number = pick("level", levels, options, where)
        folder = f"{prefix}s{number}"
        parents.append(attributes)
        attributes = store.json(f"{folder}/attributes.json") or {}
    else:
        pick("level", 1, options, where)
    for parent in _above(folder):
        name = f"{parent}/attributes.json" if parent else "attributes.json"
        found = store.json(name)
        if found is not None and found not in parents:
            parents.append(found)
    try:
        place = n5_place(attributes, parents, folder)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where} has N5 attributes that describe no array "
            f"({type(error).__name__}: {error})"
        ) from error
    return _Found(store.open("n5", folder), place, "N5", where)


def _above(folder: str) -> Iterator[str]:
    while folder:
        folder = folder.rpartition("/")[0]
        yield folder


def _precomputed(
    store: _Store,
    key: str,
    info: Mapping[str, Any],
    options: ReadOptions,
    where: str,
) -> _Found:
    try:
        sizes = precomputed_sizes(info)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} has an info file that describes no volume ({error})"
        ) from error
    number = pick("level", len(sizes), options, where)
    array = store.open("neuroglancer_precomputed", key, scale_index=number)
    place = ArrayPlace(key, "XYZC", sizes[number])
    return _Found(array, place, f"precomputed, level {number}", where)


def _no_image(store: _Store, where: str) -> InputError:
    return InputError(
        f"{where} is a group and no image: name the image or array in it with "
        "--dataset" + _listed(store)
    )


def _listed(store: _Store) -> str:
    names = store.children()
    return f"; there are {', '.join(names)}" if names else ""


class TensorStoreSource(Source):
    """A volume inside an array that TensorStore reads, through its cache of chunks."""

    def __init__(
        self,
        path: Path | str,
        store: _Store,
        found: _Found,
        layout: Layout,
        options: ReadOptions,
    ) -> None:
        self.path = path
        self.format = found.format
        self.voxel_size_um: VoxelSize | None = found.place.voxel_size_um
        self.shape = layout.shape
        self.dtype = checked_dtype(found.array.dtype.numpy_dtype, found.where)
        self.compressed = True
        self._documents = store.documents
        self._selection = found.place.path, layout.zyx, layout.index
        self._files = _folder_of(store, found)
        self._open: Any = _zyx(found.array, layout)
        chunk = found.array.chunk_layout.read_chunk.shape or layout.stored
        z, y, x = (
            min(int(chunk[axis] or layout.stored[axis]), layout.stored[axis])
            for axis in layout.zyx
        )
        self.chunk = z, y, x
        self._threads = options.threads
        self._plan_memory(options.cache_bytes)

    def keep(self, cache_bytes: int) -> None:
        """See `Source.keep`; what was kept before is forgotten."""
        # The cache belongs to a context, and an array to the context it was opened in.
        context = _context(cache_bytes, self._threads)
        spec = self._array.spec()
        self._open = ts.open(spec, open=True, read=True, context=context).result()
        self._plan_memory(cache_bytes)

    def _plan_memory(self, cache_bytes: int) -> None:
        chunk = prod(self.chunk) * self.dtype.itemsize
        everything = prod(
            -(-n // c) for n, c in zip(self.shape, self.chunk, strict=True)
        )
        # In the hands of each thread a chunk, compressed and decoded.
        working = 4 * max(4, self._threads) * chunk
        self.memory_bytes = min(cache_bytes, everything * chunk) + working

    @property
    def _array(self) -> Any:
        if self._open is None:
            raise ReadError(f"{self.path} is closed: open the volume again")
        return self._open

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Source.read`. A chunk that is not stored reads as the fill value."""
        out = self._output(box, out)
        stored = self._array[box.slices]
        try:
            # TensorStore copies its chunks into the caller's memory, of any strides.
            ts.array(out, copy=False, write=True).write(
                stored.translate_to[0, 0, 0]
            ).result()
        except (ValueError, OSError) as error:
            raise ReadError(
                f"box {box} of {self.path} cannot be read: {_sentence(error)}"
            ) from error
        return out

    def fingerprint(self) -> str:
        """See `Source.fingerprint`; of chunks on a server only the first and last.

        The two chunks are hashed as decoded: where they lie in a file is the
        library's affair.
        """
        digest = hashlib.sha256(
            f"{self.format}|{self.shape}|{self.dtype.name}|{self._documents}|"
            f"{self._selection}".encode()
        )
        if self._files is not None:
            for name, size, mtime in _stats(self._files):
                digest.update(f"|{name},{size},{mtime}".encode())
        whole = Box.whole(self.shape)
        last = tuple(
            (n - 1) // c * c for n, c in zip(self.shape, self.chunk, strict=True)
        )
        for start in ((0, 0, 0), last):
            digest.update(
                self.read(_cell(start, self.chunk).intersect(whole)).tobytes()
            )
        return digest.hexdigest()

    def close(self) -> None:
        """Let go of the store and of its cache."""
        self._open = None


def _zyx(array: Any, layout: Layout) -> Any:
    """The volume as z, y, x from 0, of an array of more axes in another order."""
    index = tuple(
        slice(None) if axis in layout.zyx else at + array.domain.inclusive_min[axis]
        for axis, at in enumerate(layout.index)
    )
    kept = [axis for axis in range(array.rank) if axis in layout.zyx]
    order = [kept.index(axis) for axis in layout.zyx]
    view = array[index].transpose(order)
    # The domain of a precomputed volume begins at its voxel offset.
    return view.translate_to[0, 0, 0]


def _folder_of(store: _Store, found: _Found) -> Path | None:
    if store.local is None:
        return None
    return store.local / found.place.path


def _cell(start: tuple[int, ...], cell: Shape) -> Box:
    z, y, x = start
    return Box((z, y, x), (z + cell[0], y + cell[1], x + cell[2]))


def _stats(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Name, bytes and modification time of every file, in one order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(root, name)
            stat = file.stat()
            yield str(file.relative_to(folder)), stat.st_size, stat.st_mtime_ns


def _sentence(error: Exception) -> str:
    # Behind " [" stand source lines of TensorStore.
    return said_by(error, 2000).partition(" [")[0].rstrip(".")
