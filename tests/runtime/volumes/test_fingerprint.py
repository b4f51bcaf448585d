"""Two channels of one file are two inputs, also where both begin and end in black."""

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import open_volume


@pytest.fixture
def stitched():
    """Two channels (z, c, y, x) whose first and last rows are empty in both."""
    voxels = np.zeros((4, 2, 48, 64), np.uint16)
    voxels[1:3, 0, 10:30, 10:30] = 700
    voxels[1:3, 1, 10:30, 10:30] = 900
    return voxels


def prints(path, **choice):
    found = []
    for channel in (0, 1, 0):
        with open_volume(path, channel=channel, **choice) as source:
            found.append(source.fingerprint())
    return found


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_in_a_tiff(tmp_path, stitched, compression):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, stitched, ome=True, metadata={"axes": "ZCYX"}, compression=compression
    )
    first, second, again = prints(path)
    assert first == again != second


def test_in_a_numpy_file(tmp_path, stitched):
    np.save(tmp_path / "a.npy", stitched)
    first, second, again = prints(tmp_path / "a.npy", axes="zcyx")
    assert first == again != second


def test_in_a_zarr(tmp_path, stitched):
    ts = pytest.importorskip("tensorstore")
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": str(tmp_path / "a.zarr")},
    }
    spec["metadata"] = {
        "shape": stitched.shape,
        "chunks": [1, 1, 16, 16],
        "dtype": "<u2",
    }
    ts.open(spec, create=True).result().write(stitched).result()
    first, second, again = prints(tmp_path / "a.zarr", axes="zcyx")
    assert first == again != second


@pytest.mark.parametrize("kind", ["v3draw", "v3dpbd"])
def test_in_a_file_of_vaa3d(tmp_path, stitched, kind):
    voxels = np.ascontiguousarray(stitched.transpose(1, 0, 2, 3)).astype("<u2")
    head = (
        b"raw_image_stack_by_hpeng" if kind == "v3draw" else b"v3d_volume_pkbitdf_encod"
    )
    sizes = np.array([64, 48, 4, 2], "<u4").tobytes()
    body = voxels.tobytes()
    if kind == "v3dpbd":
        # Literal runs of up to 16 voxels.
        flat = voxels.ravel()
        body = b"".join(
            bytes([len(part) - 1]) + part.tobytes()
            for part in (flat[i : i + 16] for i in range(0, flat.size, 16))
        )
    path = tmp_path / f"a.{kind}"
    path.write_bytes(head + b"L" + np.array([2], "<u2").tobytes() + sizes + body)
    first, second, again = prints(path)
    assert first == again != second
