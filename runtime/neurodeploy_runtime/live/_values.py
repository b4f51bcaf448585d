"""What a live segmentation gives back: planes, gaps and its status."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._normalise import Normalisation

State = Literal["streaming", "finishing", "done", "failed", "closed"]


@dataclass(frozen=True, eq=False)
class LivePlane:
    """A finished plane.

    Attributes
    ----------
    z
        Index of the plane, as it was pushed.
    voxels
        uint8 (y, x); not to be written to. Its memory is used again when nothing
        refers to it any more, so it may be kept for as long as it is wanted.
    valid
        False where planes that a tile here reads never came, or were dropped: the
        voxels are then zero, and mean nothing.
    latency_s
        From the end of the push of this plane until now; NaN for a plane that never
        came.
    lag_planes
        Planes that had arrived after this one when it was finished.
    """

    z: int
    voxels: NDArray[np.uint8]
    valid: bool
    latency_s: float
    lag_planes: int


@dataclass(frozen=True)
class Gap:
    """Planes [start, stop) that are not there, and why."""

    start: int
    stop: int
    why: Literal["missing", "dropped"]

    def __str__(self) -> str:
        last = self.stop - 1
        which = (
            f"plane {last}" if self.start == last else f"planes {self.start} to {last}"
        )
        return f"{which} {self.why}"


@dataclass(frozen=True)
class LiveStatus:
    """How a live segmentation stands, at one moment.

    `pushed` counts plane indices, absent ones included: ``pushed = queued + in_flight +
    done + lost``. `queued` planes are held in the ring, `in_flight` ones have left it
    and are not finished; `done` are finished and valid, `lost` finished and not valid.
    `missing` never came, `dropped` were left out by the policy. `waiting` finished
    planes have not been read. Latencies are seconds from push to finished, over the
    last 4096 planes (`latency_max_s`: over all). `mvoxel_per_s` is finished voxels
    over the time from the first push to the last plane finished.
    """

    state: State
    pushed: int
    queued: int
    in_flight: int
    done: int
    lost: int
    missing: int
    dropped: int
    waiting: int
    room_planes: int
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    latency_max_s: float
    lag_planes: int
    mvoxel_per_s: float
    buffer_bytes: int
    normalisation: Normalisation | None
    #: The last 256.
    gaps: tuple[Gap, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)
