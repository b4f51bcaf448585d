"""One volume, written in every format, gives the same voxels."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodeploy_runtime import Box, InputError
from neurodeploy_runtime.volumes import ArraySource, open_volume

SHAPE = (13, 70, 90)


def a_volume(dtype="uint16", shape=SHAPE):
    """Noise, which compresses badly, and a stretch of one value, which does well."""
    rng = np.random.default_rng(303)
    voxels = rng.integers(0, 255, shape).astype(dtype)
    if dtype != "uint8":
        voxels *= 120
    voxels[3:6] = 7
    return voxels


def write_v3draw(path, stack, order="<", two_byte_header=False):
    """A (c, z, y, x) stack as Vaa3D writes it."""
    code = {1: 1, 2: 2, 4: 4}[stack.dtype.itemsize]
    integer = order + ("i2" if two_byte_header else "i4")
    path.write_bytes(
        b"raw_image_stack_by_hpeng"
        + (b"L" if order == "<" else b"B")
        + np.array([code], order + "i2").tobytes()
        + np.array(stack.shape[::-1], integer).tobytes()
        + stack.astype(stack.dtype.newbyteorder(order)).tobytes()
    )


def write_hdf5(path, voxels, **how):
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=voxels, **how)


def write_planes(path, voxels, **how):
    path.mkdir()
    for z, plane in enumerate(voxels):
        tifffile.imwrite(path / f"brain_{z + 8}.tif", plane, **how)


def tiff(**how):
    return lambda path, voxels: tifffile.imwrite(
        path, voxels, photometric="minisblack", **how
    )


WRITERS = {
    "contiguous": ("tif", tiff(metadata=None)),
    "shaped": ("tif", tiff(metadata={"axes": "ZYX"})),
    "bigtiff": ("tif", tiff(bigtiff=True)),
    "big-endian": ("tif", tiff(byteorder=">")),
    "big-endian zlib": ("tif", tiff(byteorder=">", compression="zlib")),
    "strips": ("tif", tiff(rowsperstrip=16)),
    "one page for all": ("tif", tiff(truncate=True)),
    "zlib planes": ("tif", tiff(compression="zlib")),
    "zlib planes without metadata": ("tif", tiff(compression="zlib", metadata=None)),
    "zlib predictor strips": (
        "tif",
        tiff(compression="zlib", predictor=True, rowsperstrip=16),
    ),
    "zstd planes": ("tif", tiff(compression="zstd")),
    "zstd predictor tiles": (
        "tif",
        tiff(compression="zstd", predictor=True, tile=(32, 48)),
    ),
    "LZW planes": ("tif", tiff(compression="lzw")),
    "LZW predictor strips": (
        "tif",
        tiff(compression="lzw", predictor=True, rowsperstrip=7),
    ),
    "PackBits": ("tif", tiff(compression="packbits")),
    "tiles": ("tif", tiff(tile=(16, 32))),
    "tiles of planes": ("tif", tiff(tile=(4, 32, 32), volumetric=True)),
    "ImageJ": ("tif", tiff(imagej=True, metadata={"axes": "ZYX"})),
    "ImageJ, one page": (
        "tif",
        tiff(imagej=True, truncate=True, metadata={"axes": "ZYX"}),
    ),
    "OME": ("ome.tif", tiff(ome=True, metadata={"axes": "ZYX"})),
    "OME zlib": (
        "ome.tif",
        tiff(ome=True, compression="zlib", metadata={"axes": "ZYX"}),
    ),
    "folder": ("planes", lambda p, v: write_planes(p, v)),
    "folder LZW": ("planes", lambda p, v: write_planes(p, v, compression="lzw")),
    "v3draw": ("v3draw", lambda p, v: write_v3draw(p, v[None])),
    "v3draw, big-endian": ("v3draw", lambda p, v: write_v3draw(p, v[None], ">")),
    "v3draw, old header": (
        "raw",
        lambda p, v: write_v3draw(p, v[None], two_byte_header=True),
    ),
    "NumPy": ("npy", np.save),
    "NumPy, big-endian": (
        "npy",
        lambda p, v: np.save(p, v.astype(v.dtype.newbyteorder(">"))),
    ),
    "HDF5": ("h5", write_hdf5),
    "HDF5 chunks": ("h5", lambda p, v: write_hdf5(p, v, chunks=(4, 32, 40))),
    "HDF5 zlib": (
        "h5",
        lambda p, v: write_hdf5(
            p, v, chunks=(4, 32, 40), compression="gzip", shuffle=True
        ),
    ),
    "HDF5 LZF, checksums": (
        "h5",
        lambda p, v: write_hdf5(
            p, v, chunks=(4, 32, 40), compression="lzf", fletcher32=True
        ),
    ),
    "HDF5 big-endian": (
        "h5",
        lambda p, v: write_hdf5(
            p, v.astype(v.dtype.newbyteorder(">")), chunks=(4, 32, 40)
        ),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def written(name: str, folder: Path, voxels=None, suffix=""):
    ending, write = WRITERS[name]
    path = folder / f"{name.replace(' ', '-')}{suffix}.{ending}"
    if not path.exists():
        write(path, a_volume() if voxels is None else voxels)
    return path


@st.composite
def boxes(draw):
    spans = [
        sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2))) for n in SHAPE
    ]
    return Box(tuple(a for a, _ in spans), tuple(b for _, b in spans))


@pytest.mark.parametrize("name", WRITERS)
def test_every_box_of_every_format_holds_the_voxels_that_were_written(name, folder):
    expected = a_volume()
    with open_volume(written(name, folder), threads=2, cache_bytes=40_000) as volume:
        assert volume.shape == SHAPE
        assert volume.dtype == np.uint16
        assert volume.dtype.isnative

        @settings(max_examples=15, deadline=None)
        @given(boxes())
        def reads(box):
            np.testing.assert_array_equal(volume.read(box), expected[box.slices])

        reads()


@pytest.mark.parametrize("name", WRITERS)
def test_voxels_are_written_into_the_callers_array_whatever_its_strides(name, folder):
    expected = a_volume()
    box = Box((1, 2, 3), (12, 66, 83))
    room = np.zeros((11, 128, 160), np.uint16)
    with open_volume(written(name, folder), threads=2) as volume:
        volume.read(box, room[:, ::2, ::2])
    np.testing.assert_array_equal(room[:, ::2, ::2], expected[box.slices])
    assert not room[:, 1::2].any()


def can_hold(name: str, dtype: str) -> bool:
    if dtype == "int16" and name.startswith(("v3draw", "ImageJ")):
        return False
    # tifffile's horizontal predictor is for integers.
    return not (dtype == "float32" and "predictor" in name)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in WRITERS
        for dtype in ("uint8", "int16", "float32")
        if can_hold(name, dtype)
    ],
)
def test_every_format_keeps_the_dtype(name, dtype, folder):
    expected = a_volume(dtype)
    path = written(name, folder, expected, suffix=f"-{dtype}")
    with open_volume(path, threads=2) as volume:
        assert volume.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(volume.read(Box.whole(SHAPE)), expected)


THIN = [(1, 5, 7), (3, 1, 9), (2, 1, 1), (4, 6, 1)]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *[(name, shape) for name in ("v3draw", "NumPy", "HDF5") for shape in THIN],
        # tifffile writes a last axis of one voxel as samples of a pixel.
        *[(name, shape) for name in ("shaped", "zlib planes") for shape in THIN[:2]],
    ],
)
def test_a_volume_may_be_one_voxel_thick(name, shape, folder):
    expected = a_volume(shape=shape)
    path = written(name, folder, expected, suffix="-" + "x".join(map(str, shape)))
    with open_volume(path) as volume:
        np.testing.assert_array_equal(volume.read(Box.whole(shape)), expected)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        ([[[1, 2]]], "of type list"),
        (np.ma.masked_equal(np.zeros((2, 3, 4), np.uint8), 0), "has a mask"),
        (np.zeros((3, 4), np.uint8), "a volume has z, y, x"),
    ],
)
def test_what_is_no_plain_array_is_refused(array, said):
    with pytest.raises(InputError, match=said):
        ArraySource(array)


@pytest.mark.parametrize("shape", [(1 << 32, 1, 1), (1 << 20, 1 << 20, 1 << 20)])
def test_a_shape_that_nothing_has_is_refused_before_tiles_are_planned(shape):
    claimed = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.uint8), shape, (0, 0, 0), writeable=False
    )
    with pytest.raises(InputError, match="its metadata is damaged"):
        ArraySource(claimed)


def test_an_array_is_a_volume_and_is_not_copied():
    voxels = a_volume()
    volume = ArraySource(voxels, (2.0, 0.5, 0.5))
    box = Box((1, 2, 3), (4, 5, 6))
    np.testing.assert_array_equal(volume.read(box), voxels[box.slices])
    before = volume.fingerprint()
    voxels[0, 0, 0] += 1
    assert volume.read(Box((0, 0, 0), (1, 1, 1)))[0, 0, 0] == voxels[0, 0, 0]
    assert volume.fingerprint() != before


@pytest.mark.parametrize("name", ["zlib planes", "contiguous", "folder", "HDF5 zlib"])
def test_a_fingerprint_tells_a_changed_file_from_the_same_one(name, folder):
    path = written(name, folder, suffix="-print")
    with open_volume(path) as volume:
        first = volume.fingerprint()
    with open_volume(path) as volume:
        assert volume.fingerprint() == first
    other = written(name, folder, a_volume()[:, ::-1].copy(), suffix="-other")
    with open_volume(other) as volume:
        assert volume.fingerprint() != first


def test_a_description_holds_plain_values(folder):
    with open_volume(written("OME zlib", folder)) as volume:
        found = volume.describe()
    assert found["format"] == "TIFF, zlib planes, OME"
    assert found["shape"] == list(SHAPE)
    assert found["chunk"] == [1, 70, 90]
    assert found["compressed"] is True
