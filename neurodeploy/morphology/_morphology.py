"""A traced neuron as a forest of nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime import InputError, SettingsError

Floats = NDArray[np.float64]

#: Points that a tracing is sampled at, at most: 2.4 GB of coordinates.
_MOST = 100_000_000


def require_countable(counts: Floats) -> None:
    """Refuse a tracing of which more points would be taken than can be held.

    `counts` are those of its segments.

    Raises
    ------
    InputError
        Names the sum.
    """
    total = float(counts.sum())
    if not total <= _MOST:
        raise InputError(
            f"the tracing is too long: {total:.3g} points of it would be looked at, "
            f"{_MOST:.0e} are possible; check the unit of its coordinates, which are "
            "taken for voxels"
        )


@dataclass(frozen=True)
class Morphology:
    """Nodes joined to their parents.

    `position` is (n, 3), z, y, x, and `radius` (n,), both in the unit of the file:
    voxels counted from 0 in BigNeuron, micrometres elsewhere. `parent` is the *row*
    of each node's parent, -1 for a root; a parent may come after its children.
    `kind` is SWC's type: 1 soma, 2 axon, 3 and 4 dendrite. `voxel_size_um` (z, y, x)
    is what the file says of its image, None where it says nothing. `notes` are what
    was odd in the file and how it was read.

    >>> line = Morphology.from_path([(0, 0, 0), (0, 0, 5)])
    >>> line.length
    5.0
    """

    position: Floats
    radius: Floats
    parent: NDArray[np.int64]
    kind: NDArray[np.int64]
    voxel_size_um: tuple[float, float, float] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_path(
        cls, points: list[tuple[float, float, float]], radius: float = 1.0
    ) -> Morphology:
        """One unbranched curve through these points (z, y, x)."""
        n = len(points)
        return cls(
            np.asarray(points, np.float64).reshape(n, 3),
            np.full(n, radius),
            np.arange(-1, n - 1, dtype=np.int64),
            np.full(n, 2, np.int64),
        )

    def __len__(self) -> int:
        return len(self.position)

    @property
    def roots(self) -> int:
        """How many trees it is."""
        return int((self.parent < 0).sum())

    @property
    def segments(self) -> tuple[Floats, Floats]:
        """Both ends of every segment, (m, 3) each: a node and its parent."""
        child = np.flatnonzero(self.parent >= 0)
        return self.position[child], self.position[self.parent[child]]

    @property
    def length(self) -> float:
        """Summed length of all segments, in the unit of the file."""
        a, b = self.segments
        return float(np.linalg.norm(a - b, axis=1).sum())

    def to_voxels(self, voxel_size_um: tuple[float, float, float]) -> Morphology:
        """The same in voxels, where the file is in micrometres.

        Radii are divided by the mean of the y and x size. The voxel size is let go
        of: to a reader it says that coordinates are in micrometres.
        """
        if not all(s > 0 for s in voxel_size_um):
            raise SettingsError(
                f"a voxel size of {voxel_size_um} µm (z, y, x) makes no sense: "
                "give three positive numbers"
            )
        size = np.asarray(voxel_size_um)
        return replace(
            self,
            position=self.position / size,
            radius=self.radius / size[1:].mean(),
            voxel_size_um=None,
        )

    def moved(self, by: tuple[float, float, float]) -> Morphology:
        """The same, shifted by (z, y, x)."""
        return replace(self, position=self.position + np.asarray(by, np.float64))

    def samples(self, step: float = 1.0) -> tuple[Floats, NDArray[np.int64], Floats]:
        """Points along every segment, at most `step` apart.

        Returns positions (k, 3), the row of the node whose segment each lies on, and
        how far it is from that node (0) to its parent (1). A root's own position is
        among them.

        Raises
        ------
        InputError
            Where they are too many to be held.
        """
        child = np.flatnonzero(self.parent >= 0)
        a, b = self.position[child], self.position[self.parent[child]]
        pieces = np.maximum(np.ceil(np.linalg.norm(a - b, axis=1) / step), 1)
        require_countable(pieces)
        rows = np.repeat(np.arange(len(child)), pieces.astype(np.int64))
        first = np.repeat(np.cumsum(pieces) - pieces, pieces.astype(np.int64))
        share = (np.arange(len(rows)) - first) / pieces[rows]
        position = a[rows] + (b[rows] - a[rows]) * share[:, None]
        roots = np.flatnonzero(self.parent < 0)
        return (
            np.concatenate([self.position[roots], position]),
            np.concatenate([roots, child[rows]]),
            np.concatenate([np.zeros(len(roots)), share]),
        )
