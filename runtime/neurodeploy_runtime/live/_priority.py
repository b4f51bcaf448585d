"""Who goes first where cores are short: the camera's thread."""

from __future__ import annotations

import os
import sys
import threading

#: The least priority that Linux knows.
_LAST = 19


def step_back(niceness: int) -> None:
    """Let this thread, and all that it starts, give way to others by so much.

    On Linux, where every thread has a niceness of its own; elsewhere, and where it is
    refused, nothing changes.
    """
    if sys.platform != "linux" or niceness == 0:
        return
    thread = threading.get_native_id()
    try:
        before = os.getpriority(os.PRIO_PROCESS, thread)
        os.setpriority(os.PRIO_PROCESS, thread, min(_LAST, before + niceness))
    except OSError:
        return
