"""From an FP32 graph to a typed FP16 one, with FP32 islands and a reason for each.

TensorRT 11 has no FP16 switch: precision lives in the graph. A pass of our own and
not onnxconverter-common's, which rounds an FP32 value through FP16 between two
islands whenever it has two readers, as every residual stream has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from neurodeploy_export import _graph
from neurodeploy_export._errors import ExportError, ExportRequestError, PrecisionError
from neurodeploy_export._settings import ExportSettings, Precision
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME

HALF_MAX = 65504.0

#: With less of its arithmetic in half, a graph may not be called FP16.
MIN_SHARE = 0.2
_F32, _F16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_SUFFIX = {_F32: ".fp32", _F16: ".fp16"}

#: Inputs whose type the operator fixes at FP32: region of interest and scales.
_ALWAYS_FP32 = {"Resize": (1, 2), "Upsample": (1,)}

#: Operators whose output type is written in an attribute, not taken from an input.
_TYPE_IN_ATTRIBUTE = frozenset(
    {"Constant", "ConstantOfShape", "EyeLike", "RandomNormal", "RandomUniform"}
)


@dataclass(frozen=True)
class Kept:
    """A node that computes in FP32 inside the FP16 graph, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class HalfReport:
    """What became of each node and weight.

    `saturating` are weights beyond the range of half, which stay in FP32;
    `underflowing` counts, per weight, the non-zero values that half rounds to zero.
    """

    half_nodes: int
    compute_share: float
    kept: tuple[Kept, ...]
    saturating: dict[str, float]
    underflowing: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def islands(
    model: onnx.ModelProto,
    folder: Path,
    absmax: Mapping[str, float],
    settings: ExportSettings,
) -> tuple[list[Kept], dict[str, float]]:
    """The nodes that must stay in FP32, and the weights that do not fit half.

    `model` is an inferred skeleton whose weights lie in `folder`; `absmax` gives the
    largest magnitude of each node's output on real tiles.
    """
    types = _graph.element_types(model)
    saturating: dict[str, float] = {}
    for tensor in model.graph.initializer:
        if tensor.data_type == _F32:
            values = _graph.weight(tensor, folder)
            top = max(float(values.max(initial=0)), -float(values.min(initial=0)))
            if not top <= HALF_MAX:
                saturating[tensor.name] = top
    kept = []
    matched: set[str] = set()
    for node in model.graph.node:
        if not any(types.get(n) == _F32 for n in (*node.input, *node.output)):
            continue
        hits = [p for p in settings.keep_fp32 if re.search(p, node.name)]
        matched.update(hits)
        heavy = [n for n in node.input if n in saturating]
        top = absmax.get(node.name, 0.0)
        reason = None
        if hits:
            reason = f"asked for by --keep-fp32 {hits[0]!r}"
        elif node.op_type in settings.keep_ops:
            reason = settings.keep_ops[node.op_type]
        elif node.op_type in _TYPE_IN_ATTRIBUTE:
            reason = "its type is written in an attribute"
        elif heavy:
            reason = (
                f"its weight {heavy[0]} reaches {saturating[heavy[0]]:.4g}, beyond "
                f"half's {HALF_MAX:.0f}"
            )
        elif not top <= settings.absmax_limit:
            reason = (
                f"its output reaches {top:.4g} on the tiles, above the limit "
                f"{settings.absmax_limit:g}"
            )
        if reason is not None:
            kept.append(Kept(node.name, node.op_type, reason))
    for pattern in settings.keep_fp32:
        if pattern not in matched:
            typical = [
                n.name for n in model.graph.node if n.op_type in _graph.COMPUTE_OPS
            ]
            raise ExportRequestError(
                f"--keep-fp32 {pattern!r} matches no node: names look like "
                f"{', '.join(typical[:3])}"
            )
    return kept, saturating


def write_half(
    model: onnx.ModelProto,
    folder: Path,
    absmax: Mapping[str, float],
    settings: ExportSettings,
    path: Path,
) -> HalfReport:
    """Write the typed FP16 graph beside the FP32 one that it is made from.

    `model` is the FP32 graph's inferred skeleton, whose weights lie in `folder`; it
    is not changed.

    Raises
    ------
    PrecisionError
        Hardly any of the convolutions and matrix products are in FP16.
    WriteError
        The disk is full.
    """
    kept, saturating = islands(model, folder, absmax, settings)
    typed, sources = convert(model, {k.node for k in kept}, settings.io)
    wide = {t.name: t for t in model.graph.initializer}
    underflowing: dict[str, int] = {}

    def values(tensor: TensorProto) -> NDArray[Any]:
        source = sources[tensor.name]
        array = _graph.weight(wide[source], folder)
        if tensor.data_type != _F16:
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        lost = int(np.count_nonzero(half == 0) - np.count_nonzero(array == 0))
        if lost:
            underflowing[source] = lost
        return half

    for entry in typed.metadata_props:
        if entry.key == "neurodeploy.precision":
            entry.value = "fp16"
    _graph.write_graph(
        typed,
        path,
        values,
        # As the FP32 graph: what is checked next is then a skeleton, too.
        external=_graph.weight_bytes(model) > settings.external_data_above_bytes,
    )
    _graph.check_file(path)
    share = _graph.compute_share_in_half(_graph.load_skeleton(path))
    require_half(share, path.name)
    half_nodes = sum(
        1 for n in typed.graph.node if n.op_type != "Cast" or not _is_added(n)
    ) - len(kept)
    return HalfReport(half_nodes, share, tuple(kept), saturating, underflowing)


def require_half(share: float, what: str) -> None:
    """Raise where what is called FP16 does nearly all of its arithmetic in FP32."""
    if share < MIN_SHARE:
        raise PrecisionError(
            f"{what} is called fp16, but only {share:.0%} of its convolutions and "
            "matrix products compute in half: it would be an FP32 network under "
            f"another name (at least {MIN_SHARE:.0%} have to); keep fewer nodes in "
            "FP32, or export with --precision fp32"
        )


def convert(
    model: onnx.ModelProto, keep: set[str], io: Precision
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The graph with every node in FP16 but those to keep, and casts between.

    Each value exists in the type that its producer computes, and once more in the
    other type where a reader needs that: never more than one cast per value and
    type, and none between two nodes of the same precision.

    Returns
    -------
    The typed skeleton (its FP16 weights without values), and for each of its
    initializers the name of the FP32 one that it comes from.
    """
    types = _graph.element_types(model)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]
    weights = {t.name: t for t in model.graph.initializer}
    native: dict[str, int] = {}
    variants: dict[tuple[str, int], str] = {}
    sources: dict[str, str] = {}

    def add_weight(name: str, kind: int) -> str:
        own = name if kind != _F32 or types[name] != _F32 else name + _SUFFIX[_F32]
        if own not in sources:
            tensor = graph.initializer.add()
            if kind == types[name]:
                tensor.CopyFrom(weights[name])
            tensor.name, tensor.data_type = own, kind
            tensor.dims[:] = weights[name].dims
            sources[own] = name
        return own

    def as_type(name: str, kind: int, reader: str) -> str:
        if name in weights:
            return add_weight(name, kind)
        if native[name] == kind:
            return name
        if (name, kind) not in variants:
            variants[name, kind] = name + _SUFFIX[kind]
            graph.node.append(
                helper.make_node(
                    "Cast",
                    [name],
                    [name + _SUFFIX[kind]],
                    name=f"{reader}/cast{_SUFFIX[kind]}:{name}",
                    to=kind,
                )
            )
        return variants[name, kind]

    edge = _F16 if io == "fp16" else _F32
    graph.input[0].type.tensor_type.elem_type = edge
    graph.output[0].type.tensor_type.elem_type = edge
    native[INPUT_NAME] = edge
    for old in model.graph.node:
        if any(a.type in (a.GRAPH, a.GRAPHS) for a in old.attribute):
            raise ExportError(
                f"{old.name} ({old.op_type}) holds a graph of its own: control flow "
                "has no FP16 form here; write the network without data-dependent loops"
            )
        node = onnx.NodeProto()
        node.CopyFrom(old)
        kind = _F32 if node.name in keep else _F16
        always = _ALWAYS_FP32.get(node.op_type, ())
        for i, name in enumerate(node.input):
            if not name:
                continue
            if types.get(name) == _F32:
                want = _F32 if i in always else kind
                node.input[i] = as_type(name, want, node.name)
            elif name in weights:
                node.input[i] = add_weight(name, types[name])
        for i, name in enumerate(node.output):
            if name not in types and name:
                raise ExportError(f"the type of {name} is not known after inference")
            if types.get(name) != _F32:
                continue
            if node.op_type == "Cast":
                node.attribute[0].i = kind
            inner = name
            if name == OUTPUT_NAME and kind != edge:
                inner = node.output[i] = name + _SUFFIX[kind]
            native[inner] = kind
            if inner != name:
                native[name] = edge
        graph.node.append(node)
        if OUTPUT_NAME in old.output and OUTPUT_NAME not in node.output:
            graph.node.append(
                helper.make_node(
                    "Cast",
                    [OUTPUT_NAME + _SUFFIX[kind]],
                    [OUTPUT_NAME],
                    name=f"{OUTPUT_NAME}/cast{_SUFFIX[edge]}",
                    to=edge,
                )
            )
    return typed, sources


def _is_added(node: onnx.NodeProto) -> bool:
    return "/cast." in node.name
