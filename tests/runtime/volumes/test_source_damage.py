"""Damaged files give one sentence, or the voxels; never anything else."""

import os
import random

import h5py
import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box, InputError, ReadError
from neurodeploy_runtime.volumes import open_volume

SHAPE = (7, 40, 50)


def a_stack():
    return np.random.default_rng(0).integers(0, 300, SHAPE).astype(np.uint16)


def tiff(**how):
    return lambda path: tifffile.imwrite(
        path, a_stack(), photometric="minisblack", **how
    )


def hdf5(**how):
    def write(path):
        with h5py.File(path, "w") as file:
            file.create_dataset("image", data=a_stack(), **how)

    return write


def vaa3d(magic, code, payload):
    def write(path):
        path.write_bytes(
            magic
            + b"L"
            + np.array([code], "<i2").tobytes()
            + np.array([*SHAPE[::-1], 1], "<i4").tobytes()
            + payload
        )

    return write


WRITERS = {
    "shaped.tif": tiff(),
    "plain.tif": tiff(metadata=None),
    "zlib.tif": tiff(compression="zlib"),
    "plain-zlib.tif": tiff(compression="zlib", metadata=None),
    "strips.tif": tiff(compression="lzw", predictor=True, rowsperstrip=8),
    "tiles.tif": tiff(compression="zstd", tile=(16, 16)),
    "imagej.tif": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "imagej-page.tif": tiff(imagej=True, truncate=True, metadata={"axes": "ZYX"}),
    "ome.tif": tiff(ome=True, compression="zlib", metadata={"axes": "ZYX"}),
    "big.tif": tiff(bigtiff=True, compression="lzw"),
    "array.npy": lambda path: np.save(path, a_stack()),
    "raw.v3draw": vaa3d(b"raw_image_stack_by_hpeng", 2, a_stack().tobytes()),
    "packed.v3dpbd": vaa3d(
        b"v3d_volume_pkbitdf_encod", 1, bytes([255, 7]) * (7 * 40 * 50 // 128 + 1)
    ),
    "chunks.h5": hdf5(chunks=(2, 16, 16), compression="gzip", shuffle=True),
    "contiguous.h5": hdf5(),
}


def outcome(path, largest=2**28):
    """The voxels, or the error; any other exception fails the test."""
    try:
        with open_volume(path, channel=0, threads=1) as volume:
            assert np.prod(volume.shape, dtype=float) < largest, volume.shape
            voxels = volume.read(Box.whole(volume.shape))
            volume.fingerprint()
            return voxels
    except (InputError, ReadError) as error:
        found = error
    assert "\n" not in str(found)
    assert str(path) in str(found)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_a_truncated_file_is_refused_at_open_or_whole(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    data, expected = path.read_bytes(), outcome(path)
    assert isinstance(expected, np.ndarray)
    chance = random.Random(name)
    ends = {chance.randrange(len(data)) for _ in range(25)} | {0, 1, 9, len(data) - 1}
    for end in ends:
        path.write_bytes(data[:end])
        found = outcome(path)
        if isinstance(found, np.ndarray):  # nothing that counts was cut off
            np.testing.assert_array_equal(found, expected)
        else:
            assert isinstance(found, InputError), (end, found)


@pytest.mark.parametrize("name", WRITERS)
def test_flipped_bytes_give_a_sentence_or_voxels(name, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    chance = random.Random(name)
    for _ in range(40):
        damaged = bytearray(data)
        reach = min(len(data), chance.choice([64, 400, len(data)]))
        for _ in range(chance.choice([1, 1, 3])):
            damaged[chance.randrange(reach)] = chance.randrange(256)
        path.write_bytes(damaged)
        outcome(path)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("shaped.tif", 0.5), ("imagej.tif", 0.5), ("imagej-page.tif", 0.5)],
)
def test_a_truncated_tiff_says_which_plane(name, kept, tmp_path):
    path = tmp_path / name
    WRITERS[name](path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    found = outcome(path)
    assert isinstance(found, InputError)
    assert "is cut short in plane 3 of 7" in str(found)


def test_a_truncated_compressed_plane_is_named_at_open(tmp_path):
    path = tmp_path / "a.tif"
    tiff(compression="zlib", metadata=None)(path)
    with tifffile.TiffFile(path) as tif:
        # tifffile writes each entry before its data: the last plane's data is last.
        last = tif.pages[6].dataoffsets[0]
    data = path.read_bytes()
    path.write_bytes(data[: last + 20])
    found = outcome(path)
    assert isinstance(found, InputError)
    assert "cut short in plane 6 of 7" in str(found)


def test_a_damaged_plane_is_named_when_it_is_read_and_others_are_not_harmed(tmp_path):
    path = tmp_path / "a.tif"
    tiff(compression="zlib")(path)
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[4].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    with open_volume(path, threads=2) as volume:
        with pytest.raises(ReadError, match=r"plane 4 of .* cannot be decoded"):
            volume.read(Box.whole(SHAPE))
        upper = volume.read(Box((0, 0, 0), (4, 40, 50)))
    np.testing.assert_array_equal(upper, a_stack()[:4])


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.tif"
    tiff()(path)
    with open_volume(path) as volume:
        with path.open("r+b") as file:
            file.truncate(8000)
        with pytest.raises(ReadError, match=r"plane 6 .* ends .* bytes too early"):
            volume.read(Box((6, 0, 0), (7, 40, 50)))


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    path = tmp_path / "bomb.tif"
    tiff(compression="zlib", metadata=None)(path)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages:
            page.tags["ImageWidth"].overwrite(60_000)
            page.tags["ImageLength"].overwrite(60_000)
            page.tags["RowsPerStrip"].overwrite(60_000)
    found = outcome(path, largest=float("inf"))
    assert isinstance(found, InputError)
    assert "should hold 7200000000 bytes" in str(found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tif", b"", "is empty"),
        ("a.tif", b"PK\x03\x04 a zip file", "is not TIFF, whatever its name says"),
        ("a.xyz", b"something else", "of no format that is known here"),
        ("zarr.json", b"{}", "describes a folder"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        open_volume(path)


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_volume(tmp_path / "absent.tif")
    with pytest.raises(InputError, match="a folder without TIFF planes"):
        open_volume(tmp_path)


def test_pickles_in_numpy_files_are_never_loaded(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array([[[{"a": 1}]]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="object voxels"):
        open_volume(path)
    np.save(path, np.asfortranarray(a_stack()))
    with pytest.raises(InputError, match="Fortran order"):
        open_volume(path)


def test_the_plane_in_which_a_compressed_stack_ends_is_named(tmp_path):
    """Of a chain of planes that breaks, a series shows the first one alone."""
    volume = np.random.default_rng(0).integers(0, 4000, (40, 64, 64)).astype(np.uint16)
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, volume, compression="zlib")
    with tifffile.TiffFile(path) as tif:
        (middle,), (length,) = tif.pages[25].dataoffsets, tif.pages[25].databytecounts
    os.truncate(path, middle + length // 2)
    with pytest.raises(InputError, match="is cut short in plane 25 of 40"):
        open_volume(path)
