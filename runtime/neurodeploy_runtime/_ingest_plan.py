"""How a volume is ingested: the shards that memory allows, and the disk they take."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from neurodeploy_runtime._errors import MemoryCapError, OutputError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime._rss import current_rss
from neurodeploy_runtime.volumes import (
    ReadPlan,
    Source,
    plan_reading,
    required_bytes,
)
from neurodeploy_runtime.volumes._sink_chunked import tensorstore

#: Units that are being written, and buffers: one more is being read into.
WRITERS = 2
BUFFERS = WRITERS + 1
#: What writing a unit holds beside its buffer, over the unit: the levels made of it
#: and the compressed shards.
_WRITING = 2.5
#: What else came to be held, measured: libraries that load late, memory that threads
#: keep for their next allocation.
_OVERHEAD_BYTES = 40_000_000
#: What a scratch file's planes are copied through.
_SCRATCH_BUFFER_BYTES = 64 * 2**20
#: Shards, the best first: thinner ones need fewer planes of a stack at a time.
_GRAINS: tuple[Shape, ...] = (
    (256, 256, 256),
    (128, 256, 256),
    (64, 256, 256),
    (64, 128, 128),
)
#: Boxes of the volume that are compressed to learn what disk it will take.
_SAMPLES = 9


def choose_shards(
    source: Source, memory_bytes: int, begun: object = None
) -> tuple[Shape, ReadPlan]:
    """Shards and a way to read that fit the cap, the largest shards first.

    Shards whose planes stay in memory go before larger ones that need a scratch file.
    Where none fit, the source decodes fewer chunks at a time. `begun`: the shards of a
    store that is begun already, as its plan names them; no others are chosen then.

    Raises
    ------
    MemoryCapError
        Even the smallest take more.
    """
    tensorstore()  # loaded, it counts as held
    held = current_rss() + _OVERHEAD_BYTES
    source.keep(0)
    chunks = source.decode_at_once(sys.maxsize)
    while True:
        # What the source takes beside the chunks it keeps.
        working = held + source.memory_bytes
        try:
            return _shards_beside(working, source, memory_bytes, begun)
        except MemoryCapError:
            if chunks == 1:
                raise
            chunks = source.decode_at_once(chunks // 2)


def _shards_beside(
    working: int, source: Source, memory_bytes: int, begun: object
) -> tuple[Shape, ReadPlan]:
    """As :func:`choose_shards`, where the process and the source take `working`."""
    plane_bytes = source.shape[1] * source.shape[2] * source.dtype.itemsize
    scratched: tuple[Shape, ReadPlan] | None = None
    of_begun = [grain for grain in _GRAINS if list(grain) == begun]
    for grain in of_begun or _GRAINS:
        unit = Box.whole(source.shape).intersect(Box.whole(grain)).voxels
        unit *= source.dtype.itemsize
        fixed = working + int(unit * (BUFFERS + WRITERS * _WRITING))
        smallest = fixed
        plan = plan_reading(source, grain, max(0, memory_bytes - fixed))
        if plan.how == "scratch":
            layer = min(grain[0], source.shape[0]) * plane_bytes
            # At least the planes of a chunk, of which the next one's come along.
            least = 2 * source.chunk[0] * plane_bytes
            smallest += min(layer, max(_SCRATCH_BUFFER_BYTES, least))
        if smallest > memory_bytes:
            continue
        if plan.how != "scratch":
            return grain, plan
        scratched = scratched or (grain, plan)
    if scratched is None:
        raise MemoryCapError(
            f"{memory_bytes / 1e9:.2f} GB are too little to ingest this volume: "
            f"give --memory {math.ceil(smallest / 1e7) * 10}MB or more"
        )
    return scratched


def check_disk(source: Source, output: Path, plan: ReadPlan) -> None:
    """Refuse where the disk is too small for the store and a scratch file.

    Where it would be only if nothing could be compressed, some boxes are tried.
    """
    free = shutil.disk_usage(output.parent).free
    most = required_bytes("ome-zarr", source.shape, source.dtype)
    if most + plan.disk_bytes <= free:
        return
    likely = int(most * _compressed_share(source) * 1.1)
    if likely + plan.disk_bytes > free:
        raise OutputError(
            f"{output} will take about {likely / 1e9:.1f} GB, its scratch file "
            f"{plan.disk_bytes / 1e9:.1f} GB, and {output.parent} has "
            f"{free / 1e9:.1f} GB free: make room, or write elsewhere"
        )


def _compressed_share(source: Source) -> float:
    """What zstd leaves of some boxes of the volume, over what they were."""
    import imagecodecs

    depth, rows, columns = source.shape
    size = min(4, depth), min(256, rows), min(256, columns)
    before = after = 0
    for number in range(_SAMPLES):
        # Along the diagonal, both ends included.
        z, y, x = (
            (n - s) * number // (_SAMPLES - 1)
            for n, s in zip(source.shape, size, strict=True)
        )
        box = Box((z, y, x), (z + size[0], y + size[1], x + size[2]))
        voxels = read_patiently(source, box)
        before += voxels.nbytes
        after += len(imagecodecs.zstd_encode(voxels.tobytes(), level=1))
    return after / before
