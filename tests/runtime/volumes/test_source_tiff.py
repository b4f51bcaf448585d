"""TIFF dialects: what a file says of itself is believed, and nothing is guessed."""

import numpy as np
import pytest
import tifffile
from volume_writers import an_ome_set

from neurodeploy_runtime import Box, InputError, SettingsError
from neurodeploy_runtime.volumes import open_volume

SHAPE = (5, 24, 30)


def a_stack(*leading, dtype="uint16"):
    rng = np.random.default_rng(1)
    return rng.integers(0, 200, (*leading, *SHAPE)).astype(dtype)


def write(path, voxels, **how):
    tifffile.imwrite(path, voxels, photometric="minisblack", **how)
    return path


def whole(path, **options):
    with open_volume(path, **options) as volume:
        return volume.read(Box.whole(volume.shape))


# Channels, times and axes


@pytest.mark.parametrize(
    "how", [{"imagej": True}, {"ome": True}, {"ome": True, "compression": "zlib"}, {}]
)
def test_one_channel_and_time_of_a_hyperstack(tmp_path, how):
    voxels = a_stack(3, 2).transpose(0, 2, 1, 3, 4)  # t, z, c, y, x
    path = write(tmp_path / "a.tif", voxels, metadata={"axes": "TZCYX"}, **how)
    with pytest.raises(InputError, match="3 times: choose one with --time 0 to 2"):
        open_volume(path)
    with pytest.raises(InputError, match="2 channels: choose one with --channel 0 to"):
        open_volume(path, time=1)
    with pytest.raises(InputError, match="no channel 2: choose 0 to 1"):
        open_volume(path, time=1, channel=2)
    found = whole(path, time=1, channel=1)
    np.testing.assert_array_equal(found, voxels[1, :, 1])


@pytest.mark.parametrize("how", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_channels_that_lie_side_by_side_in_each_page(tmp_path, how):
    voxels = a_stack(3).transpose(1, 0, 2, 3)
    path = write(
        tmp_path / "a.tif",
        voxels,
        planarconfig="separate",
        metadata={"axes": "ZCYX"},
        **how,
    )
    for channel in range(3):
        np.testing.assert_array_equal(whole(path, channel=channel), voxels[:, channel])


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "lzma", "png"])
def test_other_codecs_of_tifffile_give_what_it_gives(tmp_path, compression):
    path = write(
        tmp_path / "a.tif",
        a_stack(dtype="uint8"),
        compression=compression,
        metadata=None,
    )
    np.testing.assert_array_equal(whole(path), tifffile.imread(path))


def test_channel_0_of_one_channel_is_that_one_and_there_is_no_other(tmp_path):
    voxels = a_stack()
    path = write(tmp_path / "a.tif", voxels, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(whole(path, channel=0, time=0), voxels)
    with pytest.raises(InputError, match="no channel 1: it has only 0"):
        open_volume(path, channel=1)


def test_a_stack_that_calls_its_planes_times_must_be_said_to_be_a_stack(tmp_path):
    voxels = a_stack()
    path = write(tmp_path / "a.tif", voxels, metadata={"axes": "TYX"})
    with pytest.raises(InputError, match="none that is said to be z"):
        open_volume(path)
    np.testing.assert_array_equal(whole(path, axes="zyx"), voxels)


def test_four_axes_without_names_are_not_guessed(tmp_path):
    voxels = a_stack(2)
    path = write(tmp_path / "a.tif", voxels)
    with pytest.raises(InputError, match="say what they are"):
        open_volume(path)
    np.testing.assert_array_equal(whole(path, axes="czyx", channel=1), voxels[1])


@pytest.mark.parametrize("axes", ["zyy", "xy", "zyq", "zyxc"])
def test_impossible_axes_are_refused(tmp_path, axes):
    path = write(tmp_path / "a.tif", a_stack())
    with pytest.raises((SettingsError, InputError), match="axes"):
        open_volume(path, axes=axes)


def test_one_plane_is_a_stack_only_where_that_is_said(tmp_path):
    plane = a_stack()[0]
    path = write(tmp_path / "a.tif", plane)
    with pytest.raises(InputError, match="one plane of"):
        open_volume(path)
    np.testing.assert_array_equal(whole(path, axes="zyx"), plane[None])


def test_options_without_meaning_are_refused(tmp_path):
    path = write(tmp_path / "a.tif", a_stack())
    with pytest.raises(InputError, match="no level 1"):
        open_volume(path, level=1)
    with pytest.raises(InputError, match="no image 'cells'"):
        open_volume(path, dataset="cells")
    with pytest.raises(SettingsError, match="threads"):
        open_volume(path, threads=0)


# What is not a grey volume


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_are_refused(tmp_path, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.zeros((5, 24, 30, 3), np.uint8),
        photometric="rgb",
        compression=compression,
    )
    with pytest.raises(InputError, match="colour"):
        open_volume(path)


def test_a_palette_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.zeros((5, 24, 30), np.uint8),
        photometric="palette",
        colormap=np.zeros((3, 256), np.uint16),
    )
    with pytest.raises(InputError, match="palette"):
        open_volume(path)


@pytest.mark.parametrize("dtype", ["float64", "uint32", "complex64", "int64", "bool"])
def test_other_numbers_are_refused_by_name(tmp_path, dtype):
    path = write(tmp_path / "a.tif", a_stack().astype(dtype))
    with pytest.raises(InputError, match=f"holds {dtype} voxels: convert it"):
        open_volume(path)


def test_several_images_in_a_file_are_chosen_among(tmp_path):
    path = tmp_path / "a.tif"
    small = a_stack()[:, :8, :8]
    with tifffile.TiffWriter(path) as writer:
        for image in (a_stack(), small):
            writer.write(image, photometric="minisblack")
    with pytest.raises(InputError, match="holds 2 images of shapes"):
        open_volume(path)
    np.testing.assert_array_equal(whole(path, dataset="1"), small)


def test_a_plane_of_another_shape_is_not_left_out_silently(tmp_path):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for plane in [*a_stack(), a_stack()[0, :10]]:
            writer.write(plane, photometric="minisblack", metadata=None)
    with pytest.raises(InputError, match="holds 2 images"):
        open_volume(path)


# Pyramids and sets


def test_the_levels_of_a_pyramid(tmp_path):
    voxels = a_stack()
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(
            voxels,
            subifds=1,
            compression="zlib",
            photometric="minisblack",
            metadata={
                "axes": "ZYX",
                "PhysicalSizeX": 0.5,
                "PhysicalSizeY": 0.5,
                "PhysicalSizeZ": 2.0,
            },
        )
        writer.write(
            voxels[:, ::2, ::2],
            subfiletype=1,
            compression="zlib",
            photometric="minisblack",
        )
    np.testing.assert_array_equal(whole(path), voxels)
    np.testing.assert_array_equal(whole(path, level=1), voxels[:, ::2, ::2])
    with open_volume(path, level=1) as volume:
        assert volume.voxel_size_um == (2.0, 1.0, 1.0)
    with pytest.raises(InputError, match="no level 2: choose 0 to 1"):
        open_volume(path, level=2)


@pytest.mark.parametrize("how", [{}, {"compression": "lzw"}, {"rowsperstrip": 5}])
def test_an_ome_set_of_files_is_one_volume(tmp_path, how):
    voxels = a_stack()
    path = an_ome_set(tmp_path, voxels, **how)
    np.testing.assert_array_equal(whole(path), voxels)
    with open_volume(path) as volume:
        assert volume.voxel_size_um == (2.0, 0.5, 0.5)


def test_the_files_of_a_set_may_differ_in_byte_order(tmp_path):
    voxels = a_stack()
    path = an_ome_set(tmp_path, voxels)
    data = (tmp_path / "a_1.ome.tif").read_bytes()
    with tifffile.TiffFile(tmp_path / "a_1.ome.tif") as tif:
        text = tif.pages.first.description
    tifffile.imwrite(
        tmp_path / "a_1.ome.tif",
        voxels[2:],
        photometric="minisblack",
        byteorder=">",
        description=text,
        metadata=None,
    )
    assert (tmp_path / "a_1.ome.tif").read_bytes() != data
    np.testing.assert_array_equal(whole(path), voxels)


def test_a_missing_file_of_an_ome_set_is_named(tmp_path):
    path = an_ome_set(tmp_path, a_stack())
    (tmp_path / "a_1.ome.tif").unlink()
    with pytest.raises(InputError, match=r"lacks plane 2 of 5: a_1\.ome\.tif"):
        open_volume(path)


def test_a_part_of_a_set_names_the_file_to_open(tmp_path):
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/'
        '2016-06"><BinaryOnly MetadataFile="all.companion.ome" UUID="urn:uuid:1"/>'
        "</OME>"
    )
    path = tmp_path / "part.ome.tif"
    tifffile.imwrite(
        path, a_stack(), photometric="minisblack", description=xml, metadata=None
    )
    with pytest.raises(InputError, match=r"open all\.companion\.ome instead"):
        open_volume(path)


def test_an_imagej_stack_of_more_than_4_gb_has_one_page_and_is_read(tmp_path):
    """Classic TIFF, one entry, big-endian: what Fiji writes beyond 4 GB.

    The file is sparse: it takes a few kB of disk.
    """
    plane = np.arange(1024 * 1024, dtype=np.uint16).reshape(1024, 1024)
    path = tmp_path / "fiji.tif"
    tifffile.imwrite(
        path,
        np.stack([plane, plane]),
        imagej=True,
        truncate=True,
        byteorder=">",
        metadata={"axes": "ZYX"},
    )
    head = path.read_bytes()
    planes = 2100  # 4.4 GB
    with tifffile.TiffFile(path) as tif:
        start = tif.pages.first.dataoffsets[0]
        entry = tif.pages.first.tags["ImageDescription"]
        text = b"ImageJ=1.11a\nimages=2100\nslices=2100\n"
        assert len(text) < entry.count
        where = entry.valueoffset
    grown = bytearray(head[:start])
    grown[where : where + entry.count] = text.ljust(entry.count, b"\0")
    last = plane.astype(">u2").tobytes()
    with path.open("wb") as file:
        file.write(grown)
        file.truncate(start + planes * plane.nbytes)
        file.seek(start + (planes - 1) * plane.nbytes)
        file.write(last)
    with open_volume(path) as volume:
        assert volume.shape == (planes, 1024, 1024)
        found = volume.read(Box((planes - 2, 0, 0), (planes, 1024, 1024)))
    assert not found[0].any()
    np.testing.assert_array_equal(found[1], plane)


# Voxel sizes


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        *(("um", 1), ("micron", 1), ("microns", 1), ("Micrometers", 1)),
        *(("\\u00B5m", 1), ("\\u03BCm", 1), ("nm", 1e-3), ("nanometres", 1e-3)),
        *(("mm", 1e3), ("centimeter", 1e4), ("meters", 1e6), ("inches", 25400)),
    ],
)
def test_the_voxel_size_of_imagej(tmp_path, unit, factor):
    path = write(
        tmp_path / "a.tif",
        a_stack(),
        imagej=True,
        resolution=(4, 2),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": unit},
    )
    with open_volume(path) as volume:
        assert volume.voxel_size_um == pytest.approx(
            (3 * factor, 0.5 * factor, 0.25 * factor)
        )


@pytest.mark.parametrize(
    "metadata",
    [
        {"axes": "ZYX", "spacing": 3.0},
        {"axes": "ZYX", "unit": "um"},
        {"axes": "ZYX", "spacing": 3.0, "unit": "pixel"},
        {"axes": "ZYX", "spacing": 3.0, "unit": "ms"},
        {"axes": "ZYX", "spacing": 0.0, "unit": "um"},
    ],
)
def test_a_voxel_size_that_is_not_said_is_none(tmp_path, metadata):
    path = write(
        tmp_path / "a.tif", a_stack(), imagej=True, resolution=(4, 2), metadata=metadata
    )
    with open_volume(path) as volume:
        assert volume.voxel_size_um is None


def test_the_voxel_size_of_ome_in_its_units(tmp_path):
    metadata = {
        "axes": "ZYX",
        "PhysicalSizeX": 250.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.5,
        "PhysicalSizeZ": 0.002,
        "PhysicalSizeZUnit": "mm",
    }
    path = write(tmp_path / "a.ome.tif", a_stack(), ome=True, metadata=metadata)
    with open_volume(path) as volume:
        assert volume.voxel_size_um == pytest.approx((2.0, 0.5, 0.25))
