"""Arrays and streams hold what was asked for, or refuse it by name."""

import os
import subprocess
import sys
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
    MemoryCapError,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    SettingsError,
    SkipSettings,
    open_volume,
)
from neurodeploy_runtime._rss import current_rss

MakeBundle = Callable[..., Bundle]
WANTED = SegmentSettings(
    output_kind="probability", normalisation=Normalisation("unit", 0, 255)
)


def segmenter(bundle: Bundle, **changed: Any) -> Segmenter:
    wanted = replace(WANTED, **changed)
    return Segmenter(bundle, wanted, engines=[NumpyEngine(bundle)])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"output_kind": "both"}, "both"),
        ({"seam_map": True}, "seam_map"),
        ({"skip": SkipSettings()}, "skip"),
        ({"worker": (2, 3)}, "worker"),
    ],
)
def test_what_only_a_file_has_a_place_for_is_refused_before_the_first_slab(
    make_identity_bundle: MakeBundle, changed: dict[str, Any], named: str
) -> None:
    volume = np.zeros((20, 40, 40), np.uint8)
    asked = segmenter(make_identity_bundle(), **changed)
    with pytest.raises(SettingsError, match=named):
        asked.stream(ArraySource(volume))
    with pytest.raises(SettingsError, match="is for files"):
        asked.segment_array(volume)


@pytest.mark.parametrize(
    "roi", [Box((0, 0, 0), (21, 40, 40)), Box((5, 5, 5), (5, 9, 9))]
)
def test_a_roi_that_is_not_in_the_volume_is_refused(
    make_identity_bundle: MakeBundle, roi: Box
) -> None:
    asked = segmenter(make_identity_bundle(), roi=roi)
    with pytest.raises(SettingsError, match="does not lie inside the volume"):
        asked.segment_array(np.zeros((20, 40, 40), np.uint8))


def test_slabs_of_no_planes_are_refused(make_identity_bundle: MakeBundle) -> None:
    source = ArraySource(np.zeros((20, 40, 40), np.uint8))
    with pytest.raises(SettingsError, match="slabs of 0 planes"):
        segmenter(make_identity_bundle()).stream(source, planes=0)


def test_an_array_is_background_outside_the_tissue_as_a_file_is(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(1, 256, (24, 60, 60), np.uint8)
    mask = np.zeros((12, 30, 30), np.uint8)
    mask[3:8, 4:20, 10:25] = 1
    path = tmp_path / "mask.tif"
    tifffile.imwrite(path, mask)
    roi = Box((2, 3, 4), (20, 55, 58))
    asked = segmenter(make_identity_bundle(), tissue=path, roi=roi)
    got = asked.segment_array(volume)
    tifffile.imwrite(tmp_path / "in.tif", volume)
    with open_volume(tmp_path / "in.tif") as source:
        asked.segment(source, tmp_path / "out.tif")
    assert (got == tifffile.imread(tmp_path / "out.tif")).all()
    whole = volume * np.kron(mask, np.ones((2, 2, 2), np.uint8))
    assert (got == whole[roi.slices]).all()


def test_the_memory_cap_holds_for_an_array_or_is_refused(
    make_identity_bundle: MakeBundle,
) -> None:
    bundle = make_identity_bundle()
    volume = np.zeros((20, 1000, 1000), np.uint8)
    held = current_rss()
    with pytest.raises(MemoryCapError, match="the smallest that would do is"):
        segmenter(bundle, memory_bytes=held + 80_000_000).segment_array(volume)
    roomy = segmenter(bundle, memory_bytes=held + 1_000_000_000)
    assert roomy.segment_array(volume).shape == volume.shape


def test_a_kind_of_output_that_there_is_not_is_refused() -> None:
    with pytest.raises(SettingsError, match="output_kind 'masks' is unknown"):
        SegmentSettings(output_kind="masks")  # type: ignore[arg-type]


def test_what_was_passed_over_is_said_once_however_often_one_streams(
    make_identity_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurodeploy_runtime import _slabs

    class Noting(_slabs.RunMemory):
        def choose(self) -> Any:
            self.notes.append("tiles are blended on the host")
            return super().choose()

    monkeypatch.setattr(_slabs, "RunMemory", Noting)
    asked = segmenter(make_identity_bundle())
    for _ in range(3):
        asked.segment_array(np.zeros((9, 20, 20), np.uint8))
    assert asked.choice["passed_over"] == ["tiles are blended on the host"]


LEFT = """
import numpy as np
from neurodeploy_runtime import ArraySource, Segmenter, SegmentSettings, EngineSettings
from neurodeploy_runtime import LiveSegmenter, LiveSettings
asked = EngineSettings(engine="onnxruntime", device="cpu")
noise = np.random.default_rng(0).integers(90, 110, (200, 60, 60), np.uint16)
segmenter = Segmenter(settings=SegmentSettings(engine=asked))
slabs = segmenter.stream(ArraySource(noise), planes=4)
print(next(slabs)[0].start)
live = LiveSegmenter(None, (60, 60), "uint16", LiveSettings(engine=asked))
live.push(noise[:live.ring_planes])
print("over")
"""


def test_a_program_ends_where_a_stream_was_left_open() -> None:
    """By whoever took the first slab and looked at no other."""
    done = subprocess.run(
        [sys.executable, "-c", LEFT], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert (done.stdout.split("\n")[-2], done.stderr) == ("over", "")


FORKED = """
import os, sys, time
from neurodeploy_runtime import LiveSegmenter, NumpyEngine, load_bundle
bundle = load_bundle()
live = LiveSegmenter(bundle, (60, 60), "uint16", engines=[NumpyEngine(bundle)])
live._turning.acquire()  # as another thread may, that the child has not
child = os.fork()
if child == 0:
    sys.exit(7)
live._turning.release()
end = time.monotonic() + 20
while os.waitpid(child, os.WNOHANG) == (0, 0) and time.monotonic() < end:
    time.sleep(0.05)
print("over" if time.monotonic() < end else "hangs")
if time.monotonic() >= end:
    os.kill(child, 9)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_ends_without_what_its_parent_has_open() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("over\n", 0), done.stderr
