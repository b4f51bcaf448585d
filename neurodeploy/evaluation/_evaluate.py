"""A network against annotated images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data import AnnotatedVolume, Part
from neurodeploy.evaluation._skeletons import SkeletonFigures, SkeletonTally
from neurodeploy.evaluation._voxels import Tally, VoxelFigures
from neurodeploy_runtime import InputError

#: Probabilities in [0, 1] of an image (z, y, x), float32 of its shape.
Predictor = Callable[[NDArray[Any]], NDArray[np.float32]]


@dataclass(frozen=True)
class Figures:
    """All figures of one image, or of some together.

    `part` is what the network has done with the image; None where that is not known,
    and for images together.
    """

    name: str
    voxels: VoxelFigures
    skeleton: SkeletonFigures
    part: Part | None = None


@dataclass(frozen=True)
class Evaluation:
    """What was measured: each image, and all labelled voxels together.

    Together, average precision and Dice are those of all voxels in one pool (the mean
    over images would hide that a threshold does not carry over), and so are the
    centre lines. `parts` are the same pools of the images of each part by itself,
    where the network says which it was trained on.
    """

    threshold: float
    images: tuple[Figures, ...]
    pooled: Figures
    parts: dict[Part, Figures] = field(default_factory=dict)

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
    part_of: Callable[[NDArray[Any]], Part | None] = lambda image: None,
) -> Evaluation:
    """Run a network over annotated images and measure it.

    Images are asked for one at a time, and let go of. `on_image` is told of each: the
    image, its probabilities and its figures. `part_of` says what the network has done
    with an image.

    Raises
    ------
    InputError
        Where there is no image.
    """
    voxels, skeletons = Tally(), SkeletonTally()
    parts: dict[Part, tuple[Tally, SkeletonTally]] = {}
    measured: list[Figures] = []
    for image in images:
        volume = image.volume
        probability = predict(volume.image)
        tally, lines = Tally(), SkeletonTally()
        tally.add(probability, volume.labels)
        lines.add(probability >= threshold, volume.labels, image.centre_line)
        part = part_of(volume.image)
        figures = Figures(volume.name, tally.figures(threshold), lines.figures(), part)
        voxels.merge(tally)
        skeletons.merge(lines)
        if part is not None:
            of_part = parts.setdefault(part, (Tally(), SkeletonTally()))
            of_part[0].merge(tally)
            of_part[1].merge(lines)
        measured.append(figures)
        if on_image is not None:
            on_image(image, probability, figures)
    if not measured:
        raise InputError("there is no annotated image to measure on")
    together = Figures("together", voxels.figures(threshold), skeletons.figures())
    by_part = {
        part: Figures(part, tally.figures(threshold), lines.figures(), part)
        for part, (tally, lines) in parts.items()
    }
    return Evaluation(threshold, tuple(measured), together, by_part)
