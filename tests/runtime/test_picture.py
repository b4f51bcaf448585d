"""Projections are plain maxima, and become a picture of a bounded size."""

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import _projections
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._picture import DEEPEST, GAP, draw_picture
from neurodeploy_runtime._projections import Projections


def plain_projections(voxels, factor):
    """Along z, y and x, by a maximum over every cell on its own."""
    d, h, w = (-(-n // factor) for n in voxels.shape)
    cells = np.empty((d, h, w), voxels.dtype)
    for z, y, x in np.ndindex(d, h, w):
        at = (slice(n * factor, (n + 1) * factor) for n in (z, y, x))
        cells[z, y, x] = voxels[tuple(at)].max()
    return cells.max(axis=0), cells.max(axis=1), cells.max(axis=2)


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 13), st.integers(1, 13)),
    start=st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 5)),
    cut=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    longest=st.integers(1, 9),
    dtype=st.sampled_from(["uint8", "int16", "float32"]),
)
def test_projections_are_plain_maxima_of_cells(shape, start, cut, longest, dtype):
    """However planes are cut into parts, and wherever the region begins."""
    depth, height, width = (a + n + 1 for a, n in zip(start, shape, strict=True))
    volume = np.random.default_rng(5).integers(0, 200, (depth, height, width))
    volume = volume.astype(dtype)
    box = Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
    y, x = cut[0] % height, cut[1] % width
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_projections, "LONGEST", longest)
        projections = Projections(box, volume.dtype)
    for z, plane in enumerate(volume):
        for top, bottom in ((0, y), (y, height)):
            for left, right in ((0, x), (x, width)):
                projections.add(z, top, left, plane[top:bottom, left:right])
    wanted = plain_projections(volume[box.slices], projections.factor)
    got = (projections.along_z, projections.along_y, projections.along_x)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == volume.dtype
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("z_scale", "deep"), [(2.5, 50), (480, DEEPEST), (1e9, DEEPEST), (1e-9, 1)]
)
def test_a_voxel_size_that_is_wrong_makes_no_huge_picture(z_scale, deep):
    box = Box.whole((20, 4, 5))
    image, result = (Projections(box, np.dtype(np.uint8)) for _ in range(2))
    for z in range(20):
        image.add(z, 0, 0, np.full((4, 5), 10 * z, np.uint8))
    pixels = imagecodecs.png_decode(draw_picture(image, result, z_scale))
    # Rows: along z, along y with depth downwards, along x with depth to the right.
    assert pixels.shape == (4 + deep + 4 + 4 * GAP, 2 * max(5, deep) + 3 * GAP, 3)
