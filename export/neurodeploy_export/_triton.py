"""A bundle as a Triton model repository."""

from __future__ import annotations

import shutil
from pathlib import Path

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import BundleError, OutputError, WriteError
from neurodeploy_runtime._spec import INPUT_NAME, OUTPUT_NAME
from neurodeploy_runtime.engines import _tensorrt_plans as plans

#: By ONNX's numbers for float and float16, and by our names.
_TYPES = {1: "TYPE_FP32", 10: "TYPE_FP16", "fp32": "TYPE_FP32", "fp16": "TYPE_FP16"}


def write_triton(bundle: Bundle, folder: Path, *, overwrite: bool = False) -> Path:
    """Write a repository with one model per ONNX graph and per TensorRT engine.

    ::

        <name>/config.pbtxt, 1/model.onnx        and <name>_fp16/ where there is one
        <name>_trt_<key>/config.pbtxt, 1/model.plan

    Clients send normalised tiles; tiling, blending and volumes stay with the runtime.
    Engines of `tensorrt_rtx` are left out: Triton does not load them.

    Raises
    ------
    OutputError
        As :func:`require_replaceable` says.
    WriteError
        The disk is full or refuses.
    """
    from neurodeploy_export import _graph

    require_replaceable(folder, overwrite=overwrite)
    part = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(part, ignore_errors=True)
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in bundle.spec.name)
    try:
        for precision in bundle.precisions:
            graph = bundle.onnx(precision)
            model = _graph.load_skeleton(graph)
            edge = _TYPES[model.graph.input[0].type.tensor_type.elem_type]
            version = part / (name if precision == "fp32" else f"{name}_fp16") / "1"
            version.mkdir(parents=True)
            shutil.copyfile(graph, version / "model.onnx")
            # The graph names its data file, so that keeps its name.
            for file in _graph.external_files(model, bundle.path):
                shutil.copyfile(file, version / file.name)
            _write_config(version.parent, bundle, "onnxruntime", edge)
        for file, record in _engines(bundle):
            version = part / f"{name}_trt_{record.identity.key[:8]}" / "1"
            version.mkdir(parents=True)
            shutil.copyfile(file, version / "model.plan")
            _write_config(
                version.parent,
                bundle,
                "tensorrt",
                _TYPES[record.facts["io"]],
                record.identity.max_batch,
            )
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        raise WriteError(
            f"cannot write {folder}: {error.strerror or error}; free space there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def require_replaceable(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write a repository over what is none.

    Raises
    ------
    OutputError
        The folder exists and `overwrite` is not given, or it holds something else than
        models.
    """
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"{folder} exists: choose another name, or pass --overwrite")
    if not folder.is_dir() or not all(
        (path / "config.pbtxt").is_file() for path in folder.iterdir()
    ):
        raise OutputError(
            f"{folder} exists and is no model repository: it is not overwritten; "
            "choose another name"
        )


def _engines(bundle: Bundle) -> list[tuple[Path, plans.PlanRecord]]:
    """Whole engines of `tensorrt` that were built from the bundle's graphs."""
    found = []
    engines = bundle.path / plans.ENGINES
    for path in sorted(engines.glob("*.json")):
        try:
            record = plans.read_record(path)
        except BundleError:
            continue
        onnx_now = plans.onnx_hashes(bundle.files, record.identity.precision)
        if record.identity.library != "tensorrt" or record.identity.onnx != onnx_now:
            continue
        if plans.check_plan(engines, record) is None:
            found.append((path.with_suffix(".engine"), record))
    return found


def _write_config(
    model: Path, bundle: Bundle, backend: str, edge: str, max_batch: int | None = None
) -> None:
    spec = bundle.spec
    platform = "onnxruntime_onnx" if backend == "onnxruntime" else "tensorrt_plan"
    tile = ", ".join(map(str, (1, *spec.tile)))
    window = ", ".join(map(str, (1, *spec.window)))
    (model / "config.pbtxt").write_text(
        f'name: "{model.name}"\n'
        f'platform: "{platform}"\n'
        f'backend: "{backend}"\n'
        f"max_batch_size: {max_batch or spec.max_batch}\n"
        f'input [\n  {{ name: "{INPUT_NAME}" data_type: {edge} dims: [ {tile} ] }}\n]\n'
        f'output [\n  {{ name: "{OUTPUT_NAME}" data_type: {edge} '
        f"dims: [ {window} ] }}\n]\n"
        "dynamic_batching { }\n",
        encoding="utf-8",
    )
