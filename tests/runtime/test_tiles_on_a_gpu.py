"""Tiles that stay on a GPU give the bits of tiles on the host.

The GPU is this process's own memory (``fake_cupy``); the kernels are the real ones,
compiled by a C compiler.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tifffile
from fake_cupy import COMPILER, FakeCupy
from fake_tensorrt import VERSIONS, FakeDriver, FakeTensorRt, Script

from neurodeploy_runtime import (
    ArraySource,
    Bundle,
    DeviceError,
    EngineError,
    EngineSettings,
    MemoryCapError,
    Normalisation,
    NumpyEngine,
    Segmenter,
    SegmentSettings,
    SettingsError,
    SkipSettings,
    _run,
    open_volume,
    reproduce,
)
from neurodeploy_runtime._errors import GpuMemoryError
from neurodeploy_runtime.arrays import Arrays, _cuda
from neurodeploy_runtime.arrays._cuda import CudaArrays
from neurodeploy_runtime.engines import (
    Choice,
    Engine,
    PlaceName,
    _onnxruntime,
    _resident,
    choose_engines,
    open_engines,
)
from neurodeploy_runtime.engines._choose import Adapter
from neurodeploy_runtime.engines._cuda_driver import Device
from neurodeploy_runtime.engines._onnxruntime import OnnxRuntimeEngine
from neurodeploy_runtime.engines._tensorrt_session import TensorRtSession
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.rigs._shared_engine import SharedEngine

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler is here")

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy(tmp_path)
    monkeypatch.setattr(_cuda, "_import_cupy", lambda: fake)
    monkeypatch.setattr(_cuda, "why_not", lambda: None)
    return fake


class GpuNumpyEngine(NumpyEngine):
    """A network of NumPy whose tiles lie on a GPU."""

    resident = True

    def arrays(self) -> Arrays:
        return CudaArrays(0)

    def infer(self, batch: Any, out: Any) -> None:
        assert type(batch) is np.ndarray
        super().infer(batch, out)

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        host = np.empty(out.shape, np.float32)
        super().infer(arrays.fetch(batch), host)
        with arrays.step():
            out.set(host)


def wave(batch: Any) -> Any:
    """Every voxel's answer depends on where in its tile it lies: seams would show."""
    z, y, x = (np.arange(n, dtype=np.float32) for n in batch.shape[2:])
    ramp = z[:, None, None] / 40 + y[:, None] / 90 + x / 70
    answer: Any = 1 / (1 + np.exp(1 - batch - np.sin(ramp)))
    return answer.astype(np.float32)


VOLUME = np.random.default_rng(7).integers(0, 4000, (37, 50, 61), np.uint16)
ASINH = Normalisation("background-asinh", 1500.0, 300.0)


def segmented(
    engines: Sequence[Engine], volume: Any, out: Path, **settings: Any
) -> tuple[Any, Any]:
    chosen = SegmentSettings(
        **{"normalisation": ASINH, "output_kind": "both", **settings}
    )
    segmenter = Segmenter(engines[0].bundle, chosen, engines=list(engines))
    report = segmenter.segment(ArraySource(volume), out)
    assert report is not None
    files = [tifffile.imread(path) for path in report.outputs]
    files += [tifffile.imread(path) for path in out.parent.glob(f"{out.stem}*seam*")]
    return files, report


def test_an_answer_that_is_no_number_is_an_error_there_too(
    make_identity_bundle: MakeBundle, tmp_path: Path, cupy: FakeCupy
) -> None:
    assert cupy
    bundle = make_identity_bundle(tile=(8, 16, 24), overlap=(0.25, 0.25, 0.25))

    def overflowing(batch: Any) -> Any:
        answer = wave(batch)
        answer[0, 0, 3, 3, 3] = np.nan
        return answer

    with pytest.raises(EngineError, match=r"NaN or infinity in the tile at voxel \[0"):
        segmented([GpuNumpyEngine(bundle, overflowing)], VOLUME, tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        ("uint8", {"normalisation": Normalisation("background-asinh", 90.0, 20.0)}),
        ("uint16", {}),
        ("int16", {}),
        ("float32", {}),
        ("uint16", {"seam_map": True, "flips": True}),
        ("uint16", {"normalisation": Normalisation("unit", 0, 2000)}),
        (
            "uint16",
            {"skip": SkipSettings(limit_sigma=8.27, audit_share=0.5, limit_lost=1e3)},
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
def test_the_bits_are_those_of_the_host(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    cupy: FakeCupy,
    dtype: str,
    settings: dict[str, Any],
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 24), overlap=(0.25, 0.25, 0.25))
    volume = (VOLUME // 16 if dtype == "uint8" else VOLUME).astype(dtype)
    (tmp_path / "host").mkdir()
    (tmp_path / "gpu").mkdir()
    host, first = segmented(
        [NumpyEngine(bundle, wave, batch=3)],
        volume,
        tmp_path / "host/a.tif",
        **settings,
    )
    gpu, second = segmented(
        [GpuNumpyEngine(bundle, wave, batch=3)],
        volume,
        tmp_path / "gpu/a.tif",
        **settings,
    )
    assert len(host) == 2 + ("seam_map" in settings)
    for a, b in zip(host, gpu, strict=True):
        assert np.array_equal(a, b)
        assert len(np.unique(a)) > 1
    assert cupy.synchronised > 100
    assert first.provenance["tiles_on"] == "host"
    assert second.provenance["tiles_on"] == "cuda:0"
    assert first.skip == second.skip
    if first.skip is not None:
        assert first.skip["audited"] > 5
        assert first.skip["audited"] < first.skip["skipped"] < first.skip["tiles"]


def test_several_gpus_have_the_host_in_common(
    make_identity_bundle: MakeBundle, tmp_path: Path, cupy: FakeCupy
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 24))
    one, _ = segmented([NumpyEngine(bundle, wave)], VOLUME, tmp_path / "one.tif")
    engines = [GpuNumpyEngine(bundle, wave) for _ in range(2)]
    two, report = segmented(engines, VOLUME, tmp_path / "two.tif")
    assert report.provenance["tiles_on"] == "host"
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def opened(bundle: Bundle, blend_on: PlaceName = "auto") -> Engine:
    """As a run opens an engine: through what decides where its tiles lie."""

    def make(bundle: Bundle, settings: EngineSettings) -> Engine:
        return GpuNumpyEngine(bundle, wave)

    adapter = Adapter("fake", "cuda", lambda bundle, settings: None, make)
    settings = EngineSettings(device="cuda:0", blend_on=blend_on)
    (engine,) = open_engines(bundle, [Choice(adapter, settings, ())])
    return engine


def no_import() -> None:
    raise ImportError("libnvrtc.so.13: cannot open shared object file")


def other_rounding(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.spoil = lambda source: source.replace("255.0f", "254.9f", 1)


def not_to_import(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_import_cupy", no_import)


def old_driver(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*parts: str) -> None:
        raise fake.cuda.runtime.CUDARuntimeError("driver version is insufficient")

    monkeypatch.setattr(fake, "ElementwiseKernel", refuse)
    _cuda._kernels.cache_clear()


def no_compiler(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """CuPy without its `ctk`: its own loader's error, a RuntimeError, at a call."""

    def refuse(*parts: Any) -> None:
        raise RuntimeError('Failure finding "libnvrtc.so.13 or libnvrtc.so.12"')

    monkeypatch.setattr(fake, "_compiled", refuse)


def blind_to_nan(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CudaArrays, "finite", lambda self, array: True)


def no_memory(fake: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.room = 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            other_rounding,
            r"cuda:0 does not give the bits .*--blend-on host",
        ),
        (not_to_import, r"CuPy does not work here: .*libnvrtc.*--blend-on host"),
        (old_driver, r"CuPy does not work here: cuda:0 failed .*insufficient"),
        (no_compiler, r"CuPy does not work here: .*libnvrtc.*--blend-on host"),
        (blind_to_nan, r"cuda:0 does not give the bits .*--blend-on host"),
        (no_memory, "cuda:0 has no memory left for tiles"),
    ],
)
def test_where_cupy_does_not_work_tiles_stay_on_the_host_and_it_is_said(
    make_identity_bundle: MakeBundle,
    cupy: FakeCupy,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[FakeCupy, pytest.MonkeyPatch], None],
    says: str,
) -> None:
    bundle = make_identity_bundle()
    assert opened(bundle).resident
    spoil(cupy, monkeypatch)
    engine = opened(bundle)
    assert not engine.resident
    (note,) = engine.notes
    assert re.search(f"tiles on the GPU: .*{says}", note)
    with pytest.raises((DeviceError, GpuMemoryError), match=says):
        opened(bundle, "gpu")


def test_memory_that_runs_out_on_the_way_is_a_sentence(
    make_identity_bundle: MakeBundle, tmp_path: Path, cupy: FakeCupy
) -> None:
    engine = GpuNumpyEngine(make_identity_bundle(tile=(8, 16, 24)), wave)
    cupy.room = 4
    with pytest.raises(GpuMemoryError, match=r"no memory left .*smaller --batch"):
        segmented([engine], VOLUME, tmp_path / "out.tif")


def test_a_live_stream_of_it_is_the_finished_file(
    make_identity_bundle: MakeBundle, tmp_path: Path, cupy: FakeCupy
) -> None:
    """And nothing is taken from the GPU once it is open."""
    bundle = make_identity_bundle(tile=(8, 16, 24))
    files, _ = segmented([NumpyEngine(bundle, wave)], VOLUME, tmp_path / "whole.tif")
    settings = LiveSettings(normalisation=ASINH, timeout_s=60)
    shape = VOLUME.shape[1:]
    with LiveSegmenter(
        bundle, shape, "uint16", settings, engines=[GpuNumpyEngine(bundle, wave)]
    ) as live:
        # Results are not made of arrays of the GPU; the table is the one thing left.
        cupy.room = 0
        feeder = threading.Thread(
            target=lambda: [*map(live.push, VOLUME), live.finish()]
        )
        feeder.start()
        found = [plane.voxels for plane in live.planes()]
        feeder.join()
    assert np.array_equal(np.stack(found), files[0])


def test_several_streams_share_one(
    make_identity_bundle: MakeBundle, tmp_path: Path, cupy: FakeCupy
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 24))
    engine = SharedEngine(GpuNumpyEngine(bundle, wave), threading.Lock())
    host, _ = segmented([NumpyEngine(bundle, wave)], VOLUME, tmp_path / "host.tif")
    shared, report = segmented([engine], VOLUME, tmp_path / "shared.tif")
    assert report.provenance["tiles_on"] == "cuda:0"
    assert all(np.array_equal(a, b) for a, b in zip(host, shared, strict=True))


def test_a_result_is_run_again_where_one_likes(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    """`--blend-on` names no other engine than the one that made it."""
    bundle = make_identity_bundle(tile=(8, 16, 16))
    tifffile.imwrite(tmp_path / "in.tif", VOLUME)
    asked = EngineSettings(engine="onnxruntime", device="cpu", batch=3)
    chosen = SegmentSettings(engine=asked, normalisation=ASINH)
    with (
        Segmenter(bundle, chosen) as segmenter,
        open_volume(tmp_path / "in.tif") as source,
    ):
        segmenter.segment(source, tmp_path / "out.tif")
    again = reproduce(
        tmp_path / "out.tif", bundle, None, engine=EngineSettings(blend_on="host")
    )
    assert again.same_engine
    assert again.differing == 0


def test_a_small_gpu_cuts_the_planes_and_a_tiny_one_is_refused(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    cupy: FakeCupy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The sums of a region lie on the GPU: its memory decides, too, how large it is."""
    monkeypatch.setattr(_run, "default_grain", lambda *of: (64, 64, 40))
    bundle = make_identity_bundle(tile=(8, 16, 16))
    volume = np.random.default_rng(0).integers(0, 4000, (20, 300, 40), np.uint16)
    engine = GpuNumpyEngine(bundle, wave)
    whole, once = segmented([engine], volume, tmp_path / "whole.tif")
    cupy.cuda.Device.mem_info = (300_000, 10**9)
    cut, twice = segmented([engine], volume, tmp_path / "cut.tif")
    assert all(np.array_equal(a, b) for a, b in zip(whole, cut, strict=True))
    assert twice.tiles_run > once.tiles_run
    cupy.cuda.Device.mem_info = (1000, 10**9)
    asked = EngineSettings(blend_on="gpu")
    says = r"of the GPU, which has 0.00 GB left"
    with pytest.raises(MemoryCapError, match=says):
        segmented([engine], volume, tmp_path / "none.tif", engine=asked)
    left, report = segmented([engine], volume, tmp_path / "left.tif")
    assert all(np.array_equal(a, b) for a, b in zip(whole, left, strict=True))
    assert report.provenance["tiles_on"] == "host"
    assert re.search(f"tiles are blended on the host: .*{says}", report.warnings[0])


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (EngineSettings(device="cpu", blend_on="gpu"), "an engine there, not on cpu"),
        (EngineSettings(device="cuda:0,cuda:1", blend_on="gpu"), "no memory in common"),
    ],
)
def test_a_gpu_to_blend_on_that_is_not_there_is_refused(
    make_identity_bundle: MakeBundle, asked: EngineSettings, match: str
) -> None:
    with pytest.raises((DeviceError, SettingsError), match=match):
        choose_engines(make_identity_bundle(), asked)


def both_ways(engine: OnnxRuntimeEngine) -> tuple[Any, Any]:
    """Its answer to a batch of the host, and to the same batch on the GPU."""
    batch = np.random.default_rng(0).random(engine.input_shape, np.float32)
    wanted = np.empty(engine.output_shape, np.float32)
    engine.infer(batch, wanted)
    engine.resident = True
    arrays = engine.arrays()
    out = arrays.zeros(engine.output_shape)
    engine.infer_resident(arrays.keep(batch), out, arrays)
    return wanted, arrays.fetch(out)


def test_onnxruntime_reads_and_writes_where_the_tiles_lie(
    make_identity_bundle: MakeBundle, cupy: FakeCupy
) -> None:
    """Its session of the CPU, bound to addresses as one of CUDA would be."""
    bundle = make_identity_bundle(tile=(8, 16, 16))
    with OnnxRuntimeEngine(bundle, EngineSettings(device="cpu", batch=2)) as engine:
        assert not engine.resident
        wanted, found = both_ways(engine)
    assert np.array_equal(found, wanted)
    assert wanted.any()


def test_onnxruntime_in_half_precision_converts_where_the_tiles_lie(
    make_identity_bundle: MakeBundle, cupy: FakeCupy
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    model = onnx.load(bundle.onnx("fp32"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    with OnnxRuntimeEngine(bundle, EngineSettings(device="cpu", batch=2)) as engine:
        engine._session = onnxruntime.InferenceSession(model.SerializeToString())
        engine._half_io = True
        wanted, found = both_ways(engine)
    assert np.array_equal(found, wanted)
    assert np.array_equal(wanted, wanted.astype(np.float16))
    assert wanted.any()


@pytest.mark.parametrize("edge", ["FLOAT", "HALF"])
def test_tensorrt_reads_and_writes_where_the_tiles_lie(
    cupy: FakeCupy, edge: str
) -> None:
    """And goes back to its own memory for a batch of the host's."""
    script = Script(edge=edge, network=lambda x: x * x.dtype.type(0.5))
    trt = FakeTensorRt(VERSIONS[-1], script)
    device = Device(0, FakeDriver())
    batch = np.random.default_rng(0).random((2, 1, 4, 8, 8), np.float32)
    session = TensorRtSession(trt, b"a plan", device, batch.shape, batch.shape)
    wanted, again = np.empty_like(batch), np.empty_like(batch)
    session.infer(batch, wanted)
    arrays = CudaArrays(0)
    voxels, out = arrays.keep(batch), arrays.zeros(batch.shape)
    session.infer_resident(voxels, out, arrays)
    assert np.array_equal(arrays.fetch(out), wanted)
    assert np.allclose(wanted, batch / 2, atol=1e-3)
    session.infer(1 - batch, again)
    assert np.allclose(again, (1 - batch) / 2, atol=1e-3)
    assert np.array_equal(arrays.fetch(out), wanted)
    session.close()
    device.close()


def test_auto_takes_the_gpu_where_cupy_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "why_not", lambda: None)
    assert _resident.stays_resident(EngineSettings(device="cuda:0"))
    assert not _resident.stays_resident(EngineSettings(blend_on="host"))
    monkeypatch.setattr(_cuda, "why_not", lambda: "not installed")
    assert not _resident.stays_resident(EngineSettings(device="cuda:0"))
    asked = EngineSettings(device="cuda:0", blend_on="gpu")
    assert _onnxruntime.why_not_resident(asked) == "not installed"
