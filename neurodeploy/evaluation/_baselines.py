"""What needs no training: the figures that a network has to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from neurodeploy.data import BACKGROUND, IGNORE, AnnotatedVolume

Floats = NDArray[np.float32]


def raw_intensity(image: NDArray[Any]) -> Floats:
    """Grey values as they are."""
    return image.astype(np.float32)


def top_hat(image: NDArray[Any]) -> Floats:
    """What rises over its surroundings: the image less its Gaussian blur, σ = 6."""
    image = image.astype(np.float32)
    return np.asarray(image - gaussian_filter(image, 6.0), np.float32)


def sato(image: NDArray[Any]) -> Floats:
    """Tubeness of σ = 1 to 4 voxels (Sato et al., Medical Image Analysis 2, 1998)."""
    from skimage.filters import sato as tubeness

    voxels = image.astype(np.float32)
    found = tubeness(voxels, range(1, 5), black_ridges=False)  # type: ignore[no-untyped-call]
    return np.asarray(found, np.float32)


BASELINES: dict[str, Callable[[NDArray[Any]], Floats]] = {
    "raw intensity": raw_intensity,
    "white top-hat, σ 6": top_hat,
    "Sato": sato,
}


@dataclass(frozen=True)
class BaselineFigures:
    """A filter's figures over the labelled voxels of all images together."""

    average_precision: float
    best_dice: float


def baseline_figures(
    volumes: Sequence[AnnotatedVolume], score: Callable[[NDArray[Any]], Floats]
) -> BaselineFigures | None:
    """Pooled average precision and the best Dice over all thresholds.

    None where all labels are of one class, which ranks nothing.
    """
    scores, truths = [], []
    for volume in volumes:
        known = volume.labels != IGNORE
        scores.append(score(volume.image)[known])
        truths.append(volume.labels[known] != BACKGROUND)
    truth = np.concatenate(truths)
    if truth.all() or not truth.any():
        return None
    return figures_of_filter(np.concatenate(scores), truth)


def figures_of_filter(every: Floats, truth: NDArray[np.bool_]) -> BaselineFigures:
    """Of what a filter says of voxels, in any unit, and what is true; flat arrays."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, every)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return BaselineFigures(
        float(average_precision_score(truth, every)), float(dice.max())
    )
