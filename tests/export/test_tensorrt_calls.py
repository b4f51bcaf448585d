"""The builder's path holds on TensorRT 10 and 11: names, arities, order, precision."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import CONTEXT, VERSIONS, FakeDriver, FakeTensorRt, Script

from neurodeploy_export import BuildError, PrecisionError, TensorRtMissingError
from neurodeploy_export._build_worker import run_plan, serve
from neurodeploy_export._tensorrt import (
    PlanFacts,
    PlanRequest,
    build_plan,
    half_share_of,
)
from neurodeploy_runtime import CancelledError
from neurodeploy_runtime.engines import _cuda_driver
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._cuda_driver import Device

HALF_LAYERS = (
    '{"Layers": [{"Name": "a", "Outputs": [{"Format/Datatype": "Half NCHW"}]},'
    ' {"Name": "b", "Outputs": [{"Format/Datatype": "Float"}]},'
    ' {"Name": "c", "Outputs": [{"Format/Datatype": "Int32"}]}], "Bindings": ["x"]}'
)


def never() -> bool:
    return False


@pytest.fixture(params=VERSIONS)
def trt(request: pytest.FixtureRequest) -> FakeTensorRt:
    return FakeTensorRt(request.param, Script(inspector=HALF_LAYERS))


@pytest.fixture
def asked(tmp_path: Path) -> PlanRequest:
    return PlanRequest(
        onnx=str(tmp_path / "model.fp16.onnx"),
        out=str(tmp_path / "out.plan"),
        timing_cache=str(tmp_path / "cache.timing"),
        tile=(8, 16, 16),
        max_batch=4,
        precision="fp16",
        workspace_bytes=1 << 30,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
    )


def build(trt: Any, request: PlanRequest) -> PlanFacts:
    return build_plan(trt, request, lambda phase, share: None, never)


def test_every_call_exists_in_the_real_bindings(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    facts = build(trt, asked)
    assert Path(asked.out).read_bytes() == b"a plan"
    did = trt.script.asked
    name, low, best, high = did["profile"]
    assert (name, low, best, high) == (
        "voxels",
        (1, 1, 8, 16, 16),
        (4, 1, 8, 16, 16),
        (4, 1, 8, 16, 16),
    )
    assert did["cleared"] == ["TF32"]
    assert did["set"] == ["VERSION_COMPATIBLE"]
    assert did["workspace"] == 1 << 30
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert did["config"]["hardware_compatibility_level"] == level
    assert (facts.network_half_share, facts.engine_half_share) == (1.0, 0.5)
    assert (facts.io, facts.layers, facts.engine_unread) == ("fp32", 2, None)


def test_the_table_is_strict() -> None:
    """What TensorRT 11 has lost is an error here too, and so is a wrong arity."""
    ten, eleven = (FakeTensorRt(v) for v in VERSIONS)
    assert ten.BuilderFlag.FP16 is not None
    with pytest.raises(AttributeError):
        _ = eleven.BuilderFlag.FP16
    log = eleven.ILogger()
    builder = eleven.Builder(log)
    config = builder.create_builder_config()
    with pytest.raises(TypeError, match="not 1"):
        config.set_timing_cache(b"")
    with pytest.raises(AttributeError, match="no platform_has_fast_fp16"):
        _ = builder.platform_has_fast_fp16
    with pytest.raises(AttributeError, match="cannot be set"):
        config.num_optimization_profiles = 3


def test_the_timing_cache_is_kept_and_one_that_does_not_fit_is_dropped(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    build(trt, asked)
    assert Path(asked.timing_cache).read_bytes() == b"+new"
    build(trt, asked)
    assert trt.script.asked["caches"] == [b"", b"+new"]
    trt.script.accepts_old_cache = False
    build(trt, asked)
    assert trt.script.asked["caches"][-1] == b""
    assert Path(asked.timing_cache).read_bytes() == b"+new"
    trt.script.accepts_old_cache = True
    Path(asked.timing_cache).write_bytes(b"damaged")
    build(trt, asked)
    assert Path(asked.timing_cache).read_bytes() == b"+new"


def test_fp16_asked_and_an_fp32_graph_given_is_a_failure(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    """Planted fault: an FP32 graph passed off as fp16."""
    trt.script.layers = [("CONVOLUTION", "FLOAT"), ("ELEMENTWISE", "HALF")]
    with pytest.raises(PrecisionError, match="0% of its convolutions"):
        build(trt, asked)
    assert not Path(asked.out).exists()
    build(trt, replace(asked, precision="fp32"))


def test_fp16_asked_and_an_fp32_engine_built_is_a_failure(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    """Planted fault: TensorRT #3160, where the builder ignores what was asked."""
    trt.script.inspector = HALF_LAYERS.replace("Half", "Float")
    with pytest.raises(PrecisionError, match="built an FP32 engine"):
        build(trt, asked)
    assert not Path(asked.out).exists()


def test_an_engine_that_cannot_be_read_back_is_said_to_be_so(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    trt.script.loads = False
    facts = build(trt, asked)
    assert facts.engine_half_share is None
    assert facts.engine_unread is not None
    assert "something is wrong" in facts.engine_unread
    trt.script.loads, trt.script.inspector = True, '{"Layers": ["a", "b"]}'
    assert build(trt, asked).engine_unread == "the inspector names no layer's precision"


def test_the_parsers_error_names_node_and_operator(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    trt.script.parser_error = ("decoder.up/ConvTranspose", "ConvTranspose", "no BF16")
    with pytest.raises(BuildError) as caught:
        build(trt, asked)
    assert "'decoder.up/ConvTranspose' (ConvTranspose): no BF16" in str(caught.value)


def test_each_refusal_is_a_sentence(trt: FakeTensorRt, asked: PlanRequest) -> None:
    trt.script.profile_index = -1
    with pytest.raises(BuildError, match="refuses the profile"):
        build(trt, asked)
    trt.script.profile_index, trt.script.plan = 0, None
    with pytest.raises(BuildError, match="something is wrong"):
        build(trt, asked)
    trt.script.builder_error = "pybind11::init(): factory function returned nullptr"
    with pytest.raises(TensorRtMissingError, match="needs an NVIDIA driver"):
        build(trt, asked)


def test_cancelling_stops_the_build(trt: FakeTensorRt, asked: PlanRequest) -> None:
    told: list[tuple[str, float]] = []

    def report(phase: str, share: float) -> None:
        told.append((phase, share))

    with pytest.raises(CancelledError):
        build_plan(trt, asked, report, lambda: len(told) > 2)
    assert told[-1] == ("Building engine", 2 / 3)
    assert not Path(asked.out).exists()


def test_an_error_in_the_report_reaches_the_caller(
    trt: FakeTensorRt, asked: PlanRequest
) -> None:
    def report(phase: str, share: float) -> None:
        raise BrokenPipeError("the terminal went away")

    with pytest.raises(BrokenPipeError, match="terminal"):
        build_plan(trt, asked, report, never)


def test_an_engine_is_run_on_the_golden_tiles(
    trt: FakeTensorRt, tmp_path: Path
) -> None:
    trt.script.network = lambda x: x * 0.25
    voxels = np.random.default_rng(1).random((3, 1, 4, 8, 8), np.float32)
    np.savez(tmp_path / "golden.npz", voxels=voxels, probability=voxels)
    (tmp_path / "plan").write_bytes(b"a plan")
    asked = {
        "engine": str(tmp_path / "plan"),
        "golden": str(tmp_path / "golden.npz"),
        "answers": str(tmp_path / "answers.npy"),
        "host_code": True,
        "batch": 2,
    }
    driver = FakeDriver()
    with Device(0, driver) as device:
        ran = run_plan(trt, asked, device)
    assert ran["gpu"] == "Fake GPU"
    # In whole batches: the last one begins again with the first tile.
    expected = voxels[[0, 1, 2, 0]] * 0.25
    assert np.array_equal(np.load(tmp_path / "answers.npy"), expected)
    assert not driver.blocks


@pytest.mark.parametrize("gpu", [None, 0, 1])
def test_an_engine_is_built_and_loaded_on_the_gpu_that_was_asked_for(
    trt: FakeTensorRt, asked: PlanRequest, monkeypatch: pytest.MonkeyPatch, gpu: Any
) -> None:
    """TensorRT takes the GPU that is current on the thread, and GPU 0 otherwise."""
    driver = FakeDriver()
    seen: list[Any] = []
    build_it = trt.Builder_build_serialized_network
    load_it = trt.Runtime_deserialize_cuda_engine
    monkeypatch.setattr(
        trt,
        "Builder_build_serialized_network",
        lambda *a: (seen.append(driver.current), build_it(*a))[1],
    )
    monkeypatch.setattr(
        trt,
        "Runtime_deserialize_cuda_engine",
        lambda *a: (seen.append(driver.current), load_it(*a))[1],
    )
    monkeypatch.setattr(plans, "import_library", lambda name: trt)
    monkeypatch.setattr(_cuda_driver, "load_driver", lambda: driver)
    request = {"library": "tensorrt", "do": "build", "request": asdict(asked)}
    serve(request | {"gpu": gpu}, lambda **message: None, never)
    load = {"library": "tensorrt", "do": "load", "engine": asked.out}
    answer = serve(load | {"gpu": gpu, "host_code": True}, lambda **m: None, never)
    assert answer == {"refused": None}
    # Built, read back by the inspector, loaded.
    assert seen == [None if gpu is None else CONTEXT + gpu] * 3


def test_attention_is_taken_apart_where_the_parser_made_it(asked: PlanRequest) -> None:
    trt = FakeTensorRt(VERSIONS[-1], Script(inspector=HALF_LAYERS))
    trt.script.layers.append(("ATTENTION_INPUT", "HALF"))
    build(trt, asked)
    assert trt.script.asked["attention"].decomposable is True


def test_the_inspectors_json_of_both_versions_is_read() -> None:
    eleven = HALF_LAYERS.replace("Format/Datatype", "DataType").replace(
        '"Bindings": ["x"]', '"I/O Tensors": [{"Name": "x"}]'
    )
    assert half_share_of(HALF_LAYERS) == half_share_of(eleven) == 0.5
    assert half_share_of("not json") is None
    assert half_share_of('{"Layers": [{"Outputs": [{"DataType": "Int64"}]}]}') is None


def test_a_region_compiled_as_one_says_nothing_of_what_is_inside() -> None:
    """Its output is the network's, in FP32 by default: it passed for an FP32 engine."""
    one = {"Name": "{ForeignNode[patches/Cast...Sigmoid]}", "LayerType": "Myelin"}
    one |= {"Outputs": [{"Format/Datatype": "Row major linear FP32"}]}
    conv = {"Name": "conv", "Outputs": [{"Format/Datatype": "Row major linear FP16"}]}
    assert half_share_of(json.dumps({"Layers": [one]})) is None
    assert half_share_of(json.dumps({"Layers": [one, conv]})) == 1
