"""The picture of a run: projections of the image beside image with segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._projections import Projections

GAP = 12
PAPER = 255
#: Orange on gray reads well in print and for the colour-blind.
OVERLAY = np.array([255, 110, 0], np.float32)
#: The shorter side of the smallest panel is enlarged to about this.
SMALLEST = 48


def draw_picture(image: Projections, result: Projections, z_scale: float) -> bytes:
    """A PNG: three rows (along z, y, x), image left, with the segmentation right.

    `z_scale` is the voxel's depth over its width, by which depth is stretched.
    """
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
        share = _resize(mask.astype(np.float32) / 255, scale)[..., None]
        base = np.repeat(gray[..., None], 3, axis=2)
        laid = base * (1 - 0.75 * share) + OVERLAY * (0.75 * share)
        panels.append((base, laid))
    width = max(base.shape[1] for base, _ in panels)
    height = sum(base.shape[0] for base, _ in panels) + GAP * (len(panels) + 1)
    paper = np.full((height, 2 * width + 3 * GAP, 3), PAPER, np.uint8)
    y = GAP
    for base, laid in panels:
        h, w = base.shape[:2]
        paper[y : y + h, GAP : GAP + w] = np.rint(base)
        paper[y : y + h, 2 * GAP + width : 2 * GAP + width + w] = np.rint(laid)
        y += h + GAP
    return encode_png(paper)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (y, x) or (y, x, 3) uint8."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels), level=6))


def _stretch(values: NDArray[Any]) -> NDArray[np.float32]:
    """Grays 0 to 255 between the 1st percentile and the 99.8th, on a soft scale.

    The square root lets thin, dim neurites be seen beside bright cell bodies.
    """
    grays = values.astype(np.float32)
    grays = np.where(np.isfinite(grays), grays, 0)
    low, high = np.percentile(grays, [1, 99.8])
    unit = np.clip((grays - low) / max(float(high - low), 1e-6), 0, 1)
    soft: NDArray[np.float32] = np.sqrt(unit).astype(np.float32) * np.float32(255)
    return soft


def _resize(pixels: NDArray[np.float32], scale: tuple[float, float]) -> Any:
    if scale == (1.0, 1.0):
        return pixels
    rows, columns = (
        np.minimum((np.arange(max(1, round(n * s))) / s).astype(np.intp), n - 1)
        for n, s in zip(pixels.shape, scale, strict=True)
    )
    return pixels[rows][:, columns]
