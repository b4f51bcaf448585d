"""TensorRT engines: which file fits, what is not trusted, and how one runs.

No GPU: the library and the driver are fakes; the library's names and arities are the
real ones of TensorRT 10 and 11.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import VERSIONS, FakeDriver, FakeTensorRt, Script

from neurodeploy_runtime import (
    Bundle,
    BundleError,
    DeviceError,
    EngineError,
    EngineSettings,
    NeurodeployError,
    choose_engine,
    load_bundle,
)
from neurodeploy_runtime.engines import _cuda_driver, _tensorrt
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._cuda_driver import Device, Gpu
from neurodeploy_runtime.engines._tensorrt_session import TensorRtSession

TILE = (4, 8, 8)
GPU = Gpu(0, "Fake GPU", "8.9", 8 << 30)


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> FakeTensorRt:
    return FakeTensorRt(request.param, Script(network=lambda x: x * 0.5))


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def bundle(tmp_path: Path, make_identity_bundle: Callable[..., Bundle]) -> Bundle:
    made = make_identity_bundle(tile=TILE)
    shutil.copytree(made.path, tmp_path / "bundle")
    return load_bundle(tmp_path / "bundle")


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRt, driver: FakeDriver
) -> FakeTensorRt:
    """A machine with the fake library and the fake GPU."""
    monkeypatch.setattr(plans, "libraries", lambda: ("tensorrt",))
    monkeypatch.setattr(plans, "import_library", lambda name: trt)
    monkeypatch.setattr(_tensorrt, "gpus", lambda: [GPU])
    monkeypatch.setattr(_cuda_driver, "load_driver", lambda: driver)
    return trt


def identity_of(bundle: Bundle, **changes: Any) -> plans.PlanIdentity:
    identity = plans.PlanIdentity(
        onnx=plans.onnx_hashes(bundle.files, "fp32"),
        precision="fp32",
        library="tensorrt",
        version="10.16.1.11",
        gpu=GPU.name,
        compute_capability=GPU.compute_capability,
        tile=TILE,
        max_batch=2,
    )
    return replace(identity, **changes)


def put_engine(bundle: Bundle, **changes: Any) -> Path:
    """A bundle's engine file, as a build leaves it."""
    folder = bundle.path / plans.ENGINES
    folder.mkdir(exist_ok=True)
    part = folder / "part"
    part.write_bytes(b"a plan")
    identity = identity_of(bundle, **changes)
    plans.write_plan(folder, identity, part, {"engine_half_share": 0.5})
    return folder / f"{identity.key}.engine"


SETTINGS = EngineSettings(engine="tensorrt", device="cuda:0", batch=2)


def test_an_engine_that_fits_is_chosen_and_runs(
    bundle: Bundle, here: FakeTensorRt, driver: FakeDriver
) -> None:
    put_engine(bundle, version=here.__version__)
    choice = choose_engine(bundle, SETTINGS)
    assert choice.adapter.name == "tensorrt"
    batch = np.random.default_rng(0).random((2, 1, *TILE), np.float32)
    out = np.empty_like(batch)
    with choice.adapter.open(bundle, choice.settings) as engine:
        assert engine.input_shape == batch.shape
        engine.infer(batch, out)
        assert np.array_equal(out, batch * np.float32(0.5))
        assert engine.describe()["gpu"] == "Fake GPU"
        assert engine.describe()["engine_half_share"] == 0.5
        assert driver.blocks
    assert not driver.blocks
    assert driver.current is None


def test_of_two_that_fit_the_narrower_one_takes_less_memory(
    bundle: Bundle, here: FakeTensorRt
) -> None:
    version = here.__version__
    wide = put_engine(bundle, version=version, max_batch=8)
    narrow = put_engine(bundle, version=version, max_batch=2)
    for batch, file in ((2, narrow), (3, wide)):
        with _tensorrt.TensorRtEngine(bundle, replace(SETTINGS, batch=batch)) as engine:
            assert engine.describe()["key"] == file.stem
            assert engine.batch == batch


def test_half_at_the_edges_is_converted_on_the_host(
    trt: FakeTensorRt, driver: FakeDriver
) -> None:
    trt.script.edge = "HALF"
    batch = np.linspace(0, 1, 2 * 256, dtype=np.float32).reshape(2, 1, *TILE)
    out = np.empty_like(batch)
    device = Device(0, driver)
    session = TensorRtSession(trt, b"a plan", device, batch.shape, batch.shape)
    session.infer(batch, out)
    wanted = batch.astype(np.float16) * np.float16(0.5)
    assert np.array_equal(out, wanted.astype(np.float32))
    session.close()
    device.close()
    device.close()
    assert not driver.blocks


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"loads": False}, "refuses the engine .something is wrong.*neurodeploy build"),
        ({"context": False}, r"no memory for the engine on Fake GPU .*--max-batch"),
        ({"shape_ok": False}, "does not take .*--max-batch"),
        ({"output_shape": (1, 2)}, "the engine gives .1, 2."),
    ],
)
def test_each_refusal_is_a_sentence_and_frees_the_gpu(
    bundle: Bundle,
    here: FakeTensorRt,
    driver: FakeDriver,
    change: dict[str, Any],
    says: str,
) -> None:
    put_engine(bundle, version=here.__version__)
    for name, value in change.items():
        setattr(here.script, name, value)
    with pytest.raises(EngineError, match=says):
        _tensorrt.TensorRtEngine(bundle, SETTINGS)
    assert not driver.blocks
    assert driver.current is None


def test_an_error_of_the_driver_or_the_run_is_raised(
    bundle: Bundle, here: FakeTensorRt, driver: FakeDriver
) -> None:
    put_engine(bundle, version=here.__version__)
    batch = np.zeros((2, 1, *TILE), np.float32)
    with _tensorrt.TensorRtEngine(bundle, SETTINGS) as engine:
        here.script.run_ok = False
        with pytest.raises(EngineError, match="could not run: something is wrong"):
            engine.infer(batch, batch.copy())
        here.script.run_ok = True
        driver.fails["cuStreamSynchronize"] = 700
        with pytest.raises(EngineError, match=r"finish its work: CUDA_ERROR_FAKE .700"):
            engine.infer(batch, batch.copy())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "10.13.0.1"}, "built by tensorrt 10.13.0.1, here is"),
        ({"gpu": "Other GPU"}, "it was built for Other GPU, here is Fake GPU"),
        ({"compute_capability": "9.0"}, "compute capability 9.0, Fake GPU has 8.9"),
        ({"onnx": {"model.onnx": "0" * 64}}, "built from another ONNX file"),
        ({"max_batch": 1}, "made for batches up to 1"),
        ({"library": "tensorrt_rtx"}, "built by tensorrt_rtx, not tensorrt"),
    ],
)
def test_an_engine_that_does_not_fit_is_not_used_and_the_reason_is_given(
    bundle: Bundle, here: FakeTensorRt, changes: dict[str, Any], says: str
) -> None:
    put_engine(bundle, **{"version": here.__version__, **changes})
    reason = _tensorrt.why_not(bundle, SETTINGS)
    assert reason is not None
    assert says in reason
    assert "neurodeploy build" in reason
    with pytest.raises(DeviceError, match="neurodeploy build"):
        choose_engine(bundle, SETTINGS)


def test_compatibility_options_widen_what_fits(bundle: Bundle) -> None:
    def fits(version: str, here: Gpu, **changes: Any) -> bool:
        identity = identity_of(bundle, **changes)
        onnx = plans.onnx_hashes(bundle.files, "fp32")
        reason = plans.why_unfit(
            identity, onnx=onnx, library=identity.library, version=version, gpu=here
        )
        return reason is None

    same, other = "10.16.1.11", Gpu(0, "B", "8.9", 1)
    newer, older = Gpu(0, "C", "9.0", 1), Gpu(0, "D", "7.5", 1)
    assert fits(same, GPU)
    assert not fits("10.17.0.1", GPU)
    assert fits("10.17.0.1", GPU, version_compatible=True)
    assert not fits("11.4.0.106", GPU, version_compatible=True)
    assert not fits(same, other)
    assert fits(same, other, hardware_compatibility="same_compute_capability")
    assert not fits(same, newer, hardware_compatibility="same_compute_capability")
    assert fits(same, newer, hardware_compatibility="ampere_plus")
    assert not fits(same, older, hardware_compatibility="ampere_plus")
    assert fits(same, GPU, gpu=plans.PORTABLE)
    # TensorRT-RTX is for graphics: an H200 is newer than what it knows, and not in it.
    assert not fits(same, newer, gpu=plans.PORTABLE)


def test_an_engine_truncated_by_one_byte_is_not_loaded(
    bundle: Bundle, here: FakeTensorRt
) -> None:
    """Planted fault."""
    engine = put_engine(bundle, version=here.__version__)
    engine.write_bytes(engine.read_bytes()[:-1])
    with pytest.raises(BundleError, match="has 5 bytes, not 6"):
        _tensorrt.TensorRtEngine(bundle, SETTINGS)
    engine.write_bytes(b"b plan")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        _tensorrt.TensorRtEngine(bundle, SETTINGS)


def test_a_side_car_that_was_edited_is_not_believed(
    bundle: Bundle, here: FakeTensorRt
) -> None:
    engine = put_engine(bundle, version="10.0.0.0")
    sidecar = engine.with_suffix(".json")
    values = json.loads(sidecar.read_text())
    values["identity"]["version"] = here.__version__
    for text in (json.dumps(values), "{}", "[]", "not json", '{"key": 1}'):
        sidecar.write_text(text)
        with pytest.raises(BundleError, match="does not describe an engine"):
            plans.read_record(sidecar)
        assert _tensorrt.why_not(bundle, SETTINGS) is not None


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"version": "1"},
        {"gpu": "x"},
        {"compute_capability": "1.0"},
        {"tile": (8, 8, 8)},
        {"max_batch": 3},
        {"workspace_bytes": 1},
        {"optimisation": 1},
        {"version_compatible": True},
        {"hardware_compatibility": "ampere_plus"},
        {"onnx": {"model.onnx": "1"}},
        {"onnx": {"model.onnx": "", "model.onnx.data": "1"}},
    ],
)
def test_everything_that_an_engine_depends_on_changes_its_key(
    bundle: Bundle, change: dict[str, Any]
) -> None:
    base = identity_of(bundle)
    assert replace(base).key == base.key
    assert replace(base, **change).key != base.key


def test_a_library_that_does_not_load_keeps_no_other_from_serving(
    bundle: Bundle, here: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> FakeTensorRt:
        if name == "tensorrt":
            raise NeurodeployError("tensorrt is installed and does not load: torn")
        return here

    monkeypatch.setattr(plans, "import_library", load)
    assert _tensorrt.why_not(bundle, SETTINGS) == (
        "tensorrt is installed and does not load: torn"
    )
    monkeypatch.setattr(plans, "libraries", lambda: ("tensorrt", "tensorrt_rtx"))
    reason = str(_tensorrt.why_not(bundle, SETTINGS))
    assert "no engine for Fake GPU and tensorrt_rtx: run" in reason
    assert "does not load: torn" in reason
    put_engine(bundle, library="tensorrt_rtx", version=here.__version__)
    assert _tensorrt.why_not(bundle, SETTINGS) is None


def test_without_a_library_or_a_gpu_the_reason_says_so(
    bundle: Bundle, here: FakeTensorRt, monkeypatch: pytest.MonkeyPatch
) -> None:
    bf16 = replace(SETTINGS, precision="bf16")
    assert "fp32 or fp16" in str(_tensorrt.why_not(bundle, bf16))
    monkeypatch.setattr(_tensorrt, "gpus", list)
    assert "no NVIDIA GPU 0" in str(_tensorrt.why_not(bundle, SETTINGS))
    monkeypatch.setattr(plans, "libraries", tuple)
    reason = str(_tensorrt.why_not(bundle, SETTINGS))
    assert 'pip install "neurodeploy[tensorrt]"' in reason


def test_what_a_gpu_holds_is_its_drivers_word(driver: FakeDriver) -> None:
    with Device(0, driver) as device:
        before = device.used_bytes()
        device.allocate(1000)
        assert device.used_bytes() == before + 1000
