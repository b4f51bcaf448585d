"""A look at a spread sample of a volume, before it is segmented."""

from __future__ import annotations

from itertools import pairwise

from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._normalise import Histogram
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime.volumes import Source

#: Voxels that are looked at, at most; beyond that, more change no third digit.
SAMPLE_VOXELS = 48_000_000
PLANES = 24
#: Voxels of a row of chunks that are decoded for the boxes on it, so that they are
#: still kept when the next box of the row is read.
BAND_VOXELS = 2_000_000


def survey(source: Source) -> Histogram:
    """The histogram of a sample that depends on the volume's shape alone.

    Planes at equal distances; where planes are so large that they would not fit the
    sample, the same boxes of each. Every voxel of a small volume.
    """
    histogram = Histogram(source.dtype)
    # Deep chunks are loaded whole also where they are not compressed.
    whole = source.compressed or source.chunk[0] > 1
    for box in sample_boxes(source.shape, source.chunk if whole else None):
        histogram.add(read_patiently(source, box))
    return histogram


def sample_boxes(shape: Shape, chunk: Shape | None) -> list[Box]:
    """The boxes of the sample, in an order in which no chunk is left and met again."""
    depth, height, width = shape
    plane = height * width
    if depth * plane <= SAMPLE_VOXELS:
        step = max(1, 2_000_000 // plane)
        return [
            Box((z, 0, 0), (min(z + step, depth), height, width))
            for z in range(0, depth, step)
        ]
    thick = min(chunk[0], depth) if chunk else 1
    count = max(2, min(PLANES, depth // thick))
    starts = sorted(
        {
            min(round(i * (depth - thick) / (count - 1)) // thick * thick, depth - 1)
            for i in range(count)
        }
    )
    per_box = SAMPLE_VOXELS // len(starts)
    if thick * plane <= per_box:
        return [Box((z, 0, 0), (min(z + thick, depth), height, width)) for z in starts]
    # A grid of boxes in each plane: a third of the extent would show one region only.
    cells = 4
    share = (per_box / (thick * plane)) ** 0.5
    h, w = max(1, int(height / cells * share)), max(1, int(width / cells * share))
    return [
        Box((z, top, x), (min(z + thick, depth), bottom, x + w))
        for z in starts
        for y in (i * height // cells for i in range(cells))
        for top, bottom in _bands(y, y + h, thick, width, chunk)
        for x in (i * width // cells for i in range(cells))
    ]


def _bands(
    y0: int, y1: int, thick: int, width: int, chunk: Shape | None
) -> list[tuple[int, int]]:
    """Rows y0 to y1, cut where a few rows of chunks end."""
    if chunk is None:
        return [(y0, y1)]
    rows = chunk[1] * max(1, BAND_VOXELS // (thick * chunk[1] * width))
    cuts = [y0, *range((y0 // rows + 1) * rows, y1, rows), y1]
    return list(pairwise(cuts))
