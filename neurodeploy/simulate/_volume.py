"""A small simulated volume, whole in memory: what training is fed with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy.morphology import Morphology
from neurodeploy.simulate._appearance import LIGHT_SHEET, Appearance, Look
from neurodeploy.simulate._camera import camera_noise
from neurodeploy.simulate._chance import Stream, generator
from neurodeploy.simulate._given import placed
from neurodeploy.simulate._render import render
from neurodeploy_runtime import Box, Shape

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class SimulationSettings:
    """What to simulate: a shape (z, y, x) and ranges of appearance.

    `neurites` are tracings in voxels that take the place of simulated neurites; each
    is turned and shifted by the seed, and one too large for the volume has a node of
    it, chosen by chance, in the middle.
    """

    shape: Shape = (64, 160, 160)
    appearance: Appearance = LIGHT_SHEET
    neurites: tuple[Morphology, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class SimulatedVolume:
    """An image with its truth, all of one shape (z, y, x).

    `image` is uint16 or uint8. `truth` is uint8, 1 on neurites as wide as they
    appear. `ignore` is true where neither answer is wrong: a shell of one voxel,
    cell bodies with neurites, stretches too dim to be seen. `signal` and
    `background` are the light of neurites and of all else before the camera, float32
    grey levels over its offset; :meth:`expose_again` makes other images of them.
    """

    image: NDArray[Any]
    truth: NDArray[np.uint8]
    ignore: NDArray[np.bool_]
    signal: Floats
    background: Floats
    look: Look

    def expose_again(
        self,
        rng: np.random.Generator,
        *,
        signal_gain: float = 1.0,
        background_gain: float = 1.0,
    ) -> NDArray[Any]:
        """Another image of the same neurites: other light, new shot and read noise.

        Cheap: no tissue is grown again. A tenth of the time of a new volume.
        """
        light = self.signal * np.float32(signal_gain)
        light += self.background * np.float32(background_gain)
        normal = rng.standard_normal(light.shape, np.float32)
        return self.look.camera.expose(light, normal)


def simulate_volume(settings: SimulationSettings, seed: int) -> SimulatedVolume:
    """A volume that this seed always gives.

    >>> tiny = SimulationSettings(shape=(8, 32, 32))
    >>> volume = simulate_volume(tiny, seed=1)
    >>> volume.image.shape, volume.truth.dtype.name
    ((8, 32, 32), 'uint8')
    """
    look = settings.appearance.draw(generator(seed, Stream.LOOK))
    box = Box.whole(settings.shape)
    extra = placed(settings.neurites, look, seed, settings.shape)
    if settings.neurites:
        look = replace(look, neurite_share=0.0, neurons=0.0)
    light = render(look, seed, box, extra)
    image = look.camera.expose(light.signal + light.background, camera_noise(seed, box))
    return SimulatedVolume(
        image, light.truth, light.ignore, light.signal, light.background, look
    )
