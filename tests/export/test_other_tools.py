"""Packages for others' tools are taken by those tools."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from neurodeploy_export import write_bioimageio, write_triton
from neurodeploy_runtime import Bundle, OutputError
from neurodeploy_runtime.engines import _tensorrt_plans as plans


@pytest.mark.skipif(find_spec("bioimageio") is None, reason="no bioimageio.core here")
def test_bioimageio_core_tests_and_runs_the_package(
    bundle: Bundle, tmp_path: Path
) -> None:
    package = write_bioimageio(bundle, tmp_path / "tiny.zip")
    # In a process of its own: it warns of its own dependencies at import.
    code = (
        "import json, sys; import numpy as np\n"
        "from bioimageio.core import load_model_description, predict, test_model\n"
        "status = test_model(sys.argv[1]).status\n"
        "model = load_model_description(sys.argv[1])\n"
        "x = np.load(sys.argv[2])['voxels'][:1].astype('float32')\n"
        "p = predict(model=model, inputs={'voxels': x}).members['probability']\n"
        "q = np.load(sys.argv[2])['probability'][:1]\n"
        "print(json.dumps([status, float(abs(p.data.values - q).max())]))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(package), str(bundle.path / "golden.npz")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr[-2000:]
    status, difference = json.loads(said.stdout.strip().splitlines()[-1])
    assert status == "passed"
    assert difference < 1e-3
    with pytest.raises(OutputError, match="--overwrite"):
        write_bioimageio(bundle, package)


def triton_message() -> Any:
    """ModelConfig of Triton, built from its protobuf descriptor."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    table = json.loads((Path(__file__).parent / "triton_model_config.json").read_text())
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, values in table["enums"].items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in table["messages"].items():
        message = file.message_type.add(name=name)
        for field, (number, label, kind) in fields.items():
            entry = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, int):
                entry.type = kind
            else:
                entry.type_name = f".inference.{kind}"
                is_enum = kind in table["enums"]
                entry.type = kinds.TYPE_ENUM if is_enum else kinds.TYPE_MESSAGE
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found = pool.FindMessageTypeByName("inference.ModelConfig")
    return message_factory.GetMessageClass(found)()


def test_triton_takes_the_repository(bundle: Bundle, tmp_path: Path) -> None:
    text_format = pytest.importorskip("google.protobuf.text_format")
    made = tmp_path / "b"
    import shutil

    shutil.copytree(bundle.path, made)
    engines = made / plans.ENGINES
    engines.mkdir()
    (engines / "part").write_bytes(b"a plan")
    identity = plans.PlanIdentity(
        onnx=plans.onnx_hashes(bundle.files, "fp16"),
        precision="fp16",
        library="tensorrt",
        version="10.16.1.11",
        gpu="GPU",
        compute_capability="9.0",
        tile=bundle.spec.tile,
        max_batch=7,
    )
    plans.write_plan(engines, identity, engines / "part", {"io": "fp16"})
    from neurodeploy_runtime import load_bundle

    repository = write_triton(load_bundle(made), tmp_path / "repository")
    models = sorted(repository.iterdir())
    trt = f"tiny_trt_{identity.key[:8]}"
    assert [m.name for m in models] == sorted(["tiny", "tiny_fp16", trt])
    for folder in models:
        config = triton_message()
        text_format.Parse((folder / "config.pbtxt").read_text(), config)
        assert config.name == folder.name
        plan = folder.name == trt
        assert config.max_batch_size == (7 if plan else 4)
        assert (folder / "1" / ("model.plan" if plan else "model.onnx")).is_file()
        (tile,), (window,) = config.input, config.output
        assert (tile.name, window.name) == ("voxels", "probability")
        # With a batch size, Triton's dims leave the batch out.
        assert list(tile.dims) == list(window.dims) == [1, *bundle.spec.tile]
        types = type(tile).DESCRIPTOR.fields_by_name["data_type"].enum_type
        wanted = "TYPE_FP16" if plan else "TYPE_FP32"
        assert types.values_by_number[tile.data_type].name == wanted
    with pytest.raises(OutputError, match="--overwrite"):
        write_triton(bundle, repository)


def test_only_models_are_overwritten_by_models(bundle: Bundle, tmp_path: Path) -> None:
    folder = write_triton(bundle, tmp_path / "models")
    write_triton(bundle, folder, overwrite=True)
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.txt").write_text("precious")
    (tmp_path / "notes").write_text("precious")
    for path in (folder, tmp_path / "notes"):
        with pytest.raises(OutputError, match="is no model repository"):
            write_triton(bundle, path, overwrite=True)
    assert (folder / "thesis" / "chapter.txt").read_text() == "precious"
    assert (tmp_path / "notes").read_text() == "precious"
