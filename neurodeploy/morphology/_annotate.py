"""From a tracing and its image to a mask: the width is the image's to say.

Gold-standard radii are mostly a constant 1 where the neurite is 3 to 8 voxels wide: a
mask of those radii labels most of a neurite as background.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_filter1d, map_coordinates

from neurodeploy.morphology._balls import stamp_mask
from neurodeploy.morphology._morphology import Morphology
from neurodeploy.morphology._overlap import require_overlap

BACKGROUND = 0
NEURITE = 1
IGNORE = 255

Floats = NDArray[np.float64]

_SOMA_TYPE = 1
_RAYS = 12
_STEP = 0.5

#: Points looked at in one go: bounds memory.
_CHUNK = 20_000


@dataclass(frozen=True)
class AnnotationSettings:
    """How a tracing becomes a mask; lengths in voxels of the y and x axes.

    `snap` is how far a tracing may lie beside its neurite; `largest_radius` bounds
    that of a neurite, `largest_soma` that of a cell body; `shell` is how far around
    a neurite no answer is wrong; a stretch that rises above its surroundings by less
    than `visible_from` noises is ignored too.
    """

    snap: int = 2
    largest_radius: float = 8.0
    largest_soma: float = 30.0
    shell: float = 2.0
    visible_from: float = 2.0


def annotate(
    tracing: Morphology,
    image: NDArray[Any],
    *,
    anisotropy: float = 1.0,
    settings: AnnotationSettings | None = None,
) -> NDArray[np.uint8]:
    """Labels of an image (z, y, x) from a tracing in its voxels.

    0 is background, 1 neurite, 255 ignore. A neurite reaches to where the image falls
    to half between the centre line and what lies around it. `anisotropy` is the z step
    over the y, x step.

    Raises
    ------
    InputError
        Where tracing and image do not belong together; names the axis order or unit
        that would fit, where one does.
    """
    settings = settings or AnnotationSettings()
    require_overlap(tracing, image)
    position, row, _ = tracing.samples(1.0)
    inside = ((position > -0.5) & (position < np.array(image.shape) - 0.5)).all(axis=1)
    position, row = position[inside], row[inside]
    smooth = gaussian_filter(image.astype(np.float32), (0.3, 0.7, 0.7))
    # So wide that a thick neurite has a ridge and no plateau.
    ridge = gaussian_filter(image.astype(np.float32), (0.7, 1.5, 1.5))
    noise = _noise(image)
    # Over the background: a camera's offset is no brightness.
    over = ridge - np.float32(np.median(ridge))
    centre = _snapped(over, position, settings.snap, noise)
    soma = (tracing.kind[row] == _SOMA_TYPE) & (tracing.radius[row] > 2.5)
    radius_xy = np.empty(len(centre))
    radius_z = np.empty(len(centre))
    seen = np.empty(len(centre), bool)
    for body, limit in (
        (False, settings.largest_radius),
        (True, settings.largest_soma),
    ):
        rows = np.flatnonzero(soma == body)
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            width = _widths(smooth, centre[part], limit, anisotropy)
            radius_xy[part], radius_z[part], rise = width
            seen[part] = rise >= settings.visible_from * noise
    own = np.minimum(tracing.radius[row][soma], settings.largest_soma)
    radius_xy[soma] = np.maximum(radius_xy[soma], own)
    radius_z[soma] = np.maximum(radius_z[soma], own / anisotropy)
    labels = np.full(image.shape, BACKGROUND, np.uint8)
    shell = settings.shell
    for value, rows_, more in (
        (IGNORE, np.ones(len(centre), bool), shell),
        (NEURITE, seen, 0.0),
    ):
        stamp_mask(
            labels,
            (centre[rows_] * [anisotropy, 1, 1]).astype(np.float32),
            (radius_z[rows_] + more / anisotropy).astype(np.float32),
            (radius_xy[rows_] + more).astype(np.float32),
            (0, 0, 0),
            anisotropy,
            value,
        )
    return labels


def _noise(image: NDArray[Any]) -> float:
    """Standard deviation of what differs between neighbours in x, at least 1 level."""
    rows = image[:: max(1, image.shape[0] // 16)].astype(np.float32)
    apart = np.abs(np.diff(rows, axis=2))
    floor = 1.0 if image.dtype.kind in "iu" else float(np.ptp(rows)) / 65535
    return max(float(np.median(apart)) / 0.6745 / 2**0.5, floor)


def _snapped(
    over: NDArray[np.float32], position: Floats, reach: int, noise: float
) -> Floats:
    """Each point on the brightest voxel near it, with shifts that change smoothly.

    `over` is how far the image lies over its background.
    """
    if reach == 0 or not len(position):
        return position
    steps = np.arange(-reach, reach + 1)
    grid = np.meshgrid(np.clip(steps, -1, 1)[abs(steps) <= 1], steps, steps)
    offsets = np.unique(np.stack([g.ravel() for g in grid], axis=1), axis=0)
    near = np.rint(position).astype(np.int64)
    at = near[:, None] + offsets
    for axis, extent in enumerate(over.shape):
        np.clip(at[..., axis], 0, extent - 1, out=at[..., axis])
    value = over[at[..., 0], at[..., 1], at[..., 2]]
    # A brighter voxel must be worth the way to it.
    cost = 0.02 * np.linalg.norm(offsets, axis=1)
    level = value.max(axis=1, keepdims=True)
    best = np.argmax(value / np.maximum(level, noise) - cost, axis=1)
    shift = at[np.arange(len(at)), best] - position
    shift = gaussian_filter1d(shift, 1.5, axis=0, mode="nearest")
    moved: Floats = position + np.clip(shift, -reach, reach)
    return np.clip(moved, 0, np.array(over.shape) - 1.0)


def _widths(
    smooth: NDArray[np.float32], centre: Floats, limit: float, anisotropy: float
) -> tuple[Floats, Floats, Floats]:
    """Radius in the plane and along z (planes), and the rise over the surroundings."""
    angle = np.arange(_RAYS) * 2 * np.pi / _RAYS
    way = np.stack([0 * angle, np.sin(angle), np.cos(angle)], axis=1)
    # Beyond the largest radius lie the surroundings.
    far = np.arange(0, 1.5 * limit + 2 * _STEP, _STEP)
    profile = _along(smooth, centre, way, far)  # (n, rays, steps)
    peak = profile[:, :, :3].mean(axis=(1, 2))
    around = np.percentile(profile[:, :, len(far) // 2 :], 25, axis=(1, 2))
    half = around + 0.5 * (peak - around)
    radius = _crossing(profile, half, far)
    # Rays along the neurite do not end; the shortest quarter runs across it.
    across = np.percentile(radius, 25, axis=1)
    planes = np.arange(0, 1.5 * limit / anisotropy + 1, _STEP)
    up = np.array([[1.0, 0, 0], [-1.0, 0, 0]])
    deep = _crossing(_along(smooth, centre, up, planes), half, planes).min(axis=1)
    return (
        np.clip(across, 1.0, limit),
        np.clip(deep, 0.6, max(0.6, limit / anisotropy)),
        peak - around,
    )


def _along(
    smooth: NDArray[np.float32], centre: Floats, way: Floats, far: Floats
) -> NDArray[np.float32]:
    at = centre[:, None, None] + way[None, :, None] * far[None, None, :, None]
    flat = at.reshape(-1, 3).T
    value: NDArray[np.float32] = map_coordinates(
        smooth, flat, order=1, mode="nearest", output=np.float32
    )
    return value.reshape(at.shape[:3])


def _crossing(profile: NDArray[np.float32], half: Floats, far: Floats) -> Floats:
    """Where each profile first falls below half; its end where it never does."""
    below = profile < half[:, None, None]
    first = np.argmax(below, axis=2)
    never = ~below.any(axis=2)
    first = np.maximum(first, 1)
    take = np.take_along_axis
    low = take(profile, first[..., None], 2)[..., 0]
    high = take(profile, first[..., None] - 1, 2)[..., 0]
    drop = np.maximum(high - low, 1e-6)
    share = np.clip((high - half[:, None]) / drop, 0, 1)
    radius: Floats = far[first - 1] + _STEP * share
    radius[never] = far[-1]
    return radius
