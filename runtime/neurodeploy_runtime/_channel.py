"""Bounded queues between threads that cannot leave anyone waiting for ever."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from neurodeploy_runtime._errors import CancelledError
from neurodeploy_runtime._waiting import wait_for

T = TypeVar("T")


class Channel(Generic[T]):
    """A bounded queue that ends, or fails, for both sides.

    After :meth:`end` the taker gets what is left and then None; after :meth:`fail`
    both sides get the error, at once.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[T] = deque()
        self._lock = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Wait for room, then add."""
        with self._lock:
            wait_for(
                self._lock,
                lambda: self._error is not None or len(self._items) < self._size,
            )
            if self._error is not None:
                raise self._error
            self._items.append(item)
            self._lock.notify_all()

    def get(self) -> T | None:
        """Wait for an item; None when the channel has ended and is empty."""
        with self._lock:
            wait_for(
                self._lock,
                lambda: self._error is not None or bool(self._items) or self._ended,
            )
            if self._error is not None:
                raise self._error
            if not self._items:
                return None
            item = self._items.popleft()
            self._lock.notify_all()
            return item

    def __len__(self) -> int:
        with self._lock:
            return len(self._items)

    def end(self) -> None:
        """No more items come."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()

    def fail(self, error: BaseException | None = None) -> None:
        """Both sides raise this error from now on."""
        with self._lock:
            self._error = self._error or error or CancelledError("the run was stopped")
            self._lock.notify_all()
