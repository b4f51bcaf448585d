"""Adding weighted tiles in a ring of planes, from which finished planes leave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._plan import Axis, Layer, TilePlan
from neurodeploy_runtime.arrays import Arrays, HostArrays, PlaneKind

#: Voxels of a plane in one step, where somebody may want the memory meanwhile.
STRIP = 1 << 19


class BlendRing:
    """The sum of weighted windows over the planes of one z-layer of tiles.

    The weights of all tiles sum to exactly 1 at every voxel, so there is no count map
    and no division, and a plane is final when the last layer that meets it was added.
    The ring is as deep as a window, however deep the volume. Tiles are added in
    z, y, x order: a voxel's sum has the same bits whatever region is asked for.

    `give_way` is called before each step that reads or writes much memory, and may
    wait; on the host a step then touches half a million voxels at most, or one tile.
    """

    def __init__(
        self,
        plan: TilePlan,
        region: Box,
        *,
        squares: bool = False,
        arrays: Arrays | None = None,
        give_way: Callable[[], object] | None = None,
    ) -> None:
        self._layer: Layer = plan.layer(region)
        self._plan = plan
        self._region = region
        self._arrays = arrays or HostArrays()
        self.plane = region.shape[1:]
        shape = plan.window[0], *self.plane
        self._sum = self._arrays.zeros(shape)
        self._squares = self._arrays.zeros(shape) if squares else None
        self._kept: dict[tuple[bool, ...], Any] = {}
        self._give_way = give_way or _at_once
        self._strips: tuple[slice, ...] = (slice(None),)
        if give_way is not None and isinstance(self._arrays, HostArrays):
            height, width = self.plane
            rows = max(1, STRIP // width)
            self._strips = tuple(slice(y, y + rows) for y in range(0, height, rows))

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, for good."""
        return int(self._sum.nbytes) * (1 if self._squares is None else 2)

    def _weights(self, row: int, column: int) -> Any:
        """(y, x) weights of a window: they depend on which neighbours it has."""
        rows, columns = self._plan.counts[1:]
        y, x = self._plan.axes[1:]
        ends = row == 0, row == rows - 1, column == 0, column == columns - 1
        if ends not in self._kept:
            self._kept[ends] = self._arrays.keep(_outer_weights(y, x, *ends))
        return self._kept[ends]

    def _depth_weights(self, first: bool, last: bool) -> Any:
        """(z,) weights of a window."""
        ends = first, last
        if ends not in self._kept:
            weights = self._plan.axes[0].weights(first=first, last=last)
            self._kept[ends] = self._arrays.keep(weights)
        return self._kept[ends]

    def add(
        self,
        layer: int,
        row: int,
        column: int,
        window: Any,
        *,
        last: bool,
    ) -> None:
        """Add one answer of the network, (z, y, x) float32, of the ring's arrays.

        `last` says that no layer of tiles follows this one in the volume.
        """
        self._give_way()
        z_axis, y_axis, x_axis = self._plan.axes
        y0, x0 = row * y_axis.stride, column * x_axis.stride
        z0 = layer * z_axis.stride
        (rz0, ry0, rx0), (rz1, ry1, rx1) = self._region.start, self._region.stop
        y = slice(max(y0, ry0) - y0, min(y0 + y_axis.window, ry1) - y0)
        x = slice(max(x0, rx0) - x0, min(x0 + x_axis.window, rx1) - x0)
        to = (
            slice(y.start + y0 - ry0, y.stop + y0 - ry0),
            slice(x.start + x0 - rx0, x.stop + x0 - rx0),
        )
        weights = self._weights(row, column)[y, x]
        depth = self._depth_weights(layer == 0, last)
        first = max(z0, rz0) - z0
        stop = min(z0 + z_axis.window, rz1) - z0
        for z, end, at in self._runs(z0, first, stop):
            place = slice(at, at + end - z), *to
            self._arrays.add_weighted(
                window[z:end, y, x],
                weights,
                depth[z:end],
                self._sum[place],
                None if self._squares is None else self._squares[place],
            )

    def _runs(self, z0: int, first: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Planes of a window that lie behind each other in the ring, and where."""
        while first < stop:
            at = (z0 + first) % len(self._sum)
            end = min(stop, first + len(self._sum) - at)
            yield first, end, at
            first = end

    def quantise(
        self, z: int, kind: PlaneKind, threshold: float, out: NDArray[np.uint8]
    ) -> None:
        """The sum at plane z as uint8 (y, x): :meth:`Arrays.quantise`.

        Final once the layers that the plane meets were added.
        """
        plane = self._sum[z % len(self._sum)]
        for rows in self._strips:
            self._give_way()
            self._arrays.quantise(kind, threshold, plane[rows], out[rows])

    def disagreement_of(self, z: int) -> NDArray[np.float32]:
        """Standard deviation between the tiles that met at plane z (y, x)."""
        if self._squares is None:
            raise ValueError("this ring was made without squares")
        at = z % len(self._sum)
        return self._arrays.spread(self._sum[at], self._squares[at])

    def clear(self, z: int) -> None:
        """Plane z has left; its place in the ring is zero again."""
        for rows in self._strips:
            self._give_way()
            with self._arrays.step():
                self._sum[z % len(self._sum), rows] = 0
                if self._squares is not None:
                    self._squares[z % len(self._sum), rows] = 0


def _at_once() -> None:
    """Nobody needs the way."""


@lru_cache(maxsize=64)
def _outer_weights(
    y: Axis, x: Axis, top: bool, bottom: bool, left: bool, right: bool
) -> NDArray[np.float32]:
    return np.outer(
        y.weights(first=top, last=bottom), x.weights(first=left, last=right)
    )
