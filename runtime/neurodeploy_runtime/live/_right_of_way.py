"""Who goes first at the memory: the camera's thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

#: Seconds that a step waits for a plane to be copied, at most.
_PATIENCE_S = 0.005


class RightOfWay:
    """While a plane is copied, what works behind the ring waits between two steps.

    Copying a plane takes what the machine's memory takes, and twice that while other
    threads add up tiles. A step is one tile, or half a million voxels of a plane; what
    an engine computes is not held up.
    """

    def __init__(self) -> None:
        self._free = threading.Event()
        self._free.set()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """By the one thread that copies."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def give(self) -> None:
        """Called before each step."""
        self._free.wait(_PATIENCE_S)
