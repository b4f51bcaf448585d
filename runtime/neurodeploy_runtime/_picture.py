"""The picture of a run: projections of the image beside image with segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._projections import LONGEST, Projections

GAP = 12
PAPER = 255
#: Orange on gray reads well in print and for the colour-blind.
OVERLAY = np.array([255, 110, 0], np.float32)
#: Depth is stretched to at most this many pixels: a voxel size that is wrong in the
#: file would make a picture of many gigabytes.
DEEPEST = 4 * LONGEST


def draw_picture(image: Projections, result: Projections, z_scale: float) -> bytes:
    """A PNG: three rows (along z, y, x), image left, with the segmentation right.

    `z_scale` is the voxel's depth over its width, by which depth is stretched, to
    between 1 and `DEEPEST` pixels.
    """
    z_scale = min(z_scale, DEEPEST / image.along_y.shape[0])
    panels = []
    for name in ("along_z", "along_y", "along_x"):
        grays = getattr(image, name)
        mask = getattr(result, name)
        if name == "along_x":
            grays, mask = grays.T, mask.T
        scale = {"along_z": (1.0, 1.0), "along_y": (z_scale, 1.0)}.get(
            name, (1.0, z_scale)
        )
        gray = _resize(_stretch(grays), scale)
        panels.append((gray, _resize(mask, scale)))
    width = max(gray.shape[1] for gray, _ in panels)
    height = sum(gray.shape[0] for gray, _ in panels) + GAP * (len(panels) + 1)
    paper = np.full((height, 2 * width + 3 * GAP, 3), PAPER, np.uint8)
    y = GAP
    for gray, mask in panels:
        h, w = gray.shape
        paper[y : y + h, GAP : GAP + w] = gray[..., None]
        share = mask.astype(np.float32) * np.float32(0.75 / 255)
        for channel, colour in enumerate(OVERLAY):
            laid = gray + (colour - gray) * share
            paper[y : y + h, 2 * GAP + width : 2 * GAP + width + w, channel] = laid
        y += h + GAP
    return encode_png(paper)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (y, x) or (y, x, 3) uint8."""
    import imagecodecs

    # 6 takes more than twice as long, for a hundredth of the size.
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=3))


def _stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grays 0 to 255 between the 1st percentile and the 99.8th, on a soft scale.

    The square root lets thin, dim neurites be seen beside bright cell bodies.
    """
    grays = values.astype(np.float32)
    grays[~np.isfinite(grays)] = 0
    low, high = np.percentile(grays, [1, 99.8])
    grays -= np.float32(low)
    grays /= np.float32(max(float(high - low), 1e-6))
    np.clip(grays, 0, 1, out=grays)
    np.sqrt(grays, out=grays)
    grays *= np.float32(255)
    return grays.astype(np.uint8)


def _resize(pixels: NDArray[np.uint8], scale: tuple[float, float]) -> NDArray[np.uint8]:
    if scale == (1.0, 1.0):
        return pixels
    rows, columns = (
        np.minimum((np.arange(max(1, round(n * s))) / s).astype(np.intp), n - 1)
        for n, s in zip(pixels.shape, scale, strict=True)
    )
    resized: NDArray[np.uint8] = pixels[rows][:, columns]
    return resized
