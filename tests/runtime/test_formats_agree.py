"""A real volume in every format that can be written here gives the same bytes out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import Box, Bundle, Segmenter, SegmentSettings, open_volume

CROP = (slice(0, 48), slice(60, 160), slice(50, 170))


@pytest.fixture(scope="module")
def crop(shared_data: Path) -> np.ndarray[Any, Any]:
    volume = tifffile.imread(shared_data / "trailmap" / "whole_brain_crop_303.tif")
    return np.ascontiguousarray(volume[CROP])


def folder_of_planes(path: Path, volume: np.ndarray[Any, Any]) -> None:
    path.mkdir()
    for z, plane in enumerate(volume):
        tifffile.imwrite(path / f"z{z}.tif", plane)


def v3draw(path: Path, volume: np.ndarray[Any, Any]) -> None:
    header = b"raw_image_stack_by_hpengL" + np.array([2], "<i2").tobytes()
    header += np.array([*volume.shape[::-1], 1], "<i4").tobytes()
    path.write_bytes(header + volume.astype("<u2").tobytes())


def zarr_group(version: int) -> Callable[[Path, np.ndarray[Any, Any]], None]:
    def write(path: Path, volume: np.ndarray[Any, Any]) -> None:
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


def n5(path: Path, volume: np.ndarray[Any, Any]) -> None:
    import tensorstore as ts

    store = ts.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": str(path)},
            "metadata": {
                "dimensions": list(volume.shape[::-1]),
                "blockSize": [32, 32, 16],
                "dataType": "uint16",
                "compression": {"type": "gzip"},
            },
            "create": True,
        }
    ).result()
    store.write(volume.transpose(2, 1, 0)).result()


def hdf5(path: Path, volume: np.ndarray[Any, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        file.create_dataset(
            "t00000/s00/0/cells", data=volume, chunks=(16, 32, 32), compression="gzip"
        )


def tiff(**how: Any) -> Callable[[Path, np.ndarray[Any, Any]], None]:
    return lambda path, volume: tifffile.imwrite(path, volume, **how)


FORMATS: dict[str, Callable[[Path, np.ndarray[Any, Any]], None]] = {
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
    "store.n5": n5,
    "bdv.h5": hdf5,
}


@pytest.fixture(scope="module")
def answers() -> dict[str, bytes]:
    return {}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_bytes_out(
    name: str,
    crop: np.ndarray[Any, Any],
    answers: dict[str, bytes],
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
    assert got == answers.setdefault("first", got)
    assert got[43:].count(255) > 1000
