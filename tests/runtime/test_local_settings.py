"""What is fastest on this machine is what runs, until somebody says otherwise."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from bundles import identity_spec, write_identity_bundle

from neurodeploy_runtime import (
    Bundle,
    BundleError,
    CancelledError,
    EngineSettings,
    OutputError,
    Progress,
    Segmenter,
    SegmentSettings,
    SettingsError,
    as_begun,
    load_bundle,
    open_engine,
    open_volume,
)
from neurodeploy_runtime._paths import Paths
from neurodeploy_runtime.engines import _local, keep_local, may_keep

ORT = EngineSettings("onnxruntime", "cpu", "fp32")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    spec = replace(identity_spec((8, 16, 16)), max_batch=8)
    return write_identity_bundle(tmp_path / "identity", spec)


def keep(bundle: Bundle, **changed: Any) -> Path:
    values = {
        "engine": "onnxruntime",
        "device": "cpu",
        "precision": "fp32",
        "batch": 4,
        "threads": 1,
        "tile_s": 0.01,
    }
    return keep_local(bundle, **(values | changed))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_runs_with_what_was_kept_here(
    bundle: Bundle, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    asked = replace(ORT, engine=engine)  # type: ignore[arg-type]
    keep(bundle, engine=engine, batch=2)
    keep(bundle, engine=engine, batch=4)
    again = load_bundle(bundle.path)
    assert again.digest == bundle.digest
    with open_engine(again, asked) as opened:
        assert opened.batch == 4
    with open_engine(again, replace(asked, batch=3)) as opened:
        assert opened.batch == 3
    monkeypatch.setattr(_local, "usable_cores", lambda: 999)
    with open_engine(again, asked) as opened:
        assert opened.batch == 1


def test_the_threads_that_were_kept_are_those_of_the_session(bundle: Bundle) -> None:
    keep(bundle, threads=7)
    with open_engine(bundle, ORT) as opened:
        options = opened._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 7
    with open_engine(bundle, replace(ORT, threads=3)) as opened:
        options = opened._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 3


def test_another_engine_or_precision_has_settings_of_its_own(bundle: Bundle) -> None:
    keep(bundle, engine="openvino")
    keep(bundle, precision="fp16")
    with open_engine(bundle, ORT) as opened:
        assert opened.batch == 1
    keep(bundle)
    path = keep(bundle, batch=2)
    assert len(json.loads(path.read_text())) == 3


GOOD: dict[str, Any] = {
    "engine": "onnxruntime",
    "precision": "fp32",
    "machine": "a CPU",
    "batch": 1,
    "threads": None,
    "tile_s": 0.1,
    "date": "2026-11-23",
}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not what `neurodeploy benchmark --tune` writes"),
        ("3", "not iterable"),
        ("[" * 100_000, "not what"),
        (json.dumps([{"batch": 1}]), "does not hold batch, date, engine"),
        (json.dumps([{**GOOD, "more": 1}]), "does not hold"),
        (json.dumps([{**GOOD, "batch": 0}]), "batch 0 is not between 1 and 8"),
        (json.dumps([{**GOOD, "batch": 9}]), "batch 9 is not between 1 and 8"),
        (json.dumps([{**GOOD, "batch": True}]), "batch True"),
        (json.dumps([{**GOOD, "threads": 0}]), "threads 0 is not"),
        (json.dumps([{**GOOD, "machine": 3}]), "are texts"),
        (json.dumps([{**GOOD, "tile_s": "fast"}]), "tile_s 'fast' is no time"),
        (json.dumps([{**GOOD, "tile_s": float("nan")}]), "tile_s nan is no time"),
        (" " * 1_000_001, "1000001 bytes"),
    ],
)
def test_a_file_that_is_no_list_of_settings_is_refused(
    bundle: Bundle, text: str, says: str
) -> None:
    (bundle.path / "local.json").write_text(text)
    with pytest.raises(BundleError, match=says) as caught:
        open_engine(bundle, ORT)
    assert "remove it" in str(caught.value)


def test_where_nothing_can_be_kept_a_sentence_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_local, "write_atomically", full)
    with pytest.raises(OutputError, match=r"cannot write .*local\.json .*No space"):
        keep(bundle)
    assert may_keep(bundle)
    if os.name != "nt" and os.geteuid() != 0:
        bundle.path.chmod(0o500)
        assert not may_keep(bundle)


@pytest.mark.parametrize(("more", "batch"), [((), 2), (("--overwrite",), 4)])
def test_a_run_goes_on_with_the_batch_that_it_was_begun_with(
    bundle: Bundle,
    tmp_path: Path,
    run: Callable[..., Any],
    more: tuple[str, ...],
    batch: int,
) -> None:
    """Settings that were kept in between are those of a run that begins again."""
    voxels = np.random.default_rng(0).integers(0, 256, (200, 30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", voxels)
    cancel = threading.Event()

    def told(progress: Progress) -> None:
        if progress.done_voxels:
            cancel.set()
            # Two slabs go round: it cannot end before the writer goes on.
            time.sleep(0.5)

    settings = SegmentSettings(engine=replace(ORT, batch=2))
    with (
        open_volume(tmp_path / "in.tif") as source,
        Segmenter(bundle, settings) as segmenter,
        pytest.raises(CancelledError),
    ):
        segmenter.segment(source, tmp_path / "out.tif", progress=told, cancel=cancel)
    keep(bundle, batch=4)
    words = ("segment", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--quiet")
    words += ("-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu")
    ended = run(*words, *more)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["resumed_voxels"] > 0) == (not more)
    assert report["provenance"]["engine"]["batch"] == batch


@pytest.mark.parametrize(
    "plan",
    ["{}", '{"identity": 3}', '{"identity": {"engine": [1]}}']
    + [f'{{"identity": {{"engine": {{"batch": {odd}}}}}}}' for odd in ("0", '"2"')],
)
def test_a_plan_that_names_no_batch_decides_none(
    tmp_path: Path, bundle: Bundle, run: Callable[..., Any], plan: str
) -> None:
    """And the run over it says in a sentence that it is of something else."""
    voxels = np.random.default_rng(0).integers(0, 256, (20, 30, 40), np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", voxels)
    work = Paths.of(tmp_path / "out.tif", "mask").work
    work.mkdir()
    (work / "plan.json").write_text(plan)
    settings = SegmentSettings(engine=ORT)
    assert as_begun(settings, tmp_path / "out.tif") == settings
    words = ("segment", tmp_path / "in.tif", "-o", tmp_path / "out.tif", "--quiet")
    ended = run(*words, "-m", bundle.path, "--engine", "onnxruntime", "--device", "cpu")
    assert ended.code == 2
    assert "holds an unfinished run that differs in" in ended.err


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_batch_that_no_memory_holds_is_refused(bundle: Bundle, engine: str) -> None:
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    asked = replace(ORT, engine=engine, batch=10**9)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"a batch of 1000000000 tiles takes"):
        open_engine(bundle, asked)
