"""What has come, what is missing and what is finished."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

from neurodeploy_runtime.live._latency import Latencies
from neurodeploy_runtime.live._values import Gap

#: Gaps that are told one by one; of those before them only the number is kept.
KEPT_GAPS = 256


@dataclass(frozen=True)
class Counts:
    """How a stack stands at one moment; see `LiveStatus` for what each says."""

    done: int
    lost: int
    missing: int
    dropped: int
    #: From the first plane pushed to the last one finished.
    wall_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    latency_max_s: float
    gaps: tuple[Gap, ...]


class Tally:
    """Counts the planes of one stack; any thread may call and ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrival: dict[int, float] = {}
        self._gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self._latencies = Latencies()
        self._first_push = 0.0
        self._last_finished = 0.0
        self._missing = 0
        self._dropped = 0
        self._done = 0
        self._lost = 0

    def arrived(self, start: int, planes: int) -> None:
        """Planes have been copied in, just now."""
        now = time.perf_counter()
        with self._lock:
            if self._first_push == 0:
                self._first_push = now
            for z in range(start, start + planes):
                self._arrival[z] = now

    def absent(
        self, start: int, planes: int, why: Literal["missing", "dropped"]
    ) -> None:
        """Planes will not come; told as one gap with those right before them."""
        with self._lock:
            if why == "missing":
                self._missing += planes
            else:
                self._dropped += planes
            last = self._gaps[-1] if self._gaps else None
            if last is not None and (last.stop, last.why) == (start, why):
                start = last.start
                planes += last.stop - last.start
                self._gaps.pop()
            self._gaps.append(Gap(start, start + planes, why))

    def finished(self, z: int, *, valid: bool) -> float:
        """Plane z is finished now; seconds since it came, NaN where it never did."""
        with self._lock:
            now = time.perf_counter()
            latency = now - self._arrival.pop(z, float("nan"))
            if valid:
                self._done += 1
                self._latencies.add(latency)
            else:
                self._lost += 1
            self._last_finished = now
        return latency

    def _wall_s(self) -> float:
        if self._first_push == 0:
            return 0.0
        return max(0.0, self._last_finished - self._first_push)

    def counts(self) -> Counts:
        """All of it, at one moment."""
        with self._lock:
            p50, p95, p99 = self._latencies.quantiles((0.5, 0.95, 0.99))
            return Counts(
                done=self._done,
                lost=self._lost,
                missing=self._missing,
                dropped=self._dropped,
                wall_s=self._wall_s(),
                latency_p50_s=p50,
                latency_p95_s=p95,
                latency_p99_s=p99,
                latency_max_s=self._latencies.max,
                gaps=tuple(self._gaps),
            )
