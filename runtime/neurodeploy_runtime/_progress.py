"""How far a run is, told as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is; voxels of the output."""

    done_voxels: int
    total_voxels: int
    resumed_voxels: int
    seconds: float


ProgressCallback = Callable[[Progress], None]
