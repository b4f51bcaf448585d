"""Points drawn into voxels, only near the points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology import patches
from neurodeploy.simulate._points import Points

Floats = NDArray[np.float32]

#: A thinner tube is drawn this thick and dimmer: the grid cannot hold it otherwise.
THINNEST = np.float32(0.9)


def stamp_light(
    out: Floats, points: Points, origin: tuple[int, int, int], anisotropy: float
) -> None:
    """Draw soft balls into `out` (a box of voxels from `origin`); the brightest stays.

    The light of what is thinner than the grid can hold is kept, not its width.
    """
    radius = np.maximum(points.radius, THINNEST)
    thin = np.minimum(points.radius / radius, 1)
    level = points.brightness * thin * thin
    outer = radius + points.softness / 2
    flat = out.reshape(-1)
    half_xy = np.ceil(outer).astype(np.int64)
    half_z = np.ceil(outer / anisotropy).astype(np.int64)
    for rows, at, apart in patches(
        points.position, half_z, half_xy, out.shape, origin, anisotropy
    ):
        distance = np.sqrt(apart, dtype=np.float32)
        share = (outer[rows, None] - distance) / points.softness[rows, None]
        inside = (at >= 0) & (share > 0)
        value = np.minimum(share, 1) * level[rows, None]
        np.maximum.at(flat, at[inside], value[inside])


def stamp_factor(
    out: Floats,
    points: Points,
    origin: tuple[int, int, int],
    anisotropy: float,
    level: float,
) -> None:
    """Move `out` towards `level` where a ball covers it."""
    flat = out.reshape(-1)
    outer = points.radius + points.softness / 2
    cover = np.zeros(out.size, np.float32)
    half_xy = np.ceil(outer).astype(np.int64)
    half_z = np.ceil(outer / anisotropy).astype(np.int64)
    for rows, at, apart in patches(
        points.position, half_z, half_xy, out.shape, origin, anisotropy
    ):
        distance = np.sqrt(apart, dtype=np.float32)
        share = (outer[rows, None] - distance) / points.softness[rows, None]
        inside = (at >= 0) & (share > 0)
        np.maximum.at(cover, at[inside], np.minimum(share, 1)[inside])
    flat += cover * (np.float32(level) - flat)


def splat(
    out: Floats,
    points: Points,
    origin: tuple[int, int, int],
    anisotropy: float,
    cell: tuple[int, int, int],
) -> None:
    """Add the light of each point to the node of a coarse grid that it lies at."""
    energy = points.brightness * np.where(
        points.length > 0,
        np.float32(np.pi) * points.radius**2 * points.length,
        np.float32(4 / 3 * np.pi) * points.radius**3,
    )
    voxel = points.position / np.array([anisotropy, 1, 1], np.float32)
    node = np.floor(voxel / np.asarray(cell, np.float32)).astype(np.int64)
    node -= np.asarray(origin)
    inside = ((node >= 0) & (node < out.shape)).all(axis=1)
    at = np.ravel_multi_index(tuple(node[inside].T), out.shape)
    per_voxel = energy / np.float32(anisotropy * np.prod(cell))
    np.add.at(out.reshape(-1), at, per_voxel[inside].astype(np.float32))
