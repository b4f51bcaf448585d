"""The coarser levels of a volume, each half of the one before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._geometry import Box, Shape

#: A level whose longest axis is this short is the last one.
SMALLEST = 256


@dataclass(frozen=True)
class Level:
    """One level; `step` is how many voxels of the level before make one of its own.

    `factor` is the same in voxels of the finest level.
    """

    shape: Shape
    step: Shape
    factor: Shape

    def box(self, fine: Box) -> Box:
        """The box of this level that covers `fine`, which begins on its grid."""
        z, y, x = (a // f for a, f in zip(fine.start, self.factor, strict=True))
        k, j, i = (-(-b // f) for b, f in zip(fine.stop, self.factor, strict=True))
        return Box((z, y, x), (k, j, i))


def levels_of(
    shape: Shape, voxel_size_um: tuple[float, float, float] | None
) -> list[Level]:
    """The levels of a volume, the finest first, until one is at most 256 voxels long.

    An axis whose voxels are already twice as long as the shortest waits for the
    others, so that coarse voxels come near to cubes.

    >>> [level.shape for level in levels_of((300, 1000, 700), None)]
    [(300, 1000, 700), (150, 500, 350), (75, 250, 175)]
    >>> [level.factor for level in levels_of((200, 1000, 700), (4, 1, 1))]
    [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
    """
    levels = [Level(shape, (1, 1, 1), (1, 1, 1))]
    size = voxel_size_um or (1.0, 1.0, 1.0)
    while max(levels[-1].shape) > SMALLEST:
        last = levels[-1]
        now = [s * f for s, f in zip(size, last.factor, strict=True)]
        shortest = min(s for s, n in zip(now, last.shape, strict=True) if n > 1)
        z, y, x = (
            2 if n > 1 and s < 2 * shortest else 1
            for s, n in zip(now, last.shape, strict=True)
        )
        nz, ny, nx = last.shape
        fz, fy, fx = last.factor
        levels.append(
            Level(
                (-(-nz // z), -(-ny // y), -(-nx // x)),
                (z, y, x),
                (fz * z, fy * y, fx * x),
            )
        )
    return levels


def pool(
    voxels: NDArray[Any], step: Shape, how: Literal["max", "mean"]
) -> NDArray[Any]:
    """Voxels of the next coarser level; steps are 1 or 2, the last cell may be short.

    Axis by axis, which was 9 times as fast as one reduction of a reshaped array.
    A mean of integers is rounded to the nearest, halves upwards, once.

    >>> pool(np.array([[[1, 2, 6]]], np.uint8), (1, 1, 2), "mean")
    array([[[2, 6]]], dtype=uint8)
    """
    count = math.prod(step)
    wide: Any = voxels.dtype
    if how == "mean" and voxels.dtype.kind in "ui":
        # Sums of at most eight voxels.
        wide = {1: np.uint16, 2: np.int32}[voxels.dtype.itemsize]
    pooled = voxels
    for axis, factor in enumerate(step):
        if factor == 1:
            continue
        first = pooled[(slice(None),) * axis + (slice(0, None, 2),)]
        second = pooled[(slice(None),) * axis + (slice(1, None, 2),)]
        combined = first.astype(wide)
        whole = combined[(slice(None),) * axis + (slice(0, second.shape[axis]),)]
        if how == "max":
            np.maximum(whole, second, out=whole)
        else:
            np.add(whole, second, out=whole)
            if second.shape[axis] < combined.shape[axis]:
                # A cell at the end has one voxel: count it twice, as its mean.
                combined[(slice(None),) * axis + (-1,)] *= 2
        pooled = combined
    if how == "mean" and count > 1:
        if voxels.dtype.kind in "ui":
            # Counts are powers of two: a shift is a division that rounds down.
            pooled += pooled.dtype.type(count // 2)
            pooled >>= pooled.dtype.type(count.bit_length() - 1)
        else:
            pooled = pooled / count
    return pooled.astype(voxels.dtype, copy=False)
