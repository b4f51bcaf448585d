"""Where a finished box of voxels becomes durable.

A sink is divided into units: the cells of a grid of `grain` voxels anchored at the
volume's origin, cut at its end. A unit is written whole, by one writer, and is durable
when `write` returns. Two writers in one shard lose data in every Zarr library that was
measured, so a write that is not exactly one unit is an error and not a slow path.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import OutputError, WriteError
from neurodeploy_runtime._geometry import Box, Shape

SinkKind = Literal["tiff", "ome-zarr", "precomputed", "v3draw"]
Pooling = Literal["max", "mean"]

DTYPES = ("uint8", "uint16", "int16", "float32")


@dataclass(frozen=True)
class SinkSpec:
    """What is to be written, whatever the format.

    `voxel_size_um` is z, y, x in micrometres, or None where nobody said.
    `pooling` makes the coarser levels of formats that have them: "max" keeps a thin
    mask visible, "mean" suits an image or a probability.
    """

    shape: Shape
    dtype: np.dtype[Any]
    voxel_size_um: tuple[float, float, float] | None = None
    pooling: Pooling = "max"

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise OutputError(
                f"an output of shape {self.shape} cannot be made: "
                "give three extents z, y, x of at least 1"
            )
        if self.dtype.name not in DTYPES:
            raise OutputError(
                f"an output of {self.dtype.name} cannot be made: use one of "
                f"{', '.join(DTYPES)}"
            )
        if self.pooling not in get_args(Pooling):
            raise OutputError(
                f"{self.pooling!r} is no way to pool a level: use 'max' or 'mean'"
            )
        size = self.voxel_size_um
        if size is not None and not all(v > 0 and math.isfinite(v) for v in size):
            raise OutputError(
                f"a voxel size of {size} µm (z, y, x) makes no sense: "
                "give three positive numbers"
            )

    @property
    def bytes(self) -> int:
        """Bytes of the voxels, uncompressed."""
        return math.prod(self.shape) * self.dtype.itemsize


class Sink(ABC):
    """One output volume, written unit by unit; a context manager.

    `write` may be called from several threads for different units. Voxels that were
    never written read as zero in every format (`sparse`), so a unit of background only
    may be left out; `holds` is then False for it, and the caller keeps that record.
    """

    kind: ClassVar[SinkKind]
    sparse: ClassVar[bool] = True

    def __init__(self, path: Path, spec: SinkSpec, grain: Shape) -> None:
        self.path = path
        self.spec = spec
        self.grain = grain

    @property
    def shape(self) -> Shape:
        """Extent in voxels, z, y, x."""
        return self.spec.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16, int16 or float32, in this machine's byte order."""
        return self.spec.dtype

    @property
    def scratch(self) -> tuple[Path, ...]:
        """Files beside `path` that a resume needs and the finished output does not."""
        return ()

    def units(self) -> Iterator[Box]:
        """Every unit, in z, y, x order."""
        return Box.whole(self.shape).grid(self.grain)

    def write(self, unit: Box, voxels: NDArray[Any]) -> None:
        """Make one unit durable; it survives a kill at any later moment.

        Writing a unit again replaces it.

        Raises
        ------
        WriteError
            `unit` is no cell of the unit grid, `voxels` is not of its shape and of
            the sink's dtype, or the disk refused.
        """
        self._check_unit(unit)
        if voxels.shape != unit.shape or voxels.dtype != self.dtype:
            raise WriteError(
                f"unit {unit} of {self.path} takes {self.dtype.name} of shape "
                f"{unit.shape}, not {voxels.dtype.name} of shape {voxels.shape}"
            )
        try:
            self._write(unit, voxels)
        except (OSError, ValueError) as error:
            raise WriteError(
                f"unit {unit} of {self.path} could not be made durable ({error}): "
                "make room or repair the disk, then run the same command again"
            ) from error

    def holds(self, unit: Box) -> bool:
        """Whether this unit was written and can be read back in full."""
        self._check_unit(unit)
        return self._holds(unit)

    def present(self, unit: Box) -> bool:
        """Whether this unit was written and its bytes are there; none is read."""
        self._check_unit(unit)
        return self._present(unit)

    def _check_unit(self, unit: Box) -> None:
        cell = tuple(a // g * g for a, g in zip(unit.start, self.grain, strict=True))
        stop = tuple(
            min(a + g, n)
            for a, g, n in zip(unit.start, self.grain, self.shape, strict=True)
        )
        inside = all(0 <= a < n for a, n in zip(unit.start, self.shape, strict=True))
        if not inside or cell != unit.start or stop != unit.stop:
            raise WriteError(
                f"box {unit} is not one unit of {self.path}: a unit is one cell of "
                f"the grid {self.grain}, cut at the volume's end {self.shape}"
            )

    def _check_box(self, box: Box) -> None:
        if not Box.whole(self.shape).contains(box):
            raise WriteError(
                f"box {box} does not lie in {self.path}, of shape {self.shape}"
            )

    @abstractmethod
    def _write(self, unit: Box, voxels: NDArray[Any]) -> None: ...

    @abstractmethod
    def _holds(self, unit: Box) -> bool: ...

    @abstractmethod
    def _present(self, unit: Box) -> bool: ...

    @abstractmethod
    def read(self, box: Box) -> NDArray[Any]:
        """What was written, any box of it; zeros where nothing was."""

    @abstractmethod
    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Complete the file at `path`: coarser levels, metadata and provenance.

        May be called again, with the same result, after a kill in the middle.
        `metadata` is what a JSON file can hold.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the files. What is durable stays; `finish` is not implied."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class MakeableSink(Sink):
    """A sink of a known format: how its files come to be."""

    @classmethod
    @abstractmethod
    def create(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, overwrite: bool
    ) -> Self:
        """Make the file; of several processes that try at once, one succeeds."""

    @classmethod
    @abstractmethod
    def reopen(cls, path: Path, spec: SinkSpec, grain: Shape | None) -> Self:
        """Open an unfinished file."""

    @classmethod
    @abstractmethod
    def may_replace(cls, path: Path) -> bool:
        """Whether what lies at `path` may be replaced by an output of this format.

        A file by a file, and a folder only where it holds an image of this format;
        links to folders never.
        """

    @classmethod
    @abstractmethod
    def own_grain(cls, spec: SinkSpec) -> Shape:
        """The unit where none was asked for."""

    @classmethod
    @abstractmethod
    def bytes_needed(cls, spec: SinkSpec) -> int:
        """Upper bound of the disk it takes."""


def already_there(path: Path) -> OutputError:
    """The refusal to write over something."""
    return OutputError(
        f"{path} is already there: choose another name, or ask to overwrite it"
    )
