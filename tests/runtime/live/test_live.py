"""Live segmentation: the same bits as of the finished stack, and nothing hangs."""

from __future__ import annotations

import gc
import math
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurodeploy_runtime import (
    CancelledError,
    EngineError,
    Histogram,
    InputError,
    MemoryCapError,
    Normalisation,
    NumpyEngine,
    OverrunError,
    Segmenter,
    SegmentSettings,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime.live import Gap, LiveSegmenter, LiveSettings

UNIT = Normalisation("unit", 0.0, 255.0)
WAIT_S = 30.0


def engine_of(bundle):
    """An engine whose answer depends on where in the tile a voxel lies."""
    window = bundle.spec.window
    margin = bundle.spec.margin
    ramp = np.random.default_rng(1).random(window, np.float32)
    middle = tuple(slice(m, m + w) for m, w in zip(margin, window, strict=True))

    def function(batch):
        return batch[(slice(None), slice(None), *middle)] * ramp

    return NumpyEngine(bundle, function, batch=2)


def stack_of(depth, height=20, width=24, dtype=np.uint8):
    rng = np.random.default_rng(depth)
    return rng.integers(0, 255, (depth, height, width)).astype(dtype)


def whole(bundle, stack, **options):
    """The finished stack, as `segment` does it."""
    made = SegmentSettings(normalisation=UNIT, **options)
    with Segmenter(bundle, made, engines=[engine_of(bundle)]) as segmenter:
        return segmenter.segment_array(stack)


def opened(bundle, stack, *, engine=None, on_plane=None, **options):
    options = {"normalisation": UNIT, "outlet_planes": 200} | options
    return LiveSegmenter(
        bundle,
        stack.shape[1:],
        stack.dtype,
        LiveSettings(**options),
        engines=[engine or engine_of(bundle)],
        on_plane=on_plane,
    )


def bundle_of(make, lengths, overlap):
    """A bundle whose tiles and windows are so long on z: a slice model's is 1."""
    tile, window = lengths
    return make(
        tile=(tile, 16, 16),
        window=None if tile == window else (window, 16, 16),
        overlap=(overlap if window > 1 else 0.0, 0.25, 0.25),
    )


class Gate(NumpyEngine):
    """An engine that computes nothing while it is held."""

    def __init__(self, bundle):
        super().__init__(bundle, engine_of(bundle)._function)
        self.open = threading.Event()
        self.reached = threading.Event()

    def infer(self, batch, out):
        self.reached.set()
        assert self.open.wait(WAIT_S)
        super().infer(batch, out)


@contextmanager
def held(bundle, stack, **options) -> Iterator[tuple[LiveSegmenter, Gate]]:
    gate = Gate(bundle)
    with opened(bundle, stack, engine=gate, **options) as live:
        try:
            yield live, gate
        finally:
            gate.open.set()


@pytest.fixture
def bundle(make_identity_bundle):
    return make_identity_bundle(tile=(8, 16, 16))


@settings(max_examples=15, deadline=None)
@given(
    depth=st.integers(1, 40),
    height=st.integers(1, 24),
    lengths=st.sampled_from([(1, 1), (5, 1), (8, 4), (9, 5), (8, 8)]),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    dtype=st.sampled_from([np.uint8, np.uint16, np.float32]),
    kind=st.sampled_from(["mask", "probability"]),
    chunk=st.integers(1, 9),
)
def test_a_live_stack_has_the_bits_of_the_finished_one(
    make_identity_bundle, depth, height, lengths, overlap, dtype, kind, chunk
):
    made = bundle_of(make_identity_bundle, lengths, overlap)
    stack = stack_of(depth, height, 21, dtype)
    with opened(made, stack, output_kind=kind) as live:
        for z in range(0, depth, chunk):
            live.push(stack[z : z + chunk], timeout_s=WAIT_S)
        live.finish()
        planes = list(live.planes())
    assert [p.z for p in planes] == list(range(depth))
    assert all(p.valid for p in planes)
    expected = whole(made, stack, output_kind=kind)
    np.testing.assert_array_equal(np.stack([p.voxels for p in planes]), expected)


def test_planes_written_in_their_slots_have_the_bits_of_pushed_ones(bundle):
    stack = stack_of(21)
    with opened(bundle, stack) as live:
        for z, plane in enumerate(stack):
            if z % 3 == 2:
                live.push(plane)
                continue
            with live.slot(z) as voxels:
                assert voxels.shape == plane.shape
                assert np.shares_memory(voxels, live._ring._buffer)
                voxels[:] = plane
        live.finish()
        found = np.stack([plane.voxels for plane in live.planes()])
    assert np.array_equal(found, whole(bundle, stack))


def test_a_slot_that_was_left_by_an_error_brings_no_plane(bundle):
    stack = stack_of(9)
    with opened(bundle, stack) as live:

        def fail_in_a_slot():
            with live.slot() as voxels:
                voxels[:] = 255
                raise OSError("the camera is gone")

        with pytest.raises(OSError, match="camera"):
            fail_in_a_slot()
        assert live.status.pushed == 0
        for plane in stack:
            with live.slot() as voxels:
                voxels[:] = plane
        live.finish()
        found = np.stack([plane.voxels for plane in live.planes()])
    assert np.array_equal(found, whole(bundle, stack))


def test_within_a_slot_nothing_else_is_asked_for(bundle):
    """A thread that waits for itself would hang; another one's wait ends."""
    stack = stack_of(9)
    with opened(bundle, stack, timeout_s=0.05) as live:
        said: list[BaseException] = []

        def push():
            try:
                live.push(stack[1])
            except OverrunError as error:
                said.append(error)

        with live.slot() as voxels:
            voxels[:] = stack[0]
            for call in (lambda: live.push(stack[1]), live.finish):
                with pytest.raises(StreamError, match="leave the block of slot"):
                    call()
            other = threading.Thread(target=push)
            other.start()
            other.join(WAIT_S)
        assert "another thread has been pushing" in str(said[0])
        assert live.status.pushed == 1
        live.push(stack[1])


def test_a_slot_waits_for_room_as_a_push_does(bundle):
    stack = stack_of(30, 40, 48)
    with held(bundle, stack, ring_planes=10) as (live, gate):
        live.push(stack[:10])
        assert gate.reached.wait(WAIT_S)
        with (
            pytest.raises(OverrunError, match="plane 10 found no room"),
            live.slot(timeout_s=0.01),
        ):
            raise AssertionError("there is no room")
        gate.open.set()
        with live.slot(timeout_s=WAIT_S) as voxels:
            voxels[:] = stack[10]
        assert live.status.pushed == 11


def test_an_engine_that_failed_is_heard_of_when_a_slot_is_left(bundle):
    stack = stack_of(20)
    with opened(bundle, stack) as live:

        def write():
            with live.slot() as voxels:
                voxels[:] = 0
                live.fail(EngineError("the GPU is gone"))

        with pytest.raises(EngineError, match="gone"):
            write()
        assert live.status.pushed == 0


@settings(max_examples=15, deadline=None)
@given(
    depth=st.integers(1, 60),
    absent=st.sets(st.integers(0, 59), max_size=6),
    lengths=st.sampled_from([(5, 1), (8, 4), (8, 8)]),
)
def test_absent_planes_cost_only_the_planes_whose_tiles_read_them(
    make_identity_bundle, depth, absent, lengths
):
    made = bundle_of(make_identity_bundle, lengths, 0.25)
    stack = stack_of(depth)
    # The last plane says how deep the stack is.
    absent = {z for z in absent if z < depth - 1}
    with opened(made, stack) as live:
        for z in range(depth):
            if z not in absent:
                live.push(stack[z], z=z, timeout_s=WAIT_S)
        live.finish()
        planes = list(live.planes())
        status = live.status
    axis = live.plan.axes[0]
    spoilt = set()
    for k in range(axis.count(depth)):
        start = k * axis.stride
        if absent & set(range(*axis.reads(k, depth))):
            spoilt |= set(range(start, start + axis.window))
    assert [p.z for p in planes] == list(range(depth))
    assert {p.z for p in planes if not p.valid} == {z for z in spoilt if z < depth}
    expected = whole(made, stack)
    for plane in planes:
        np.testing.assert_array_equal(
            plane.voxels, expected[plane.z] if plane.valid else 0
        )
    assert status.missing == len(absent)
    told = {z for gap in status.gaps for z in range(gap.start, gap.stop)}
    assert told == absent


def test_the_normalisation_is_learnt_from_planes_that_are_kept(make_identity_bundle):
    made = make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")
    stack = stack_of(30, dtype=np.uint16)
    with opened(made, stack, normalisation=None, learn_planes=10) as live:
        live.push(stack)
        live.finish()
        planes = list(live.planes())
        learnt = live.status.normalisation
    with Segmenter(made, engines=[engine_of(made)]) as segmenter:
        first = SegmentSettings(normalisation=None)
        assert first.normalisation is None
        from neurodeploy_runtime import Histogram

        histogram = Histogram(np.uint16)
        histogram.add(stack[:10])
        assert learnt == histogram.freeze("background-asinh")
        segmenter.settings = SegmentSettings(normalisation=learnt)
        expected = segmenter.segment_array(stack)
    np.testing.assert_array_equal(np.stack([p.voxels for p in planes]), expected)


def test_a_constant_image_is_refused_and_everyone_is_told(bundle):
    stack = np.full((12, 20, 24), 7, np.uint8)
    with opened(bundle, stack, normalisation=None, learn_planes=4) as live:
        live.push(stack[:9])
        with pytest.raises(
            InputError, match="constant: every voxel that was read is 7"
        ):
            live.flush(WAIT_S)
        with pytest.raises(InputError, match="constant"):
            live.push(stack[9])
        with pytest.raises(InputError, match="constant"):
            next(live.planes())
        assert live.state == "failed"


def test_a_stack_without_planes_has_no_result(bundle):
    with opened(bundle, stack_of(1), normalisation=None) as live:
        live.finish()
        assert list(live.planes()) == []
        live.flush(WAIT_S)
        assert live.state == "done"


def test_planes_of_another_kind_are_refused_and_the_stream_lives_on(bundle):
    stack = stack_of(10)
    with opened(bundle, stack) as live:
        live.push(stack[0])
        with pytest.raises(SettingsError, match=r"shape \(4, 4\) does not belong"):
            live.push(np.zeros((4, 4), np.uint8))
        with pytest.raises(SettingsError, match="float32 does not belong"):
            live.push(stack[0].astype(np.float32))
        with pytest.raises(StreamError, match="plane 0 comes after plane 0"):
            live.push(stack[0], z=0)
        with pytest.raises(StreamError, match="9999 planes in a row are not missed"):
            live.push(stack[0], z=10_000)
        assert live.state == "streaming"
        live.push(stack[1:])
        live.finish()
        masks = np.stack([p.voxels for p in live.planes()])
    np.testing.assert_array_equal(masks, whole(bundle, stack))


def test_a_full_ring_blocks_for_as_long_as_was_said_and_can_go_on(bundle):
    # More tiles in a layer than slots, so that it stays in the ring while it is held.
    stack = stack_of(30, 40, 48)
    with held(bundle, stack, ring_planes=10) as (live, gate):
        live.push(stack[:9])
        assert gate.reached.wait(WAIT_S)
        assert live.ready_for(1)
        assert not live.ready_for(2)
        with pytest.raises(
            OverrunError, match="plane 10 found no room: 10 planes"
        ) as e:
            live.push(stack[9:12], timeout_s=0.01)
        assert e.value.accepted == 1
        assert live.status.queued == 10
        gate.open.set()
        live.push(stack[10:], timeout_s=WAIT_S)
        live.finish()
        assert len(list(live.planes())) == 30


def test_a_full_ring_fails_where_that_was_asked_for(bundle):
    stack = stack_of(30, 40, 48)
    with held(bundle, stack, ring_planes=10, when_full="fail") as (live, gate):
        with pytest.raises(OverrunError, match="plane 10 found no room"):
            live.push(stack)
        gate.open.set()
        with pytest.raises(OverrunError):
            live.push(stack[0])
        with pytest.raises(OverrunError):
            list(live.planes())
        assert live.state == "failed"


def push(live, plane):
    return live.push(plane)


def write_in_its_slot(live, plane):
    with live.slot() as voxels:
        if voxels is not None:
            voxels[:] = plane
        return voxels is not None


@pytest.mark.parametrize("bring", [push, write_in_its_slot])
def test_dropping_leaves_out_whole_tiles_and_shifts_nothing(bundle, bring):
    # Windows of 8, strides of 6.
    stack = stack_of(60, 40, 48)
    with held(bundle, stack, ring_planes=16, when_full="drop") as (live, gate):
        taken = [bring(live, plane) for plane in stack[:30]]
        assert gate.reached.wait(WAIT_S)
        # Plane 16 finds no room; the tile from 18 on does not read it.
        assert taken == [True] * 16 + [False] * 14
        gate.open.set()
        deadline = time.monotonic() + WAIT_S
        while live.status.room_planes < 9 and time.monotonic() < deadline:
            time.sleep(0.005)
        for plane in stack[30:]:
            bring(live, plane)
            live.flush(WAIT_S)
        live.finish()
        planes = list(live.planes())
        status = live.status
    assert status.gaps == (Gap(16, 30, "dropped"),)
    assert status.dropped == 14
    assert str(status.gaps[0]) == "planes 16 to 29 dropped"
    assert [p.z for p in planes] == list(range(60))
    # Tiles 12:20, 18:26 and 24:32 were not run.
    assert [p.z for p in planes if not p.valid] == list(range(12, 32))
    expected = whole(bundle, stack)
    for plane in planes:
        if plane.valid:
            np.testing.assert_array_equal(plane.voxels, expected[plane.z])
    assert status.done + status.lost == 60


def test_an_engine_that_fails_is_heard_of_everywhere(bundle):
    class Broken(NumpyEngine):
        def infer(self, batch, out):
            raise EngineError("the device is gone")

    stack = stack_of(40)
    live = opened(bundle, stack, engine=Broken(bundle))
    future = live.future(3)
    live.push(stack[:9])
    with pytest.raises(EngineError, match="the device is gone"):
        live.flush(WAIT_S)
    with pytest.raises(EngineError, match="the device is gone"):
        live.push(stack[9])
    with pytest.raises(EngineError, match="the device is gone"):
        list(live.planes())
    with pytest.raises(EngineError, match="the device is gone"):
        future.result(WAIT_S)
    assert not live.ready_for(1)
    live.close()
    live.close()
    assert live.state == "closed"
    with pytest.raises(StreamError, match="closed"):
        live.finish()


def test_an_error_of_any_kind_in_an_engine_is_an_engine_error(bundle):
    class Odd(NumpyEngine):
        def infer(self, batch, out):
            raise ZeroDivisionError("odd")

    stack = stack_of(20)
    with opened(bundle, stack, engine=Odd(bundle)) as live:
        live.push(stack[:9])
        with pytest.raises(EngineError, match="ZeroDivisionError: odd"):
            live.flush(WAIT_S)


def test_a_callback_has_every_plane_and_its_error_ends_the_stream(bundle):
    stack = stack_of(20)
    seen: list[int] = []
    with opened(bundle, stack, on_plane=lambda p: seen.append(p.z)) as live:
        live.push(stack)
        live.finish()
        live.flush(WAIT_S)
        assert seen == list(range(20))
        with pytest.raises(StreamError, match="on_plane"):
            next(live.planes())

    def burst(plane):
        raise ValueError("the disk is full")

    with opened(bundle, stack, on_plane=burst) as live:
        live.push(stack)
        with pytest.raises(ValueError, match="the disk is full"):
            live.flush(WAIT_S)
        with pytest.raises(ValueError, match="the disk is full"):
            live.push(stack[0])


def test_futures_get_their_planes_and_the_queue_the_others(bundle):
    stack = stack_of(20)
    with opened(bundle, stack) as live:
        futures = [live.future(z) for z in (3, 17, 25)]
        live.push(stack)
        live.finish()
        others = [p.z for p in live.planes()]
        assert [f.result(WAIT_S).z for f in futures[:2]] == [3, 17]
        assert others == [z for z in range(20) if z not in (3, 17)]
        with pytest.raises(StreamError, match="ended before plane 25"):
            futures[2].result(WAIT_S)
        with pytest.raises(StreamError, match="plane 4 was finished before"):
            live.future(4)


@pytest.mark.parametrize("how", ["done", "failed", "absent"])
def test_what_a_future_calls_cannot_close_the_stream_that_waits_for_it(bundle, how):
    class Broken(NumpyEngine):
        def infer(self, batch, out):
            raise EngineError("the device is gone")

    stack = stack_of(20)
    said: list[str] = []
    called = threading.Event()

    def close(_):
        try:
            live.close()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        called.set()

    engine = Broken(bundle) if how == "failed" else engine_of(bundle)
    with opened(bundle, stack, engine=engine) as live:
        live.future(99 if how == "absent" else 3).add_done_callback(close)
        with suppress(EngineError):
            live.push(stack)
            live.finish()
        assert called.wait(WAIT_S)
        assert live.state != "closed"
    assert len(said) == 1
    assert said[0].startswith("StreamError: the stream waits for what is called")


def test_a_reader_that_never_reads_holds_up_and_is_named(bundle):
    stack = stack_of(60)
    with opened(bundle, stack, outlet_planes=3, ring_planes=10) as live:
        live.push(stack[:9])
        with pytest.raises(StreamError, match="3 finished planes wait and nobody"):
            live.flush(0.2)
        with pytest.raises(OverrunError, match="3 finished ones wait for their reader"):
            live.push(stack[9:], timeout_s=0.2)
        # Whoever only looks is not held up, and takes nothing.
        assert live.preview(timeout_s=WAIT_S).z >= 2
        assert live.status.waiting == 3


def test_the_preview_shows_the_latest_plane_and_image(bundle):
    stack = stack_of(20)
    with opened(bundle, stack) as live:
        assert live.preview() is None
        live.push(stack)
        z, image = live.preview_image(longest=12)
        assert z == 19
        np.testing.assert_array_equal(image, stack[19, ::2, ::2])
        live.finish()
        live.flush(WAIT_S)
        latest = live.preview()
        assert latest.z == 19
        assert live.preview(newer_than=19) is None
        np.testing.assert_array_equal(latest.voxels, whole(bundle, stack)[19])


def test_planes_that_are_kept_are_never_written_over(bundle):
    stack = stack_of(100)
    expected = whole(bundle, stack)
    kept = []
    with opened(bundle, stack, outlet_planes=2) as live:
        pusher = threading.Thread(
            target=lambda: (live.push(stack, timeout_s=WAIT_S), live.finish())
        )
        pusher.start()
        for plane in live.planes():
            # A part keeps the plane's memory; the plane itself is let go.
            kept.append(plane.voxels[3:7])
            with pytest.raises(ValueError, match="read-only"):
                plane.voxels[0, 0] = 1
        pusher.join()
    np.testing.assert_array_equal(np.stack(kept), expected[:, 3:7])


def test_a_segmenter_serves_one_stack_after_another(bundle):
    stack = stack_of(31)
    with opened(bundle, stack) as live:
        with pytest.raises(StreamError, match="streaming stack cannot be followed"):
            live.again()
        for depth in (31, 5, 18):
            live.push(stack[:depth], timeout_s=WAIT_S)
            live.finish()
            masks = np.stack([p.voxels for p in live.planes()])
            live.flush(WAIT_S)
            np.testing.assert_array_equal(masks, whole(bundle, stack[:depth]))
            assert live.status.done == depth
            with pytest.raises(StreamError, match="finished"):
                live.push(stack[0])
            live.again()


def test_closing_in_the_middle_leaves_no_thread_behind(bundle):
    before = set(threading.enumerate())
    stack = stack_of(40)
    with opened(bundle, stack, outlet_planes=1, on_plane=lambda p: None) as live:
        live.push(stack, timeout_s=WAIT_S)
    assert set(threading.enumerate()) <= before


def test_closing_lets_go_of_a_stage_that_waits_for_a_reader(bundle, monkeypatch):
    from neurodeploy_runtime.live import _segmenter

    monkeypatch.setattr(_segmenter, "CLOSE_S", 5.0)
    before = set(threading.enumerate())
    stack = stack_of(9)
    live = opened(bundle, stack, outlet_planes=1)
    live.push(stack)
    assert live.preview(timeout_s=WAIT_S) is not None
    live.close()
    assert set(threading.enumerate()) <= before


def test_what_memory_does_not_allow_is_refused_before_it_is_taken(bundle):
    with pytest.raises(MemoryCapError, match=r"take 4\.65 GB and may take 0\.00"):
        opened(bundle, np.zeros((1, 4096, 4096), np.uint16), memory_bytes=1_000_000)
    with pytest.raises(SettingsError, match="ring of 8 planes is too small"):
        opened(bundle, stack_of(1), ring_planes=8)


def test_the_counts_of_the_status_add_up_at_every_moment(bundle):
    stack = stack_of(80)
    with opened(bundle, stack) as live:
        for plane in stack:
            live.push(plane, timeout_s=WAIT_S)
            s = live.status
            assert s.pushed == s.queued + s.in_flight + s.done + s.lost
        live.flush(WAIT_S)
        least, most = live.lag_planes
        assert (least, most) == (3, 8)
        assert live.status.done >= 80 - most
        live.finish()
        live.flush(WAIT_S)
        s = live.status
        assert (s.state, s.done, s.queued, s.in_flight) == ("done", 80, 0, 0)
        assert 0 < s.latency_p50_s <= s.latency_p95_s <= s.latency_max_s
        assert s.mvoxel_per_s > 0


def test_memory_is_flat_over_a_long_run(bundle):
    plane = stack_of(1, 48, 48)[0]
    with opened(bundle, plane[None], outlet_planes=8, on_plane=lambda p: None) as live:
        for _ in range(100):
            live.push(plane, timeout_s=WAIT_S)
        live.flush(WAIT_S)
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(500):
                live.push(plane, timeout_s=WAIT_S)
            live.flush(WAIT_S)
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
    # 500 planes are 1.2 MB of pixels, and as many come out.
    assert grown < 200_000


def test_room_that_never_comes_is_refused_and_not_waited_for(bundle):
    stack = stack_of(60)
    with opened(bundle, stack, ring_planes=20) as live:
        # Tiles of 8 keep up to 8 planes until the next comes.
        assert live.ready_planes == 12
        for z in range(0, 60, 12):
            deadline = time.monotonic() + WAIT_S
            while not live.ready_for(12):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            live.push(stack[z : z + 12], timeout_s=0)
        with pytest.raises(SettingsError, match="never has room for 13: ask for 12"):
            live.ready_for(13)


def test_room_beside_the_planes_that_are_learnt_from_is_not_waited_for(bundle):
    stack = stack_of(16)
    learning = {"normalisation": None, "ring_planes": 16, "learn_planes": 16}
    with opened(bundle, stack, **learning) as live:
        assert live.ready_for(5)
        live.push(stack[:15])
        assert live.ready_for(1)
        with pytest.raises(SettingsError, match="no room for 5 beside 15 of the 16"):
            live.ready_for(5)


@pytest.mark.parametrize("first", [3, 12, 40])
def test_it_is_learnt_from_planes_that_came(make_identity_bundle, first):
    made = make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")
    stack = stack_of(60, dtype=np.uint16)
    with opened(made, stack, normalisation=None, learn_planes=10) as live:
        for z in range(first, 60):
            live.push(stack[z], z=z, timeout_s=WAIT_S)
            if z == first + 8:
                assert live.status.normalisation is None
        live.finish()
        planes = list(live.planes())
        learnt = live.status.normalisation
    histogram = Histogram(np.uint16)
    histogram.add(stack[first : first + 10])
    assert learnt == histogram.freeze("background-asinh")
    assert [p.z for p in planes] == list(range(60))
    assert not any(p.valid for p in planes[:first])
    assert planes[-1].valid


def test_a_stack_of_which_no_plane_came_is_told_plane_by_plane(bundle):
    stack = stack_of(9)
    with opened(bundle, stack, normalisation=None) as live:

        def fail_in_a_slot():
            with live.slot(7):
                raise OSError("the camera is gone")

        with pytest.raises(OSError, match="gone"):
            fail_in_a_slot()
        live.finish()
        planes = list(live.planes())
        live.flush(WAIT_S)
        assert live.state == "done"
    assert [(p.z, p.valid) for p in planes] == [(z, False) for z in range(7)]


def test_planes_that_nobody_has_read_are_not_thrown_away(bundle):
    stack = stack_of(9)
    with opened(bundle, stack) as live:
        live.push(stack)
        live.finish()
        live.flush(WAIT_S)
        reader = live.planes()
        assert next(reader).z == 0
        with pytest.raises(StreamError, match="8 finished planes of this stack wait"):
            live.again()
        assert [p.z for p in reader] == list(range(1, 9))
        live.again()


def test_a_reader_stays_with_its_stack(bundle):
    stack = stack_of(9)
    with opened(bundle, stack) as live:
        live.push(stack)
        live.finish()
        reader = live.planes()
        read = [next(reader).z for _ in stack]
        live.flush(WAIT_S)
        live.again()
        live.push(stack)
        live.finish()
        live.flush(WAIT_S)
        assert next(reader, None) is None
        assert read == [p.z for p in live.planes()]


def test_ending_does_not_wait_for_ever_for_another_thread(bundle):
    stack = stack_of(9)
    said: list[BaseException] = []
    with opened(bundle, stack, timeout_s=0.05) as live:

        def finish():
            try:
                live.finish()
            except StreamError as error:
                said.append(error)

        with live.slot() as voxels:
            voxels[:] = stack[0]
            other = threading.Thread(target=finish)
            other.start()
            other.join(WAIT_S)
            assert not other.is_alive()
        assert "another thread has been pushing for 0.05 s" in str(said[0])
        live.finish()
        assert len(list(live.planes())) == 1


def test_a_flush_does_not_wait_for_the_delivery_of_a_future(bundle):
    stack = stack_of(9)
    seen: list[int] = []
    with opened(bundle, stack, on_plane=lambda p: seen.append(p.z)) as live:
        futures = [live.future(z) for z in (4, 5)]
        live.push(stack)
        # Planes 0 to 5 are due.
        live.flush(WAIT_S)
        assert [f.result(0).z for f in futures] == [4, 5]
        assert seen == list(range(4))


def test_a_slow_callback_is_named_where_a_flush_waits_for_it(bundle):
    stack = stack_of(9)
    go = threading.Event()
    with opened(bundle, stack, on_plane=lambda p: go.wait(WAIT_S)) as live:
        live.push(stack)
        live.finish()
        with pytest.raises(StreamError, match="on_plane had not taken all"):
            live.flush(0.3)
        go.set()


def test_a_closed_one_keeps_no_buffers_and_still_says_how_it_stood(bundle):
    stack = stack_of(9, 200, 200)
    gc.collect()
    # What is left to the collector of cycles is not given back for a long time.
    gc.disable()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with opened(bundle, stack, outlet_planes=8) as live:
            live.push(stack)
            held = tracemalloc.get_traced_memory()[0] - before
            live.finish()
            assert len(list(live.planes())) == 9
            live.flush(WAIT_S)
        left = tracemalloc.get_traced_memory()[0] - before
    finally:
        gc.enable()
        tracemalloc.stop()
    assert held > live.buffer_bytes
    assert left < 200_000
    assert (live.status.state, live.status.done, live.tiles_run > 0) == (
        "closed",
        9,
        True,
    )
    assert live.preview_image() is None
    live.fail(EngineError("said too late"))


def test_a_flush_ends_at_once_where_on_plane_fails(bundle, monkeypatch):
    stack = stack_of(9)
    go = threading.Event()

    def burst(plane):
        assert go.wait(WAIT_S)
        raise ValueError("the disk is full")

    with opened(bundle, stack, on_plane=burst) as live:
        live.push(stack)
        live.finish()
        assert live._outlet.wait_passed(9, WAIT_S)
        # It has said that it ends, and is not over yet.
        monkeypatch.setattr(live._delivery._thread, "is_alive", lambda: True)
        threading.Timer(0.2, go.set).start()
        started = time.monotonic()
        with pytest.raises(ValueError, match="the disk is full"):
            live.flush(WAIT_S)
        assert time.monotonic() - started < WAIT_S / 2
        monkeypatch.undo()


def test_an_error_of_this_package_from_on_plane_ends_the_stream_too(bundle):
    """As where it segments something itself, and that is stopped."""
    stack = stack_of(9)

    def stopped(plane):
        raise CancelledError("stopped by the caller")

    with opened(bundle, stack, on_plane=stopped) as live:
        live.push(stack)
        with pytest.raises(CancelledError, match="stopped by the caller"):
            live.flush(WAIT_S)
        assert live.state == "failed"


def live_threads():
    return [t for t in threading.enumerate() if t.name == "live"]


def test_of_two_threads_one_begins_the_next_stack(bundle):
    stack = stack_of(9)
    said: list[BaseException] = []
    with opened(bundle, stack, timeout_s=WAIT_S) as live:

        def again():
            try:
                live.again()
            except StreamError as error:
                said.append(error)

        live.push(stack)
        live.finish()
        assert len(list(live.planes())) == 9
        live.flush(WAIT_S)
        threads = [threading.Thread(target=again) for _ in range(2)]
        with live._pushing:
            for thread in threads:
                thread.start()
            time.sleep(0.2)
        for thread in threads:
            thread.join(WAIT_S)
        assert "another thread has begun the next stack" in str(said[0])
        assert (len(said), len(live_threads())) == (1, 1)
        live.push(stack)
        live.finish()
        assert len(list(live.planes())) == 9


def test_what_is_closed_meanwhile_begins_no_other_stack(bundle):
    stack = stack_of(9)
    said: list[BaseException] = []
    before = set(threading.enumerate())
    live = opened(bundle, stack, timeout_s=WAIT_S)

    def again():
        try:
            live.again()
        except StreamError as error:
            said.append(error)

    live.push(stack)
    live.finish()
    assert len(list(live.planes())) == 9
    live.flush(WAIT_S)
    thread = threading.Thread(target=again)
    with live._pushing:
        thread.start()
        time.sleep(0.2)
        live.close()
    thread.join(WAIT_S)
    assert "is closed" in str(said[0])
    assert set(threading.enumerate()) <= before


def test_the_counts_add_up_for_who_looks_while_planes_come(bundle, monkeypatch):
    stack = stack_of(80)
    with opened(bundle, stack) as live:
        live.push(stack[:9])
        live.flush(WAIT_S)
        counts = live._tally.counts

        def meanwhile():
            monkeypatch.undo()
            live.push(stack[9:60], timeout_s=WAIT_S)
            live.flush(WAIT_S)
            return counts()

        monkeypatch.setattr(live._tally, "counts", meanwhile)
        s = live.status
        assert s.pushed == s.queued + s.in_flight + s.done + s.lost
        assert s.done >= 50


def test_planes_that_come_while_it_is_counted_are_learnt_from(
    make_identity_bundle, monkeypatch
):
    """Those that were counted, and not only those that came before the count."""
    made = make_identity_bundle(tile=(8, 16, 16), normalisation="background-asinh")
    stack = stack_of(60, dtype=np.uint16)
    wait, waited, pushed = PlaneRing.wait, threading.Event(), threading.Event()

    def wait_and_more(ring, planes):
        answer = wait(ring, planes)
        waited.set()
        assert pushed.wait(WAIT_S)
        return answer

    monkeypatch.setattr(PlaneRing, "wait", wait_and_more)
    with opened(made, stack, normalisation=None, learn_planes=10) as live:
        live.push(stack[0])
        live.push(stack[6:10], z=6)
        assert waited.wait(WAIT_S)
        live.push(stack[10:16])
        pushed.set()
        for z in range(16, 60):
            live.push(stack[z], z=z, timeout_s=WAIT_S)
        live.finish()
        assert len(list(live.planes())) == 60
        learnt = live.status.normalisation
    histogram = Histogram(np.uint16)
    histogram.add(stack[[0, *range(6, 15)]])
    assert learnt == histogram.freeze("background-asinh")


def test_one_may_wait_for_ever(bundle):
    stack = stack_of(9)
    with opened(bundle, stack, timeout_s=math.inf) as live:
        live.push(stack[:8])
        with live.slot(timeout_s=math.inf) as voxels:
            voxels[:] = stack[8]
        assert live.preview(timeout_s=math.inf).z >= 0
        live.finish()
        live.flush(math.inf)
        assert len(list(live.planes())) == 9


def test_the_plane_of_a_future_that_was_cancelled_is_not_lost(bundle):
    """As asyncio cancels one for which nobody waits any more."""
    stack = stack_of(20)
    with opened(bundle, stack) as live:
        futures = [live.future(z) for z in (3, 7)]
        assert futures[0].cancel()
        live.push(stack)
        live.finish()
        assert [p.z for p in live.planes()] == [z for z in range(20) if z != 7]
        assert futures[1].result(WAIT_S).z == 7


def test_a_kind_of_output_that_no_stream_has_is_refused():
    for kind in ("both", "masks"):
        with pytest.raises(SettingsError, match=f"output_kind '{kind}' is none of"):
            LiveSettings(output_kind=kind)
