"""A clock for each stage of a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds spent in named stages, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, share: float = 1.0) -> Iterator[None]:
        """Time what runs inside, which is that share of what the stage can do."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = share * (time.perf_counter() - start)
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + spent

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage, so far."""
        with self._lock:
            return dict(self._seconds)
