"""The tiles on which an export is proven, and the golden ones among them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurodeploy_export._errors import ExportRequestError
from neurodeploy_export._parity import ROUNDING
from neurodeploy_runtime._bundle import GOLDEN
from neurodeploy_runtime._errors import InputError, WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._spec import ModelSpec
from neurodeploy_runtime.volumes import Source

#: Normalised value above which a voxel is signal: asinh(10), ten times the noise.
_BRIGHT = 3.0


def check_tiles(tiles: NDArray[np.float32], spec: ModelSpec) -> NDArray[np.float32]:
    """Tiles that can prove something, rounded to half as the golden file holds them.

    Raises
    ------
    ExportRequestError
        They have another dtype or shape, are not finite, or show nothing.
    """
    if tiles.dtype != np.float32:
        raise ExportRequestError(
            f"the tiles are {tiles.dtype}, not float32: normalise the image first "
            "(neurodeploy_runtime's Normalisation does)"
        )
    wanted = (1, *spec.tile)
    if tiles.ndim != 5 or tiles.shape[1:] != wanted or not len(tiles):
        raise ExportRequestError(
            f"the tiles are {tiles.shape}, not (N, {', '.join(map(str, wanted))}): "
            f"cut them to the model's tile {spec.tile} (z, y, x)"
        )
    with np.errstate(over="ignore"):
        rounded = tiles.astype(np.float16).astype(np.float32)
    bad = int(np.count_nonzero(~np.isfinite(rounded)))
    if bad:
        raise ExportRequestError(
            f"{bad} voxels of the tiles are NaN, infinite or beyond 65504 after "
            "normalisation: check the image's background and noise"
        )
    flat = [i for i, tile in enumerate(rounded) if tile.min() == tile.max()]
    if flat:
        raise ExportRequestError(
            f"tiles {flat} are constant: they prove nothing; choose tiles with signal"
        )
    return rounded


def write_golden(
    path: Path,
    tiles: NDArray[np.float32],
    answers: NDArray[np.float32],
    threshold: float,
    limit_bytes: int,
) -> int:
    """Freeze tiles and answers, those with most foreground first; how many fitted.

    `limit_bytes` bounds the file before compression; one tile is always kept. Answers
    are frozen in steps of `ROUNDING`, which is small on disk.
    """
    each = tiles[0].size * 2 + answers[0].size * 4
    count = max(1, min(len(tiles), limit_bytes // each))
    foreground = (answers >= threshold).reshape(len(answers), -1).sum(axis=1)
    chosen = np.sort(np.argsort(-foreground, kind="stable")[:count])
    try:
        np.savez_compressed(
            path / GOLDEN,
            voxels=tiles[chosen].astype(np.float16),
            probability=(np.round(answers[chosen] / ROUNDING) * ROUNDING).astype(
                np.float32
            ),
        )
    except OSError as error:
        raise WriteError(
            f"cannot write {GOLDEN} to {path}: {error.strerror or error}; free space "
            "there, or choose another folder"
        ) from error
    return int(count)


def tiles_from_volume(
    source: Source, spec: ModelSpec, *, count: int = 4, candidates: int = 64
) -> NDArray[np.float32]:
    """Normalised tiles of a volume, (count, 1, *tile) float32, chosen to hold signal.

    The volume is normalised as the runtime does it. Among `candidates` tiles spread
    evenly over the volume, those with the most voxels well above the background are
    taken; where there are several, the first is one of median brightness, which is what
    most of a volume looks like.

    Raises
    ------
    InputError
        The volume is smaller than a tile.
    """
    from neurodeploy_runtime._survey import survey

    small = [
        f"{have} < {need} on axis {axis}"
        for axis, have, need in zip("zyx", source.shape, spec.tile, strict=True)
        if have < need
    ]
    if small:
        raise InputError(
            f"{source.path} is {source.shape}, smaller than the model's tile "
            f"{spec.tile} ({'; '.join(small)}): give a larger volume to --tiles"
        )
    normalisation = survey(source).freeze(spec.normalisation)

    def box_at(start: Shape) -> Box:
        return Box((0, 0, 0), spec.tile).shift(start)

    scored: list[tuple[float, Shape]] = []
    for start in _spread(source.shape, spec.tile, candidates):
        tile = normalisation.apply(source.read(box_at(start)))
        scored.append((-float(np.mean(tile > _BRIGHT)), start))
    scored.sort()
    middle = scored[len(scored) // 2]
    chosen = [middle, *(s for s in scored if s is not middle)][:count]
    if count == 1:
        chosen = scored[:1]  # one of median brightness may show nothing
    return np.stack(
        [normalisation.apply(source.read(box_at(start))) for _, start in chosen]
    )[:, None]


def _spread(shape: Shape, tile: Shape, count: int) -> list[Shape]:
    """At most `count` starts of tiles, evenly over the volume."""
    free = [s - t for s, t in zip(shape, tile, strict=True)]
    fit = [1 + f // t for f, t in zip(free, tile, strict=True)]
    while math.prod(fit) > count:
        fit[fit.index(max(fit))] -= 1
    axes = [
        [round(i * f / max(1, n - 1)) for i in range(n)]
        for f, n in zip(free, fit, strict=True)
    ]
    return [(z, y, x) for z in axes[0] for y in axes[1] for x in axes[2]]
