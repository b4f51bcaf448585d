"""How much memory this process holds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: What an interpreter with NumPy and one engine is taken to hold where nobody says.
UNKNOWN_RSS = 400_000_000


def current_rss() -> int:
    """Resident bytes of this process now."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return UNKNOWN_RSS
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_rss() -> int | None:
    """The most bytes that were ever resident; None where the system does not say."""
    # Not `ru_maxrss` first: on Linux it is never below what the parent process held.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def machine_memory() -> int | None:
    """Bytes of memory that this machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
