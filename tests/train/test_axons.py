"""Labelled axons in other surroundings: they look alike, and are known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from neurodeploy._errors import DataError
from neurodeploy.data import IGNORE, AnnotatedVolume
from neurodeploy.training import axons, trailmap


@pytest.fixture(scope="module")
def cubes(shared_data: Path) -> list[AnnotatedVolume]:
    return trailmap.read_cubes(shared_data / "trailmap" / "train")


def test_fewer_axons_leave_a_cube_of_background(cubes: list[AnnotatedVolume]) -> None:
    for cube in cubes[:3]:
        seen = np.where(cube.labels == 1, 1, 0).astype(np.float32)
        # What nobody labelled shines as well: see it by its brightness.
        units = cube.normalisation.apply(cube.image)
        seen[units > np.arcsinh(3)] = 1
        rng = np.random.default_rng(5)
        few = axons.with_fewer_axons(cube, seen, 0.1, rng)
        kept, all_of_them = few.labels == 1, cube.labels == 1
        assert not (kept & ~all_of_them).any()
        assert 0.05 < kept.sum() / all_of_them.sum() < 0.15
        assert ((few.labels == IGNORE) == (cube.labels == IGNORE)).all()
        assert (few.image[kept] == cube.image[kept]).all()
        # Where axons were it looks as where none were: level, and texture.
        gone = all_of_them & ~kept
        calm = cube.labels == 0
        assert few.image[gone].mean() < 1.3 * cube.image[calm].mean()
        assert cube.image[gone].mean() > 1.4 * cube.image[calm].mean()
        ratio = few.image[gone].std() / cube.image[calm].std()
        assert 0.3 < ratio < 1.2
        # And its noise is that of its background, as in a whole brain.
        own, brain = few.normalisation, trailmap.as_in_its_brain(cube).normalisation
        assert own.noise == pytest.approx(brain.noise, rel=0.35)
        assert own.noise < 0.75 * cube.normalisation.noise


def test_a_cube_without_axons_has_none_to_keep(cubes: list[AnnotatedVolume]) -> None:
    none = np.where(cubes[0].labels == 1, IGNORE, cubes[0].labels).astype(np.uint8)
    empty = replace(cubes[0], labels=none)
    with pytest.raises(DataError, match="no axon to keep"):
        axons.with_fewer_axons(
            empty, np.zeros(none.shape, np.float32), 0.1, np.random.default_rng(0)
        )


@pytest.fixture
def bar() -> AnnotatedVolume:
    """A bar of 200 over a level of 1000; half of its length is labelled."""
    image = np.full((20, 20, 20), 1000.0)
    image += np.random.default_rng(0).normal(0, 5, image.shape)
    image[9:12, 9:12, 2:18] += 200
    labels = np.full(image.shape, IGNORE, np.uint8)
    labels[:, :, :10] = 0
    labels[9:12, 9:12, 2:10] = 1
    return AnnotatedVolume(image.astype(np.uint16), labels, "bar", isotropic=True)


@pytest.fixture
def tissue() -> AnnotatedVolume:
    """A slope from 3000 to 3590 with few neurites behind z 30, and many before."""
    image = np.zeros((60, 24, 24)) + 3000 + 10 * np.arange(60)[:, None, None]
    labels = np.zeros(image.shape, np.uint8)
    labels[:30] = 1
    return AnnotatedVolume(image.astype(np.uint16), labels, "tissue")


def sees_the_bar(bar: AnnotatedVolume) -> np.ndarray:
    answer = np.full(bar.image.shape, 0.01, np.float32)
    answer[9:12, 9:12, 2:18] = 0.9
    return answer


def test_a_planted_axon_rises_over_the_tissue_as_it_did_over_its_own(
    bar: AnnotatedVolume, tissue: AnnotatedVolume
) -> None:
    made = axons.planted(bar, sees_the_bar(bar), tissue, 1.0, np.random.default_rng(3))
    # Labels are those of the hand that labelled the cube, and nobody else's.
    assert (made.labels == bar.labels).all()
    lit = made.labels == 1
    ground = np.median(made.image, axis=(1, 2))
    assert ground.min() > 3200  # the calm end of the tissue
    assert np.ptp(ground) == pytest.approx(190, abs=20)  # and its slope
    rise = made.image[lit] - ground[np.nonzero(lit)[0]]
    assert np.median(rise) == pytest.approx(200, rel=0.1)
    far = ~ndimage.binary_dilation(sees_the_bar(bar) > 0.5, iterations=5)
    assert (made.image[far] == ground.astype(int)[np.nonzero(far)[0]]).all()


def test_axons_outside_the_ball_are_neither_planted_nor_labelled(
    bar: AnnotatedVolume, tissue: AnnotatedVolume
) -> None:
    made = axons.planted(bar, sees_the_bar(bar), tissue, 0.3, np.random.default_rng(3))
    left = made.labels == 1
    assert 0.2 < left.sum() / (bar.labels == 1).sum() < 0.7
    gone = (bar.labels == 1) & (made.labels == 0)
    assert gone.sum() > 10
    level = np.median(made.image, axis=(1, 2), keepdims=True)
    assert (made.image - level)[gone].max() < 100
    assert (made.image - level)[left].mean() > 150


def test_dimmed_axons_lose_signal_and_the_tissue_gains_background_and_noise(
    bar: AnnotatedVolume, tissue: AnnotatedVolume
) -> None:
    def made(dimming: axons.Dimming | None) -> AnnotatedVolume:
        rng = np.random.default_rng(3)
        return axons.planted(bar, sees_the_bar(bar), tissue, 1.0, rng, dimming)

    plain = made(None)
    lit = plain.labels == 1
    level = np.median(plain.image, axis=(1, 2), keepdims=True)
    half = made(axons.Dimming(signal=0.5))
    assert ((half.image - level)[lit]).mean() == pytest.approx(
        ((plain.image - level)[lit]).mean() / 2, rel=0.05
    )
    twice = made(axons.Dimming(background=2.0))
    assert np.median(twice.image) == pytest.approx(2 * np.median(level), rel=0.05)
    noisy = made(axons.Dimming(noise=50.0))
    assert (noisy.image.astype(float) - plain.image).std() == pytest.approx(50, rel=0.1)
    for other in (half, twice, noisy):
        assert (other.labels == plain.labels).all()


def test_tissue_is_unknown_where_a_network_sees_something() -> None:
    answer = np.zeros((20, 20, 20), np.float32)
    answer[10, 10, 10] = 0.3
    image = np.random.default_rng(0).integers(0, 999, answer.shape).astype(np.uint16)
    found = axons.unmarked(image, answer)
    assert found.labels[10, 10, 12] == IGNORE
    assert (found.labels == IGNORE).sum() == 25  # two voxels each way
    assert (found.labels[found.labels != IGNORE] == 0).all()


def test_tissue_that_is_too_small_is_refused(bar: AnnotatedVolume) -> None:
    small = AnnotatedVolume(
        np.arange(4000, dtype=np.uint16).reshape(10, 20, 20),
        np.zeros((10, 20, 20), np.uint8),
        "piece",
    )
    with pytest.raises(DataError, match=r"does not fit into piece \(10, 20, 20\)"):
        axons.planted(bar, sees_the_bar(bar), small, 1.0, np.random.default_rng(0))
    none = replace(bar, labels=np.zeros(bar.labels.shape, np.uint8))
    with pytest.raises(DataError, match="bar has no axon to plant"):
        axons.planted(none, sees_the_bar(bar), small, 1.0, np.random.default_rng(0))
