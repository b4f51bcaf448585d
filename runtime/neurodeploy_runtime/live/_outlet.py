"""Where finished planes wait for whoever wants them."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress

from neurodeploy_runtime._errors import StreamError
from neurodeploy_runtime._waiting import wait_for
from neurodeploy_runtime.live._values import LivePlane


class Outlet:
    """A bounded queue that loses nothing; beside it futures, and the latest plane.

    A plane goes to its future, where one was asked for and not cancelled, and else into
    the queue. After an error readers still get what was finished before it. The latest
    plane is there for who only looks: it holds up nobody.
    """

    def __init__(self, planes: int) -> None:
        self.planes = planes
        self._lock = threading.Condition()
        self._queue: deque[LivePlane] = deque()
        self._futures: dict[int, Future[LivePlane]] = {}
        self._next = 0
        self._queued = 0
        self._ended = False
        self._error: BaseException | None = None
        self._latest: LivePlane | None = None

    @property
    def waiting(self) -> int:
        """Finished planes that nobody has taken yet."""
        with self._lock:
            return len(self._queue)

    @property
    def passed(self) -> int:
        """Planes before this one are finished."""
        with self._lock:
            return self._next

    @property
    def queued(self) -> int:
        """The last plane that went into the queue lies before this one."""
        with self._lock:
            return self._queued

    def put(self, plane: LivePlane) -> None:
        """Wait for room and add; raises the error that ended the stream."""
        with self._lock:
            if plane.valid:
                self._latest = plane
                self._lock.notify_all()
            future = self._futures.pop(plane.z, None)
            if future is not None and not future.set_running_or_notify_cancel():
                future = None
            if future is None:
                wait_for(
                    self._lock,
                    lambda: self._error is not None or len(self._queue) < self.planes,
                )
                if self._error is not None:
                    raise self._error
                self._queue.append(plane)
                self._queued = plane.z + 1
            self._next = plane.z + 1
            self._lock.notify_all()
        if future is not None:
            future.set_result(plane)

    def get(self) -> LivePlane | None:
        """The next plane; None after the last."""
        with self._lock:
            wait_for(
                self._lock,
                lambda: bool(self._queue) or self._ended or self._error is not None,
            )
            if self._queue:
                plane = self._queue.popleft()
                self._lock.notify_all()
                return plane
            if self._ended or self._error is None:
                return None
            raise self._error.with_traceback(None)

    def future(self, z: int) -> Future[LivePlane]:
        """A future of plane z, which then goes nowhere else."""
        with self._lock:
            if self._error is not None:
                raise self._error.with_traceback(None)
            if z < self._next or self._ended:
                raise StreamError(
                    f"plane {z} was finished before its future was asked for: ask "
                    "before pushing the plane"
                )
            return self._futures.setdefault(z, Future())

    def latest(self, newer_than: int, timeout_s: float) -> LivePlane | None:
        """The latest finished plane, as soon as it is newer; None where none comes."""

        def newer() -> bool:
            return self._latest is not None and self._latest.z > newer_than

        with self._lock:
            wait_for(
                self._lock,
                lambda: newer() or self._ended or self._error is not None,
                timeout_s,
            )
            return self._latest if newer() else None

    def wait_passed(self, z: int, timeout_s: float) -> bool:
        """Wait until planes before z are finished; raises what ended the stream."""
        with self._lock:
            arrived = wait_for(
                self._lock,
                lambda: self._error is not None or self._next >= z,
                timeout_s,
            )
            if self._error is not None:
                raise self._error.with_traceback(None)
            return arrived

    def end(self) -> None:
        """No more planes come."""
        with self._lock:
            self._ended = True
            left = self._take_futures()
            self._lock.notify_all()
        for z, future in left.items():
            _fail(future, StreamError(f"the stack ended before plane {z}"))

    def fail(self, error: BaseException) -> None:
        """Whoever waits here, now or later, gets this error."""
        with self._lock:
            self._error = self._error or error
            left = self._take_futures()
            self._lock.notify_all()
        for future in left.values():
            _fail(future, error)

    def _take_futures(self) -> dict[int, Future[LivePlane]]:
        left, self._futures = self._futures, {}
        return left


def _fail(future: Future[LivePlane], error: BaseException) -> None:
    with suppress(InvalidStateError):
        future.set_exception(error)
