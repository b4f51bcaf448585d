"""Balls drawn into voxels, only near their centres."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Voxels looked at in one go: bounds memory.
_CHUNK = 1_500_000


def stamp_mask(
    out: NDArray[np.uint8],
    position: Floats,
    radius_z: Floats,
    radius_xy: Floats,
    origin: tuple[int, int, int],
    anisotropy: float,
    value: int = 1,
) -> None:
    """Set the voxels within ellipsoids; `radius_z` in planes, `radius_xy` in voxels."""
    flat = out.reshape(-1)
    stretch = (radius_xy / (radius_z * np.float32(anisotropy))).astype(np.float32)
    half_xy = np.floor(radius_xy).astype(np.int64) + 1
    half_z = np.floor(radius_z).astype(np.int64) + 1
    for rows, at, apart in patches(
        position, half_z, half_xy, out.shape, origin, anisotropy, stretch
    ):
        inside = (at >= 0) & (apart <= (radius_xy[rows] ** 2)[:, None])
        flat[at[inside]] = value


def patches(
    position: Floats,
    half_z: NDArray[np.int64],
    half_xy: NDArray[np.int64],
    shape: tuple[int, ...],
    origin: tuple[int, int, int],
    anisotropy: float,
    stretch: Floats | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64], Floats]]:
    """Rows of points, the flat index of each voxel near (-1 outside), distances².

    Distances are in y, x voxels; `stretch` scales the one along z.
    """
    voxel = position / np.array([anisotropy, 1, 1], np.float32)
    # Rounded before the origin is taken off: the same bits in whatever box.
    nearest = np.rint(voxel).astype(np.int64)
    scale = np.ones((len(position), 3), np.float32)
    scale[:, 0] = anisotropy
    if stretch is not None:
        scale[:, 0] *= stretch
    remainder = (voxel - nearest).astype(np.float32)
    nearest -= np.asarray(origin)
    half = np.stack([half_z, half_xy, half_xy], axis=1)
    extent = np.asarray(shape)
    touches = ((nearest >= -half) & (nearest < extent + half)).all(axis=1)
    whole = ((nearest >= half) & (nearest < extent - half)).all(axis=1)
    key = np.where(touches, (half_z * 4096 + half_xy) * 2 + whole, -1)
    for k in np.unique(key[touches]):
        every = np.flatnonzero(key == k)
        kz, kxy = divmod(int(k) // 2, 4096)
        steps = [np.arange(-h, h + 1) for h in (kz, kxy, kxy)]
        size = steps[0].size * steps[1].size ** 2
        chunk = max(1, _CHUNK // size)
        for first in range(0, len(every), chunk):
            rows = every[first : first + chunk]
            at_axis = [nearest[rows, a, None] + steps[a] for a in range(3)]
            z, y, x = at_axis
            at = ((z * shape[1])[:, :, None] + y[:, None]) * shape[2]
            flat = (at[:, :, :, None] + x[:, None, None]).reshape(len(rows), size)
            if not k % 2:  # some of these reach over the border
                ok = [(i >= 0) & (i < n) for i, n in zip(at_axis, shape, strict=True)]
                inside = ok[0][:, :, None, None] & ok[1][:, None, :, None]
                inside = inside & ok[2][:, None, None]
                flat[~inside.reshape(flat.shape)] = -1
            dz, dy, dx = (
                (
                    (steps[a].astype(np.float32) - remainder[rows, a, None])
                    * scale[rows, a, None]
                )
                ** 2
                for a in range(3)
            )
            apart = (dz[:, :, None] + dy[:, None])[:, :, :, None] + dx[:, None, None]
            yield rows, flat, apart.reshape(flat.shape)
