"""Figures over labelled voxels, held to the libraries that define them."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
)

from neurodeploy.evaluation import SkeletonTally, Tally, skeleton

RNG = np.random.default_rng(0)


def random_image(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, 255], (4, 9, 9), p=[0.6, 0.2, 0.2]).astype(np.uint8)
    # Probabilities as they are stored, and related to the truth.
    score = np.round((0.5 * rng.random(labels.shape) + 0.3 * (labels == 1)) * 255) / 255
    return score.astype(np.float32), labels


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.sampled_from([0.2, 0.5, 0.7]))
def test_figures_are_those_of_sklearn(seed: int, threshold: float) -> None:
    score, labels = random_image(seed)
    tally = Tally()
    tally.add(score, labels)
    found = tally.figures(threshold)
    known = labels != 255
    truth, flat = labels[known] == 1, score[known]
    hit = flat >= threshold
    assert found.average_precision == pytest.approx(
        average_precision_score(truth, flat)
    )
    assert found.dice == pytest.approx(f1_score(truth, hit))
    assert found.recall == pytest.approx(recall_score(truth, hit))
    if hit.any():
        assert found.precision == pytest.approx(precision_score(truth, hit))
    best = max(f1_score(truth, flat >= t) for t in np.unique(flat)[::4])
    assert found.best_dice is not None
    assert found.best_threshold is not None
    assert found.best_dice >= best - 1e-9
    best_hit = flat >= found.best_threshold - 1e-6
    assert found.best_dice == pytest.approx(f1_score(truth, best_hit))


def test_images_together_are_one_pool() -> None:
    whole, parts = Tally(), Tally()
    for seed in (1, 2):
        score, labels = random_image(seed)
        whole.add(score, labels)
        one = Tally()
        one.add(score, labels)
        parts.merge(one)
    assert whole.figures(0.5) == parts.figures(0.5)


def test_ignored_voxels_count_for_nothing() -> None:
    score, labels = random_image(3)
    one, other = Tally(), Tally()
    one.add(score, labels)
    score = np.where(labels == 255, 1 - score, score)
    other.add(score, labels)
    assert one.figures(0.5) == other.figures(0.5)


def test_what_is_not_defined_is_none() -> None:
    tally = Tally()
    tally.add(np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), np.uint8))
    found = tally.figures(0.5)
    assert found.voxels == 18
    assert (found.dice, found.recall, found.precision) == (None, None, None)
    assert found.average_precision is None


def bar(y: int, width: int = 1) -> np.ndarray:
    mask = np.zeros((9, 40, 40), bool)
    mask[4 - width : 5 + width, y - width : y + width + 1, 4:36] = True
    return mask


def lines(found: np.ndarray, labels: np.ndarray) -> object:
    tally = SkeletonTally()
    tally.add(found, labels.astype(np.uint8))
    return tally.figures()


def test_a_perfect_mask_is_perfect() -> None:
    figures = lines(bar(20), bar(20))
    assert figures.cl_dice == 1.0  # type: ignore[attr-defined]
    assert figures.hd95 == 0.0  # type: ignore[attr-defined]
    assert figures.recall_2 == figures.precision_2 == 1.0  # type: ignore[attr-defined]


def test_distances_decide() -> None:
    tally = SkeletonTally()
    # The nearest voxel of the found bar is 3 from the true centre line.
    tally.add(bar(24), bar(20).astype(np.uint8))
    figures = tally.figures()
    assert figures.recall_2 == 0.0
    assert figures.recall_3 == 1.0
    assert figures.cl_dice == 0.0
    assert figures.hd95 == 4.0


def test_an_image_where_nothing_is_found_is_infinitely_far() -> None:
    nothing, truth = np.zeros(bar(20).shape, bool), bar(20).astype(np.uint8)
    for found, labels in ((nothing, truth), (bar(20), 0 * truth)):
        tally = SkeletonTally()
        tally.add(found, labels)
        assert (tally.figures().hd95, tally.figures().hd95_empty) == (None, 1)
        assert tally.figures().hd95_infinite
        json.dumps(asdict(tally.figures()), allow_nan=False)
        perfect = SkeletonTally()
        perfect.add(bar(20), truth)
        tally.merge(perfect)
        assert tally.figures().hd95_infinite
        # One in forty is less than the 5 % that a 95th percentile looks past.
        for _ in range(38):
            tally.merge(perfect)
        assert (tally.figures().hd95, tally.figures().hd95_empty) == (0.0, 1)
    neither = SkeletonTally()
    neither.add(nothing, 0 * truth)
    assert (neither.figures().hd95, neither.figures().hd95_infinite) == (None, False)


def test_a_missing_half_is_half_the_recall() -> None:
    tally = SkeletonTally()
    half = bar(20)
    half[..., 20:] = False
    tally.add(half, bar(20).astype(np.uint8))
    figures = tally.figures()
    assert figures.recall_2 == pytest.approx(0.55, abs=0.1)
    assert figures.precision_2 == 1.0
    assert figures.cl_dice == pytest.approx(2 * 0.5 / 1.5, abs=0.07)


def test_what_is_found_on_ignored_voxels_is_not_wrong() -> None:
    labels = bar(20).astype(np.uint8)
    labels[:, 26:] = 255
    tally = SkeletonTally()
    tally.add(bar(20) | bar(30), labels)
    assert tally.figures().precision_2 == 1.0
    assert tally.figures().hd95 == 0.0


def test_sparse_slices_are_judged_in_their_planes() -> None:
    labels = np.full((9, 40, 40), 255, np.uint8)
    labels[4] = bar(20)[4]
    tally = SkeletonTally()
    tally.add(bar(20), labels)
    assert tally.figures().slices
    assert tally.figures().cl_dice == 1.0
    tally = SkeletonTally()
    # Found one plane beside the labelled one: seen from it, nothing was found.
    tally.add(np.roll(bar(20, width=0), 1, axis=0), labels)
    assert tally.figures().recall_3 == 0.0


def test_a_traced_centre_line_is_the_truth_also_where_labels_ignore() -> None:
    labels = np.full((9, 40, 40), 255, np.uint8)
    labels[:, :10] = 0
    labels[4, 9, 4:10] = 1
    line = skeleton(bar(20))
    tally = SkeletonTally()
    tally.add(bar(20), labels, line)
    assert tally.figures().recall_2 == 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_surface_distance_is_monais() -> None:
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    truth, found = bar(20), bar(23, width=2)
    tally = SkeletonTally()
    tally.add(found, truth.astype(np.uint8))

    def one_hot(mask: np.ndarray) -> object:
        return torch.from_numpy(np.stack([~mask, mask]).astype(np.float32))[None]

    theirs = metrics.compute_hausdorff_distance(
        one_hot(found), one_hot(truth), include_background=False, percentile=95
    )
    assert tally.figures().hd95 == pytest.approx(float(theirs[0, 0]), abs=0.2)


@pytest.mark.parametrize("thick", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("slant", [0, 1])
def test_a_neurite_of_any_thickness_has_a_centre_line(thick: int, slant: int) -> None:
    mask = np.zeros((20, 50, 50), bool)
    for x in range(5, 40):
        y = 8 + slant * (x - 5)
        mask[8 : 8 + thick, y : y + thick, x : x + thick] = True
    line = skeleton(mask)
    assert not (line & ~mask).any()
    assert np.ptp(np.nonzero(line)[2]) >= 30 - thick
    block = np.ones((8, 8, 8), bool)
    assert skeleton(block).any()
