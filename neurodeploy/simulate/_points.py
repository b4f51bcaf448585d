"""What glows in a volume, as points along curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Points:
    """Soft balls: a tube is a row of them one voxel apart, a cell body is one.

    `position` is (n, 3), z, y, x, in isotropic units of the y and x voxel; `radius`
    likewise. `brightness` is grey levels above the background before the optics.
    `length` is how much of a curve a point stands for, 0 for a ball of its own.
    `softness` is the width of its border. `known` tells a neurite from what looks
    like one, from a cell body with neurites (neither the one nor the other), and
    from a vessel, whose brightness is a factor on the tissue's own.
    """

    position: Floats
    radius: Floats
    brightness: Floats
    length: Floats
    softness: Floats
    known: NDArray[np.int8]

    NEURITE = 1
    DISTRACTOR = 0
    SOMA = -1
    VESSEL = 2

    @classmethod
    def make(
        cls,
        position: Floats,
        radius: NDArray[Any],
        brightness: NDArray[Any],
        *,
        length: float = 1.0,
        softness: float | Floats = 1.0,
        known: int = 1,
    ) -> Points:
        """Points of one kind; scalars stand for all of them."""
        n = len(position)
        return cls(
            position.astype(np.float32, copy=False).reshape(n, 3),
            radius.astype(np.float32, copy=False),
            brightness.astype(np.float32, copy=False),
            np.full(n, length, np.float32),
            np.broadcast_to(np.asarray(softness, np.float32), (n,)),
            np.full(n, known, np.int8),
        )

    @classmethod
    def none(cls) -> Points:
        """No points."""
        empty = np.empty(0, np.float32)
        return cls.make(np.empty((0, 3), np.float32), empty, empty)

    def __len__(self) -> int:
        return len(self.position)

    def take(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> Points:
        """These points, in their order."""
        return Points(
            self.position[index],
            self.radius[index],
            self.brightness[index],
            self.length[index],
            self.softness[index],
            self.known[index],
        )

    @staticmethod
    def join(many: list[Points]) -> Points:
        """All of them, in this order."""
        if not many:
            return Points.none()
        return Points(
            np.concatenate([p.position for p in many]),
            np.concatenate([p.radius for p in many]),
            np.concatenate([p.brightness for p in many]),
            np.concatenate([p.length for p in many]),
            np.concatenate([p.softness for p in many]),
            np.concatenate([p.known for p in many]),
        )

    def within(self, low: tuple[float, ...], high: tuple[float, ...]) -> Points:
        """Those that reach into the box between two corners, by their radius."""
        reach = (self.radius + self.softness)[:, None]
        touches: NDArray[np.bool_] = (
            self.position + reach >= np.asarray(low, np.float32)
        ) & (self.position - reach < np.asarray(high, np.float32))
        return self.take(np.flatnonzero(touches.all(axis=1)))
