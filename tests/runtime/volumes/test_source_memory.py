"""What reading allocates is what the source says, and no more."""

import tracemalloc

import h5py
import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box
from neurodeploy_runtime.volumes import open_volume

SHAPE = (48, 256, 256)


def tiff(**how):
    return lambda path, voxels: tifffile.imwrite(
        path, voxels, photometric="minisblack", **how
    )


def write_hdf5(path, voxels):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "v", data=voxels, chunks=(16, 64, 64), compression="gzip", shuffle=True
        )


WRITERS = {
    "zlib.tif": tiff(compression="zlib", predictor=True, rowsperstrip=256),
    "big-endian.tif": tiff(compression="lzw", byteorder=">", rowsperstrip=256),
    "tiles.tif": tiff(compression="zstd", tile=(64, 64)),
    "raw.tif": tiff(byteorder=">"),
    "chunks.h5": write_hdf5,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", WRITERS)
def test_reading_stays_under_the_memory_it_says(name, threads, tmp_path):
    rng = np.random.default_rng(8)
    voxels = np.cumsum(rng.integers(-2, 3, SHAPE), axis=2).astype(np.uint16)
    path = tmp_path / name
    WRITERS[name](path, voxels)
    cache_bytes = 600_000
    out = np.empty((16, 256, 256), np.uint16)
    with open_volume(path, threads=threads, cache_bytes=cache_bytes) as volume:
        assert volume.memory_bytes < 24 * 2**20
        tracemalloc.start()
        try:
            for z in (0, 16, 32):
                volume.read(Box((z, 0, 0), (z + 16, 256, 256)), out)
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        slack = 200_000  # lists of chunks, threads, Python itself
        assert peak <= volume.memory_bytes + slack
        if volume.compressed:
            assert kept <= cache_bytes + slack


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_channels_that_share_a_chunk_are_counted_and_not_kept(compression, tmp_path):
    voxels = np.random.default_rng(1).integers(0, 9, (8, 8, 128, 128), np.uint8)
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "v", data=voxels, chunks=(8, 2, 128, 128), compression=compression
        )
    cache_bytes = 100_000
    with open_volume(
        path, axes="czyx", channel=3, threads=1, cache_bytes=cache_bytes
    ) as volume:
        tracemalloc.start()
        try:
            found = volume.read(Box.whole(volume.shape))
            kept, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        np.testing.assert_array_equal(found, voxels[3])
        slack = 100_000
        assert kept <= found.nbytes + cache_bytes + slack
        assert peak <= found.nbytes + volume.memory_bytes + slack
        assert volume.memory_bytes >= 3 * voxels[:, :2].nbytes
