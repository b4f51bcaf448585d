"""Which volumes a run trains on, and which it holds out to choose by."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from neurodeploy.data import AnnotatedVolume
from neurodeploy.data._volumes import Listed, image_digest, listed

Parts = tuple[list[AnnotatedVolume], list[AnnotatedVolume]]


def split(
    volumes: Sequence[AnnotatedVolume],
    share: float,
    seed: int,
    seen: Collection[str] = (),
) -> Parts:
    """Training and validation volumes; never an empty training part.

    A seed and the voxels of each image decide, neither its name nor its place among
    the others: files that are renamed, or folders named in another order, hold out the
    same images. Copies of an image are on one side, and count once. Both parts keep
    the order in which the volumes came.

    Parameters
    ----------
    seen
        Digests of images that the first weights were made with: they are held out
        where no others are left.
    """
    copies: dict[str, list[int]] = {}
    for i, volume in enumerate(volumes):
        copies.setdefault(image_digest(volume.image), []).append(i)
    drawn = sorted(copies, key=lambda mark: (mark in seen, _lot(mark, seed)))
    chosen = drawn[: _count(len(copies), share)]
    return _parts(volumes, [i for mark in chosen for i in copies[mark]])


def split_as(volumes: Sequence[AnnotatedVolume], then: Mapping[str, Listed]) -> Parts:
    """Both parts as a run began that names its volumes, in the order of then.

    A volume that it does not name is put last among those to train on.
    """
    left = list(zip(volumes, listed(volumes), strict=True))
    parts: Parts = ([], [])
    # One of other labels stays on its side, where it is refused by name.
    for keys in (("image", "labels"), ("image",)):
        for part, found in zip(("training", "validation"), parts, strict=True):
            for entry in then.get(part, []):
                for i, (volume, own) in enumerate(left):
                    if all(own[key] == entry[key] for key in keys):
                        found.append(volume)
                        del left[i]
                        break
    parts[0].extend(volume for volume, _ in left)
    return parts


def split_by_place(
    volumes: Sequence[AnnotatedVolume], share: float, seed: int
) -> Parts:
    """As runs were split whose checkpoints do not name their volumes: by place."""
    order = np.random.default_rng(seed).permutation(len(volumes)).tolist()
    return _parts(volumes, order[: _count(len(volumes), share)])


def _count(volumes: int, share: float) -> int:
    held = 0 if share == 0 or volumes < 2 else max(1, round(share * volumes))
    return min(held, volumes - 1)


def _parts(volumes: Sequence[AnnotatedVolume], held: Sequence[int]) -> Parts:
    chosen = set(held)
    return (
        [v for i, v in enumerate(volumes) if i not in chosen],
        [v for i, v in enumerate(volumes) if i in chosen],
    )


def _lot(mark: str, seed: int) -> str:
    """The place of an image, by its digest, in a draw."""
    return hashlib.sha256(f"{seed} {mark}".encode()).hexdigest()
