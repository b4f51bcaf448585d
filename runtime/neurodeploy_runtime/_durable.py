"""Which units of an unfinished output need not be done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Record, checksum
from neurodeploy_runtime.volumes import Sink

#: Recorded units that are read again when a run continues: all up to this many bytes,
#: beyond that the last ones.
VERIFY_BYTES = 4_000_000_000


def durable_units(
    sinks: Sequence[Sink], records: Mapping[Shape, Record]
) -> frozenset[Shape]:
    """First voxels of the units that are recorded, present and readable.

    The sinks are of one shape and grain; a record holds a checksum for each.
    """
    grid = Box.whole(sinks[0].shape).grid(sinks[0].grain)
    units = [unit for unit in grid if unit.start in records]
    good = set()
    budget = VERIFY_BYTES
    for unit in reversed(units):
        sums = records[unit.start].checksums
        budget -= sum(unit.voxels * sink.dtype.itemsize for sink in sinks)
        if len(sums) == len(sinks) and (budget < 0 or _hold(sinks, unit, sums)):
            good.add(unit.start)
    return frozenset(good)


def _hold(sinks: Sequence[Sink], unit: Box, sums: tuple[int, ...]) -> bool:
    try:
        return all(
            checksum(sink.read(unit)) == expected
            for sink, expected in zip(sinks, sums, strict=True)
        )
    except (NeurodeployError, OSError, ValueError):
        # What cannot be read is done again.
        return False
