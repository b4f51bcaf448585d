"""`neurodeploy segment --follow`, as a user meets it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy.cli._progress import voxel_progress
from neurodeploy_runtime import EngineSettings, InputError, load_bundle
from neurodeploy_runtime._progress import Progress
from neurodeploy_runtime.live import FollowSettings, LiveSettings, follow
from neurodeploy_runtime.volumes._tiff_folder import planes_in_order


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")


def test_a_folder_is_followed_and_equals_what_segment_makes(run, bundle, tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.integers(90, 120, (16, 20, 24)).astype(np.uint16)
    folder = tmp_path / "planes"
    folder.mkdir()

    def write():
        for z, plane in enumerate(stack):
            tifffile.imwrite(folder / f"z{z:03}.tif", plane)
            time.sleep(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    common = ["-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu"]
    code, _, err = run("segment", folder, *common, "--follow", "--follow-planes", 16)
    writer.join()
    assert code == 0, err
    assert "16 × 20 × 24 voxels" in err
    # Both learn from all 16 planes.
    whole = tmp_path / "whole.tif"
    assert run("segment", folder, *common, "-o", whole)[0] == 0
    followed = tifffile.imread(tmp_path / "planes.seg.tif")
    np.testing.assert_array_equal(followed, tifffile.imread(whole))
    assert 0 < np.count_nonzero(followed) < followed.size
    # What was followed can be run again, as what was segmented can.
    made = ["reproduce", tmp_path / "planes.seg.tif", "-m", bundle.path]
    code, _, err = run(*made)
    assert code == 0, err


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--roi", "0:1,0:1,0:1"], "--roi needs a finished volume"),
        (["--worker", "1/2"], "--worker needs a finished volume"),
        (["--skip-background"], "--skip-background needs a finished volume"),
        (["--output-kind", "both"], "choose mask or probability"),
    ],
)
def test_what_needs_the_whole_volume_is_refused(run, bundle, tmp_path, option, named):
    asked = ["segment", tmp_path, "-m", bundle.path, "--follow", *option]
    code, _, err = run(*asked)
    assert code == 2
    assert named in err


def test_the_constants_of_a_report_make_what_segment_makes(run, bundle, tmp_path):
    """Learnt from the first planes alone, they would be others."""
    rng = np.random.default_rng(0)
    stack = rng.integers(90, 120, (24, 20, 24)).astype(np.uint16)
    stack[16:] *= 2
    folder = tmp_path / "planes"
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"z{z:03}.tif", plane)
    common = ["-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu"]
    whole = tmp_path / "whole.tif"
    assert run("segment", folder, *common, "-o", whole)[0] == 0
    asked = ["segment", folder, *common, "--follow", "--follow-planes", 24]
    asked += ["--normalisation-from", tmp_path / "whole.json"]
    code, _, err = run(*asked)
    assert code == 0, err
    followed = tifffile.imread(tmp_path / "planes.seg.tif")
    np.testing.assert_array_equal(followed, tifffile.imread(whole))
    report = json.loads((tmp_path / "planes.seg.json").read_text())
    other = json.loads((tmp_path / "whole.json").read_text())
    name = "normalisation"
    assert report["provenance"][name] == other["provenance"][name]
    assert run(*asked[:-2], "--overwrite")[0] == 0
    alone = json.loads((tmp_path / "planes.seg.json").read_text())
    assert alone["provenance"][name] != other["provenance"][name]


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("{}", "holds no constants"),
        ("no JSON", "holds no constants"),
        (None, "holds no constants"),
        ('{"kind": "unit", "background": 0, "noise": 1}', "take a report of the same"),
        ('{"kind": "background-asinh", "background": 0, "noise": 0}', "a noise of 0"),
    ],
)
def test_a_report_without_constants_for_the_model_is_refused(
    run, bundle, tmp_path, said, named
):
    report = tmp_path / "report.json"
    if said is not None:
        held = f'{{"provenance": {{"normalisation": {said}}}}}'
        report.write_text(held if "kind" in said else said)
    asked = ["segment", tmp_path, "-m", bundle.path, "--follow"]
    code, _, err = run(*asked, "--normalisation-from", report)
    assert code == 2
    assert named in " ".join(err.split())


def test_an_absent_plane_is_named_while_it_is_waited_for(bundle, tmp_path, capsys):
    folder = tmp_path / "planes"
    folder.mkdir()
    plane = np.random.default_rng(0).integers(90, 120, (20, 24)).astype(np.uint16)
    for z in (0, 1, 2, 3, 4, 6, 7, 8):
        tifffile.imwrite(folder / f"z{z}.tif", plane)
    told = []

    def progress(progress):
        if progress.note:
            told.append(progress.note)
            tifffile.imwrite(folder / "z5.tif", plane)

    live = LiveSettings(engine=EngineSettings(device="cpu"))
    settings = FollowSettings(
        live=live, settle_s=0.02, poll_s=0.01, timeout_s=20.0, planes=9
    )
    output = tmp_path / "out.tif"
    report = follow(folder, output, bundle, settings, progress=progress)
    assert report.shape == (9, 20, 24)
    assert len(told) == 1
    assert "waits at plane 0" in told[0]
    assert "lacks planes between z0.tif and z8.tif: 5" in told[0]
    with voxel_progress("follow", quiet=False) as show:
        show(Progress(0, 1, 0, 1.0, told[0]))
    assert "follow: waits at plane 0" in capsys.readouterr().err


def test_the_folder_that_one_is_in_is_followed_by_its_name(
    run, bundle, tmp_path, monkeypatch
):
    """Its result lies beside it, as that of `segment .` does."""
    rng = np.random.default_rng(0)
    stack = rng.integers(90, 120, (9, 20, 24)).astype(np.uint16)
    folder = tmp_path / "2024.03.01_brain"
    folder.mkdir()
    for z, plane in enumerate(stack):
        tifffile.imwrite(folder / f"z{z:03}.tif", plane)
    monkeypatch.chdir(folder)
    common = ["-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu"]
    asked = ["segment", "--follow", ".", *common, "--follow-planes", 9]
    code, _, err = run(*asked)
    assert code == 0, err
    assert tifffile.imread(tmp_path / "2024.03.01_brain.seg.tif").shape == (9, 20, 24)


def test_a_threshold_of_skipping_that_nothing_skips_by_is_refused(
    run, bundle, tmp_path
):
    asked = ["segment", tmp_path, "-m", bundle.path, "--follow", "--skip-sigma", "3"]
    code, _, err = run(*asked)
    assert code == 2
    assert "--skip-sigma does nothing without --skip-background" in err


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [
        ([0, 1, 3], "2"),
        ([0, 2, 3], "1"),
        ([0, 1, 3, 4, 6], "2, 5"),
        ([0, 1, 3, 4, 6, 7, 9], "2, 5, 8"),
        ([0, 10, 30], "20"),
    ],
)
def test_planes_that_are_missing_are_named_also_where_gaps_are_as_many(
    numbers, missing
):
    files = [Path(f"p{n}.tif") for n in numbers]
    with pytest.raises(InputError, match=rf"lacks planes .*: {missing};"):
        planes_in_order(files, Path("planes"))


@pytest.mark.parametrize("numbers", [[0, 5], [3, 4, 5], [0, 1, 3, 7], [2, 4, 6, 8]])
def test_planes_numbered_as_they_are_lie_in_order(numbers):
    files = [Path(f"p{n}.tif") for n in numbers]
    assert planes_in_order(files[::-1], Path("planes")) == files


def test_the_foreground_of_a_probability_is_counted_at_the_threshold(run, tmp_path):
    folder = tmp_path / "planes"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for z in range(12):
        plane = rng.normal(1000, 30, (64, 64)).astype(np.uint16)
        plane[30:34] += 900
        tifffile.imwrite(folder / f"z{z:02}.tif", plane)
    found = {}
    for kind in ("mask", "probability"):
        out = tmp_path / f"{kind}.tif"
        ended = run(
            "segment", "--follow", folder, "-o", out, "--output-kind", kind,
            "--follow-timeout", "1.5", "--engine", "onnxruntime",
        )  # fmt: skip
        assert ended.code == 0, ended.err
        found[kind] = json.loads(out.with_suffix(".json").read_text())
    level = round(255 * load_bundle().spec.threshold)
    written = tifffile.imread(tmp_path / "probability.tif")
    counted = {k: v["foreground_voxels"] for k, v in found.items()}
    assert counted["probability"] == (written >= level).sum()
    assert 0 < counted["mask"] <= counted["probability"] < 1.1 * counted["mask"]
