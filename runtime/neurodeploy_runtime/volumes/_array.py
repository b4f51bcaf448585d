"""A volume that is in memory already."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime.volumes._base import Source, checked_dtype, checked_shape


class ArraySource(Source):
    """A NumPy array as a volume, of axes z, y, x; it is not copied.

    Raises
    ------
    InputError
        It is no array, or one of another kind or number of axes, or it has a mask.

    >>> volume = ArraySource(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    >>> volume.read(Box((1, 1, 1), (2, 2, 2))).item()
    7
    """

    compressed = False

    def __init__(
        self,
        array: NDArray[Any],
        voxel_size_um: tuple[float, float, float] | None = None,
        *,
        path: Path | str = "an array in memory",
        format: str = "array",
    ) -> None:
        if not isinstance(array, np.ndarray):
            raise InputError(
                f"{path} is of type {type(array).__name__}: pass a NumPy array, z, y, x"
            )
        if isinstance(array, np.ma.MaskedArray):
            raise InputError(
                f"{path} has a mask, which a network does not know: fill it with the "
                "background first, as array.filled(value)"
            )
        self.shape = checked_shape(array.shape, str(path))
        self.dtype = checked_dtype(array.dtype, str(path))
        self.voxel_size_um = voxel_size_um
        self.chunk = (1, 1, self.shape[2])
        self.path = path
        self.format = format
        self._array = array

    def amplification(self, box_shape: tuple[int, int, int]) -> float:
        """1.0: every voxel can be reached alone."""
        return 1.0

    def read(self, box: Box, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """See `Source.read`."""
        out = self._output(box, out)
        out[...] = self._array[box.slices]
        return out

    def fingerprint(self) -> str:
        """Of the shape, the dtype and every voxel."""
        digest = hashlib.sha256(f"{self.shape}|{self.dtype.name}".encode())
        for plane in self._array:
            digest.update(np.ascontiguousarray(plane, self.dtype).data)
        return digest.hexdigest()

    def close(self) -> None:
        """Forget the array."""
        self._array = np.empty((0, 0, 0), self.dtype)
