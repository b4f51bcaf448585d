"""What training minimises, on labelled voxels only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from neurodeploy._errors import ConfigError
from neurodeploy.data import IGNORE, SKELETON


@dataclass(frozen=True)
class LossSettings:
    """Weights of the terms of the loss.

    `skeleton_recall` is the connectivity term of Kirchhoff et al., "Skeleton Recall
    Loss" (arXiv 2404.03010): the soft recall of a tube around the true centre lines,
    computed once per volume on the CPU.

    Raises
    ------
    ConfigError
        Where a weight is below 0, or all of them are 0.
    """

    cross_entropy: float = 1.0
    dice: float = 1.0
    skeleton_recall: float = 0.0

    def __post_init__(self) -> None:
        weights = asdict(self)
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"loss.{name} is {weight}: use 0 or more")
        if not any(weights.values()):
            raise ConfigError(
                "every term of the loss has the weight 0: nothing would be learned; "
                "use more than 0 for one of them"
            )


#: Of weights that sum to 1: as much as one voxel in a thousand.
_SMOOTH = 1e-3


def segmentation_loss(logits: Tensor, labels: Tensor, settings: LossSettings) -> Tensor:
    """Cross-entropy + Dice (+ skeleton recall) over the labelled voxels of a batch.

    Every sample weighs the same, however many of its voxels are labelled: a sparsely
    labelled crop beside a wholly labelled one would otherwise count for nothing. Dice
    is that of the whole batch, so that a crop without neurites is no division by
    zero. Where nothing is labelled the loss is zero, with a gradient of zero.

    >>> logits = torch.tensor([[9.0, -9.0, 9.0]])
    >>> labels = torch.tensor([[1, 0, 255]], dtype=torch.uint8)
    >>> bool(segmentation_loss(logits, labels, LossSettings()) < 1e-3)
    True
    """
    logits = logits.float()
    known = (labels != IGNORE).float()
    truth = ((labels != 0) & (labels != IGNORE)).float()
    per_sample = known.flatten(1).sum(1)
    samples = (per_sample > 0).sum().clamp(min=1)
    share = 1 / (per_sample.clamp(min=1.0) * samples)
    weight = known * share.view(-1, *[1] * (known.ndim - 1))
    entropy = functional.binary_cross_entropy_with_logits(
        logits, truth, weight=weight, reduction="sum"
    )
    loss = settings.cross_entropy * entropy
    probability = torch.sigmoid(logits) * known
    if settings.dice:
        weighed = torch.sigmoid(logits) * weight
        common = (weighed * truth).sum()
        both = weighed.sum() + (weight * truth).sum()
        dice = (2 * common + _SMOOTH) / (both + _SMOOTH)
        loss = loss + settings.dice * (1 - dice) * (known.sum() > 0)
    if settings.skeleton_recall:
        tube = (labels == SKELETON).float()
        recall = ((probability * tube).sum() + 1.0) / (tube.sum() + 1.0)
        loss = loss + settings.skeleton_recall * (1 - recall)
    return loss
