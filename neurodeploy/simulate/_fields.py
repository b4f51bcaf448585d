"""Smooth random fields that may be read at any box, in any order."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from neurodeploy.simulate._chance import Stream, generator
from neurodeploy_runtime import Box

Floats = NDArray[np.float32]

#: Lattice nodes that share one generator.
_BLOCK = (8, 32, 32)


def lattice(seed: int, stream: Stream, box: Box) -> Floats:
    """Standard normal values at these nodes of an endless lattice."""
    out = np.empty(box.shape, np.float32)
    for cell in box.grid(_BLOCK):
        index = [a // b for a, b in zip(cell.start, _BLOCK, strict=True)]
        whole = generator(seed, stream, *index).standard_normal(_BLOCK, np.float32)
        corner = [i * b for i, b in zip(index, _BLOCK, strict=True)]
        inside = tuple(
            slice(a - c, b - c)
            for a, b, c in zip(cell.start, cell.stop, corner, strict=True)
        )
        outside = tuple(
            slice(a - o, b - o)
            for a, b, o in zip(cell.start, cell.stop, box.start, strict=True)
        )
        out[outside] = whole[inside]
    return out


def nodes_for(box: Box, cell: tuple[int, int, int]) -> Box:
    """The lattice nodes that :func:`spread` needs to fill a box of voxels."""
    start = tuple(a // c - 1 for a, c in zip(box.start, cell, strict=True))
    stop = tuple((b - 1) // c + 3 for b, c in zip(box.stop, cell, strict=True))
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def spread(nodes: Floats, box: Box, cell: tuple[int, int, int]) -> Floats:
    """Voxels of `box` from the nodes around it, by cubic B-splines.

    `nodes` are those of :func:`nodes_for`, one every `cell` voxels. Every voxel is
    the same sum in the same order whatever box it is read in.
    """
    out = nodes
    for axis, step in enumerate(cell):
        out = _spread_axis(out, axis, box.start[axis], box.stop[axis], step)
    return out


def _spread_axis(nodes: Floats, axis: int, start: int, stop: int, step: int) -> Floats:
    first = start // step
    count = (stop - 1) // step + 1 - first
    parts = [
        nodes[(slice(None),) * axis + (slice(tap, tap + count),)] for tap in range(4)
    ]
    shape = list(nodes.shape)
    shape[axis] = count * step
    out = np.empty(shape, np.float32)
    for phase in range(step):
        weights = _cubic((phase + 0.5) / step if step > 1 else 0.0)
        target = out[(slice(None),) * axis + (slice(phase, None, step),)]
        np.multiply(parts[0], weights[0], out=target)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            if weight:
                target += part * weight
    cut = slice(start - first * step, stop - first * step)
    return out[(slice(None),) * axis + (cut,)]


def _cubic(t: float) -> tuple[np.float32, np.float32, np.float32, np.float32]:
    """Weights of the four nodes around a point at `t` between the middle two."""
    return (
        np.float32((1 - t) ** 3 / 6),
        np.float32((3 * t**3 - 6 * t**2 + 4) / 6),
        np.float32((-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6),
        np.float32(t**3 / 6),
    )


def _spline_gain(cell: tuple[int, int, int]) -> float:
    """One over the standard deviation that :func:`spread` leaves of white nodes."""
    power = 1.0
    for step in cell:
        rows = [
            np.array(_cubic((phase + 0.5) / step if step > 1 else 0.0), float)
            for phase in range(step)
        ]
        power *= float(np.mean([(row**2).sum() for row in rows]))
    return float(power**-0.5)


def smooth_noise(
    seed: int, stream: Stream, box: Box, cell: tuple[int, int, int]
) -> Floats:
    """A smooth field of mean 0 and standard deviation 1, correlated over `cell`."""
    nodes = lattice(seed, stream, nodes_for(box, cell))
    nodes *= np.float32(_spline_gain(cell))
    return spread(nodes, box, cell)


def every_block(box: Box, block: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Indices of the blocks of an endless grid that a box touches, in z, y, x order."""
    z, y, x = (
        range(a // b, -(-c // b))
        for a, c, b in zip(box.start, box.stop, block, strict=True)
    )
    return list(product(z, y, x))
