"""A mask of tissue: what lies outside is background, and is not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime.volumes import Source

#: A mask is held in memory; one of a whole brain is drawn at low resolution.
MAX_VOXELS = 1_000_000_000
#: It is read in pieces of about this many bytes, for it may be stored as floats.
READ_BYTES = 64_000_000


class TissueMask:
    """A mask (z, y, x) of any resolution, laid over a volume; nearest voxel counts."""

    def __init__(self, mask: NDArray[np.bool_], volume: Shape) -> None:
        if not mask.any():
            raise InputError("the tissue mask is empty: nothing would be segmented")
        self._mask = mask
        self._at = [
            np.minimum(np.arange(n) * m // n, m - 1)
            for n, m in zip(volume, mask.shape, strict=True)
        ]

    @classmethod
    def read(cls, source: Source, volume: Shape) -> TissueMask:
        """From a volume in which everything but zero is tissue.

        Raises
        ------
        InputError
            It is empty, too large to hold, or no scaled-down form of the volume.
        """
        path = Path(str(source.path)).name
        z, y, x = source.shape
        if z * y * x > MAX_VOXELS:
            raise InputError(
                f"the tissue mask {path} has {z * y * x / 1e9:.1f} Gvoxel: scale it "
                "down below 1 Gvoxel, it need not have the volume's resolution"
            )
        ratios = [n / m for n, m in zip(volume, source.shape, strict=True)]
        if min(ratios) < 1 or max(ratios[1:]) > 1.5 * min(ratios[1:]):
            raise InputError(
                f"the tissue mask {path} is {source.shape} and the volume {volume}: a "
                "mask is the volume scaled down, by one factor on y and x"
            )
        mask = np.empty(source.shape, np.bool_)
        deep = source.chunk[0]
        step = max(1, READ_BYTES // (y * x * source.dtype.itemsize) // deep) * deep
        for box in Box.whole(source.shape).grid((step, y, x)):
            np.not_equal(read_patiently(source, box), 0, out=mask[box.slices])
        return cls(mask, volume)

    def meets(self, box: Box) -> bool:
        """Whether any voxel of a box of the volume is tissue."""
        z, y, x = (
            slice(at[a], at[b - 1] + 1)
            for at, a, b in zip(self._at, box.start, box.stop, strict=True)
        )
        return bool(self._mask[z, y, x].any())

    def plane(
        self, z: int, y0: int, x0: int, shape: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """Where plane z of the volume is tissue: (y, x) from y0, x0 on."""
        rows = self._at[1][y0 : y0 + shape[0]]
        columns = self._at[2][x0 : x0 + shape[1]]
        plane: NDArray[np.bool_] = self._mask[self._at[0][z]][np.ix_(rows, columns)]
        return plane
