"""Two answers agree, or the difference is named; NaN never agrees."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tiny_unetr import make_spec

from neurodeploy_export import ExportSettings, ParityError, ParityLimits, compare
from neurodeploy_export._parity import ROUNDING, picture

ANY = ParityLimits(1.0, 0.0, np.inf, np.inf)
STRICT = ParityLimits(0.0, 1.0, 0.0, 0.0)

answers = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.just(1), *[st.integers(1, 5)] * 3),
    elements=st.floats(0, 1, width=32),
)


@given(answers)
def test_an_answer_agrees_with_itself(p: np.ndarray) -> None:
    assert not compare("same", p, p.copy(), 0.5).failures(STRICT)


@given(answers, st.data())
def test_a_value_that_is_not_finite_never_agrees(
    p: np.ndarray, data: st.DataObject
) -> None:
    bad = p.copy()
    at = data.draw(st.integers(0, p.size - 1))
    bad.flat[at] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    # Not even with the same NaN in the same place.
    for before in (p, bad):
        found = compare("broken", before, bad, 0.5)
        assert found.nan + found.inf == 1
        assert found.flips > 0
        assert found.failures(ANY)


@given(answers, st.floats(0.01, 0.99))
def test_flips_and_dice_are_those_of_the_definition(
    p: np.ndarray, threshold: float
) -> None:
    other = np.roll(p, 1, axis=-1)
    found = compare("rolled", p, other, threshold)
    # As the runtime calls a voxel a neurite.
    a, b = p >= threshold, other >= threshold
    b = np.where(np.abs(p - other) <= ROUNDING, a, b)
    assert found.flips == pytest.approx((a != b).mean())
    if a.any() or b.any():
        assert found.dice == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert found.max_difference == np.abs(p - other).max()


def test_rounding_beside_the_threshold_changes_no_label() -> None:
    before = np.full((1, 1, 4, 8, 8), 0.9, np.float32)
    before[0, 0, 0, 0] = 0.3
    limits = ExportSettings().limits_fp32
    for apart, flipped in ((1e-6, 0), (1e-4, 8)):
        after = np.where(before < 0.5, before - np.float32(apart), before)
        found = compare("onnx", before, after, float(before[0, 0, 0, 0, 0]))
        assert found.flips * before.size == pytest.approx(flipped)
        assert bool(found.failures(limits)) == bool(flipped)


def test_each_limit_is_named_with_its_values() -> None:
    before = np.zeros((2, 1, 2, 8, 8), np.float32)
    before[:, :, :, :4] = 0.9
    after = before.copy()
    after[1, 0, 0, 0, 0] = 0.1
    limits = ParityLimits(0.001, 0.999, 0.5, 0.5)
    with pytest.raises(ParityError) as caught:
        compare("engine", before, after, 0.5).require(limits, "look")
    text = str(caught.value)
    for part in ("engine", "0.391%", "Dice 0.9", "0.8", "tile 1", "look"):
        assert part in text


def test_a_single_wrong_voxel_among_many_shows_in_the_percentile() -> None:
    before = np.zeros((1, 1, 10, 10, 10), np.float32)
    after = before.copy()
    after.flat[:2] = 0.25
    assert compare("x", before, after, 0.5).p999_difference == 0.25
    after.flat[1] = 0
    assert compare("x", before, after, 0.5).p999_difference == 0


def test_the_picture_shows_the_worst_tile_beside_its_answers() -> None:
    spec = make_spec()
    rng = np.random.default_rng(0)
    tiles = rng.random((2, 1, *spec.tile), np.float32)
    after = tiles.copy()
    after[1, 0, 3, 5, 6] = np.nan
    found = compare("x", tiles, after, 0.5)
    grey = imagecodecs.png_decode(picture(found, tiles, tiles, after, spec))
    height, width = spec.tile[1:]
    assert grey.shape == (height, 4 * width + 6)
    difference = grey[:, -width:]
    assert np.argwhere(difference == 255).tolist() == [[5, 6]]
