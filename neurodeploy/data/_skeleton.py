"""Centre lines among the labels, for the connectivity loss."""

from __future__ import annotations

import dataclasses

import numpy as np

from neurodeploy.data._dataset import BACKGROUND, IGNORE, SKELETON, AnnotatedVolume


def mark_skeleton(volume: AnnotatedVolume) -> AnnotatedVolume:
    """The same volume with the neurites' centre lines labelled `SKELETON`.

    The tube of Kirchhoff et al. (arXiv 2404.03010, section 3): the skeleton, one
    voxel thicker on every side, and never outside the neurite. Where only single
    slices are labelled, it is the skeleton of each slice.
    """
    from scipy import ndimage
    from skimage.morphology import skeletonize

    neurite = (volume.labels != BACKGROUND) & (volume.labels != IGNORE)
    labelled = np.flatnonzero((volume.labels != IGNORE).any(axis=(1, 2)))
    if len(labelled) > 1 and np.diff(labelled).min() == 1:
        line = skeletonize(neurite)  # type: ignore[no-untyped-call]
        tube = ndimage.binary_dilation(line, np.ones((3, 3, 3), bool))
    else:
        tube = np.zeros_like(neurite)
        for z in labelled:
            line = skeletonize(neurite[z])  # type: ignore[no-untyped-call]
            tube[z] = ndimage.binary_dilation(line, np.ones((3, 3), bool))
    labels = volume.labels.copy()
    labels[tube & neurite] = SKELETON
    return dataclasses.replace(volume, labels=labels)
