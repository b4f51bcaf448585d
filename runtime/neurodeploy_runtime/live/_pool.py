"""Planes of results that are used again and again."""

from __future__ import annotations

import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray


class PlanePool:
    """Lends uint8 planes, and has each back when nothing refers to it any more.

    All pages are touched at the start: on a virtual machine the first touch of fresh
    memory is 30 times slower than a copy. A reader that keeps more planes than the
    pool has makes it grow, by its own choice.
    """

    def __init__(self, planes: int, shape: tuple[int, int]) -> None:
        self._shape = shape
        self._free: deque[memoryview] = deque()
        for _ in range(planes):
            self._free.append(self._fresh())
        self.zeros: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self.zeros.flags.writeable = False

    def take(self) -> NDArray[np.uint8]:
        """A plane of unknown content, (y, x)."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = self._fresh()
        # Slices keep this array alive and not the memory below it, because that is no
        # array: so when it dies, no view of it is left.
        flat = np.frombuffer(memory, np.uint8)
        weakref.finalize(flat, self._free.append, memory).atexit = False
        return flat.reshape(self._shape)

    def let_go(self) -> None:
        """Give back what is not lent; a plane that still is would keep all of it."""
        self._free.clear()

    def _fresh(self) -> memoryview:
        flat = np.empty(self._shape[0] * self._shape[1], np.uint8)
        flat.fill(0)
        return flat.data
