"""A thread that hands finished planes to a function."""

from __future__ import annotations

import threading
from collections.abc import Callable

from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime._waiting import wait_for
from neurodeploy_runtime.live._outlet import Outlet
from neurodeploy_runtime.live._values import LivePlane


class Delivery:
    """Calls `function` with each plane of an outlet, in order, from one thread."""

    def __init__(
        self,
        outlet: Outlet,
        function: Callable[[LivePlane], object],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._outlet = outlet
        self._function = function
        self._on_error = on_error
        self._lock = threading.Condition()
        self._delivered = 0
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="deliver", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (plane := self._next()) is not None:
                self._function(plane)
                with self._lock:
                    self._delivered = plane.z + 1
                    self._lock.notify_all()
        except BaseException as error:
            self._on_error(error)
        finally:
            with self._lock:
                self._ended = True
                self._lock.notify_all()

    def _next(self) -> LivePlane | None:
        try:
            return self._outlet.get()
        except NeurodeployError:
            return None  # what ended the stream is known there

    def wait(self, z: int, timeout_s: float) -> bool:
        """Wait until the function has returned for all planes before z.

        False where it has not; at once where it never will.
        """
        with self._lock:
            wait_for(self._lock, lambda: self._delivered >= z or self._ended, timeout_s)
            return self._delivered >= z

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; True where it has ended, or is the caller."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True
