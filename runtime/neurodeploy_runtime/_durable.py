"""Which units of an unfinished output need not be done again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from neurodeploy_runtime._errors import NeurodeployError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._journal import Record, checksum
from neurodeploy_runtime.volumes import Sink

#: Recorded units whose voxels are read again when a run continues: all up to this many
#: bytes, beyond that the last ones. Of the others it is looked whether they are there.
VERIFY_BYTES = 4_000_000_000


def durable_units(
    sinks: Sequence[Sink], records: Mapping[Shape, Record]
) -> frozenset[Shape]:
    """First voxels of the units that are recorded, present and readable.

    The sinks are of one shape and grain; a record holds a checksum for each. A unit of
    zeros need not be present: outputs leave it out.
    """
    grid = Box.whole(sinks[0].shape).grid(sinks[0].grain)
    units = [unit for unit in grid if unit.start in records]
    good = set()
    budget = VERIFY_BYTES
    for unit in reversed(units):
        sums = records[unit.start].checksums
        budget -= sum(unit.voxels * sink.dtype.itemsize for sink in sinks)
        if len(sums) == len(sinks) and _hold(sinks, unit, sums, voxels=budget >= 0):
            good.add(unit.start)
    return frozenset(good)


def _hold(
    sinks: Sequence[Sink], unit: Box, sums: tuple[int, ...], *, voxels: bool
) -> bool:
    """Whether every output has the unit; with `voxels` they are read and compared."""
    try:
        return all(
            (sink.present(unit) or expected == _of_zeros(unit.shape, sink.dtype))
            and (not voxels or checksum(sink.read(unit)) == expected)
            for sink, expected in zip(sinks, sums, strict=True)
        )
    except (NeurodeployError, OSError, ValueError):
        # What cannot be read is done again.
        return False


@lru_cache(maxsize=64)
def _of_zeros(shape: Shape, dtype: np.dtype[np.generic]) -> int:
    return checksum(np.zeros(shape, dtype))
