"""From a checkpoint to a verified bundle, by the commands a user types."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tifffile
import torch
from bundles import identity_spec, write_identity_bundle

from neurodeploy.networks import Network, NetworkConfig
from neurodeploy.training import Checkpoint, save_checkpoint
from neurodeploy_runtime import BundleWriter, load_bundle

CONFIG = NetworkConfig(tile=(8, 32, 32), width=24, depth=1, heads=2, taps=(1,))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    network = Network(CONFIG)
    with torch.no_grad():
        network.decoder.head.weight.mul_(10)  # so that some answers are neurites
    folder = tmp_path_factory.mktemp("run") / "best"
    made = Checkpoint(CONFIG, 1, name="tiny", threshold=0.4)
    save_checkpoint(folder, made, network.state_dict())
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(2)
    voxels = rng.normal(1000, 40, (16, 70, 70))
    for i in range(60):
        voxels[i // 4, i : i + 3, i + 2 : i + 5] += 900
    path = tmp_path_factory.mktemp("image") / "brain.tif"
    tifffile.imwrite(
        path, voxels.clip(0, 65535).astype(np.uint16), photometric="minisblack"
    )
    return path


def test_a_checkpoint_becomes_a_bundle_that_verifies(
    checkpoint: Path,
    image: Path,
    tmp_path: Path,
    run: Callable[..., Any],
) -> None:
    out = tmp_path / "a tiny.bundle"
    ended = run(
        *("export", checkpoint, "-o", out, "--tiles", image, "--tile-count", 2),
        *("--precision", "fp16", "--max-batch", 3, "--to", "triton"),
        *("--keep-fp32", "head", "--max-flips", 0.01, "--min-dice", 0.99),
    )
    assert ended.code == 0, ended.err
    assert "PyTorch to FP16" in ended.out
    assert "measuring the range of every node" in ended.err
    bundle = load_bundle(out)
    names = [node.name for node in onnx.load(bundle.onnx("fp32")).graph.node]
    assert not [name for name in names if name.startswith("_")]
    assert bundle.precisions == ("fp32", "fp16")
    assert (bundle.spec.max_batch, bundle.spec.threshold) == (3, 0.4)
    for step in bundle.spec.parity["steps"].values():
        assert 0.02 < step["foreground"] < 0.2
    triton = tmp_path / "a tiny.bundle.triton"
    assert (triton / "tiny_fp16" / "config.pbtxt").is_file()
    # What it says to do next can be pasted, whatever is in the path.
    words = shlex.split(ended.out.splitlines()[-1].removeprefix("next: neurodeploy "))
    assert words == ["verify", str(out)]
    ended = run(*words, "--device", "cpu")
    assert ended.code == 0
    assert "same  onnxruntime fp32 on cpu" in ended.out


def test_wrong_requests_are_a_sentence_and_exit_code_2(
    checkpoint: Path,
    image: Path,
    tmp_path: Path,
    run: Callable[..., Any],
) -> None:
    small = tmp_path / "small.tif"
    flat = np.arange(4 * 40 * 40, dtype="u2").reshape(4, 40, 40)
    tifffile.imwrite(small, flat, photometric="minisblack")
    (tmp_path / "c.triton").mkdir()
    typo = (
        *(checkpoint, "-o", tmp_path / "b", "--tiles", image, "--tile-count", 1),
        *("--precision", "fp16", "--keep-fp32", "decodr"),
    )
    for arguments, says in (
        ((checkpoint, "-o", tmp_path / "c", "--to", "triton"), "c.triton exists"),
        ((tmp_path, "-o", tmp_path / "b"), "is no checkpoint"),
        ((checkpoint, "-o", image), "exists"),
        ((checkpoint, "-o", tmp_path / "b", "--opset", 24), "opset 24"),
        ((checkpoint, "-o", tmp_path / "b", "--tiles", small), "4 < 8 on axis z"),
        ((checkpoint, "-o", tmp_path / "b", "--io", "fp16"), "--precision fp16"),
        ((checkpoint, "-o", tmp_path / "no" / "b", "--tiles", image), "does not exist"),
        (typo, "'decodr' matches no node: names look like network.encoder"),
    ):
        ended = run("export", *arguments)
        assert ended.code == 2
        assert says in ended.err.splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.triton", "small.tif"]


def test_a_bundle_that_answers_otherwise_than_it_did_fails_and_exits_with_1(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    """It exited with 0: no script would have noticed."""
    good = write_identity_bundle(tmp_path / "good", identity_spec())
    golden = good.golden()
    with BundleWriter(tmp_path / "bad") as writer:
        shutil.copy(good.path / "model.onnx", writer.folder)
        other = 1 - golden.probability
        np.savez(writer.folder / "golden.npz", voxels=golden.voxels, probability=other)
        writer.seal(good.spec)
    assert run("verify", good.path, "--device", "cpu").code == 0
    ended = run("verify", tmp_path / "bad", "--device", "cpu")
    assert "FAIL" in ended.out
    assert ended.code == 1
