"""The simulator: what a place holds depends on the seed and the place alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy.morphology import Morphology
from neurodeploy.simulate import (
    CONFOCAL,
    LIGHT_SHEET,
    SampleSettings,
    sample_block,
    write_sample,
)
from neurodeploy_runtime import Box, OutputError, SettingsError

SMALL = SampleSettings(
    shape=(20, 70, 90), seed=3, appearance=LIGHT_SHEET, block=(20, 70, 90), threads=1
)


@pytest.mark.parametrize("appearance", [LIGHT_SHEET, CONFOCAL])
def test_blocks_of_any_size_give_the_same_voxels(appearance: object) -> None:
    settings = replace(SMALL, appearance=appearance)
    whole, truth = sample_block(settings, Box.whole(settings.shape))
    for box in (Box((0, 0, 0), (7, 33, 41)), Box((13, 30, 50), (20, 70, 90))):
        image, mask = sample_block(settings, box)
        np.testing.assert_array_equal(image, whole[box.slices])
        np.testing.assert_array_equal(mask, truth[box.slices])


def test_files_of_two_block_sizes_hold_the_same_voxels(tmp_path: Path) -> None:
    line = Morphology.from_path([(10, 5, 5), (10, 60, 80)])
    images = []
    for name, block, threads in (("a", (20, 70, 90), 1), ("b", (6, 40, 32), 2)):
        path, mask = tmp_path / f"{name}.tif", tmp_path / f"{name}.mask.tif"
        write_sample(
            path,
            replace(SMALL, block=block, threads=threads),
            truth=mask,
            neurites=[line],
        )
        images.append((tifffile.imread(path), tifffile.imread(mask)))
    np.testing.assert_array_equal(images[0][0], images[1][0])
    np.testing.assert_array_equal(images[0][1], images[1][1])
    assert images[0][0].shape == SMALL.shape
    assert set(np.unique(images[0][1])) == {0, 255}


def test_nothing_but_the_outputs_is_left(tmp_path: Path) -> None:
    write_sample(tmp_path / "a.tif", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_imagej
        assert file.imagej_metadata is not None
        assert file.imagej_metadata["spacing"] == pytest.approx(2.0)


def test_a_stopped_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "a.tif"
    with pytest.raises(KeyboardInterrupt):
        write_sample(path, replace(SMALL, block=(5, 70, 90)), progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_what_exists_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already there"):
        write_sample(path, SMALL)
    assert path.read_bytes() == b"mine"
    write_sample(path, SMALL, overwrite=True)
    assert tifffile.imread(path).shape == SMALL.shape


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("shape", (0, 5, 5), "at least 1"),
        ("voxel_size_um", (0.0, 1.0, 1.0), "positive"),
        ("voxel_size_um", (50.0, 1.0, 1.0), "out of range"),
        ("seed", -1, "negative"),
    ],
)
def test_impossible_settings_are_refused(field: str, value: object, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        replace(SMALL, **{field: value})
