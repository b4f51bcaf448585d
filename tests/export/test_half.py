"""The FP16 graph is typed, its islands have reasons, and an overflow has a name."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from neurodeploy_export import (
    ExportRequestError,
    ExportSettings,
    PrecisionError,
)
from neurodeploy_export import _graph as graphs
from neurodeploy_export._half import HalfReport, convert, write_half
from neurodeploy_export._ranges import (
    _with_probes,
    first_overflow,
    measure,
    measure_rounded,
    run,
)
from neurodeploy_runtime import Bundle

Array = NDArray[np.float32]
SHAPE = [1, 4]
LIMITLESS = replace(ExportSettings(precision="fp16"), absmax_limit=np.inf)


def model(nodes: list[onnx.NodeProto], **weights: Array) -> onnx.ModelProto:
    """A graph from voxels to probability, both (batch, 1, 4); weights by name."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "test",
        [value("voxels", TensorProto.FLOAT, ["batch", *SHAPE])],
        [value("probability", TensorProto.FLOAT, ["batch", *SHAPE])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    return graphs.infer(made)


def node(op: str, inputs: str, output: str, **attributes: float) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=output, **attributes)


def to_half(
    fp32: onnx.ModelProto, tiles: Array, folder: Path, options: ExportSettings
) -> tuple[onnx.ModelProto, HalfReport]:
    absmax = measure(fp32, folder, tiles).absmax
    report = write_half(fp32, folder, absmax, options, folder / "half.onnx")
    return graphs.infer(graphs.load_skeleton(folder / "half.onnx")), report


EYE = np.eye(4)

chain = [
    node("MatMul", "voxels grow", "grown"),
    node("MatMul", "grown shrink", "probability"),
]


def scaled(by: float) -> onnx.ModelProto:
    return model(chain, grow=EYE * by, shrink=EYE / by)


tiles = np.linspace(0.5, 2, 8, dtype=np.float32).reshape(2, 1, 4)


def test_a_weight_scaled_so_that_half_overflows_is_found_by_its_node(
    tmp_path: Path,
) -> None:
    """Planted fault: the FP32 answers are right, the FP16 ones infinite."""
    half, report = to_half(scaled(5e4), tiles, tmp_path, LIMITLESS)
    assert report.compute_share == 1
    found = measure_rounded(half, tmp_path, tiles)
    overflow = first_overflow(half, found.absmax)
    assert overflow is not None
    assert overflow.node == "grown"
    assert overflow.magnitude == pytest.approx(1e5, rel=1e-3)
    assert not np.isfinite(found.answers).all()


def test_the_default_limit_keeps_that_node_in_fp32_and_says_why(
    tmp_path: Path,
) -> None:
    three = [*chain[:1], node("MatMul", "grown shrink", "mid")]
    three += [node("MatMul", f"{a} eye", b) for a, b in (("mid", "m2"), ("m2", "m3"))]
    three += [node("MatMul", "m3 eye", "probability")]
    fp32 = model(three, grow=EYE * 5e4, shrink=EYE / 5e4, eye=EYE)
    half, report = to_half(fp32, tiles, tmp_path, ExportSettings(precision="fp16"))
    assert [k.node for k in report.kept] == ["grown"]
    assert "reaches 1e+05 on the tiles, above the limit 1024" in report.kept[0].reason
    # Kept in FP32, but what reads it computes in half: still too large for that.
    overflow = first_overflow(half, measure_rounded(half, tmp_path, tiles).absmax)
    assert overflow is not None
    assert overflow.operator == "Cast"


def test_a_weight_that_half_cannot_hold_stays_in_fp32(tmp_path: Path) -> None:
    nodes = [node("MatMul", "voxels large", "a"), node("MatMul", "a tiny", "b")]
    nodes += [node("MatMul", f"{a} eye", b) for a, b in (("b", "c"), ("c", "d"))]
    nodes += [node("MatMul", "d eye", "probability")]
    large = EYE * 1e-9
    large[0, 0] = 1e5
    quiet = tiles * np.array([0, 1, 1, 1], np.float32)
    fp32 = model(nodes, large=large, tiny=np.full((4, 4), 1e-9), eye=EYE)
    _, report = to_half(fp32, quiet, tmp_path, ExportSettings(precision="fp16"))
    assert report.saturating == {"large": pytest.approx(1e5)}
    assert [k.node for k in report.kept] == ["a"]
    assert "large reaches 1e+05, beyond half's 65504" in report.kept[0].reason
    assert report.underflowing == {"tiny": 16}


def test_a_norm_forced_into_half_with_large_activations_is_found(
    tmp_path: Path,
) -> None:
    """Planted fault: no output overflows, the variance inside would."""
    nodes = [
        node("Mul", "voxels gain", "large"),
        node("LayerNormalization", "large weight", "normed", axis=-1),
        node("MatMul", "normed eye", "probability"),
    ]
    fp32 = model(nodes, gain=np.float32([300]), weight=np.ones(4), eye=EYE)
    forced = replace(LIMITLESS, keep_ops={})
    half, report = to_half(fp32, tiles, tmp_path, forced)
    assert not report.kept
    overflow = first_overflow(half, measure_rounded(half, tmp_path, tiles).absmax)
    assert overflow is not None
    assert (overflow.node, overflow.operator) == ("normed", "LayerNormalization")
    assert overflow.magnitude == pytest.approx(600**2, rel=1e-2)
    # Left to the policy there is nothing to find.
    half, report = to_half(fp32, tiles, tmp_path, LIMITLESS)
    assert [k.operator for k in report.kept] == ["LayerNormalization"]
    assert first_overflow(half, measure_rounded(half, tmp_path, tiles).absmax) is None


def test_between_two_islands_nothing_is_rounded_whoever_else_reads(
    tmp_path: Path,
) -> None:
    """A residual stream has two readers, and values that half cannot hold."""
    nodes = [
        node("Mul", "voxels gain", "stream"),
        node("LayerNormalization", "stream weight", "normed", axis=-1),
        node("MatMul", "normed eye", "branch"),
        node("Add", "stream branch", "sum"),
        node("LayerNormalization", "sum weight", "probability", axis=-1),
    ]
    fp32 = model(nodes, gain=np.float32([123457]), weight=np.ones(4), eye=EYE)
    half, report = to_half(fp32, tiles, tmp_path, ExportSettings(precision="fp16"))
    assert [k.node for k in report.kept] == ["stream", "normed", "sum", "probability"]
    found = measure_rounded(half, tmp_path, tiles)
    assert first_overflow(half, found.absmax) is None
    assert np.abs(found.answers - run(fp32, tmp_path, tiles)).max() < 1e-3
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    assert sorted(c.input[0] for c in casts) == ["branch", "normed"]


def test_each_value_is_cast_once_for_all_its_readers() -> None:
    nodes = [
        node("Softmax", "voxels", "soft"),
        node("MatMul", "soft eye", "a"),
        node("MatMul", "soft eye", "b"),
        node("Add", "a b", "probability"),
    ]
    typed, sources = convert(model(nodes, eye=EYE), {"soft"}, "fp32")
    casts = Counter(n.input[0] for n in typed.graph.node if n.op_type == "Cast")
    assert casts == {"soft": 1, "probability.fp16": 1}
    assert sources == {"eye": "eye"}


half_values = st.floats(-300, 300, width=16)


@settings(max_examples=15, deadline=None)
@given(st.lists(half_values, min_size=4, max_size=4), st.sampled_from(["Add", "Mul"]))
def test_the_rounded_graph_computes_what_half_computes(
    values: list[float], operator: str
) -> None:
    import tempfile

    given_values = np.float32(values).reshape(1, 1, 4)
    weight = np.float32([0.3, 1.7, -2.9, 1e-4])
    fp32 = model(
        [
            node(operator, "voxels weight", "once"),
            node(operator, "once weight", "probability"),
        ],
        weight=weight,
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        typed, sources = convert(fp32, set(), "fp32")
        weights = {t.name: t for t in fp32.graph.initializer}

        def to_type(tensor: onnx.TensorProto) -> np.ndarray:
            return graphs.weight(weights[sources[tensor.name]], folder).astype("f2")

        graphs.write_graph(typed, folder / "h.onnx", to_type, external=False)
        half = graphs.infer(graphs.load_skeleton(folder / "h.onnx"))
        got = measure_rounded(half, folder, given_values).answers
    step = np.add if operator == "Add" else np.multiply
    x, w = given_values.astype(np.float16), weight.astype(np.float16)
    with np.errstate(over="ignore"):
        wanted = step(step(x, w), w).astype(np.float32)
    assert np.array_equal(got, wanted)


def test_every_node_in_fp32_is_named_with_a_reason(bundle: Bundle) -> None:
    report = json.loads((bundle.path / "fp16_report.json").read_text())
    kept = {k["node"]: k["reason"] for k in report["kept"]}
    assert kept["block.norm/LayerNormalization"] == "a norm squares its input"
    assert kept["block/Softmax"] == "an exponential"
    assert "norm/InstanceNormalization" in kept
    half = graphs.infer(graphs.load_skeleton(bundle.onnx("fp16")))
    types = graphs.element_types(half)
    for item in half.graph.node:
        wide = types[item.output[0]] == TensorProto.FLOAT
        if wide and item.op_type != "Cast":
            assert item.name in kept
    assert report["compute_share"] == 1
    assert set(kept) <= set(report["absmax"])


def test_a_pattern_keeps_nodes_and_one_that_matches_nothing_is_an_error(
    tmp_path: Path,
) -> None:
    nodes = [node("MatMul", f"{a} eye", b) for a, b in (("voxels", "a"), ("a", "b"))]
    fp32 = model([*nodes, node("MatMul", "b eye", "probability")], eye=EYE)
    options = ExportSettings(precision="fp16", keep_fp32=("^b$",))
    _, report = to_half(fp32, tiles, tmp_path, options)
    assert [(k.node, k.reason) for k in report.kept] == [
        ("b", "asked for by --keep-fp32 '^b$'")
    ]
    wrong = replace(options, keep_fp32=("decodr",))
    with pytest.raises(ExportRequestError, match="'decodr' matches no node: names"):
        to_half(fp32, tiles, tmp_path, wrong)


def test_a_value_is_measured_before_the_next_one_is_made() -> None:
    """A probe further on would keep its value, and all values at once."""
    nodes = [node("Neg", "voxels", "a"), node("Neg", "a", "b")]
    probed, names = _with_probes(model([*nodes, node("Neg", "b", "probability")]))
    assert names == ["a", "b", "probability"]
    made = {o: i for i, n in enumerate(probed.graph.node) for o in n.output}
    following = [made["b"], made["probability"], len(probed.graph.node)]
    for name, last in zip(names, following, strict=True):
        readers = [
            made[n.output[0]]
            for n in probed.graph.node
            if name in n.input and n.output[0].startswith("ranges")
        ]
        assert len(readers) == 3
        assert all(made[name] < reader < last for reader in readers)


def test_a_resize_is_in_half_and_its_scales_are_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Resize", ["voxels", "", "scales"], ["wide"], name="wide"),
        node("MatMul", "wide eye", "a"),
        node("MatMul", "a eye", "probability"),
    ]
    fp32 = model(nodes, scales=np.ones(3), eye=EYE)
    half, report = to_half(fp32, tiles, tmp_path, ExportSettings(precision="fp16"))
    assert not report.kept
    types = graphs.element_types(half)
    resize = next(n for n in half.graph.node if n.op_type == "Resize")
    assert types[resize.input[0]] == types[resize.output[0]] == TensorProto.FLOAT16
    assert types[resize.input[2]] == TensorProto.FLOAT
    assert np.array_equal(
        measure_rounded(half, tmp_path, tiles).answers, tiles.astype("f2").astype("f4")
    )


def test_half_at_the_edges_takes_and_gives_half(tmp_path: Path) -> None:
    fp32 = model([node("MatMul", "voxels eye", "probability")], eye=EYE)
    options = ExportSettings(precision="fp16", io="fp16")
    half, _ = to_half(fp32, tiles, tmp_path, options)
    for value in (half.graph.input[0], half.graph.output[0]):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT16
    assert not [n for n in half.graph.node if n.op_type == "Cast"]
    assert np.array_equal(run(half, tmp_path, tiles), tiles.astype("f2").astype("f4"))
    assert np.array_equal(
        measure_rounded(half, tmp_path, tiles).answers, run(half, tmp_path, tiles)
    )


def test_a_graph_that_stays_in_fp32_may_not_be_called_fp16(tmp_path: Path) -> None:
    """Planted fault: everything is kept, the name says fp16."""
    fp32 = model([node("MatMul", "voxels eye", "probability")], eye=EYE)
    options = ExportSettings(precision="fp16", keep_fp32=(".",))
    with pytest.raises(PrecisionError, match=r"only 0% .* under another name"):
        to_half(fp32, tiles, tmp_path, options)


def test_ranges_are_those_of_the_values_and_nan_is_not_lost(tmp_path: Path) -> None:
    nodes = [
        node("Mul", "voxels minus", "negative"),
        node("Sqrt", "negative", "broken"),
        node("Mul", "negative minus", "probability"),
    ]
    found = measure(model(nodes, minus=np.float32([-3])), tmp_path, tiles)
    assert found.absmax["negative"] == pytest.approx(6)
    assert found.absmax["broken"] == np.inf
    assert found.absmax["probability"] == pytest.approx(18)
