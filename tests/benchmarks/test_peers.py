"""What `peers.py` holds the peers to: their own tiles, and nothing compiled in time."""

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tifffile

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import peers  # noqa: E402

TILE = 8


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """What a job is asked for, on a volume of two tiles along each axis."""
    extent = 2 * TILE - round(TILE * peers.OVERLAP)
    image = np.random.default_rng(0).integers(0, 256, (extent,) * 3, np.uint8)
    tifffile.imwrite(tmp_path / "in.tif", image)
    return {
        "folder": str(tmp_path),
        "size": {"tile": TILE},
        "input": str(tmp_path / "in.tif"),
        "output": str(tmp_path / "out.tif"),
        "shape": list(image.shape),
        "normalisation": {"kind": "unit", "background": 0.0, "noise": 255.0},
        "threads": 1,
        "tiles": 8,
    }


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution in the place of the network, which takes minutes to compile."""
    torch = pytest.importorskip("torch")

    def unetr(size: object, last: Path) -> Any:
        return torch.nn.Sequential(
            torch.nn.Conv3d(1, 1, 3, padding=1), torch.nn.Sigmoid()
        ).eval()

    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    stand_in = SimpleNamespace(unetr=unetr, Size=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "_unetr", stand_in)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nothing_is_compiled_in_the_run_that_is_timed(
    values: dict[str, Any],
    small_network: None,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("monai")
    compiled = []

    def count(graph: Any, example: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    run, tile, tiles = peers.monai(precision, compiled=True)(values)
    tile()
    before = len(compiled)
    run()
    assert before == 1
    assert len(compiled) == before
    assert tiles == 8


def test_a_peer_is_held_to_the_tiles_that_it_runs_itself() -> None:
    # 8 tiles of 96 with a quarter of overlap cover it; cropped, they are 72 wide.
    assert peers.cropped_tiles((168, 168, 168), 96, 12) == 27


def test_the_tiles_of_torch_em_are_counted_as_it_runs_them(
    values: dict[str, Any], small_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_em")
    network = peers.torch_network(values, "fp32", False)
    calls = []

    def counted(voxels: Any) -> Any:
        calls.append(voxels)
        return network(voxels)

    monkeypatch.setattr(peers, "torch_network", lambda *asked: counted)
    run, _, tiles = peers.torch_em(values)
    run()
    assert len(calls) == tiles
    assert tiles > values["tiles"]


def test_the_table_shows_the_memory_of_the_process_and_the_tiles() -> None:
    one = {"median": 1.0, "least": 1.0, "most": 1.0, "n": 1}
    row = {
        "variant": "torch-em, torch fp32",
        "wall_s": one,
        "mvoxel_per_s": one,
        "over_monai_fp32": one,
        "over_monai_bf16": None,
        "tiles": 27,
        "over_tiles": one,
        "peak_bytes": {**one, "median": 54 * 2**20},
        "peak_rss_bytes": 932 * 2**20,
        "labels": None,
    }
    text = peers.show([row])
    assert "process MiB" in text
    assert " 932 " in text
    assert " 54 " not in text
    assert " 27 " in text
