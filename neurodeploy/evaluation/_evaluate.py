"""A network against annotated images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data import AnnotatedVolume
from neurodeploy.evaluation._skeletons import SkeletonFigures, SkeletonTally
from neurodeploy.evaluation._voxels import Tally, VoxelFigures
from neurodeploy_runtime import InputError

#: Probabilities in [0, 1] of an image (z, y, x), float32 of its shape.
Predictor = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Figures:
    """All figures of one image, or of all together."""

    name: str
    voxels: VoxelFigures
    skeleton: SkeletonFigures


@dataclass(frozen=True)
class Evaluation:
    """What was measured: each image, and all labelled voxels together.

    Together, average precision and Dice are those of all voxels in one pool (the mean
    over images would hide that a threshold does not carry over), and so are the
    centre lines.
    """

    threshold: float
    images: tuple[Figures, ...]
    pooled: Figures

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Annotated:
    """An annotated image, with its true centre line where a tracing gives it."""

    volume: AnnotatedVolume
    centre_line: NDArray[np.bool_] | None = None


def evaluate(
    images: Iterable[Annotated],
    predict: Predictor,
    threshold: float,
    *,
    on_image: Callable[[Annotated, NDArray[np.float32], Figures], None] | None = None,
) -> Evaluation:
    """Run a network over annotated images and measure it.

    Images are asked for one at a time, and let go of. `on_image` is told of each: the
    image, its probabilities and its figures.

    Raises
    ------
    InputError
        Where there is no image.
    """
    voxels, skeletons = Tally(), SkeletonTally()
    measured: list[Figures] = []
    for image in images:
        volume = image.volume
        probability = predict(volume.image)
        tally, lines = Tally(), SkeletonTally()
        tally.add(probability, volume.labels)
        lines.add(probability >= threshold, volume.labels, image.centre_line)
        figures = Figures(volume.name, tally.figures(threshold), lines.figures())
        voxels.merge(tally)
        skeletons.merge(lines)
        measured.append(figures)
        if on_image is not None:
            on_image(image, probability, figures)
    if not measured:
        raise InputError("there is no annotated image to measure on")
    together = Figures("together", voxels.figures(threshold), skeletons.figures())
    return Evaluation(threshold, tuple(measured), together)
