"""Adding weighted tiles in a ring of planes, from which finished planes leave."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._plan import Axis, Layer, TilePlan


class BlendRing:
    """The sum of weighted windows over the planes of one z-layer of tiles.

    The weights of all tiles sum to exactly 1 at every voxel, so there is no count map
    and no division, and a plane is final when the last layer that meets it was added.
    The ring is as deep as a window, however deep the volume. Tiles are added in
    z, y, x order: a voxel's sum has the same bits whatever region is asked for.
    """

    def __init__(self, plan: TilePlan, region: Box, *, squares: bool = False) -> None:
        self._layer: Layer = plan.layer(region)
        self._plan = plan
        self._region = region
        depth, height, width = plan.window
        self.plane = region.shape[1:]
        self._sum = np.zeros((depth, *self.plane), np.float32)
        self._squares = np.zeros_like(self._sum) if squares else None
        self._scratch = np.empty((height, width), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, for good."""
        return self._sum.nbytes * (1 if self._squares is None else 2)

    def _weights(self, row: int, column: int) -> NDArray[np.float32]:
        """(y, x) weights of a window: they depend on which neighbours it has."""
        rows, columns = self._plan.counts[1:]
        y, x = self._plan.axes[1:]
        return _outer_weights(
            y, x, row == 0, row == rows - 1, column == 0, column == columns - 1
        )

    def add(
        self,
        layer: int,
        row: int,
        column: int,
        window: NDArray[np.float32],
        *,
        last: bool,
    ) -> None:
        """Add one answer of the network, (z, y, x) float32.

        `last` says that no layer of tiles follows this one in the volume.
        """
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
        depth = z_axis.weights(first=layer == 0, last=last)
        scratch = self._scratch[: y.stop - y.start, : x.stop - x.start]
        for z in range(max(z0, rz0) - z0, min(z0 + z_axis.window, rz1) - z0):
            plane = window[z, y, x]
            np.multiply(plane, weights, out=scratch)
            if depth[z] != 1:
                np.multiply(scratch, depth[z], out=scratch)
            into = self._sum[(z0 + z) % len(self._sum)][to]
            np.add(into, scratch, out=into)
            if self._squares is not None:
                np.multiply(scratch, plane, out=scratch)
                into = self._squares[(z0 + z) % len(self._sum)][to]
                np.add(into, scratch, out=into)

    def plane_of(self, z: int) -> NDArray[np.float32]:
        """The sum at plane z: a view, final once the layers it meets were added."""
        plane: NDArray[np.float32] = self._sum[z % len(self._sum)]
        return plane

    def disagreement_of(self, z: int) -> NDArray[np.float32]:
        """Standard deviation between the tiles that met at plane z (y, x)."""
        if self._squares is None:
            raise ValueError("this ring was made without squares")
        mean = self._sum[z % len(self._sum)]
        variance = self._squares[z % len(self._sum)] - mean * mean
        np.maximum(variance, 0, out=variance)
        spread: NDArray[np.float32] = np.sqrt(variance, out=variance)
        return spread

    def clear(self, z: int) -> None:
        """Plane z has left; its place in the ring is zero again."""
        self._sum[z % len(self._sum)] = 0
        if self._squares is not None:
            self._squares[z % len(self._sum)] = 0


@lru_cache(maxsize=64)
def _outer_weights(
    y: Axis, x: Axis, top: bool, bottom: bool, left: bool, right: bool
) -> NDArray[np.float32]:
    return np.outer(
        y.weights(first=top, last=bottom), x.weights(first=left, last=right)
    )
