"""Which process this is, and whether another one still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: On Windows, the signal 0 is no question but Ctrl-C.
_CAN_ASK = os.name != "nt"


def this_process() -> dict[str, Any]:
    """What tells this process from any other, for a lock file.

    A host and a number are not enough: in a container that is started again both are
    what they were. On Linux, `system` names the boot and the space in which numbers
    are given to processes, `start` the moment when this one began; elsewhere both
    are None.
    """
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "system": _system(),
        "start": _start(pid),
    }


def still_runs(named: Mapping[str, Any]) -> bool | None:
    """Whether the process that a lock names runs; None where that cannot be seen.

    It cannot be seen of another host, boot or container; and where the system does not
    say when a process began, that one of this number runs does not tell.
    """
    pid, system = named.get("pid"), _system()
    if named.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if system is not None and named.get("system") is not None:
        if named["system"] != system:
            return None
        start = _start(pid)
        return start is not None and start == named.get("start")
    if not _CAN_ASK:
        return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return None


def _system() -> str | None:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _start(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None where none runs."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        # The name, in parentheses, may hold anything.
        state, *fields = text.rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    except (OSError, ValueError, IndexError):
        return None
