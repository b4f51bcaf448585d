"""What `scaling.py` compares does differ."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scaling  # noqa: E402

from neurodeploy_runtime import Axis, TilePlan  # noqa: E402


@pytest.mark.parametrize("tile", [(16, 16, 16), (96, 96, 96), (32, 64, 64)])
def test_every_overlap_that_is_compared_needs_another_number_of_tiles(
    tile: tuple[int, int, int],
) -> None:
    counts = [
        TilePlan(
            scaling.covered(tile),
            tuple(Axis(n, 0, round(n * share)) for n in tile),  # type: ignore[arg-type]
        ).counts
        for share in scaling.OVERLAPS
    ]
    for axis in zip(*counts, strict=True):
        assert len(set(axis)) == len(scaling.OVERLAPS), counts
