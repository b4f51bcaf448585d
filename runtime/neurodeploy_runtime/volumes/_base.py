"""What a volume is to the runtime: something that boxes are read from."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime.volumes._files import Files

#: What a voxel may be; always in the byte order of this machine.
DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "float32"))

CACHE_BYTES = 256 * 2**20

#: Voxels along an axis, and in all, that a volume may claim: ten thousand brains.
MOST_SIDE = 1 << 31
MOST_VOXELS = 10**17


def default_threads() -> int:
    """As many as this process may use, and at most eight."""
    if hasattr(os, "sched_getaffinity"):
        return min(8, len(os.sched_getaffinity(0)))
    return min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class ReadOptions:
    """What to read of a file that holds more than one volume, and how.

    None means that the caller did not say; a reader then takes the only one there is,
    or raises an InputError that says what there is to choose from.
    """

    channel: int | None = None
    time: int | None = None
    level: int = 0
    #: What the axes of the stored array are, one letter each (z, y, x, c, t), where
    #: the file does not say.
    axes: str | None = None
    #: The name of an array inside the file.
    dataset: str | None = None
    #: Micrometres on z, y, x, instead of what the file says.
    voxel_size_um: tuple[float, float, float] | None = None
    #: Decoded chunks that are kept for the next box.
    cache_bytes: int = CACHE_BYTES
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("channel", "time", "level", "cache_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise SettingsError(f"{name} {value} is negative: count from 0")
        size = self.voxel_size_um
        if size is not None and not all(0 < n < math.inf for n in size):
            raise SettingsError(
                f"a voxel of {size} is no size: give z, y and x in micrometres"
            )
        if self.threads < 1:
            raise SettingsError(f"{self.threads} threads cannot read: use 1 or more")

    def refuse(self, kind: str, *names: str) -> None:
        """Raise where the caller chose among what files of this kind do not have."""
        for name in names:
            value = getattr(self, name)
            if value not in (None, 0):
                raise SettingsError(
                    f"{name} {value!r} has no meaning for {kind}: leave it out"
                )


class Source(ABC):
    """A volume that boxes are read from, of any size, by any number of threads.

    A context manager: it owns open files and threads. `read` may be called from
    several threads at once and never returns another box's voxels.
    """

    #: Extent on z, y, x.
    shape: Shape
    #: One of uint8, uint16, int16, float32, in this machine's byte order.
    dtype: np.dtype[Any]
    #: Micrometres on z, y, x; None where the file does not say.
    voxel_size_um: tuple[float, float, float] | None
    #: What is decoded at a time: `(1, Y, X)` for a plane compressed as a whole.
    chunk: Shape
    #: Whether a chunk must be decoded as a whole to reach a voxel of it.
    compressed: bool
    path: Path | str
    #: For people: ``TIFF, zlib planes, ImageJ``.
    format: str
    #: The most that reading allocates between calls and during one, results aside.
    memory_bytes: int = 0

    @abstractmethod
    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Voxels of `box`, of exactly its shape, in native byte order.

        They are written into `out`, where given: an array of the box's shape and the
        volume's dtype, of any strides. Raises ReadError, naming plane or chunk, where
        the file does not give them.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """What tells this input from any other, as hexadecimal SHA-256.

        Of the format, shape and dtype, of which channel, time and level is read, of
        the sizes and modification times of its files, and of its first and last chunk
        as stored.
        """

    @abstractmethod
    def close(self) -> None:
        """Close files and end threads; reading afterwards is an error."""

    @property
    def loads_whole_chunks(self) -> bool:
        """Whether a voxel is reached only by loading all of its chunk.

        Also where that is not compressed; only single rows are read alone.
        """
        return self.compressed or prod(self.chunk[:2]) > 1

    def decoded_voxels(self, box: Box) -> int:
        """Voxels that are loaded to read a box, nothing of it being kept already."""
        if not self.loads_whole_chunks:
            return box.voxels
        return prod(
            min(-(-b // c) * c, n) - a // c * c
            for a, b, c, n in zip(
                box.start, box.stop, self.chunk, self.shape, strict=True
            )
        )

    def amplification(self, box_shape: Shape) -> float:
        """Bytes decoded over bytes delivered, for a volume read in boxes of this shape.

        Boxes lie on a grid of their own shape, anchored at the origin, and each decodes
        every chunk it touches.
        """
        ratio = 1.0
        for extent, box, chunk in zip(self.shape, box_shape, self.chunk, strict=True):
            box, chunk = min(box, extent), min(chunk, extent)
            touched = 0
            for start in range(0, extent, box):
                stop = min(start + box, extent)
                first, last = start // chunk, -(-stop // chunk)
                touched += min(last * chunk, extent) - first * chunk
            ratio *= touched / extent
        return ratio

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from, where they are opened one by one.

        None of a store of chunks, which is the whole folder `path`, and of an array.
        """
        opened = getattr(self, "_files", None)
        return opened.paths if isinstance(opened, Files) else ()

    def changed(self) -> Path | None:
        """A file of it that was written to since it was opened; None where none was.

        Of a store of chunks, its fingerprint tells.
        """
        opened = getattr(self, "_files", None)
        return opened.changed() if isinstance(opened, Files) else None

    def keep(self, cache_bytes: int) -> None:
        """Keep at most this much of what is decoded for later boxes, from now on.

        Does nothing for a source that never keeps any.
        """
        return

    def decode_at_once(self, chunks: int) -> int:
        """Decode at most so many chunks at a time from now on; returns how many.

        Never more than its threads. `memory_bytes` then holds for that many. Does
        nothing for a source of which it cannot be chosen, and returns 1.
        """
        return 1

    def describe(self) -> dict[str, Any]:
        """As plain values for a report."""
        return {
            "path": str(self.path),
            "format": self.format,
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "voxel_size_um": list(self.voxel_size_um) if self.voxel_size_um else None,
            "chunk": list(self.chunk),
            "compressed": self.compressed,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _output(self, box: Box, out: NDArray[Any] | None) -> NDArray[Any]:
        """Where the voxels of `box` go; raises where box or array do not fit."""
        if not Box.whole(self.shape).contains(box):
            raise SettingsError(
                f"box {box} is not inside the volume of {self.shape} voxels"
            )
        if out is None:
            return np.empty(box.shape, self.dtype)
        if out.shape != box.shape or out.dtype != self.dtype:
            raise SettingsError(
                f"an array of {out.shape} {out.dtype} cannot take box {box}: "
                f"it needs {box.shape} {self.dtype}"
            )
        return out


def checked_dtype(dtype: np.dtype[Any], where: str) -> np.dtype[Any]:
    """The dtype in native byte order; raises InputError where voxels may not be it."""
    native = dtype.newbyteorder("=")
    if native not in DTYPES:
        raise InputError(
            f"{where} holds {native.name} voxels: convert it to "
            "uint8, uint16 or float32"
        )
    return native


def checked_shape(shape: tuple[int, ...], where: str) -> Shape:
    """The shape as three positive integers; raises InputError where it is not that.

    Nor one that nothing real has: metadata of a few bytes would keep a plan of its
    tiles busy for hours.
    """
    if len(shape) != 3 or prod(shape) < 1 or min(shape) < 1:
        raise InputError(f"{where} has the shape {shape}: a volume has z, y, x voxels")
    if max(shape) > MOST_SIDE or prod(shape) > MOST_VOXELS:
        raise InputError(
            f"{where} says that it has {' × '.join(map(str, shape))} voxels, which is "
            "more than any volume: its metadata is damaged"
        )
    z, y, x = (int(n) for n in shape)
    return z, y, x
