"""Engines of the real TensorRT-RTX builder and parser, which need no GPU."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from neurodeploy_export import (
    BuildError,
    BuildSettings,
    Built,
    ExportRequestError,
    ParityError,
    PrecisionError,
    TensorRtMissingError,
    build_engine,
)
from neurodeploy_export import _build as building
from neurodeploy_export._build import build_into
from neurodeploy_runtime import Bundle, CancelledError, ModelSpec
from neurodeploy_runtime.engines import _tensorrt_plans as plans
from neurodeploy_runtime.engines._cuda_driver import Gpu

pytest.importorskip("tensorrt_rtx")
RTX = BuildSettings(library="tensorrt_rtx")


def silent(text: str, share: float | None) -> None:
    pass


@pytest.fixture(scope="module")
def built(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built") / "b"
    shutil.copytree(bundle.path, folder)
    return build_engine(folder, RTX)


@pytest.fixture
def copy(built: Built, tmp_path: Path) -> Path:
    """A bundle with one good engine, for a test to spoil."""
    shutil.copytree(built.path.parents[1], tmp_path / "b")
    return tmp_path / "b"


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle's files, not sealed any more."""
    shutil.copytree(bundle.path, tmp_path / "b")
    return tmp_path / "b"


def test_an_fp16_engine_is_built_and_says_what_it_is(built: Built) -> None:
    assert not built.reused
    identity, facts = built.record.identity, built.record.facts
    assert (identity.precision, identity.library) == ("fp16", "tensorrt_rtx")
    assert identity.max_batch == 4  # the specification's
    assert facts["network_half_share"] == 1
    # No GPU here, so the engine was not read back; that is said and not assumed.
    if facts["engine_half_share"] is None:
        assert "does not load on this machine" in facts["engine_unread"]
    # The engine is TensorRT's own bytes: other tools have to load it.
    assert built.path.read_bytes()[:4] == b"vtrt"
    assert sorted(p.suffix for p in built.path.parent.iterdir()) == [
        ".engine",
        ".json",
        ".timing",
    ]


def test_a_true_engine_is_kept(built: Built) -> None:
    before = built.path.stat().st_mtime_ns
    again = build_engine(built.path.parents[1], RTX)
    assert again.reused
    assert again.path.stat().st_mtime_ns == before


def test_an_engine_truncated_by_one_byte_is_built_again(copy: Path) -> None:
    """Planted fault."""
    engine = next((copy / "engines").glob("*.engine"))
    whole = engine.stat().st_size
    engine.write_bytes(engine.read_bytes()[:-1])
    again = build_engine(copy, RTX)
    assert not again.reused
    assert f"has {whole - 1} bytes, not {whole}" in str(again.rebuilt_because)
    record = plans.read_record(again.path.with_suffix(".json"))
    assert plans.check_plan(again.path.parent, record) is None


def test_after_the_onnx_changed_the_old_engine_is_stale(copy: Path) -> None:
    """Planted fault: the same bundle folder, one weight changed."""
    path = copy / "model.fp16.onnx"
    model = onnx.load(str(path))
    tensor = next(t for t in model.graph.initializer if len(t.raw_data) > 100)
    tensor.raw_data = b"\0\0" + tensor.raw_data[2:]
    onnx.save(model, str(path))
    old = next((copy / "engines").glob("*.engine"))
    spec = build_spec(copy)
    new = build_into(copy, spec, RTX, silent)
    assert not new.reused
    assert new.path != old
    reason = plans.why_unfit(
        plans.read_record(old.with_suffix(".json")).identity,
        onnx=new.record.identity.onnx,
        library="tensorrt_rtx",
        version=new.record.identity.version,
        gpu=None,
    )
    assert reason == "it was built from another ONNX file than the bundle now holds"


def build_spec(folder: Path) -> ModelSpec:
    values = json.loads((folder / "model.json").read_text())
    values.pop("files")
    values.pop("seal")
    return ModelSpec.from_json(values, "here")


def test_an_fp32_graph_passed_off_as_fp16_is_refused(folder: Path) -> None:
    """Planted fault: the names say fp16, the graph is FP32."""
    shutil.copyfile(folder / "model.onnx", folder / "model.fp16.onnx")
    with pytest.raises(PrecisionError, match="only 0% of its convolutions"):
        build_into(folder, build_spec(folder), RTX, silent)
    assert not (folder / "engines").exists()


def test_an_operator_that_tensorrt_lacks_is_named_with_its_node(folder: Path) -> None:
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    node = next(n for n in model.graph.node if n.name == "head/Conv")
    node.op_type, node.domain = "Nonsense", "nowhere"
    model.opset_import.append(onnx.helper.make_opsetid("nowhere", 1))
    onnx.save(model, str(path))
    with pytest.raises(BuildError, match=r"head/Conv.*Nonsense") as caught:
        build_into(folder, build_spec(folder), replace(RTX, precision="fp32"), silent)
    assert caught.value.exit_code == 1
    assert not (folder / "engines").exists()


def test_a_profile_that_does_not_fit_the_graph_is_refused(folder: Path) -> None:
    wrong = replace(build_spec(folder), tile=(8, 16, 32), window=(8, 16, 32))
    with pytest.raises(BuildError, match=r"32|profile|dimension"):
        build_into(folder, wrong, RTX, silent)
    assert not (folder / "engines").exists()


def test_a_build_that_is_cancelled_leaves_nothing(folder: Path) -> None:
    told: list[str] = []

    def stop(text: str, share: float | None) -> None:
        told.append(text)
        if len(told) > 3:
            raise CancelledError("enough")

    with pytest.raises(CancelledError):
        build_into(folder, build_spec(folder), RTX, stop)
    assert told[0] == "TensorRT: Building engine"
    assert not (folder / "engines").exists()


def crash(body: str) -> Callable[..., None]:
    def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tensorrt_rtx.py").write_text(
            f"import time\n__version__ = '1'\n"
            f"class ILogger: pass\n"
            f"def Builder(log):\n    print('the last words')\n    {body}\n"
        )
        # The child imports this one; this process has no need of any.
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        fake = SimpleNamespace(__version__="1")
        monkeypatch.setattr(plans, "import_library", lambda name: fake)

    return plant


def test_a_builder_that_crashes_is_a_sentence(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash("import ctypes, sys; sys.stdout.flush(); ctypes.string_at(0)")(
        tmp_path, monkeypatch
    )
    with pytest.raises(BuildError, match=r"crashed .SIGSEGV.*the last words"):
        build_into(folder, build_spec(folder), RTX, silent)
    assert not (folder / "engines").exists()


@pytest.mark.parametrize("agrees", [True, False])
def test_an_engine_is_kept_only_where_its_answers_agree(
    folder: Path, monkeypatch: pytest.MonkeyPatch, agrees: bool
) -> None:
    """With a GPU; the child that would run the engine is a stand-in here."""
    real = building._ask

    def ask(library: Any, asked: Any, tell: Any, timeout_s: Any) -> Any:
        if asked["do"] != "run":
            assert asked["gpu"] == 0
            return real(library, asked | {"gpu": None}, tell, timeout_s)
        with np.load(asked["golden"]) as golden:
            answers = golden["probability"]
        # The widest batch, as a run asks it, with a tile in every place.
        assert asked["batch"] == build_spec(folder).max_batch > len(answers)
        answers = np.resize(answers, (asked["batch"], *answers.shape[1:]))
        np.save(asked["answers"], answers if agrees else answers[..., ::-1])
        return {"gpu": "Fake GPU", "seconds_a_tile": 0.001}

    gpu = Gpu(0, "Fake GPU", "8.9", 8 << 30)
    monkeypatch.setattr(building, "_ask", ask)
    monkeypatch.setattr(building, "gpus", lambda: [gpu])
    if agrees:
        made = build_into(folder, build_spec(folder), RTX, silent)
        assert made.record.facts["parity"]["flips"] == 0
        assert made.record.facts["ran_on"]["gpu"] == "Fake GPU"
        return
    with pytest.raises(ParityError, match="engine: the answers changed"):
        build_into(folder, build_spec(folder), RTX, silent)
    assert not list(folder.glob("engines/*.engine"))
    assert not list(folder.glob("engines/*.npy"))


def test_a_builder_that_hangs_is_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash("time.sleep(600)")(tmp_path, monkeypatch)
    with pytest.raises(BuildError, match=r"longer than 0\.5 s"):
        build_into(folder, build_spec(folder), replace(RTX, timeout_s=0.5), silent)
    assert not (folder / "engines").exists()


def test_what_is_missing_is_named_with_its_cure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = build_spec(folder)
    monkeypatch.setattr(plans, "libraries", lambda: ("tensorrt",))
    monkeypatch.setattr(building, "gpus", list)
    with pytest.raises(TensorRtMissingError, match="--library tensorrt_rtx"):
        build_into(folder, spec, BuildSettings(), silent)
    monkeypatch.setattr(plans, "libraries", lambda: ("tensorrt_rtx",))
    hopper = Gpu(0, "NVIDIA H200", "9.0", 141 << 30)
    monkeypatch.setattr(building, "gpus", lambda: [hopper])
    with pytest.raises(TensorRtMissingError, match=r"H200 has 9\.0.*\[tensorrt\]"):
        build_into(folder, spec, BuildSettings(), silent)
    monkeypatch.setattr(plans, "libraries", tuple)
    with pytest.raises(TensorRtMissingError, match="pip install tensorrt-rtx"):
        build_into(folder, spec, RTX, silent)
    with pytest.raises(TensorRtMissingError, match=r"neurodeploy\[tensorrt\]"):
        build_into(folder, spec, BuildSettings(), silent)


def test_options_that_cannot_be_are_refused(folder: Path) -> None:
    for options, says in (
        ({"optimisation": 6}, "between 0 and 5"),
        ({"hardware_compatibility": "volta"}, "'volta' is unknown"),
        ({"workspace_bytes": 10}, "at least 1 MiB"),
    ):
        with pytest.raises(ExportRequestError, match=says):
            BuildSettings(**options)  # type: ignore[arg-type]
    with pytest.raises(ExportRequestError, match="portable among GPUs"):
        build_into(
            folder, build_spec(folder), replace(RTX, version_compatible=True), silent
        )
    (folder / "model.fp16.onnx").unlink()
    with pytest.raises(ExportRequestError, match="--precision fp16"):
        build_into(folder, build_spec(folder), replace(RTX, precision="fp16"), silent)


def test_the_worker_does_not_need_torch_or_onnx(tmp_path: Path) -> None:
    import subprocess

    code = (
        "import sys, neurodeploy_export._build_worker; "
        "print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == "[]"
