"""A mask from a tracing is as wide as the image says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt, gaussian_filter

from neurodeploy.morphology import (
    AnnotationSettings,
    Morphology,
    annotate,
    read_swc,
)
from neurodeploy_runtime import Box, InputError, open_volume

LINE = Morphology.from_path([(16, 20, 8), (16, 20, 88)])


def tube(radius: float, anisotropy: float = 1.0, noise: float = 5.0) -> np.ndarray:
    """An image of a tube of this radius along the line, on a level of 100."""
    away = np.ones((32, 40, 96), bool)
    away[16, 20, 8:89] = False
    distance = distance_transform_edt(away, sampling=(anisotropy, 1, 1))
    light = gaussian_filter((distance <= radius) * 400.0, 0.5)
    rng = np.random.default_rng(0)
    return (100 + light + noise * rng.standard_normal(light.shape)).astype(np.uint16)


@pytest.mark.parametrize("radius", [2, 3, 5])
def test_the_width_is_the_images(radius: int) -> None:
    labels = annotate(LINE, tube(radius))
    across = labels[16, :, 48]
    assert (across == 1).sum() == pytest.approx(2 * radius + 1, abs=2)
    assert (labels[:, 20, 48] == 1).sum() == pytest.approx(2 * radius + 1, abs=2)
    # The shell is 2 voxels to each side.
    assert (across == 255).sum() == pytest.approx(4, abs=2)


def test_planes_that_are_far_apart_are_fewer() -> None:
    labels = annotate(LINE, tube(6, anisotropy=3.0), anisotropy=3.0)
    assert (labels[16, :, 48] == 1).sum() == pytest.approx(13, abs=2)
    assert (labels[:, 20, 48] == 1).sum() == pytest.approx(5, abs=2)


def test_a_tracing_beside_its_neurite_is_moved_onto_it() -> None:
    labels = annotate(LINE.moved((0, 2, 0)), tube(2))
    rows = np.flatnonzero(labels[16, :, 48] == 1)
    assert rows.mean() == pytest.approx(20, abs=0.75)
    still = annotate(
        LINE.moved((0, 2, 0)), tube(2), settings=AnnotationSettings(snap=0)
    )
    assert np.flatnonzero(still[16, :, 48] == 1).mean() > 20.75


def test_what_cannot_be_seen_is_ignored() -> None:
    image = tube(2)
    image[:, :, 40:60] = 100 + (image[:, :, 40:60] > 5000)
    labels = annotate(LINE, image)
    assert not (labels[16, 18:23, 46:54] == 1).any()
    assert (labels[16, 20, 46:54] == 255).all()


@pytest.mark.parametrize(
    ("position", "sentence"),
    [
        (LINE.position[:, [2, 1, 0]], "x and z are probably exchanged"),
        (LINE.position[:, [0, 2, 1]], "x and y are probably exchanged"),
        (LINE.position * 4, "micrometres"),
        (LINE.position + 500.0, "0% of the tracing .* check that they belong"),
    ],
)
def test_what_does_not_overlap_is_named(position: np.ndarray, sentence: str) -> None:
    image = tube(2)
    image[16, 20:30, 70] = 800  # so that its mirror image is another
    with pytest.raises(InputError, match=sentence):
        annotate(replace(LINE, position=position), image)


def test_the_gold_standard_covers_the_bright_neuron(shared_data: Path) -> None:
    with open_volume(shared_data / "gold166" / "gold166_245.v3dpbd") as source:
        image = source.read(Box.whole(source.shape))
    gold = read_swc(shared_data / "gold166" / "gold166_245.swc")
    labels = annotate(gold, image, anisotropy=2.0)
    assert (image[labels == 1] > 0).mean() > 0.8
    assert (labels[image > 80] != 0).mean() > 0.8
    mirrored = gold.position * [1, -1, 1] + [0, 511, 0]
    with pytest.raises(InputError, match="y axis is probably mirrored"):
        annotate(replace(gold, position=mirrored), image)


@pytest.mark.parametrize("offset", [0, 1000, 20_000])
def test_a_cameras_offset_changes_no_label(offset: int) -> None:
    """Of a dim neurite, whose tracing lies beside it."""
    image = tube(2)
    beside = LINE.moved((0, 2, 0))
    labels = annotate(beside, image + np.uint16(offset))
    assert (labels == annotate(beside, image)).all()
    rows = np.flatnonzero(labels[16, :, 48] == 1)
    assert rows.mean() == pytest.approx(20, abs=0.75)


def test_a_cell_body_is_no_larger_than_it_may_be() -> None:
    body = Morphology(
        np.array([[16.0, 20.0, 48.0]]), np.array([900.0]), np.array([-1]), np.array([1])
    )
    allowed = AnnotationSettings(largest_soma=6.0, shell=0.0)
    labels = annotate(body, tube(2), settings=allowed)
    marked = np.argwhere(labels == 1)
    assert len(marked)
    assert np.linalg.norm(marked - [16, 20, 48], axis=1).max() < 10
