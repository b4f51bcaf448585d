"""Time that the host of a virtual machine gives to others while we measure.

A guest whose cores are lent elsewhere sees threads that wait for each other, and its
figures say more of the neighbours than of the program. Linux counts what was taken
(`steal` in `/proc/stat`, proc(5)).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Field of `/proc/stat`'s first line, and how many fields make up all of the time
#: (guest time is counted in user time already).
STEAL, FIELDS = 7, 8


class StolenTime:
    """The share of the machine's time that the host took since this was made."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._start = self._read()

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where the kernel does not count it."""
        now = self._read()
        if self._start is None or now is None:
            return None
        spent = [b - a for a, b in zip(self._start, now, strict=True)]
        return spent[STEAL] / max(sum(spent), 1)

    def _read(self) -> list[int] | None:
        try:
            words = self._stat.read_text().partition("\n")[0].split()
        except OSError:
            return None
        found = [int(word) for word in words[1 : 1 + FIELDS]]
        return found if len(found) == FIELDS else None


def least_disturbed(
    run: Callable[[], dict[str, Any]], limit: float, tries: int
) -> dict[str, Any]:
    """Run again, at most `tries` times, until the host took no more than `limit`.

    The run's ``stolen`` decides, never its time: of several disturbed runs the one
    that was disturbed least counts. A run that failed, or does not say what was
    stolen, is returned as it is. ``tries`` in the answer says how many were made.
    """
    best: dict[str, Any] | None = None
    for count in range(1, tries + 1):
        found = run()
        stolen = found.get("stolen")
        if stolen is None:
            return {**found, "tries": count}
        if best is None or stolen < best["stolen"]:
            best = found
        if stolen <= limit:
            break
    assert best is not None
    return {**best, "tries": count}
