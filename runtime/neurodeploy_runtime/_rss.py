"""How much memory this process holds."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
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


def machine_memory(root: Path = Path("/")) -> int | None:
    """Bytes of memory that this process can have; None where the system does not say.

    That of the machine, or less where a cluster's job or a container has a limit:
    what takes more is killed. `root` is where proc and sys lie.
    """
    known = _limits(root)
    with suppress(ValueError, OSError, AttributeError):
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(known, default=None)


def _limits(root: Path) -> list[int]:
    """Of the control groups that this process is in, and of those around them.

    In a container their paths may be those outside of it; the container's own limit
    then stands at the root of what is mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    mounts = root / "sys/fs/cgroup"
    found = []
    for line in lines:
        number, *rest = line.split(":", 2)
        if len(rest) != 2:
            continue
        controllers, path = rest
        if number == "0":  # version 2: one hierarchy for everything
            mount, name = mounts, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = mounts / "memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            with suppress(OSError, ValueError):  # there is none, or it is "max"
                found.append(int(mount.joinpath(*parts[:depth], name).read_text()))
    return found
