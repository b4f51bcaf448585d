"""A disk that refuses for a moment, for one unit, or for good."""

import errno
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Bundle,
    Normalisation,
    NumpyEngine,
    ReadError,
    Segmenter,
    SegmentSettings,
    WriteError,
    open_volume,
)
from neurodeploy_runtime import _outlet as outlet_module
from neurodeploy_runtime._ingest import ingest
from neurodeploy_runtime._patience import is_passing, patiently, read_patiently
from neurodeploy_runtime._survey import survey
from neurodeploy_runtime._tissue import TissueMask
from neurodeploy_runtime.volumes import ScratchSource, Sink
from neurodeploy_runtime.volumes._sink_flat import FlatSink

MakeBundle = Callable[..., Bundle]


def refusal(number: int) -> WriteError:
    error = WriteError("refused")
    error.__cause__ = OSError(number, "as the system says it")
    return error


class Disk:
    """Refuses the first `times` writes."""

    def __init__(self, times: int, number: int = errno.EIO) -> None:
        self.times, self.number, self.calls = times, number, 0

    def __call__(self) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise refusal(self.number)


def test_a_moment_passes() -> None:
    disk = Disk(2)
    patiently(disk, threading.Event(), (0, 0, 0))
    assert disk.calls == 3


def test_patience_ends() -> None:
    disk = Disk(9)
    with pytest.raises(WriteError):
        patiently(disk, threading.Event(), (0, 0, 0))
    assert disk.calls == 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_no_room_does_not_pass(number: int) -> None:
    disk = Disk(1, number)
    with pytest.raises(WriteError):
        patiently(disk, threading.Event(), (60,))
    assert disk.calls == 1


def test_who_stops_does_not_wait() -> None:
    disk, stop = Disk(1), threading.Event()
    stop.set()
    with pytest.raises(WriteError):
        patiently(disk, stop, (60,))
    assert disk.calls == 1


def test_tensorstore_says_the_number_in_its_text() -> None:
    for number, passes in ((errno.EIO, True), (errno.ENOSPC, False)):
        error = WriteError("refused")
        error.__cause__ = ValueError(f"Failed to write [OS error {number}: EX text]")
        assert is_passing(error) is passes
    assert not is_passing(WriteError("units are 64 voxels"))


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> dict[Box | None, int]:
    """How often each unit is still to be refused; None: every unit, by default."""
    left: dict[Box | None, int] = {}
    real = FlatSink._write

    def write(self: Sink, unit: Box, voxels: Any) -> None:
        key = unit if unit in left else None
        if left.get(key, 0) > 0:
            left[key] -= 1
            raise OSError(errno.EIO, "Input/output error")
        real(self, unit, voxels)  # type: ignore[arg-type]

    monkeypatch.setattr(FlatSink, "_write", write)
    quick = partial(patiently, pauses_s=(0, 0, 0))
    monkeypatch.setattr(outlet_module, "patiently", quick)
    return left


def segmenter(bundle: Bundle) -> Segmenter:
    settings = SegmentSettings(
        output_kind="probability", normalisation=Normalisation("unit", 0, 255)
    )
    return Segmenter(bundle, settings, engines=[NumpyEngine(bundle)])


def noise(depth: int) -> ArraySource:
    rng = np.random.default_rng(depth)
    return ArraySource(rng.integers(0, 256, (depth, 40, 50), np.uint8))


SECOND = Box((64, 0, 0), (128, 40, 50))


def test_one_unit_that_fails_for_a_moment_is_written_after_it(
    make_identity_bundle: MakeBundle, tmp_path: Path, refused: dict[Any, int]
) -> None:
    refused[SECOND] = 3
    source = noise(200)
    segmenter(make_identity_bundle()).segment(source, tmp_path / "out.tif")
    assert refused[SECOND] == 0
    assert (tifffile.imread(tmp_path / "out.tif") == source._array).all()


def test_one_unit_that_fails_for_good_does_not_hold_up_the_others(
    make_identity_bundle: MakeBundle, tmp_path: Path, refused: dict[Any, int]
) -> None:
    refused[SECOND] = 4
    bundle, source, output = make_identity_bundle(), noise(300), tmp_path / "out.tif"
    with pytest.raises(WriteError, match=r"^1 unit could not be written, all others"):
        segmenter(bundle).segment(source, output)
    assert not output.exists()
    work = tmp_path / "out.tif.neurodeploy"
    assert str(SECOND) in (work / "failed-1.log").read_text()
    assert len((work / "done-1.log").read_text().splitlines()) == 4
    report = segmenter(bundle).segment(source, output)
    assert report is not None
    # The tiles of that unit alone were run again.
    assert report.resumed_voxels == (300 - 64) * 40 * 50
    assert (tifffile.imread(output) == source._array).all()


def test_a_disk_that_takes_nothing_ends_the_run(
    make_identity_bundle: MakeBundle, tmp_path: Path, refused: dict[Any, int]
) -> None:
    refused[None] = 10_000
    source = noise(64 * 20)
    with pytest.raises(WriteError, match="see to the disk"):
        segmenter(make_identity_bundle()).segment(source, tmp_path / "out.tif")
    assert refused[None] >= 10_000 - 4 * 17
    assert not (tmp_path / "out.tif").exists()


def test_the_command_says_so_in_a_sentence_and_ends_with_1(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    refused: dict[Any, int],
    run: Callable[..., Any],
) -> None:
    refused[SECOND] = 4
    source = noise(200)
    np.save(tmp_path / "in.npy", source._array)
    command = (
        *("segment", tmp_path / "in.npy", "-o", tmp_path / "in.seg.tif"),
        *("-m", make_identity_bundle().path, "--engine", "onnxruntime"),
    )
    ended = run(*command)
    assert ended.code == 1
    said = ended.err.splitlines()[-1]
    assert said.startswith(
        "neurodeploy: 1 unit could not be written, all others are done"
    )
    assert "Traceback" not in ended.err
    assert not (tmp_path / "in.seg.tif").exists()
    again = run(*command)
    assert again.code == 0, again.err
    with tifffile.TiffFile(tmp_path / "in.seg.tif") as result:
        assert result.asarray().shape == (200, 40, 50)


class Hiccups(ArraySource):
    """Every box is refused `times` times before it is read."""

    def __init__(self, array: Any, times: int, error: Exception) -> None:
        super().__init__(array)
        self.times, self.error = times, error
        self.asked: dict[Box, int] = {}

    def read(self, box: Box, out: Any = None) -> Any:
        self.asked[box] = self.asked.get(box, 0) + 1
        if self.asked[box] <= self.times:
            raise self.error
        return super().read(box, out)


STALE = OSError(errno.ESTALE, "Stale file handle")


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neurodeploy_runtime._patience.READ_PAUSES_S", (0, 0))


def through_scratch(source: ArraySource, folder: Path) -> Any:
    with ScratchSource(source, folder) as scratch:
        return scratch.read(Box.whole(source.shape))


def through_ingest(source: ArraySource, folder: Path) -> Any:
    ingest(source, folder / "out.zarr")
    with open_volume(folder / "out.zarr") as stored:
        return stored.read(Box.whole(stored.shape))


def through_survey(source: ArraySource, folder: Path) -> Any:
    return survey(source).quantiles([0.1, 0.5, 0.9])


def through_tissue(source: ArraySource, folder: Path) -> Any:
    return TissueMask.read(source, source.shape)._mask


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    "pass_", [through_scratch, through_ingest, through_survey, through_tissue]
)
@pytest.mark.parametrize("error", [STALE, ReadError("page 3 does not decode")])
def test_a_read_that_hiccups_is_tried_again_wherever_a_volume_is_gone_through(
    tmp_path: Path, pass_: Callable[..., Any], error: Exception
) -> None:
    if pass_ is through_ingest:
        pytest.importorskip("tensorstore", reason="the extra `cluster` is missing")
    voxels = noise(70)._array
    (tmp_path / "whole").mkdir()
    expected = pass_(ArraySource(voxels), tmp_path / "whole")
    source = Hiccups(voxels, 2, error)
    assert np.array_equal(pass_(source, tmp_path), expected)
    assert set(source.asked.values()) == {3}


@pytest.mark.usefixtures("no_pauses")
def test_a_read_that_fails_for_good_is_one_of_ours(tmp_path: Path) -> None:
    source = Hiccups(noise(9)._array, 9, STALE)
    with pytest.raises(ReadError, match=r"^planes 2 to 5 of .*Stale file handle"):
        read_patiently(source, Box((2, 0, 0), (6, 40, 50)))
    assert set(source.asked.values()) == {3}
    with pytest.raises(ReadError):
        ScratchSource(source, tmp_path)
    assert not list(tmp_path.iterdir())
