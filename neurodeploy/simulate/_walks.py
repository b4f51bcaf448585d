"""Persistent random walks: the curves of neurites and vessels, many at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

Floats = NDArray[np.float32]


def walk(start: Floats, direction: Floats, turns: Floats) -> Floats:
    """Curves of unit steps: (n, 3) starts, (n, 3) directions, (n, steps, 3) turns.

    The direction gains a turn at each step and is normalised again: a discrete
    worm-like chain. Returns (n, steps + 1, 3).
    """
    n, steps, _ = turns.shape
    path = np.empty((n, steps + 1, 3), np.float32)
    path[:, 0] = start
    heading = _unit(direction)
    for step in range(steps):
        heading = _unit(heading + turns[:, step])
        path[:, step + 1] = path[:, step] + heading
    return path


def _unit(vectors: Floats) -> Floats:
    norm = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.asarray(vectors / np.maximum(norm, np.float32(1e-6)), np.float32)


def slow(noise: Floats, extent: float) -> Floats:
    """White noise along curves (n, steps) made smooth over `extent`, variance 1."""
    gain = np.float32(np.sqrt(2 * np.sqrt(np.pi) * extent))
    return np.asarray(
        gaussian_filter1d(noise, extent, axis=1, mode="wrap") * gain, np.float32
    )


def beads(noise: Floats, spacing: float) -> Floats:
    """Varicosities along curves (n, steps): 0 between, about 1 on one.

    One step in `spacing` carries the centre of a bead some two steps wide.
    """
    threshold = np.float32(_normal_tail(1.0 / spacing))
    peaks = (noise > threshold).astype(np.float32)
    return np.asarray(
        np.minimum(gaussian_filter1d(peaks, 1.0, axis=1, mode="constant") * 2.5, 1.0),
        np.float32,
    )


def _normal_tail(share: float) -> float:
    """The value that this share of standard normal numbers exceeds."""
    from scipy.special import ndtri

    return float(ndtri(1.0 - share))
