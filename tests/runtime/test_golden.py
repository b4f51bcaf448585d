"""Golden tiles are those of the network, or refused before they are read."""

import io
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from neurodeploy_runtime import BundleError
from neurodeploy_runtime._golden import read_golden

TILE, WINDOW = (3, 4, 4), (1, 4, 4)
VOXELS = np.arange(96, dtype=np.float32).reshape(2, 1, *TILE)
ANSWERS = np.linspace(0, 1, 32, dtype=np.float32).reshape(2, 1, *WINDOW)


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """An array whose header says more than there is."""
    out = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue() + bytes(64)


def header(text: str) -> bytes:
    """An array whose header says this."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_what_was_frozen_is_read(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    np.savez_compressed(path, voxels=VOXELS.astype(np.float16), probability=ANSWERS)
    golden = read_golden(path, TILE, WINDOW)
    np.testing.assert_array_equal(golden.voxels, VOXELS)
    np.testing.assert_array_equal(golden.probability, ANSWERS)
    assert golden.voxels.dtype == golden.probability.dtype == np.float32


@pytest.mark.parametrize(
    ("voxels", "said"),
    [
        (None, "it lacks voxels"),
        (lambda: npy(VOXELS[:1]), "1 tiles and 2 answers"),
        (lambda: npy(VOXELS[:0]), r"voxels \(0, 1, 3, 4, 4\)"),
        (lambda: npy(VOXELS[0]), r"voxels \(1, 3, 4, 4\)"),
        (lambda: npy(VOXELS.astype(int)), "of int64, not floats"),
        (lambda: npy(np.float32(3)), "not floats"),
        (lambda: claiming((10**9, 1, *TILE)), "it claims 48000000000 values"),
        (lambda: claiming((2, 1, *TILE)), "not what an export writes"),
        (lambda: b"not an array", "not what an export writes"),
        (lambda: header("{'shape': (2L, (\n"), "a header that is none"),
        (lambda: header("-" * 9000 + "1"), "a header that is none"),
    ],
)
def test_what_no_export_writes_is_a_sentence(
    tmp_path: Path, voxels: Callable[[], bytes] | None, said: str
) -> None:
    members = {"probability": npy(ANSWERS)}
    if voxels is not None:
        members["voxels"] = voxels()
    path = archive(tmp_path / "golden.npz", **members)
    with pytest.raises(BundleError, match=said):
        read_golden(path, TILE, WINDOW)


def test_damage_is_read_or_a_sentence(tmp_path: Path) -> None:
    path = archive(tmp_path / "g.npz", voxels=npy(VOXELS), probability=npy(ANSWERS))
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(BundleError):
            golden = read_golden(path, TILE, WINDOW)
            assert golden.voxels.shape == VOXELS.shape


def test_what_is_compressed_as_no_export_does_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "golden.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("voxels.npy", npy(VOXELS))
        file.writestr("probability.npy", npy(ANSWERS))
    with pytest.raises(BundleError, match="compressed as no export does it"):
        read_golden(path, TILE, WINDOW)
