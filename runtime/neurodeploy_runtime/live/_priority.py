"""Who goes first where cores are short: the camera's thread."""

from __future__ import annotations

import os
import sys
import threading

#: The most there is: a thread that wakes up to push does not wait for one that cuts.
NICENESS = 19


def step_back() -> None:
    """Make this thread, and all that it starts, give way to the rest of the program.

    A push has to return at once, a tile only in time. On Linux, where every thread
    has a niceness of its own; elsewhere, and where it is refused, nothing changes.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    try:
        before = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(19, before + NICENESS))
    except OSError:
        return
