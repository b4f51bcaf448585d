"""Finished planes into an output of known depth."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import OutputError, StreamError, WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Record, checksum
from neurodeploy_runtime._provenance import content_digest
from neurodeploy_runtime.volumes import create_sink, sink_kind
from neurodeploy_runtime.volumes._open_sink import may_replace
from neurodeploy_runtime.volumes._sink import already_there

#: Planes of a unit: what is gathered before it is written.
GRAIN = 32


class PlaneWriter:
    """Writes uint8 planes, in order, into a new file of any format; a context manager.

    The file has another name, beginning with a dot, until :meth:`finish`; leaving
    without that removes it. A slab of planes is allocated at the start.

    Raises
    ------
    OutputError
        Something lies at `path` that must not be replaced, or it cannot be written
        there. Where something has come meanwhile, :meth:`finish` raises WriteError,
        and what was written stays beside it.
    """

    def __init__(
        self,
        path: Path,
        shape: Shape,
        voxel_size_um: tuple[float, float, float] | None = None,
        *,
        mask: bool = True,
        overwrite: bool = False,
    ) -> None:
        kind = sink_kind(path)
        self.path = path
        self.shape = shape
        self._kind = kind
        self._overwrite = overwrite
        self._refuse_what_lies_there()
        height, width = shape[1:]
        stem = path.name.removesuffix(path.suffix)
        self._partial = path.with_name(f".{stem}.partial{path.suffix}")
        chunked = kind in ("ome-zarr", "precomputed")
        cell = (256, 256) if chunked else (height, width)
        self._sink = create_sink(
            self._partial,
            kind,
            shape,
            np.uint8,
            voxel_size_um,
            grain=(GRAIN, *cell),
            pooling="max" if mask else "mean",
            overwrite=True,
        )
        self._slab = np.zeros((self._sink.grain[0], height, width), np.uint8)
        self._open = True
        #: Whether it is whole, and only has no name.
        self._kept = False
        self._next = 0
        self._records: dict[Shape, Record] = {}

    @property
    def planes(self) -> int:
        """Planes that were added."""
        return self._next

    def add(self, plane: NDArray[np.uint8]) -> None:
        """The next plane (y, x); it is copied."""
        if self._next == self.shape[0]:
            raise StreamError(
                f"{self.path} was made for {self.shape[0]} planes, and more have come"
            )
        at = self._next % len(self._slab)
        np.copyto(self._slab[at], plane)
        self._next += 1
        if at + 1 == len(self._slab) or self._next == self.shape[0]:
            self._write(self._next - at - 1, self._next)

    def content(self) -> dict[str, Any]:
        """What proves the voxels, as a report of `segment` has it."""
        return {
            "grain": list(self._sink.grain),
            "digest": content_digest(self._records, 0),
        }

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Fill up with empty planes, complete the file, and give it its name."""
        empty = np.zeros(self.shape[1:], np.uint8)
        while self._next < self.shape[0]:
            self.add(empty)
        self._sink.finish(metadata)
        self._let_go()
        try:
            self._refuse_what_lies_there()
        except OutputError as error:
            self._kept = True
            raise WriteError(
                f"{error}; what was written meanwhile is whole, and stays as "
                f"{self._partial}"
            ) from None
        old = self.path.with_name(f"{self._partial.name}.old")
        shutil.rmtree(old, ignore_errors=True)  # a kill left it
        try:
            # What was there goes when its place is taken, and not before.
            if self.path.is_dir():
                self.path.replace(old)
            self._partial.replace(self.path)
        except OSError as error:
            if old.exists() and not self.path.exists():
                old.replace(self.path)
            self._kept = True
            raise WriteError(
                f"{self.path} cannot be replaced ({error.strerror or error}): close it "
                f"where it is open, and rename {self._partial}, which is the result"
            ) from error
        shutil.rmtree(old, ignore_errors=True)

    def _refuse_what_lies_there(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self._overwrite:
            raise already_there(self.path)
        if not may_replace(self.path, self._kind):
            raise OutputError(
                f"{self.path} holds no such output, so it is not replaced: remove it "
                "yourself, or choose another name"
            )

    def _let_go(self) -> None:
        if self._open:
            self._open = False
            self._sink.close()
            for path in self._sink.scratch:
                path.unlink(missing_ok=True)

    def _write(self, start: int, stop: int) -> None:
        slab = Box((start, 0, 0), (stop, *self.shape[1:]))
        for unit in slab.grid(self._sink.grain):
            z, y, x = unit.shift((-start, 0, 0)).slices
            voxels = np.ascontiguousarray(self._slab[z, y, x])
            if voxels.any() or not self._sink.sparse:
                self._sink.write(unit, voxels)
            self._records[unit.start] = Record(unit.start, (checksum(voxels),))

    def close(self) -> None:
        """Let go of the file; what has not been finished is removed."""
        self._let_go()
        if self._kept:
            return
        if self._partial.is_dir():
            shutil.rmtree(self._partial, ignore_errors=True)
        else:
            self._partial.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
