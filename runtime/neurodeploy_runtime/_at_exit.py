"""What is left open when the program ends, ended while its threads still run."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable


def at_exit(end: Callable[[], object]) -> Callable[[], None]:
    """Call `end` when this process ends; what is returned takes that back.

    Later, the interpreter ends threads wherever they are: whoever waits for one then
    waits in vain, and one that is in a network aborts the process. A forked child has
    none of these threads, and calls nothing.
    """
    process = os.getpid()

    def run() -> None:
        if os.getpid() == process:
            end()

    atexit.register(run)
    return lambda: atexit.unregister(run)
