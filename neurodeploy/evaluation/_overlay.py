"""A picture of what was found, missed and imagined."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.data import BACKGROUND, IGNORE
from neurodeploy_runtime import Histogram

#: Okabe and Ito's colours, that the colour-blind tell apart.
FOUND = (0, 158, 115)
IMAGINED = (213, 94, 0)
MISSED = (86, 180, 233)

_GAP = 8
_LONGEST = 1024
_SMALLEST = 256


def overlay_png(
    image: NDArray[Any], labels: NDArray[np.uint8], found: NDArray[np.bool_]
) -> bytes:
    """A PNG: the image left; right, found green, imagined orange, missed blue.

    Of sparse labels the plane with most labelled voxels, else maxima along z. What
    was found where labels ignore is darker.
    """
    from neurodeploy_runtime._picture import encode_png

    known = labels != IGNORE
    truth = known & (labels != BACKGROUND)
    per_plane = known.sum(axis=(1, 2))
    planes = np.flatnonzero(per_plane)
    if len(planes) < 0.5 * len(labels):
        keep = slice(int(per_plane.argmax()), int(per_plane.argmax()) + 1)
    else:
        keep = slice(None)
    gray = _gray(image[keep].max(axis=0), image)
    sheet = np.repeat(gray[..., None] * np.float32(0.6), 3, axis=2)
    layers: tuple[tuple[NDArray[np.bool_], tuple[int, int, int], float], ...] = (
        (found & ~known, FOUND, 0.35),
        (truth & ~found, MISSED, 0.9),
        (found & known & ~truth, IMAGINED, 0.9),
        (found & truth, FOUND, 0.9),
    )
    for mask, colour, share in layers:
        flat = mask[keep].any(axis=0)
        sheet[flat] += np.float32(share) * (np.array(colour, np.float32) - sheet[flat])
    left = np.repeat(gray[..., None], 3, axis=2)
    gap = np.full((gray.shape[0], _GAP, 3), 255, np.float32)
    both = np.concatenate([left, gap, sheet], axis=1)
    larger = max(1, _SMALLEST // gray.shape[0])
    smaller = max(1, -(-max(gray.shape) // _LONGEST))
    both = both[::smaller, ::smaller].repeat(larger, axis=0).repeat(larger, axis=1)
    return encode_png(np.clip(both, 0, 255).astype(np.uint8))


def _gray(plane: NDArray[Any], image: NDArray[Any]) -> NDArray[np.float32]:
    histogram = Histogram(image.dtype)
    histogram.add(image)
    seen = histogram.freeze("background-asinh").apply(plane)
    low, high = -1.0, max(float(np.percentile(seen, 99.8)), 1.0)
    return np.asarray(np.clip((seen - low) / (high - low), 0, 1) * 255, np.float32)
