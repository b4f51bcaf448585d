"""Making a clean crop look like a worse microscope's.

Everything happens in units of the background's noise, before the asinh: there a
detector's gain, its shot noise and a stronger background are what they are, and what
a change does to the volume's frozen constants can be said in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from neurodeploy._errors import ConfigError

#: From this factor on its signal over its noise, a crop is hardly dimmed.
_AS_IT_WAS = 0.9
#: Drawn by their logarithm.
_FACTORS = ("scale_range", "anisotropy", "gain_range", "gamma_range", "noise_jitter")


@dataclass(frozen=True)
class Augmentation:
    """How far samples are moved away from what was recorded.

    Ranges are ends of a uniform draw (of its logarithm for factors); probabilities
    are per sample.

    Raises
    ------
    ConfigError
        Where a probability is not from 0 to 1, a factor not above 0, or a range's ends
        are exchanged.
    """

    axes_probability: float = 0.5
    rotation_probability: float = 0.3
    scale_probability: float = 0.5
    #: Factor on the size of what is shown.
    scale_range: tuple[float, float] = (0.75, 1.35)
    #: Further factor on the size along z, or its inverse.
    anisotropy: float = 1.4
    degrade_probability: float = 0.85
    #: Factor on the signal above background.
    gain_range: tuple[float, float] = (0.25, 1.6)
    #: Standard deviation of added background noise, in units of the noise there was.
    noise_range: tuple[float, float] = (0.0, 1.0)
    #: Added variance per unit of signal.
    shot_range: tuple[float, float] = (0.0, 0.6)
    gamma_range: tuple[float, float] = (0.85, 1.2)
    blur_probability: float = 0.2
    #: Standard deviation in voxels; along z up to twice that.
    blur_range: tuple[float, float] = (0.3, 1.0)
    #: A smooth change of background, up to this many units of noise.
    haze_probability: float = 0.3
    haze_limit: float = 3.0
    #: How much of its limit a haze adds to what the volume's histogram takes for noise,
    #: and the haze then lies anywhere within half its limit of 0. 0: nothing.
    haze_widens: float = 0.0
    stripe_probability: float = 0.1
    missing_probability: float = 0.04
    #: A neurite's voxel that is made dimmer than this many units of the new noise is
    #: neither neurite nor background any more; 0: it stays what it was.
    visible_from: float = 0.0
    #: Factor by which the volume's noise constant may be wrong.
    noise_jitter: float = 1.7
    #: Units of noise by which the volume's background may be wrong.
    background_jitter: float = 0.8

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = value if isinstance(value, tuple) else (value, value)
            fits, wanted = True, "0 or more"
            if field.name.endswith("_probability"):
                fits, wanted = high <= 1, "from 0 to 1"
            elif field.name in _FACTORS:
                fits, wanted = low > 0, "more than 0"
            if not (fits and 0 <= low <= high < math.inf):
                order = ", the lower end first" if isinstance(value, tuple) else ""
                raise ConfigError(
                    f"augmentation.{field.name} is {value}: use {wanted}{order}"
                )


def degrade(
    units: NDArray[np.float32],
    labels: NDArray[np.uint8],
    settings: Augmentation,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """A worse recording of the same crop, in units of *its* background noise.

    Labels of slices that go missing become `IGNORE` (255); the arrays given are left
    alone.
    """
    from scipy import ndimage

    if rng.random() < settings.degrade_probability:
        if rng.random() < settings.blur_probability:
            sigma = rng.uniform(*settings.blur_range)
            along_z = sigma * rng.uniform(0.5, 2.0)
            units = ndimage.gaussian_filter(units, (along_z, sigma, sigma), truncate=3)
        gamma = np.float32(_log_uniform(settings.gamma_range, rng))
        units = np.sign(units) * np.abs(units) ** gamma
        clean, gain = units, _log_uniform(settings.gain_range, rng)
        units = units * np.float32(gain)
        wide = 0.0
        if rng.random() < settings.haze_probability:
            limit = settings.haze_limit
            if settings.haze_widens:
                limit = rng.uniform(0, limit)
                wide = settings.haze_widens * limit
                units = units + np.float32(rng.uniform(-0.5, 0.5) * limit)
            units = units + _smooth_field(units.shape, limit, rng)
        noise = rng.uniform(*settings.noise_range)
        shot = rng.uniform(*settings.shot_range)
        labels = _without_hidden(clean, labels, gain / np.hypot(gain, noise), settings)
        variance = np.float32(noise**2) + np.float32(shot) * np.maximum(units, 0)
        units = units + np.sqrt(variance) * rng.standard_normal(
            units.shape, dtype=np.float32
        )
        if rng.random() < settings.stripe_probability:
            lines = rng.standard_normal((units.shape[0], units.shape[1], 1))
            units = units + (rng.uniform(0.2, 0.8) * lines).astype(np.float32)
        # What the histogram of the whole degraded volume would have measured.
        units = units / np.float32(np.sqrt(gain**2 + noise**2 + wide**2))
    if rng.random() < settings.missing_probability:
        axis = int(rng.integers(2))  # z, or y: how a camera's frame can lie
        at = int(rng.integers(units.shape[axis]))
        gone = (slice(None),) * axis + (slice(at, at + int(rng.integers(1, 3))),)
        units, labels = units.copy(), labels.copy()
        units[gone] = rng.uniform(-1, 1)
        labels[gone] = 255
    factor = np.exp(rng.uniform(-1, 1) * np.log(settings.noise_jitter))
    shift = rng.uniform(-1, 1) * settings.background_jitter
    return units * np.float32(factor) + np.float32(shift), labels


def _without_hidden(
    units: NDArray[np.float32],
    labels: NDArray[np.uint8],
    factor: float,
    settings: Augmentation,
) -> NDArray[np.uint8]:
    """Labels without the neurites that `factor` on their signal hides in the noise.

    To mark what cannot be seen would teach to mark the tissue's texture.
    """
    from scipy import ndimage

    if not settings.visible_from or factor >= _AS_IT_WAS:
        return labels
    seen = ndimage.gaussian_filter(units, 0.7, truncate=3)
    hidden = (labels != 0) & (seen * factor < settings.visible_from)
    return np.where(hidden, np.uint8(255), labels)


def _log_uniform(ends: tuple[float, float], rng: np.random.Generator) -> float:
    low, high = np.log(ends[0]), np.log(ends[1])
    return float(np.exp(rng.uniform(low, high)))


def _smooth_field(
    shape: tuple[int, ...], limit: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A field of at most about `limit`, linear between 3 × 3 × 3 random points."""
    from scipy import ndimage

    coarse = rng.uniform(-0.3, 1.0, (3, 3, 3)).astype(np.float32) * rng.uniform(
        0, limit
    )
    zoom = [extent / 3 for extent in shape]
    field: NDArray[np.float32] = ndimage.zoom(
        coarse, zoom, order=1, mode="nearest", grid_mode=False
    )
    return field[tuple(slice(0, extent) for extent in shape)]
