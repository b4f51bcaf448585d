"""The ten labelled cubes of TRAILMAP, and two ways to hold some of them out.

Friedmann et al., "Mapping mesoscale axonal projections in the mouse brain using a 3D
convolutional network", PNAS 2020; github.com/AlbertPun/TRAILMAP, MIT licence.

The cubes overlap: they are cut from one volume of about 100³ voxels, and cubes 4 and
7 share 97 % of theirs, labels with them. :func:`folds` holds out whole cubes, and lets
a network see 83 to 98 % of the labels that it is measured on. :func:`halves` cuts the
volume itself in two, so that no label is on both sides.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import DataError
from neurodeploy.data import BACKGROUND, IGNORE, NEURITE, AnnotatedVolume
from neurodeploy_runtime import Box, Histogram, open_volume

#: TRAILMAP's labels 0 to 4: unlabelled, background, axon, artifact, axon edge.
_MEANING = np.array([IGNORE, 0, 1, 0, IGNORE], np.uint8)

#: Where a cube's first voxel lies in the volume that all are cut from, z, y, x from
#: cube 0's. Found by phase correlation; the voxels that two cubes share are equal.
ORIGINS = {
    "volume-0": (0, 0, 0),
    "volume-1": (2, -7, -37),
    "volume-2": (10, 7, -46),
    "volume-3": (7, -7, -29),
    "volume-4": (31, 35, -42),
    "volume-5": (11, 13, -6),
    "volume-6": (4, 34, -25),
    "volume-7": (31, 33, -42),
    "volume-8": (1, 48, -31),
    "volume-9": (5, 0, -1),
}

#: The halves meet at this y of the common volume, its longest axis.
_MIDDLE = 45
#: Labels nearer to the middle than this, in voxels, train neither half.
_MARGIN = 4


def read_cubes(folder: Path) -> list[AnnotatedVolume]:
    """The cubes in `folder`: `volumes/volume-N.tiff` with `labels/label-N.tiff`.

    Raises
    ------
    DataError
        Where there is none, or a label has no meaning.
    """
    import tifffile

    cubes = []
    for path in sorted((folder / "volumes").glob("volume-*.tiff")):
        marks = folder / "labels" / path.name.replace("volume", "label")
        labels: NDArray[Any] = tifffile.imread(marks)
        if labels.max(initial=0) >= len(_MEANING):
            raise DataError(f"{marks} has labels above {len(_MEANING) - 1}")
        cubes.append(
            AnnotatedVolume(
                tifffile.imread(path),
                _MEANING[labels],
                path.stem,
                "trailmap",
                isotropic=True,
            )
        )
    if not cubes:
        raise DataError(
            f"{folder} has no volumes/volume-*.tiff: give TRAILMAP's training folder "
            "(github.com/AlbertPun/TRAILMAP, data/training)"
        )
    return cubes


def as_in_its_brain(cube: AnnotatedVolume) -> AnnotatedVolume:
    """The cube, normalised by its labelled background alone.

    A quarter of a cube is axon, and that shifts what is measured on it: the median by
    0.6 of the noise, the noise by 1.6. The brain around it has few axons; there the
    same background lies at 0, and its noise is 1.
    """
    background = Histogram(cube.image.dtype)
    background.add(cube.image[cube.labels == 0])
    return replace(cube, measured=background.freeze("background-asinh"))


def read_brain(path: Path) -> NDArray[Any]:
    """The unlabelled volume of the same microscope: whole_brain_crop_303.tif.

    Raises
    ------
    DataError
        It is no volume of uint16.
    """
    with open_volume(path) as source:
        if source.dtype != np.uint16:
            raise DataError(
                f"{path} is {source.shape} {source.dtype}: give TRAILMAP's unlabelled "
                "volume of uint16, whole_brain_crop_303.tif"
            )
        return source.read(Box.whole(source.shape))


def labelled_where_sure(
    image: NDArray[Any],
    probability: NDArray[np.float32],
    sure: tuple[float, float],
    least: int,
) -> AnnotatedVolume:
    """An unlabelled volume, labelled where a network is sure.

    After Lee, "Pseudo-Label" (ICML workshop on representation learning, 2013).

    Parameters
    ----------
    probability
        float32 of the image's shape: the network's answer.
    sure
        Background lies below the first, neurites above the second; what is between is
        ignored.
    least
        Neurites of fewer voxels are ignored, too: puncta leave such specks.
    """
    from scipy import ndimage

    labels = np.full(image.shape, IGNORE, np.uint8)
    labels[probability < sure[0]] = BACKGROUND
    parts, _ = ndimage.label(probability > sure[1], np.ones((3, 3, 3)))
    kept = np.bincount(parts.ravel()) >= least
    kept[0] = False
    labels[kept[parts]] = NEURITE
    return AnnotatedVolume(image, labels, "brain", "brain", isotropic=True)


def folds(count: int, number: int) -> Iterator[list[int]]:
    """Which cubes are held out of each fold: neighbours in the list, all once."""
    for part in np.array_split(np.arange(count), number):
        yield part.tolist()


def require_origins(cubes: Sequence[AnnotatedVolume]) -> None:
    """See that the cubes lie where :data:`ORIGINS` says.

    Raises
    ------
    DataError
        Where a cube is not in the table, or two differ in voxels that they share.
    """
    for cube in cubes:
        if cube.name not in ORIGINS:
            raise DataError(
                f"{cube.name} is none of TRAILMAP's ten cubes, whose places are known: "
                "without its place no half of the volume can be held out"
            )
    for one, two in itertools.combinations(cubes, 2):
        shift = np.subtract(ORIGINS[two.name], ORIGINS[one.name])
        a, b = (
            tuple(
                slice(max(0, s), max(0, min(n, n + s)))
                for s, n in zip(by, one.image.shape, strict=True)
            )
            for by in (shift, -shift)
        )
        if (
            one.image[a].shape != two.image[b].shape
            or (one.image[a] != two.image[b]).any()
        ):
            raise DataError(
                f"{one.name} and {two.name} differ where they should overlap: these "
                "are not TRAILMAP's cubes as published"
            )


def half_of(cube: AnnotatedVolume, half: int, margin: int = 0) -> NDArray[np.bool_]:
    """Which of a cube's voxels lie in one half (0 or 1), `margin` voxels inside it."""
    y = np.arange(cube.labels.shape[1]) + ORIGINS[cube.name][1]
    inside = y < _MIDDLE - margin if half == 0 else y >= _MIDDLE + margin
    return np.broadcast_to(inside[None, :, None], cube.labels.shape)


def halves(cubes: Sequence[AnnotatedVolume]) -> Iterator[list[AnnotatedVolume]]:
    """The cubes to train on when half 0, then half 1, of the volume is held out.

    Nothing of the held-out half is labelled in them; a cube with no other labels is
    left out.
    """
    require_origins(cubes)
    for held in (0, 1):
        kept = []
        for cube in cubes:
            mine = half_of(cube, 1 - held, _MARGIN)
            labels = np.where(mine, cube.labels, IGNORE).astype(np.uint8)
            if (labels != IGNORE).any():
                kept.append(replace(cube, labels=labels))
        yield kept
