"""Ctrl-C while threads work for the main one: a wish, not an exception anywhere."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interrupt_sets(interrupted: threading.Event) -> Iterator[None]:
    """Within, the first Ctrl-C sets `interrupted`; KeyboardInterrupt comes at the end.

    An exception that may rise between any two instructions would leave a thread
    started that nobody stops. Whoever works within looks at the event and leaves
    soon; a second Ctrl-C is an exception again. In another thread than the main one,
    or where the program has its own handler, nothing is changed.
    """
    usual = signal.getsignal(signal.SIGINT)
    if (
        threading.current_thread() is not threading.main_thread()
        or usual is not signal.default_int_handler
    ):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            signal.default_int_handler(number, frame)
        interrupted.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
        if interrupted.is_set():
            raise KeyboardInterrupt
