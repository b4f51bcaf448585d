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
    Bundle,
    Segmenter,
    SegmentSettings,
    open_volume,
)
from neurodeploy_runtime._run import SegmentRun
from neurodeploy_runtime.measure import Forecast, forecast

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
