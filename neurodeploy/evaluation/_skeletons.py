"""Figures of centre lines: whether every neurite is found, and unbroken."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from neurodeploy.data import BACKGROUND, IGNORE
from neurodeploy.data._skeleton import thinned

Mask = NDArray[np.bool_]

#: Below this share of planes that hold labels, each plane is judged by itself.
_SPARSE = 0.5


@dataclass(frozen=True)
class SkeletonFigures:
    """Figures of centre lines; distances in voxels. None where not defined.

    `recall_2` is the share of the true centre line within 2 voxels of the mask that
    was found, `precision_2` that of the found centre line within 2 voxels of the
    true mask; likewise at 3. `cl_dice` is Shit et al., CVPR 2021, equation 3. `hd95`
    is the larger of the two directions' 95th percentiles of distances between
    surfaces; where more than 5 % of either lead from a surface to a side that is
    empty, it is infinite, and None here. `hd95_empty` counts the volumes (planes,
    with `slices`) of which one side alone is empty. `slices` says that labels lie in
    single planes only, each judged in 2D.
    """

    cl_dice: float | None
    recall_2: float | None
    recall_3: float | None
    precision_2: float | None
    precision_3: float | None
    hd95: float | None
    slices: bool
    hd95_empty: int = 0

    @property
    def hd95_infinite(self) -> bool:
        """Whether `hd95` is None because it is infinite."""
        return self.hd95 is None and self.hd95_empty > 0


class SkeletonTally:
    """Distances between centre lines and masks; tallies of images add up."""

    def __init__(self) -> None:
        self.slices = False
        self.to_found: list[NDArray[np.float32]] = []
        self.to_truth: list[NDArray[np.float32]] = []
        self.sensitive: list[Mask] = []
        self.precise: list[Mask] = []
        self.surface: list[NDArray[np.float32]] = []
        self.surface_back: list[NDArray[np.float32]] = []
        self.empty = 0

    def add(
        self, found: Mask, labels: NDArray[np.uint8], centre_line: Mask | None = None
    ) -> None:
        """Compare a found mask with labels (0, 1, 255 ignore), of one shape (z, y, x).

        `centre_line` is the true one where a tracing gives it, ignored voxels
        included; else it is the labels' skeleton. Nothing that was found on ignored
        voxels counts against it.
        """
        planes = np.flatnonzero((labels != IGNORE).any(axis=(1, 2)))
        if len(planes) >= _SPARSE * len(labels):
            self._add(found, labels, centre_line)
            return
        self.slices = True
        for z in planes:
            line = None if centre_line is None else centre_line[z : z + 1]
            self._add(found[z : z + 1], labels[z : z + 1], line)

    def merge(self, other: SkeletonTally) -> None:
        """Take in what was gathered of another image."""
        self.slices |= other.slices
        self.to_found += other.to_found
        self.to_truth += other.to_truth
        self.sensitive += other.sensitive
        self.precise += other.precise
        self.surface += other.surface
        self.surface_back += other.surface_back
        self.empty += other.empty

    def _add(
        self, found: Mask, labels: NDArray[np.uint8], centre_line: Mask | None
    ) -> None:
        known = labels != IGNORE
        truth = known & (labels != BACKGROUND)
        line = skeleton(truth) if centre_line is None else centre_line
        found_line = skeleton(found) & known
        self.to_found.append(_distance(found)[line])
        self.to_truth.append(_distance(truth | (line & ~known))[found_line])
        self.sensitive.append(found[line])
        self.precise.append(truth[found_line])
        edge_found, edge_truth = _surface(found & known), _surface(truth)
        # To an empty side every distance is infinite.
        self.surface.append(_distance(edge_truth)[edge_found])
        self.surface_back.append(_distance(edge_found)[edge_truth])
        self.empty += bool(edge_found.any()) != bool(edge_truth.any())

    def figures(self) -> SkeletonFigures:
        """Figures of everything gathered."""
        to_found, to_truth = _joined(self.to_found), _joined(self.to_truth)
        sensitivity = _mean(_joined(self.sensitive))
        precision = _mean(_joined(self.precise))
        cl_dice = None
        if sensitivity is not None:
            total = sensitivity + (precision or 0.0)
            cl_dice = 2 * sensitivity * (precision or 0.0) / total if total else 0.0
        ways = (_joined(self.surface), _joined(self.surface_back))
        farthest = [_percentile_95(way) for way in ways if way.size]
        hd95 = max(farthest) if farthest and max(farthest) < np.inf else None
        return SkeletonFigures(
            cl_dice=cl_dice,
            recall_2=_mean(to_found <= 2),
            recall_3=_mean(to_found <= 3),
            precision_2=_mean(to_truth <= 2),
            precision_3=_mean(to_truth <= 3),
            hd95=hd95,
            slices=self.slices,
            hd95_empty=self.empty,
        )


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def skeleton(mask: Mask) -> Mask:
    """Centre lines of a mask (z, y, x), by thinning (Lee 1994); in 2D for one plane."""
    if not mask.any():
        return np.zeros(mask.shape, bool)
    # Only the box that holds something: thinning costs as much as its volume.
    box = tuple(
        slice(max(int(a.min()) - 1, 0), int(a.max()) + 2) for a in np.nonzero(mask)
    )
    out = np.zeros(mask.shape, bool)
    part = mask[box]
    out[box] = thinned(part[0])[None] if mask.shape[0] == 1 else thinned(part)
    return out


def draw_line(points: NDArray[Any], shape: tuple[int, ...]) -> Mask:
    """The voxels of a sampled centre line (k, 3), those outside left out."""
    at = np.rint(points).astype(np.int64)
    inside = ((at >= 0) & (at < np.array(shape))).all(axis=1)
    line = np.zeros(shape, bool)
    line[tuple(at[inside].T)] = True
    return line


def _distance(mask: Mask) -> NDArray[np.float32]:
    """Of each voxel to the nearest of a mask; infinite where it is empty."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    return np.asarray(distance_transform_edt(~mask), np.float32)


def _percentile_95(distances: NDArray[np.float32]) -> float:
    """As `np.percentile`, which between a number and infinity gives NaN."""
    rank = math.ceil(0.95 * (len(distances) - 1))
    finite = distances[np.isfinite(distances)]
    if rank >= len(finite):
        return math.inf
    return float(np.percentile(np.minimum(distances, finite.max()), 95))


def _surface(mask: Mask) -> Mask:
    if mask.shape[0] == 1:
        return np.asarray(mask & ~binary_erosion(mask[0])[None], bool)
    return np.asarray(mask & ~binary_erosion(mask), bool)


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if values.size else None
