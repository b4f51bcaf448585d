"""OME-Zarr 0.5: sharded Zarr v3 with its pyramid.

https://ngff.openmicroscopy.org/0.5/ — axes z, y, x; a shard of 256³ voxels of chunks of
64³, zstd level 1 with a checksum, so that a damaged chunk is an error.
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
)
from neurodeploy_runtime.volumes._sink_pyramid import Level, levels_of

SHARD = 256
#: Shards of levels pooled at the end: what is read for one is 8 times as large.
_LATE_SHARD = 128


class ZarrSink(ChunkedSink):
    """An OME-Zarr image. `grain` is the shard, of any shape."""

    kind = "ome-zarr"
    _marks = ("zarr.json", ".zgroup", ".zattrs", ".zarray")

    @classmethod
    def _open(
        cls, path: Path, spec: SinkSpec, grain: Shape | None, *, create: bool
    ) -> list[LevelStore]:
        grain = grain or cls.own_grain(spec)
        if min(grain) < 1:
            raise OutputError(
                f"a unit of {grain} voxels is empty: use at least 1 per axis"
            )
        context = unlocked_context()
        stores: list[LevelStore] = []
        levels = levels_of(spec.shape, spec.voxel_size_um)
        for number, level in enumerate(levels):
            shard = _shard(level, grain)
            folder = path / str(number)
            content = _array(level, shard, spec)
            if create:
                folder.mkdir(parents=True)
            opened = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
                "metadata": content,
            }
            array, with_zeros = (
                tensorstore()
                .open(
                    opened | {"store_data_equal_to_fill_value": stored},
                    open=True,
                    create=create,
                    context=context,
                )
                .result()
                for stored in (False, True)
            )
            file = _namer(folder, shard)
            zeros = _zeros_writer(with_zeros)
            stores.append(LevelStore(level, shard, array, file, zeros))
        return stores

    @classmethod
    def own_grain(cls, spec: SinkSpec) -> Shape:
        """A shard of 256³, or less where the volume is smaller."""
        return zarr_grain(spec.shape)

    def _describe(self, metadata: Mapping[str, Any] | None) -> None:
        attributes: dict[str, Any] = {"ome": self._multiscale()}
        if metadata is not None:
            attributes["neurodeploy"] = dict(metadata)
        write_json(
            self.path / "zarr.json",
            {"zarr_format": 3, "node_type": "group", "attributes": attributes},
        )

    def _multiscale(self) -> dict[str, Any]:
        size = self.spec.voxel_size_um
        unit = {} if size is None else {"unit": "micrometer"}
        datasets = []
        for number, store in enumerate(self._stores):
            factor = store.level.factor
            scale = [s * f for s, f in zip(size or (1.0,) * 3, factor, strict=True)]
            # The middle of the first coarse voxel, from the middle of the first fine.
            moved = [
                s * (f - 1) / 2 for s, f in zip(size or (1.0,) * 3, factor, strict=True)
            ]
            transforms: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
            if any(moved):
                transforms.append({"type": "translation", "translation": moved})
            datasets.append(
                {"path": str(number), "coordinateTransformations": transforms}
            )
        return {
            "version": "0.5",
            "multiscales": [
                {
                    "name": "volume",
                    "axes": [{"name": n, "type": "space"} | unit for n in "zyx"],
                    "datasets": datasets,
                    "type": self.spec.pooling,
                    "metadata": {"description": "2x steps, pooled axis by axis"},
                }
            ],
        }


def zarr_grain(shape: Shape) -> Shape:
    """A shard of 256³, or less where the volume is smaller.

    >>> zarr_grain((41, 512, 100))
    (64, 256, 128)
    """
    z, y, x = (min(SHARD, -(-n // CHUNK) * CHUNK) for n in shape)
    return z, y, x


def _shard(level: Level, grain: Shape) -> Shape:
    if max(level.factor) <= 4 and not any(
        g % f for g, f in zip(grain, level.factor, strict=True)
    ):
        z, y, x = (g // f for g, f in zip(grain, level.factor, strict=True))
    else:
        z, y, x = (min(_LATE_SHARD, -(-n // CHUNK) * CHUNK) for n in level.shape)
    return z, y, x


def _array(level: Level, shard: Shape, spec: SinkSpec) -> dict[str, Any]:
    """The array's zarr.json, as TensorStore takes it."""
    # The largest part of a shard's side that is at most a chunk's.
    chunk = [max(c for c in range(1, min(CHUNK, s) + 1) if s % c == 0) for s in shard]
    return {
        "shape": list(level.shape),
        "data_type": spec.dtype.name,
        "dimension_names": ["z", "y", "x"],
        "fill_value": 0,
        "chunk_grid": {
            "name": "regular",
            "configuration": {"chunk_shape": list(shard)},
        },
        "chunk_key_encoding": {"name": "default"},
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": chunk,
                    "codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {
                            "name": "zstd",
                            "configuration": {"level": 1, "checksum": True},
                        },
                    ],
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                },
            }
        ],
    }


def _zeros_writer(array: Any) -> Callable[[Box], object]:
    def write(box: Box) -> object:
        return array[box.slices].write(0).result()

    return write


def _namer(folder: Path, shard: Shape) -> Callable[[Box], Path]:
    def file(box: Box) -> Path:
        z, y, x = (a // s for a, s in zip(box.start, shard, strict=True))
        return folder / "c" / str(z) / str(y) / str(x)

    return file
