"""Boxes of voxels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

Shape = tuple[int, int, int]


@dataclass(frozen=True, order=True, slots=True)
class Box:
    """A box of voxels, half open: `start` is in it, `stop` is not; both z, y, x.

    >>> box = Box((0, 0, 0), (4, 8, 8))
    >>> box.shape
    (4, 8, 8)
    >>> box.intersect(Box((2, 4, 6), (9, 9, 9)))
    Box(start=(2, 4, 6), stop=(4, 8, 8))
    """

    start: Shape
    stop: Shape

    @classmethod
    def whole(cls, shape: Shape) -> Box:
        """The box of a whole volume."""
        return cls((0, 0, 0), shape)

    @property
    def shape(self) -> Shape:
        """Extent on z, y, x; never negative."""
        z, y, x = (max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    @property
    def voxels(self) -> int:
        """How many voxels it holds."""
        z, y, x = self.shape
        return z * y * x

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """The box as an index of an array."""
        z, y, x = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return z, y, x

    def intersect(self, other: Box) -> Box:
        """The box that both hold; of zero voxels where they do not meet."""
        a0, a1, a2 = map(max, self.start, other.start)
        b0, b1, b2 = map(min, self.stop, other.stop)
        return Box((a0, a1, a2), (b0, b1, b2))

    def shift(self, by: Shape) -> Box:
        """The same box, moved."""
        a0, a1, a2 = (a + d for a, d in zip(self.start, by, strict=True))
        b0, b1, b2 = (b + d for b, d in zip(self.stop, by, strict=True))
        return Box((a0, a1, a2), (b0, b1, b2))

    def grow(self, by: Shape) -> Box:
        """The same box, its stop moved outwards."""
        z, y, x = (b + d for b, d in zip(self.stop, by, strict=True))
        return Box(self.start, (z, y, x))

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` is in this box."""
        return all(
            a <= c and d <= b
            for a, b, c, d in zip(
                self.start, self.stop, other.start, other.stop, strict=True
            )
        )

    def grid(self, cell: Shape) -> Iterator[Box]:
        """The cells of a grid anchored at the volume's origin, cut to this box.

        In z, y, x order; the first and the last on an axis may be smaller than `cell`.
        """
        ranges = [
            range(a // c * c, b, c)
            for a, b, c in zip(self.start, self.stop, cell, strict=True)
        ]
        for z, y, x in product(*ranges):
            yield Box((z, y, x), (z + cell[0], y + cell[1], x + cell[2])).intersect(
                self
            )

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
