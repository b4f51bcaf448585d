"""How far a run is, told as it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a run is; voxels of the output.

    `note` says, in a sentence, what it waits for, where that is not the machine.
    """

    done_voxels: int
    total_voxels: int
    resumed_voxels: int
    seconds: float
    note: str = ""


ProgressCallback = Callable[[Progress], None]
