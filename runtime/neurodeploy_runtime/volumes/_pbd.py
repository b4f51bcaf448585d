"""Vaa3D's PBD compression ("pack bits with differences"), undone with NumPy.

After `ImageLoaderBasic.cpp` of Vaa3D. A stream of operations, each a key and what
follows it: literal voxels, small differences to the voxel before, or one voxel many
times. There is no index and operations cross rows and planes, so that a stack can only
be decoded from its beginning. Where one operation ends depends on the one before, and
is found in a plain loop over keys; the voxels of many operations are made at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError

_LITERAL, _DIFFERENCE, _REPEAT, _UNKNOWN = range(4)

#: Operations whose voxels are made at once, and voxels after which to stop earlier.
_BATCH = 65536
_BATCH_VOXELS = 2**20

_STEPS_8 = np.array([0, 1, 2, -1])
_STEPS_16 = np.array([0, 1, 2, 3, 4, -1, -2, -3])
#: Differences of two neighbours that three bits say.
_DOUBLETS_3 = np.array(
    [[0, 0], [0, -1], [-1, 0], [-1, 1], [0, 1], [1, 0], [1, -1], [1, 1]]
)


@dataclass(frozen=True)
class Coding:
    """What the 256 keys mean in one of the three codings."""

    name: str
    kind: NDArray[np.int64]
    #: Voxels that a key makes; a repeat of PBD3 adds to it what follows the key.
    voxels: NDArray[np.int64]
    #: Bytes that a key and what belongs to it take.
    length: NDArray[np.int64]
    #: Voxels per stored byte, at the very most.
    max_ratio: int

    @property
    def max_bytes(self) -> int:
        """Stored bytes per voxel, at the very most: those of a key for one voxel."""
        known = self.kind != _UNKNOWN
        return int(np.ceil((self.length[known] / self.voxels[known]).max()))


def _coding(
    name: str, ranges: list[tuple[int, int, int, int, float, int]], max_ratio: int
) -> Coding:
    """From rows of (first key, last key, kind, key minus voxels, bits, bytes)."""
    keys = np.arange(256)
    kind = np.full(256, _UNKNOWN)
    voxels, length = np.zeros(256, np.int64), np.ones(256, np.int64)
    for first, last, what, less, bits, fixed in ranges:
        part = slice(first, last + 1)
        kind[part] = what
        voxels[part] = keys[part] - less
        payload = fixed or -(-(voxels[part] * bits) // 8)
        length[part] = 1 + np.asarray(payload, np.int64)
    return Coding(name, kind, voxels, length, max_ratio)


PBD8 = _coding(
    "PBD8",
    [
        (0, 32, _LITERAL, -1, 8, 0),
        (33, 127, _DIFFERENCE, 32, 2, 0),
        (128, 255, _REPEAT, 127, 0, 1),
    ],
    64,
)
PBD16 = _coding(
    "PBD16",
    [
        (0, 31, _LITERAL, -1, 16, 0),
        (32, 79, _DIFFERENCE, 31, 3, 0),
        (223, 255, _REPEAT, 222, 0, 2),
    ],
    11,
)
#: Its differences come in pairs; `voxels` counts the pairs until `_operations`.
PBD3 = _coding(
    "PBD3",
    [
        (0, 23, _LITERAL, -1, 3, 0),
        (24, 127, _DIFFERENCE, 22, 3, 0),
        (128, 255, _REPEAT, 127, 0, 1),
    ],
    2048,
)


def decode(
    data: memoryview,
    coding: Coding,
    big_endian: bool,
    first: int,
    count: int,
    where: str,
) -> NDArray[Any]:
    """`count` voxels from number `first` on, of a stream that begins with voxel 0.

    Voxels are uint8, or uint16 for PBD16; of PBD3 they are levels 0 to 7. Raises
    InputError where the stream ends early or is none.
    """
    stream = np.frombuffer(data, np.uint8)
    wide = coding is PBD16
    if first + count > coding.max_ratio * len(stream):
        raise InputError(
            f"{where} is cut short: {len(stream)} bytes of {coding.name} cannot hold "
            f"{first + count} voxels; copy it again"
        )
    out = np.empty(count, np.uint16 if wide else np.uint8)
    done, before = 0, 0
    for starts in _operations(data, coding, where):
        voxels = _voxels(stream, starts, coding, big_endian, before)
        before = int(voxels[-1])
        lo, hi = max(first, done), min(first + count, done + len(voxels))
        if lo < hi:
            out[lo - first : hi - first] = voxels[lo - done : hi - done]
        done += len(voxels)
        if done >= first + count:
            return out
    raise InputError(
        f"{where} is cut short after voxel {done} of {first + count}: copy it again"
    )


def _operations(
    data: memoryview, coding: Coding, where: str
) -> Iterator[NDArray[np.int64]]:
    """Where operations begin, in batches; only those that are in the file whole."""
    length, kind = coding.length.tolist(), coding.kind.tolist()
    most = (coding.voxels * (2 if coding is PBD3 else 1)).tolist()
    if coding is PBD3:
        most[128:] = [4096] * 128
    position, end = 0, len(data)
    while True:
        starts: list[int] = []
        voxels = 0
        while position < end and len(starts) < _BATCH and voxels < _BATCH_VOXELS:
            key = data[position]
            if kind[key] == _UNKNOWN:
                raise InputError(
                    f"{where} uses the code {key} of {coding.name} that Vaa3D declares "
                    "and does not read either: save it as v3draw"
                )
            if position + length[key] > end:
                position = end
                break
            starts.append(position)
            voxels += most[key]
            position += length[key]
        if not starts:
            return
        yield np.array(starts, np.int64)


def _voxels(
    stream: NDArray[np.uint8],
    starts: NDArray[np.int64],
    coding: Coding,
    big_endian: bool,
    before: int,
) -> NDArray[np.int64]:
    """The voxels of operations at `starts`, the first preceded by voxel `before`."""
    keys = stream[starts]
    kinds = coding.kind[keys]
    counts = coding.voxels[keys]
    if coding is PBD3:
        counts = np.where(kinds == _DIFFERENCE, 2 * counts, counts)
        more = stream[np.where(kinds == _REPEAT, starts + 1, 0)].astype(np.int64) & 31
        counts = np.where(kinds == _REPEAT, counts + 128 * more, counts)
    operation = np.repeat(np.arange(len(starts)), counts)
    within = np.arange(len(operation)) - (np.cumsum(counts) - counts)[operation]
    payload = starts[operation] + 1
    kind = kinds[operation]

    value = np.zeros(len(operation), np.int64)
    step = np.zeros(len(operation), np.int64)
    literal, repeat = kind == _LITERAL, kind == _REPEAT
    difference = kind == _DIFFERENCE
    at = payload[difference]
    nth = within[difference]
    if coding is PBD8:
        value[literal] = stream[payload[literal] + within[literal]]
        value[repeat] = stream[payload[repeat]]
        step[difference] = _STEPS_8[stream[at + nth // 4] >> 2 * (nth % 4) & 3]
    elif coding is PBD16:
        value[literal] = _wide(
            stream, payload[literal] + 2 * within[literal], big_endian
        )
        value[repeat] = _wide(stream, payload[repeat], big_endian)
        # Three bits each, the most significant first.
        bit = 3 * nth
        pair = _pair(stream, at + bit // 8)
        step[difference] = _STEPS_16[(pair[0] << 8 | pair[1]) >> (13 - bit % 8) & 7]
    else:
        value[literal] = _low_bits(stream, payload[literal], 3 * within[literal])
        value[repeat] = stream[payload[repeat]] >> 5
        code = _low_bits(stream, at, 3 * (nth // 2))
        step[difference] = _DOUBLETS_3[code, nth % 2]

    # A run of differences starts from the last voxel that is none.
    index = np.where(difference, -1, np.arange(len(operation)))
    base = np.maximum.accumulate(index)
    total = np.cumsum(step)
    origin = np.where(base >= 0, value[base], before)
    since = np.where(base >= 0, total[base], 0)
    result: NDArray[np.int64] = np.where(difference, origin + total - since, value)
    return result & (0xFFFF if coding is PBD16 else 0xFF)


def _wide(
    stream: NDArray[np.uint8], at: NDArray[np.int64], big_endian: bool
) -> NDArray[np.int64]:
    first, second = _pair(stream, at)
    return first << 8 | second if big_endian else second << 8 | first


def _pair(
    stream: NDArray[np.uint8], at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two bytes in a row; past the end, where no bit of it is used, the last one."""
    after = np.minimum(at + 1, len(stream) - 1)
    return stream[at].astype(np.int64), stream[after].astype(np.int64)


def _low_bits(
    stream: NDArray[np.uint8], at: NDArray[np.int64], bit: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Three bits from number `bit` on, the least significant first."""
    first, second = _pair(stream, at + bit // 8)
    return (first | second << 8) >> bit % 8 & 7
