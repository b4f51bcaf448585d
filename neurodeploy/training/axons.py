"""Labelled axons as they might look elsewhere: fewer of them, or in other tissue.

Both take an axon for what rises over the smooth background around it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from neurodeploy._errors import DataError
from neurodeploy.data import IGNORE, NEURITE, AnnotatedVolume

#: Standard deviation, in voxels, of the blur that tells background from its texture.
_SMOOTH = 5.0

#: Probability of a neurite above which a voxel counts as one, labelled or not.
_SEEN = 0.2

#: Places that are looked at before axons are planted in the one with the fewest others.
_PLACES = 20


@dataclass(frozen=True)
class Dimming:
    """What other tissue and optics make of axons: less signal, more background.

    Parameters
    ----------
    signal
        Factor of what rises over the background.
    background
        Factor of the tissue's smooth part.
    noise
        Standard deviation of the noise that comes with it, in grey levels.
    """

    signal: float = 1.0
    background: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class _Split:
    """A cube, as axons and as what lies around them."""

    near: NDArray[np.bool_]
    base: NDArray[np.float32]

    @classmethod
    def of(cls, cube: AnnotatedVolume, probability: NDArray[np.float32]) -> _Split:
        seen = (probability > _SEEN) | (cube.labels == NEURITE)
        near = ndimage.binary_dilation(seen, iterations=2)
        calm = (~near).astype(np.float32)
        weight = ndimage.gaussian_filter(calm, _SMOOTH)
        base = ndimage.gaussian_filter(cube.image * calm, _SMOOTH)
        base /= np.maximum(weight, 1e-6)
        return cls(near, base.astype(np.float32))


def with_fewer_axons(
    cube: AnnotatedVolume,
    probability: NDArray[np.float32],
    share: float,
    rng: np.random.Generator,
) -> AnnotatedVolume:
    """The cube as it might be in a part of the brain with few axons.

    Axons stay in a ball that holds `share` of the labelled ones; the others are
    replaced by the cube's own background: its smooth part, interpolated, and its
    texture, moved there from elsewhere in the cube.

    Parameters
    ----------
    probability
        float32 of the cube's shape: where a network sees axons. What is above 0.2
        goes, too, labelled or not.

    Raises
    ------
    DataError
        The cube has no axon to keep, or no background to copy.
    """
    axon = cube.labels == NEURITE
    split = _Split.of(cube, probability)
    near = split.near
    if not axon.any() or near.all():
        raise DataError(f"{cube.name} has no axon to keep, or no background to copy")
    gone = near & ~_ball(axon, share, rng)
    texture = cube.image - split.base
    image, left = cube.image.astype(np.float32), gone.copy()
    while left.any():
        shift = tuple(rng.integers(0, axon.shape))
        taken = left & ~np.roll(near, shift, (0, 1, 2))
        image[taken] = (split.base + np.roll(texture, shift, (0, 1, 2)))[taken]
        left &= ~taken
    return replace(
        cube,
        image=_levels(image),
        labels=np.where(gone & axon, 0, cube.labels).astype(np.uint8),
    )


def planted(
    cube: AnnotatedVolume,
    probability: NDArray[np.float32],
    tissue: AnnotatedVolume,
    share: float,
    rng: np.random.Generator,
    dimming: Dimming | None = None,
) -> AnnotatedVolume:
    """Axons of the cube, in other tissue: the texture that a whole brain has.

    A ball of axons, as in :func:`with_fewer_axons`, is added to a piece of `tissue`
    that has few neurites of its own. It is labelled where somebody labelled the cube:
    as the cube where the axons came to lie, as the tissue elsewhere. No network's
    answer becomes a label.

    After Dwibedi et al., "Cut, Paste and Learn" (ICCV 2017).

    Parameters
    ----------
    probability
        float32 of the cube's shape: where a network sees axons. They are planted,
        too, labelled or not.
    tissue
        At least as large as the cube on every axis; of the same microscope.
    dimming
        What becomes of the axons and of the tissue; None: nothing.

    Raises
    ------
    DataError
        The cube has no axon to plant, or does not fit into the tissue.
    """
    axon = cube.labels == NEURITE
    if not axon.any():
        raise DataError(f"{cube.name} has no axon to plant")
    split = _Split.of(cube, probability)
    kept = split.near & _ball(axon, share, rng)
    # Softened where the background begins again, so that no edge betrays the cut.
    near = split.near.astype(np.float32)
    soft = np.minimum(1, 1.3 * ndimage.gaussian_filter(near, 1.0))
    rise = np.where(kept, np.maximum(cube.image - split.base, 0) * soft, 0)
    ground, labels = _place(tissue, cube, rng)
    changed = dimming or Dimming()
    image = ground + changed.signal * rise
    if changed.background != 1:
        image += (changed.background - 1) * smooth_background(ground)
    if changed.noise:
        image += rng.normal(0, changed.noise, image.shape)
    around = ndimage.binary_dilation(kept)
    labels[around] = cube.labels[around]
    # An axon goes on behind the ball, in its own cube only.
    labels[around & ~kept & axon] = IGNORE
    labels[cube.labels == IGNORE] = IGNORE
    return replace(cube, image=_levels(image), labels=labels)


def unmarked(image: NDArray[Any], probability: NDArray[np.float32]) -> AnnotatedVolume:
    """Tissue to plant axons in: background, but for where one is seen.

    What the network sees above 0.2, and two voxels around it, is ignored.
    """
    seen = ndimage.binary_dilation(probability > _SEEN, iterations=2)
    labels = np.where(seen, IGNORE, 0).astype(np.uint8)
    return AnnotatedVolume(image, labels, "tissue")


def smooth_background(image: NDArray[Any]) -> NDArray[np.float32]:
    """(z, y, x) float32: what is left of an image without its thin, bright things."""
    calm = ndimage.gaussian_filter(image.astype(np.float32), 1)
    return ndimage.gaussian_filter(ndimage.minimum_filter(calm, 9), 4)


def _ball(
    axon: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Around one voxel of an axon: as wide as holds `share` of all of them."""
    marked = np.argwhere(axon)
    centre = marked[int(rng.integers(len(marked)))]
    grid = np.indices(axon.shape) - centre[:, None, None, None]
    away = (grid**2).sum(axis=0)
    inside: NDArray[np.bool_] = away <= np.quantile(away[axon], share)
    return inside


def _place(
    tissue: AnnotatedVolume, cube: AnnotatedVolume, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A piece of the tissue, as large as the cube, mirrored at random; its labels."""
    room = np.subtract(tissue.image.shape, cube.image.shape)
    if (room < 0).any():
        raise DataError(
            f"{cube.name} {cube.image.shape} does not fit into {tissue.name} "
            f"{tissue.image.shape}"
        )
    size = np.array(cube.image.shape)
    starts = [rng.integers(0, room + 1) for _ in range(_PLACES)]
    places = [tuple(map(slice, start, start + size)) for start in starts]
    calmest = min(places, key=lambda at: int((tissue.labels[at] != 0).sum()))
    mirror = tuple(slice(None, None, int(step)) for step in rng.choice([-1, 1], 3))
    ground = tissue.image[calmest][mirror].astype(np.float32)
    return ground, tissue.labels[calmest][mirror].copy()


def _levels(image: NDArray[Any]) -> NDArray[np.uint16]:
    levels: NDArray[Any] = np.clip(np.rint(image), 0, 65535)
    return levels.astype(np.uint16)
