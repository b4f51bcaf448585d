"""What `gpu.py` does on a GPU, as far as that can be seen without one."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu  # noqa: E402

import neurodeploy_export  # noqa: E402
from neurodeploy_export import BuildError, BuildSettings  # noqa: E402
from neurodeploy_runtime import load_bundle  # noqa: E402


def test_a_floor_counts_what_no_fusion_can_leave_out() -> None:
    network = nn.Sequential(
        nn.Conv3d(1, 2, 1, bias=False), nn.InstanceNorm3d(2, affine=True), nn.ReLU()
    )
    voxels = 4 * 4 * 4
    assert gpu.counted_bytes(network, (4, 4, 4), 1) == 4 * (voxels + 2 * voxels + 2)
    assert gpu.counted_bytes(network, (4, 4, 4), 8) == 4 * (voxels + 2 * voxels) + 1


def test_time_is_taken_when_the_device_that_was_asked_for_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    gpu.seconds_of(lambda: None, "cuda:1", 1)
    assert set(waited) == {"cuda:1"}


@pytest.mark.filterwarnings("ignore:.*TF32:UserWarning")  # of the older name
def test_fp32_of_torch_is_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its convolutions are TF32 by default, and what all others are held to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    gpu.peaks("cpu", tiny=True)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_an_engine_that_cannot_be_built_is_a_reason_and_no_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def refuse(bundle: Path, settings: BuildSettings) -> None:
        asked.append((settings.precision, settings.max_batch, settings.gpu))
        raise BuildError("no")

    monkeypatch.setattr(neurodeploy_export, "build_engine", refuse)
    assert gpu.build_engines(load_bundle(), "cuda:1", 4) == {"fp32": "no"}
    assert asked == [("fp32", 4, 1)]


def test_what_it_needs_is_named_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MONAI takes `einops` at the first network: that was a traceback."""
    monkeypatch.setattr(gpu, "find_spec", lambda name: name != "einops" or None)
    assert (gpu.why_not("cpu") or "").startswith("einops is not installed")
