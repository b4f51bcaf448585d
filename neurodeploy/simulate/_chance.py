"""Chance that depends on a place and a seed, never on the order of work."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

#: Coordinates may be negative; a seed may not.
_SHIFT = 1 << 24


class Stream(IntEnum):
    """What a generator at one place is for; each has chance of its own."""

    LOOK = 0
    NEURITES = 1
    NEURONS = 2
    VESSELS = 3
    CELLS = 4
    PUNCTA = 5
    SLOW = 6
    REGIONS = 7
    TEXTURE = 8
    MOTTLE = 9
    STRIPES = 10
    JITTER = 11
    CAMERA = 12
    DIRECTION = 13
    PLACEMENT = 14


def generator(seed: int, stream: Stream, *place: int) -> np.random.Generator:
    """The generator of this place: the same whenever and wherever it is asked for."""
    words = [seed, int(stream), *(p + _SHIFT for p in place)]
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))
