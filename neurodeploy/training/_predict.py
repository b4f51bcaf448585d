"""A trained network over a whole volume in memory, with the runtime's own tiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neurodeploy.networks import NetworkConfig
from neurodeploy_runtime import EngineError
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._plan import Axis


def predict(
    network: nn.Module,
    config: NetworkConfig,
    image: NDArray[Any],
    normalisation: Normalisation | None = None,
    *,
    overlap: float = 0.25,
    batch: int = 4,
    precision: torch.dtype | None = None,
) -> NDArray[np.float32]:
    """Probabilities of a (z, y, x) image of grey values, float32 of its shape.

    Tiles, mirroring and weights are those of the runtime's plan; the whole volume and
    its probabilities are in memory. `normalisation` is measured on the image where it
    is not given. `precision` is a dtype to autocast to.

    Raises
    ------
    EngineError
        Where an answer is NaN: it would pass for background.
    InputError
        Where the image is constant, or holds NaN or infinity.
    """
    if normalisation is None:
        histogram = Histogram(image.dtype)
        histogram.add(image)
        normalisation = histogram.freeze("background-asinh")
    voxels = normalisation.apply(image)
    along_z = 0.0 if config.mode == "slice" else overlap
    axes = [
        Axis(window, (tile - window) // 2, round(window * share))
        for window, tile, share in zip(
            config.window, config.tile, (along_z, overlap, overlap), strict=True
        )
    ]
    shape = image.shape
    counts = [a.count(n) for a, n in zip(axes, shape, strict=True)]
    out = np.zeros(shape, np.float32)
    device = next(network.parameters()).device
    tiles = list(np.ndindex(*counts))
    training = network.training
    network.eval()
    for first in range(0, len(tiles), batch):
        some = tiles[first : first + batch]
        stack = np.stack([_read(voxels, axes, tile) for tile in some])
        with (
            torch.inference_mode(),
            torch.autocast(device.type, precision, enabled=precision is not None),
        ):
            given = network(torch.from_numpy(stack)[:, None].to(device))
            answers = torch.sigmoid(given.float()).cpu().numpy()[:, 0]
        finite = np.isfinite(answers).all(axis=(1, 2, 3))
        if not finite.all():
            tile = some[int(finite.argmin())]
            start = [k * axis.stride for k, axis in zip(tile, axes, strict=True)]
            raise EngineError(
                f"the network answers NaN in the tile at voxel {start} (z, y, x): its "
                "weights diverged, or its precision is too low; use an earlier "
                "checkpoint, or fp32"
            )
        for tile, answer in zip(some, answers, strict=True):
            _add(out, answer, axes, tile, counts)
    network.train(training)
    return out


def _read(
    voxels: NDArray[np.float32], axes: list[Axis], tile: tuple[int, ...]
) -> NDArray[np.float32]:
    for i, (axis, k) in enumerate(zip(axes, tile, strict=True)):
        extent = voxels.shape[i]
        low, high = axis.reads(k, extent)
        index = axis.mirrored(k, extent)
        voxels = voxels.take(
            np.arange(low, high) if index is None else low + index, axis=i
        )
    return voxels


def _add(
    out: NDArray[np.float32],
    answer: NDArray[np.float32],
    axes: list[Axis],
    tile: tuple[int, ...],
    counts: list[int],
) -> None:
    box, inside = [], []
    for i, (axis, k) in enumerate(zip(axes, tile, strict=True)):
        weights = axis.weights(first=k == 0, last=k == counts[i] - 1)
        answer = answer * weights.reshape([-1 if j == i else 1 for j in range(3)])
        start = k * axis.stride
        stop = min(start + axis.window, out.shape[i])
        box.append(slice(start, stop))
        inside.append(slice(0, stop - start))
    out[tuple(box)] += answer[tuple(inside)]
