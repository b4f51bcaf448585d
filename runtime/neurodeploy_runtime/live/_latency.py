"""Latencies, in memory that does not grow."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KEPT = 4096


class Latencies:
    """The last `KEPT` latencies in seconds, and the largest of all."""

    def __init__(self) -> None:
        self._kept: NDArray[np.float64] = np.zeros(KEPT)
        self._count = 0
        self.max = float("nan")

    def add(self, seconds: float) -> None:
        """Take one in."""
        self._kept[self._count % KEPT] = seconds
        self._count += 1
        self.max = seconds if not seconds <= self.max else self.max

    def quantiles(self, shares: tuple[float, ...]) -> tuple[float, ...]:
        """Latencies that these shares stay below; NaN where there is none yet."""
        kept = self._kept[: min(self._count, KEPT)]
        if not len(kept):
            return (float("nan"),) * len(shares)
        return tuple(float(q) for q in np.quantile(kept, shares))
