"""Beside pymmcore-plus: z-stacks of a camera that is written in Python."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest

pymmcore_plus = pytest.importorskip("pymmcore_plus")
useq = pytest.importorskip("useq")
pytest.importorskip("tensorstore")

from pymmcore_plus.experimental.unicore import (  # noqa: E402
    SimpleCameraDevice,
    StageDevice,
    UniMMCore,
)

from neurodeploy_runtime import (  # noqa: E402
    EngineError,
    Normalisation,
    NumpyEngine,
    OutputError,
    OverrunError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    StreamError,
    open_volume,
)
from neurodeploy_runtime.live import LiveSettings  # noqa: E402
from neurodeploy_runtime.rigs._lane import Lane  # noqa: E402
from neurodeploy_runtime.rigs._stacks import (  # noqa: E402
    acquisition_of,
    by_events,
    by_sizes,
)
from neurodeploy_runtime.rigs.pymmcore import MdaSegmenter  # noqa: E402

UNIT = Normalisation("unit", 0.0, 65535.0)
SHAPE = (40, 48)
WAIT_S = 60.0


class Stage(StageDevice):
    def __init__(self):
        super().__init__()
        self._z = 0.0

    def set_position_um(self, val):
        self._z = val

    def get_position_um(self):
        return self._z

    def home(self):
        self._z = 0.0

    def stop(self):
        pass

    def set_origin(self):
        pass


class Camera(SimpleCameraDevice):
    """Frame n is drawn from the seed n; frames in `broken` fail."""

    def __init__(self, broken=()):
        super().__init__()
        self.broken = set(broken)
        self.taken = 0

    def get_exposure(self):
        return 1.0

    def set_exposure(self, exposure):
        pass

    def sensor_shape(self):
        return SHAPE

    def dtype(self):
        return np.uint16

    def snap(self, buffer):
        n = self.taken
        self.taken += 1
        if n in self.broken:
            raise RuntimeError("the camera has stopped")
        buffer[:] = frame(n)
        return {}


def frame(n):
    return np.random.default_rng(n).integers(0, 65535, SHAPE).astype(np.uint16)


@pytest.fixture
def make_core():
    cores = []

    def make(broken=()):
        core = UniMMCore()
        cores.append(core)
        camera = Camera(broken)
        core.loadPyDevice("cam", camera)
        core.loadPyDevice("z", Stage())
        core.initializeAllDevices()
        core.setCameraDevice("cam")
        core.setFocusDevice("z")
        # Without this, the runner asks a shutter that does not exist.
        core.setAutoShutter(False)
        return core

    yield make
    for core in cores:
        core.unloadAllDevices()


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


def made(bundle, path, engine=None, **options):
    settings = LiveSettings(**({"normalisation": UNIT, "timeout_s": WAIT_S} | options))
    return MdaSegmenter(bundle, path, settings, engine=engine or NumpyEngine(bundle))


def expected_of(bundle, numbers):
    stack = np.stack([frame(n) for n in numbers])
    made = SegmentSettings(normalisation=UNIT)
    with Segmenter(bundle, made, engines=[NumpyEngine(bundle)]) as segmenter:
        return segmenter.segment_array(stack)


def voxels_of(path):
    with open_volume(path) as source:
        from neurodeploy_runtime import Box

        return source.read(Box.whole(source.shape))


def z_stack(n, **more):
    return useq.MDASequence(z_plan={"range": n - 1, "step": 1.0}, **more)


def test_a_stack_is_segmented_as_an_output_of_run_mda(bundle, make_core, tmp_path):
    path = tmp_path / "run.seg.ome.zarr"
    with made(bundle, path) as live:
        make_core().run_mda(z_stack(20), output=live, block=True)
        (result,) = live.wait(WAIT_S)
    assert (result.path, result.frames, result.invalid) == (path, 20, ())
    assert result.error is None
    np.testing.assert_array_equal(voxels_of(path), expected_of(bundle, range(20)))
    inside = json.loads((path / "zarr.json").read_text())["attributes"]["neurodeploy"]
    assert inside["model"]["digest"] == bundle.digest
    assert inside["frames"] == 20


def test_a_stack_is_segmented_by_signal(bundle, make_core, tmp_path):
    path = tmp_path / "run.seg.ome.zarr"
    core = make_core()
    with made(bundle, path) as live:
        with live.attach(core):
            core.run_mda(z_stack(13), block=True)
        live.wait(WAIT_S)
    np.testing.assert_array_equal(voxels_of(path), expected_of(bundle, range(13)))


def test_positions_and_channels_are_kept_apart(bundle, make_core, tmp_path):
    core = make_core()
    for name in ("488", "561"):
        core.defineConfig("Channel", name)
    # Channels change inside the stack: frames of two stacks alternate.
    sequence = z_stack(
        9,
        axis_order="pzc",
        channels=[{"config": "488"}, {"config": "561"}],
        stage_positions=[{"z": 0.0}, {"z": 50.0}],
    )
    with made(bundle, tmp_path / "run.seg.ome.zarr") as live:
        core.run_mda(sequence, output=live, block=True)
        results = live.wait(WAIT_S)
    assert sorted(r.path.name for r in results) == [
        f"run.seg.p{p}_c{c}.ome.zarr" for p in (0, 1) for c in (0, 1)
    ]
    for result in results:
        first = result.index["p"] * 18 + result.index["c"]
        expected = expected_of(bundle, range(first, first + 18, 2))
        np.testing.assert_array_equal(voxels_of(result.path), expected)


@pytest.mark.filterwarnings("ignore")
def test_frames_are_counted_where_the_camera_fails(bundle, make_core, tmp_path):
    core = make_core(broken=[11, 12])
    with made(bundle, tmp_path / "run.seg.ome.zarr") as live:
        core.run_mda(z_stack(20), output=live, block=True)
        (result,) = live.wait(WAIT_S)
    assert result.frames == 18
    assert [str(gap) for gap in result.status.gaps] == ["planes 11 to 12 missing"]
    # Tiles 6:14 and 12:20 read them.
    assert result.invalid == ((6, 20),)
    found = voxels_of(result.path)
    assert found.shape == (20, *SHAPE)
    np.testing.assert_array_equal(found[:6], expected_of(bundle, range(20))[:6])
    assert not found[6:].any()


@pytest.mark.filterwarnings("ignore")
def test_a_stack_that_ends_early_keeps_its_depth(bundle, make_core, tmp_path):
    core = make_core(broken=range(14, 40))
    with made(bundle, tmp_path / "run.seg.ome.zarr") as live:
        core.run_mda(z_stack(20), output=live, block=True)
        (result,) = live.wait(WAIT_S)
    assert (result.frames, result.invalid) == (14, ((14, 20),))
    found = voxels_of(result.path)
    np.testing.assert_array_equal(found[:14], expected_of(bundle, range(14)))
    assert not found[14:].any()


def test_an_engine_that_fails_is_heard_of_and_leaves_no_file(
    bundle, make_core, tmp_path
):
    class Broken(NumpyEngine):
        def infer(self, batch, out):
            raise EngineError("the device is gone")

    core = make_core()
    with made(bundle, tmp_path / "a.ome.zarr", Broken(bundle)) as live:
        core.run_mda(z_stack(20), output=live, block=True)
        with pytest.raises(EngineError, match="the device is gone"):
            live.wait(WAIT_S)
    assert list(tmp_path.iterdir()) == []


def test_a_stack_that_finds_no_room_is_reported(bundle, make_core, tmp_path):
    class Held(NumpyEngine):
        gate = threading.Event()

        def infer(self, batch, out):
            assert self.gate.wait(WAIT_S)
            super().infer(batch, out)

    core = make_core()
    sequence = z_stack(9, stage_positions=[{"z": 0.0}, {"z": 9.0}, {"z": 18.0}])
    held = Held(bundle)
    options = {"when_full": "drop", "timeout_s": 0.01, "ring_planes": 40}
    with made(bundle, tmp_path / "a.ome.zarr", held, **options) as live:
        core.run_mda(sequence, output=live, block=True)
        held.gate.set()
        results = live.wait(WAIT_S)
    assert {r.index["p"]: r.error is None for r in results} == {
        0: True,
        1: True,
        2: False,
    }
    (left,) = [r.error for r in results if r.error]
    assert "stack {'p': 2} found no room: 2 stacks before it" in left
    held.gate.clear()
    options["when_full"] = "fail"
    with made(bundle, tmp_path / "b.ome.zarr", held, **options) as live:
        core.run_mda(sequence, output=live, block=True)
        held.gate.set()
        with pytest.raises(OverrunError, match="found no room"):
            live.wait(WAIT_S)
        # The stacks before it are whole.
        assert [r.error is None for r in live.results].count(True) == 2


def test_an_acquisition_without_stacks_is_refused_by_name(bundle, make_core, tmp_path):
    with made(bundle, tmp_path / "a.ome.zarr") as live:
        sequence = useq.MDASequence(time_plan={"interval": 0.0, "loops": 2})
        make_core().run_mda(sequence, output=live, block=True)
        with pytest.raises(SettingsError, match="no z axis"):
            live.wait(WAIT_S)


def test_what_one_stack_fails_of_does_not_end_the_others(bundle, make_core, tmp_path):
    core = make_core()
    (tmp_path / "run.p1.ome.zarr").mkdir()
    positions = [{"z": float(z)} for z in range(4)]
    sequence = z_stack(9, stage_positions=positions)
    with made(bundle, tmp_path / "run.ome.zarr") as live:
        core.run_mda(sequence, output=live, block=True)
        with pytest.raises(OutputError, match="already there"):
            live.wait(WAIT_S)
        results = {r.index["p"]: r for r in live.results}
    assert [results[p].error is None for p in range(4)] == [True, False, True, True]
    assert "already there" in results[1].error
    for p in (0, 2, 3):
        expected = expected_of(bundle, range(9 * p, 9 * p + 9))
        np.testing.assert_array_equal(voxels_of(results[p].path), expected)


def test_a_frame_that_is_refused_is_a_gap_and_told(bundle, tmp_path):
    """As from a camera whose region of interest is changed for one frame."""
    sequence = z_stack(20)
    said = {"image_infos": [{"plane_shape": SHAPE, "dtype": "uint16"}]}
    path = tmp_path / "run.ome.zarr"
    with made(bundle, path) as live:
        live.sequenceStarted(sequence, said)
        for n, event in enumerate(sequence):
            live.frameReady(frame(n)[:, : 10 if n == 15 else None], event)
        live.sequenceFinished(sequence)
        (result,) = live.wait(WAIT_S)
    assert (result.frames, result.error) == (19, None)
    assert [str(gap) for gap in result.status.gaps] == ["plane 15 missing"]
    assert "frame 15: a plane of shape (40, 10) does not belong" in result.refused[0]
    expected = expected_of(bundle, range(20))
    np.testing.assert_array_equal(voxels_of(path)[:12], expected[:12])


def test_an_acquisition_that_runs_beside_is_waited_for(bundle, make_core, tmp_path):
    path = tmp_path / "run.ome.zarr"
    with made(bundle, path) as live:
        with pytest.raises(StreamError, match="no acquisition has begun in 0"):
            live.wait(0)
        thread = make_core().run_mda(z_stack(20), output=live, block=False)
        (result,) = live.wait(WAIT_S)
        thread.join()
    assert result.error is None
    np.testing.assert_array_equal(voxels_of(path), expected_of(bundle, range(20)))


@pytest.mark.filterwarnings("ignore")
def test_stacks_that_never_began_are_told(bundle, make_core, tmp_path):
    core = make_core(broken=range(9, 40))
    positions = [{"z": float(z)} for z in range(3)]
    with made(bundle, tmp_path / "run.ome.zarr") as live:
        core.run_mda(z_stack(9, stage_positions=positions), output=live, block=True)
        results = {r.index["p"]: r for r in live.wait(WAIT_S)}
    assert results[0].error is None
    for p in (1, 2):
        assert "no frame of it came" in results[p].error
        assert (results[p].frames, results[p].invalid) == (0, ((0, 9),))
        assert not results[p].path.exists()


def test_a_channel_without_a_stack_is_passed_over(bundle, make_core, tmp_path):
    core = make_core()
    for name in ("488", "561"):
        core.defineConfig("Channel", name)
    channels = [{"config": "488"}, {"config": "561", "do_stack": False}]
    with made(bundle, tmp_path / "run.ome.zarr") as live:
        sequence = z_stack(9, axis_order="pcz", channels=channels)
        core.run_mda(sequence, output=live, block=True)
        (result,) = live.wait(WAIT_S)
    assert (result.index, result.frames) == ({"c": 0}, 9)


def test_positions_with_sequences_of_their_own_are_kept_apart(bundle, tmp_path):
    """A grid at one, another depth at the next, and one as the whole sequence says."""
    grid = useq.MDASequence(grid_plan={"rows": 1, "columns": 2})
    deep = useq.MDASequence(z_plan={"range": 11, "step": 1.0})
    positions = [
        {"x": 0.0, "y": 0.0, "z": 0.0, "sequence": grid},
        {"x": 9.0, "y": 0.0, "z": 0.0, "sequence": deep},
        {"x": 0.0, "y": 9.0, "z": 0.0},
    ]
    sequence = z_stack(9, stage_positions=positions)
    frames: dict[tuple, list[int]] = {}
    said = {"image_infos": [{"plane_shape": SHAPE, "dtype": "uint16"}]}
    live = made(bundle, tmp_path / "run.ome.zarr")
    live.check(sequence)
    live.sequenceStarted(sequence, said)
    for n, event in enumerate(sequence):
        live.frameReady(frame(n), event)
        index = {str(a): i for a, i in event.index.items() if a != "z"}
        frames.setdefault(tuple(sorted(index.items())), []).append(n)
    live.sequenceFinished(sequence)
    with live:
        results = live.wait(WAIT_S)
    assert {r.path.name: r.planes for r in results} == {
        "run.p0_g0.ome.zarr": 9,
        "run.p0_g1.ome.zarr": 9,
        "run.p1.ome.zarr": 12,
        "run.p2.ome.zarr": 9,
    }
    for result in results:
        assert (result.error, result.invalid) == (None, ())
        numbers = frames[tuple(sorted(result.index.items()))]
        assert len(numbers) == result.frames == result.planes
        np.testing.assert_array_equal(
            voxels_of(result.path), expected_of(bundle, numbers)
        )


class Twice:
    """A sequence of which every event comes twice."""

    def __init__(self, sequence):
        self._sequence = sequence

    def __getattr__(self, name):
        return getattr(self._sequence, name)

    def __iter__(self):
        return iter([*self._sequence, *self._sequence])


def test_stacks_that_have_one_index_are_refused_before_they_begin(bundle, tmp_path):
    inner = useq.MDASequence(z_plan={"range": 2, "step": 1.0})
    positions = [{"z": 0.0, "sequence": inner}]
    sequence = Twice(useq.MDASequence(stage_positions=positions))
    with made(bundle, tmp_path / "run.ome.zarr") as live:
        with pytest.raises(
            SettingsError, match=r"plane 0 of stack \{'p': 0\} comes twice"
        ):
            live.check(sequence)
        said = {"image_infos": [{"plane_shape": SHAPE, "dtype": "uint16"}]}
        live.sequenceStarted(sequence, said)
        live.sequenceFinished(sequence)
        with pytest.raises(SettingsError, match="comes twice"):
            live.wait(WAIT_S)


CHANNELS = [
    {"config": "488"},
    {"config": "561", "do_stack": False},
    {"config": "640", "acquire_every": 2},
]


@pytest.mark.filterwarnings("ignore:Channels with skipped frames")
@pytest.mark.parametrize("order", ["tpgcz", "tpgzc", "tzpgc", "ptgcz", "pctgz"])
@pytest.mark.parametrize("axes", ["tpgc", "pc", "tc", "g", ""])
def test_stacks_are_those_of_the_events_without_looking_at_them(order, axes):
    asked = {
        "t": {"time_plan": {"interval": 0.0, "loops": 3}},
        "p": {"stage_positions": [{"z": 0.0}, {"z": 50.0}]},
        "g": {"grid_plan": {"rows": 1, "columns": 2}},
        "c": {"channels": CHANNELS},
    }
    more = {k: v for axis in axes for k, v in asked[axis].items()}
    sequence = z_stack(4, axis_order=order, **more)
    fast, plain = by_sizes(sequence), by_events(sequence)
    assert fast == plain
    assert fast == acquisition_of(sequence)
    assert fast.stacks


def test_a_lane_that_has_ended_takes_no_stack_of_the_next_acquisition(
    bundle, make_core, tmp_path, monkeypatch
):
    """As where a tile had not come back in time."""
    core = make_core()
    with made(bundle, tmp_path / "run.ome.zarr") as live:
        monkeypatch.setattr(Lane, "_again", lambda lane, whole: False)
        core.run_mda(z_stack(9), output=live, block=True)
        live.wait(WAIT_S)
        live._lanes[0]._thread.join(WAIT_S)
        monkeypatch.undo()
        live._overwrite = True
        core.run_mda(z_stack(9), output=live, block=True)
        assert len(live.wait(WAIT_S)) == 2


def test_the_engine_is_given_back_where_a_lane_cannot_be_closed(
    bundle, tmp_path, monkeypatch
):
    class Noted(NumpyEngine):
        closed = False

        def close(self):
            self.closed = True

    engine = Noted(bundle)
    live = made(bundle, tmp_path / "run.ome.zarr", engine)
    live._owned = True
    said = {"image_infos": [{"plane_shape": SHAPE, "dtype": "uint16"}]}
    positions = [{"z": float(z)} for z in range(2)]
    live.sequenceStarted(z_stack(9, stage_positions=positions), said)
    lanes = list(live._lanes)
    close = Lane.close

    def stuck(lane):
        close(lane)
        if lane is lanes[1]:
            raise StreamError("a tile has not come back")

    monkeypatch.setattr(Lane, "close", stuck)
    with pytest.raises(StreamError, match="has not come back"):
        live.close()
    assert engine.closed
    assert [lane.alive for lane in lanes] == [False, False]
