"""How to read a volume in boxes without decoding its chunks again and again."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._base import Source

#: Up to this many bytes decoded for each one delivered, boxes are read as they come.
DIRECT = 4.0


@dataclass(frozen=True)
class ReadPlan:
    """How a volume will be read, and what that costs."""

    #: `direct`: box by box. `slab`: the chunks of a row of boxes stay in memory, each
    #: decoded once. `scratch`: they are written, decoded, into a file first.
    how: Literal["direct", "slab", "scratch"]
    #: Bytes decoded over bytes delivered, read in this way; and read directly.
    amplification: float
    direct_amplification: float
    #: What the source is to keep in memory.
    cache_bytes: int
    #: A scratch file of the planes of one row of boxes.
    disk_bytes: int
    #: For people.
    reason: str

    def to_json(self) -> dict[str, Any]:
        """As plain values for a report."""
        return asdict(self)


def plan_reading(source: Source, region: Shape, budget_bytes: int) -> ReadPlan:
    """Choose how to read `source` in boxes of the shape `region`, x fastest, z slowest.

    `budget_bytes` is what may stay in memory between boxes.
    """
    direct = source.amplification(region)
    depth, *_ = (min(a, b) for a, b in zip(region, source.shape, strict=True))
    # Boxes that do not begin where a chunk does touch one more.
    planes = min(
        -(-depth // source.chunk[0]) + 1, -(-source.shape[0] // source.chunk[0])
    )
    rows, columns = (
        -(-n // c) * c for n, c in zip(source.shape[1:], source.chunk[1:], strict=True)
    )
    slab = planes * source.chunk[0] * rows * columns * source.dtype.itemsize
    if direct <= DIRECT:
        layer = slab if direct > 1 else 0
        return ReadPlan(
            "direct",
            direct,
            direct,
            min(layer, budget_bytes),
            0,
            f"boxes of {region} decode {direct:.1f} times what they deliver",
        )
    once = source.amplification((depth, *source.shape[1:]))
    reason = (
        f"boxes of {region} would decode {direct:.0f} times what they deliver, because "
        f"{source.format} is decoded in pieces of {source.chunk}"
    )
    if slab <= budget_bytes:
        reason += f"; {slab / 2**20:.0f} MiB of them stay in memory"
        return ReadPlan("slab", once, direct, slab, 0, reason)
    disk = min(source.shape[0], depth + 2 * source.chunk[0]) * (
        source.shape[1] * source.shape[2] * source.dtype.itemsize
    )
    reason += (
        f"; the {slab / 2**20:.0f} MiB of a row of boxes are more than the "
        f"{budget_bytes / 2**20:.0f} MiB there are, so its planes go into a scratch "
        f"file of {disk / 2**20:.0f} MiB; `neurodeploy ingest` avoids that"
    )
    return ReadPlan("scratch", once, direct, 0, disk, reason)


def decoding_mb_s(source: Source, chunks: int = 4) -> float:
    """MB of voxels that one read of a few chunks from the middle gives per second.

    Divided by a plan's `amplification`, the speed that reading will have, where the
    disk is faster than that.
    """
    z, y, x = (n // 2 // c * c for n, c in zip(source.shape, source.chunk, strict=True))
    depth, rows, columns = source.chunk
    if source.compressed:
        stop = (z + chunks * depth, y + rows, x + columns)
    else:
        y, x = 0, 0
        stop = (z + chunks, *source.shape[1:])
    box = Box((z, y, x), stop).intersect(Box.whole(source.shape))
    begin = time.perf_counter()
    voxels = source.read(box)
    return voxels.nbytes / 1e6 / max(time.perf_counter() - begin, 1e-9)
