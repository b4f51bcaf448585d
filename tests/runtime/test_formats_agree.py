"""A real volume in every format that is read gives the same bytes out.

A part of it in every run of the suite, the whole of it with ``-m slow``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from pbd_encoders import pack_16
from volume_writers import an_ome_set, n5, ome_zarr_04, write_imaris

from neurodeploy_runtime import Box, Bundle, Segmenter, SegmentSettings, open_volume

Voxels = np.ndarray[Any, Any]
Write = Callable[[Path, Voxels], object]

CROP = (slice(0, 48), slice(60, 160), slice(50, 170))


@pytest.fixture(
    scope="module", params=["part", pytest.param("whole", marks=pytest.mark.slow)]
)
def crop(shared_data: Path, request: pytest.FixtureRequest) -> Voxels:
    volume = tifffile.imread(shared_data / "trailmap" / "whole_brain_crop_303.tif")
    return np.ascontiguousarray(volume[CROP] if request.param == "part" else volume)


def folder_of_planes(path: Path, volume: Voxels) -> None:
    path.mkdir()
    for z, plane in enumerate(volume):
        tifffile.imwrite(path / f"z{z}.tif", plane)


def v3draw(path: Path, volume: Voxels) -> None:
    header = b"raw_image_stack_by_hpengL" + np.array([2], "<i2").tobytes()
    header += np.array([*volume.shape[::-1], 1], "<i4").tobytes()
    path.write_bytes(header + volume.astype("<u2").tobytes())


def zarr_group(version: int) -> Write:
    def write(path: Path, volume: Voxels) -> None:
        import zarr

        array = zarr.create_array(
            path,
            shape=volume.shape,
            chunks=(16, 32, 32),
            dtype=volume.dtype,
            zarr_format=version,  # type: ignore[arg-type]
            shards=(32, 64, 64) if version == 3 else None,
        )
        array[...] = volume

    return write


def precomputed(path: Path, volume: Voxels) -> None:
    import tensorstore as ts

    store = ts.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": str(path)},
            "multiscale_metadata": {
                "type": "image",
                "data_type": "uint16",
                "num_channels": 1,
            },
            "scale_metadata": {
                "size": list(volume.shape[::-1]),
                "resolution": [650, 650, 3000],
                "encoding": "raw",
                "chunk_size": [32, 32, 16],
                "sharding": {
                    "@type": "neuroglancer_uint64_sharded_v1",
                    "preshift_bits": 3,
                    "hash": "identity",
                    "minishard_bits": 2,
                    "shard_bits": 3,
                    "minishard_index_encoding": "gzip",
                    "data_encoding": "gzip",
                },
            },
            "create": True,
        }
    ).result()
    store[ts.d["channel"][0]].write(volume.transpose(2, 1, 0)).result()


def v3dpbd(path: Path, volume: Voxels) -> None:
    coded = pack_16(volume.ravel(), lambda most: most - 1)
    header = b"v3d_volume_pkbitdf_encodL" + np.array([2], "<i2").tobytes()
    header += np.array([*volume.shape[::-1], 1], "<i4").tobytes()
    path.write_bytes(header + coded)


def ome_set(path: Path, volume: Voxels) -> None:
    path.parent.mkdir()
    an_ome_set(path.parent, volume, compression="lzw")


def ome_zarr_of_five_axes(path: Path, volume: Voxels) -> None:
    path.mkdir()
    ome_zarr_04(path, volume[None, None], (32, 64, 64))


def hdf5(path: Path, volume: Voxels) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(
            "t00000/s00/0/cells", data=volume, chunks=(16, 32, 32), compression="gzip"
        )


def tiff(**how: Any) -> Write:
    return lambda path, volume: tifffile.imwrite(path, volume, **how)


FORMATS: dict[str, Write] = {
    "contiguous.tif": tiff(),
    "big.tif": tiff(bigtiff=True, byteorder=">"),
    "zlib.tif": tiff(compression="zlib", predictor=True),
    "lzw.tif": tiff(compression="lzw", rowsperstrip=16),
    "zstd_tiles.tif": tiff(compression="zstd", tile=(32, 32)),
    "imagej.tif": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "five.ome.tif": tiff(ome=True, metadata={"axes": "ZYX"}),
    "planes": folder_of_planes,
    "stack.v3draw": v3draw,
    "stack.npy": lambda path, volume: np.save(path, volume),
    "two.zarr": zarr_group(2),
    "three.zarr": zarr_group(3),
    "four.ome.zarr": ome_zarr_of_five_axes,
    "store.n5": lambda path, volume: n5(path, volume, (64, 64, 32)),
    "volume.precomputed": precomputed,
    "bdv.h5": hdf5,
    "imaris.ims": lambda path, volume: write_imaris(path, [volume], compression="gzip"),
    "stack.v3dpbd": v3dpbd,
    "set/a_0.ome.tif": ome_set,
}


@pytest.fixture(scope="module")
def answers() -> dict[int, bytes]:
    return {}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_bytes_out(
    name: str,
    crop: Voxels,
    answers: dict[int, bytes],
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
) -> None:
    bundle = make_identity_bundle(
        tile=(16, 32, 32), normalisation="background-asinh", threshold=0.9
    )
    FORMATS[name](tmp_path / name, crop)
    with (
        open_volume(tmp_path / name) as source,
        Segmenter(bundle, SegmentSettings()) as segmenter,
    ):
        assert (source.read(Box.whole(source.shape)) == crop).all()
        segmenter.segment(source, tmp_path / "out.v3draw")
    got = (tmp_path / "out.v3draw").read_bytes()
    assert got == answers.setdefault(crop.size, got)
    assert got[43:].count(255) > 1000
