"""Promises of `neurodeploy ingest`."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner

from neurodeploy.cli._main import cli, main
from neurodeploy_runtime import _ingest_plan, ingest
from neurodeploy_runtime._errors import (
    MemoryCapError,
    OutputError,
    ReadError,
    ResumeError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime.volumes import ArraySource, open_volume
from neurodeploy_runtime.volumes._sink_pyramid import pool

pytest.importorskip("tensorstore")

SHAPE = (150, 300, 270)


def volume(shape=SHAPE, dtype="uint16"):
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return ((z * 7 + y * 3 + x * x // 50) % 251 + 1).astype(dtype)


@pytest.fixture
def planes(tmp_path):
    """A stack of compressed planes with a voxel size, as ImageJ saves it."""
    path = tmp_path / "brain.tif"
    tifffile.imwrite(
        path,
        volume(),
        imagej=True,
        compression="zlib",
        rowsperstrip=SHAPE[1],
        metadata={"spacing": 2.0, "unit": "um", "axes": "ZYX"},
        resolution=(2.0, 2.0),
    )
    return path


def invoke(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


def read_all(path, **choice):
    with open_volume(path, **choice) as source:
        return source.read(Box.whole(source.shape))


def test_the_command_gives_the_same_voxels_with_their_size_and_coarser_means(
    tmp_path, planes
):
    out = tmp_path / "brain.zarr"
    result = invoke("ingest", planes, out)
    assert result.exit_code == 0, result.output
    assert "Mvoxel/s" in result.stderr
    with open_volume(out) as source:
        assert source.format == "OME-Zarr 0.5, level 0"
        assert source.voxel_size_um == (2.0, 0.5, 0.5)
        assert source.dtype == np.dtype("uint16")
    assert np.array_equal(read_all(out), volume())
    assert np.array_equal(read_all(out, level=1), pool(volume(), (1, 2, 2), "mean"))
    attributes = json.loads((out / "zarr.json").read_text())["attributes"]
    assert attributes["neurodeploy"]["ingested_from"]["path"] == str(planes)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["brain.tif", "brain.zarr"]


@pytest.mark.parametrize("how", ["slab", "scratch"])
def test_each_plane_is_decoded_once_whatever_the_memory(
    tmp_path, planes, how, monkeypatch
):
    # Three layers of shards, each of several shards.
    monkeypatch.setattr(_ingest_plan, "_GRAINS", ((64, 64, 64),))
    monkeypatch.setattr(_ingest_plan, "current_rss", lambda: 100_000_000)
    plane = SHAPE[1] * SHAPE[2] * 2
    unit = 64**3 * 2
    with open_volume(planes, threads=1) as source:
        source.keep(0)
        fixed = source.memory_bytes + 8 * unit + _ingest_plan._OVERHEAD_BYTES
        # A layer's 64 planes and one more of the next, or one too few.
        cap = 100_000_000 + fixed + (65 if how == "slab" else 64) * plane
        report = ingest(source, tmp_path / "a.zarr", memory_bytes=cap)
        decoded = source.decoded
    assert report.reading.how == how
    # First and last again, for the fingerprint of what was read, are not decoded.
    assert decoded == SHAPE[0]
    assert np.array_equal(read_all(tmp_path / "a.zarr"), volume())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "brain.tif"]


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_every_type_of_voxel_is_kept(tmp_path, dtype):
    voxels = volume((20, 30, 40), dtype)
    with ArraySource(voxels) as source:
        report = ingest(source, tmp_path / "a.zarr")
    assert report.dtype == dtype
    assert report.input_bytes == voxels.nbytes
    assert np.array_equal(read_all(tmp_path / "a.zarr"), voxels)


def test_a_store_can_be_ingested_again(tmp_path):
    voxels = volume((20, 300, 40))
    with ArraySource(voxels) as source:
        ingest(source, tmp_path / "a.zarr")
    result = invoke("ingest", tmp_path / "a.zarr", tmp_path / "b.zarr", "--level", "1")
    assert result.exit_code == 0, result.output
    assert np.array_equal(
        read_all(tmp_path / "b.zarr"), pool(voxels, (2, 2, 2), "mean")
    )


def test_progress_goes_up_to_the_whole_volume(tmp_path):
    voxels = volume((20, 300, 300))
    seen = []
    with ArraySource(voxels) as source:
        ingest(source, tmp_path / "a.zarr", progress=seen.append)
    assert [p.done_voxels for p in seen] == sorted({p.done_voxels for p in seen})
    assert seen[-1].done_voxels == seen[-1].total_voxels == voxels.size


def test_background_takes_no_disk(tmp_path):
    with ArraySource(np.zeros((64, 300, 300), np.uint8)) as source:
        report = ingest(source, tmp_path / "a.zarr")
    assert report.output_bytes < 10_000
    assert not read_all(tmp_path / "a.zarr").any()


class Watched(ArraySource):
    """Remembers what was read."""

    def __init__(self, array):
        super().__init__(array)
        self.read_boxes = []

    def read(self, box, out=None):
        self.read_boxes.append(box)
        return super().read(box, out)


class FailingSource(ArraySource):
    """Its end cannot be read."""

    def read(self, box, out=None):
        if box.stop[0] == self.shape[0] and box.shape[0] > 4:
            raise ReadError("plane 12 cannot be decoded")
        return super().read(box, out)


def test_after_a_read_error_the_same_call_goes_on(tmp_path):
    voxels = volume((600, 30, 30))
    out = tmp_path / "a.zarr"
    with pytest.raises(ReadError, match="plane 12"):
        ingest(FailingSource(voxels), out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr.ingest"]
    seen = []
    mended = Watched(voxels)
    ingest(mended, out, progress=seen.append)
    assert np.array_equal(read_all(out), voxels)
    # Of three units the third is read, and the fingerprint reads all; progress says so.
    units = [box for box in mended.read_boxes if 4 < box.shape[0] < 600]
    assert [box.start for box in units] == [(512, 0, 0)]
    assert seen[0].resumed_voxels == 512 * 30 * 30
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_a_shard_that_was_damaged_since_is_made_again(tmp_path):
    voxels = volume((600, 30, 30))
    out = tmp_path / "a.zarr"
    with pytest.raises(ReadError):
        ingest(FailingSource(voxels), out)
    shards = [
        path
        for path in (tmp_path / "a.zarr.ingest" / "volume.zarr").rglob("c/*/0/0")
        if path.is_file()
    ]
    assert shards
    for path in shards:
        path.write_bytes(path.read_bytes()[:-40] + bytes(40))
    ingest(ArraySource(voxels), out)
    assert np.array_equal(read_all(out), voxels)


def test_another_input_is_not_mixed_into_an_unfinished_store(tmp_path):
    voxels = volume((600, 30, 30))
    out = tmp_path / "a.zarr"
    with pytest.raises(ReadError):
        ingest(FailingSource(voxels), out)
    other = voxels + 1
    with pytest.raises(ResumeError, match=r"input\.fingerprint"):
        ingest(ArraySource(other), out)
    ingest(ArraySource(other), out, overwrite=True)
    assert np.array_equal(read_all(out), other)


def test_less_memory_goes_on_with_the_shards_that_were_begun(tmp_path):
    voxels = volume((600, 300, 300))
    out = tmp_path / "a.zarr"
    with pytest.raises(ReadError):
        ingest(FailingSource(voxels), out)
    held = _ingest_plan.current_rss()
    with pytest.raises(MemoryCapError, match=r"give --memory \d+MB"):
        ingest(ArraySource(voxels), out, memory_bytes=held + 120_000_000)
    # Without what was begun, smaller shards would do.
    ingest(ArraySource(voxels), tmp_path / "b.zarr", memory_bytes=held + 120_000_000)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_killed_ingest_goes_on_to_the_same_voxels(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 65536, (1300, 150, 150), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", voxels, compression="zlib")
    out = tmp_path / "out.zarr"
    command = [sys.executable, "-m", "neurodeploy", "ingest"]
    command += [str(tmp_path / "in.tif"), str(out), "--memory", "2GB"]
    log = tmp_path / "out.zarr.ingest" / "done-1.log"
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists()
    begun = log.read_text()
    assert 0 < len(begun.splitlines()) < 6
    with open_volume(tmp_path / "in.tif") as source:
        report = ingest(source, out, memory_bytes=2 * 10**9)
    assert report.resumed_voxels == len(begun.splitlines()) * 256 * 150 * 150
    assert np.array_equal(read_all(out), voxels)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.tif", "out.zarr"]


def test_a_write_error_reaches_the_caller(tmp_path, monkeypatch):
    from neurodeploy_runtime.volumes import _sink_zarr

    def full(self, unit, voxels):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_sink_zarr.ZarrSink, "_write", full)
    with ArraySource(volume()) as source, pytest.raises(Exception, match="No space"):
        ingest(source, tmp_path / "a.zarr")
    assert not (tmp_path / "a.zarr").exists()


def test_nothing_is_overwritten_unasked_and_only_zarr_when_asked(tmp_path, planes):
    out = tmp_path / "a.zarr"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    assert "already there" in str(invoke("ingest", planes, out).exception)
    assert "no Zarr" in str(invoke("ingest", planes, out, "--overwrite").exception)
    assert (out / "thesis.txt").read_text() == "precious"
    shutil.rmtree(out)
    with ArraySource(np.ones((3, 4, 5), np.uint8)) as source:
        ingest(source, out)
    assert invoke("ingest", planes, out, "--overwrite", "--quiet").exit_code == 0
    assert read_all(out).shape == SHAPE


def stopped(tmp_path, voxels):
    """What an ingest leaves that was stopped in the middle: two units of three."""
    out = tmp_path / "a.zarr"
    with pytest.raises(ReadError):
        ingest(FailingSource(voxels), out)
    return out, tmp_path / "a.zarr.ingest"


def test_a_kill_behind_the_last_rename_leaves_nothing_behind(tmp_path):
    voxels = volume((600, 30, 30))
    out, work = stopped(tmp_path, voxels)
    (work / "naming").touch()
    (work / "volume.zarr").rename(out)
    with pytest.raises(OutputError, match="already there"):
        ingest(ArraySource(voxels), out)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_a_kill_between_the_last_renames_loses_neither_store(tmp_path, monkeypatch):
    voxels = volume((600, 30, 30))
    out = tmp_path / "a.zarr"
    ingest(ArraySource(voxels + 1), out)
    rename = Path.rename

    def killed(self, target):
        if self.name == "volume.zarr":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(ArraySource(voxels), out, overwrite=True)
    work = tmp_path / "a.zarr.ingest"
    assert np.array_equal(read_all(work / "replaced"), voxels + 1)
    seen = []
    ingest(ArraySource(voxels), out, progress=seen.append)
    assert seen == []
    assert np.array_equal(read_all(out), voxels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_the_folder_of_an_unfinished_segmentation_stays(tmp_path):
    theirs = tmp_path / "a.zarr.neurodeploy"
    theirs.mkdir()
    for name in ("naming", "plan.json", "probability.zarr"):
        (theirs / name).write_text("theirs")
    ingest(ArraySource(volume((20, 30, 30))), tmp_path / "a.zarr")
    with pytest.raises(OutputError, match="already there"):
        ingest(ArraySource(volume((20, 30, 30))), tmp_path / "a.zarr")
    assert len(list(theirs.iterdir())) == 3


def test_what_a_kill_amid_a_removal_left_is_not_gone_on_with(tmp_path):
    voxels = volume((600, 30, 30))
    out, work = stopped(tmp_path, voxels)
    (work / "plan.json").unlink()
    ingest(ArraySource(voxels + 1), out)
    assert np.array_equal(read_all(out), voxels + 1)


def test_records_of_a_store_that_is_gone_are_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr("neurodeploy_runtime._durable.VERIFY_BYTES", 0)
    voxels = volume((600, 30, 30))
    out, work = stopped(tmp_path, voxels)
    shutil.rmtree(work / "volume.zarr")
    ingest(ArraySource(voxels), out)
    assert np.array_equal(read_all(out), voxels)


def test_a_damaged_unfinished_store_is_begun_again_where_that_is_allowed(tmp_path):
    voxels = volume((600, 30, 30))
    out, work = stopped(tmp_path, voxels)
    for path in (work / "volume.zarr").rglob("zarr.json"):
        path.unlink()
    with pytest.raises(ResumeError, match="start again"):
        ingest(ArraySource(voxels), out)
    ingest(ArraySource(voxels), out, overwrite=True)
    assert np.array_equal(read_all(out), voxels)


def test_somebodys_file_in_the_working_folder_is_not_removed(tmp_path):
    work = tmp_path / "a.zarr.ingest"
    work.mkdir()
    (work / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"thesis\.txt is not of an unfinished run"):
        ingest(ArraySource(volume((20, 30, 30))), tmp_path / "a.zarr")
    assert (work / "thesis.txt").read_text() == "precious"


def test_a_name_that_cannot_be_given_is_one_sentence_and_loses_nothing(
    tmp_path, monkeypatch
):
    voxels = volume((20, 30, 30))

    rename = Path.rename

    def refused(self, target):
        if self.name == "volume.zarr":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(WriteError, match="is whole and cannot be given its name"):
            ingest(ArraySource(voxels), tmp_path / "a.zarr")
    ingest(ArraySource(voxels), tmp_path / "a.zarr")
    assert np.array_equal(read_all(tmp_path / "a.zarr"), voxels)


def test_two_at_once_are_told(tmp_path):
    voxels = volume((600, 30, 30))
    out, work = stopped(tmp_path, voxels)
    other = Journal(work)
    other.lock()
    try:
        with pytest.raises(ResumeError, match=f"process {os.getpid()}"):
            ingest(ArraySource(voxels), out, overwrite=True)
    finally:
        other.close()
    ingest(ArraySource(voxels), out)
    assert np.array_equal(read_all(out), voxels)


def test_the_input_is_never_its_own_output(tmp_path):
    out = tmp_path / "a.zarr"
    ingest(ArraySource(volume((20, 30, 30))), out)
    result = invoke("ingest", out, out, "--overwrite")
    assert "is the input" in str(result.exception)
    assert np.array_equal(read_all(out), volume((20, 30, 30)))


def test_too_little_memory_says_how_much_would_do(tmp_path, planes):
    with open_volume(planes) as source:
        with pytest.raises(MemoryCapError, match=r"give --memory \d+MB") as caught:
            ingest(source, tmp_path / "a.zarr", memory_bytes=1_000_000)
        enough = int(str(caught.value).partition("--memory ")[2].split("MB")[0])
        ingest(source, tmp_path / "a.zarr", memory_bytes=(enough + 20) * 10**6)
    assert read_all(tmp_path / "a.zarr").shape == SHAPE


def test_a_disk_that_is_too_small_shows_before_the_work(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    voxels = np.random.default_rng(0).integers(0, 65536, (8, 300, 300), np.uint16)
    with ArraySource(voxels) as source:
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _: usage._replace(free=1_000_000)
        )
        with pytest.raises(OutputError, match="make room"):
            ingest(source, tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == []
    # What can be compressed is not refused for its size uncompressed.
    with ArraySource(np.full((8, 300, 300), 7, np.uint16)) as source:
        ingest(source, tmp_path / "b.zarr")


def test_the_output_is_a_zarr_and_not_inside_the_input(tmp_path, planes, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["ingest", str(planes), str(tmp_path / "a.tif")])
    assert stop.value.code == 2
    assert "end it in .zarr" in capsys.readouterr().err
    with ArraySource(np.ones((3, 4, 5), np.uint8)) as source:
        ingest(source, tmp_path / "b.zarr")
    with (
        open_volume(tmp_path / "b.zarr") as source,
        pytest.raises(SettingsError, match="inside the input"),
    ):
        ingest(source, tmp_path / "b.zarr" / "c.zarr")


def test_where_all_threads_at_once_are_too_much_fewer_decode(tmp_path):
    """A cap that was refused, because eight threads were charged for."""
    path = tmp_path / "planes.tif"
    planes = np.zeros((9, 2000, 4000), np.uint8)
    tifffile.imwrite(path, planes, compression="packbits", rowsperstrip=2000)
    with open_volume(path, threads=8, cache_bytes=0) as source:
        everyone = source.memory_bytes
        assert everyone == 8 * 3 * 8_000_000
        with pytest.raises(MemoryCapError, match="give --memory") as refused:
            _ingest_plan.choose_shards(source, 1)
        assert source.memory_bytes == everyone / 8
        smallest = int(str(refused.value).split("--memory ")[1].split("MB")[0])
    with open_volume(path, threads=8, cache_bytes=0) as source:
        _ingest_plan.choose_shards(source, (smallest + 30) * 10**6)
        assert source.memory_bytes < everyone / 2
    with open_volume(path, threads=8, cache_bytes=0) as source:
        _ingest_plan.choose_shards(source, 2**40)
        assert source.memory_bytes == everyone
