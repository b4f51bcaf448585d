"""Neuroglancer's precomputed format, sharded.

https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed — chunks
of 64³, gzipped; a shard holds up to 64 chunks, neighbours by the format's compressed
Morton code: 256³ voxels where the volume is that large on every axis. A web server must
answer range requests to serve it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._sink import SinkSpec
from neurodeploy_runtime.volumes._sink_chunked import (
    CHUNK,
    ChunkedSink,
    LevelStore,
    tensorstore,
    unlocked_context,
    write_json,
    write_whole,
)
from neurodeploy_runtime.volumes._sink_pyramid import Level, levels_of

_SHARD_BITS = 6  # 64 chunks


class PrecomputedSink(ChunkedSink):
    """A precomputed volume; a mask is a segmentation, anything else an image."""

    kind = "precomputed"
    _marks = ("info",)

    @classmethod
    def _open(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, create: bool
    ) -> list[LevelStore]:
        if spec.voxel_size_um is None:
            raise OutputError(
                "a precomputed volume must say its resolution, and nobody said the "
                "voxel size: give it with --voxel-size z,y,x, or write OME-Zarr"
            )
        own = cls.own_grain(spec)
        if grain is not None and any(
            min(asked, n) != min(g, n)
            for asked, g, n in zip(grain, own, spec.shape, strict=True)
        ):
            raise OutputError(
                f"the shards of a precomputed volume of {spec.shape} are {own}, "
                f"not {grain}: leave the unit to the format"
            )
        context = unlocked_context()
        stores: list[LevelStore] = []
        preshift = _SHARD_BITS
        for level in levels_of(spec.shape, spec.voxel_size_um):
            # Each axis that is halved has one bit less, while it has any: what is
            # left of the code covers the same box, if all axes were halved.
            if stores:
                before = _bits(stores[-1].level.shape)
                preshift -= sum(before) - sum(_bits(level.shape))
            if preshift < 0:
                preshift = _SHARD_BITS
            store = _open_level(path, spec, level, preshift, context, create=create)
            stores.append(store)
        return stores

    @classmethod
    def own_grain(cls, spec: SinkSpec) -> Shape:
        """The shard that the format's order of chunks gives."""
        return _shard(_bits(spec.shape), _SHARD_BITS)

    def _describe(self, metadata: Mapping[str, Any] | None) -> None:
        if metadata is None:
            return  # TensorStore wrote `info` when it made the levels.
        write_json(
            # CloudVolume's file, in its form.
            self.path / "provenance",
            {
                "owners": [],
                "description": "neurodeploy",
                "processing": [{"method": dict(metadata), "by": ""}],
                "sources": [],
            },
        )


def _open_level(
    path: Path,
    spec: SinkSpec,
    level: Level,
    preshift: int,
    context: Any,
    *,
    create: bool,
) -> LevelStore:
    bits = _bits(level.shape)
    preshift = min(preshift, sum(bits))
    resolution = [
        s * f * 1000
        for s, f in zip(spec.voxel_size_um or (), level.factor, strict=True)
    ][::-1]
    key = "_".join(f"{r:g}" for r in resolution)
    segmentation = spec.pooling == "max" and spec.dtype.kind == "u"
    opened = {
        "driver": "neuroglancer_precomputed",
        "kvstore": {"driver": "file", "path": f"{path.absolute()}/"},
        "multiscale_metadata": {
            "type": "segmentation" if segmentation else "image",
            "data_type": spec.dtype.name,
            "num_channels": 1,
        },
        "scale_metadata": {
            "key": key,
            "size": list(level.shape[::-1]),
            "resolution": resolution,
            "encoding": "raw",
            "chunk_size": [CHUNK] * 3,
            "sharding": {
                "@type": "neuroglancer_uint64_sharded_v1",
                "preshift_bits": preshift,
                "minishard_bits": 0,
                "shard_bits": sum(bits) - preshift,
                "hash": "identity",
                "minishard_index_encoding": "raw",
                "data_encoding": "gzip",
            },
        },
    }
    array = tensorstore().open(opened, open=True, create=create, context=context)
    file = _namer(path / key, bits, preshift)
    return LevelStore(
        level,
        _shard(bits, preshift),
        array.result()[..., 0].T,  # from x, y, z, channel
        file,
        # TensorStore writes no shard of zeros. This is one: its only minishard begins
        # and ends at byte 0.
        lambda box: write_whole(file(box), bytes(16)),
    )


def _bits(shape: Shape) -> Shape:
    """Bits of a chunk's number on each axis."""
    z, y, x = ((-(-n // CHUNK) - 1).bit_length() for n in shape)
    return z, y, x


def _shard(bits: Shape, preshift: int) -> Shape:
    """Voxels that the lowest `preshift` bits of the compressed Morton code count.

    Bit by bit, x before y before z; an axis with no bits left is passed over.

    >>> _shard((1, 4, 4), 6)
    (128, 256, 512)
    """
    used = [0, 0, 0]
    for bit in range(max(bits, default=0)):
        for axis in (2, 1, 0):
            if bit < bits[axis] and sum(used) < preshift:
                used[axis] += 1
    z, y, x = (CHUNK << u for u in used)
    return z, y, x


def _namer(folder: Path, bits: Shape, preshift: int) -> Callable[[Box], Path]:
    digits = -(-(sum(bits) - preshift) // 4)

    def file(box: Box) -> Path:
        chunk = [a // CHUNK for a in box.start]
        code = place = 0
        for bit in range(max(bits)):
            for axis in (2, 1, 0):
                if bit < bits[axis]:
                    code |= (chunk[axis] >> bit & 1) << place
                    place += 1
        return folder / f"{code >> preshift:0{digits}x}.shard"

    return file
