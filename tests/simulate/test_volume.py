"""Volumes for training: reproducible, and true to what they say of themselves."""

from dataclasses import replace

import numpy as np
import pytest

from neurodeploy.morphology import Morphology
from neurodeploy.simulate import (
    CONFOCAL,
    LIGHT_SHEET,
    SimulationSettings,
    simulate_volume,
)
from neurodeploy_runtime import Histogram

BRIGHT = replace(LIGHT_SHEET, contrast=(20.0, 40.0), neurite_share=(0.01, 0.03))
SETTINGS = SimulationSettings(shape=(24, 96, 96), appearance=BRIGHT)


def test_a_seed_gives_the_same_volume_and_another_seed_another() -> None:
    one, again, other = (simulate_volume(SETTINGS, s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one.image, again.image)
    np.testing.assert_array_equal(one.truth, again.truth)
    assert not np.array_equal(one.image, other.image)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neurites_are_brighter_than_what_lies_around_them(seed: int) -> None:
    volume = simulate_volume(SETTINGS, seed)
    on = volume.truth > 0
    off = ~on & ~volume.ignore
    assert on.any()
    # Not the mean over the volume, which its darker regions decide.
    light = volume.signal
    assert np.median(light[on]) > 10 * np.median(light[off])
    assert np.percentile(volume.image[on], 50) > np.percentile(volume.image[off], 90)


def test_truth_and_ignore_never_overlap() -> None:
    volume = simulate_volume(SimulationSettings((24, 96, 96), CONFOCAL), 4)
    assert volume.image.dtype == np.uint8
    assert not (volume.ignore & (volume.truth > 0)).any()


def test_the_image_is_the_exposed_light() -> None:
    volume = simulate_volume(SETTINGS, 7)
    rng = np.random.default_rng(0)
    again = volume.expose_again(rng)
    dark = volume.signal + volume.background < 3000
    expected = (volume.signal + volume.background + volume.look.offset)[dark]
    for image in (volume.image, again):
        error = image[dark].astype(float) - expected
        assert abs(error.mean()) < 0.02 * volume.look.noise + 0.05
    half = volume.expose_again(rng, signal_gain=0.0)
    assert half[volume.truth > 0].mean() < volume.image[volume.truth > 0].mean()


def test_the_noise_is_the_one_that_was_asked_for() -> None:
    plain = replace(
        LIGHT_SHEET,
        texture=(0.0, 0.0),
        mottle=(0.0, 0.0),
        slow_variation=(0.0, 0.0),
        regions=(0.0, 0.0),
        vessels=(0.0, 0.0),
        neurite_share=(0.0005, 0.0005),
    )
    volume = simulate_volume(SimulationSettings((16, 96, 96), plain), 3)
    found = Histogram(volume.image.dtype)
    found.add(volume.image)
    constants = found.freeze("background-asinh")
    look = volume.look
    assert constants.background == pytest.approx(look.background, rel=0.05)
    assert constants.noise == pytest.approx(look.noise, rel=0.25)


def test_given_neurites_take_the_place_of_simulated_ones() -> None:
    line = Morphology.from_path([(3, 10, 10), (3, 10, 70)])
    settings = replace(SETTINGS, neurites=(line,))
    volume = simulate_volume(settings, 5)
    length, share = 60, volume.truth.sum() / volume.truth.size
    # A tube of 60 voxels and nothing else, wherever it was put.
    assert 3 * length < volume.truth.sum() < 60 * length
    assert share < 0.02
    box = np.argwhere(volume.truth)
    assert sorted(np.ptp(box, axis=0))[2] >= length - 2
