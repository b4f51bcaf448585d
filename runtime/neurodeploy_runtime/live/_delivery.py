"""A thread that hands finished planes to a function."""

from __future__ import annotations

import threading
from collections.abc import Callable

from neurodeploy_runtime._errors import CancelledError
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
        self._thread = threading.Thread(target=self._run, name="deliver", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while (plane := self._outlet.get()) is not None:
                self._function(plane)
                with self._lock:
                    self._delivered = plane.z + 1
                    self._lock.notify_all()
        except CancelledError:
            pass
        except BaseException as error:
            self._on_error(error)
        finally:
            with self._lock:
                self._lock.notify_all()

    def wait(self, z: int, timeout_s: float) -> bool:
        """Wait until the function has returned for all planes before z."""
        with self._lock:
            return self._lock.wait_for(
                lambda: self._delivered >= z or not self._thread.is_alive(), timeout_s
            )

    def join(self, timeout_s: float) -> bool:
        """Wait for the end of the thread; True where it has ended, or is the caller."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return True
