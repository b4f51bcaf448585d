"""`neurodeploy sample`: one sentence where it cannot, a whole file where it can."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

SMALL = ["--shape", "8,40,48", "--quiet"]


def test_an_image_and_its_truth(run: Callable[..., Any], tmp_path: Path) -> None:
    image, truth = tmp_path / "a.tif", tmp_path / "t.tif"
    assert run("sample", image, *SMALL, "--seed", 4, "--truth", truth).code == 0
    assert tifffile.imread(image).shape == (8, 40, 48)
    assert tifffile.imread(image).dtype == np.uint16
    assert set(np.unique(tifffile.imread(truth))) <= {0, 255}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tif", "t.tif"]


def test_traced_neurons_are_what_the_truth_holds(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    swc, truth = tmp_path / "n.swc", tmp_path / "t.tif"
    swc.write_text("1 2 4 4 4 1 -1\n2 2 40 30 4 1 1\n")
    words = ["--swc", swc, "--truth", truth, "--look", "confocal"]
    assert run("sample", tmp_path / "a.tif", *SMALL, *words).code == 0
    mask = tifffile.imread(truth) > 0
    # A line of 45 voxels, some of them perhaps too dim to be seen.
    assert 45 < mask.sum() < 45 * 40


def test_a_tracing_that_says_micrometres_is_drawn_in_this_volumes_voxels(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    lines = "1 2 4 4 4 1 -1\n2 2 68 36 4 1 1\n"
    said = "# Voxel separation (x,y,z): 0.5, 0.5, 1.0\n"
    images = {}
    for name, text, size in (
        ("in voxels", "1 2 2 2 2 1 -1\n2 2 34 18 2 1 1\n", "2,2,2"),
        ("micrometres", said + lines, "2,2,2"),
        ("smaller voxels", said + lines, "2,1.6,1.6"),
    ):
        swc, image = tmp_path / f"{name}.swc", tmp_path / f"{name}.tif"
        swc.write_text(text)
        words = ["--swc", swc, "--voxel-size", size, "--look", "confocal"]
        assert run("sample", image, *SMALL, *words).code == 0
        images[name] = tifffile.imread(image)
    assert (images["micrometres"] == images["in voxels"]).all()
    assert (images["smaller voxels"] != images["in voxels"]).any()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--shape", "8,40"], "z,y,x"),
        (["--shape", "0,40,40"], "at least 1"),
        (["--seed", "-3"], "negative"),
        (["--voxel-size", "1,0,1"], "positive"),
        (["--swc", "absent.swc"], "absent.swc"),
        (["--sahpe", "8,8,8"], "--shape"),
    ],
)
def test_a_wrong_request_is_one_sentence(
    words: list[str],
    sentence: str,
    tmp_path: Path,
    run: Callable[..., Any],
) -> None:
    ended = run("sample", tmp_path / "a.tif", *words)
    assert ended.code == 2
    assert sentence in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.png", "folder/a.tif"])
def test_an_output_that_cannot_be(
    run: Callable[..., Any], name: str, tmp_path: Path
) -> None:
    assert run("sample", tmp_path / name, *SMALL).code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept(run: Callable[..., Any], tmp_path: Path) -> None:
    truth = tmp_path / "t.tif"
    truth.write_text("mine")
    ended = run("sample", tmp_path / "a.tif", *SMALL, "--truth", truth)
    assert ended.code == 2
    assert "already there" in ended.err
    assert truth.read_text() == "mine"
    assert not (tmp_path / "a.tif").exists()
