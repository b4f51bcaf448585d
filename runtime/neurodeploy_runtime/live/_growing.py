"""Stacks on a disk that another program is still writing."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import product
from math import inf, prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, ReadError, SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes import ReadOptions, Source, open_volume
from neurodeploy_runtime.volumes._open import STORE_MARKS

#: Layers without any file behind which no later one is looked for, until the end.
AHEAD = 64
#: A layer that lacks files is waited for so many times as long as one that is whole.
ABSENT = 10
#: The last planes to which new ones are put in order, and not to all, at least.
KNOWN = 16
#: How often planes that cannot be read are tried again.
PATIENCE = 3

Seen = tuple[tuple[str, int, int], ...]
T = TypeVar("T")


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
    doubtful
        What `end` took though it may have been written in part; empty: nothing.
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
        self.doubtful = ""
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

    def _patiently(self, act: Callable[[], T]) -> T:
        """Read; what cannot be read may be on its way to the disk."""
        for _ in range(PATIENCE):
            try:
                return act()
            except (InputError, ReadError):
                time.sleep(self._settle_s)
        return act()

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
        self._names: set[str] = set()
        self._files: list[Path] = []
        self._first: Path | None = None
        self._disorder = ""
        self._lacks_from = inf

    def look(self) -> None:
        """See :meth:`Growing.look`."""
        names = self._listed()
        self.there = len(names)
        few = _states(self.path / name for name in names) if len(names) < 3 else ()
        quiet = self._settled("", (len(names), few))
        if not names or (len(names) < 3 and not quiet):
            return
        # Thousands of names are put in order when a new one is there, and not whenever
        # somebody looks.
        if names != self._names:
            self._disorder = ""
            try:
                ordered = self._in_order(names)
            except InputError as error:
                self._disorder = str(error)
            else:
                self._go_on_with(ordered)
            self._names = names
        if self._disorder:
            # A plane may be written before the one that lies above it.
            now = time.monotonic()
            self._lacks_from = min(self._lacks_from, now)
            if now - self._lacks_from >= ABSENT * self._settle_s:
                self.lacks = self._disorder
            return
        self._lacks_from, self.lacks = inf, ""
        last = self._files[-1]
        settled = self._settled(last.name, _states([last]))
        self._take(len(self._files) if settled else len(self._files) - 1)

    def end(self) -> None:
        """See :meth:`Growing.end`; an InputError where planes are missing."""
        if names := self._listed():
            self._go_on_with(self._in_order(names))
            self._take(len(self._files))

    def _listed(self) -> set[str]:
        with os.scandir(self.path) as entries:
            return {
                entry.name
                for entry in entries
                if entry.name.lower().endswith((".tif", ".tiff"))
                and not entry.name.startswith(".")
                and entry.is_file()
            }

    def _in_order(self, names: set[str]) -> list[Path]:
        # Not above: tifffile is heavy, and importing this package is not.
        from neurodeploy_runtime.volumes._tiff_folder import planes_in_order

        new = names - self._names
        # As many as say, against all that are new, what the step of the numbers is.
        known = max(KNOWN, 2 * len(new))
        if len(self._files) == len(self._names) > known and self._names <= names:
            last = self._files[-known:]
            tail = planes_in_order([*last, *(self.path / n for n in new)], self.path)
            if tail[:known] == last:
                return [*self._files, *tail[known:]]
        return planes_in_order([self.path / name for name in names], self.path)

    def _go_on_with(self, ordered: list[Path]) -> None:
        if ordered[: self.whole] != self._files[: self.whole]:
            raise InputError(
                f"{self.path} has got a plane before {self._files[self.whole - 1].name}"
                ", which has been segmented already: write planes in order"
            )
        self._files = ordered

    def _take(self, whole: int) -> None:
        if whole > self.whole and self._first is None:
            first = self._files[0]

            def learn() -> None:
                with open_volume(first, axes="zyx") as source:
                    self.plane_shape = (source.shape[1], source.shape[2])
                    self.dtype = source.dtype

            self._patiently(learn)
            self._first = first
        # The clock of the last one runs on: it says whether there is news.
        for file in self._files[max(0, self.whole - 1) : whole - 1]:
            self._changes.pop(file.name, None)
        self.whole = max(self.whole, whole)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Growing.read`."""
        out = np.empty((stop - start, *self.plane_shape), self.dtype)
        for plane, path in zip(out, self._files[start:stop], strict=True):
            self._patiently(partial(self._read, path, plane))
        return out

    def _read(self, path: Path, plane: NDArray[Any]) -> None:
        with open_volume(path, axes="zyx") as source:
            if (source.shape, source.dtype) != ((1, *self.plane_shape), self.dtype):
                raise InputError(
                    f"{path} has {source.shape} {source.dtype.name} voxels, "
                    f"{self._first} has {(1, *self.plane_shape)} {self.dtype.name}"
                )
            source.read(Box.whole(source.shape), plane[None])


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
        #: A layer in which the array ended when its files were seen so: its number,
        #: the depth then, the files.
        self._cut: tuple[int, int, Seen] = -1, 0, ()
        #: Whether the disk holds more than what was opened.
        self._stale = False
        self._marks: Seen = ()
        self._open()

    def _open(self) -> None:
        from neurodeploy_runtime.volumes._axes import layout_of
        from neurodeploy_runtime.volumes._tensorstore import (
            TensorStoreSource,
            _find,
            _Store,
        )

        store = _Store(self.path, self._options)
        found = _find(store, self._options)
        if "Zarr" not in found.format:
            raise SettingsError(
                f"{self.path} is {found.format}: of stores, only a growing Zarr can be "
                "followed; segment it when it is complete"
            )
        layout = layout_of(
            found.place.axes, found.array.shape, self._options, found.where
        )
        source = TensorStoreSource(self.path, store, found, layout, self._options)
        depth = source.shape[0]
        if self.declared is not None and depth < self.declared:
            raise InputError(
                f"{self.path} has become shorter: {depth} planes after {self.declared}"
            )
        if self._source is not None:
            self._source.close()
        self._source = source
        self.plane_shape = (source.shape[1], source.shape[2])
        self.dtype = source.dtype
        self.voxel_size_um = source.voxel_size_um
        self.declared = depth
        write = found.array.chunk_layout.write_chunk.shape
        self._z_chunk = int(write[layout.zyx[0]])
        self._folder = self.path / found.place.path
        self._keys = _Keys.of(found.array, write, layout)
        self._stale = False

    @property
    def _layers(self) -> int:
        return -(-(self.declared or 0) // self._z_chunk)

    def look(self) -> None:
        """See :meth:`Growing.look`."""
        if not self._is_current():
            return
        layers = self._scan(self.whole // self._z_chunk, AHEAD)
        begun = max((k for k, (files, _) in layers.items() if files), default=None)
        if begun is None:
            return
        self.there = min((begun + 1) * self._z_chunk, self.declared or 0)
        self._note_cut(layers)
        before = self.whole
        settled_so_far = True
        for layer, (files, every) in layers.items():
            if layer > begun:
                break
            stop = min((layer + 1) * self._z_chunk, self.declared or 0)
            later = layer < begun
            whole = len(files) == every
            # Chunks of zeros may not be stored at all; but one that is written out
            # of order is not there yet, either.
            # An array may be made longer within a layer, before the planes come: files
            # that were taken for fewer planes do not hold them yet.
            shorter = self._is_shorter(layer, files)
            patience = 1 if whole and not shorter else ABSENT
            settled = self._settled(str(layer), (files, later, stop), patience)
            if stop <= self.whole:
                continue
            last = layer + 1 == self._layers and whole and not shorter
            # The clock of every layer runs, behind one that is not settled too.
            settled_so_far &= settled and (later or last)
            if settled_so_far:
                self.whole = stop
                self._changes.pop(str(layer))
        # What was looked at before may have been kept, as empty.
        self._stale |= self.whole > before

    def _is_current(self) -> bool:
        """Open again what was made longer; False while its metadata is half written.

        Some writers put it into its place byte by byte.
        """
        marks = _states(self._folder / name for name in ("zarr.json", ".zarray"))
        settled = self._settled("", marks)
        if settled and marks == self._marks:
            return True
        try:
            self._open()
        except InputError:
            if self._settled("", marks, ABSENT):
                raise
            return False
        self._marks = marks
        return True

    def _note_cut(self, layers: Mapping[int, tuple[Seen, int]]) -> None:
        """Remember the files of a layer in which the array ends."""
        last = self._layers - 1
        files = layers[last][0] if last in layers else ()
        cut, _, before = self._cut
        # Made longer again without a word to the files, they hold what they held.
        news = (last, files) != (cut, before)
        if files and news and (self.declared or 0) % self._z_chunk:
            self._cut = last, self.declared or 0, files

    def _is_shorter(self, layer: int, files: Seen) -> bool:
        """Whether this layer is as it was when the array ended in it, above."""
        cut, depth, before = self._cut
        return (layer, files) == (cut, before) and depth < (self.declared or 0)

    def _scan(self, first: int, ahead: int) -> dict[int, tuple[Seen, int]]:
        """The files of layers from `first` on, until `ahead` in a row have none."""
        layers: dict[int, tuple[Seen, int]] = {}
        empty = 0
        for layer in range(first, self._layers):
            found = self._files_of(layer)
            layers[layer] = found, self._keys.in_a_layer
            empty = 0 if found else empty + 1
            if empty == ahead:
                break
        return layers

    def _files_of(self, layer: int) -> Seen:
        folder = self._keys.folder_of(layer)
        # One question where there is nothing yet, and not one for each chunk.
        if folder is not None and not (self._folder / folder).is_dir():
            return ()
        return _states(self._folder / key for key in self._keys.of_layer(layer))

    def end(self) -> None:
        """See :meth:`Growing.end`."""
        layers = self._scan(self.whole // self._z_chunk, self._layers + 1)
        begun = max((k for k, (files, _) in layers.items() if files), default=None)
        if begun is not None:
            self.there = min((begun + 1) * self._z_chunk, self.declared or 0)
            if self._is_shorter(begun, layers[begun][0]):
                # What was announced since then never came.
                self.there = self._cut[1]
            if self.there > self.whole:
                self.doubtful = self._doubts(layers, begun)
                self.whole = self.there
        self._stale = True

    def _doubts(self, layers: Mapping[int, tuple[Seen, int]], begun: int) -> str:
        """What nobody can tell of the layers that are taken, up to the one `begun`."""
        lacking = [
            layer
            for layer, (files, every) in layers.items()
            if layer <= begun and len(files) < every
        ]
        first = min(lacking, default=begun)
        start = max(self.whole, first * self._z_chunk)
        planes = f"planes {start} to {self.there - 1}"
        if lacking:
            taken = [layers[layer] for layer in range(first, begun + 1)]
            every = sum(n for _, n in taken)
            absent = every - sum(len(files) for files, _ in taken)
            return f"of {planes}, {absent} of {every} chunk files are not there"
        if self._z_chunk > 1 and begun + 1 < self._layers:
            return f"{planes} lie in chunk files that may have been written in part"
        return ""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """See :meth:`Growing.read`."""

        def read() -> NDArray[Any]:
            if self._stale:
                self._open()
            assert self._source is not None
            self._stale = True
            voxels = self._source.read(Box((start, 0, 0), (stop, *self.plane_shape)))
            self._stale = False
            return voxels

        return self._patiently(read)


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

    @property
    def in_a_layer(self) -> int:
        """How many there are for each index on z."""
        return prod(len(r) for i, r in enumerate(self._ranges) if i != self._z_axis)

    def folder_of(self, layer: int) -> str | None:
        """The folder that holds this layer of chunks alone; None where none does."""
        before, behind = self._ranges[: self._z_axis], self._ranges[self._z_axis + 1 :]
        if self._separator != "/" or not behind or any(len(r) > 1 for r in before):
            return None
        return self._prefix + "/".join(str(i) for i in (*(r[0] for r in before), layer))

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
