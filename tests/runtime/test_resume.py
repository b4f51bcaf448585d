"""A run that is killed continues, and nobody can tell from its result."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from neurodeploy_runtime import (
    ArraySource,
    Box,
    Bundle,
    InputError,
    Normalisation,
    NumpyEngine,
    OutputError,
    Progress,
    ReadError,
    ResumeError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    WriteError,
    ingest,
    open_volume,
)
from neurodeploy_runtime import _journal as journal_module
from neurodeploy_runtime import _lock_file as lock_module
from neurodeploy_runtime import _process as process_module
from neurodeploy_runtime import _region_run as run_module
from neurodeploy_runtime import _run as run_whole
from neurodeploy_runtime._journal import Journal
from neurodeploy_runtime._process import this_process
from neurodeploy_runtime._report import versions

MakeBundle = Callable[..., Bundle]
WANTED = SegmentSettings(
    output_kind="probability", normalisation=Normalisation("unit", 0, 255)
)


def digest(path: Path) -> str:
    """Of a file, or of every file of a folder and its name."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else []
    total = hashlib.sha256()
    for file in files or [path]:
        total.update(str(file.relative_to(path)).encode())
        total.update(file.read_bytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Job:
    """A segmentation as a user starts it, in a process of its own."""

    folder: Path
    bundle: Path
    suffix: str

    @property
    def output(self) -> Path:
        return self.folder / f"out{self.suffix}"

    def put_away(self, name: str) -> None:
        """Make room for another run's result, report and picture."""
        self.output.rename(self.folder / name)
        for ending in (".json", ".png"):
            self.output.with_suffix(ending).unlink()

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "neurodeploy", "segment"]
        command += [str(self.folder / "in.tif"), "-m", str(self.bundle)]
        command += ["-o", str(self.output), "--output-kind", "probability"]
        command += ["--engine", "onnxruntime", "--threads", "1", *more]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder
        )

    def run(self, *more: str) -> tuple[int, str]:
        process = self.start(*more)
        _, err = process.communicate(timeout=120)
        return process.returncode, err.decode()


@pytest.fixture
def make_job(tmp_path: Path, make_identity_bundle: MakeBundle) -> Callable[[str], Job]:
    bundle = make_identity_bundle(tile=(8, 32, 32), overlap=(0.25, 0.25, 0.25))
    volume = np.random.default_rng(0).integers(0, 256, (640, 64, 96), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", volume)

    def make(suffix: str) -> Job:
        return Job(tmp_path, bundle.path, suffix)

    return make


def timed(job: Job) -> float:
    """Let it run once; the seconds that it took on this machine at this time."""
    start = time.perf_counter()
    assert job.run()[0] == 0
    return time.perf_counter() - start


def kill_until_done(
    job: Job, expected: str, kills: int, seed: int, whole_s: float
) -> tuple[int, float]:
    """Kill it `kills` times at random moments, then let it end.

    How often it died, and the seconds that a whole run takes now: a machine gets
    faster while one looks.
    """
    rng = np.random.default_rng(seed)
    died = 0
    for _ in range(kills):
        process, start = job.start(), time.perf_counter()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=float(rng.uniform(0.3, 0.95)) * whole_s)
            # Only the first begins at nothing.
            return died, whole_s if died else time.perf_counter() - start
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if process.returncode == 0:
            return died, whole_s
        died += 1
        if job.output.exists():
            # Killed behind the rename: what has the final name is whole.
            assert digest(job.output) == expected
    code, err = job.run()
    assert code == 0 or "exists" in err
    return died, whole_s


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr"])
def test_a_killed_run_ends_with_the_bytes_of_an_uninterrupted_one(
    make_job: Callable[[str], Job], suffix: str
) -> None:
    job = make_job(suffix)
    whole_s = timed(job)
    expected = digest(job.output)
    died = 0
    for seed in range(1, 9):
        job.put_away(f"old-{seed}")
        died, whole_s = kill_until_done(job, expected, 3, seed, whole_s)
        assert digest(job.output) == expected
        if died:
            break
    # A machine that gets faster ends before the first kill, and is timed anew.
    assert died >= 1


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr"])
def test_fifty_kills_at_random_moments_change_no_byte(
    make_job: Callable[[str], Job], suffix: str
) -> None:
    job = make_job(suffix)
    whole_s = timed(job)
    expected = digest(job.output)
    died = 0
    seed = 0
    while died < 50:
        job.put_away(f"old-{seed}")
        more, whole_s = kill_until_done(job, expected, 5, seed, whole_s)
        died += more
        assert digest(job.output) == expected
        seed += 1


def test_ctrl_c_leaves_no_file_under_the_final_name(
    make_job: Callable[[str], Job],
) -> None:
    job = make_job(".tif")
    process = job.start()
    work = job.folder / "out.tif.neurodeploy"
    while not (work / "plan.json").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said.decode()
    assert not job.output.exists()
    code, err = job.run()
    assert code == 0, err
    with open_volume(job.output) as result, open_volume(job.folder / "in.tif") as given:
        whole = Box.whole(given.shape)
        assert (result.read(whole) == given.read(whole)).all()


def test_ctrl_c_while_the_heartbeat_is_started_is_no_other_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path / "out.tif.neurodeploy")

    def interrupted(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        journal.lock()
    journal.close()
    assert not list(journal.folder.glob("*.lock"))


def noise(shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


class FailsAt(ArraySource):
    """A volume whose planes from `plane` on cannot be read, until it is mended."""

    def __init__(self, array: np.ndarray[Any, Any], plane: int) -> None:
        super().__init__(array)
        self.plane = plane
        #: What has to come about before it fails, within seconds.
        self.ready: Callable[[], bool] = lambda: True

    def read(self, box: Box, out: Any = None) -> Any:
        if box.stop[0] > self.plane:
            deadline = time.monotonic() + 20
            while not self.ready() and time.monotonic() < deadline:
                time.sleep(0.01)
            raise ReadError(f"plane {self.plane} is damaged")
        return super().read(box, out)


def segmenter(bundle: Bundle, wanted: SegmentSettings = WANTED) -> Segmenter:
    return Segmenter(bundle, wanted, engines=[NumpyEngine(bundle)])


@pytest.fixture
def interrupted(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Bundle, FailsAt, Path]:
    """A run that stopped at a read error, some units done."""
    monkeypatch.setattr("neurodeploy_runtime._patience.READ_PAUSES_S", (0, 0))
    monkeypatch.setattr("neurodeploy_runtime._reader.READ_BYTES", 20_000)
    bundle = make_identity_bundle()
    source = FailsAt(noise((300, 40, 50)), 200)
    with pytest.raises(ReadError, match="plane 200 is damaged"):
        segmenter(bundle).segment(source, tmp_path / "out.tif")
    assert not (tmp_path / "out.tif").exists()
    records = Journal(tmp_path / "out.tif.neurodeploy").records()
    assert 0 < len(records) < 5
    return bundle, source, tmp_path / "out.tif"


def test_a_read_error_keeps_what_is_done_and_the_rest_follows(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    report = segmenter(bundle).segment(source, output)
    assert report is not None
    assert report.resumed_voxels > 0
    assert (tifffile.imread(output) == source._array).all()


def test_a_run_goes_on_where_the_system_has_no_pread(
    interrupted: tuple[Bundle, FailsAt, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: what was recorded is read by seeking."""
    for name in ("pread", "preadv", "pwrite"):
        monkeypatch.delattr(os, name)
    bundle, source, output = interrupted
    source.plane = 10**9
    report = segmenter(bundle).segment(source, output)
    assert report is not None
    assert report.resumed_voxels > 0
    assert (tifffile.imread(output) == source._array).all()


def test_another_setting_is_refused_by_its_name(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    other = replace(WANTED, threshold=0.7, overlap=0.5)
    with pytest.raises(ResumeError, match=r"threshold \(0.5 there, 0.7 asked for\)"):
        segmenter(bundle, other).segment(source, output)


def test_another_model_is_refused(
    interrupted: tuple[Bundle, FailsAt, Path], make_identity_bundle: MakeBundle
) -> None:
    _, source, output = interrupted
    other = make_identity_bundle(threshold=0.6)
    with pytest.raises(ResumeError, match=r"model\.digest"):
        segmenter(other, replace(WANTED, threshold=0.5)).segment(source, output)


@pytest.mark.parametrize("name", ["numpy", "neurodeploy"])
def test_another_version_of_what_runs_the_network_is_refused(
    interrupted: tuple[Bundle, FailsAt, Path],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    with monkeypatch.context() as patch:
        other = {**versions(), name: "99.1"}
        patch.setattr("neurodeploy_runtime._identity.versions", lambda: other)
        with pytest.raises(
            ResumeError, match=rf"other versions\.{name} \(.* there, 99\.1 asked for\)"
        ):
            segmenter(bundle).segment(source, output)
        other = {**versions(), "openvino": "99.1"}  # it runs nothing here
        assert segmenter(bundle).segment(source, output) is not None


def test_an_input_that_changed_is_refused(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    changed = source._array.copy()
    changed[5, 5, 5] ^= 1
    with pytest.raises(ResumeError, match=r"input\.fingerprint"):
        segmenter(bundle).segment(ArraySource(changed), output)


def test_a_unit_that_was_damaged_since_is_done_again(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    data = output.with_name("out.tif.neurodeploy") / "probability.tif"
    with tifffile.TiffFile(data) as file:
        offset = file.pages.first.dataoffsets[0]
    with data.open("r+b") as raw:
        raw.seek(offset + 1000)
        raw.write(bytes(64))
    segmenter(bundle).segment(source, output)
    assert (tifffile.imread(output) == source._array).all()


def test_a_torn_record_counts_for_nothing(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    log = output.with_name("out.tif.neurodeploy") / "done-1.log"
    with log.open("ab") as raw:
        raw.write(b"256 0 0 3 12")  # no end of line: the kill came here
    segmenter(bundle).segment(source, output)
    assert (tifffile.imread(output) == source._array).all()


@pytest.mark.parametrize("kept", [b"PK\x03\x04torn", b"", bytes(400)])
def test_torn_projections_cost_only_a_part_of_the_picture(
    interrupted: tuple[Bundle, FailsAt, Path], kept: bytes
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    (saved,) = output.with_name("out.tif.neurodeploy").glob("projections-*.npz")
    saved.write_bytes(kept)
    report = segmenter(bundle).segment(source, output)
    assert report is not None
    assert (tifffile.imread(output) == source._array).all()
    (warning,) = (text for text in report.warnings if "picture" in text)
    assert saved.name in warning


def test_a_second_process_with_the_same_share_is_refused(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    journal = Journal(output.with_name("out.tif.neurodeploy"))
    journal.lock()
    try:
        with pytest.raises(ResumeError, match=f"process {os.getpid()}"):
            segmenter(bundle).segment(source, output)
    finally:
        journal.close()


def test_a_stale_lock_of_a_dead_process_is_broken(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        check=True,
    )
    import socket

    (tmp_path / "worker-1.lock").write_text(
        f'{{"host": "{socket.gethostname()}", "pid": {int(dead.stdout)}}}'
    )
    journal = Journal(tmp_path)
    journal.lock()
    journal.close()


def left_lock(folder: Path, **changed: Any) -> Path:
    """A lock as this process makes it, but for what is changed."""
    folder.mkdir(exist_ok=True)
    lock = folder / "worker-1.lock"
    lock.write_text(json.dumps({**this_process(), **changed}))
    return lock


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says when it began")
def test_the_number_of_a_dead_process_may_be_given_again(tmp_path: Path) -> None:
    """Ours has the number, as process 1 of a container that was started again."""
    left_lock(tmp_path, start=this_process()["start"] - 1)
    journal = Journal(tmp_path)
    journal.lock()
    journal.close()
    left_lock(tmp_path)
    with pytest.raises(ResumeError, match=f"process {os.getpid()} on this machine"):
        Journal(tmp_path).lock()


@pytest.mark.parametrize("system", ["linux", "nt", "other"])
def test_where_only_the_heartbeat_is_seen_it_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    """Of another boot or container, on Windows, and where no start is known."""

    def ctrl_c(pid: int, signal: int) -> None:
        raise AssertionError("on Windows this ends the process")

    if system == "linux":
        lock = left_lock(tmp_path, system="another boot", pid=1)
    else:
        monkeypatch.setattr(process_module, "_system", lambda: None)
        lock = left_lock(tmp_path)
    if system == "nt":
        monkeypatch.setattr(process_module.os, "kill", ctrl_c)
        monkeypatch.setattr(process_module, "_CAN_ASK", False)
    with pytest.raises(ResumeError, match="seen 0 s ago"):
        Journal(tmp_path).lock()
    os.utime(lock, (time.time() - 200,) * 2)
    journal = Journal(tmp_path)
    journal.lock()
    journal.close()


@pytest.mark.parametrize("ahead_s", [-300, 300])
def test_a_heartbeat_is_dated_by_the_clock_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead_s)
    lock = left_lock(tmp_path, host="another")
    with pytest.raises(ResumeError, match="seen 0 s ago"):
        Journal(tmp_path).lock()
    os.utime(lock, (now() - 200,) * 2)
    journal = Journal(tmp_path)
    journal.lock()
    journal.close()
    assert not list(tmp_path.iterdir())


def test_a_heartbeat_goes_on_after_an_error_and_keeps_the_lock_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurodeploy_runtime._journal.HEARTBEAT_S", 0.01)
    utime, failed = os.utime, []

    def utime_but_once(path: Any, *times: Any) -> None:
        if not failed:
            failed.append(path)
            raise OSError(116, "Stale file handle")
        utime(path, *times)

    monkeypatch.setattr(os, "utime", utime_but_once)
    journal = Journal(tmp_path)
    journal.lock()
    try:
        assert journal.claim_finish()
        locks = tmp_path / "worker-1.lock", tmp_path / "finish.lock"
        for lock in locks:
            utime(lock, (0, 0))
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            if failed and all(lock.stat().st_mtime > 0 for lock in locks):
                break
            time.sleep(0.01)
        assert failed
        assert all(lock.stat().st_mtime > 0 for lock in locks)
    finally:
        journal.close()


@pytest.mark.parametrize("ahead_s", [0, 3600])
def test_a_lock_that_a_kill_left_empty_is_waited_for_and_taken(
    tmp_path: Path, ahead_s: int
) -> None:
    lock = tmp_path / "worker-1.lock"
    lock.touch()
    # A file server's clock may be ahead of ours.
    os.utime(lock, (time.time() + ahead_s,) * 2)
    journal = Journal(tmp_path)
    journal.lock()
    try:
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    finally:
        journal.close()


def test_a_place_that_is_taken_again_has_a_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurodeploy_runtime._journal.HEARTBEAT_S", 0.02)
    journal = Journal(tmp_path)
    journal.lock()
    journal.close()
    journal.lock()
    lock = tmp_path / "worker-1.lock"
    os.utime(lock, (0, 0))
    deadline = time.monotonic() + 20
    while lock.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.stat().st_mtime > 0
    journal.close()


def test_starting_again_does_not_remove_what_another_worker_makes(
    interrupted: tuple[Bundle, FailsAt, Path],
) -> None:
    bundle, source, output = interrupted
    work = output.with_name("out.tif.neurodeploy")
    other = Journal(work, 2)
    other.lock()
    before = sorted(work.iterdir())
    try:
        with pytest.raises(ResumeError, match=f"process {os.getpid()}"):
            segmenter(bundle, replace(WANTED, threshold=0.7)).segment(
                source, output, overwrite=True
            )
        assert sorted(work.iterdir()) == before
    finally:
        other.close()


def test_a_worker_that_looked_for_long_removes_nothing_of_one_that_is_done(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    first = segmenter(bundle, replace(WANTED, worker=(1, 2)))
    second = segmenter(bundle, replace(WANTED, worker=(2, 2)))
    look = run_whole.SegmentRun._normalise

    def while_the_other_works(run: run_whole.SegmentRun) -> Normalisation:
        with monkeypatch.context() as patch:
            patch.setattr(run_whole.SegmentRun, "_normalise", look)
            assert first.segment(source, output) is None
        return look(run)

    with monkeypatch.context() as patch:
        patch.setattr(run_whole.SegmentRun, "_normalise", while_the_other_works)
        assert second.segment(source, output) is not None
    assert (tifffile.imread(output) == source._array).all()


def test_records_of_an_output_that_is_gone_are_not_believed(
    interrupted: tuple[Bundle, FailsAt, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurodeploy_runtime._durable.VERIFY_BYTES", 0)
    bundle, source, output = interrupted
    source.plane = 10**9
    for path in output.with_name("out.tif.neurodeploy").glob("probability.tif*"):
        path.unlink()
    segmenter(bundle).segment(source, output)
    assert (tifffile.imread(output) == source._array).all()


@pytest.mark.parametrize("suffix", [".ome.zarr", ".tif"])
@pytest.mark.parametrize("verify_bytes", [0, 10**9])
def test_a_recorded_unit_that_is_not_there_is_done_again(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    verify_bytes: int,
) -> None:
    """Also beyond what is read again; a unit of zeros is nowhere, and is believed."""
    monkeypatch.setattr("neurodeploy_runtime._patience.READ_PAUSES_S", (0, 0))
    monkeypatch.setattr("neurodeploy_runtime._durable.VERIFY_BYTES", verify_bytes)
    bundle = make_identity_bundle()
    voxels = noise((900, 20, 24))
    voxels[256:512] = 0
    source = FailsAt(voxels, 800)
    output = tmp_path / f"out{suffix}"
    work = tmp_path / f"out{suffix}.neurodeploy"

    def recorded() -> set[int]:
        return {start[0] for start in Journal(work).records()}

    source.ready = lambda: {0, 256, 512} <= recorded()
    with pytest.raises(ReadError, match="plane 800 is damaged"):
        segmenter(bundle).segment(source, output)
    assert {0, 256, 512} <= recorded()
    if suffix == ".tif":
        # The first unit's entry, as a write leaves it that is torn by a kill.
        with (work / "probability.tif.units").open("r+b") as entries:
            entries.seek(4096)
            entries.write(bytes(8))
        with tifffile.TiffFile(work / "probability.tif") as file:
            offset = file.pages.first.dataoffsets[0]
        with (work / "probability.tif").open("r+b") as raw:
            raw.seek(offset)
            raw.write(bytes(1000))
    else:
        (work / "probability.zarr/0/c/0/0/0").unlink()
        assert not (work / "probability.zarr/0/c/1/0/0").exists()
    source.plane = 10**9
    report = segmenter(bundle).segment(source, output)
    assert report.resumed_voxels >= 256 * 20 * 24
    with open_volume(output) as result:
        assert (result.read(Box.whole(result.shape)) == voxels).all()


@pytest.mark.parametrize("name", ["in.tif", "in.npy", "in.zarr"])
def test_an_input_that_changes_during_the_run_gives_no_result(
    make_identity_bundle: MakeBundle, tmp_path: Path, name: str
) -> None:
    voxels, path = noise((300, 40, 50)), tmp_path / name
    if name == "in.tif":
        tifffile.imwrite(path, voxels)
    elif name == "in.npy":
        np.save(path, voxels)
    else:
        ingest(ArraySource(voxels), path)
    file = path / "0/c/0/0/0" if path.is_dir() else path
    output = tmp_path / "out.tif"

    def touch(progress: Progress) -> None:
        if progress.done_voxels:
            os.utime(file, (1, 1))

    running = segmenter(make_identity_bundle())
    with open_volume(path) as source:
        with pytest.raises(ReadError, match=f"{name} changed while it was read"):
            running.segment(source, output, progress=touch)
        assert not output.exists()
    with (
        open_volume(path) as source,
        pytest.raises(ResumeError, match="fingerprint"),
    ):
        running.segment(source, output)


def test_an_input_that_changes_during_an_ingest_gives_no_store(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", noise((300, 40, 50)))
    with (
        open_volume(tmp_path / "in.npy") as source,
        pytest.raises(ReadError, match=r"in\.npy changed while it was read"),
    ):
        ingest(
            source,
            tmp_path / "out.zarr",
            progress=lambda progress: os.utime(tmp_path / "in.npy", (1, 1)),
        )
    assert not (tmp_path / "out.zarr").exists()


def test_one_damaged_voxel_does_not_remove_what_the_workers_have_done(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    voxels = noise((300, 40, 50)).astype(np.float32)
    voxels[290, 3, 4] = np.nan
    source, output = ArraySource(voxels), tmp_path / "out.tif"
    first = segmenter(bundle, replace(WANTED, worker=(1, 2)))
    assert first.segment(source, output) is None
    work = tmp_path / "out.tif.neurodeploy"
    done = Journal(work).records()
    assert done
    second = segmenter(bundle, replace(WANTED, worker=(2, 2)))
    with pytest.raises(InputError, match=r"NaN.* is kept in .*--overwrite to start"):
        second.segment(source, output)
    assert done.items() <= Journal(work).records().items()
    voxels[290, 3, 4] = 0
    with pytest.raises(ResumeError, match=r"input\.fingerprint"):
        first.segment(source, output)
    assert first.segment(source, output, overwrite=True) is None
    assert second.segment(source, output) is not None
    assert (tifffile.imread(output) == voxels).all()


def test_a_damaged_input_of_which_nothing_is_done_leaves_nothing(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    voxels = np.full((9, 40, 50), np.nan, np.float32)
    with pytest.raises(InputError, match="NaN"):
        segmenter(make_identity_bundle()).segment(
            ArraySource(voxels), tmp_path / "out.tif"
        )
    assert list(tmp_path.iterdir()) == []


def test_shares_of_several_workers_make_one_result(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    reports = [
        segmenter(bundle, replace(WANTED, worker=(i, 3))).segment(source, output)
        for i in (2, 1, 3)
    ]
    assert [report is None for report in reports] == [True, True, False]
    assert (tifffile.imread(output) == source._array).all()


def test_an_existing_result_is_never_replaced_unasked(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    output = tmp_path / "out.tif"
    output.write_bytes(b"years of work")
    with pytest.raises(OutputError, match="--overwrite"):
        segmenter(bundle).segment(ArraySource(noise((4, 20, 20))), output)
    assert output.read_bytes() == b"years of work"
    segmenter(bundle).segment(ArraySource(noise((4, 20, 20))), output, overwrite=True)
    assert tifffile.imread(output).shape == (4, 20, 20)


@pytest.mark.parametrize("suffix", [".tif", ".ome.zarr"])
def test_a_kill_behind_the_last_rename_leaves_nothing_and_repeats_nothing(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((90, 40, 50)))
    output = tmp_path / f"out{suffix}"

    unlink = Path.unlink

    def unlink_but_the_plan(path: Path, missing_ok: bool = False) -> None:
        if path.name == "plan.json":
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_but_the_plan)
        with pytest.raises(KeyboardInterrupt):
            segmenter(bundle).segment(source, output)
    assert output.exists()
    report = segmenter(bundle).segment(source, output)
    assert report.tiles_run == 0
    with open_volume(output) as result:
        assert (result.read(Box.whole(result.shape)) == source._array).all()
    wanted = {output.name, "out.json", "out.png"}
    if suffix == ".ome.zarr":
        wanted = {output.name, "out.ome.json", "out.ome.png"}
    assert {p.name for p in tmp_path.iterdir()} == wanted


def test_a_picture_that_does_not_fit_on_the_disk_loses_nothing(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the projections on the way; it is no wrong request, and work was done."""

    def full(path: Path, *projections: Any) -> None:
        raise OSError(28, "No space left on device")

    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "save_projections", full)
        with pytest.raises(WriteError, match="make room, then run the same") as caught:
            segmenter(bundle).segment(source, output)
    assert caught.value.exit_code == 1
    assert not output.exists()
    report = segmenter(bundle).segment(source, output)
    assert report.resumed_voxels > 0
    assert (tifffile.imread(output) == source._array).all()


def test_a_full_disk_is_a_sentence_and_the_run_continues(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    real, calls = Journal.record, 0

    def full(self: Journal, unit: Box, *sums: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise WriteError("no space left on the device")
        real(self, unit, *sums)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", full)
        with pytest.raises(WriteError, match="no space left"):
            segmenter(bundle).segment(source, output)
    assert not output.exists()
    segmenter(bundle).segment(source, output)
    assert (tifffile.imread(output) == source._array).all()


def test_workers_that_begin_at_one_moment_do_not_remove_what_the_other_makes(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has made the folder and no plan; the other takes that for a ruin."""
    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    begun, sweeping, done = (threading.Event() for _ in range(3))
    write, close_log = journal_module.write_atomically, Journal._close_log

    def slow_plan(path: Path, content: Any) -> None:
        if not begun.is_set():
            begun.set()
            sweeping.wait(1)
        write(path, content)

    def slow_sweep(journal: Journal) -> None:
        if journal._worker == 2 and sys._getframe(1).f_code.co_name == "clear":
            sweeping.set()
            done.wait(20)
        close_log(journal)

    monkeypatch.setattr(journal_module, "write_atomically", slow_plan)
    monkeypatch.setattr(Journal, "_close_log", slow_sweep)
    reports = []

    def first() -> None:
        share = segmenter(bundle, replace(WANTED, worker=(1, 2)))
        reports.append(share.segment(source, output))
        done.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(20)
    share = segmenter(bundle, replace(WANTED, worker=(2, 2)))
    reports.append(share.segment(source, output))
    thread.join()
    assert sorted(report is None for report in reports) == [False, True]
    assert (tifffile.imread(output) == source._array).all()


def test_who_finishes_waits_until_the_others_have_left(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be making a unit again; one that stays for long finishes itself."""
    bundle = make_identity_bundle()
    source = ArraySource(noise((300, 40, 50)))
    output = tmp_path / "out.tif"
    first, second = (segmenter(bundle, replace(WANTED, worker=(i, 2))) for i in (1, 2))
    assert second.segment(source, output) is None
    again = Journal(tmp_path / "out.tif.neurodeploy", 2)
    again.lock()
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "LEASE_S", 0.1)
        assert first.segment(source, output) is None
    assert not output.exists()
    seen: list[bool] = []

    def leave() -> None:
        seen.append(output.exists())
        again.close()

    timer = threading.Timer(0.5, leave)
    timer.start()
    assert first.segment(source, output) is not None
    timer.join()
    assert seen == [False]
    assert (tifffile.imread(output) == source._array).all()


def test_outputs_that_cannot_be_opened_remove_nothing_of_who_has_joined(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_identity_bundle()
    work = tmp_path / "out.tif.neurodeploy"
    other = Journal(work, 2)

    def joined(run: run_whole.SegmentRun) -> Any:
        other.lock()
        raise OutputError("no room")

    monkeypatch.setattr(run_whole.SegmentRun, "_open_outputs", joined)
    first = segmenter(bundle, replace(WANTED, worker=(1, 2)))
    with pytest.raises(OutputError, match="no room"):
        first.segment(ArraySource(noise((300, 40, 50))), tmp_path / "out.tif")
    assert {path.name for path in work.iterdir()} == {"plan.json", "worker-2.lock"}
    other.close()


@pytest.mark.parametrize("name", ["out.tif", "out.png", "out.json"])
def test_what_came_while_a_run_was_stopped_is_not_replaced_unasked(
    interrupted: tuple[Bundle, FailsAt, Path], name: str
) -> None:
    bundle, source, output = interrupted
    source.plane = 10**9
    other = output.with_name(name)
    other.write_bytes(b"years of work")
    with pytest.raises(OutputError, match=rf"{name} exists.*--overwrite"):
        segmenter(bundle).segment(source, output)
    assert other.read_bytes() == b"years of work"
    report = segmenter(bundle).segment(source, output, overwrite=True)
    assert report.resumed_voxels > 0
    assert (tifffile.imread(output) == source._array).all()


def disagree(batch: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of each tile its mean: no two say the same where they overlap."""
    mean = batch.mean(axis=(2, 3, 4), keepdims=True)
    return np.broadcast_to(mean, batch.shape)


@pytest.mark.parametrize("moment", ["seam.tif", "probability.tif"])
def test_a_seam_map_outlives_a_kill_behind_its_rename(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((90, 40, 50)))
    wanted = replace(WANTED, seam_map=True)

    def run(name: str) -> Any:
        engine = NumpyEngine(bundle, disagree)
        made = Segmenter(bundle, wanted, engines=[engine])
        return made.segment(source, tmp_path / name)

    run("expected.tif")
    expected = tifffile.imread(tmp_path / "expected.seam.tif")
    assert expected.any()
    rename = Path.replace

    def rename_and_die(path: Path, target: Path) -> Path:
        found = rename(path, target)
        if path.name == moment:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", rename_and_die)
        with pytest.raises(KeyboardInterrupt):
            run("out.tif")
    report = run("out.tif")
    assert report.tiles_run == 0
    assert (tifffile.imread(tmp_path / "out.seam.tif") == expected).all()
    assert not list(tmp_path.glob("*.units"))


def test_a_seam_map_that_is_gone_is_made_again(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_identity_bundle()
    source = ArraySource(noise((90, 40, 50)))
    wanted = replace(WANTED, seam_map=True)

    def full(path: Path, content: Any) -> None:
        raise OSError(28, "No space left on device")

    def run() -> Any:
        engine = NumpyEngine(bundle, disagree)
        made = Segmenter(bundle, wanted, engines=[engine])
        return made.segment(source, tmp_path / "out.tif")

    with monkeypatch.context() as patch:
        patch.setattr(run_whole, "write_atomically", full)
        with pytest.raises(
            WriteError, match=r"cannot be finished.*run the same"
        ) as end:
            run()
    assert end.value.exit_code == 1
    (tmp_path / "out.tif.neurodeploy/seam.tif").unlink()
    run()
    assert tifffile.imread(tmp_path / "out.seam.tif").any()


def test_two_that_find_one_dead_lock_do_not_both_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_lock(tmp_path, system="another boot")
    os.utime(tmp_path / "worker-1.lock", (0, 0))
    first, second = Journal(tmp_path), Journal(tmp_path)
    look, looked = lock_module.lock_holder, []

    def look_and_be_overtaken(path: Path) -> str | None:
        found = look(path)
        looked.append(path)
        if len(looked) == 1:
            first.lock()
        return found

    monkeypatch.setattr(lock_module, "lock_holder", look_and_be_overtaken)
    with pytest.raises(ResumeError, match=f"process {os.getpid()}"):
        second.lock()
    assert [path.name for path in tmp_path.iterdir()] == ["worker-1.lock"]
    first.close()


def test_too_many_workers_leave_nothing_that_fewer_could_not_go_on_with(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle()
    source, output = ArraySource(noise((130, 40, 50))), tmp_path / "out.tif"
    with pytest.raises(SettingsError, match="use at most 3"):
        segmenter(bundle, replace(WANTED, worker=(1, 9))).segment(source, output)
    assert list(tmp_path.iterdir()) == []
    assert (
        segmenter(bundle, replace(WANTED, worker=(1, 3))).segment(source, output)
        is None
    )


def test_a_run_that_may_replace_a_result_may_so_when_it_continues(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurodeploy_runtime._patience.READ_PAUSES_S", (0, 0))
    bundle, output = make_identity_bundle(), tmp_path / "out.tif"
    source = FailsAt(noise((300, 40, 50)), 200)
    output.write_bytes(b"an older result")
    with pytest.raises(ReadError):
        segmenter(bundle).segment(source, output, overwrite=True)
    assert output.read_bytes() == b"an older result"
    source.plane = 10**9
    segmenter(bundle).segment(source, output)
    assert (tifffile.imread(output) == source._array).all()
