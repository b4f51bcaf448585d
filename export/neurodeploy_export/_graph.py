"""ONNX graphs with their weights left on disk: reading, naming, checking, writing.

A graph is handled as a *skeleton*: large weights stay references into the data file
and are mapped when they are needed, so that no step holds a second copy of them.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from neurodeploy_export._errors import ExportError, ExportRequestError
from neurodeploy_runtime._errors import WriteError, said_by

#: TensorRT indexes a tensor's elements with 32 signed bits (TensorRT #4123, #3815).
MAX_ELEMENTS = 2**31 - 1

#: Tensors below this stay in the graph: shapes, axes, scalars.
SMALL_BYTES = 1024

_ALIGNMENT = 4096
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)

#: Operators that do the arithmetic of a network; their precision is the graph's.
COMPUTE_OPS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Attention"})


def load_skeleton(path: Path) -> onnx.ModelProto:
    """The graph, without the weights that lie in its data file."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise ExportError(f"{path} is not an ONNX graph: {error}") from None


def external_files(model: onnx.ModelProto, folder: Path) -> list[Path]:
    """The data files that the weights lie in; an ExportError where one is outside."""
    names: set[str] = set()
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            names.add({e.key: e.value for e in tensor.external_data}["location"])
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise ExportError(f"the graph keeps weights outside its folder: {name!r}")
    return [folder / name for name in sorted(names)]


def weight(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """The values of an initializer; mapped, not read, where they are external."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {e.key: e.value for e in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    count = math.prod(shape)
    file, offset = folder / where["location"], int(where.get("offset", 0))
    if offset + count * dtype.itemsize > file.stat().st_size:
        raise ExportError(f"{file} is too short for the weight {tensor.name}")
    if count == 0:
        return np.zeros(shape, dtype)
    flat = np.memmap(file, dtype, "r", offset, (count,))
    return flat.reshape(shape)


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all weights, wherever they lie."""
    return sum(
        math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize
        for t in model.graph.initializer
    )


def write_graph(
    model: onnx.ModelProto,
    path: Path,
    values: Callable[[TensorProto], NDArray[Any]],
    *,
    external: bool,
) -> None:
    """Write the graph with its weights: inside, or in ``<name>.data`` beside it.

    `values` gives an initializer's values in its own type; each is held only while it
    is written. The model's initializers are changed to say where their values lie.

    Raises
    ------
    WriteError
        The disk is full or refuses; what had been written is removed.
    """
    data = path.with_name(path.name + ".data")
    try:
        if external:
            with data.open("wb") as out:
                for tensor in model.graph.initializer:
                    array = np.ascontiguousarray(values(tensor))
                    if array.nbytes < SMALL_BYTES:
                        _inline(tensor, array)
                        continue
                    out.write(b"\0" * (-out.tell() % _ALIGNMENT))
                    _refer(tensor, data.name, out.tell(), array.nbytes)
                    out.write(array.data)
        else:
            for tensor in model.graph.initializer:
                _inline(tensor, np.ascontiguousarray(values(tensor)))
        with path.open("wb") as out:
            out.write(model.SerializeToString())
    except OSError as error:
        path.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        raise WriteError(
            f"cannot write {path.name} ({weight_bytes(model)} bytes of weights) to "
            f"{path.parent}: {error.strerror or error}; free space there, or choose "
            "another folder"
        ) from error


def _inline(tensor: TensorProto, array: NDArray[Any]) -> None:
    name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(dims)
    tensor.raw_data = array.tobytes()


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, kind
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, str(value)


def name_after_modules(model: onnx.ModelProto) -> None:
    """Name nodes and values after the modules they come from, in place.

    ``node_MatMul_7`` becomes ``encoder.blocks.0.attn.qkv/MatMul``: what TensorRT's
    messages, the precision report and ``--keep-fp32`` speak of. The exporter's
    metadata goes: it holds stack traces with paths of the exporting machine.
    """
    graph = model.graph
    fixed = {v.name for v in (*graph.input, *graph.output)}
    values: dict[str, str] = {}
    seen: Counter[str] = Counter()
    weights = {t.name for t in graph.initializer}
    for node in graph.node:
        scopes = {p.key: p.value for p in node.metadata_props}.get(
            "pkg.torch.onnx.name_scopes", ""
        )
        # The last scope is the call itself, the one before it the module.
        path = re.findall(r"'([^']*)'", scopes)[-2:-1]
        # What the exporter itself made has a scope named after its own hook.
        module = [p for p in path if p and not p.startswith("_")]
        base = "/".join([*module, node.op_type])
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        for i, output in enumerate(node.output):
            if output and output not in fixed:
                values[output] = node.name + (f":{i}" if i else ":out")
        for i, name in enumerate(node.input):
            if name in weights and name not in values and name.startswith("val_"):
                values[name] = f"{node.name}:in{i}"
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = values.get(name, name)
        del node.metadata_props[:]
        node.doc_string = ""
    for item in (*graph.value_info, *graph.initializer):
        item.name = values.get(item.name, item.name)
    for item in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
    del graph.metadata_props[:]


def infer(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the type and shape of every value; weights stay on disk."""
    try:
        return onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
    except Exception as error:
        raise ExportError(
            f"the ONNX graph does not fit together: {said_by(error, 500)}"
        ) from None


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value of an inferred graph."""
    graph = model.graph
    types = {
        v.name: v.type.tensor_type.elem_type
        for v in (*graph.value_info, *graph.input, *graph.output)
    }
    types.update({t.name: t.data_type for t in graph.initializer})
    return types


def compute_share_in_half(model: onnx.ModelProto) -> float:
    """The share of convolutions and matrix products that compute in FP16."""
    types = element_types(infer(model))
    compute = [n for n in model.graph.node if n.op_type in COMPUTE_OPS]
    half = sum(types.get(n.output[0]) == TensorProto.FLOAT16 for n in compute)
    return half / max(1, len(compute))


def check_batch_is_dynamic(
    model: onnx.ModelProto, tile: Iterable[int], window: Iterable[int]
) -> None:
    """Refuse a saved graph whose batch was specialised, or whose tile was not."""
    for value, shape in zip(
        (*model.graph.input, *model.graph.output),
        ((1, *tile), (1, *window)),
        strict=True,
    ):
        dims = value.type.tensor_type.shape.dim
        got = tuple(d.dim_value for d in dims[1:])
        if not dims[0].dim_param:
            raise ExportError(
                f"the exported {value.name} has the fixed batch {dims[0].dim_value}: "
                "the network's forward treats the batch size as a constant; take it "
                "from x.shape[0] wherever it reshapes"
            )
        if got != tuple(shape):
            raise ExportError(
                f"the exported {value.name} is (batch, {', '.join(map(str, got))}), "
                f"the model's specification says {tuple(shape)}"
            )


def check_sizes(model: onnx.ModelProto, max_batch: int) -> dict[str, int]:
    """Elements of each value at the largest batch; refuse what cannot be indexed.

    Raises
    ------
    ExportRequestError
        A tensor would have more than 2^31 - 1 elements; the text names it and the
        largest batch that would do.
    """
    sizes = sizes_at(model, max_batch)
    name = max(sizes, key=sizes.__getitem__)
    if sizes[name] > MAX_ELEMENTS:
        one = sizes_at(model, 1)
        best = min(MAX_ELEMENTS // n for n in one.values() if n)
        raise ExportRequestError(
            f"{name} has {sizes[name]} elements at batch {max_batch}, more than "
            f"TensorRT can index ({MAX_ELEMENTS}): "
            + (f"use --max-batch {best}" if best else "use a smaller tile")
        )
    return sizes


def sizes_at(model: onnx.ModelProto, batch: int) -> dict[str, int]:
    """Elements of each value whose shape is known at this batch."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.value_info[:]
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    fixed = infer(fixed)
    return {
        v.name: math.prod(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in (*fixed.graph.value_info, *fixed.graph.input, *fixed.graph.output)
        if all(d.HasField("dim_value") for d in v.type.tensor_type.shape.dim)
    }


def set_metadata(model: onnx.ModelProto, values: Mapping[str, str]) -> None:
    """Write key-value pairs into the file itself."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(values))


def check_file(path: Path) -> None:
    """Let ONNX check the saved file in full, with its data file."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        raise ExportError(f"{path.name} fails ONNX's own check: {error}") from None
