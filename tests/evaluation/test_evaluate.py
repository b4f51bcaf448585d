"""`neurodeploy evaluate`, with a network whose answers are known."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy.data import find_pairs, load_pair
from neurodeploy.evaluation import BASELINES, baseline_figures, figures_of_filter
from neurodeploy_runtime import Bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two images of bars that the identity network finds at a threshold of 0.5."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "b"):
        image = rng.integers(20, 60, (12, 40, 40)).astype(np.uint8)
        mask = np.zeros(image.shape, np.uint8)
        mask[5:8, 18:21, 4:36] = 255
        image[mask > 0] = 230
        tifffile.imwrite(folder / f"{name}.tif", image, photometric="minisblack")
        tifffile.imwrite(folder / f"{name}_mask.tif", mask, photometric="minisblack")
    return folder


def test_a_bundle_is_measured(
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    data: Path,
    run: Callable[..., Any],
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16)).path
    out = tmp_path / "out"
    words = ["--data", data, "-o", out, "--json", "--engine", "onnxruntime"]
    ended = run("evaluate", bundle, *words, "--baselines")
    assert ended.code == 0
    values = json.loads(ended.out)
    assert values == json.loads((out / "evaluation.json").read_text())
    pooled = values["pooled"]
    assert pooled["voxels"]["dice"] == 1.0
    assert pooled["voxels"]["average_precision"] == 1.0
    assert pooled["skeleton"]["cl_dice"] == 1.0
    assert pooled["voxels"]["voxels"] == 2 * 12 * 40 * 40
    assert [image["name"] for image in values["images"]] == ["data/a.tif", "data/b.tif"]
    assert values["baselines"]["raw intensity"]["average_precision"] == 1.0
    # A bundle that does not name its volumes marks none.
    assert values["parts"] == {}
    assert {image["part"] for image in values["images"]} == {None}
    pictures = sorted(p.name for p in out.glob("*.png"))
    assert pictures == ["data_a.tif.png", "data_b.tif.png"]
    ended = run("evaluate", bundle, *words)
    assert ended.code == 2
    assert "not empty" in ended.err


def test_a_missed_image_is_infinitely_far_in_table_and_json(
    make_identity_bundle: Callable[..., Bundle],
    data: Path,
    run: Callable[..., Any],
) -> None:
    dark = np.random.default_rng(1).integers(20, 60, (12, 40, 40)).astype(np.uint8)
    dark[0, 0, 0] = 250  # what is found lies where nothing is
    labels = tifffile.imread(data / "b_mask.tif") // 255
    labels[0] = 255
    tifffile.imwrite(data / "b.tif", dark, photometric="minisblack")
    tifffile.imwrite(data / "b_mask.tif", labels, photometric="minisblack")
    bundle = make_identity_bundle(tile=(8, 16, 16)).path
    words = ("--data", data, "--engine", "onnxruntime", "--threshold", 0.9)
    ended = run("evaluate", bundle, *words, "--json")
    assert ended.code == 0
    figures = json.loads(ended.out)
    found = [image["skeleton"] for image in figures["images"]]
    assert [f["hd95_empty"] for f in found] == [0, 1]
    assert found[1]["hd95"] is None
    assert figures["pooled"]["skeleton"]["hd95"] is None
    ended = run("evaluate", bundle, *words, "--quiet")
    assert ended.code == 0
    assert ended.out.count(" inf ") == 2


def test_images_of_one_name_in_two_folders_have_a_picture_each(
    run: Callable[..., Any],
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    data: Path,
) -> None:
    for mouse in ("m1", "m2"):
        (tmp_path / "all" / mouse).mkdir(parents=True)
        shutil.copytree(data, tmp_path / "all" / mouse / "images")
    out = tmp_path / "out"
    bundle = make_identity_bundle(tile=(8, 16, 16)).path
    words = ("--data", tmp_path / "all", "-o", out, "--engine", "onnxruntime")
    assert run("evaluate", bundle, *words, "--quiet").code == 0
    assert len(list(out.glob("*.png"))) == 4


def test_tracings_are_compared(run: Callable[..., Any], tmp_path: Path) -> None:
    for name, y in (("one", 0), ("two", 3)):
        lines = f"1 2 0 {y} 0 1 -1\n2 2 20 {y} 0 1 1\n"
        (tmp_path / f"{name}.swc").write_text(lines)
    paths = (tmp_path / "one.swc", "--data", tmp_path / "two.swc")
    ended = run("evaluate", *paths)
    assert ended.code == 0
    assert json.loads(ended.out)["esa"] == 3.0


def test_tracings_are_compared_in_voxels(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    um = "1 2 0 3 0 1 -1\n2 2 10 3 0 1 1"
    one, two, three = (tmp_path / f"{name}.swc" for name in ("one", "two", "three"))
    one.write_text("1 2 0 0 0 1 -1\n2 2 20 0 0 1 1\n")
    two.write_text(f"# Voxel separation (x,y,z): 0.5, 0.5, 2.0\n{um}")
    three.write_text(f"# Voxel separation (x,y,z): 0.5, 0.5, 1.0\n{um}")
    ended = run("evaluate", one, "--data", two)
    assert ended.code == 0
    assert json.loads(ended.out)["esa"] == 6.0
    words = ("--unit", "um", "--voxel-size", "2,0.5,0.5")
    two.write_text(um)
    ended = run("evaluate", two, "--data", one, *words)
    assert ended.code == 0
    assert json.loads(ended.out)["pds"] == 1.0
    ended = run("evaluate", one, "--data", two, "--unit", "um")
    assert ended.code == 2
    assert "--voxel-size" in ended.err
    ended = run("evaluate", two, "--data", three, *words)
    assert ended.code == 2
    assert "tracings of one image" in ended.err


def test_wrong_requests_are_one_sentence(
    run: Callable[..., Any], tmp_path: Path, data: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = run("evaluate", empty, "--data", data)
    assert ended.code == 2
    assert "neither a bundle" in ended.err
    ended = run("evaluate", empty, "--data", empty)
    assert ended.code == 2
    assert "holds no annotated image" in ended.err
    ended = run("evaluate", "--data", data, "--threshold", "nan")
    assert ended.code == 2
    assert "'nan' is not a number" in ended.err


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_measured(
    run: Callable[..., Any], tmp_path: Path, data: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = run("evaluate", "--data", data, "-o", file / "figures")
    assert ended.code == 2
    assert f"{file / 'figures'} cannot be made: " in ended.err
    assert "measured" not in ended.err


def test_a_channel_of_every_image_is_what_is_measured(
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    data: Path,
    run: Callable[..., Any],
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16)).path
    both = tmp_path / "both" / "data"
    shutil.copytree(data, both)
    for path in (both / "a.tif", both / "b.tif"):
        image = tifffile.imread(path)
        values = np.stack([np.zeros_like(image), image], axis=1)
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": "ZCYX"})
    words = ["--json", "--engine", "onnxruntime", "--baselines"]
    ended = run("evaluate", bundle, "--data", both, *words)
    assert ended.code == 2
    assert "has 2 channels" in ended.err
    plain = json.loads(run("evaluate", bundle, "--data", data, *words).out)
    chosen = run("evaluate", bundle, "--data", both, *words, "--channel", 1)
    assert chosen.code == 0, chosen.err
    found = json.loads(chosen.out)
    for name in ("images", "pooled", "baselines"):
        assert found[name] == plain[name]
    tracing = tmp_path / "a.swc"
    tracing.write_text("1 2 1 1 1 1 -1\n2 2 5 1 1 1 1\n")
    ended = run("evaluate", tracing, "--data", tracing, "--channel", 1)
    assert ended.code == 2
    assert "--channel" in ended.err


@pytest.mark.slow
def test_filters_reach_what_they_are_known_to_reach(shared_data: Path) -> None:
    found = find_pairs(shared_data / "trailmap" / "train")
    cubes = [load_pair(pair) for pair in found.pairs]
    known = {"raw intensity": 0.88, "white top-hat, σ 6": 0.80, "Sato": 0.74}
    for name, score in BASELINES.items():
        figures = baseline_figures(cubes, score)
        assert figures.average_precision == pytest.approx(known[name], abs=0.006)


@pytest.mark.parametrize("unit", [1e-4, 1.0, 65535.0])
def test_what_a_filter_reaches_does_not_depend_on_its_unit(unit: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(4000) < 0.2
    said = (rng.normal(0, 1, 4000) + 2 * truth).astype(np.float32)
    found = figures_of_filter(np.asarray(unit * said, np.float32), truth)
    assert found.average_precision == pytest.approx(0.783, abs=2e-3)
    # Marking everything reaches a third.
    assert found.best_dice == pytest.approx(0.706, abs=2e-3)
