"""From light to stored grey values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy.simulate._chance import Stream, generator
from neurodeploy_runtime import Box

Floats = NDArray[np.float32]
PixelType = Literal["uint8", "uint16"]

#: Voxels of a plane that share one generator of noise.
_PATCH = (1, 160, 160)


@dataclass(frozen=True)
class Camera:
    """What turns light into stored grey values.

    `gain` is grey levels per photon; `read_noise` a standard deviation, `offset` the
    level without light, both in grey levels. Above `saturation` there is nothing;
    what would be below `clip_below` is stored as 0.
    """

    pixel_type: PixelType
    gain: float
    read_noise: float
    offset: float
    saturation: int
    clip_below: float = 0.0

    def expose(self, light: Floats, normal: Floats) -> NDArray[Any]:
        """The stored image of this light (grey levels over the offset).

        `normal` holds one standard normal number per voxel. Shot noise is Poisson's
        by Anscombe's transform turned back, ``((2 √n + e) / 2)²``, of which the
        variance and the skewness are right from a few photons on.
        """
        grey = np.maximum(light, 0)
        spread = np.sqrt(self.gain * grey + self.read_noise**2, dtype=np.float32)
        grey = grey + spread * normal
        grey += np.float32(self.gain / 4) * (normal * normal - 1)
        grey += np.float32(self.offset + 0.5)  # rounded by the cut below
        np.clip(grey, 0, self.saturation, out=grey)
        stored = grey.astype(self.pixel_type)
        if self.clip_below > 0:
            stored[stored < self.clip_below] = 0
        return stored


def camera_noise(seed: int, box: Box) -> Floats:
    """One standard normal number per voxel of a box, the same however it is cut."""
    out = np.empty(box.shape, np.float32)
    for cell in box.grid(_PATCH):
        index = [a // b for a, b in zip(cell.start, _PATCH, strict=True)]
        whole = generator(seed, Stream.CAMERA, *index).standard_normal(
            _PATCH, np.float32
        )
        inside = tuple(
            slice(a - i * p, b - i * p)
            for a, b, i, p in zip(cell.start, cell.stop, index, _PATCH, strict=True)
        )
        start = (-box.start[0], -box.start[1], -box.start[2])
        out[cell.shift(start).slices] = whole[inside]
    return out
