"""The tiles on which an export is proven, and the golden ones among them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurodeploy_export._errors import ExportRequestError
from neurodeploy_runtime._bundle import GOLDEN
from neurodeploy_runtime._errors import WriteError
from neurodeploy_runtime._spec import ModelSpec

#: Answers are frozen in steps of 2^-16: finer than any tolerance, and small on disk.
_STEP = 65536.0


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

    `limit_bytes` bounds the file before compression; one tile is always kept.
    """
    each = tiles[0].size * 2 + answers[0].size * 4
    count = max(1, min(len(tiles), limit_bytes // each))
    foreground = (answers > threshold).reshape(len(answers), -1).sum(axis=1)
    chosen = np.sort(np.argsort(-foreground, kind="stable")[:count])
    try:
        np.savez_compressed(
            path / GOLDEN,
            voxels=tiles[chosen].astype(np.float16),
            probability=(np.round(answers[chosen] * _STEP) / _STEP).astype(np.float32),
        )
    except OSError as error:
        raise WriteError(
            f"cannot write {GOLDEN} to {path}: {error.strerror or error}; free space "
            "there, or choose another folder"
        ) from error
    return int(count)
