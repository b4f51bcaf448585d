"""Leaving out tiles that hold nothing but background, and auditing what that costs.

A tile is background when even its brightest voxels, but for a few hot ones, do not
rise above the background by `limit_sigma` noise scales. Naive thresholds lose dim
axons, so a random sample of the skipped tiles is run anyway, its answers are thrown
away but counted, and the foreground lost is reported with its interval.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._normalise import Normalisation

#: Share of a window that a skipped tile is taken to lose where no loss was seen.
ASSUMED_LOSS = 1e-3


@dataclass(frozen=True)
class SkipSettings:
    """When a tile is background, and how that is checked.

    `audit_share` of the skipped tiles are run; the run fails where the upper end of
    the 95 % interval of the lost foreground, as a share of all foreground found,
    exceeds `limit_lost`.
    """

    limit_sigma: float = 4.0
    hot_voxels: int = 16
    audit_share: float = 0.05
    limit_lost: float = 0.01


class BackgroundSkip:
    """Decides tile by tile, the same way whatever order tiles come in."""

    def __init__(
        self,
        settings: SkipSettings,
        counts: Shape,
        window: Shape,
        threshold: float,
    ) -> None:
        self.settings = settings
        self._window_voxels = window[0] * window[1] * window[2]
        self._threshold = threshold
        self._lock = threading.Lock()
        #: 1 where a tile was skipped, by layer, row, column.
        self.map = np.zeros(counts, np.uint8)
        self._lost: list[int] = []

    def decide(
        self, tile: Shape, raw: list[NDArray[Any]], normalisation: Normalisation
    ) -> tuple[bool, bool]:
        """Whether to run a tile, and whether only for the audit."""
        limit = normalisation.background + (
            self.settings.limit_sigma * normalisation.noise
        )
        above = sum(int(np.count_nonzero(part > limit)) for part in raw)
        if above > self.settings.hot_voxels:
            return True, False
        self.map[tile] = 1
        draw = hashlib.blake2b(repr(tile).encode(), digest_size=8).digest()
        audited = int.from_bytes(draw) < self.settings.audit_share * 2**64
        return audited, audited

    def audit(self, window: NDArray[np.float32]) -> None:
        """Count what a skipped tile would have given."""
        lost = int(np.count_nonzero(window >= self._threshold))
        with self._lock:
            self._lost.append(lost)

    def report(self, foreground: int) -> dict[str, float | int | None]:
        """What was skipped, and the estimated loss with its 95 % interval.

        The interval is the normal one for a mean of counts. Where the sample saw no
        foreground at all, it is the rule of three: at most 3 in `audited` tiles hold
        any, and each is taken to hold `ASSUMED_LOSS` of a window.
        """
        skipped = int(self.map.sum())
        audited = len(self._lost)
        values: dict[str, float | int | None] = {
            "tiles": int(self.map.size),
            "skipped": skipped,
            "audited": audited,
            "audited_with_foreground": sum(1 for n in self._lost if n),
            "lost_voxels": None,
            "lost_share": None,
            "lost_share_upper": None,
        }
        if audited == 0:
            return values
        mean = sum(self._lost) / audited
        variance = sum((n - mean) ** 2 for n in self._lost) / max(1, audited - 1)
        half = 1.96 * math.sqrt(variance / audited)
        upper = (
            mean + half
            if any(self._lost)
            else min(1.0, 3 / audited) * ASSUMED_LOSS * self._window_voxels
        )
        values["lost_voxels"] = round(mean * skipped)
        values["lost_share"] = mean * skipped / max(1, foreground)
        values["lost_share_upper"] = upper * skipped / max(1, foreground)
        return values
