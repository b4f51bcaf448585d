"""Stacks on a disk that another program is still writing."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes import ReadOptions, Source, open_volume
from neurodeploy_runtime.volumes._open import STORE_MARKS

#: Layers without any file behind which no later one is looked for, until the end.
AHEAD = 64
#: A layer that lacks files is waited for so many times as long as one that is whole.
ABSENT = 10
#: How often a plane that cannot be read is tried again.
PATIENCE = 3

Seen = tuple[tuple[str, int, int], ...]


class Growing(ABC):
    """A stack of which planes [0, `whole`) are complete; `look` again and again.

    Attributes
    ----------
    whole
        Planes that are complete on the disk and will not change.
    there
        Planes of which something is there.
    declared
        How deep the stack says it will be; None where it does not.
    lacks
        What has been waited for, though later planes are there; empty: nothing.
    """

    plane_shape: tuple[int, int]
    dtype: np.dtype[Any]
    voxel_size_um: tuple[float, float, float] | None = None

    def __init__(self, path: Path, settle_s: float) -> None:
        self.path = path
        self.whole = 0
        self.there = 0
        self.declared: int | None = None
        self.lacks = ""
        self._settle_s = settle_s
        self._changes: dict[str, tuple[object, float]] = {}
        self.news_at = time.monotonic()

    @abstractmethod
    def look(self) -> None:
        """Look at the disk, and update what is there."""

    @abstractmethod
    def end(self) -> None:
        """Nothing more comes: take what is there as whole."""

    @abstractmethod
    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Planes [start, stop), all whole."""

    @property
    def quiet_s(self) -> float:
        """Seconds since something was new."""
        return time.monotonic() - self.news_at

    def _settled(self, name: str, state: object, times: int = 1) -> bool:
        """Whether this is as it was `times` × `settle_s` ago, by our own clock."""
        now = time.monotonic()
        known = self._changes.get(name)
        if known is None or known[0] != state:
            self._changes[name] = (state, now)
            self.news_at = now
            return self._settle_s == 0
        return now - known[1] >= self._settle_s * times


def is_store(path: Path) -> bool:
    """Whether a folder is a Zarr, and no folder of planes."""
    return any((path / mark).is_file() for mark in STORE_MARKS)


def _in_order(files: list[Path], folder: Path) -> list[Path]:
    # Not above: tifffile is heavy, and importing this package is not.
    from neurodeploy_runtime.volumes._tiff_folder import planes_in_order

    return planes_in_order(files, folder)


class GrowingFolder(Growing):
    """A folder of TIFF planes, one file each.

    A plane is whole when a later one is there, or its file has not changed for a
    while. Two planes say what the step of their numbers is, so it begins with three.
    """

    def __init__(self, path: Path, settle_s: float, options: ReadOptions) -> None:
        super().__init__(path, settle_s)
        options.refuse("a folder of planes", "dataset", "level", "channel", "time")
        if options.axes not in (None, "zyx"):
            raise SettingsError(
                f"a growing folder of planes is followed along z, not with axes "
                f"{options.axes!r}: leave them out"
            )
        self._files: list[Path] = []
        self._first: Path | None = None
        self._lacks_from = inf

    def look(self) -> None:
        """See :meth:`Growing.look`."""
        files = [
            Path(entry.path)
            for entry in os.scandir(self.path)
            if entry.name.lower().endswith((".tif", ".tiff"))
            and not entry.name.startswith(".")
            and entry.is_file()
        ]
        self.there = len(files)
        state = _states(files[-1:]), len(files)
        quiet = self._settled("", state)
        if not files or (len(files) < 3 and not quiet):
            return
        try:
            ordered = _in_order(files, self.path)
        except InputError as error:
            # A plane may be written before the one that lies above it.
            now = time.monotonic()
            self._lacks_from = min(self._lacks_from, now)
            if now - self._lacks_from >= ABSENT * self._settle_s:
                self.lacks = str(error)
            return
        self._lacks_from, self.lacks = inf, ""
        if ordered[: self.whole] != self._files[: self.whole]:
            raise InputError(
                f"{self.path} has got a plane before {self._files[self.whole - 1].name}"
                ", which has been segmented already: write planes in order"
            )
        self._files = ordered
        last = ordered[-1]
        settled = self._settled(last.name, _states([last]))
        self._take(len(ordered) if settled else len(ordered) - 1)

    def end(self) -> None:
        """See :meth:`Growing.end`; an InputError where planes are missing."""
        files = [
            p for p in self.path.iterdir() if p.suffix.lower() in (".tif", ".tiff")
        ]
        self._files = _in_order([p for p in files if p.name[0] != "."], self.path)
        self._take(len(self._files))

    def _take(self, whole: int) -> None:
        if whole > self.whole and self._first is None:
            first = self._files[0]
            with self._plane(first) as source:
                self.plane_shape = (source.shape[1], source.shape[2])
                self.dtype = source.dtype
            self._first = first
        self.whole = max(self.whole, whole)

    def _plane(self, path: Path) -> Source:
        """Open a plane; one that cannot be read may be on its way to the disk."""
        for _ in range(PATIENCE):
            try:
                return open_volume(path, axes="zyx")
            except InputError:
                time.sleep(self._settle_s)
        return open_volume(path, axes="zyx")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Growing.read`."""
        out = np.empty((stop - start, *self.plane_shape), self.dtype)
        for plane, path in zip(out, self._files[start:stop], strict=True):
            with self._plane(path) as source:
                if (source.shape, source.dtype) != ((1, *self.plane_shape), self.dtype):
                    raise InputError(
                        f"{path} has {source.shape} {source.dtype.name} voxels, "
                        f"{self._first} has {(1, *self.plane_shape)} {self.dtype.name}"
                    )
                source.read(Box.whole(source.shape), plane[None])
        return out


class GrowingZarr(Growing):
    """A Zarr array (v2, v3, sharded, OME) that grows along z, on a local disk.

    A layer of chunks is whole when a later layer has begun, and its files have not
    changed for a while; the last one, when all its files are there. The array may have
    its whole depth from the start, or be made longer.
    """

    def __init__(self, path: Path, settle_s: float, options: ReadOptions) -> None:
        super().__init__(path, settle_s)
        self._options = options
        self._source: Source | None = None
        #: The files of a layer that was taken before the array was made longer.
        self._partial: Seen = ()
        self._open()

    def _open(self) -> None:
        from neurodeploy_runtime.volumes._axes import layout_of
        from neurodeploy_runtime.volumes._tensorstore import (
            TensorStoreSource,
            _find,
            _Store,
        )

        if self._source is not None:
            self._source.close()
        store = _Store(self.path, self._options)
        found = _find(store, self._options)
        layout = layout_of(
            found.place.axes, found.array.shape, self._options, found.where
        )
        self._source = TensorStoreSource(self.path, store, found, layout, self._options)
        self.plane_shape = (self._source.shape[1], self._source.shape[2])
        self.dtype = self._source.dtype
        self.voxel_size_um = self._source.voxel_size_um
        depth = self._source.shape[0]
        if self.declared is not None and depth < self.declared:
            raise InputError(
                f"{self.path} has become shorter: {depth} planes after {self.declared}"
            )
        self.declared = depth
        write = found.array.chunk_layout.write_chunk.shape
        self._z_chunk = int(write[layout.zyx[0]])
        self._folder = self.path / found.place.path
        self._keys = _Keys.of(found.array, write, layout)

    @property
    def _layers(self) -> int:
        return -(-(self.declared or 0) // self._z_chunk)

    def look(self) -> None:
        """See :meth:`Growing.look`."""
        marks = ("zarr.json", ".zarray")
        if not self._settled("", _states(self._folder / name for name in marks)):
            self._open()
        layers = self._scan(self.whole // self._z_chunk, AHEAD)
        begun = max((k for k, (files, _) in layers.items() if files), default=None)
        if begun is None:
            return
        self.there = min((begun + 1) * self._z_chunk, self.declared or 0)
        before = self.whole
        settled_so_far = True
        for layer, (files, every) in layers.items():
            if layer > begun:
                break
            later = layer < begun
            whole = len(files) == every
            # Chunks of zeros may not be stored at all; but one that is written out
            # of order is not there yet, either.
            # An array may be made longer within a layer, before the planes come: files
            # that were taken for fewer planes do not hold them yet.
            shorter = self._is_shorter(layer, files)
            patience = 1 if whole and not shorter else ABSENT
            settled = self._settled(str(layer), (files, later), patience)
            last = layer + 1 == self._layers and whole and not shorter
            # The clock of every layer runs, behind one that is not settled too.
            settled_so_far &= settled and (later or last)
            if settled_so_far:
                self.whole = min((layer + 1) * self._z_chunk, self.declared or 0)
                self._partial = files if self.whole % self._z_chunk else ()
                self._changes.pop(str(layer))
        if self.whole > before:
            # What was looked at before may have been kept, as empty.
            self._open()

    def _is_shorter(self, layer: int, files: Seen) -> bool:
        """Whether this layer was taken when the array ended in it, and is as it was."""
        taken = bool(self._partial) and layer == self.whole // self._z_chunk
        return taken and files == self._partial

    def _scan(self, first: int, ahead: int) -> dict[int, tuple[Seen, int]]:
        """The files of layers from `first` on, until `ahead` in a row have none."""
        layers: dict[int, tuple[Seen, int]] = {}
        empty = 0
        for layer in range(first, self._layers):
            files = [self._folder / key for key in self._keys.of_layer(layer)]
            found = _states(files)
            layers[layer] = found, len(files)
            empty = 0 if found else empty + 1
            if empty == ahead:
                break
        return layers

    def end(self) -> None:
        """See :meth:`Growing.end`."""
        layers = self._scan(self.whole // self._z_chunk, self._layers + 1)
        begun = max((k for k, (files, _) in layers.items() if files), default=None)
        if begun is not None and not self._is_shorter(begun, layers[begun][0]):
            self.there = min((begun + 1) * self._z_chunk, self.declared or 0)
            self.whole = max(self.whole, self.there)
        self._open()

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Growing.read`."""
        assert self._source is not None
        return self._source.read(Box((start, 0, 0), (stop, *self.plane_shape)))


class _Keys:
    """The names of the chunk files that hold a layer of a volume."""

    def __init__(
        self, prefix: str, separator: str, z_axis: int, ranges: list[range]
    ) -> None:
        self._prefix = prefix
        self._separator = separator
        self._z_axis = z_axis
        self._ranges = ranges

    @classmethod
    def of(cls, array: Any, write: tuple[int, ...], layout: Any) -> _Keys:
        """From the array's own metadata: Zarr v2 or v3."""
        metadata = array.spec().to_json().get("metadata", {})
        encoding = metadata.get("chunk_key_encoding")
        if encoding is not None:
            default = encoding["name"] == "default"
            separator = encoding.get("configuration", {}).get(
                "separator", "/" if default else "."
            )
            prefix = f"c{separator}" if default else ""
        else:
            separator = metadata.get("dimension_separator", ".")
            prefix = ""
        ranges = []
        for axis, (extent, chunk) in enumerate(zip(array.shape, write, strict=True)):
            if axis in layout.zyx:
                ranges.append(range(-(-extent // chunk)))
            else:
                at = layout.index[axis] // chunk
                ranges.append(range(at, at + 1))
        return cls(prefix, separator, layout.zyx[0], ranges)

    def of_layer(self, layer: int) -> list[str]:
        """All keys of a layer of chunks along z."""
        ranges = list(self._ranges)
        ranges[self._z_axis] = range(layer, layer + 1)
        return [
            self._prefix + self._separator.join(str(i) for i in index)
            for index in product(*ranges)
        ]


def _states(files: Iterable[Path]) -> Seen:
    """Name, bytes and time of those files that are there."""
    seen = []
    for file in files:
        try:
            stat = file.stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        seen.append((file.name, stat.st_size, stat.st_mtime_ns))
    return tuple(seen)
