"""Traced neurons, placed in a simulated volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology import Morphology
from neurodeploy.simulate._appearance import Look
from neurodeploy.simulate._chance import Stream, generator
from neurodeploy.simulate._points import Points
from neurodeploy.simulate._scene import THICKEST
from neurodeploy.simulate._walks import beads, slow
from neurodeploy_runtime import Shape

Floats = NDArray[np.float64]

_SOMA_TYPE = 1


def placed(
    morphologies: Sequence[Morphology], look: Look, seed: int, shape: Shape
) -> Points:
    """Points of tracings in voxels, each turned and shifted into a volume by chance.

    A tracing is flipped and turned by quarters in the plane; where it fits, all of it
    lies inside, else a node of it, chosen by chance, lies in the middle. Gold-standard
    radii are mostly a constant 1 and are not used: the look gives the radius, except
    at cell bodies.
    """
    return Points.join(
        [
            _points(_placed(one, seed, index, shape), look, seed, index)
            for index, one in enumerate(morphologies)
        ]
    )


def _placed(one: Morphology, seed: int, index: int, shape: Shape) -> Morphology:
    rng = generator(seed, Stream.PLACEMENT, index)
    position = one.position.copy()
    if rng.random() < 0.5:
        position = position[:, [0, 2, 1]]
    position = position * np.where(rng.random(3) < 0.5, -1.0, 1.0)
    low, high = position.min(axis=0), position.max(axis=0)
    room = np.asarray(shape, float) - 1 - (high - low)
    node = position[int(rng.integers(len(position)))]
    inside = room * rng.random(3) - low
    by = np.where(room >= 0, inside, np.asarray(shape, float) / 2 - node)
    return Morphology(position + by, one.radius, one.parent, one.kind)


def _points(one: Morphology, look: Look, seed: int, index: int) -> Points:
    rng = generator(seed, Stream.PLACEMENT, index, 1)
    iso = one.position * np.array([look.anisotropy, 1.0, 1.0])
    curve = Morphology(iso, one.radius, one.parent, one.kind)
    position, _, _ = curve.samples(1.0)
    n = len(position)
    # One curve of chance, cut where branches end: neighbours share their brightness.
    wave = slow(rng.standard_normal((1, n), np.float32), 12.0)[0]
    bead = beads(rng.standard_normal((1, n), np.float32), 9.0)[0]
    gap = slow(rng.standard_normal((1, n), np.float32), 4.0)[0]
    # Tracings wiggle by less than a voxel where their neurite did not.
    radius = look.radius * np.exp(look.radius_spread * rng.standard_normal())
    radii = radius * np.exp(0.12 * wave) * (1 + 0.4 * look.beads * bead)
    level = look.contrast * look.noise * look.boost
    bright = level * np.exp(0.4 * rng.standard_normal() + 0.3 * wave)
    bright = bright * (1 + look.beads * bead)
    if look.gaps:
        bright = bright * np.where(gap > 2.4 - 8 * look.gaps, 0.12, 1.0)
    neurite = Points.make(
        position.astype(np.float32),
        np.minimum(radii, THICKEST),
        bright,
        known=Points.NEURITE,
    )
    body = (one.kind == _SOMA_TYPE) & (one.radius > 2 * look.radius)
    somata = Points.make(
        iso[body].astype(np.float32),
        one.radius[body],
        np.full(int(body.sum()), 2 * level),
        length=0.0,
        softness=2.0,
        known=Points.SOMA,
    )
    return Points.join([neurite, somata])
