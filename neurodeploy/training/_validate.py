"""How well a network does on volumes that it does not train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neurodeploy.data import BACKGROUND, IGNORE, AnnotatedVolume
from neurodeploy.networks import NetworkConfig
from neurodeploy.training._predict import predict

#: A model's threshold is one of these, ends included.
_THRESHOLDS = (0.01, 0.99)


@dataclass(frozen=True)
class Score:
    """Figures over the labelled voxels of some volumes, pooled.

    `dice` is the best over all thresholds from 0.01 to 0.99, reached at `threshold`.
    """

    average_precision: float
    dice: float
    threshold: float


def pooled_score(
    probability: NDArray[np.float32], truth: NDArray[np.bool_]
) -> Score | None:
    """Score flat arrays of labelled voxels; None where only one class is labelled."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    if truth.all() or not truth.any():
        return None
    precision, recall, thresholds = precision_recall_curve(truth, probability)
    dice = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    # What is found at the ends lies at or above them; past the last, nothing.
    first, last = np.searchsorted(thresholds, _THRESHOLDS)
    best = int(first + np.argmax(dice[first : last + 1]))
    return Score(
        average_precision=float(average_precision_score(truth, probability)),
        dice=float(dice[best]),
        threshold=float(
            np.clip(float(thresholds[min(best, len(thresholds) - 1)]), *_THRESHOLDS)
        ),
    )


def validate(
    network: nn.Module,
    config: NetworkConfig,
    volumes: Sequence[AnnotatedVolume],
    precision: torch.dtype | None = None,
) -> Score | None:
    """The pooled score of whole held-out volumes, by sliding window."""
    answers, truths = [], []
    for volume in volumes:
        answer = predict(
            network, config, volume.image, volume.normalisation, precision=precision
        )
        known = volume.labels != IGNORE
        answers.append(answer[known])
        truths.append(volume.labels[known] != BACKGROUND)
    return pooled_score(np.concatenate(answers), np.concatenate(truths))
