"""Light-microscopy volumes with known truth, from simulated or given neurites.

>>> volume = simulate_volume(SimulationSettings(shape=(8, 32, 32)), seed=7)
>>> volume.image.shape
(8, 32, 32)
"""

from neurodeploy.simulate._appearance import (
    CONFOCAL,
    LIGHT_SHEET,
    SHOWCASE,
    Appearance,
    Look,
)
from neurodeploy.simulate._camera import Camera
from neurodeploy.simulate._stream import SampleSettings, sample_block, write_sample
from neurodeploy.simulate._volume import (
    SimulatedVolume,
    SimulationSettings,
    simulate_volume,
)

__all__ = [
    "CONFOCAL",
    "LIGHT_SHEET",
    "SHOWCASE",
    "Appearance",
    "Camera",
    "Look",
    "SampleSettings",
    "SimulatedVolume",
    "SimulationSettings",
    "sample_block",
    "simulate_volume",
    "write_sample",
]
