"""Samples depend on the seed and their number alone, and labels follow their image."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from neurodeploy._errors import DataError
from neurodeploy.data import (
    IGNORE,
    SKELETON,
    AnnotatedVolume,
    Augmentation,
    Samples,
    mark_skeleton,
)
from neurodeploy.data._augment import degrade
from neurodeploy.data._crops import crop

TILE = (8, 16, 16)


AUGMENTED = Augmentation()


def samples(volumes, seed=5, augmentation=AUGMENTED):
    return Samples(volumes, TILE, TILE, augmentation, seed)


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_however_many_workers(volumes, workers):
    ours = samples(volumes)
    loader = DataLoader(ours, batch_size=3, sampler=range(6), num_workers=workers)
    numbers = iter(range(6))
    for voxels, labels in loader:
        for i in range(3):
            expected = samples(volumes)[next(numbers)]
            np.testing.assert_array_equal(voxels[i].numpy(), expected[0])
            np.testing.assert_array_equal(labels[i].numpy(), expected[1])


def test_another_seed_or_number_is_another_sample(volumes):
    first = samples(volumes)[0][0]
    assert not np.array_equal(first, samples(volumes)[1][0])
    assert not np.array_equal(first, samples(volumes, seed=6)[0][0])


def test_every_sample_is_finite_and_of_the_tile(volumes):
    ours = samples(volumes)
    for number in range(60):
        voxels, labels = ours[number]
        assert voxels.shape == labels.shape == (1, *TILE)
        assert voxels.dtype == np.float32
        assert np.isfinite(voxels).all()
        assert set(np.unique(labels)) <= {0, 1, IGNORE}


@given(
    centre=st.tuples(*(st.integers(0, n - 1) for n in (7, 9, 8))),
    axes=st.permutations(range(3)),
    signs=st.tuples(*(st.sampled_from([-1.0, 1.0]) for _ in range(3))),
)
@settings(max_examples=60, deadline=None)
def test_right_angles_move_voxels_and_labels_alike_and_exactly(centre, axes, signs):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (7, 9, 8)).astype(np.uint8)
    image = (labels.astype(int) * 1000 + rng.integers(0, 9, labels.shape)).astype(
        np.uint16
    )
    pose = np.eye(3)[list(axes)] * np.array(signs)
    voxels, marks = crop(image, labels, np.array(centre, float), pose, (5, 4, 6))
    np.testing.assert_array_equal(marks, voxels >= 1000)
    assert voxels[2, 2, 3] == image[centre]
    assert set(np.unique(voxels)) <= set(np.unique(image))


def test_what_sticks_out_is_mirrored():
    image = np.arange(6, dtype=np.uint16)[None, None].repeat(4, 0).repeat(4, 1)
    voxels, _ = crop(
        image, image.astype(np.uint8), np.array([1.0, 1, 0]), np.eye(3), (1, 1, 8)
    )
    assert voxels[0, 0].tolist() == [4, 3, 2, 1, 0, 1, 2, 3]


def test_a_sparse_slice_is_always_in_the_crop(volumes):
    volume = volumes[0]
    labels = np.full_like(volume.labels, IGNORE)
    labels[6] = volume.labels[6]
    sparse = dataclasses.replace(volume, labels=labels)
    plain = Augmentation(missing_probability=0.0, scale_probability=0.0)
    ours = samples([sparse], augmentation=plain)
    assert all((ours[n][1] != IGNORE).any() for n in range(40))


def test_normalisation_is_that_of_the_whole_image(volumes):
    voxels, _ = samples(volumes[:1], augmentation=None)[0]
    constants = volumes[0].normalisation
    assert constants.kind == "background-asinh"
    everything = constants.apply(volumes[0].image)
    rounded = set(np.round(everything, 4).ravel().tolist())
    assert set(np.round(voxels, 4).ravel().tolist()) <= rounded


def test_centre_lines_lie_inside_their_neurite(volumes):
    marked = mark_skeleton(volumes[0])
    tube = marked.labels == SKELETON
    assert tube.any()
    assert (volumes[0].labels[tube] == 1).all()
    np.testing.assert_array_equal(marked.labels > 0, volumes[0].labels > 0)


def test_what_cannot_teach_is_refused(volumes):
    volume = volumes[0]
    empty = AnnotatedVolume(volume.image, np.zeros_like(volume.labels), "empty")
    with pytest.raises(DataError, match="has a neurite voxel"):
        samples([empty])
    full = AnnotatedVolume(volume.image, np.ones_like(volume.labels), "full")
    with pytest.raises(DataError, match="background voxel"):
        samples([full])
    with pytest.raises(DataError, match="ignored"):
        AnnotatedVolume(volume.image, np.full_like(volume.labels, IGNORE), "none")
    with pytest.raises(DataError, match=r"shares of all groups \(data\) are 0"):
        Samples([volume], TILE, TILE, None, 0, shares={"data": 0.0})
    with pytest.raises(DataError, match="one shape"):
        AnnotatedVolume(volume.image[1:], volume.labels, "cut")


#: Signal and noise as they were recorded: nothing else happens to a crop.
NOTHING_ELSE = Augmentation(
    degrade_probability=1.0,
    gain_range=(0.5, 0.5),
    noise_range=(0.0, 0.0),
    shot_range=(0.0, 0.0),
    gamma_range=(1.0, 1.0),
    blur_probability=0.0,
    haze_probability=0.0,
    stripe_probability=0.0,
    missing_probability=0.0,
    noise_jitter=1.0,
    background_jitter=0.0,
)


def bars(*heights: float) -> tuple[np.ndarray, np.ndarray]:
    """Bars of these heights, in units of noise, 5 voxels thick; and their labels."""
    units = np.zeros((9, 9, 12 * len(heights)), np.float32)
    labels = np.zeros(units.shape, np.uint8)
    for i, height in enumerate(heights):
        here = (slice(2, 7), slice(2, 7), slice(12 * i + 2, 12 * i + 10))
        units[here], labels[here] = height, 1
    return units, labels


def test_what_dimming_hides_is_neither_neurite_nor_background():
    units, labels = bars(20.0, 2.0)
    rng = np.random.default_rng(0)
    dimmed = dataclasses.replace(NOTHING_ELSE, noise_range=(1.0, 1.0))
    _, as_before = degrade(units, labels, dimmed, rng)
    assert (as_before == labels).all()
    # 20 and 2 of the noise that there was are 8.9 and 0.9 of what there is now.
    dimmed = dataclasses.replace(dimmed, visible_from=1.5)
    _, found = degrade(units, labels, dimmed, rng)
    assert (found[4, 4, 2:10] == 1).all()
    assert (found[4, 4, 14:22] == IGNORE).all()
    assert (found[labels == 0] == 0).all()
    # A crop that is no dimmer than it was keeps what an annotator saw.
    bright = dataclasses.replace(NOTHING_ELSE, visible_from=1.5)
    _, found = degrade(units, labels, bright, rng)
    assert (found == labels).all()


def test_a_changing_background_counts_as_noise_where_that_is_asked_for():
    """A volume's histogram takes it for noise, so everything shrinks."""
    units, labels = bars(40.0)
    hazy = dataclasses.replace(NOTHING_ELSE, haze_probability=1.0, haze_limit=8.0)
    wide = dataclasses.replace(hazy, haze_widens=0.5)

    def heights(settings: Augmentation) -> np.ndarray:
        rngs = map(np.random.default_rng, range(60))
        found = [degrade(units, labels, settings, rng)[0] for rng in rngs]
        return np.array([f[4, 4, 2:10].mean() - f[4, 4, :2].mean() for f in found])

    # The bar over the background beside it: half of 40, over half of the noise.
    assert np.median(heights(hazy)) == pytest.approx(40, abs=2)
    shrunk = heights(wide) / 40
    # Over the root of 0.5² and (0.5 × limit)², of limits up to 8.
    assert shrunk.min() < 0.2
    assert 0.8 < shrunk.max() < 1.1
    assert np.median(shrunk) == pytest.approx(0.5 / np.hypot(0.5, 2), abs=0.08)
