"""`neurodeploy benchmark`, and the comparison of engines that it shows."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile
from bundles import identity_spec, write_identity_bundle
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy.cli import main
from neurodeploy.cli._benchmark import _draw, _show, _show_trials
from neurodeploy.cli._info import describe_bundle
from neurodeploy_runtime import (
    Axis,
    Bundle,
    DeviceError,
    EngineSettings,
    Segmenter,
    TilePlan,
    WriteError,
    choose_engine,
    create_sink,
    load_bundle,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.engines import _openvino, read_local
from neurodeploy_runtime.measure import (
    STAGES,
    Comparison,
    Measured,
    Peaks,
    Trial,
    _compare,
    _peaks,
    agreement,
    candidates,
    compare_engines,
    middle,
)
from neurodeploy_runtime.measure._compare import bottleneck, measure_one

MakeBundle = Callable[..., Bundle]
PEAKS = Peaks({"fp32 numpy": 1e9}, 1e9, 1)


def test_an_engine_is_measured_in_a_process_of_its_own_or_named_with_its_reason(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_identity_bundle(tile=(8, 16, 16))
    path = tmp_path / "in.tif"
    voxels = np.random.default_rng(0).integers(0, 256, (12, 30, 30), np.uint8)
    tifffile.imwrite(path, voxels)
    asked = EngineSettings(engine="onnxruntime", device="cpu")
    found = compare_engines(bundle, path, settings=asked, repeat=1, peaks=PEAKS)
    (row,) = found.rows
    assert row.name == "onnxruntime fp32 on cpu"
    assert row.tiles == 2 * 3 * 3
    assert row.mvoxel_per_s > 0
    assert row.over_tiles > 0
    assert {"read", "normalise", "infer", "blend", "write"} <= set(row.seconds)
    assert list(found.impossible) == ["onnxruntime bf16 on cpu"]


def test_the_time_of_a_run_is_that_from_file_to_file(
    make_identity_bundle: MakeBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, np.arange(8 * 16 * 16, dtype=np.uint16).reshape(8, 16, 16))
    segment = Segmenter.segment

    def and_finish(*asked: Any, **more: Any) -> Any:
        report = segment(*asked, **more)
        time.sleep(0.3)  # as finishing a large output does, after the stream
        return report

    monkeypatch.setattr(Segmenter, "segment", and_finish)
    found = measure_one(
        {
            "bundle": str(make_identity_bundle(tile=(8, 16, 16)).path),
            "input": str(path),
            "engine": {"engine": "onnxruntime", "device": "cpu"},
            "roi": None,
            "reading": {},
            "output": str(tmp_path / "out.tif"),
        }
    )
    assert found["wall_s"] >= 0.3
    assert found["engine_busy"] <= 1 - 0.3 / found["wall_s"]


def test_the_peak_is_the_best_of_all_sizes_and_of_products_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def make(a: Any, b: Any) -> Callable[[], object]:
        tried.append(len(a))
        return lambda: None

    rates = {4: 10.0, 8: 40.0, 16: 20.0, 1024: 1.0}
    monkeypatch.setattr(
        _peaks,
        "_best",
        lambda work, seconds: 2 * _peaks.CHAIN * tried[-1] ** 3 / rates[tried[-1]],
    )
    assert _peaks._fastest(make, (4, 8, 16), 1e6) == 40.0
    # At 40 FLOP/s the last would take years.
    assert _peaks._fastest(make, (4, 8, 16, 1024), 1e3) == 40.0
    assert 1024 not in tried


def test_the_products_that_are_timed_are_those_of_the_matrices() -> None:
    pytest.importorskip("openvino")
    a, b = (np.random.default_rng(n).random((8, 8), np.float32) for n in range(2))
    found: Any = _peaks._openvino_products(a, b / 4, "fp32")()
    expected = a @ np.linalg.matrix_power(b / 4, _peaks.CHAIN)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_the_command_prints_what_was_measured_and_keeps_what_is_fastest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        "neurodeploy_runtime.measure._compare.measure_peaks", lambda: PEAKS
    )
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, np.arange(8 * 20 * 20, dtype=np.uint16).reshape(8, 20, 20))
    # A bundle of its own: what is fastest is kept in it.
    spec = replace(identity_spec((8, 16, 16)), max_batch=2)
    bundle = write_identity_bundle(tmp_path / "identity", spec)
    words = f"benchmark {path} -m {bundle.path} --engine onnxruntime --device cpu"
    plot = tmp_path / "plot.png"
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--repeat", "1", "--seconds", "0.01", "--json",
              "--quiet", "--tune", "--plot", str(plot)])  # fmt: skip
    printed = capfd.readouterr()
    assert not stop.value.code, printed.err
    values: dict[str, Any] = json.loads(printed.out)
    assert values["rows"][0]["engine"]["engine"] == "onnxruntime"
    assert {t["settings"]["batch"] for t in values["tuned"]} == {1, 2}
    fastest = values["tuned"][0]
    assert fastest["tile_s"] == min(t["tile_s"] for t in values["tuned"])
    (kept,) = read_local(load_bundle(bundle.path))
    assert (kept.batch, kept.threads, kept.tile_s) == (
        fastest["settings"]["batch"],
        fastest["settings"]["threads"],
        fastest["tile_s"],
    )
    ((name, told),) = describe_bundle(str(bundle.path))["local"].items()
    assert name == "onnxruntime fp32, 0"
    assert told.startswith(f"batch {kept.batch}, threads {kept.threads}, ")
    assert kept.machine in told
    assert values["peaks"]["copy_bytes_per_s"] == 1e9
    assert plot.read_bytes().startswith(b"\x89PNG")
    drawn = plot.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main([*words.split(), "--plot", str(plot)])
    assert stop.value.code == 2
    assert "plot.png exists" in capfd.readouterr().err
    assert plot.read_bytes() == drawn


def test_a_plot_that_the_disk_refuses_is_said_and_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    values = {"mvoxel_per_s": 1.0, "spread": (0.5, 2.0), "seconds": {"infer": 1.0}}
    row = SimpleNamespace(name="one engine", **values)
    found: Any = SimpleNamespace(rows=[row])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WriteError, match=r"p\.png cannot be drawn: No space left"):
        _draw(found, tmp_path / "p.png")
    assert not list(tmp_path.iterdir())


def test_every_engine_and_precision_is_possible_or_has_a_reason(
    make_identity_bundle: MakeBundle,
) -> None:
    found = candidates(make_identity_bundle(), EngineSettings())
    assert len({c.name for c in found}) == len(found) == 8
    reasons = {c.name: c.why_not for c in found}
    assert reasons["onnxruntime fp32 on cpu"] is None
    assert "bf16" in (reasons["onnxruntime bf16 on cpu"] or "")


def test_agreement_counts_labels_and_foreground(tmp_path: Path) -> None:
    a = np.zeros((2, 10, 10), np.uint8)
    b = a.copy()
    a[0, 0, :4] = b[0, 0, 1:5] = 255
    tifffile.imwrite(tmp_path / "a.tif", a)
    tifffile.imwrite(tmp_path / "b.tif", b)
    same, dice = agreement(tmp_path / "a.tif", tmp_path / "b.tif")
    assert same == 1 - 2 / 200
    assert dice == 2 * 3 / 8


@given(
    st.tuples(*[st.integers(1, 200)] * 3),
    st.tuples(*[st.integers(2, 40)] * 3),
    st.floats(0, 0.5),
    st.integers(1, 60),
)
def test_the_middle_of_a_volume_needs_no_tile_for_a_corner_only(
    shape: tuple[int, int, int],
    window: tuple[int, int, int],
    overlap: float,
    tiles: int,
) -> None:
    z, y, x = (Axis(w, 0, int(w * overlap)) for w in window)
    plan = TilePlan(shape, (z, y, x))
    box = middle(plan, tiles)
    assert Box.whole(shape).contains(box)
    assert min(tiles, plan.tiles) <= plan.tiles_in(box) <= max(1, 2 * tiles)


def measured(**changed: Any) -> Measured:
    """A row of the table, every figure of it unlike any other."""
    values: dict[str, Any] = {
        "name": "openvino bf16 on cpu",
        "engine": {"engine": "openvino", "device": "cpu", "precision": "bf16"},
        "mvoxel_per_s": 1.23,
        "spread": (1.11, 1.45),
        "wall_s": 61.25,
        "seconds": {stage: 10.0 + n for n, stage in enumerate(STAGES)},
        "engine_busy": 0.87,
        "tiles": 64,
        "tile_s": 0.5,
        "over_tiles": 1.07,
        "peak_rss_bytes": 2_340_000_000,
        "device_bytes": 5_670_000_000,
        "gflop_per_s": 321.0,
        "peak_share": 0.56,
        "moved_share": 0.043,
        "agreement": 0.99987,
        "dice": 0.9876,
        "bottleneck": "the network",
    }
    return Measured(**{**values, **changed})


def shown(row: Measured, capsys: pytest.CaptureFixture[str]) -> str:
    machine = {"cpu": "a CPU"}
    _show(Comparison((8, 8, 8), 1.0, 1, (row,), {}, PEAKS, machine, {}))
    return capsys.readouterr().out


def test_the_tables_hold_every_figure_that_the_json_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = shown(measured(), capsys)
    for figure in ("1.23", "1.11–1.45", "87%", "1.07", "2.34", "5.67", "321", "56%",
                   "4.3%", "0.99987", "0.9876", "61.25"):  # fmt: skip
        assert figure in text, figure
    for n, _ in enumerate(STAGES):
        assert f"{10 + n}.00" in text
    assert "…" not in text
    assert "underestimated" not in text


def test_a_share_above_the_peak_is_told_as_a_peak_that_was_underestimated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(measured(peak_share=1.59), capsys)
    assert "> 100%" in text
    assert "159" not in text
    assert "peak was underestimated" in " ".join(text.split())
    assert "underestimated" in bottleneck({"infer": 1.0}, 0.9, 1.59)


def test_what_a_gpu_holds_is_asked_while_the_engine_has_it(
    make_identity_bundle: MakeBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened = []
    monkeypatch.setattr(Segmenter, "close", lambda self: happened.append("closed"))
    monkeypatch.setattr(_compare, "_gpu_bytes", lambda device: happened.append("asked"))
    path = tmp_path / "in.tif"
    tifffile.imwrite(path, np.arange(8 * 16 * 16, dtype=np.uint16).reshape(8, 16, 16))
    measure_one(
        {
            "bundle": str(make_identity_bundle(tile=(8, 16, 16)).path),
            "input": str(path),
            "reading": {},
            "engine": {"engine": "onnxruntime", "device": "cpu"},
            "roi": None,
            "output": str(tmp_path / "out.tif"),
        }
    )
    assert happened == ["asked", "closed"]


@pytest.mark.parametrize("stage", [*STAGES, "a stage of tomorrow"])
def test_whichever_stage_takes_longest_is_the_bottleneck(stage: str) -> None:
    seconds = dict.fromkeys(STAGES, 1.0) | {"wait for planes": 9.0, stage: 2.0}
    told = bottleneck(seconds, 0.5, None)
    others = [bottleneck({**seconds, stage: 0.5, s: 2.0}, 0.5, None) for s in STAGES]
    assert told not in [o for s, o in zip(STAGES, others, strict=True) if s != stage]
    assert told


def test_a_sweep_ends_with_the_words_that_ask_for_the_fastest_and_names_the_tile(
    make_identity_bundle: MakeBundle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = EngineSettings("openvino", "cpu", "bf16", threads=2, batch=4)
    slow = EngineSettings("openvino", "cpu", "bf16", threads=1, batch=1)
    trials = [Trial(asked, 0.1, (0.1, 0.2)), Trial(slow, 0.3, (0.3, 0.4))]
    _show_trials(trials, make_identity_bundle(tile=(8, 16, 24)))
    text = capsys.readouterr().out
    words = "--engine openvino --device cpu --precision bf16 --batch 4 --threads 2"
    assert f"fastest: {words}" in text
    assert "8 × 16 × 24" in text
    assert "on this machine that is now what this engine runs with" in text


@pytest.mark.parametrize("device", ["gpu7", "cuda:0,cuda:1", "cpu,cpu"])
def test_a_device_that_is_none_or_several_is_one_sentence(
    run: Callable[..., Any], make_identity_bundle: MakeBundle, device: str
) -> None:
    """It was the name of a Python error, or none was given."""
    bundle = make_identity_bundle(tile=(8, 16, 16))
    ended = run("benchmark", "-m", bundle.path, "--device", device)
    assert ended.code == 2
    assert "use auto, cpu or cuda:N" in ended.err


def test_where_there_is_no_such_engine_at_all_that_is_said(
    make_identity_bundle: MakeBundle, tmp_path: Path
) -> None:
    asked = EngineSettings(engine="openvino", device="cuda:0")
    with pytest.raises(DeviceError, match=r"measured here: there is none of that name"):
        compare_engines(make_identity_bundle(), tmp_path / "in.tif", settings=asked)


def test_results_of_one_plane_are_compared_too(tmp_path: Path) -> None:
    mask = np.zeros((1, 9, 9), np.uint8)
    for name in "ab":
        with create_sink(tmp_path / f"{name}.tif", "tiff", mask.shape, np.uint8) as out:
            out.finish({})
    assert agreement(tmp_path / "a.tif", tmp_path / "b.tif") == (1.0, 1.0)


def test_bf16_is_not_asked_of_a_cpu_that_has_none(
    make_identity_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO computes in fp32 there, and the report said bf16."""
    pytest.importorskip("openvino", reason="the extra `openvino` is missing")
    monkeypatch.setattr(_openvino, "_capabilities", lambda: ["FP32", "INT8"])
    asked = EngineSettings(device="cpu", precision="bf16")
    with pytest.raises(DeviceError, match="this CPU has no bf16"):
        choose_engine(make_identity_bundle(), asked)
    found = candidates(make_identity_bundle(), EngineSettings("openvino", "cpu"))
    assert [one.why_not is None for one in found] == [True, False]
