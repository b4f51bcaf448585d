"""What values flow through a graph, measured node by node on real tiles.

ONNX Runtime's CPU provider is no check of an FP16 graph: it computes in FP32 and
drops the casts between. :func:`rounded` turns the FP16 graph into an FP32 one that
rounds to half after every node that would compute in half; nothing drops that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from neurodeploy_export import _graph
from neurodeploy_export._errors import ExportError
from neurodeploy_export._half import HALF_MAX
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME
from neurodeploy_runtime.engines._cores import usable_cores

_F32, _F16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_RANGES = "ranges"

#: Norms square their input, so in half that has to stay below 256. The rounding
#: after the node cannot see it.
SQUARING_OPS = frozenset(
    {
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "RMSNormalization",
        "LpNormalization",
        "ReduceL2",
        "ReduceSumSquare",
    }
)


@dataclass(frozen=True)
class Measured:
    """Answers, and the largest magnitude of each node's output over all tiles.

    `absmax` is infinite where a value was not finite. Order of the nodes: the graph's.
    """

    answers: NDArray[np.float32]
    absmax: dict[str, float]


@dataclass(frozen=True)
class Overflow:
    """The first node whose values do not fit half."""

    node: str
    operator: str
    magnitude: float


def run(
    model: onnx.ModelProto, folder: Path, tiles: NDArray[Any], *, batch: int = 1
) -> NDArray[np.float32]:
    """The graph's answers on a CPU, (N, 1, *window) float32; weights in `folder`."""
    with _session(model, folder, optimise=True) as session:
        half = session.get_inputs()[0].type == "tensor(float16)"
        feed = tiles.astype(np.float16 if half else np.float32, copy=False)
        found = [
            session.run([OUTPUT_NAME], {INPUT_NAME: feed[i : i + batch]})[0]
            for i in range(0, len(feed), batch)
        ]
        del session
    return np.concatenate(found).astype(np.float32, copy=False)


def measure(model: onnx.ModelProto, folder: Path, tiles: NDArray[Any]) -> Measured:
    """Run an FP32 graph tile by tile and take the range of every node's output."""
    probed, names = _with_probes(model)
    ranges = np.zeros(len(names))
    answers = []
    with _session(probed, folder, optimise=False) as session:
        half = session.get_inputs()[0].type == "tensor(float16)"
        feed = tiles.astype(np.float16 if half else np.float32, copy=False)
        for i in range(len(feed)):
            answer, found = session.run(
                [OUTPUT_NAME, _RANGES], {INPUT_NAME: feed[i : i + 1]}
            )
            answers.append(answer)
            ranges = np.maximum(ranges, np.nan_to_num(found, nan=np.inf))
        del session
    return Measured(
        np.concatenate(answers).astype(np.float32, copy=False),
        dict(zip(names, ranges.tolist(), strict=True)),
    )


def first_overflow(half: onnx.ModelProto, absmax: dict[str, float]) -> Overflow | None:
    """The first node, in the graph's order, whose values do not fit half.

    `half` is the inferred FP16 graph and `absmax` what :func:`measure` found in its
    rounded form.
    """
    types = _graph.element_types(half)
    made_by = {name: node.name for node in half.graph.node for name in node.output}
    for node in half.graph.node:
        if not node.output or types.get(node.output[0]) != _F16:
            continue
        top = absmax.get(node.name, 0.0)
        if not top <= HALF_MAX:
            return Overflow(node.name, node.op_type, top)
        if node.op_type in SQUARING_OPS:
            into = absmax.get(made_by.get(node.input[0], ""), 0.0) ** 2
            if not into <= HALF_MAX:
                return Overflow(node.name, node.op_type, into)
    return None


def rounded(half: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """An FP32 graph that rounds as the FP16 graph does; its weights still as there.

    Returns it with, per node of the FP16 graph, the value *before* rounding: that is
    where an overflow shows as a number.
    """
    half = _graph.infer(half)
    types = _graph.element_types(half)
    wide = onnx.ModelProto()
    wide.CopyFrom(half)
    graph = wide.graph
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]
    for tensor in half.graph.initializer:
        kept = graph.initializer.add()
        kept.CopyFrom(tensor)
        if tensor.data_type == _F16:
            kept.data_type = _F32
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type == _F16:
            value.type.tensor_type.elem_type = _F32
    before: dict[str, str] = {}
    for old in half.graph.node:
        node = onnx.NodeProto()
        node.CopyFrom(old)
        if node.op_type == "Cast" and node.attribute[0].i == _F16:
            node.attribute[0].i = _F32
        graph.node.append(node)
        for i, name in enumerate(old.output):
            if types.get(name) != _F16:
                continue
            node = graph.node[-1] if i == 0 else node
            node.output[i] = name + "!wide"
            if i == 0:
                before[old.name] = name + "!wide"
        for name in old.output:
            if types.get(name) == _F16:
                graph.node.append(
                    helper.make_node(
                        "Cast",
                        [name + "!wide"],
                        [name + "!half"],
                        name=f"{name}!to16",
                        to=_F16,
                    )
                )
                graph.node.append(
                    helper.make_node(
                        "Cast", [name + "!half"], [name], name=f"{name}!to32", to=_F32
                    )
                )
    return wide, before


def measure_rounded(
    half: onnx.ModelProto, folder: Path, tiles: NDArray[Any]
) -> Measured:
    """Answers and ranges of an FP16 graph with its rounding, on a CPU.

    The ranges are those before rounding, by the FP16 graph's node names.
    """
    wide, before = rounded(half)
    weights = {tensor.name: tensor for tensor in half.graph.initializer}
    external = bool(_graph.external_files(half, folder))
    # Written beside the graph, not held: a mapped file costs no memory of ours.
    path = folder / ".rounded.onnx"
    try:
        _graph.write_graph(
            wide,
            path,
            lambda tensor: _graph.weight(weights[tensor.name], folder).astype(
                helper.tensor_dtype_to_np_dtype(tensor.data_type)
            ),
            external=external,
        )
        found = measure(_graph.infer(wide), folder, tiles)
    finally:
        path.unlink(missing_ok=True)
        path.with_name(path.name + ".data").unlink(missing_ok=True)
    made_by = {name: n.name for n in wide.graph.node for name in n.output}
    ranges = {
        node.name: found.absmax[made_by[before.get(node.name, node.output[0])]]
        for node in half.graph.node
        if made_by[before.get(node.name, node.output[0])] in found.absmax
    }
    return Measured(found.answers, ranges)


def _with_probes(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """The graph with one more output: the largest magnitude of each FP32 node."""
    types = _graph.element_types(_graph.infer(model))
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    del graph.node[:]
    names: list[str] = []
    parts: list[str] = []
    one = helper.make_tensor(f"{_RANGES}!shape", TensorProto.INT64, [1], [1])
    graph.initializer.append(one)
    for node in model.graph.node:
        graph.node.append(node)
        if not node.output or types.get(node.output[0]) != _F32:
            continue
        if node.name.endswith(("!to32", "!to16")):
            continue
        i = len(names)
        names.append(node.name)
        stem = f"{_RANGES}!{i}"
        value = node.output[0]
        # Reductions only, so that no copy of the value is made, and right behind it,
        # so that it need not be kept. Max and Min drop NaN on some kernels; a sum less
        # itself is NaN where any value is not finite.
        for op, inputs, output in (
            ("ReduceMax", [value], f"{stem}!max"),
            ("ReduceMin", [value], f"{stem}!min"),
            ("ReduceSum", [value], f"{stem}!sum"),
            ("Neg", [f"{stem}!min"], f"{stem}!below"),
            ("Max", [f"{stem}!max", f"{stem}!below"], f"{stem}!abs"),
            ("Sub", [f"{stem}!sum", f"{stem}!sum"], f"{stem}!zero"),
            ("Add", [f"{stem}!abs", f"{stem}!zero"], f"{stem}!top"),
            ("Reshape", [f"{stem}!top", one.name], f"{stem}!one"),
        ):
            node = helper.make_node(op, inputs, [output], name=output)
            if op.startswith("Reduce"):
                node.attribute.append(helper.make_attribute("keepdims", 0))
            graph.node.append(node)
        parts.append(f"{stem}!one")
    graph.node.append(
        helper.make_node("Concat", parts, [_RANGES], name=_RANGES, axis=0)
    )
    graph.output.append(helper.make_tensor_value_info(_RANGES, _F32, [len(parts)]))
    return probed, names


@contextmanager
def _session(model: onnx.ModelProto, folder: Path, *, optimise: bool) -> Iterator[Any]:
    """A CPU session of the graph; external weights are found in `folder`.

    Drop the session inside the context: its memory is given back at the end of it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = usable_cores()
    # A check is run a few times: its memory matters more than its speed.
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    if not optimise:
        # Nodes run in the graph's order: what is behind a value frees it.
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    # Beside its data file: ONNX Runtime finds external weights by the graph's folder.
    path = folder / ".check.onnx"
    path.write_bytes(model.SerializeToString())
    try:
        try:
            session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ExportError(f"ONNX Runtime refuses the graph: {error}") from error
        yield session
    finally:
        path.unlink(missing_ok=True)
        session = None
        _trim()


def _trim() -> None:
    """Give freed memory back to the system, where the C library keeps it (glibc)."""
    import ctypes
    import gc

    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
