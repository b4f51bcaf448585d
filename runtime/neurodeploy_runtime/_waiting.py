"""Waiting for another thread, for any time, so that Ctrl-C ends it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

#: On Windows, Ctrl-C gets through between two waits only.
TICK_S = 0.2


def wait_for(
    lock: threading.Condition,
    predicate: Callable[[], bool],
    timeout_s: float | None = None,
) -> bool:
    """As `Condition.wait_for`; `timeout_s` may be infinite, which that refuses."""
    end = math.inf if timeout_s is None else time.monotonic() + timeout_s
    while not predicate():
        left = end - time.monotonic()
        if left <= 0:
            return False
        lock.wait(min(left, TICK_S))
    return True


def acquired(lock: threading.Lock, timeout_s: float) -> bool:
    """Whether the lock was had within `timeout_s`, which may be infinite."""
    end = time.monotonic() + timeout_s
    while not lock.acquire(timeout=max(0.0, min(end - time.monotonic(), TICK_S))):
        if time.monotonic() >= end:
            return False
    return True
