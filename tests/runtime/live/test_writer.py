"""Planes that are written one by one take a name that is free, or may be replaced."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import OutputError, WriteError
from neurodeploy_runtime.live._writer import PlaneWriter

PLANE = np.full((20, 24), 255, np.uint8)


@pytest.mark.parametrize("name", ["stack.tif", "stack.ome.zarr"])
def test_a_folder_that_is_no_result_is_not_replaced(tmp_path: Path, name: str) -> None:
    if "zarr" in name:
        pytest.importorskip("tensorstore")
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds no such output"):
        PlaneWriter(tmp_path / name, (3, 20, 24), overwrite=True)
    assert (tmp_path / name / "thesis.txt").read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_came_meanwhile_is_not_replaced_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    path = tmp_path / "stack.tif"
    with PlaneWriter(path, (3, 20, 24)) as writer:
        for _ in range(3):
            writer.add(PLANE)
        path.write_bytes(b"years of work")
        with pytest.raises(WriteError, match=r"stays as .*\.stack\.partial\.tif"):
            writer.finish({})
    assert path.read_bytes() == b"years of work"
    assert (tifffile.imread(tmp_path / ".stack.partial.tif") == PLANE).all()
