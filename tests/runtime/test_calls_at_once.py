"""Engines that compute several calls at once are kept busy, and give the same bits."""

import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

from neurodeploy_runtime import (
    Bundle,
    EngineError,
    EngineSettings,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    load_bundle,
    open_engine,
)
from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._stream import slots_of
from neurodeploy_runtime.engines import tile_seconds
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.live._capacity import _push_times
from neurodeploy_runtime.rigs._shared_engine import SharedEngine

MakeBundle = Callable[..., Bundle]
UNIT = Normalisation("unit", 0.0, 255.0)
needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"
)


class Several(NumpyEngine):
    """The identity; no call ends before as many others are under way."""

    def __init__(self, bundle: Bundle, at_once: int, **options: Any) -> None:
        super().__init__(bundle, **options)
        self.at_once = at_once
        self.together = threading.Barrier(at_once)
        self.calls = 0

    def infer(self, batch: Any, out: Any) -> None:
        self.calls += 1
        self.together.wait(20)
        super().infer(batch, out)


@pytest.fixture
def bundle(make_identity_bundle: MakeBundle) -> Bundle:
    return make_identity_bundle(tile=(8, 16, 16), overlap=(0.25, 0.25, 0.25))


def noise(shape: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("batch", [1, 2])
def test_as_many_calls_are_under_way_as_an_engine_computes(
    bundle: Bundle, batch: int
) -> None:
    # 4 × 4 tiles a layer, 3 layers: 3 calls at once, of 1 or 2 tiles.
    volume = noise((20, 52, 52))
    settings = SegmentSettings(normalisation=UNIT, output_kind="probability")
    with Segmenter(bundle, settings, engines=[NumpyEngine(bundle)]) as one:
        expected = one.segment_array(volume)
    engine = Several(bundle, 3, batch=batch)
    with Segmenter(bundle, settings, engines=[engine]) as several:
        found = several.segment_array(volume)
    assert engine.calls == 48 // batch
    np.testing.assert_array_equal(found, expected)


def test_of_a_live_stream_too(bundle: Bundle) -> None:
    stack = noise((20, 52, 52))
    fixed = LiveSettings(normalisation=UNIT)
    answers = []
    for engine in (NumpyEngine(bundle), Several(bundle, 2)):
        with LiveSegmenter(bundle, (52, 52), "uint8", fixed, engines=[engine]) as live:
            for plane in stack:
                live.push(plane)
            live.finish()
            answers.append(np.stack([plane.voxels for plane in live.planes()]))
    np.testing.assert_array_equal(*answers)


def test_an_error_in_one_of_the_calls_stops_the_others(bundle: Bundle) -> None:
    class Breaks(NumpyEngine):
        at_once = 3

        def infer(self, batch: Any, out: Any) -> None:
            if threading.current_thread().name.endswith(".1"):
                raise EngineError("the second call broke")
            super().infer(batch, out)

    with (
        Segmenter(
            bundle, SegmentSettings(normalisation=UNIT), engines=[Breaks(bundle)]
        ) as segmenter,
        pytest.raises(EngineError, match="second call broke"),
    ):
        segmenter.segment_array(noise((60, 52, 52)))


def test_what_is_busy_with_all_it_can_do_is_busy_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock()
    with clock.stage("infer", 1 / 2), clock.stage("infer", 1 / 2):
        now = 1.0
    with clock.stage("infer", 1 / 2):
        now = 2.0
    assert clock.seconds["infer"] == 1.5


def test_a_tile_is_timed_with_the_others_under_way(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = threading.local()

    def a_second_later() -> float:
        own.now = getattr(own, "now", 0.0) + 1.0
        return own.now

    engine = Several(bundle, 2, batch=4)
    # The barrier would break for one that is left alone at the end.
    engine.together = threading.Barrier(1)
    monkeypatch.setattr(time, "perf_counter", a_second_later)
    times = tile_seconds(engine, 3)
    # A call takes a second of its thread, for 4 tiles in each of two.
    assert len(times) >= 6
    assert set(times) == {1 / 8}


def test_a_timing_that_fails_does_not_wait_for_the_others(bundle: Bundle) -> None:
    class Breaks(NumpyEngine):
        at_once = 2
        first = threading.Lock()

        def infer(self, batch: Any, out: Any) -> None:
            if self.first.acquire(blocking=False):
                raise EngineError("no memory for a second call")

    # And not that nobody came, from the one that waited.
    with pytest.raises(EngineError, match="second call"):
        tile_seconds(Breaks(bundle))


def test_warming_up_reaches_every_call(bundle: Bundle) -> None:
    engine = Several(bundle, 3)
    engine.warm_up()
    assert engine.calls == 3


def test_a_push_is_measured_beside_all_of_them(bundle: Bundle) -> None:
    together = []

    class Counts(NumpyEngine):
        at_once = 2

        def infer(self, batch: Any, out: Any) -> None:
            together.append(threading.active_count())
            time.sleep(0.001)
            super().infer(batch, out)

    times = _push_times(Counts(bundle), (20, 20), np.dtype(np.uint8), 0.05)
    assert len(times) >= 20
    # This thread, the one that loads, and two calls.
    assert max(together) >= threading.active_count() + 3


def test_slots_and_turns_are_those_of_all_calls(bundle: Bundle) -> None:
    engine = Several(bundle, 3)
    assert slots_of([engine, engine]) == 14
    shared = SharedEngine(engine, threading.Semaphore(engine.at_once))
    assert shared.at_once == 3
    # With fewer turns than calls the barrier would not open.
    shared.warm_up()
    assert engine.calls == 3


@needs_openvino
@pytest.mark.parametrize(
    ("tile", "batch", "threads", "at_once"),
    [
        ((32, 64, 64), None, 1, 1),
        ((32, 64, 64), None, 2, 2),
        ((32, 64, 64), None, 64, 8),
        ((32, 64, 64), 4, 64, 2),
        ((96, 96, 96), None, 64, 1),
    ],
)
def test_small_tiles_share_out_the_cores_and_large_ones_take_all(
    make_identity_bundle: MakeBundle,
    tile: tuple[int, int, int],
    batch: int | None,
    threads: int,
    at_once: int,
) -> None:
    bundle = make_identity_bundle(tile=tile)
    asked = EngineSettings("openvino", "cpu", "fp32", threads, batch)
    with open_engine(bundle, asked) as engine:
        assert engine.at_once == at_once


@needs_openvino
def test_the_bundle_that_ships_says_the_same_however_cores_are_shared() -> None:
    answers = []
    for threads in (1, 2):
        asked = EngineSettings("openvino", "cpu", "fp32", threads)
        with open_engine(load_bundle(), asked) as engine:
            voxels = np.random.default_rng(0).normal(size=engine.input_shape)
            answer = np.empty(engine.output_shape, np.float32)
            engine.infer(voxels.astype(np.float32), answer)
            answers.append(answer)
    np.testing.assert_array_equal(*answers)
