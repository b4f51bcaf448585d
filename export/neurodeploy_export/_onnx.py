"""From a PyTorch network to an ONNX file."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import onnx
import torch
from torch import nn

from neurodeploy_export import _graph
from neurodeploy_export._errors import ExportError, ExportRequestError
from neurodeploy_export._settings import ExportSettings
from neurodeploy_runtime._errors import WriteError
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME, ModelSpec


def export_onnx(
    module: nn.Module, spec: ModelSpec, settings: ExportSettings, path: Path
) -> onnx.ModelProto:
    """Write the network as an ONNX file; the skeleton of what was written.

    The batch is dynamic and the tile static (a position embedding has one size). The
    saved file passes ONNX's full check and shape inference.

    Raises
    ------
    ExportError
        The network cannot be expressed, or the saved graph is not what was meant.
    WriteError
        The disk is full.
    """
    work = path.parent / "work"
    work.mkdir()
    raw = work / "raw.onnx"
    try:
        _save_raw(module, spec, settings, raw)
        model = _graph.load_skeleton(raw)
        _graph.name_after_modules(model)
        model = _graph.infer(model)
        _graph.set_metadata(model, _metadata(spec, "fp32"))
        model.producer_name, model.producer_version = "neurodeploy", _version()
        size = _graph.weight_bytes(model)
        _graph.write_graph(
            model,
            path,
            lambda tensor: _graph.weight(tensor, work),
            external=size > settings.external_data_above_bytes,
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _graph.check_file(path)
    saved = _graph.load_skeleton(path)
    _graph.check_batch_is_dynamic(saved, spec.tile, spec.window)
    return saved


def _save_raw(
    module: nn.Module, spec: ModelSpec, settings: ExportSettings, raw: Path
) -> None:
    # An example of batch 1 would specialise the axis, sometimes silently.
    example = torch.zeros(2, 1, *spec.tile)
    batch = torch.export.Dim("batch", min=1, max=4096)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=settings.opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except Exception as error:
        first = next((ln for ln in str(error).splitlines() if ln.strip()), "")
        raise ExportError(
            f"torch cannot express the network in ONNX opset {settings.opset}: "
            f"{type(error).__name__}: {first}"
        ) from error
    if program is None:
        raise ExportError("torch's exporter gave no program")
    try:
        program.save(str(raw), external_data=True)
    except OSError as error:
        raise WriteError(
            f"cannot write the weights to {raw.parent.parent}: "
            f"{error.strerror or error}; free space there, or choose another folder"
        ) from error


def check_module(module: nn.Module) -> None:
    """Refuse a network that is in training mode or whose weights are not finite."""
    for name, part in module.named_modules():
        if part.training:
            raise ExportRequestError(
                f"the network's part {name or 'itself'} is in training mode: call "
                "module.eval() before the export"
            )
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise ExportRequestError(
                f"{bad} of {tensor.numel()} values of the weight {name} are NaN or "
                "infinite: the training diverged; export an earlier checkpoint"
            )


def _metadata(spec: ModelSpec, precision: str) -> dict[str, str]:
    values = asdict(spec)
    return {
        f"neurodeploy.{key}": values[key]
        if isinstance(values[key], str)
        else json.dumps(values[key])
        for key in (
            "name",
            "mode",
            "tile",
            "window",
            "overlap",
            "threshold",
            "normalisation",
            "voxel_size_um",
            "schema",
        )
    } | {"neurodeploy.precision": precision, "neurodeploy.version": _version()}


def _version() -> str:
    try:
        return metadata.version("neurodeploy")
    except metadata.PackageNotFoundError:
        return "0+unknown"
