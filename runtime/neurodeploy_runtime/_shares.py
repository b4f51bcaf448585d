"""What is left to do of a volume, in which pieces, and by which worker.

Boxes of regions lie in the volume; units are counted from the start of the roi, in
steps of the output's `grain`.
"""

from __future__ import annotations

from collections.abc import Sequence

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._plan import TilePlan


def worker_shares(
    regions: Sequence[Box], roi: Box, grain: Shape, worker: tuple[int, int]
) -> list[Box]:
    """The regions as far as worker `i` of `n` has them: whole layers of units.

    Raises
    ------
    SettingsError
        There are more workers than layers.
    """
    i, n = worker
    if n == 1:
        return list(regions)
    depth = roi.shape[0]
    rows = -(-depth // grain[0])
    if n > rows:
        raise SettingsError(
            f"{n} workers are too many: this output has {rows} layers of units, "
            f"{grain[0]} planes each; use at most {rows}"
        )
    first = (i - 1) * rows // n * grain[0] + roi.start[0]
    last = min(i * rows // n * grain[0], depth) + roi.start[0]
    return [
        Box((first, *region.start[1:]), (last, *region.stop[1:])) for region in regions
    ]


def undone(region: Box, roi: Box, grain: Shape, done: frozenset[Shape]) -> list[Box]:
    """Runs of unit layers of a region in which a unit is not among `done`."""
    z0 = roi.start[0]
    inside = region.shift(tuple(-a for a in roi.start))  # type: ignore[arg-type]
    parts: list[list[int]] = []
    for z in range(inside.start[0], inside.stop[0], grain[0]):
        top = min(z + grain[0], inside.stop[0])
        layer = Box((z, *inside.start[1:]), (top, *inside.stop[1:]))
        if all(unit.start in done for unit in layer.grid(grain)):
            continue
        if parts and parts[-1][1] == z:
            parts[-1][1] = top
        else:
            parts.append([z, top])
    return [
        Box((a + z0, *region.start[1:]), (b + z0, *region.stop[1:])) for a, b in parts
    ]


def chapters(roi: Box, grain: Shape, planes: int) -> list[Box]:
    """The roi in ranges of at most `planes` planes, whole layers of units each.

    At least one layer, however few the planes.
    """
    height = max(grain[0], planes // grain[0] * grain[0])
    (z0, y0, x0), (z1, y1, x1) = roi.start, roi.stop
    return [
        Box((z, y0, x0), (min(z + height, z1), y1, x1)) for z in range(z0, z1, height)
    ]


def scratch_chapters(
    plan: TilePlan, roi: Box, grain: Shape, plane_bytes: int, free_bytes: int
) -> list[Box]:
    """The chapters whose planes, and those that tiles read around them, fit the disk.

    A fifth of `free_bytes` is left to others. A layer of units that does not fit is a
    chapter all the same.
    """
    planes = free_bytes * 4 // 5 // plane_bytes - 2 * plan.tile[0]
    return chapters(roi, grain, planes)
