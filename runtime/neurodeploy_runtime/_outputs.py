"""The files of one run, opened together, of one unit grid."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neurodeploy_runtime import volumes
from neurodeploy_runtime._durable import durable_units
from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._journal import Record
from neurodeploy_runtime._outlet import SEAM, Output
from neurodeploy_runtime._paths import SEAM_MAP, Paths, inside
from neurodeploy_runtime._provenance import content_digest
from neurodeploy_runtime.volumes import Sink, SinkKind, attach_sink, required_bytes


def default_grain(kind: SinkKind, shape: Shape) -> Shape:
    """The durable unit of an output of this shape.

    A multiple of 64 on every axis, so that shards hold whole chunks. Files written
    plane by plane take whole rows, of at most about 16 million voxels a unit.
    """
    _, height, width = shape
    if kind == "ome-zarr":
        return 256, 256, 256
    if kind == "precomputed":
        # Its order of chunks decides.
        return volumes.default_grain(kind, shape, np.uint8)
    z = 64
    y = max(64, min(height, 16_777_216 // (z * width) // 64 * 64 or 64))
    return z, y, width


def check_disk(paths: Paths, kind: SinkKind, shape: Shape) -> None:
    """Refuse where the disk cannot hold the outputs; uncompressed, an upper bound."""
    need = sum(required_bytes(kind, shape, np.uint8) for _ in paths.outputs)
    free = shutil.disk_usage(paths.output.parent).free
    if need > free:
        raise OutputError(
            f"the output may take {need / 1e9:.2f} GB and {paths.output.parent} has "
            f"{free / 1e9:.2f} GB free: make room, or choose another place with -o"
        )


class OutputSet:
    """The outputs of a run and its seam map, open in the working folder."""

    def __init__(
        self,
        paths: Paths,
        kind: SinkKind,
        shape: Shape,
        grain: Shape,
        voxel_size_um: tuple[float, float, float] | None,
        *,
        seam: bool,
    ) -> None:
        self._paths = paths
        self.outputs: list[Output] = []
        self.seam: Sink | None = None
        self.grain = grain
        self.shape = shape
        self._is_new = False
        try:
            for plane_kind, path in paths.outputs:
                place = self._place(inside(plane_kind, path), path)
                sink = attach_sink(
                    place,
                    kind,
                    shape,
                    np.uint8,
                    voxel_size_um,
                    grain=grain,
                    pooling="max" if plane_kind == "mask" else "mean",
                )
                self.outputs.append(Output(plane_kind, sink))
            if seam:
                place = self._place(SEAM_MAP, paths.beside(SEAM_MAP))
                self.seam = _open_seam(place, shape, grain, voxel_size_um)
        except BaseException:
            self.close()
            raise

    def _place(self, name: str, path: Path) -> Path:
        """Where a file is opened, which may have its final name already."""
        place = self._paths.working(name, path)
        if place == path:
            self._paths.take_records(name, path)
        self._is_new |= not place.exists()
        return place

    def verified(self, records: Mapping[Shape, Record]) -> frozenset[Shape]:
        """The units that need not be done again: recorded, present and readable."""
        if self._is_new:
            # What is recorded was of a file that is not there any more.
            return frozenset()
        return durable_units([output.sink for output in self.outputs], records)

    def content(self, records: Mapping[Shape, Record]) -> dict[str, Any]:
        """By file name, what `verify_content` needs to check its voxels."""
        return {
            path.name: {
                "grain": list(self.grain),
                "digest": content_digest(records, i),
            }
            for i, (_, path) in enumerate(self._paths.outputs)
        }

    def finish(self, provenance: Mapping[str, Any]) -> None:
        """Complete every file: coarser levels, metadata, provenance."""
        for output in self.outputs:
            output.sink.finish(provenance)
        if self.seam is not None:
            self.seam.finish(provenance)

    def close(self) -> None:
        """Close every file; may be called twice."""
        while self.outputs:
            self.outputs.pop().sink.close()
        if self.seam is not None:
            self.seam.close()
            self.seam = None


def _open_seam(
    place: Path,
    shape: Shape,
    grain: Shape,
    voxel_size_um: tuple[float, float, float] | None,
) -> Sink:
    """A TIFF of an eighth of the extent, whose units are those of the output."""
    d, h, w = (-(-n // SEAM) for n in shape)
    gz, gy, gx = (-(-n // SEAM) for n in grain)
    size = None
    if voxel_size_um is not None:
        z, y, x = voxel_size_um
        size = (SEAM * z, SEAM * y, SEAM * x)
    return attach_sink(place, "tiff", (d, h, w), np.uint8, size, grain=(gz, gy, gx))
