"""Voxel figures over labelled voxels, of one image or of many together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data import BACKGROUND, IGNORE

_LEVELS = 65536


@dataclass(frozen=True)
class VoxelFigures:
    """Figures over labelled voxels.

    `dice`, `precision` and `recall` are those at `threshold`; `best_dice` is the
    highest over all thresholds, reached at `best_threshold`. None where a figure is
    not defined: no neurite is labelled, or nothing is found.
    """

    voxels: int
    neurite_share: float
    threshold: float
    dice: float | None
    precision: float | None
    recall: float | None
    average_precision: float | None
    best_dice: float | None
    best_threshold: float | None


@dataclass
class Tally:
    """Counts of labelled voxels by their score; tallies of images add up.

    Scores in [0, 1] are counted in 65 536 levels, so that memory does not grow with
    the images; scores of 16 bits or fewer lose nothing.
    """

    neurite: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(_LEVELS, np.int64)
    )
    background: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros(_LEVELS, np.int64)
    )

    def add(self, score: NDArray[Any], labels: NDArray[np.uint8]) -> None:
        """Count an image: scores in [0, 1] and labels, of one shape."""
        known = labels != IGNORE
        level = np.rint(score[known].astype(np.float64) * (_LEVELS - 1))
        index = np.clip(level, 0, _LEVELS - 1).astype(np.int64)
        truth = labels[known] != BACKGROUND
        self.neurite += np.bincount(index[truth], minlength=_LEVELS)
        self.background += np.bincount(index[~truth], minlength=_LEVELS)

    def merge(self, other: Tally) -> None:
        """Take in the counts of another image."""
        self.neurite += other.neurite
        self.background += other.background

    def figures(self, threshold: float) -> VoxelFigures:
        """Figures of everything counted; a score at the threshold is neurite."""
        # Found at or above each level.
        hits = np.cumsum(self.neurite[::-1])[::-1].astype(np.float64)
        false = np.cumsum(self.background[::-1])[::-1].astype(np.float64)
        neurites, voxels = hits[0], hits[0] + false[0]
        at = min(int(np.ceil(threshold * (_LEVELS - 1) - 1e-9)), _LEVELS - 1)
        dice = 2 * hits / np.maximum(hits + false + neurites, 1)
        best = int(np.argmax(dice))
        found = hits[at] + false[at]
        both = 0 < neurites < voxels
        return VoxelFigures(
            voxels=int(voxels),
            neurite_share=float(neurites / max(voxels, 1)),
            threshold=threshold,
            dice=float(dice[at]) if neurites else None,
            precision=float(hits[at] / found) if found else None,
            recall=float(hits[at] / neurites) if neurites else None,
            average_precision=self._average_precision() if both else None,
            best_dice=float(dice[best]) if neurites else None,
            best_threshold=best / (_LEVELS - 1) if neurites else None,
        )

    def _average_precision(self) -> float:
        from sklearn.metrics import average_precision_score

        levels = np.flatnonzero(self.neurite + self.background)
        truth = np.repeat([1, 0], len(levels))
        weight = np.concatenate([self.neurite[levels], self.background[levels]])
        score = np.concatenate([levels, levels])
        some = weight > 0
        return float(
            average_precision_score(
                truth[some], score[some], sample_weight=weight[some]
            )
        )
