"""How far two tracings are apart, as Vaa3D measures it.

After the plug-in `neuron_distance` of Vaa3D (Peng et al., Nature Biotechnology 28,
2010: entire, different and percentage-different structure).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from neurodeploy.morphology._morphology import Morphology, require_countable
from neurodeploy_runtime import InputError

Floats = NDArray[np.float64]

#: From this distance on, in voxels, two structures are visibly different.
VISIBLE = 2.0

#: Longest piece that a segment is cut to for the search; the cuts change nothing.
_PIECE = 2.0

#: Points looked up in one go: bounds memory.
_CHUNK = 8192


@dataclass(frozen=True)
class TracingDistances:
    """Distances between two tracings, in the unit of their coordinates.

    `esa` is the entire structure average, the mean of both directions; `dsa` the
    mean over points that are at least 2.0 away; `pds` the share of such points.
    """

    esa_12: float
    esa_21: float
    esa: float
    dsa: float
    pds_12: float
    pds_21: float
    pds: float

    def to_json(self) -> dict[str, float]:
        """As plain values."""
        return asdict(self)


def tracing_distances(one: Morphology, two: Morphology) -> TracingDistances:
    """ESA, DSA and PDS of two tracings in voxels.

    Every segment is sampled at ``int(1 + length + 0.5)`` points, both ends among
    them, and each point is measured to the nearest *segment* of the other tracing.

    Raises
    ------
    InputError
        Where one of them has no segment, or is too long to be sampled.

    >>> line = Morphology.from_path([(0, 0, 0), (0, 0, 9)])
    >>> tracing_distances(line, line.moved((0, 3, 0))).esa
    3.0
    """
    there = distances_to(sample_as_vaa3d(one), two)
    back = distances_to(sample_as_vaa3d(two), one)
    far_there, far_back = there >= VISIBLE, back >= VISIBLE
    far = [
        float(d[f].mean()) for d, f in ((there, far_there), (back, far_back)) if f.any()
    ]
    return TracingDistances(
        esa_12=float(there.mean()),
        esa_21=float(back.mean()),
        esa=float((there.mean() + back.mean()) / 2),
        dsa=float(np.mean(far)) if far else 0.0,
        pds_12=float(far_there.mean()),
        pds_21=float(far_back.mean()),
        pds=float((far_there.mean() + far_back.mean()) / 2),
    )


def sample_as_vaa3d(tracing: Morphology) -> Floats:
    """The points at which Vaa3D measures a tracing, (k, 3)."""
    a, b = _segments(tracing)
    length = np.linalg.norm(a - b, axis=1)
    require_countable(length)
    count = (1 + length + 0.5).astype(np.int64)
    rows = np.repeat(np.arange(len(a)), count)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    share = step / np.maximum(count[rows] - 1, 1)
    points: Floats = a[rows] + (b[rows] - a[rows]) * share[:, None]
    return points


def distances_to(points: Floats, tracing: Morphology) -> Floats:
    """Exact distance of points (k, 3) to the nearest segment of a tracing, (k,).

    Segments are cut into short pieces. The nearest piece is no farther than the one
    whose middle is nearest, so its own middle is at most half a piece farther: those
    are measured, and no others.
    """
    a, b = _pieces(*_segments(tracing))
    tree = cKDTree((a + b) / 2)
    half = _PIECE / 2 + 1e-9
    out = np.empty(len(points))
    for first in range(0, len(points), _CHUNK):
        part = points[first : first + _CHUNK]
        nearest, _ = tree.query(part)
        near: Any = tree.query_ball_point(part, nearest + half)
        count = np.fromiter((len(n) for n in near), np.int64, len(near))
        piece = np.concatenate([np.asarray(n, np.int64) for n in near])
        point = np.repeat(np.arange(len(part)), count)
        apart = _to_segment(part[point], a[piece], b[piece])
        out[first : first + _CHUNK] = np.minimum.reduceat(
            apart, np.cumsum(count) - count
        )
    return out


def _to_segment(point: Floats, a: Floats, b: Floats) -> Floats:
    along = b - a
    square = (along**2).sum(axis=1)
    share = ((point - a) * along).sum(axis=1) / np.where(square > 0, square, 1)
    foot = a + along * np.clip(share, 0, 1)[:, None]
    distance: Floats = np.linalg.norm(point - foot, axis=1)
    return distance


def _pieces(a: Floats, b: Floats) -> tuple[Floats, Floats]:
    length = np.linalg.norm(a - b, axis=1)
    require_countable(length)
    count = np.maximum(np.ceil(length / _PIECE), 1).astype(np.int64)
    rows = np.repeat(np.arange(len(a)), count)
    step = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    low, high = step / count[rows], (step + 1) / count[rows]
    along = b[rows] - a[rows]
    return a[rows] + along * low[:, None], a[rows] + along * high[:, None]


def _segments(tracing: Morphology) -> tuple[Floats, Floats]:
    a, b = tracing.segments
    if not len(a):
        raise InputError(
            f"a tracing of {len(tracing)} nodes has no segment to measure: "
            "its nodes need parents"
        )
    return a, b
