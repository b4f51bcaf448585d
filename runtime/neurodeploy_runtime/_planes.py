"""A ring of raw planes between whoever brings them and whoever cuts tiles from them.

A reading thread brings the planes of a file; a camera brings its own. What lies
behind the ring is the same, which is why both give the same bits.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import CancelledError, StreamError
from neurodeploy_runtime._waiting import wait_for


class PlaneRing:
    """Holds planes ``[released, arrived)`` of a growing stack, at most `depth` of them.

    One thread brings planes, one takes them; both wait without spinning. The buffer is
    allocated and touched once. Planes that never come (a camera missed them) are
    skipped: they count as arrived, take no room, and `whole` is False across them.
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
        #: Runs of planes that never come, in order; those before `released` are only
        #: counted.
        self._gaps: deque[tuple[int, int]] = deque()
        self._skipped = 0
        self._end: int | None = None
        self._error: BaseException | None = None
        self._closed = False

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, for good."""
        return int(self._buffer.nbytes)

    @property
    def plane_shape(self) -> tuple[int, int]:
        """(y, x) of every plane."""
        height, width = self._buffer.shape[1:]
        return height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of every plane."""
        return self._buffer.dtype

    @property
    def arrived(self) -> int:
        """Planes ``[0, arrived)`` have been brought."""
        with self._lock:
            return self._arrived

    @property
    def released(self) -> int:
        """Planes before this one are needed no more."""
        with self._lock:
            return self._released

    @property
    def room(self) -> int:
        """Planes that can be brought now without waiting."""
        with self._lock:
            return self._room()

    def room_views(
        self, most: int, timeout_s: float | None = None
    ) -> list[NDArray[Any]]:
        """Views for the next planes, as soon as there is room for one; at most `most`.

        One or two arrays (n, y, x), in order; empty when `timeout_s` passed.
        """
        with self._lock:
            wait_for(self._lock, lambda: self._closed or self._room() > 0, timeout_s)
            self._check()
            place = self._place(self._arrived)
            return self._views(place, place + min(most, self._room()))

    def bring(self, planes: int) -> None:
        """The next `planes` planes have been written into the views."""
        with self._lock:
            if planes > self._room():
                raise StreamError("more planes were brought than there was room for")
            self._arrived += planes
            self._lock.notify_all()

    def skip(self, planes: int) -> None:
        """The next `planes` planes never come."""
        if planes < 1:
            return
        with self._lock:
            start = self._arrived
            if self._gaps and self._gaps[-1][1] == start:
                start = self._gaps.pop()[0]
            self._arrived += planes
            self._gaps.append((start, self._arrived))
            self._lock.notify_all()

    def whole(self, start: int, stop: int) -> bool:
        """Whether every plane of [start, stop), not yet released, has come."""
        with self._lock:
            return stop <= self._arrived and not any(
                a < stop and start < b for a, b in self._gaps
            )

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
            if any(a < stop and start < b for a, b in self._gaps):
                raise StreamError(f"planes {start}:{stop} did not all come")
            return self._views(self._place(start), self._place(stop))

    def copy_newest(self, step: int) -> tuple[int, NDArray[Any]] | None:
        """The newest plane that is held, every `step`-th pixel of it, copied.

        None where none is held. It holds up whoever brings planes for the time of the
        copy, so `step` should leave few pixels.
        """
        with self._lock:
            z = self._arrived
            while self._gaps and z > self._released:
                gap = next((g for g in self._gaps if g[0] < z <= g[1]), None)
                if gap is None:
                    break
                z = gap[0]
            if z <= self._released or not len(self._buffer):
                return None
            (view,) = self._views(self._place(z - 1), self._place(z))
            return z - 1, view[0, ::step, ::step].copy()

    def reset(self) -> None:
        """Begin with plane 0 of another stack, in the same memory."""
        with self._lock:
            self._released = self._arrived = self._skipped = 0
            self._gaps.clear()
            self._end, self._error, self._closed = None, None, False

    def let_go(self) -> None:
        """Give back the memory; what was counted stays, and nothing more is brought."""
        with self._lock:
            self._buffer = self._buffer[:0].copy()

    def release(self, plane: int) -> None:
        """Planes before `plane` are needed no more."""
        with self._lock:
            self._released = max(self._released, min(plane, self._arrived))
            while self._gaps and self._gaps[0][1] <= self._released:
                start, stop = self._gaps.popleft()
                self._skipped += stop - start
            self._lock.notify_all()

    def _place(self, z: int) -> int:
        """Which plane of those that came plane z is, counted from the first."""
        gone = sum(min(z, b) - a for a, b in self._gaps if a < z)
        return z - self._skipped - gone

    def _room(self) -> int:
        return self.depth - self._place(self._arrived) + self._place(self._released)

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
