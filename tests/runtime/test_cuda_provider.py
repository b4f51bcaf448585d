"""ONNX Runtime's CUDA provider: it works, or it is said why not. No GPU is needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest

from neurodeploy_runtime import (
    Bundle,
    DeviceError,
    EngineError,
    EngineSettings,
    choose_engine,
)
from neurodeploy_runtime._errors import GpuMemoryError
from neurodeploy_runtime.engines import _onnxruntime
from neurodeploy_runtime.engines._base import PrecisionName
from neurodeploy_runtime.engines._onnxruntime import OnnxRuntimeEngine
from neurodeploy_runtime.measure import candidates

MakeBundle = Callable[..., Bundle]
MISSING = "libcurand.so.10: cannot open shared object file"


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with one GPU; what was found of its libraries is forgotten."""
    monkeypatch.setattr(_onnxruntime, "cuda_devices", lambda: 1)
    found = _onnxruntime.load_cuda, _onnxruntime.why_no_cuda
    for kept in found:
        kept.cache_clear()
    yield
    for kept in found:
        kept.cache_clear()


def preload(*lines: str) -> Callable[[], None]:
    """As ONNX Runtime's: what does not load is printed, and nothing is raised."""
    return lambda: print("\n".join(lines))


def test_a_gpu_without_the_libraries_of_cuda_is_passed_over_with_the_reason(
    make_identity_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = f"Failed to load libcurand.so.10: {MISSING}", "Please follow https://…"
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload(*lines))
    choice = choose_engine(make_identity_bundle(), EngineSettings())
    assert choice.settings.device == "cpu"
    assert any(MISSING in reason for reason in choice.passed_over)
    with pytest.raises(DeviceError, match=r"neurodeploy\[cuda\]"):
        choose_engine(make_identity_bundle(), EngineSettings(device="cuda:0"))
    assert capsys.readouterr().out == ""


def test_libraries_that_the_loader_finds_elsewhere_are_as_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = (f"Failed to load nvidia/cu13/lib/libcurand.so.10: {MISSING}",)
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload(*lines))
    assert _onnxruntime.load_cuda() is None


@pytest.mark.skipif(_onnxruntime.cuda_devices() > 0, reason="a GPU is here")
def test_a_session_that_would_run_on_the_cpu_is_a_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its own libraries are there, and it does not load (an old driver, say)."""
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    assert _onnxruntime.why_no_cuda(0)


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("CUDA failure 2: out of memory", None),
        ("CUDA failure 35: an old driver", "CUDA failure 35: an old driver"),
    ],
)
def test_a_gpu_that_is_full_works(
    monkeypatch: pytest.MonkeyPatch, says: str, reason: str | None
) -> None:
    def refuse(model: bytes, **asked: Any) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    assert _onnxruntime.why_no_cuda(0) == reason


def test_what_is_tried_is_a_convolution() -> None:
    session = onnxruntime.InferenceSession(
        _onnxruntime._CONVOLUTION, providers=["CPUExecutionProvider"]
    )
    (answer,) = session.run(None, {"x": np.full((1, 1, 1, 1, 1), 3, np.float32)})
    assert answer.ravel() == [3]


def test_a_gpu_that_the_driver_does_not_count_is_refused(
    make_identity_bundle: MakeBundle,
) -> None:
    with pytest.raises(DeviceError, match="no NVIDIA GPU 1 was found"):
        choose_engine(make_identity_bundle(), EngineSettings(device="cuda:1"))


def test_a_precision_that_the_bundle_has_not_is_no_candidate(
    make_identity_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A benchmark of all engines ended at the first that could not be loaded."""
    monkeypatch.setattr(_onnxruntime, "why_no_cuda", lambda index: None)
    asked = EngineSettings("onnxruntime", "cuda:0")
    found = candidates(make_identity_bundle(), asked)
    assert [c.settings.precision for c in found] == ["fp32", "fp16"]
    assert found[0].why_not is None
    assert "has no model.fp16.onnx" in (found[1].why_not or "")


@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("CUDA failure 2: out of memory ; GPU=0", GpuMemoryError),
        ("CUDA failure 35: driver version is insufficient", EngineError),
    ],
)
def test_a_network_that_a_gpu_does_not_take_is_not_run_on_the_cpu(
    make_identity_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    says: str,
    kind: type[EngineError],
) -> None:
    def refuse(path: str, **asked: Any) -> None:
        assert asked["enable_fallback"] == 0
        raise RuntimeError(says)

    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match=says) as caught:
        OnnxRuntimeEngine(make_identity_bundle(), EngineSettings(device="cuda:0"))
    assert type(caught.value) is kind


@pytest.mark.parametrize(("precision", "tf32"), [("fp32", "0"), ("fp16", "1")])
def test_half_runs_on_tensor_cores_and_fp32_is_fp32(
    make_identity_bundle: MakeBundle,
    monkeypatch: pytest.MonkeyPatch,
    precision: PrecisionName,
    tf32: str,
) -> None:
    asked: dict[str, Any] = {}

    def refuse(path: str, **more: Any) -> None:
        asked.update(more)
        raise RuntimeError("seen")

    bundle = make_identity_bundle()
    monkeypatch.setattr(Bundle, "onnx", lambda self, precision: bundle.path)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(EngineError, match="seen"):
        OnnxRuntimeEngine(bundle, EngineSettings("onnxruntime", "cuda:1", precision))
    ((name, options),) = asked["providers"]
    assert name == "CUDAExecutionProvider"
    assert (options["device_id"], options["use_tf32"]) == ("1", tf32)
    assert asked["sess_options"].use_deterministic_compute


def test_the_suite_is_held_to_what_a_cpu_says(request: pytest.FixtureRequest) -> None:
    """On a machine with a GPU `auto` would take it, and `build` run what it built."""
    words = getattr(request.config, "workerinput", {}).get("mainargv", sys.argv)
    if any("gpu" in word for word in words[1:]):
        pytest.skip("tests for a GPU are asked for")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
