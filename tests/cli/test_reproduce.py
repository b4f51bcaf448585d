"""`neurodeploy reproduce`: a region of a result, made again."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from neurodeploy.cli import main
from neurodeploy_runtime import Bundle, Segmenter, SegmentSettings, open_volume
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._reproduce import _overlap


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return int(stop.value.code or 0)


@pytest.fixture
def result(make_identity_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    volume = np.random.default_rng(0).integers(0, 255, (20, 2, 40, 50), np.uint8)
    tifffile.imwrite(
        tmp_path / "in.tif", volume, imagej=True, metadata={"axes": "ZCYX"}
    )
    bundle = make_identity_bundle().path
    code = run(
        *("segment", tmp_path / "in.tif", "-m", bundle, "--quiet", "--channel", "1"),
        *("--overlap", "0.3", "--roi", "2:20,0:40,5:50", "--engine", "onnxruntime"),
    )
    assert code == 0
    return tmp_path / "in.seg.tif"


def test_a_region_comes_out_the_same(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = make_identity_bundle().path
    assert run("reproduce", result, "-m", bundle, "--roi", "3:11,7:33,9:41") == 0
    assert (
        "3:11,7:33,9:41: 0 of 6656 voxels differ, Dice 1.0" in capsys.readouterr().out
    )


def test_a_result_that_was_touched_is_found_out(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with tifffile.TiffFile(result) as file:
        offset = file.pages.first.dataoffsets[0]
    data = bytearray(result.read_bytes())
    data[offset + 20_000] ^= 255
    result.write_bytes(data)
    bundle = make_identity_bundle().path
    assert run("reproduce", result, "-m", bundle) == 1
    assert "1 of" in capsys.readouterr().out


def test_another_version_is_named_and_does_not_stop_it(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = result.with_suffix(".json")
    values = json.loads(report.read_text())
    now = values["provenance"]["versions"]["neurodeploy"]
    values["provenance"]["versions"]["neurodeploy"] = "0.0.1"
    report.write_text(json.dumps(values))
    assert run("reproduce", result, "-m", make_identity_bundle().path) == 0
    assert f"(neurodeploy 0.0.1 then, {now} now)" in capsys.readouterr().out


def test_another_model_is_refused(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = make_identity_bundle(threshold=0.4).path
    assert run("reproduce", result, "-m", other) == 2
    assert "was made by the model 'identity'" in capsys.readouterr().err


def test_another_input_is_refused(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = result.with_name("in.tif")
    volume = tifffile.imread(path)
    volume[0, 0, 0, 0] ^= 1
    tifffile.imwrite(path, volume, imagej=True, metadata={"axes": "ZCYX"})
    assert run("reproduce", result, "-m", make_identity_bundle().path) == 2
    assert "fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("overlap", ["0.17", "0.1", "0.5", "0"])
def test_an_overlap_that_is_rounded_on_every_axis_is_found_again(
    make_identity_bundle: Callable[..., Bundle], tmp_path: Path, overlap: str
) -> None:
    """0.17 of (32, 64, 64) is (5, 11, 11); and 11 of 64 would be 5.5 of 32."""
    volume = np.random.default_rng(0).integers(0, 255, (60, 80, 80), np.uint8)
    np.save(tmp_path / "in.npy", volume)
    bundle = make_identity_bundle(tile=(32, 64, 64))
    wanted = SegmentSettings(overlap=float(overlap))
    with (
        open_volume(tmp_path / "in.npy") as source,
        Segmenter(bundle, wanted) as segmenter,
    ):
        report = segmenter.segment(source, tmp_path / "out.tif")
    assert report is not None
    tiles = report.provenance["tiles"]
    found = _overlap(tiles, bundle)
    plan = TilePlan.of(bundle.spec, volume.shape, found)
    assert [axis.overlap for axis in plan.axes] == tiles["overlap"]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("output", "roi"), "0:4,x:3,0:2"),
        (("output", "roi"), "0:4"),
        (("notes", "opened_with"), {"colour": 3}),
        (("notes", "opened_with"), {"channel": "a"}),
        (("tiles", "overlap"), [1, 2, 3]),
        (("tiles", "overlap"), [1, 2]),
    ],
)
def test_a_damaged_report_is_one_sentence(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
    where: tuple[str, str],
    value: object,
) -> None:
    report = result.with_suffix(".json")
    values = json.loads(report.read_text())
    values["provenance"][where[0]][where[1]] = value
    report.write_text(json.dumps(values))
    assert run("reproduce", result, "-m", make_identity_bundle().path) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("name", ["out.tif", "out.probability.tif"])
def test_of_a_run_of_both_kinds_each_file_is_held_to_its_own(
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (9, 40, 50), np.uint8)
    np.save(tmp_path / "in.npy", volume)
    bundle = make_identity_bundle().path
    asked = "segment", tmp_path / "in.npy", "-m", bundle, "--quiet"
    asked += "-o", tmp_path / "out.tif", "--output-kind", "both"
    assert run(*asked, "--engine", "onnxruntime") == 0
    assert run("reproduce", tmp_path / name, "-m", bundle) == 0
    assert "0 of 18000 voxels differ, Dice 1.0" in capsys.readouterr().out
    assert run("info", tmp_path / name, "--json") == 0
    assert "the voxels are those that were written" in capsys.readouterr().out


def test_a_result_of_one_plane_is_one_too(
    make_identity_bundle: Callable[..., Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    volume = np.random.default_rng(0).integers(0, 255, (9, 40, 50), np.uint8)
    np.save(tmp_path / "in.npy", volume)
    bundle = make_identity_bundle().path
    asked = "segment", tmp_path / "in.npy", "-m", bundle, "--quiet"
    asked += "-o", tmp_path / "out.tif", "--roi", "4:5,0:40,0:50"
    assert run(*asked, "--engine", "onnxruntime") == 0
    assert run("reproduce", tmp_path / "out.tif", "-m", bundle) == 0
    assert "0 of 2000 voxels differ" in capsys.readouterr().out
    assert run("info", tmp_path / "out.tif", "--json") == 0
    assert "the voxels are those that were written" in capsys.readouterr().out


@pytest.mark.parametrize("noise", [0, -1, "much", None, float("inf")])
def test_constants_by_which_nothing_is_normalised_are_one_sentence(
    result: Path,
    make_identity_bundle: Callable[..., Bundle],
    capsys: pytest.CaptureFixture[str],
    noise: object,
) -> None:
    report = result.with_suffix(".json")
    values = json.loads(report.read_text())
    values["provenance"]["normalisation"]["noise"] = noise
    report.write_text(json.dumps(values))
    assert run("reproduce", result, "-m", make_identity_bundle().path) == 2
    said = capsys.readouterr().err
    assert f"a noise of {noise!r}" in said
    assert len(said.strip().splitlines()) == 1
