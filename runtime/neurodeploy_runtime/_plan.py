"""Where the tiles of a volume lie, and what each counts: pure, lazy, frozen.

The grid is global, anchored at the volume's origin: which tiles there are, and the
weight of each at each voxel, depends on the volume's shape and the model alone, never
on the block, worker or restart that asks. What sticks out of the volume at its far
faces is filled by mirroring, so that a volume may grow (a camera) without moving tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._spec import ModelSpec

#: Ramp weights are multiples of this power of two: a weight and its complement, and
#: the products over three axes of what they multiply, then lose nothing in float32.
WEIGHT_STEP = 2.0**-8


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis.

    Tile k answers for the window ``[k * stride, k * stride + window)`` and reads
    `margin` voxels more on both sides. Neighbouring windows share `overlap` voxels, at
    most half a window, so no voxel lies in more than two.
    """

    window: int
    margin: int
    overlap: int

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.window // 2:
            raise SettingsError(
                f"an overlap of {self.overlap} voxels of a window of {self.window} is "
                "not possible: use 0 to 0.5 of the window"
            )

    @property
    def stride(self) -> int:
        """Voxels from one window to the next."""
        return self.window - self.overlap

    @property
    def tile(self) -> int:
        """Voxels that the network reads."""
        return self.window + 2 * self.margin

    @property
    def layer_planes(self) -> int:
        """Planes that must have come before a layer along this axis can be run.

        One more than a tile where only it tells whether another layer follows.
        """
        return self.tile + (self.margin == 0)

    @property
    def lag(self) -> tuple[int, int]:
        """Least and most planes that must follow a plane before all its tiles are run.

        With windows of 64 planes, an overlap of 16 and no margin, that is (17, 64).
        """
        extra = max(self.margin, 1)
        return self.overlap + extra, self.window - 1 + extra

    def count(self, extent: int) -> int:
        """Tiles that it takes to cover `extent` voxels, at least 1."""
        return max(1, -(-(extent - self.overlap) // self.stride))

    def meeting(self, start: int, stop: int, extent: int) -> range:
        """The tiles whose windows meet [start, stop)."""
        first = max(0, (start - self.window) // self.stride + 1)
        last = (stop - 1) // self.stride
        return range(first, min(last + 1, self.count(extent)))

    @cached_property
    def _ramp(self) -> NDArray[np.float32]:
        """Rising weights of the overlap, strictly between 0 and 1.

        A raised cosine: flat where the neighbour knows less, so that the outermost
        voxels of a tile, which the network saw least of, count least.
        """
        t = (np.arange(self.overlap) + 0.5) / max(1, self.overlap)
        rising = 0.5 - 0.5 * np.cos(np.pi * t)
        steps = np.clip(np.rint(rising / WEIGHT_STEP), 1, 1 / WEIGHT_STEP - 1)
        return (steps * WEIGHT_STEP).astype(np.float32)

    def weights(self, *, first: bool, last: bool) -> NDArray[np.float32]:
        """Weights over a window; with its neighbours' they sum to exactly 1.

        `first` and `last` say that there is no neighbour before or behind.
        """
        weights = np.ones(self.window, np.float32)
        if self.overlap and not first:
            weights[: self.overlap] = self._ramp
        if self.overlap and not last:
            weights[-self.overlap :] = 1 - self._ramp
        return weights

    def reads(self, k: int, extent: int) -> tuple[int, int]:
        """The voxels of the volume that tile k sees, [start, stop)."""
        start = k * self.stride - self.margin
        return max(0, start), min(extent, start + self.tile)

    def mirrored(self, k: int, extent: int) -> NDArray[np.intp] | None:
        """For each voxel of tile k the index into what it reads; None: as it is.

        A tile that sticks out sees its own voxels mirrored about the outermost one.
        """
        start = k * self.stride - self.margin
        low, high = self.reads(k, extent)
        if (low, high) == (start, start + self.tile):
            return None
        index = np.arange(start, start + self.tile) - low
        n = high - low
        if n == 1:
            return np.zeros(self.tile, np.intp)
        period = 2 * (n - 1)
        index = np.abs(index) % period
        return np.minimum(index, period - index).astype(np.intp)


@dataclass(frozen=True)
class TilePlan:
    """The tiles of a volume and their weights."""

    shape: Shape
    axes: tuple[Axis, Axis, Axis]

    @classmethod
    def of(
        cls, spec: ModelSpec, shape: Shape, overlap: float | None = None
    ) -> TilePlan:
        """The plan of a model for a volume; `overlap` replaces the model's own.

        An axis that the model itself does not overlap (the depth of a `slice` model)
        stays so.
        """
        if overlap is not None and not 0 <= overlap <= 0.5:
            raise SettingsError(
                f"overlap {overlap} is outside 0 to 0.5: it is the share of a tile "
                "that neighbours have in common"
            )
        z, y, x = (
            Axis(
                window,
                margin,
                # Half of an odd window, rounded, would be more than half.
                min(
                    round(window * (own if overlap is None or own == 0 else overlap)),
                    window // 2,
                ),
            )
            for window, margin, own in zip(
                spec.window, spec.margin, spec.overlap, strict=True
            )
        )
        return cls(shape, (z, y, x))

    @property
    def counts(self) -> Shape:
        """Tiles on z, y, x."""
        z, y, x = (a.count(n) for a, n in zip(self.axes, self.shape, strict=True))
        return z, y, x

    @property
    def tile(self) -> Shape:
        """What the network reads at a time."""
        z, y, x = (a.tile for a in self.axes)
        return z, y, x

    @property
    def window(self) -> Shape:
        """What the network answers for at a time."""
        z, y, x = (a.window for a in self.axes)
        return z, y, x

    @property
    def tiles(self) -> int:
        """How many there are."""
        z, y, x = self.counts
        return z * y * x

    @property
    def redundancy(self) -> float:
        """Voxels that pass through the network over voxels of the volume."""
        z, y, x = self.tile
        d, h, w = self.shape
        return self.tiles * z * y * x / (d * h * w)

    def layer(self, region: Box) -> Layer:
        """The tiles of one z-layer that a region of the volume needs."""
        rows, columns = (
            self.axes[i].meeting(region.start[i], region.stop[i], self.shape[i])
            for i in (1, 2)
        )
        return Layer(self, region, rows, columns)

    def planes_read(self, start: int, stop: int) -> tuple[int, int]:
        """First and one past last of the planes that planes start to stop need."""
        axis, depth = self.axes[0], self.shape[0]
        layers = axis.meeting(start, stop, depth)
        return axis.reads(layers[0], depth)[0], axis.reads(layers[-1], depth)[1]

    def tiles_in(self, region: Box) -> int:
        """Tiles that it takes to answer for a region alone."""
        n = 1
        for axis, a, b, extent in zip(
            self.axes, region.start, region.stop, self.shape, strict=True
        ):
            n *= len(axis.meeting(a, b, extent))
        return n


@dataclass(frozen=True)
class Layer:
    """The rows and columns of tiles that a region needs, the same at every depth."""

    plan: TilePlan
    region: Box
    rows: range
    columns: range

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Row and column of each tile, in y, x order: the order they are added in."""
        for row in self.rows:
            for column in self.columns:
                yield row, column

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def reads(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """What is read of each plane: [start, stop) on y and on x."""
        spans = []
        for i, tiles in ((1, self.rows), (2, self.columns)):
            axis, extent = self.plan.axes[i], self.plan.shape[i]
            spans.append(
                (axis.reads(tiles[0], extent)[0], axis.reads(tiles[-1], extent)[1])
            )
        return spans[0], spans[1]
