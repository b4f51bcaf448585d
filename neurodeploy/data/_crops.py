"""Cutting a tile out of a volume at any place, scale and orientation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data._augment import Augmentation
from neurodeploy_runtime._geometry import Shape

#: 3 × 3: from an offset in the tile to an offset in the volume, both z, y, x.
Pose = NDArray[np.float64]


def random_pose(
    augmentation: Augmentation | None, isotropic: bool, rng: np.random.Generator
) -> Pose:
    """Draw an orientation and a scale; the identity where nothing is to be augmented.

    Flips along every axis and right angles in the plane always; a change of axes only
    for isotropic volumes; a free angle in the plane and a scale per axis at the
    probabilities of the augmentation.
    """
    pose: Pose = np.eye(3)
    if augmentation is None:
        return pose
    if isotropic and rng.random() < augmentation.axes_probability:
        pose = pose[rng.permutation(3)]
    elif rng.random() < 0.5:
        pose = pose[[0, 2, 1]]
    pose = pose * rng.choice([-1.0, 1.0], size=3)
    if rng.random() < augmentation.rotation_probability:
        angle = rng.uniform(-np.pi / 4, np.pi / 4)
        c, s = np.cos(angle), np.sin(angle)
        pose = pose @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if rng.random() < augmentation.scale_probability:
        low, high = augmentation.scale_range
        common = np.exp(rng.uniform(np.log(low), np.log(high)))
        ratio = np.exp(rng.uniform(-1, 1) * np.log(augmentation.anisotropy))
        # Reading in larger steps shows neurites smaller.
        pose = pose @ np.diag([ratio / common, 1 / common, 1 / common])
    return pose


def crop(
    image: NDArray[Any],
    labels: NDArray[np.uint8],
    centre: NDArray[np.float64],
    pose: Pose,
    shape: Shape,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Cut a tile whose middle voxel lies at `centre`; what sticks out is mirrored.

    The image is interpolated linearly, the labels by the nearest voxel.
    """
    from scipy import ndimage

    middle = np.array([extent // 2 for extent in shape], float)
    # Only the part that is read: ndimage copies what is not in native layout.
    corners = np.array(np.meshgrid(*((0, e - 1) for e in shape), indexing="ij"))
    reach = np.abs(pose @ (corners.reshape(3, -1) - middle[:, None])).max(axis=1)
    low = np.floor(centre - reach).astype(int) - 1
    high = np.ceil(centre + reach).astype(int) + 2
    extent = np.array(image.shape)
    low = np.where(high > extent, np.minimum(low, 2 * extent - high - 1), low)
    high = np.where(low < 0, np.maximum(high, -low + 2), high)
    box_low = np.maximum(low, 0)
    box = tuple(
        slice(int(a), int(b))
        for a, b in zip(box_low, np.minimum(high, extent), strict=True)
    )
    offset = centre - box_low - pose @ middle
    voxels = ndimage.affine_transform(
        image[box].astype(np.float32), pose, offset, shape, order=1, mode="mirror"
    )
    marks = ndimage.affine_transform(
        labels[box], pose, offset, shape, order=0, mode="mirror"
    )
    return voxels, marks
