"""`neurodeploy segment`: what a user sees, and what wrong requests get."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy.cli._options import default_output
from neurodeploy.cli._segment import show_report
from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    open_volume,
)

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def bundle(make_identity_bundle: MakeBundle) -> Path:
    return make_identity_bundle(tile=(8, 16, 16)).path


def stack(shape: tuple[int, ...] = (9, 30, 40), dtype: str = "uint16") -> Any:
    return np.random.default_rng(0).integers(0, 255, shape).astype(dtype)


@pytest.fixture
def untouched(tmp_path: Path) -> Iterator[None]:
    """Nothing is written, nothing is changed."""
    yield
    left = [p for p in tmp_path.iterdir() if not p.name.startswith("in")]
    assert left == []


def test_a_stack_gets_a_mask_a_picture_and_a_report_beside_it(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    tifffile.imwrite(
        tmp_path / "big.tif",
        stack(dtype="uint8"),
        imagej=True,
        resolution=(2.0, 2.0),
        metadata={"axes": "ZYX", "spacing": 2.0, "unit": "um"},
    )
    ended = run("segment", tmp_path / "big.tif", "-m", bundle, "--threshold", "0.5")
    assert ended.code == 0, ended.err
    with tifffile.TiffFile(tmp_path / "big.seg.tif") as result:
        assert result.is_imagej
        mask = result.asarray()
    expected = stack(dtype="uint8") >= 128
    assert (mask == np.where(expected, 255, 0)).all()
    with open_volume(tmp_path / "big.seg.tif") as volume:
        assert volume.voxel_size_um == pytest.approx((2.0, 0.5, 0.5))
    report = json.loads((tmp_path / "big.seg.json").read_text())
    assert report["foreground_voxels"] == expected.sum()
    assert {"read", "normalise", "infer", "blend", "write"} <= set(report["seconds"])
    assert (tmp_path / "big.seg.png").read_bytes()[:4] == b"\x89PNG"
    assert "Mvoxel/s" in ended.err


def test_the_foreground_shown_is_a_share_of_the_volume_after_a_restart_too(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    volume = np.zeros((8, 20, 20), np.uint8)
    volume[:4] = 255
    wanted = SegmentSettings(normalisation=Normalisation("unit", 0, 255))
    loaded = make_identity_bundle(tile=(8, 16, 16))
    with Segmenter(loaded, wanted, engines=[NumpyEngine(loaded)]) as segmenter:
        report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    show_report(replace(report, resumed_voxels=report.voxels * 9 // 10))
    assert "50.000% foreground" in capfd.readouterr().err


def test_a_voxel_size_that_the_file_does_not_say_can_be_said(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    tifffile.imwrite(
        tmp_path / "in.tif", stack(), imagej=True, metadata={"axes": "ZYX"}
    )
    words = ("segment", tmp_path / "in.tif", "-m", bundle, "--threshold", "0.5")
    output = tmp_path / "in.precomputed"
    ended = run(*words, "-o", output)
    assert ended.code == 2
    assert "give it with --voxel-size z,y,x" in ended.err.splitlines()[-1]
    ended = run(*words, "-o", output, "--voxel-size", "2,0,0.5")
    assert ended.code == 2
    assert "all three must be positive" in ended.err.splitlines()[-1]
    ended = run(*words, "-o", output, "--voxel-size", "2,0.6,0.5")
    assert ended.code == 0, ended.err
    with open_volume(output) as volume:
        assert volume.voxel_size_um == pytest.approx((2.0, 0.6, 0.5))
        assert volume.shape == (9, 30, 40)
    assert run("reproduce", output, "-m", bundle).code == 0


def test_a_run_is_not_continued_with_another_voxel_size(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "in.npy", stack((140, 30, 40)))
    words = (
        *("segment", tmp_path / "in.npy", "-m", bundle, "--threshold", "0.5"),
        *("-o", tmp_path / "out.tif"),
    )
    first = run(*words, "--worker", "1/2", "--voxel-size", "2,1,1")
    assert first.code == 0, first.err
    other = run(*words, "--worker", "2/2", "--voxel-size", "3,1,1")
    assert other.code == 2
    assert "voxel_size_um" in other.err.splitlines()[-1]
    assert not (tmp_path / "out.tif").exists()
    assert run(*words, "--worker", "2/2", "--voxel-size", "2,1,1").code == 0
    with open_volume(tmp_path / "out.tif") as volume:
        assert volume.voxel_size_um == pytest.approx((2.0, 1.0, 1.0))


def test_two_runs_and_two_caps_are_the_same_file(bundle: Path, tmp_path: Path) -> None:
    """In processes of their own: a cap counts all that a process holds."""
    tifffile.imwrite(tmp_path / "in.tif", stack((70, 80, 90)), compression="zlib")
    command = [sys.executable, "-m", "neurodeploy", "segment", tmp_path / "in.tif"]
    command += ["-m", bundle, "-o", tmp_path / "out.tif", "--overwrite", "--quiet"]
    wholes = []
    for memory in ("1GB", "1GB", "4GB"):
        done = subprocess.run([*command, "--memory", memory], capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        wholes.append((tmp_path / "out.tif").read_bytes())
    assert wholes[0] == wholes[1] == wholes[2]


def test_a_roi_is_that_part_of_the_volume(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    volume = stack(dtype="uint8")
    tifffile.imwrite(tmp_path / "in.tif", volume)
    ended = run(
        *("segment", tmp_path / "in.tif", "-m", bundle, "--roi", "1:6,3:29,0:40"),
        *("--output-kind", "probability"),
    )
    assert ended.code == 0, ended.err
    assert (tifffile.imread(tmp_path / "in.seg.tif") == volume[1:6, 3:29]).all()


def bad_inputs() -> dict[str, tuple[Callable[[Path], None], str]]:
    def write(array: Any, **more: Any) -> Callable[[Path], None]:
        return lambda path: tifffile.imwrite(path, array, **more)

    def truncated(path: Path) -> None:
        tifffile.imwrite(path, stack((20, 64, 64)), compression="zlib")
        path.write_bytes(path.read_bytes()[:-9000])

    def with_nan(path: Path) -> None:
        volume = stack((5, 20, 20), "float32")
        volume[1, 2, 3] = np.nan
        tifffile.imwrite(path, volume)

    return {
        "not a TIFF": (lambda path: path.write_bytes(b"hello " * 50) and None, "TIFF"),
        "empty file": (lambda path: path.write_bytes(b"") and None, "empty"),
        "truncated": (truncated, "plane"),
        "2D": (write(stack((30, 40))), "one plane"),
        "5D": (
            write(stack((2, 3, 4, 20, 20)), imagej=True, metadata={"axes": "TZCYX"}),
            "--time|time",
        ),
        "several channels": (
            write(stack((3, 2, 20, 20)), imagej=True, metadata={"axes": "ZCYX"}),
            "--channel|channel",
        ),
        "RGB": (write(stack((5, 20, 20, 3), "uint8"), photometric="rgb"), "colour"),
        "complex": (write(stack((5, 20, 20), "complex64")), "complex64"),
        "64 bit": (write(stack((5, 20, 20), "float64")), "float64"),
        "constant": (write(np.full((5, 20, 20), 7, np.uint16)), "constant"),
        "NaN": (with_nan, "NaN"),
    }


@pytest.mark.parametrize("kind", bad_inputs())
@pytest.mark.usefixtures("untouched")
def test_a_bad_input_is_one_sentence_and_nothing_is_written(
    run: Callable[..., Any], bundle: Path, tmp_path: Path, kind: str
) -> None:
    import re

    make, word = bad_inputs()[kind]
    make(tmp_path / "in.tif")
    ended = run("segment", tmp_path / "in.tif", "-m", bundle)
    assert ended.code == 2, ended.err
    assert re.search(word, ended.err)
    assert ended.err.startswith("neurodeploy: ")
    assert len(ended.err.strip().splitlines()) == 1
    assert "Traceback" not in ended.err


@pytest.mark.usefixtures("untouched")
def test_an_input_that_is_not_there_is_named(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    ended = run("segment", tmp_path / "no.tif", "-m", bundle)
    assert ended.code == 2
    assert "no.tif" in ended.err


def test_an_output_that_exists_is_left_alone(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    (tmp_path / "in.seg.tif").write_bytes(b"years of work")
    ended = run("segment", tmp_path / "in.tif", "-m", bundle)
    assert ended.code == 2
    assert "--overwrite" in ended.err
    assert (tmp_path / "in.seg.tif").read_bytes() == b"years of work"


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("missing/out.tif", "does not exist"),
        ("out.xyz", "format"),
        ("in.tif", "exists"),
    ],
)
@pytest.mark.usefixtures("untouched")
def test_an_output_that_cannot_be_is_one_sentence(
    run: Callable[..., Any], bundle: Path, tmp_path: Path, output: str, word: str
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    before = (tmp_path / "in.tif").read_bytes()
    ended = run("segment", tmp_path / "in.tif", "-m", bundle, "-o", tmp_path / output)
    assert ended.code == 2
    assert word in ended.err
    assert (tmp_path / "in.tif").read_bytes() == before


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("d/big.tif", "d/big.seg.tif"),
        ("d/big.OME.TIFF", "d/big.seg.tif"),
        ("d/2024.03.01_brain", "d/2024.03.01_brain.seg.tif"),
        ("d/2024.03.02_brain/", "d/2024.03.02_brain.seg.tif"),
        ("d/2024.03.01_brain.tif", "d/2024.03.01_brain.seg.tif"),
        ("d/a.v3draw", "d/a.seg.v3draw"),
        ("d/a.b.npy", "d/a.b.seg.tif"),
        ("https://server/d/a.ome.zarr/", "a.seg.ome.zarr"),
    ],
)
def test_a_result_is_named_after_its_whole_input(path: str, expected: str) -> None:
    source = ArraySource(np.zeros((1, 1, 1), np.uint8))
    source.format = "OME-Zarr" if "zarr" in path else "TIFF"
    assert default_output(path, source) == Path(expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("brain.zarr", "brain.seg.ome.zarr"),
        ("brain.zarr/0", "brain.0.seg.ome.zarr"),
        ("brain.zarr/labels/axons/0", "brain.labels.axons.0.seg.ome.zarr"),
    ],
)
def test_a_result_never_goes_into_the_store_that_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str
) -> None:
    (tmp_path / "brain.zarr/labels/axons/0").mkdir(parents=True)
    for group in ("", "labels", "labels/axons", "labels/axons/0"):
        (tmp_path / "brain.zarr" / group / "zarr.json").touch()
    source = ArraySource(np.zeros((1, 1, 1), np.uint8))
    source.format = "Zarr v3"
    assert default_output(str(tmp_path / given), source) == tmp_path / expected
    monkeypatch.chdir((tmp_path / given).parent)
    found = default_output(Path(given).name, source)
    assert found.absolute() == tmp_path / expected


def test_the_result_of_this_folder_lies_beside_it(
    run: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planes = tmp_path / "planes"
    planes.mkdir()
    for z, plane in enumerate(stack()):
        tifffile.imwrite(planes / f"z{z}.tif", plane)
    before = sorted(planes.iterdir())
    monkeypatch.chdir(planes)
    ended = run("segment", ".", "-m", bundle)
    assert ended.code == 0, ended.err
    assert sorted(planes.iterdir()) == before
    assert (tmp_path / "planes.seg.tif").exists()


@pytest.mark.usefixtures("untouched")
def test_the_input_is_never_overwritten(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, stack())
    ended = run("segment", path, "-m", bundle, "-o", path, "--overwrite")
    assert ended.code == 2
    assert "is the input" in ended.err


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    closed = tmp_path / "in-closed"
    closed.mkdir(mode=0o500)
    ended = run("segment", tmp_path / "in.tif", "-m", bundle, "-o", closed / "o.tif")
    assert ended.code == 2
    assert "cannot write" in ended.err


@pytest.mark.usefixtures("untouched")
def test_too_little_disk_is_found_before_the_run(
    run: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    ended = run("segment", tmp_path / "in.tif", "-m", bundle)
    assert ended.code == 2
    assert "0.00 GB free" in ended.err


def missing_file(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def altered_file(folder: Path) -> None:
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)


def altered_threshold(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(
        text.replace('"threshold": 0.5', '"threshold": 0.9')
    )


def newer_schema(folder: Path) -> None:
    text = (folder / "model.json").read_text()
    (folder / "model.json").write_text(text.replace('"schema": 1', '"schema": 99'))


def no_json(folder: Path) -> None:
    (folder / "model.json").write_text("{")


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (missing_file, "lacks model.onnx"),
        (altered_file, "model.onnx was altered"),
        (altered_threshold, "seal"),
        (newer_schema, "schema 99"),
        (no_json, "not JSON"),
    ],
)
@pytest.mark.usefixtures("untouched")
def test_a_bundle_that_is_not_whole_is_refused(
    run: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    spoil: Callable[[Path], None],
    word: str,
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    shutil.copytree(bundle, tmp_path / "in-bundle")
    spoil(tmp_path / "in-bundle")
    ended = run("segment", tmp_path / "in.tif", "-m", tmp_path / "in-bundle")
    assert ended.code == 2
    assert word in ended.err


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--roi", "0:5,0:5,0:99"), "0:9,0:30,0:40"),
        (("--roi", "5"), "z0:z1"),
        (("--overlapp", "0.3"), "--overlap"),
        (("--overlap", "0.8"), "0 to 0.5"),
        (("--threshold", "2"), "between 0 and 1"),
        (("--memory", "much"), "4GB"),
        (("--memory", "1MB"), "smallest that would do"),
        (("--device", "tpu"), "cuda:N"),
        (("--engine", "openvino", "--device", "cuda:0"), "openvino on cpu"),
        (("--worker", "3/2"), "3/2"),
        (("--channel", "2"), "channel"),
    ],
)
@pytest.mark.usefixtures("untouched")
def test_a_wrong_option_is_one_sentence(
    run: Callable[..., Any],
    bundle: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    word: str,
) -> None:
    tifffile.imwrite(tmp_path / "in.tif", stack())
    ended = run("segment", tmp_path / "in.tif", "-m", bundle, *arguments)
    assert ended.code == 2, ended.err
    assert word in ended.err


def test_a_misspelt_verb_names_the_nearest(run: Callable[..., Any]) -> None:
    ended = run("segmnt")
    assert ended.code == 2
    assert "'segment'" in ended.err


def test_info_shows_and_verifies_a_bundle_and_a_result(
    run: Callable[..., Any], bundle: Path, tmp_path: Path
) -> None:
    shown = json.loads(run("info", bundle, "--json").out)
    assert shown["name"] == "identity"
    assert "match" in shown["verified"]
    tifffile.imwrite(tmp_path / "in.tif", stack())
    run("segment", tmp_path / "in.tif", "-m", bundle, "--quiet")
    result = tmp_path / "in.seg.tif"
    ended = run("info", result, "--json")
    assert ended.code == 0
    shown = json.loads(ended.out)
    assert shown["verified"] == "the voxels are those that were written"
    with tifffile.TiffFile(result) as file:
        offset = file.pages.first.dataoffsets[0]
    data = bytearray(result.read_bytes())
    data[offset + 4321] ^= 255
    result.write_bytes(data)
    ended = run("info", result, "--json")
    assert json.loads(ended.out)["verified"].startswith("ALTERED")
    assert ended.code == 1


@pytest.mark.skipif(os.name == "nt", reason="a shell closes the streams here")
def test_a_program_without_a_standard_error_segments(
    make_identity_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    """As one that a desktop starts has none: sys.stderr is None there."""
    rng = np.random.default_rng(0)
    tifffile.imwrite(tmp_path / "in.tif", rng.integers(0, 256, (8, 16, 16), np.uint8))
    bundle = make_identity_bundle(tile=(8, 16, 16))
    words = [sys.executable, "-m", "neurodeploy", "segment", "in.tif", "-m"]
    line = shlex.join([*words, str(bundle.path)])
    ended = subprocess.run(["sh", "-c", f"{line} 2>&-"], cwd=tmp_path)
    assert ended.returncode == 0
    assert (tmp_path / "in.seg.tif").exists()
