"""A real light-sheet volume, written again in other formats, is the same volume."""

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box
from neurodeploy_runtime.volumes import open_volume

BOX = Box((100, 60, 40), (124, 260, 300))


@pytest.fixture(scope="module")
def brain(shared_data):
    return shared_data / "trailmap" / "whole_brain_crop_303.tif"


def test_a_real_brain_is_what_tifffile_reads(brain):
    expected = tifffile.imread(brain)
    with open_volume(brain, threads=2, cache_bytes=0) as volume:
        assert (volume.shape, volume.dtype.name) == ((303, 303, 303), "uint16")
        assert volume.format.startswith("TIFF, zlib")
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), expected)
        assert volume.decoded == 303


def test_a_real_oblique_stack_is_what_tifffile_reads(shared_data):
    path = shared_data / "neurotorch" / "test_large_volume_stack.tif"
    with open_volume(path, threads=2) as volume:
        found = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(found, tifffile.imread(path))


@pytest.mark.parametrize("number", [0, 9])
def test_the_cubes_of_trailmap_are_what_tifffile_reads(shared_data, number):
    path = shared_data / "trailmap" / "train" / "volumes" / f"volume-{number}.tiff"
    with open_volume(path) as volume:
        found = volume.read(Box.whole(volume.shape))
    np.testing.assert_array_equal(found, tifffile.imread(path))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"byteorder": ">", "imagej": True, "metadata": {"axes": "ZYX"}},
        {"compression": "lzw", "predictor": True},
        {"compression": "zstd", "predictor": True, "tile": (128, 128)},
        {"compression": "zlib", "rowsperstrip": 16, "ome": True, "bigtiff": True},
    ],
    ids=["contiguous", "big-endian ImageJ", "LZW", "zstd tiles", "OME BigTIFF strips"],
)
def test_a_crop_written_again_gives_the_same_voxels(brain, tmp_path, how):
    with open_volume(brain, threads=2) as volume:
        crop = volume.read(BOX)
    path = tmp_path / "crop.tif"
    tifffile.imwrite(
        path, crop, photometric="minisblack", **{"metadata": {"axes": "ZYX"}, **how}
    )
    inner = Box((3, 17, 5), (21, 190, 255))
    with open_volume(path, threads=2) as volume:
        np.testing.assert_array_equal(volume.read(Box.whole(crop.shape)), crop)
        np.testing.assert_array_equal(volume.read(inner), crop[inner.slices])
