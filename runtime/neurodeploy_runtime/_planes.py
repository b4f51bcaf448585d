"""A ring of raw planes between whoever brings them and whoever cuts tiles from them.

A reading thread brings the planes of a file; a camera brings its own. What lies
behind the ring is the same, which is why both give the same bits.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import CancelledError, StreamError


class PlaneRing:
    """Holds planes ``[released, arrived)`` of a growing stack, at most `depth` of them.

    One thread brings planes, one takes them; both wait without spinning. The buffer is
    allocated and touched once.
    """

    def __init__(
        self, depth: int, plane: tuple[int, int], dtype: np.dtype[Any], first: int = 0
    ) -> None:
        self.depth = depth
        self._buffer: NDArray[Any] = np.empty((depth, *plane), dtype)
        self._buffer.fill(0)
        self._lock = threading.Condition()
        self._released = first
        self._arrived = first
        self._end: int | None = None
        self._error: BaseException | None = None
        self._closed = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, for good."""
        return int(self._buffer.nbytes)

    @property
    def arrived(self) -> int:
        """Planes ``[0, arrived)`` have been brought."""
        with self._lock:
            return self._arrived

    @property
    def room(self) -> int:
        """Planes that can be brought now without waiting."""
        with self._lock:
            return self._released + self.depth - self._arrived

    def room_views(
        self, most: int, timeout_s: float | None = None
    ) -> list[NDArray[Any]]:
        """Views for the next planes, as soon as there is room for one; at most `most`.

        One or two arrays (n, y, x), in order; empty when `timeout_s` passed.
        """
        with self._lock:
            self._lock.wait_for(
                lambda: self._closed or self._arrived < self._released + self.depth,
                timeout_s,
            )
            self._check()
            n = min(most, self._released + self.depth - self._arrived)
            return self._views(self._arrived, self._arrived + n)

    def bring(self, planes: int) -> None:
        """The next `planes` planes have been written into the views."""
        with self._lock:
            if self._arrived + planes > self._released + self.depth:
                raise StreamError("more planes were brought than there was room for")
            self._arrived += planes
            self._lock.notify_all()

    def end(self) -> None:
        """No more planes come: the stack is as deep as it is now."""
        with self._lock:
            self._end = self._arrived
            self._lock.notify_all()

    def fail(self, error: BaseException) -> None:
        """Whoever waits here, now or later, gets this error."""
        with self._lock:
            self._error = self._error or error
            self._closed = True
            self._lock.notify_all()

    def close(self) -> None:
        """Wake everyone; waiting here raises CancelledError from now on."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def wait(self, planes: int) -> tuple[int, bool]:
        """Wait until `planes` planes have arrived, or all have.

        Returns how many have arrived, and whether those are all.
        """
        with self._lock:
            self._lock.wait_for(
                lambda: self._closed or self._end is not None or self._arrived >= planes
            )
            self._check()
            return self._arrived, self._end is not None

    def views(self, start: int, stop: int) -> list[NDArray[Any]]:
        """Planes [start, stop) that have arrived and are not released: 1 or 2 views."""
        with self._lock:
            if not self._released <= start <= stop <= self._arrived:
                raise StreamError(
                    f"planes {start}:{stop} are not in the ring, which holds "
                    f"{self._released}:{self._arrived}"
                )
            return self._views(start, stop)

    def release(self, plane: int) -> None:
        """Planes before `plane` are needed no more."""
        with self._lock:
            self._released = max(self._released, min(plane, self._arrived))
            self._lock.notify_all()

    def _views(self, start: int, stop: int) -> list[NDArray[Any]]:
        if start == stop:
            return []
        a, b = start % self.depth, (stop - 1) % self.depth + 1
        if a < b:
            return [self._buffer[a:b]]
        return [self._buffer[a:], self._buffer[:b]]

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise CancelledError("the run was stopped")
