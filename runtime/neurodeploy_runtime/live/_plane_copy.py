"""Copies of whole planes that go past the cache."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

#: The GNU C library copies what is larger than this with stores that do not read what
#: they overwrite. By itself it does so from a share of the last-level cache on, which a
#: plane is below on a machine whose cache is large (glibc manual, "Hardware Capability
#: Tunables").
_TUNABLE = "glibc.cpu.x86_non_temporal_threshold"
_BYTES = 1_000_000
_VARIABLE = "GLIBC_TUNABLES"
#: A ring of eight planes is held by the process that measures.
_MOST_BYTES = 1 << 28
_PATIENCE_S = 60.0

_MEASURE = """
import sys, time
import numpy as np
plane = np.ones(int(sys.argv[1]), np.uint8)
ring = np.ones((8, plane.size), np.uint8)
times = []
for i in range(48):
    start = time.perf_counter()
    np.copyto(ring[i % 8], plane)
    times.append(time.perf_counter() - start)
print(sorted(times)[24])
"""


def past_the_cache() -> dict[str, str] | None:
    """The environment variable with which a program copies planes past the cache.

    It counts from a program's start on: a process cannot set it for itself. None where
    the C library has no such setting, or this process was started with one.
    """
    if platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return None
    others = os.environ.get(_VARIABLE, "")
    if _TUNABLE in others:
        return None
    mine = f"{_TUNABLE}={_BYTES}"
    return {_VARIABLE: f"{others}:{mine}" if others else mine}


def copy_seconds(nbytes: int) -> tuple[float, float] | None:
    """What copying a plane takes as things are, and with that variable; seconds.

    Measured in processes of their own, in turn, twice. None where the variable is of no
    use: other C libraries, planes below a megabyte; and where that cannot be seen:
    planes above 256 MiB, or a program that has no Python to start.
    """
    variable = past_the_cache()
    if variable is None or not _BYTES <= nbytes <= _MOST_BYTES or not _is_python():
        return None
    as_is: list[float] = []
    past: list[float] = []
    for _ in range(2):
        for environment, found in (({}, as_is), (variable, past)):
            seconds = _measured(nbytes, environment)
            if seconds is None:
                return None
            found.append(seconds)
    return min(as_is), min(past)


def _is_python() -> bool:
    # In a program that has Python inside it, this is that program.
    name = Path(sys.executable or "").name
    return name.startswith("python") and not getattr(sys, "frozen", False)


def _measured(nbytes: int, environment: dict[str, str]) -> float | None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(nbytes)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=True,
        )
        return float(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
