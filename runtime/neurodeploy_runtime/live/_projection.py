"""Maximum projections of a stack whose depth nobody knows yet."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._projections import Projections, _pool


class GrowingProjections:
    """The maxima of the planes so far, pooled so that no side exceeds `longest`.

    Along z it is one picture. Along y and x, where `sides` is True, there is a row for
    every so many planes, as many as pixels are pooled: some kilobytes, which grow with
    the stack.
    """

    def __init__(
        self,
        plane_shape: tuple[int, int],
        dtype: np.dtype[Any],
        longest: int = 1024,
        *,
        sides: bool = True,
    ) -> None:
        height, width = plane_shape
        self.factor = f = max(1, -(-max(plane_shape) // longest))
        self._dtype = dtype
        self._sides = sides
        least = np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf
        self._along_z = np.full((-(-height // f), -(-width // f)), least, dtype)
        self._along_y: list[NDArray[Any]] = []
        self._along_x: list[NDArray[Any]] = []
        self._lock = threading.Lock()
        self.planes = 0

    def add(self, plane: NDArray[Any]) -> None:
        """The next plane (y, x)."""
        small = _pool(_pool(plane, 0, 0, self.factor), 1, 0, self.factor)
        with self._lock:
            np.maximum(self._along_z, small, out=self._along_z)
            if self._sides:
                self._add_sides(small)
            self.planes += 1

    def _add_sides(self, small: NDArray[Any]) -> None:
        along_y, along_x = small.max(axis=0), small.max(axis=1)
        if self.planes % self.factor == 0:
            self._along_y.append(along_y)
            self._along_x.append(along_x)
        else:
            np.maximum(self._along_y[-1], along_y, out=self._along_y[-1])
            np.maximum(self._along_x[-1], along_x, out=self._along_x[-1])

    def along_z(self) -> NDArray[Any]:
        """A copy of the projection along z."""
        with self._lock:
            return self._along_z.copy()

    def projections(self, plane_shape: tuple[int, int]) -> Projections:
        """As a finished volume has them."""
        with self._lock:
            depth = max(1, self.planes)
            made = Projections(Box.whole((1, *plane_shape)), self._dtype)
            made.box = Box.whole((depth, *plane_shape))
            made.factor = self.factor
            made.along_z = self._along_z.copy()
            if self._along_y:
                made.along_y = np.stack(self._along_y)
                made.along_x = np.stack(self._along_x)
            return made
