"""Whether a tracing belongs to an image, and what is wrong where it does not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology._morphology import Morphology
from neurodeploy_runtime import InputError

Floats = NDArray[np.float64]

#: Share of a tracing that must lie inside its image.
_INSIDE = 0.5
#: How often a point of the tracing must be brighter than a point anywhere.
_BRIGHTER = 0.6

_MANY = 4000


def require_overlap(
    tracing: Morphology, image: NDArray[Any], name: str = "the tracing"
) -> None:
    """Raise an InputError where a tracing does not lie on what is bright in an image.

    Where another order of the axes, a mirrored axis or micrometres for voxels would
    fit, the sentence names it.
    """
    points = tracing.samples(2.0)[0]
    points = points[:: max(1, len(points) // _MANY)]
    inside, brighter = _fit(points, image)
    if inside >= _INSIDE and brighter >= _BRIGHTER:
        return
    extent = "{:.0f}:{:.0f}, {:.0f}:{:.0f}, {:.0f}:{:.0f}".format(
        *np.stack([points.min(axis=0), points.max(axis=0)], axis=1).ravel()
    )
    if inside < _INSIDE:
        wrong = (
            f"{inside:.0%} of {name} (z, y, x {extent}) lie inside the image of "
            f"{' × '.join(map(str, image.shape))} voxels"
        )
    else:
        wrong = (
            f"{name} lies inside the image but not on what is bright: a point of it "
            f"is brighter than another voxel only {brighter:.0%} of the time"
        )
    best, way = max(
        (_score(moved, image), way) for way, moved in _ways(points, image.shape)
    )
    if best >= 0.9 * _BRIGHTER and best > inside * brighter + 0.1:
        raise InputError(f"{wrong}: {way}")
    raise InputError(
        f"{wrong}, and no order of the axes or unit that was tried would fit: check "
        "that they belong together"
    )


def _ways(points: Floats, shape: tuple[int, ...]) -> list[tuple[str, Floats]]:
    """What people do to coordinates, undone."""
    last = np.array(shape, float) - 1
    ways = [
        ("its x and y are probably exchanged", points[:, [0, 2, 1]]),
        ("its x and z are probably exchanged", points[:, [2, 1, 0]]),
        ("its y and z are probably exchanged", points[:, [1, 0, 2]]),
        ("its axes are probably written z, x, y", points[:, [1, 2, 0]]),
        ("its axes are probably written y, z, x", points[:, [2, 0, 1]]),
    ]
    for axis, letter in enumerate("zyx"):
        mirrored = points.copy()
        mirrored[:, axis] = last[axis] - mirrored[:, axis]
        ways.append((f"its {letter} axis is probably mirrored", mirrored))
    span = np.ptp(points, axis=0)
    wide = span[1:].max() > 0
    scale = float(last[1:].max() / span[1:].max()) if wide else 1.0
    if scale < 0.95 or scale > 1.5:
        # The unit is unknown: let the extents say it, as a round figure.
        for factor in (0.1, 0.2, 0.25, 0.3, 0.5, 2.0, 3.0, 4.0, 5.0, 10.0):
            ways.append(
                (
                    "its coordinates are probably micrometres: divide them by a voxel "
                    f"size near {1 / factor:.2g} µm (the option for the unit)",
                    points * factor,
                )
            )
    return ways


def _score(points: Floats, image: NDArray[Any]) -> float:
    inside, brighter = _fit(points, image)
    return inside * brighter


def _fit(points: Floats, image: NDArray[Any]) -> tuple[float, float]:
    """Share of points inside, and how often one is brighter than a voxel anywhere."""
    at = np.rint(points).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(image.shape))).all(axis=1)
    if not inside.any():
        return 0.0, 0.0
    rng = np.random.default_rng(0)
    anywhere = rng.integers(0, image.shape, (_MANY, 3))
    ours = _brightest(image, at[inside])
    theirs = np.sort(_brightest(image, anywhere))
    below = np.searchsorted(theirs, ours, "left")
    upto = np.searchsorted(theirs, ours, "right")
    return float(inside.mean()), float(((below + upto) / 2 / len(theirs)).mean())


def _brightest(image: NDArray[Any], at: NDArray[np.int64]) -> NDArray[Any]:
    """The brightest of the 27 voxels around each place."""
    last = np.array(image.shape) - 1
    near = [np.clip(at + step - 1, 0, last) for step in np.ndindex(3, 3, 3)]
    brightest: NDArray[Any] = np.max([image[tuple(n.T)] for n in near], axis=0)
    return brightest
