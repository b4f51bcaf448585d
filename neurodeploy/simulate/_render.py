"""Light and truth of any box of a simulated volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter

from neurodeploy.morphology import stamp_mask
from neurodeploy.simulate._appearance import Look
from neurodeploy.simulate._chance import Stream, generator
from neurodeploy.simulate._fields import nodes_for, smooth_noise, spread
from neurodeploy.simulate._points import Points
from neurodeploy.simulate._scene import THICKEST, scene
from neurodeploy.simulate._stamp import (
    splat,
    stamp_factor,
    stamp_light,
)
from neurodeploy_runtime import Box, Shape

Floats = NDArray[np.float32]

#: Voxels between the nodes of what varies slowly, and of far-out-of-focus light.
_SLOW_CELL = (4, 8, 8)
_HAZE_CELL = (2, 4, 4)

#: A Gaussian is cut at this many standard deviations.
_CUT = 3.0

#: Half of a Gaussian's width at half of its height, in standard deviations.
_HALF_WIDTH = 1.177


_DIM, _SEEN, _BODY = 1, 2, 3


@dataclass(frozen=True)
class Light:
    """What reaches the camera from a box, and what is there, all of the box's shape.

    `signal` is the light of neurites and `background` all the rest, in grey levels
    over the camera's offset. `truth` is 1 on neurites as wide as they appear (half
    of the height of their blurred profile). `ignore` is where neither answer is
    wrong: a shell of one voxel around them, cell bodies with neurites, and
    stretches too dim to be seen.
    """

    signal: Floats
    background: Floats
    truth: NDArray[np.uint8]
    ignore: NDArray[np.bool_]


def render(look: Look, seed: int, box: Box, extra: Points | None = None) -> Light:
    """The light and the truth of a box; the same voxels whatever box they are in.

    `extra` are neurites that were brought along, such as those of an SWC file.
    """
    blur = (look.psf_z, look.psf_xy, look.psf_xy)
    thickest = (THICKEST / look.anisotropy, THICKEST, THICKEST)
    halo = tuple(
        int(np.ceil(_CUT * s)) + int(np.ceil(np.hypot(_HALF_WIDTH * s, r))) + 2
        for s, r in zip(blur, thickest, strict=True)
    )
    wide = _grown(box, (halo[0], halo[1], halo[2]))
    haze_sigma = (
        1.5 * look.haze_extent / look.anisotropy / _HAZE_CELL[0],
        look.haze_extent / _HAZE_CELL[1],
        look.haze_extent / _HAZE_CELL[2],
    )
    nodes = nodes_for(box, _HAZE_CELL)
    halo_nodes = tuple(int(np.ceil(_CUT * s)) for s in haze_sigma)
    wide_nodes = _grown(nodes, (halo_nodes[0], halo_nodes[1], halo_nodes[2]))
    z, y, x = _HAZE_CELL
    far = Box(
        (wide_nodes.start[0] * z, wide_nodes.start[1] * y, wide_nodes.start[2] * x),
        (wide_nodes.stop[0] * z, wide_nodes.stop[1] * y, wide_nodes.stop[2] * x),
    )
    everything = scene(look, seed, _union(wide, far))
    if extra is not None and len(extra):
        around = _union(wide, far)
        scale = np.array([look.anisotropy, 1.0, 1.0])
        low, high = around.start * scale, around.stop * scale
        everything = Points.join([everything, extra.within(tuple(low), tuple(high))])
    neurites = everything.take(
        (everything.known == Points.NEURITE) | (everything.known == Points.SOMA)
    )
    others = everything.take(everything.known == Points.DISTRACTOR)
    vessels = everything.take(everything.known == Points.VESSEL)

    sharp = _sharp(neurites, wide, look, blur)
    truth, ignore = _truth(neurites, sharp, wide, box, look)
    inner = box.shift((-wide.start[0], -wide.start[1], -wide.start[2])).slices
    signal = sharp[inner].copy()
    del sharp
    background = _tissue(look, seed, box, vessels)
    background += _sharp(others, wide, look, blur)[inner]

    haze = np.float32(look.haze)
    signal *= 1 - haze
    for light, points in ((signal, neurites), (background, others)):
        coarse = np.zeros(wide_nodes.shape, np.float32)
        splat(coarse, points, wide_nodes.start, look.anisotropy, _HAZE_CELL)
        coarse = gaussian_filter(coarse, haze_sigma, truncate=_CUT, mode="constant")
        shift = (-wide_nodes.start[0], -wide_nodes.start[1], -wide_nodes.start[2])
        light += haze * spread(coarse[nodes.shift(shift).slices], box, _HAZE_CELL)
    _shade(look, seed, box, signal, background)
    return Light(signal, background, truth, ignore)


def _grown(box: Box, by: Shape) -> Box:
    a, b = box.start, box.stop
    return Box(
        (a[0] - by[0], a[1] - by[1], a[2] - by[2]),
        (b[0] + by[0], b[1] + by[1], b[2] + by[2]),
    )


def _union(one: Box, two: Box) -> Box:
    a0, a1, a2 = map(min, one.start, two.start)
    b0, b1, b2 = map(max, one.stop, two.stop)
    return Box((a0, a1, a2), (b0, b1, b2))


def _sharp(
    points: Points, box: Box, look: Look, blur: tuple[float, float, float]
) -> Floats:
    """What the focused part of the optics makes of points."""
    light = np.zeros(box.shape, np.float32)
    if not len(points):
        return light
    stamp_light(light, points, box.start, look.anisotropy)
    return np.asarray(
        gaussian_filter(light, blur, truncate=_CUT, mode="constant"), np.float32
    )


def _truth(
    points: Points, sharp: Floats, wide: Box, box: Box, look: Look
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The visible width of each neurite, and where no answer is wrong."""
    scale = np.array([look.anisotropy, 1, 1], np.float32)
    voxel = np.rint(points.position / scale).astype(np.int64) - np.asarray(wide.start)
    # What lies outside is too far to show in the box, except for a cell body.
    inside = ((voxel >= 0) & (voxel < sharp.shape)).all(axis=1)
    peak = np.zeros(len(points), np.float32)
    peak[inside] = sharp[tuple(voxel[inside].T)]
    soma = points.known == Points.SOMA
    seen = (peak >= look.visible_from * look.noise) & ~soma
    width = np.float32(_HALF_WIDTH)
    radius_xy = np.sqrt(points.radius**2 + (width * look.psf_xy) ** 2)
    radius_z = np.sqrt(
        (points.radius / look.anisotropy) ** 2 + (width * look.psf_z) ** 2
    )
    radius_xy, radius_z = radius_xy.astype(np.float32), radius_z.astype(np.float32)
    around = _grown(box, (1, 1, 1))
    kind = np.zeros(around.shape, np.uint8)
    dim = ~seen & ~soma
    for value, rows, more in ((_DIM, dim, 0.0), (_SEEN, seen, 0.0), (_BODY, soma, 2.0)):
        stamp_mask(
            kind,
            points.position[rows],
            radius_z[rows] + np.float32(more / look.anisotropy),
            radius_xy[rows] + np.float32(more),
            around.start,
            look.anisotropy,
            value,
        )
    near = binary_dilation(kind > 0)[1:-1, 1:-1, 1:-1]
    truth = (kind[1:-1, 1:-1, 1:-1] == _SEEN).astype(np.uint8)
    return truth, near & (truth == 0)


def _tissue(look: Look, seed: int, box: Box, vessels: Points) -> Floats:
    """Autofluorescence: slow variation, darker regions, texture, vessels."""
    nodes = nodes_for(box, _SLOW_CELL)
    slow = smooth_noise(seed, Stream.SLOW, nodes, (24, 16, 16))
    level = np.exp(np.float32(look.slow_variation) * slow)
    if look.regions:
        where = smooth_noise(seed, Stream.REGIONS, nodes, (16, 12, 12))
        level *= 1 - np.float32(look.regions / 2) * (1 + np.tanh(8 * (where - 0.6)))
    glow = np.float32(look.background - look.offset)
    tissue = spread(np.asarray(level * glow, np.float32), box, _SLOW_CELL)
    grain = look.texture_cell
    along = max(1, round(grain * look.psf_z / look.psf_xy / 1.5))
    unit = np.float32(look.noise)
    if look.texture:
        fine = smooth_noise(seed, Stream.TEXTURE, box, (along, grain, grain))
        tissue += unit * np.float32(look.texture) * fine
    if look.mottle:
        blotch = smooth_noise(seed, Stream.MOTTLE, box, (5, 7, 7))
        tissue += unit * np.float32(look.mottle) * blotch
    if len(vessels):
        factor = np.ones(box.shape, np.float32)
        stamp_factor(
            factor, vessels, box.start, look.anisotropy, look.vessel_brightness
        )
        tissue *= factor
    return np.maximum(tissue, np.float32(0.03) * glow)


def _shade(look: Look, seed: int, box: Box, *lights: Floats) -> None:
    """Shadows along x and the flicker of the lamp, on all light alike."""
    if look.stripes:
        line = Box((box.start[0], box.start[1], 0), (box.stop[0], box.stop[1], 1))
        shadow = smooth_noise(seed, Stream.STRIPES, line, (12, 3, 1))
        for light in lights:
            light *= 1 + np.float32(look.stripes) * shadow
    if look.plane_jitter:
        flicker = np.array(
            [
                generator(seed, Stream.JITTER, z).standard_normal()
                for z in range(box.start[0], box.stop[0])
            ],
            np.float32,
        )
        for light in lights:
            light *= (1 + np.float32(look.plane_jitter) * flicker)[:, None, None]
