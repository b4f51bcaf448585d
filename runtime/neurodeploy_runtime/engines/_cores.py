"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """Cores of this process's affinity mask, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return max(1, os.cpu_count() or 1)
