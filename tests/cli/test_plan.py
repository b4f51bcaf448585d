"""`neurodeploy plan`: what it predicts is what happens, and it writes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Bundle,
    Segmenter,
    SegmentSettings,
    open_volume,
)
from neurodeploy_runtime._run import SegmentRun
from neurodeploy_runtime.measure import Calibration, Forecast, forecast
from neurodeploy_runtime.measure._forecast import _seconds

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def bundle(make_identity_bundle: MakeBundle) -> Bundle:
    return make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "in.tif"
    noise = np.random.default_rng(0).normal(100, 5, (20, 40, 50))
    tifffile.imwrite(path, noise.astype(np.uint16), compression="zlib")
    return path


def test_the_tiles_and_the_disk_that_are_planned_are_those_that_are_used(
    bundle: Bundle, stack: Path, tmp_path: Path
) -> None:
    with (
        open_volume(stack) as source,
        Segmenter(bundle, SegmentSettings()) as segmenter,
    ):
        found = forecast(segmenter, source, tmp_path / "out.tif")
        report = segmenter.segment(source, tmp_path / "out.tif")
    assert report is not None
    assert found.tiles_run == report.tiles_run
    assert found.redundancy == pytest.approx(report.redundancy, abs=1e-3)
    assert 0 < (tmp_path / "out.tif").stat().st_size <= found.disk_bytes
    assert found.calibration is not None
    assert found.calibration.tiles == 8
    assert found.seconds is not None
    assert found.seconds > 0


def test_planning_writes_nothing_and_says_what_will_happen(
    run: Callable[..., Any], bundle: Bundle, stack: Path
) -> None:
    ended = run("plan", stack, "-m", bundle.path)
    assert ended.code == 0, ended.err
    for word in ("TIFF", "tiles", "regions", "memory", "expected", "Mvoxel/s"):
        assert word in ended.out
    assert "--skip-background" in ended.out  # the stack is noise and nothing else
    assert [p.name for p in stack.parent.iterdir()] == ["in.tif"]


def test_json_holds_the_whole_plan(
    run: Callable[..., Any], bundle: Bundle, stack: Path
) -> None:
    ended = run("plan", stack, "-m", bundle.path, "--json", "--no-calibrate")
    values: dict[str, Any] = json.loads(ended.out)
    assert values["shape"] == [20, 40, 50]
    assert values["tiles_run"] == 3 * 3 * 4
    assert values["seconds"] is None
    assert values["read_amplification"] == 1


def test_a_cap_that_cannot_hold_is_refused_as_segment_refuses_it(
    run: Callable[..., Any], bundle: Bundle, stack: Path
) -> None:
    ended = run("plan", stack, "-m", bundle.path, "--memory", "1MB")
    assert ended.code == 2
    assert "smallest that would do" in ended.err


def test_of_a_scratch_file_only_a_chapter_is_charged(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `segment` makes it where the disk does not hold all planes at once."""
    noise = np.random.default_rng(0).normal(100, 5, (300, 40, 50)).astype(np.uint16)
    look, usage = SegmentRun.plan_memory, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        SegmentRun, "plan_memory", lambda run: replace(look(run), scratch=True)
    )
    source = ArraySource(noise)
    with Segmenter(bundle, SegmentSettings()) as segmenter:

        def planned() -> Forecast:
            return forecast(segmenter, source, tmp_path / "o.tif", calibrate=False)

        roomy = planned()
        assert roomy.scratch_bytes == noise.nbytes
        free = roomy.disk_bytes + noise.nbytes // 2
        small = usage._replace(free=free)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
        tight = planned()
    assert 64 * noise[0].nbytes < tight.scratch_bytes <= noise.nbytes // 2
    assert tight.disk_bytes + tight.scratch_bytes <= free


def test_what_a_roi_decodes_is_counted_and_not_what_it_holds(
    run: Callable[..., Any], bundle: Bundle, tmp_path: Path
) -> None:
    """Planes that are compressed as a whole are decoded as a whole."""
    path = tmp_path / "in.tif"
    noise = np.random.default_rng(0).normal(100, 5, (20, 40, 50)).astype(np.uint16)
    tifffile.imwrite(path, noise, compression="zlib", rowsperstrip=40)
    asked = "plan", path, "-m", bundle.path, "--json", "--no-calibrate"
    part = json.loads(run(*asked, "--roi", "0:20,0:10,0:10").out)
    assert part["read_amplification"] == 20 * 40 * 50 / (20 * 10 * 10)
    assert "neurodeploy ingest" in " ".join(part["advice"])


def test_chunks_that_are_loaded_as_a_whole_are_counted_so(tmp_path: Path) -> None:
    """Also those that are not compressed: what they give was taken for too little."""
    h5py = pytest.importorskip("h5py", reason="the extra `cluster` is missing")
    path = tmp_path / "in.h5"
    with h5py.File(path, "w") as file:
        voxels = np.zeros((20, 40, 50), np.uint8)
        file.create_dataset("v", data=voxels, chunks=(10, 20, 50))
    with open_volume(path) as source:
        assert not source.compressed
        assert source.decoded_voxels(Box((4, 0, 0), (6, 1, 1))) == 10 * 20 * 50
        assert source.decoded_voxels(Box((4, 0, 0), (14, 40, 9))) == 20 * 40 * 50
    np.save(tmp_path / "in.npy", voxels)
    with open_volume(tmp_path / "in.npy") as source:
        assert source.decoded_voxels(Box((4, 0, 0), (6, 1, 1))) == 2


def test_several_gpus_share_the_tiles_of_a_forecast() -> None:
    measured = Calibration(8, 1.0, 0.001, 1e9, 0.0)
    one, two = (_seconds(measured, 100, 100, 1e6, gpus=n) for n in (1, 2))
    assert two == one / 2
    assert _seconds(measured, 100, 100, 1e6, gpus=0) > one


def test_the_tiles_that_two_chapters_run_are_counted_twice(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk does not hold all planes, layers on a cut are run by both."""
    noise = np.random.default_rng(0).normal(100, 5, (300, 40, 50)).astype(np.uint16)
    look, usage = SegmentRun.plan_memory, shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        SegmentRun, "plan_memory", lambda run: replace(look(run), scratch=True)
    )
    source, output = ArraySource(noise), tmp_path / "o.tif"
    with Segmenter(bundle, SegmentSettings()) as segmenter:
        roomy = forecast(segmenter, source, output, calibrate=False)
        small = usage._replace(free=roomy.disk_bytes + noise.nbytes // 2)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
        tight = forecast(segmenter, source, output, calibrate=False)
    assert tight.tiles_run > roomy.tiles_run
    assert tight.redundancy > roomy.redundancy
