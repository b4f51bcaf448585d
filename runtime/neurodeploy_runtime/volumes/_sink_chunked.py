"""Outputs of many files, each one shard: OME-Zarr and Neuroglancer precomputed.

TensorStore writes a shard to another name and renames it, so a shard is whole or not
there. Its own locks are off: a lock that a killed writer left is used again without
being cut to size, and the next shard written is then corrupt (12 of 40 stores were).
Nothing is lost by that, because every shard has one writer; and it is removed before
it is written again, because TensorStore would otherwise read the old one at the
volume's end, where a unit does not fill its shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._atomic import partial_name, write_atomically
from neurodeploy_runtime._errors import OutputError, ResumeError, WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._sink import MakeableSink, SinkSpec, already_there
from neurodeploy_runtime.volumes._sink_flat import sync_folder
from neurodeploy_runtime.volumes._sink_pyramid import Level, levels_of, pool

CHUNK = 64

#: A half-written shard that has not grown for so long belongs to no living writer.
STALE_S = 600.0


def tensorstore() -> Any:
    """The library, or the sentence that says how to get it."""
    try:
        import tensorstore
    except ImportError as error:
        raise OutputError(
            "OME-Zarr and precomputed are written by tensorstore, which is not "
            'installed: pip install "neurodeploy[cluster]", or write TIFF'
        ) from error
    return tensorstore


def unlocked_context() -> Any:
    """TensorStore without lock files and without a cache of what it wrote."""
    return tensorstore().Context(
        {"file_io_locking": {"mode": "none"}, "cache_pool": {"total_bytes_limit": 0}}
    )


@dataclass(frozen=True)
class LevelStore:
    """One level on the disk.

    `array` is the TensorStore, z, y, x, which leaves chunks of zeros out; `shard` is
    its unit, `file` names the shard's file, and `write_zeros` makes one that is there
    although all of it is zero.
    """

    level: Level
    shard: Shape
    array: Any
    file: Callable[[Box], Path]
    write_zeros: Callable[[Box], object]

    def write(self, box: Box, voxels: NDArray[Any]) -> Callable[[], object]:
        """Begin to write one shard; call what comes back to wait for it."""
        if not voxels.any():
            self.write_zeros(box)
            return lambda: None
        future = self.array[box.slices].write(
            voxels, can_reference_source_data_indefinitely=True
        )
        return cast(Callable[[], object], future.result)

    def read(self, box: Box) -> NDArray[Any]:
        """Any box; zeros where nothing was written."""
        voxels: NDArray[Any] = self.array[box.slices].read().result()
        return np.ascontiguousarray(voxels)


class ChunkedSink(MakeableSink):
    """Levels of shards, written by TensorStore.

    The levels whose shards cover the same box as a unit are written with it, the
    finest last: where the finest shard is, the others are. The rest is pooled at the
    end, from a level that is at most 1/8 of the volume.
    """

    #: Files of which one tells that a folder is such an output, and may be replaced.
    _marks: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, spec: SinkSpec, stores: Sequence[LevelStore]):
        super().__init__(path, spec, stores[0].shard)
        self._stores = list(stores)
        self._with_unit = 1
        for store in self._stores[1:]:
            covered = tuple(
                s * f for s, f in zip(store.shard, store.level.factor, strict=True)
            )
            if covered != self.grain:
                break
            self._with_unit += 1

    @classmethod
    @abstractmethod
    def _open(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, create: bool
    ) -> list[LevelStore]:
        """The arrays of every level, in the folder `path`."""

    @abstractmethod
    def _describe(self, metadata: Mapping[str, Any] | None) -> None:
        """Write what tells readers about the levels, and the provenance."""

    @classmethod
    def create(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, overwrite: bool
    ) -> Self:
        """Make the folder under another name, then rename it."""
        partial = partial_name(path)
        try:
            partial.mkdir()
            stores = cls._open(partial, spec, grain, create=True)
            cls(partial, spec, stores)._describe(None)
            if overwrite:
                cls._clear(path)
            partial.rename(path)
            sync_folder(path.parent)
        except (OSError, ValueError) as error:
            if path.exists():
                raise already_there(path) from None
            raise OutputError(
                f"{path} could not be made ({error}): make room, or write elsewhere"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return cls(path, spec, cls._open(path, spec, grain, create=False))

    @classmethod
    def reopen(cls, path: Path, spec: SinkSpec, grain: Shape | None) -> Self:
        """Open an unfinished folder; shape, dtype and shards must be the same."""
        if not path.is_dir():
            raise ResumeError(
                f"{path} cannot be continued: it is not there; start again"
            )
        _sweep(path, STALE_S)
        try:
            return cls(path, spec, cls._open(path, spec, grain, create=False))
        except ValueError as error:
            raise ResumeError(
                f"{path} cannot be continued: it is damaged, or not of shape "
                f"{spec.shape} and dtype {spec.dtype.name} ({error}); start again"
            ) from error

    @classmethod
    def may_replace(cls, path: Path) -> bool:
        """A folder, no link to one, with the files that mark such an image."""
        marked = any((path / mark).is_file() for mark in cls._marks)
        return marked and not path.is_symlink()

    @classmethod
    def bytes_needed(cls, spec: SinkSpec) -> int:
        """Voxels that cannot be compressed, their levels, and an index per chunk."""
        levels = levels_of(spec.shape, spec.voxel_size_um)
        voxels = sum(int(np.prod(level.shape, dtype=np.int64)) for level in levels)
        return int(voxels * spec.dtype.itemsize * 1.01) + (1 << 20)

    @classmethod
    def _clear(cls, path: Path) -> None:
        if not path.exists():
            return
        if cls.may_replace(path):
            shutil.rmtree(path)
            return
        raise OutputError(
            f"{path} is not a {cls.kind} output, so it is not replaced: "
            "remove it yourself, or choose another name"
        )

    def _write(self, unit: Box, voxels: NDArray[Any]) -> None:
        stores = self._stores[: self._with_unit]
        boxes = [store.level.box(unit) for store in stores]
        for store, box in zip(stores, boxes, strict=True):
            store.file(box).unlink(missing_ok=True)
        coarser, pooled = [], voxels
        for store, box in zip(stores[1:], boxes[1:], strict=True):
            pooled = pool(pooled, store.level.step, self.spec.pooling)
            coarser.append(store.write(box, pooled))
        for wait in coarser:
            wait()
        stores[0].write(unit, voxels)()

    def _present(self, unit: Box) -> bool:
        for store in self._stores[: self._with_unit]:
            try:
                if store.file(store.level.box(unit)).stat().st_size == 0:
                    return False
            except OSError:
                return False
        return True

    def _holds(self, unit: Box) -> bool:
        for store in self._stores[: self._with_unit]:
            box = store.level.box(unit)
            if not store.file(box).is_file():
                return False
            try:
                store.read(box)
            except (ValueError, OSError):
                return False
        return True

    def read(self, box: Box) -> NDArray[Any]:
        """What was written, any box of it; zeros where nothing was."""
        self._check_box(box)
        return self._stores[0].read(box)

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Pool the levels that are left, and write the provenance."""
        try:
            for fine, coarse in zip(
                self._stores[self._with_unit - 1 :],
                self._stores[self._with_unit :],
                strict=False,
            ):
                self._pool_level(fine, coarse)
            self._describe(metadata)
            _sweep(self.path, 0)
        except (OSError, ValueError) as error:
            raise WriteError(
                f"{self.path} could not be finished ({error}): make room or repair "
                "the disk, then run the same command again"
            ) from error

    def _pool_level(self, fine: LevelStore, coarse: LevelStore) -> None:
        step = coarse.level.step
        for box in Box.whole(coarse.level.shape).grid(coarse.shard):
            z, y, x = (a * s for a, s in zip(box.start, step, strict=True))
            k, j, i = (b * s for b, s in zip(box.stop, step, strict=True))
            source = Box((z, y, x), (k, j, i)).intersect(Box.whole(fine.level.shape))
            coarse.file(box).unlink(missing_ok=True)
            voxels = pool(fine.read(source), step, self.spec.pooling)
            if voxels.any():
                coarse.write(box, voxels)()

    def close(self) -> None:
        """Let go of the arrays."""
        self._stores = []


def _sweep(path: Path, older_s: float) -> None:
    """Remove what killed writers left half-written."""
    now = time.time()
    for folder, _, names in os.walk(path):
        for name in names:
            if name.endswith((".__lock", ".partial")):
                file = Path(folder, name)
                # Another worker may finish and rename it at this moment.
                with contextlib.suppress(FileNotFoundError):
                    if now - file.stat().st_mtime >= older_s:
                        file.unlink()


def write_whole(path: Path, content: bytes) -> None:
    """Replace a small file, whole or not at all; its folder is made where missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    sync_folder(path.parent)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file, whole or not at all."""
    write_whole(path, json.dumps(content, indent=1).encode())
