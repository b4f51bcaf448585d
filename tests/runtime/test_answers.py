"""An engine takes what the bundle says that its network answers, and nothing else."""

import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from bundles import identity_spec, write_identity_bundle
from onnx import TensorProto, helper

from neurodeploy_runtime import (
    Bundle,
    BundleWriter,
    EngineError,
    EngineSettings,
    open_engine,
)

ENGINES = [n for n in ("onnxruntime", "openvino") if find_spec(n) is not None]


def with_network(folder: Path, *nodes: onnx.NodeProto, outputs: list[str]) -> Bundle:
    """A bundle whose network is these nodes, which read `voxels`."""
    spec = identity_spec()
    whole = write_identity_bundle(folder / "whole", spec)
    values = helper.make_tensor_value_info
    graph = helper.make_graph(
        list(nodes),
        "other",
        [values("voxels", TensorProto.FLOAT, ["batch", 1, *spec.tile])],
        [values(name, TensorProto.FLOAT, None) for name in outputs],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    with BundleWriter(folder / "other") as writer:
        onnx.save(model, str(writer.folder / "model.onnx"))
        shutil.copy(whole.path / "golden.npz", writer.folder)
        return writer.seal(spec)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("keepdims", [0, 1])
def test_an_answer_of_another_shape_is_refused_and_not_repeated(
    tmp_path: Path, engine: str, keepdims: int
) -> None:
    mean = helper.make_node("ReduceMean", ["voxels"], ["probability"])
    mean.attribute.append(helper.make_attribute("keepdims", keepdims))
    bundle = with_network(tmp_path, mean, outputs=["probability"])
    with pytest.raises(EngineError, match=r"bundle says \(1, 1, 8, 16, 16\)"):
        open_engine(bundle, EngineSettings(engine=engine, device="cpu"))


@pytest.mark.parametrize("engine", ENGINES)
def test_of_several_answers_the_probability_is_taken(
    tmp_path: Path, engine: str
) -> None:
    bundle = with_network(
        tmp_path,
        helper.make_node("Neg", ["voxels"], ["other"]),
        helper.make_node("Sigmoid", ["voxels"], ["probability"]),
        outputs=["other", "probability"],
    )
    with open_engine(bundle, EngineSettings(engine=engine, device="cpu")) as opened:
        out = np.empty(opened.output_shape, np.float32)
        opened.infer(np.zeros(opened.input_shape, np.float32), out)
    assert (out == 0.5).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_answer_under_another_name_is_refused(tmp_path: Path, engine: str) -> None:
    bundle = with_network(
        tmp_path, helper.make_node("Neg", ["voxels"], ["other"]), outputs=["other"]
    )
    with pytest.raises(EngineError):
        open_engine(bundle, EngineSettings(engine=engine, device="cpu"))


def test_an_answer_that_holds_no_numbers_is_an_engine_error(tmp_path: Path) -> None:
    bundle = with_network(
        tmp_path,
        helper.make_node("Cast", ["voxels"], ["probability"], to=TensorProto.STRING),
        outputs=["probability"],
    )
    network = onnx.load(bundle.path / "model.onnx")
    network.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    with BundleWriter(tmp_path / "text") as writer:
        onnx.save(network, str(writer.folder / "model.onnx"))
        text = writer.seal(bundle.spec)
    with pytest.raises(EngineError, match="Cannot cast"):
        open_engine(text, EngineSettings(engine="onnxruntime", device="cpu"))
