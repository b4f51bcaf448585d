"""Which regions a volume is segmented in, so that a memory cap holds.

A region spans the whole depth; inside it tiles stream through rings whose size its
y and x extents decide, so memory does not grow with depth. Where whole planes do not
fit, planes are cut, and the tiles on a cut are run by both sides: the redundancy that
the plan reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from neurodeploy_runtime._errors import MemoryCapError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._outlet import UnitOutlet
from neurodeploy_runtime._plan import TilePlan

#: What allocators and libraries may hold beyond what we count.
SLACK = 48_000_000


@dataclass(frozen=True)
class Footprint:
    """What a run holds, beside what a region needs.

    `base_bytes` is the process with its libraries, network and open input, measured
    before anything else is allocated.
    """

    base_bytes: int
    voxel_bytes: int
    grain: Shape
    extent: Shape
    outputs: int
    slots: int
    batch: int
    seam: bool = False
    #: What the source decodes at a time, where chunks are deeper than a plane.
    chunk: Shape | None = None
    flips: bool = False
    #: Bytes for each voxel of a plane in which one is quantised and looked at.
    finishing: int = 0
    #: What tiles and sums may take of a GPU; None: they lie on the host.
    gpu_bytes: int | None = None

    def cache_bytes(self, plan: TilePlan, region: Box) -> int:
        """What a source must keep so that no chunk of a region is decoded twice.

        A row of chunks: planes are read in order, a few at a time.
        """
        if self.chunk is None:
            return 0
        spans = plan.layer(region).reads
        voxels = self.chunk[0]
        for (start, stop), size in zip(spans, self.chunk[1:], strict=True):
            voxels *= (-(-stop // size) - start // size) * size
        # A cache counts more than voxels.
        return voxels * self.voxel_bytes * 9 // 8 + 1_000_000

    def region_bytes(self, plan: TilePlan, region: Box) -> int:
        """Bytes that segmenting `region` holds at its most."""
        (y0, y1), (x0, x1) = plan.layer(region).reads
        raw = ring_depth(plan, region) * (y1 - y0) * (x1 - x0) * self.voxel_bytes
        area = region.shape[1] * region.shape[2]
        tiles = self.tile_bytes(plan, region) if self.gpu_bytes is None else 0
        outlet = UnitOutlet.nbytes(self.outputs, self.grain, self.extent, area)
        unit = prod(min(g, e) for g, e in zip(self.grain, self.extent, strict=True))
        # Cutting, writing and checking each copy a tile or a unit.
        copies = 2 * unit * self.outputs + 4 * prod(plan.tile) * 8
        cache = self.cache_bytes(plan, region)
        # The picture pools half a plane of the image, and of the result, at a time.
        planes = area * self.finishing + area * (self.voxel_bytes + 1) // 2
        return raw + tiles + outlet + copies + cache + planes

    def tile_bytes(self, plan: TilePlan, region: Box) -> int:
        """Bytes of the tiles on their way and of their sums, wherever they lie."""
        area = region.shape[1] * region.shape[2]
        blend = plan.window[0] * area * 4 * (2 if self.seam else 1)
        slots = self.slots * self.batch * 4 * (prod(plan.tile) + prod(plan.window))
        if self.gpu_bytes is None:
            # Of each call: the batch flipped, that of the flip before, its answer.
            flipped = self.batch * 4 * (2 * prod(plan.tile) + prod(plan.window))
            calls = self.slots // 2 - 1
            return blend + slots + (calls * flipped if self.flips else 0)
        # One plane of levels leaves at a time; flips, half precision, the raw tile
        # and the weights are less than two slots.
        return blend + slots + 2 * slots // self.slots + area


@dataclass(frozen=True)
class MemoryPlan:
    """The regions, in order, and what the largest of them takes with all else."""

    regions: tuple[Box, ...]
    peak_bytes: int
    redundancy: float
    #: What the source is to keep, decoded.
    cache_bytes: int = 0
    #: Planes are decoded into a scratch file first, because regions cut them.
    scratch: bool = False
    #: What tiles and their sums take of a GPU; 0 where they lie on the host.
    device_bytes: int = 0


def ring_depth(plan: TilePlan, region: Box) -> int:
    """Planes that a region's ring holds: a tile's, and a stride's that come next."""
    axis = plan.axes[0]
    low, high = plan.planes_read(region.start[0], region.stop[0])
    return min(axis.tile + axis.stride, high - low)


def choose_regions(
    plan: TilePlan, roi: Box, footprint: Footprint, cap_bytes: int
) -> MemoryPlan:
    """The fewest cuts with which the cap holds.

    Cuts lie on the unit grid of the output, which is anchored at the roi's first
    voxel. Rows are cut before columns: contiguous rows are read fastest.

    Raises
    ------
    MemoryCapError
        Even one unit at a time takes more; the text names the smallest cap.
    """
    depth, height, width = roi.shape
    gy, gx = (min(footprint.grain[i], roi.shape[i]) for i in (1, 2))
    rows, columns = -(-height // gy), -(-width // gx)
    least = 0
    fits = True
    for across in _cuts(columns):
        for down in _cuts(rows):
            y = -(-rows // down) * gy
            x = -(-columns // across) * gx
            if across > 1 and down < rows:
                continue
            cells = [
                cell.shift(roi.start)
                for cell in Box.whole(roi.shape).grid((depth, y, x))
            ]
            need = footprint.base_bytes + SLACK
            need += max(footprint.region_bytes(plan, cell) for cell in cells)
            tile_bytes = max(footprint.tile_bytes(plan, cell) for cell in cells)
            fits = footprint.gpu_bytes is None or tile_bytes <= footprint.gpu_bytes
            if need <= cap_bytes and fits:
                tiles = sum(plan.tiles_in(cell) for cell in cells)
                redundancy = tiles * prod(plan.tile) / roi.voxels
                cache = max(footprint.cache_bytes(plan, cell) for cell in cells)
                on_gpu = 0 if footprint.gpu_bytes is None else tile_bytes
                return MemoryPlan(
                    tuple(cells), need, redundancy, cache, device_bytes=on_gpu
                )
            least = need
    if not fits:
        raise MemoryCapError(
            f"tiles and their sums take at least {tile_bytes / 1e9 + 0.005:.2f} GB of "
            f"the GPU, which has {(footprint.gpu_bytes or 0) / 1e9:.2f} GB left for "
            "them: use a smaller --batch, or --blend-on host"
        )
    raise MemoryCapError(
        f"a memory cap of {cap_bytes / 1e9:.2f} GB is too small for this volume and "
        f"model: the smallest that would do is {least / 1e9 + 0.005:.2f} GB"
    )


def _cuts(most: int) -> list[int]:
    """Numbers of parts worth trying, from 1 to `most`, a few dozen at most."""
    cuts = {most}
    n = 1.0
    while n < most:
        cuts.add(int(n))
        n = n * 1.25 + 0.5
    return sorted(cuts)
