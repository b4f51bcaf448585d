"""Each fault has a sentence and the command that cures it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from neurodeploy.cli._doctor import doctor
from neurodeploy_export import Environment, Finding, diagnose
from neurodeploy_runtime.engines._cuda_driver import Gpu

GPU = Gpu(0, "NVIDIA H200", "9.0", 141 << 30)

#: A machine with nothing wrong.
GOOD = Environment(
    python="3.11.7",
    system="Linux x86_64",
    packages={
        "neurodeploy": "0.1.0",
        "onnxruntime-gpu": "1.31.1",
        "openvino": "2026.4.1",
        "tensorrt": "10.16.1.11",
        "nvidia-cudnn-cu13": "9.26.0.51",
    },
    driver="580.65",
    cuda="13.2",
    gpus=(GPU,),
    providers=(
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ),
)


def faults(env: Environment) -> list[Finding]:
    return [f for f in diagnose(env) if f.state == "fault"]


def test_a_good_machine_has_no_fault() -> None:
    assert not faults(GOOD)
    said = " ".join(f.text for f in diagnose(GOOD))
    for part in ("NVIDIA H200", "9.0", "580.65", "CUDA 13.2", "cuDNN 9.26", "10.16"):
        assert part in said


def test_a_machine_without_a_gpu_is_no_fault() -> None:
    env = replace(GOOD, driver=None, cuda=None, gpus=())
    assert not faults(env)
    driver = next(f for f in diagnose(env) if f.topic == "driver")
    assert driver.state == "note"
    assert "on the CPU" in driver.text


def packages(**changes: str | None) -> dict[str, str]:
    """The good machine's, changed; None takes one away, _ stands for -."""
    renamed = {k.replace("_", "-"): v for k, v in changes.items()}
    found = {**GOOD.packages, **renamed}
    return {k: v for k, v in found.items() if v is not None}


@pytest.mark.parametrize(
    ("change", "topic", "says", "cure"),
    [
        (
            {"packages": packages(onnxruntime="1.31.0")},
            "onnxruntime",
            "onnxruntime 1.31.0 and onnxruntime-gpu 1.31.1 share one folder",
            "pip uninstall -y onnxruntime onnxruntime-gpu onnxruntime-openvino && "
            "pip install onnxruntime-gpu",
        ),
        (
            {"packages": packages(onnxruntime_gpu=None)},
            "onnxruntime",
            "not installed",
            "pip install onnxruntime-gpu",
        ),
        (
            {"import_errors": {"onnxruntime": "ImportError: libfoo.so"}},
            "onnxruntime",
            "onnxruntime-gpu 1.31.1 does not load: ImportError: libfoo.so",
            "pip install --force-reinstall onnxruntime-gpu",
        ),
        (
            {"providers": ("CPUExecutionProvider",)},
            "onnxruntime",
            "no CUDA provider",
            "pip install onnxruntime-gpu",
        ),
        (
            {"no_cuda": "Failed to load libcurand.so.10"},
            "onnxruntime",
            "CUDA provider does not work: Failed to load libcurand.so.10",
            'pip install "neurodeploy[cuda]"',
        ),
        (
            {"packages": packages(nvidia_cudnn_cu13="9.12.0.46")},
            "cudnn",
            "wrong 3-D convolutions in TF32",
            'pip install -U "nvidia-cudnn-cu13>=9.16"',
        ),
        (
            {"packages": packages(tensorrt="10.9.0.34")},
            "tensorrt",
            "older than 10.13",
            'pip install -U "tensorrt>=10.13"',
        ),
        (
            {"import_errors": {"tensorrt": "ImportError: libnvinfer.so.10"}},
            "tensorrt",
            "does not load",
            "pip install --force-reinstall tensorrt",
        ),
        (
            {"gpus": ()},
            "driver",
            "installed and shows no GPU",
            "--gpus all",
        ),
        (
            {"import_errors": {"openvino": "OSError: no"}},
            "openvino",
            "does not load",
            "pip install --force-reinstall openvino",
        ),
    ],
)
def test_each_fault_is_named_with_its_cure(
    change: dict[str, Any], topic: str, says: str, cure: str
) -> None:
    (found,) = faults(replace(GOOD, **change))
    assert found.topic == topic
    assert says in found.text
    assert found.cure is not None
    assert cure in found.cure


@pytest.mark.parametrize(
    ("version", "broken"),
    [
        ("9.10.1.4", False),
        ("9.10.2.21", True),
        ("9.15.1.9", True),
        ("9.16.0.29", False),
    ],
)
def test_the_range_of_broken_cudnn_is_exact(version: str, broken: bool) -> None:
    env = replace(GOOD, packages=packages(nvidia_cudnn_cu13=version))
    assert bool(faults(env)) == broken


def test_tensorrt_11_with_onnxruntimes_provider_is_explained() -> None:
    env = replace(GOOD, packages=packages(tensorrt="11.4.0.106"))
    assert not faults(env)
    notes = [f.text for f in diagnose(env) if f.topic == "tensorrt"]
    assert any("needs libnvinfer 10" in text for text in notes)


def test_the_command_reports_this_machine() -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    findings = json.loads(result.output)
    assert {"python", "onnxruntime", "tensorrt", "engine"} <= {
        f["topic"] for f in findings
    }
    assert result.exit_code == int(any(f["state"] == "fault" for f in findings))
    for finding in findings:
        assert finding["cure"] or finding["state"] != "fault"


def test_a_fault_is_exit_code_1(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process ends, which the other tests do not ask: it was 0."""
    for env, code in (
        (GOOD, 0),
        (replace(GOOD, packages=packages(onnxruntime="1.31.0")), 1),
    ):
        monkeypatch.setattr("neurodeploy_export.look", lambda env=env: env)
        assert run("doctor").code == code
