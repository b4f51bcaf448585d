"""From a path and the name of a format to a sink that writes it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import DTypeLike

from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime.volumes._sink import (
    MakeableSink,
    Pooling,
    Sink,
    SinkKind,
    SinkSpec,
    already_there,
)

_SUFFIXES: dict[str, SinkKind] = {
    ".tif": "tiff",
    ".tiff": "tiff",
    ".btf": "tiff",
    ".tf8": "tiff",
    ".zarr": "ome-zarr",
    ".precomputed": "precomputed",
    ".ng": "precomputed",
    ".v3draw": "v3draw",
    ".vaa3draw": "v3draw",
    ".raw": "v3draw",
}


def sink_kind(path: Path) -> SinkKind:
    """Which format a path's suffix asks for.

    Raises
    ------
    OutputError
        The suffix is not known.

    >>> sink_kind(Path("brain.ome.tif")), sink_kind(Path("brain.ome.zarr"))
    ('tiff', 'ome-zarr')
    """
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise OutputError(
            f"{path.name} does not say which format to write: "
            f"end it in one of {' '.join(_SUFFIXES)}"
        )
    return kind


def may_replace(path: Path, kind: SinkKind) -> bool:
    """Whether what lies at `path` is such an output, so that one may replace it.

    Any file may be replaced by a file; a folder only where it is a store of this kind,
    and no link to one.
    """
    return _class_of(kind).may_replace(path)


def create_sink(
    path: Path,
    kind: SinkKind,
    shape: Shape,
    dtype: DTypeLike,
    voxel_size_um: tuple[float, float, float] | None = None,
    *,
    grain: Shape | None = None,
    pooling: Pooling = "max",
    overwrite: bool = False,
) -> Sink:
    """Make a new output in which every voxel is zero.

    `grain` is the unit asked for; None takes the format's own.

    Raises
    ------
    OutputError
        Something lies at `path` and `overwrite` is False, the disk has no room, or
        the format cannot hold such a volume.
    """
    spec = SinkSpec(shape, np.dtype(dtype), voxel_size_um, pooling)
    if not path.parent.is_dir():
        raise OutputError(
            f"{path} cannot be written: the folder {path.parent} is not there"
        )
    if path.exists() and not overwrite:
        raise already_there(path)
    return _class_of(kind).create(path, spec, grain, overwrite=overwrite)


def open_sink(
    path: Path,
    kind: SinkKind,
    shape: Shape,
    dtype: DTypeLike,
    voxel_size_um: tuple[float, float, float] | None = None,
    *,
    grain: Shape | None = None,
    pooling: Pooling = "max",
) -> Sink:
    """Open an unfinished output again, to go on with it.

    What a killed writer left lying about is removed, if it is old: other processes
    may be writing other units of the same output now.

    Raises
    ------
    ResumeError
        What lies there is damaged, or of another shape, dtype or grain.
    """
    spec = SinkSpec(shape, np.dtype(dtype), voxel_size_um, pooling)
    return _class_of(kind).reopen(path, spec, grain)


def attach_sink(
    path: Path,
    kind: SinkKind,
    shape: Shape,
    dtype: DTypeLike,
    voxel_size_um: tuple[float, float, float] | None = None,
    *,
    grain: Shape | None = None,
    pooling: Pooling = "max",
) -> Sink:
    """Open the unfinished output at `path`, or make it where there is none.

    Several processes may do so at the same moment; all get the same output.
    """
    if not path.exists():
        try:
            return create_sink(
                path, kind, shape, dtype, voxel_size_um, grain=grain, pooling=pooling
            )
        except OutputError:
            if not path.exists():
                raise
    return open_sink(
        path, kind, shape, dtype, voxel_size_um, grain=grain, pooling=pooling
    )


def default_grain(kind: SinkKind, shape: Shape, dtype: DTypeLike) -> Shape:
    """The unit that such an output has where none is asked for.

    >>> default_grain("tiff", (1000, 2048, 2048), "uint8")
    (64, 512, 2048)
    """
    return _class_of(kind).own_grain(SinkSpec(shape, np.dtype(dtype)))


def required_bytes(kind: SinkKind, shape: Shape, dtype: DTypeLike) -> int:
    """Disk that such an output may need, in bytes: an upper bound.

    Compressed formats are counted as if nothing could be compressed, with their
    coarser levels.
    """
    return _class_of(kind).bytes_needed(SinkSpec(shape, np.dtype(dtype)))


def _class_of(kind: SinkKind) -> type[MakeableSink]:
    # Here and not at the top: who only reads does not load what writes.
    if kind == "tiff":
        from neurodeploy_runtime.volumes._sink_tiff import TiffSink

        return TiffSink
    if kind == "v3draw":
        from neurodeploy_runtime.volumes._sink_v3draw import V3drawSink

        return V3drawSink
    if kind == "ome-zarr":
        from neurodeploy_runtime.volumes._sink_zarr import ZarrSink

        return ZarrSink
    if kind == "precomputed":
        from neurodeploy_runtime.volumes._sink_precomputed import PrecomputedSink

        return PrecomputedSink
    kinds = ", ".join(get_args(SinkKind))
    raise OutputError(f"{kind!r} is no format to write: use one of {kinds}")
