"""An exported bundle says what the network says, or does not exist."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from tiny_unetr import TinyUnetr, make_spec
from torch import nn

from neurodeploy_export import (
    ExportError,
    ExportRequestError,
    ExportSettings,
    ParityError,
    compare,
    export_bundle,
)
from neurodeploy_export._card import render
from neurodeploy_export._graph import check_batch_is_dynamic, check_sizes
from neurodeploy_export._onnx import check_module
from neurodeploy_export._tiles import write_golden
from neurodeploy_runtime import (
    Bundle,
    BundleError,
    EngineSettings,
    ModelSpec,
    OutputError,
    WriteError,
    load_bundle,
    open_engine,
)

Tiles = NDArray[np.float32]
MakeNetwork = Callable[..., nn.Module]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_bundle_answers_as_the_network_at_any_batch(
    bundle: Bundle, network: nn.Module, tiles: Tiles, engine: Any, batch: int
) -> None:
    pytest.importorskip(engine)
    with torch.inference_mode():
        wanted = network(torch.from_numpy(tiles)).numpy()
    settings = EngineSettings(engine=engine, device="cpu", batch=batch)
    with open_engine(bundle, settings) as opened:
        for i in range(0, len(tiles), batch):
            got = np.empty((batch, *wanted.shape[1:]), np.float32)
            opened.infer(tiles[i : i + batch], got)
            assert np.abs(got - wanted[i : i + batch]).max() < 1e-5


def test_golden_answers_are_those_of_the_golden_tiles(
    bundle: Bundle, network: nn.Module
) -> None:
    golden = bundle.golden()
    with torch.inference_mode():
        answers = network(torch.from_numpy(golden.voxels)).numpy()
    assert np.abs(answers - golden.probability).max() < 2**-16
    assert (golden.probability > 0.5).mean() > 0.005  # there is something to lose


def test_no_label_changes_by_being_frozen(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    threshold = float(np.float32(0.3000123))
    answers = (threshold + rng.normal(0, 4e-6, (2, 1, 4, 8, 8))).astype(np.float32)
    answers[:, :, 0] = threshold
    write_golden(tmp_path, answers, answers, threshold, 1 << 20)
    with np.load(tmp_path / "golden.npz") as golden:
        frozen = golden["probability"]
    parity = compare("frozen", answers, frozen, threshold)
    assert (parity.flips, parity.dice) == (0, 1)
    assert 0 < parity.max_difference < 2**-16


def test_the_graph_is_named_after_the_modules_and_holds_no_path_of_this_machine(
    bundle: Bundle,
) -> None:
    graph = bundle.onnx("fp32").read_bytes()
    assert b".py" not in graph
    assert str(Path.cwd()).encode() not in graph
    model = onnx.load_from_string(graph)
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"block.qkv/MatMul", "up/ConvTranspose", "head/Conv"} <= set(names)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["neurodeploy.tile"]) == list(bundle.spec.tile)
    assert metadata["neurodeploy.normalisation"] == "background-asinh"


def test_the_saved_batch_is_dynamic_and_the_tile_is_not(bundle: Bundle) -> None:
    model = onnx.load(str(bundle.onnx("fp32")))
    for value in (model.graph.input[0], model.graph.output[0]):
        dims = value.type.tensor_type.shape.dim
        assert dims[0].dim_param
        assert [d.dim_value for d in dims[1:]] == [1, *bundle.spec.tile]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(ExportError, match="fixed batch 2"):
        check_batch_is_dynamic(model, bundle.spec.tile, bundle.spec.window)


def test_the_query_is_scaled_before_the_first_product(bundle: Bundle) -> None:
    nodes = onnx.load(str(bundle.onnx("fp32"))).graph.node
    by_output = {node.output[0]: node for node in nodes}
    softmax = next(n for n in nodes if n.op_type == "Softmax")
    product = by_output[softmax.input[0]]
    assert product.op_type == "MatMul"
    assert by_output[product.input[0]].op_type == "Mul"


def test_parity_figures_and_pictures_are_in_the_bundle(bundle: Bundle) -> None:
    steps = bundle.spec.parity["steps"]
    assert steps["onnx"]["flips"] == 0
    assert 0 < steps["fp16"]["max_difference"] < 0.05  # rounding did happen
    assert {"parity_onnx.png", "parity_fp16.png", "MODEL_CARD.md"} <= set(bundle.files)
    card = (bundle.path / "MODEL_CARD.md").read_text()
    assert f"{steps['fp16']['max_difference']:.2e}" in card


def test_slice_mode_exports(tmp_path: Path, tiles: Tiles) -> None:
    # A window of one plane lies in the middle of an odd number of them.
    torch.manual_seed(2)
    net = _Odd(TinyUnetr(tile=(4, 16, 16))).eval()
    deep = np.concatenate([tiles[:, :, :4], tiles[:, :, 2:3]], axis=2)
    slice_spec = ModelSpec(
        name="slices",
        mode="slice",
        tile=(5, 16, 16),
        window=(1, 16, 16),
        overlap=(0.0, 0.25, 0.25),
        threshold=0.5,
    )
    made = export_bundle(net, slice_spec, deep, ExportSettings(), tmp_path / "b")
    assert made.golden().probability.shape[1:] == (1, 1, 16, 16)
    assert made.spec.parity["steps"]["onnx"]["flips"] == 0


class _Odd(nn.Module):
    """Five planes in, the centre one out."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.inner(x[:, :, :4])[:, :, 2:3]
        return answer


def test_an_axis_flipped_on_the_way_is_caught_and_nothing_is_left(
    folder_is_empty: Path, new_network: MakeNetwork, tiles: Tiles, spec: ModelSpec
) -> None:
    broken = new_network(flips_when_exported=True)
    with pytest.raises(ParityError, match="onnx: the answers changed") as caught:
        export_bundle(broken, spec, tiles, ExportSettings(), folder_is_empty / "b")
    assert caught.value.exit_code == 1
    assert (folder_is_empty / "b.failed-onnx.png").read_bytes()[1:4] == b"PNG"
    # One that is there is not written over, whosever it is.
    (folder_is_empty / "b.failed-onnx.png").write_bytes(b"another")
    with pytest.raises(ParityError, match=r"failed-onnx-2\.png"):
        export_bundle(broken, spec, tiles, ExportSettings(), folder_is_empty / "b")
    assert (folder_is_empty / "b.failed-onnx.png").read_bytes() == b"another"


def test_a_disk_that_fills_up_amid_the_weights_leaves_nothing(
    folder_is_empty: Path, network: nn.Module, tiles: Tiles, spec: ModelSpec
) -> None:
    size = sum(p.numel() * 4 for p in network.parameters())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        with pytest.raises(WriteError, match="free space there"):
            export_bundle(network, spec, tiles, ExportSettings(), folder_is_empty / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file", [".check.onnx", "parity_onnx.png", "model.json"])
def test_a_disk_that_fills_up_amid_any_file_leaves_nothing(
    folder_is_empty: Path,
    network: nn.Module,
    tiles: Tiles,
    spec: ModelSpec,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    really_open = Path.open

    def full(path: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        if path.name == file and "w" in mode:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_open(path, mode, *others, **named)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(WriteError, match="free space there"):
        export_bundle(network, spec, tiles, ExportSettings(), folder_is_empty / "b")


def test_weights_beside_the_graph_are_sealed_with_it(
    tmp_path: Path, network: nn.Module, tiles: Tiles, spec: ModelSpec
) -> None:
    settings = ExportSettings(precision="fp16", external_data_above_bytes=0)
    made = export_bundle(network, spec, tiles, settings, tmp_path / "b")
    assert {"model.onnx.data", "model.fp16.onnx.data"} <= set(made.files)
    with open_engine(made, EngineSettings(device="cpu")) as engine:
        answer = np.empty(engine.output_shape, np.float32)
        engine.infer(made.golden().voxels[:1], answer)
    assert np.abs(answer - made.golden().probability[:1]).max() < 1e-4
    assert not list(tmp_path.glob("**/.check*")) + list(tmp_path.glob("**/raw*"))
    # The data of another export: same size, other weights.
    data = made.path / "model.onnx.data"
    swapped = np.fromfile(data, np.uint8)
    swapped[-64:] ^= 1
    swapped.tofile(data)
    with pytest.raises(BundleError, match=r"model\.onnx\.data was altered"):
        load_bundle(made.path)


def test_a_batch_taken_as_a_constant_is_refused(
    folder_is_empty: Path, tiles: Tiles, spec: ModelSpec
) -> None:
    class Constant(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x.reshape(len(x), -1).reshape(2, *x.shape[1:]))

    class OnlyInExport(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.constant = Constant()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.compiler.is_exporting():
                answer: torch.Tensor = self.constant(x)
                return answer
            return torch.sigmoid(x)

    with pytest.raises(ExportError):
        export_bundle(
            OnlyInExport().eval(), spec, tiles, ExportSettings(), folder_is_empty / "b"
        )


def test_a_network_with_nan_weights_or_in_training_is_refused(
    new_network: MakeNetwork,
) -> None:
    broken = new_network()
    with torch.no_grad():
        broken.get_parameter("head.bias")[0] = float("nan")
    with pytest.raises(
        ExportRequestError, match=r"1 of 1 values of the weight head\.b"
    ):
        check_module(broken)
    training = new_network()
    training.get_submodule("block").train()
    with pytest.raises(ExportRequestError, match="block is in training mode"):
        check_module(training)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.astype(np.float64), "float64, not float32"),
        (lambda t: t[:, :, :4], "cut them to the model's tile"),
        (lambda t: t[:0], "cut them to the model's tile"),
        (lambda t: np.where(t > 3, np.nan, t), "NaN, infinite"),
        (lambda t: np.where(t > 3, np.float32(1e6), t), "beyond 65504"),
        (lambda t: np.zeros_like(t), "prove nothing"),
    ],
)
def test_tiles_that_prove_nothing_are_refused(
    folder_is_empty: Path,
    network: nn.Module,
    tiles: Tiles,
    spec: ModelSpec,
    change: Callable[[Tiles], Tiles],
    says: str,
) -> None:
    with pytest.raises(ExportRequestError, match=says) as caught:
        export_bundle(
            network, spec, change(tiles), ExportSettings(), folder_is_empty / "b"
        )
    assert caught.value.exit_code == 2


def test_tiles_in_which_nothing_is_found_are_refused(
    tmp_path: Path, network: nn.Module, tiles: Tiles, spec: ModelSpec
) -> None:
    """A graph that collapsed to background would agree on all of them."""
    blind = replace(spec, threshold=0.999999)
    settings = ExportSettings()
    with pytest.raises(ExportRequestError, match=r"finds nothing .* --min-dice 0"):
        export_bundle(network, blind, tiles, settings, tmp_path / "b")
    assert not list(tmp_path.iterdir())
    loose = replace(settings.limits_fp32, dice=0.0)
    settings = replace(settings, limits_fp32=loose, limits_fp16=loose)
    made = export_bundle(network, blind, tiles, settings, tmp_path / "b")
    assert made.spec.parity["steps"]["onnx"]["foreground"] == 0


def test_logits_instead_of_probabilities_are_refused(
    folder_is_empty: Path, tiles: Tiles, spec: ModelSpec
) -> None:
    with pytest.raises(ExportRequestError, match="end it with a sigmoid"):
        export_bundle(
            nn.Identity().eval(), spec, tiles, ExportSettings(), folder_is_empty / "b"
        )


def test_a_bundle_that_exists_is_not_touched(
    tmp_path: Path, bundle: Bundle, network: nn.Module, tiles: Tiles, spec: ModelSpec
) -> None:
    there = tmp_path / "b"
    shutil.copytree(bundle.path, there)
    with pytest.raises(OutputError, match="--overwrite"):
        export_bundle(network, spec, tiles, ExportSettings(), there)
    assert load_bundle(there).digest == bundle.digest


def test_settings_that_cannot_be_are_refused() -> None:
    for options, says in (
        ({"opset": 23}, "opset 23"),
        ({"opset": 11}, "opset 11"),
        ({"io": "fp16"}, "--precision fp16"),
        ({"keep_fp32": ("(",)}, "regular expression"),
        ({"precision": "int8"}, "neither fp32 nor fp16"),
        ({"max_batch": 0}, "max batch 0"),
    ):
        with pytest.raises(ExportRequestError, match=says):
            ExportSettings(**options)  # type: ignore[arg-type]


def test_a_tensor_beyond_what_can_be_indexed_names_the_batch_that_fits(
    bundle: Bundle,
) -> None:
    model = onnx.load(str(bundle.onnx("fp32")))
    sizes = check_sizes(model, 4)
    widest = max(sizes.values()) // 4
    fits = (2**31 - 1) // widest
    check_sizes(model, fits)
    with pytest.raises(ExportRequestError, match=f"--max-batch {fits}"):
        check_sizes(model, fits + 1)


def test_a_card_counts_the_volumes_of_a_training_and_does_not_list_them() -> None:
    volume = {"name": "cube", "image": "00", "labels": "11"}
    volumes = {"training": [volume] * 300, "validation": [], "before": [volume] * 2}
    spec = replace(make_spec(), training={"steps": 400, "volumes": volumes})
    card = render(spec)
    assert "- steps: 400" in card
    assert "- volumes: 300 training, 2 before (`model.json` names them)" in card
    assert "cube" not in card
