"""A batch that a GPU's memory does not hold is halved, and everybody is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from fake_tensorrt import VERSIONS, FakeDriver, FakeTensorRt, Script

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    CancelledError,
    DeviceError,
    EngineError,
    EngineSettings,
    Normalisation,
    NumpyEngine,
    Progress,
    ResumeError,
    Segmenter,
    SegmentSettings,
)
from neurodeploy_runtime._errors import GpuMemoryError
from neurodeploy_runtime.engines import Choice, Engine, _choose, open_engines
from neurodeploy_runtime.engines._choose import Adapter
from neurodeploy_runtime.engines._cuda_driver import Device
from neurodeploy_runtime.engines._onnxruntime import OnnxRuntimeEngine
from neurodeploy_runtime.engines._tensorrt_session import TensorRtSession
from neurodeploy_runtime.measure import _compare, sweep

MakeBundle = Callable[..., Bundle]


class Small(NumpyEngine):
    """A GPU that holds `room` tiles at most."""

    room = 2
    closed: list[int]

    def infer(self, batch: Any, out: Any) -> None:
        if self.batch > self.room:
            raise GpuMemoryError(f"{self.batch} tiles do not fit", self.batch)
        super().infer(batch, out)

    def close(self) -> None:
        self.closed.append(self.batch)


@pytest.fixture
def adapter(make_identity_bundle: MakeBundle) -> Adapter:
    Small.closed = []

    def opener(bundle: Bundle, settings: EngineSettings) -> Engine:
        return Small(bundle, batch=settings.batch or 8)

    return Adapter("fake", "cuda", lambda bundle, settings: None, opener)


def test_a_run_goes_on_with_a_smaller_batch_and_says_so(
    make_identity_bundle: MakeBundle,
    adapter: Adapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    monkeypatch.setattr(_choose, "ADAPTERS", (adapter,))
    settings = SegmentSettings(
        engine=EngineSettings(device="cuda:0"),
        normalisation=Normalisation("unit", 0, 255),
    )
    volume = np.random.default_rng(0).integers(0, 256, (20, 30, 40), np.uint8)
    with Segmenter(bundle, settings) as segmenter:
        report = segmenter.segment(ArraySource(volume), tmp_path / "out.tif")
    assert report is not None
    assert report.provenance["engine"]["batch"] == 2
    assert report.provenance["notes"]["passed_over"] == [
        "batch 8, 4 instead: 8 tiles do not fit",
        "batch 4, 2 instead: 4 tiles do not fit",
    ]
    assert Small.closed == [8, 4, 2]


def test_several_gpus_keep_one_batch(
    make_identity_bundle: MakeBundle, adapter: Adapter
) -> None:
    bundle = make_identity_bundle()
    choices = [Choice(adapter, EngineSettings(batch=b), ()) for b in (2, 2)]
    assert [engine.batch for engine in open_engines(bundle, choices)] == [2, 2]
    more = [Choice(adapter, EngineSettings(batch=b), ()) for b in (3, 3)]
    assert [engine.batch for engine in open_engines(bundle, more)] == [1, 1]


def test_a_single_tile_that_does_not_fit_is_an_error(
    make_identity_bundle: MakeBundle,
    adapter: Adapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Small, "room", 0)
    choices = [Choice(adapter, EngineSettings(), ())]
    with pytest.raises(GpuMemoryError, match="1 tiles do not fit"):
        open_engines(make_identity_bundle(), choices)
    assert Small.closed == [8, 4, 2, 1]


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("BFCArena::AllocateRawInternal Failed to allocate memory", GpuMemoryError),
        ("CUDA failure 2: out of memory ; GPU=0", GpuMemoryError),
        ("CUDNN_STATUS_ALLOC_FAILED", GpuMemoryError),
        ("CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", GpuMemoryError),
        ("Available memory of 1 is smaller than requested bytes of 2", GpuMemoryError),
        ("CUDA failure 700: an illegal memory access", EngineError),
    ],
)
def test_what_onnxruntime_says_of_memory_is_understood(
    make_identity_bundle: MakeBundle, says: str, kind: type[EngineError]
) -> None:
    settings = EngineSettings(device="cpu", batch=2)
    with OnnxRuntimeEngine(make_identity_bundle(), settings) as engine:
        engine.device = "cuda:0"
        with (
            pytest.raises(EngineError, match="failed on cuda:0 at batch 2") as caught,
            engine._named(),
        ):
            raise RuntimeError(says)
        assert type(caught.value) is kind
        assert getattr(caught.value, "batch", 2) == 2


def test_what_the_driver_says_of_memory_is_understood() -> None:
    driver = FakeDriver()
    device = Device(0, driver)
    driver.fails["cuMemAlloc_v2"] = 2
    shape = 4, 1, 4, 8, 8
    with pytest.raises(GpuMemoryError, match=r"allocate .* bytes on Fake GPU"):
        TensorRtSession(FakeTensorRt(VERSIONS[-1]), b"a plan", device, shape, shape)
    driver.fails["cuMemAlloc_v2"] = 700
    with pytest.raises(EngineError) as caught:
        device.allocate(100)
    assert not isinstance(caught.value, GpuMemoryError)


def test_what_tensorrt_says_of_memory_is_understood() -> None:
    """It answers with nothing, and says why in its log alone."""
    says = "IRuntime::deserializeCudaEngine: Error Code 1: Cuda Runtime (out of memory)"
    shape = 4, 1, 4, 8, 8
    trt = FakeTensorRt(VERSIONS[-1], Script(loads=False, says=says))
    with pytest.raises(GpuMemoryError, match="out of memory") as caught:
        TensorRtSession(trt, b"a plan", Device(0, FakeDriver()), shape, shape)
    assert caught.value.batch == 4
    says = "Error Code 2: OutOfMemory (Requested size was 8 bytes.)"
    trt = FakeTensorRt(VERSIONS[-1], Script(run_ok=False, says=says))
    session = TensorRtSession(trt, b"a plan", Device(0, FakeDriver()), shape, shape)
    batch = np.zeros(shape, np.float32)
    with pytest.raises(GpuMemoryError, match="OutOfMemory"):
        session.infer(batch, batch)


def test_going_on_with_less_memory_than_then_names_the_batch(
    make_identity_bundle: MakeBundle,
    adapter: Adapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A smaller batch is another engine: its last bits may be others."""
    bundle = make_identity_bundle(tile=(8, 16, 16))
    monkeypatch.setattr(_choose, "ADAPTERS", (adapter,))
    volume = ArraySource(np.zeros((200, 30, 40), np.uint8))

    def run(batch: int | None = None, stop: bool = False) -> Any:
        settings = SegmentSettings(
            engine=EngineSettings(device="cuda:0", batch=batch),
            normalisation=Normalisation("unit", 0, 255),
        )
        cancel = threading.Event()

        def told(progress: Progress) -> None:
            if stop and progress.done_voxels:
                cancel.set()
                # Two slabs go round: it cannot end before the writer goes on.
                time.sleep(0.5)

        with Segmenter(bundle, settings) as segmenter:
            return segmenter.segment(
                volume, tmp_path / "out.tif", progress=told, cancel=cancel
            )

    with pytest.raises(CancelledError):
        run(stop=True)
    monkeypatch.setattr(Small, "room", 4)
    with pytest.raises(
        ResumeError, match=r"batch .2 there, 4 .*: pass --batch 2 to go"
    ):
        run()
    report = run(batch=2)
    assert report.resumed_voxels > 0


class Crowded(NumpyEngine):
    """A GPU of whose memory another program takes its share after some batches."""

    def __init__(self, bundle: Bundle, *, batch: int, room: int, after: int) -> None:
        super().__init__(bundle, batch=batch)
        self.room, self.left = room, after
        self.asked: list[int] = []

    def infer(self, batch: Any, out: Any) -> None:
        self.asked.append(len(batch))
        self.left -= 1
        if self.left < 0 and len(batch) > self.room:
            raise GpuMemoryError(f"CUDA failure 2 at {len(batch)}", len(batch))
        super().infer(batch, out)


def crowded_run(
    bundle: Bundle, output: Path, room: int, *, stop: bool = False
) -> tuple[Any, Crowded]:
    cancel = threading.Event()

    def told(progress: Progress) -> None:
        if stop and progress.done_voxels:
            cancel.set()
            time.sleep(0.5)

    volume = np.random.default_rng(0).integers(0, 256, (200, 30, 40), np.uint8)
    settings = SegmentSettings(normalisation=Normalisation("unit", 0, 255))
    engine = Crowded(bundle, batch=5, room=room, after=3)
    with Segmenter(bundle, settings, engines=[engine]) as segmenter:
        report = segmenter.segment(
            ArraySource(volume), output, progress=told, cancel=cancel
        )
    return report, engine


def test_memory_that_ends_amid_a_run_makes_portions_and_a_warning(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    whole, _ = crowded_run(bundle, tmp_path / "whole.tif", 5)
    report, engine = crowded_run(bundle, tmp_path / "portions.tif", 1)
    assert whole.warnings == []
    assert len(report.warnings) == 2
    assert "no longer holds 5 tiles at once: they are run 2 at" in report.warnings[0]
    assert "no longer holds 2 tiles at once: they are run 1 at" in report.warnings[1]
    assert engine.asked[:7] == [5, 5, 5, 5, 2, 1, 1]
    assert set(engine.asked[5:]) == {1}
    same = (tmp_path / "whole.tif", tmp_path / "portions.tif")
    a, b = (tifffile.imread(path) for path in same)
    assert np.array_equal(a, b)
    assert a.any()


def test_what_was_noted_before_an_interruption_is_in_the_report(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    with pytest.raises(CancelledError):
        crowded_run(bundle, tmp_path / "out.tif", 2, stop=True)
    report, _ = crowded_run(bundle, tmp_path / "out.tif", 5)
    assert report.resumed_voxels > 0
    assert len(report.warnings) == 1
    assert "no longer holds 5 tiles" in report.warnings[0]


@pytest.mark.parametrize(("room", "divisible"), [(0, True), (2, False)])
def test_what_fits_in_no_portion_ends_the_run(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    room: int,
    divisible: bool,
) -> None:
    monkeypatch.setattr(Crowded, "divisible", divisible)
    with pytest.raises(GpuMemoryError, match="CUDA failure 2"):
        crowded_run(make_identity_bundle(tile=(8, 16, 16)), tmp_path / "o.tif", room)


def test_a_batch_that_does_not_fit_is_no_figure(
    make_identity_bundle: MakeBundle,
    adapter: Adapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_choose, "ADAPTERS", (adapter,))
    monkeypatch.setattr(_compare, "ADAPTERS", (adapter,))
    settings = EngineSettings(device="cuda:0")
    trials = sweep(make_identity_bundle(), settings, batches=[1, 2, 8], turns=1)
    assert sorted(trial.settings.batch or 0 for trial in trials) == [1, 2]


def test_a_batch_that_an_engine_was_not_made_for_is_no_figure_either(
    make_identity_bundle: MakeBundle,
    adapter: Adapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sweep ended at the first one, and with it a benchmark that was done."""

    def why_not(bundle: Bundle, settings: EngineSettings) -> str | None:
        return "made for batches up to 2" if (settings.batch or 1) > 2 else None

    narrow = replace(adapter, why_not=why_not)
    monkeypatch.setattr(_choose, "ADAPTERS", (narrow,))
    monkeypatch.setattr(_compare, "ADAPTERS", (narrow,))
    settings = EngineSettings(device="cuda:0")
    trials = sweep(make_identity_bundle(), settings, batches=[1, 2, 4], turns=1)
    assert sorted(trial.settings.batch or 0 for trial in trials) == [1, 2]
    with pytest.raises(DeviceError, match="made for batches up to 2"):
        sweep(make_identity_bundle(), settings, batches=[4], turns=1)
