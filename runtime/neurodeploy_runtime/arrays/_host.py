"""Tiles in the memory of the host, computed on by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime.arrays._base import Arrays, Normaliser, PlaneKind


class HostArrays(Arrays):
    """NumPy arrays; sums are made plane by plane, each of which a cache holds."""

    place = "host"
    xp = np

    def __init__(self) -> None:
        self._scratch = np.empty(0, np.float32)

    def zeros(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """See :meth:`Arrays.zeros`."""
        array = np.empty(shape, np.float32)
        array.fill(0)
        return array

    def keep(self, constant: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Arrays.keep`."""
        return constant

    def normalise(
        self,
        parts: Sequence[NDArray[Any]],
        normaliser: Normaliser,
        out: NDArray[np.float32],
    ) -> None:
        """See :meth:`Arrays.normalise`."""
        z = 0
        for part in parts:
            into = out[z : z + len(part)]
            if normaliser.table is None:
                normaliser.normalisation.apply(part, into)
            else:
                # A voxel is always inside the table: "clip" only spares the check.
                voxels = part.view(normaliser.unsigned)
                np.take(normaliser.table, voxels, out=into, mode="clip")
            z += len(part)

    def add_weighted(
        self,
        window: NDArray[np.float32],
        weights: NDArray[np.float32],
        depth: NDArray[np.float32],
        into: NDArray[np.float32],
        squares: NDArray[np.float32] | None,
    ) -> None:
        """See :meth:`Arrays.add_weighted`."""
        if self._scratch.size < weights.size:
            self._scratch = np.empty(weights.size, np.float32)
        scratch = self._scratch[: weights.size].reshape(weights.shape)
        for z, plane in enumerate(window):
            np.multiply(plane, weights, out=scratch)
            if depth[z] != 1:
                np.multiply(scratch, depth[z], out=scratch)
            np.add(into[z], scratch, out=into[z])
            if squares is not None:
                np.multiply(scratch, plane, out=scratch)
                np.add(squares[z], scratch, out=squares[z])

    def quantise(
        self,
        kind: PlaneKind,
        threshold: float,
        plane: NDArray[np.float32],
        out: NDArray[np.uint8],
    ) -> None:
        """See :meth:`Arrays.quantise`."""
        if kind == "mask":
            np.greater_equal(plane, np.float32(threshold), out=out.view(np.bool_))
            np.multiply(out, np.uint8(255), out=out)
            return
        scaled = np.multiply(plane, np.float32(255))
        np.rint(scaled, out=scaled)
        np.clip(scaled, 0, 255, out=scaled)
        np.copyto(out, scaled, casting="unsafe")

    def spread(
        self, mean: NDArray[np.float32], squares: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See :meth:`Arrays.spread`."""
        variance = squares - mean * mean
        np.maximum(variance, 0, out=variance)
        root: NDArray[np.float32] = np.sqrt(variance, out=variance)
        return root

    def fetch(self, array: NDArray[np.float32]) -> NDArray[np.float32]:
        """See :meth:`Arrays.fetch`."""
        return array
