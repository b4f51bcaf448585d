"""Folders of planes: in natural order, and never with one missing."""

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box, InputError, SettingsError
from neurodeploy_runtime.volumes import open_volume
from neurodeploy_runtime.volumes._files import KEPT_OPEN

SHAPE = (12, 20, 30)


def a_stack(planes=SHAPE[0]):
    rng = np.random.default_rng(2)
    return rng.integers(0, 999, (planes, *SHAPE[1:])).astype(np.uint16)


def write(folder, names, **how):
    voxels = a_stack(len(names))
    for name, plane in zip(names, voxels, strict=True):
        tifffile.imwrite(folder / name, plane, **how)
    return voxels


@pytest.mark.parametrize(
    "name",
    [
        lambda z: f"{z}.tif",
        lambda z: f"brain_C1_Z{z:04d}.tiff",
        lambda z: f"Z{z * 20 + 4000}_488.TIF",
        lambda z: f"{z - 3 if z > 3 else z}.tif" if z < 1 else f"{z}.tif",
    ],
    ids=["numbers", "padded", "positions", "from zero"],
)
def test_planes_are_sorted_by_their_number_and_not_as_text(tmp_path, name):
    expected = write(tmp_path, [name(z) for z in range(SHAPE[0])])
    with open_volume(tmp_path, threads=2) as volume:
        assert volume.shape == SHAPE
        np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), expected)


def test_missing_planes_are_named(tmp_path):
    write(tmp_path, [f"z{10 * z:03}.tif" for z in range(12)])
    (tmp_path / "z040.tif").unlink()
    (tmp_path / "z050.tif").unlink()
    with pytest.raises(InputError, match=r"between z000\.tif and z110\.tif: 40, 50;"):
        open_volume(tmp_path)


def test_a_folder_of_what_a_system_hides_holds_no_planes(tmp_path):
    write(tmp_path, ["._1.tif", "._2.tif"])
    (tmp_path / "3.tif").mkdir()
    with pytest.raises(InputError, match="is a folder without TIFF planes"):
        open_volume(tmp_path)


def test_a_plane_of_another_shape_is_named(tmp_path):
    write(tmp_path, [f"{z}.tif" for z in range(12)])
    tifffile.imwrite(tmp_path / "7.tif", np.zeros((20, 31), np.uint16))
    with pytest.raises(InputError, match=r"7\.tif has \(20, 31\) uint16 voxels"):
        open_volume(tmp_path)
    tifffile.imwrite(tmp_path / "7.tif", np.zeros((20, 30), np.uint8))
    with pytest.raises(InputError, match=r"7\.tif has \(20, 30\) uint8 voxels"):
        open_volume(tmp_path)


def test_two_channels_in_one_folder_are_refused(tmp_path):
    write(tmp_path, [f"z{z}_c{c}.tif" for c in range(2) for z in range(6)])
    with pytest.raises(InputError, match="differ in 2 numbers"):
        open_volume(tmp_path)


def test_other_files_among_the_planes_are_refused(tmp_path):
    write(tmp_path, [f"{z}.tif" for z in range(6)])
    tifffile.imwrite(tmp_path / "overview.tif", np.zeros((20, 30), np.uint16))
    with pytest.raises(InputError, match=r"different names, as .*overview\.tif"):
        open_volume(tmp_path)


def test_a_stack_among_the_planes_is_refused(tmp_path):
    write(tmp_path, [f"{z}.tif" for z in range(6)])
    tifffile.imwrite(tmp_path / "3.tif", a_stack())
    with pytest.raises(InputError, match=r"3\.tif holds 12 planes"):
        open_volume(tmp_path)


def test_a_plane_that_is_cut_short_is_named(tmp_path):
    write(tmp_path, [f"{z}.tif" for z in range(6)])
    data = (tmp_path / "4.tif").read_bytes()
    (tmp_path / "4.tif").write_bytes(data[:-100])
    with pytest.raises(InputError, match=r"4\.tif is cut short in plane 4"):
        open_volume(tmp_path)
    (tmp_path / "4.tif").write_bytes(b"")
    with pytest.raises(InputError, match=r"4\.tif cannot be read as a TIFF plane"):
        open_volume(tmp_path)


def test_planes_may_differ_in_byte_order_and_in_where_their_data_lies(tmp_path):
    expected = write(tmp_path, [f"{z}.tif" for z in range(6)])
    tifffile.imwrite(tmp_path / "2.tif", expected[2], byteorder=">")
    tifffile.imwrite(tmp_path / "3.tif", expected[3], description="moved " * 50)
    with open_volume(tmp_path) as volume:
        np.testing.assert_array_equal(volume.read(Box.whole(volume.shape)), expected)


def test_a_folder_has_no_channels_to_choose(tmp_path):
    write(tmp_path, [f"{z}.tif" for z in range(6)])
    with pytest.raises(InputError, match="no channel 1"):
        open_volume(tmp_path, channel=1)
    with pytest.raises(SettingsError, match="level 1 has no meaning"):
        open_volume(tmp_path, level=1)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_many_planes_need_few_descriptors(tmp_path, compression):
    resource = pytest.importorskip("resource")
    planes = 3 * KEPT_OPEN
    expected = write(
        tmp_path, [f"{z}.tif" for z in range(planes)], compression=compression
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (2 * KEPT_OPEN, hard))
    try:
        with open_volume(tmp_path, threads=4) as volume:
            found = volume.read(Box.whole(volume.shape))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(found, expected)
