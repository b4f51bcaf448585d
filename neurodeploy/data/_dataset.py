"""Annotated volumes, and samples of them that depend on a seed and a number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import DataError
from neurodeploy.data._augment import Augmentation, degrade
from neurodeploy.data._crops import crop, random_pose
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._normalise import Histogram, Normalisation

BACKGROUND = 0
NEURITE = 1
#: A neurite's voxel beside its centre line, where the connectivity loss looks.
SKELETON = 2
IGNORE = 255

#: Voxels of a kind that are remembered as places to centre a crop on.
_MAX_PLACES = 200_000


@dataclass(frozen=True, eq=False)
class AnnotatedVolume:
    """An image with what is known of each voxel.

    Parameters
    ----------
    image
        (z, y, x) grey values of any real dtype.
    labels
        (z, y, x) uint8: `BACKGROUND`, `NEURITE`, `SKELETON` or `IGNORE`.
    name
        What errors and logs call it.
    group
        Samples are shared out over groups first, then over a group's volumes.
    isotropic
        Whether crops may lie along any axis, so that a neurite along z may be shown
        as one along x.
    measured
        Constants to normalise by, of the volume that the image was cut from; None:
        measured on the image.
    voxel_size_um
        z, y, x; None where nothing says it.

    Raises
    ------
    DataError
        Where the shapes differ, nothing is labelled, or a label has no meaning.
    """

    image: NDArray[Any]
    labels: NDArray[np.uint8]
    name: str
    group: str = "data"
    isotropic: bool = False
    measured: Normalisation | None = None
    voxel_size_um: tuple[float, float, float] | None = None
    normalisation: Normalisation = field(init=False)
    neurite_places: NDArray[np.int64] = field(init=False, repr=False)
    labelled_places: NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape != self.labels.shape:
            raise DataError(
                f"{self.name}: image {self.image.shape} and labels "
                f"{self.labels.shape} are not two volumes of one shape (z, y, x)"
            )
        if self.labels.dtype != np.uint8:
            raise DataError(f"{self.name}: labels are {self.labels.dtype}, not uint8")
        present = np.flatnonzero(np.bincount(self.labels.ravel(), minlength=256))
        odd = set(present.tolist()) - {BACKGROUND, NEURITE, SKELETON, IGNORE}
        if odd:
            raise DataError(f"{self.name}: labels {sorted(odd)} have no meaning")
        labelled = np.flatnonzero(self.labels != IGNORE)
        if not labelled.size:
            raise DataError(f"{self.name}: every voxel is to be ignored")
        flat = self.labels.ravel()[labelled]
        neurite = labelled[flat != BACKGROUND]
        normalisation = self.measured or measure(self.image)
        object.__setattr__(self, "normalisation", normalisation)
        object.__setattr__(self, "neurite_places", _thinned(neurite))
        object.__setattr__(self, "labelled_places", _thinned(labelled))


def measure(image: NDArray[Any]) -> Normalisation:
    """Constants to normalise an image (z, y, x) by.

    Raises
    ------
    InputError
        Where it is constant, or holds NaN or infinity.
    """
    histogram = Histogram(image.dtype)
    histogram.add(image)
    return histogram.freeze("background-asinh")


def _thinned(places: NDArray[np.int64]) -> NDArray[np.int64]:
    return places[:: max(1, -(-places.size // _MAX_PLACES))].copy()


class Samples:
    """Crops without end: sample `n` is the same in every process and after a restart.

    Indexing gives ``(voxels, labels)``: (1, *tile) float32 normalised voxels, and the
    (1, *window) uint8 labels of the window in the tile's middle.

    Parameters
    ----------
    volumes
        What to draw from.
    shares
        Relative number of samples of each group; groups that are not named get 1.
    neurite_share
        Share of the crops that are centred on a neurite; the others are centred on
        any labelled voxel.
    """

    def __init__(
        self,
        volumes: Sequence[AnnotatedVolume],
        tile: Shape,
        window: Shape,
        augmentation: Augmentation | None,
        seed: int,
        shares: dict[str, float] | None = None,
        neurite_share: float = 0.6,
    ) -> None:
        if not volumes:
            raise DataError("there is no volume to train on")
        if not any(v.neurite_places.size for v in volumes):
            raise DataError(
                f"none of the {len(volumes)} volumes has a neurite voxel: check the "
                "annotation's values and units"
            )
        if not any((v.labels == BACKGROUND).any() for v in volumes):
            raise DataError(
                f"none of the {len(volumes)} volumes has a background voxel: one "
                "class alone teaches nothing"
            )
        self.volumes = list(volumes)
        self.tile = tile
        self.window = window
        self.augmentation = augmentation
        self.seed = seed
        self.neurite_share = neurite_share
        groups = sorted({v.group for v in volumes})
        given = shares or {}
        unknown = sorted(set(given) - set(groups))
        if unknown:
            raise DataError(f"shares name groups {unknown}, but there are {groups}")
        weights = np.array([given.get(g, 1.0) for g in groups], float)
        if not weights.sum() > 0:
            raise DataError(
                f"the shares of all groups ({', '.join(groups)}) are 0: give one of "
                "them more"
            )
        self._cumulated = np.cumsum(weights) / weights.sum()
        self._groups = [[v for v in volumes if v.group == g] for g in groups]

    def __getitem__(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Sample `number`, 0 or more."""
        rng = np.random.default_rng([self.seed, number])
        index = int(np.searchsorted(self._cumulated, rng.random(), side="right"))
        group = self._groups[min(index, len(self._groups) - 1)]
        volume = group[int(rng.integers(len(group)))]
        places = volume.labelled_places
        if rng.random() < self.neurite_share and volume.neurite_places.size:
            places = volume.neurite_places
        place = int(places[int(rng.integers(places.size))])
        centre = np.array(np.unravel_index(place, volume.labels.shape), float)
        pose = random_pose(self.augmentation, volume.isotropic, rng)
        # Not always in the middle, which a network could learn; but in the window.
        extent = np.array(self.window)
        shift = rng.integers(extent // 2 - extent + 1, extent // 2 + 1)
        centre += pose @ shift.astype(float)
        raw, labels = crop(volume.image, volume.labels, centre, pose, self.tile)
        constants = volume.normalisation
        units = (raw - np.float32(constants.background)) / np.float32(constants.noise)
        if self.augmentation is not None:
            units, labels = degrade(units, labels, self.augmentation, rng)
        voxels = np.arcsinh(units, dtype=np.float32)
        z, y, x = ((t - w) // 2 for t, w in zip(self.tile, self.window, strict=True))
        d, h, w = self.window
        return voxels[None], labels[None, z : z + d, y : y + h, x : x + w]
