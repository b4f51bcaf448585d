"""Everything that glows near a box, grown cell by cell of an endless grid.

A curve belongs to the cell of space it starts in and never leaves its surroundings,
so that a box needs the cells within `REACH` of it and no others: memory is bounded
by the box, and what a place holds does not depend on how it is approached.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neurodeploy.simulate._appearance import Look
from neurodeploy.simulate._chance import Stream, generator
from neurodeploy.simulate._fields import every_block
from neurodeploy.simulate._points import Points
from neurodeploy.simulate._walks import beads, slow, walk
from neurodeploy_runtime import Box

Floats = NDArray[np.float32]
Cell = tuple[int, int, int]

#: Extent of a cell and the farthest a curve goes from where it starts, in y, x voxels.
CELL = 64
REACH = 128
#: Radius that no neurite exceeds, in y, x voxels.
THICKEST = 4.0
_CELL_VOXELS = CELL**3


@dataclass(frozen=True)
class Habit:
    """How the curves of one kind run."""

    tortuosity: float
    radius: float
    radius_spread: float
    brightness: float
    brightness_spread: float
    beads: float
    gaps: float
    branching: float
    known: int
    shortest: int = REACH // 3
    softness: float = 1.0
    #: every so many steps of a curve there is a point
    stride: int = 1


def scene(look: Look, seed: int, box: Box) -> Points:
    """All points that may reach into a box of voxels, in the order of their cells."""
    scale = look.anisotropy
    low = (box.start[0] * scale, float(box.start[1]), float(box.start[2]))
    high = (box.stop[0] * scale, float(box.stop[1]), float(box.stop[2]))
    around = Box(
        (int(low[0]) - REACH, int(low[1]) - REACH, int(low[2]) - REACH),
        (int(high[0]) + REACH + 1, int(high[1]) + REACH, int(high[2]) + REACH),
    )
    cells = every_block(around, (CELL, CELL, CELL))
    everything = Points.join(
        [
            _neurites(look, seed, cells),
            _neurons(look, seed, cells),
            _vessels(look, seed, cells),
            _bodies(look, seed, cells),
            _puncta(look, seed, cells),
        ]
    )
    return everything.within(low, high)


def main_direction(seed: int) -> Floats:
    """The way along which a volume's fibres tend to run."""
    towards = generator(seed, Stream.DIRECTION).standard_normal(3, np.float32)
    return np.asarray(towards / np.linalg.norm(towards), np.float32)


def _neurites(look: Look, seed: int, cells: list[Cell]) -> Points:
    """Axons and dendrites that pass through, without their cell bodies."""
    # A curve of unit steps shows as a tube of about this cross-section.
    section = np.pi * (look.radius**2 + 1.4 * look.psf_xy**2)
    mean_length = 1.35 * REACH * (1 + look.branching / 100 * 0.6 * REACH)
    # A walk that the border of its surroundings cuts is shorter than asked for.
    rate = look.neurite_share * _CELL_VOXELS / section / mean_length * 1.15
    # Clumps change where curves are, not how many there are.
    spread = look.clumping
    habit = Habit(
        tortuosity=look.tortuosity,
        radius=look.radius,
        radius_spread=look.radius_spread,
        brightness=look.contrast * look.noise * look.boost,
        brightness_spread=look.contrast_spread,
        beads=look.beads,
        gaps=look.gaps,
        branching=look.branching,
        known=Points.NEURITE,
    )
    aim = main_direction(seed) * np.float32(look.alignment)
    starts, ways, chances = [], [], []
    for cell in cells:
        rng = generator(seed, Stream.NEURITES, *cell)
        weight = np.exp(spread * rng.standard_normal() - spread**2 / 2)
        n = int(rng.poisson(rate * min(weight, 12.0)))
        if not n:
            continue
        starts.append(_somewhere(rng, cell, n))
        ways.append(rng.standard_normal((n, 3), np.float32) + aim)
        chances.append(_Chance.draw(rng, n))
    if not starts:
        return Points.none()
    start, way = np.concatenate(starts), np.concatenate(ways)
    chance = _Chance.join(chances)
    return _grow(habit, start, way, chance)


def _neurons(look: Look, seed: int, cells: list[Cell]) -> Points:
    """Cell bodies and the dendrites that leave them, thick at the root."""
    habit = Habit(
        tortuosity=look.tortuosity,
        radius=min(look.radius * 1.3, 2.5),
        radius_spread=look.radius_spread,
        brightness=1.5 * look.contrast * look.noise * look.boost,
        brightness_spread=0.3,
        beads=0.5 * look.beads,
        gaps=0.3 * look.gaps,
        branching=look.branching + 0.5,
        known=Points.NEURITE,
        shortest=REACH // 2,
    )
    starts, ways, chances, somata = [], [], [], []
    for cell in cells:
        rng = generator(seed, Stream.NEURONS, *cell)
        for _ in range(int(rng.poisson(look.neurons * _CELL_VOXELS / 1e6))):
            n = int(rng.integers(2, 5))
            centre = _somewhere(rng, cell, 1)
            starts.append(np.repeat(centre, n, axis=0))
            ways.append(rng.standard_normal((n, 3), np.float32))
            chances.append(_Chance.draw(rng, n))
            radius = np.float32(rng.uniform(3.0, 9.0))
            lumps = 4
            somata.append(
                Points.make(
                    centre
                    + rng.standard_normal((lumps, 3), np.float32) * radius * 0.25,
                    np.full(lumps, radius * 0.8, np.float32),
                    np.full(lumps, 2 * habit.brightness, np.float32),
                    length=0.0,
                    softness=2.0,
                    known=Points.SOMA,
                )
            )
    if not starts:
        return Points.none()
    curves = _grow(
        habit,
        np.concatenate(starts),
        np.concatenate(ways),
        _Chance.join(chances),
        taper=True,
    )
    return Points.join([curves, *somata])


def _vessels(look: Look, seed: int, cells: list[Cell]) -> Points:
    """Wide smooth tubes; their brightness is a factor on the tissue, not a light."""
    habit = Habit(
        tortuosity=0.05,
        radius=look.vessel_radius,
        radius_spread=0.35,
        brightness=look.vessel_brightness,
        brightness_spread=0.0,
        beads=0.0,
        gaps=0.0,
        branching=0.3,
        known=Points.VESSEL,
        softness=2.5,
        # A wide tube needs no ball per voxel.
        stride=max(1, int(look.vessel_radius / 2)),
    )
    rate = look.vessels * _CELL_VOXELS / 1e6
    starts, ways, chances = [], [], []
    for cell in cells:
        rng = generator(seed, Stream.VESSELS, *cell)
        n = int(rng.poisson(rate))
        if n:
            starts.append(_somewhere(rng, cell, n))
            ways.append(rng.standard_normal((n, 3), np.float32))
            chances.append(_Chance.draw(rng, n))
    if not starts:
        return Points.none()
    return _grow(
        habit, np.concatenate(starts), np.concatenate(ways), _Chance.join(chances)
    )


def _bodies(look: Look, seed: int, cells: list[Cell]) -> Points:
    """Round bodies and out-of-focus glows: bright, and not neurites."""
    rate = look.cells * _CELL_VOXELS / 1e6
    out = []
    for cell in cells:
        rng = generator(seed, Stream.CELLS, *cell)
        n = int(rng.poisson(rate))
        if not n:
            continue
        radius = np.exp(rng.uniform(np.log(2.5), np.log(9.0), n))
        glow = rng.random(n) < 0.25
        contrast = look.distractor_contrast * np.exp(0.6 * rng.standard_normal(n))
        out.append(
            Points.make(
                _somewhere(rng, cell, n),
                radius,
                look.noise * contrast * np.where(glow, 0.3, 1.0),
                length=0.0,
                softness=np.where(glow, 1.6 * radius, 2.5).astype(np.float32),
                known=Points.DISTRACTOR,
            )
        )
    return Points.join(out)


def _puncta(look: Look, seed: int, cells: list[Cell]) -> Points:
    """Small bright dots that belong to nothing."""
    rate = look.puncta * _CELL_VOXELS / 1e6
    out = []
    for cell in cells:
        rng = generator(seed, Stream.PUNCTA, *cell)
        n = int(rng.poisson(rate))
        if not n:
            continue
        contrast = look.distractor_contrast * np.exp(0.8 * rng.standard_normal(n))
        out.append(
            Points.make(
                _somewhere(rng, cell, n),
                rng.uniform(0.7, 1.8, n),
                look.noise * look.boost * contrast,
                length=0.0,
                known=Points.DISTRACTOR,
            )
        )
    return Points.join(out)


def _somewhere(rng: np.random.Generator, cell: Cell, n: int) -> Floats:
    corner = np.asarray(cell, np.float32) * CELL
    return np.asarray(corner + CELL * rng.random((n, 3), np.float32), np.float32)


@dataclass(frozen=True)
class _Chance:
    """The random numbers of some curves, drawn where each of them starts."""

    turns: Floats  # (n, 2, REACH, 3)
    along: Floats  # (n, 3, 2 * REACH + 1): slow, beads, gaps
    each: Floats  # (n, 4): radius, brightness, two lengths
    child_at: Floats  # (n, 3): where side branches leave

    @classmethod
    def draw(cls, rng: np.random.Generator, n: int) -> _Chance:
        return cls(
            rng.standard_normal((n, 2, REACH, 3), np.float32),
            rng.standard_normal((n, 3, 2 * REACH + 1), np.float32),
            rng.random((n, 4), np.float32),
            rng.random((n, 3), np.float32),
        )

    @classmethod
    def join(cls, many: list[_Chance]) -> _Chance:
        return cls(
            np.concatenate([c.turns for c in many]),
            np.concatenate([c.along for c in many]),
            np.concatenate([c.each for c in many]),
            np.concatenate([c.child_at for c in many]),
        )


def _grow(
    habit: Habit, start: Floats, way: Floats, chance: _Chance, *, taper: bool = False
) -> Points:
    """Curves both ways from their starts (one way where they taper), with branches."""
    turns = chance.turns * np.float32(habit.tortuosity)
    forth = walk(start, way, turns[:, 0])
    back = walk(start, -way, turns[:, 1])
    path = np.concatenate([back[:, :0:-1], forth], axis=1)  # (n, 2 * REACH + 1, 3)
    steps = np.arange(-REACH, REACH + 1, dtype=np.float32)
    lengths = habit.shortest + (REACH - habit.shortest) * chance.each[:, 2:4]
    on = (steps >= -lengths[:, :1]) & (steps <= lengths[:, 1:])
    if taper:
        on &= steps >= 0
    bead = beads(chance.along[:, 1], spacing=9.0) * np.float32(habit.beads)
    wave = slow(chance.along[:, 0], 12.0)
    dim = (slow(chance.along[:, 2], 4.0) > 2.4 - 8 * habit.gaps) & (habit.gaps > 0)
    own = chance.each[:, :2]
    radius = habit.radius * np.exp(habit.radius_spread * _normal(own[:, :1]))
    radius = radius * np.exp(0.12 * wave) * (1 + 0.4 * bead)
    bright = habit.brightness * np.exp(habit.brightness_spread * _normal(own[:, 1:]))
    bright = bright * np.exp(min(habit.brightness_spread, 0.3) * wave) * (1 + bead)
    bright = bright * np.where(dim, 0.12, 1.0)
    if taper:
        radius = radius * (0.75 + 1.2 * np.exp(-np.abs(steps) / 15))
    main = _points(path, radius, bright, on, start, habit)
    children = _branches(habit, path, radius, bright, lengths, start, chance, taper)
    return Points.join([main, *children])


def _branches(
    habit: Habit,
    path: Floats,
    radius: Floats,
    bright: Floats,
    lengths: Floats,
    start: Floats,
    chance: _Chance,
    taper: bool,
) -> list[Points]:
    """Up to three side branches of a curve, thinner and not brighter than it."""
    out = []
    rows = np.arange(len(path))
    first = -lengths[:, 0] * (0.0 if taper else 1.0)
    span = lengths[:, 1] - first
    many = habit.branching / 100 * span / 3  # chance of each of three branches
    for branch in range(3):
        roll = chance.child_at[:, branch]
        has = roll < many
        if not has.any():
            continue
        # The roll that allowed a branch also says where: uniform again below `many`.
        at = (first + span * roll / np.maximum(many, 1e-6))[has]
        index = np.clip(np.rint(at).astype(int) + REACH, 1, 2 * REACH - 1)
        parents = rows[has]
        # Another way than the curve itself goes, from the same random numbers.
        turns = -np.roll(chance.turns[has, branch % 2], branch + 1, axis=2)
        along = path[parents, index] - path[parents, index - 1]
        way = along + np.float32(0.8) * turns[:, 0]
        child = walk(path[parents, index], way, turns * np.float32(habit.tortuosity))
        steps = np.arange(child.shape[1], dtype=np.float32)
        reach = REACH * (0.2 + 0.8 * chance.each[has, 2])
        thin = (0.8 * radius[parents, index])[:, None] * np.exp(-steps / 200)
        light = (0.85 * bright[parents, index])[:, None] * np.ones_like(steps)
        light = light * np.exp(0.25 * slow(turns[:, :, 0], 8.0)[:, :1])
        on = steps <= reach[:, None]
        out.append(_points(child, thin, light, on, start[parents], habit))
    return out


def _points(
    path: Floats,
    radius: Floats,
    bright: Floats,
    on: NDArray[np.bool_],
    start: Floats,
    habit: Habit,
) -> Points:
    """The points of curves that are switched on and near enough to their start."""
    near = (np.abs(path - start[:, None]) <= REACH).all(axis=2)
    keep = on & near & (np.arange(path.shape[1]) % habit.stride == 0)
    limit = THICKEST if habit.known == Points.NEURITE else np.inf
    return Points.make(
        path[keep],
        np.minimum(radius[keep], limit),
        np.asarray(bright[keep], np.float32),
        softness=habit.softness,
        known=habit.known,
    )


def _normal(uniform: Floats) -> Floats:
    """Uniform numbers as standard normal ones, within three deviations."""
    from scipy.special import ndtri

    return np.clip(ndtri(uniform), -3, 3).astype(np.float32)
