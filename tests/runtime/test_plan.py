"""Promises of the tile grid and its weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import Axis, Box, ModelSpec, SettingsError, TilePlan


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    window = draw(st.integers(1, 24))
    return Axis(window, draw(st.integers(0, 4)), draw(st.integers(0, window // 2)))


@given(axes(), st.integers(1, 200))
def test_windows_cover_every_voxel_and_their_weights_sum_to_exactly_one(
    axis: Axis, extent: int
) -> None:
    count = axis.count(extent)
    total = np.zeros(extent + axis.window, np.float32)
    for k in range(count):
        start = k * axis.stride
        total[start : start + axis.window] += axis.weights(
            first=k == 0, last=k == count - 1
        )
    assert (total[:extent] == 1).all()


@given(axes(), st.integers(1, 200), st.data())
def test_the_tiles_that_meet_a_span_are_those_whose_windows_do(
    axis: Axis, extent: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, extent - 1))
    stop = data.draw(st.integers(start + 1, extent))
    expected = [
        k
        for k in range(axis.count(extent))
        if k * axis.stride < stop and k * axis.stride + axis.window > start
    ]
    assert list(axis.meeting(start, stop, extent)) == expected


@given(axes(), st.integers(1, 100))
def test_no_voxel_lies_in_more_than_two_windows(axis: Axis, extent: int) -> None:
    count = axis.count(extent)
    covered = np.zeros(extent + axis.window, int)
    for k in range(count):
        covered[k * axis.stride : k * axis.stride + axis.window] += 1
    assert covered[:extent].max() <= 2


@given(axes(), st.integers(1, 100))
def test_a_growing_volume_never_moves_tiles(axis: Axis, extent: int) -> None:
    assert axis.count(extent + 1) in (axis.count(extent), axis.count(extent) + 1)


@given(axes(), st.integers(1, 60))
def test_what_sticks_out_mirrors_what_the_tile_reads(axis: Axis, extent: int) -> None:
    for k in range(axis.count(extent)):
        low, high = axis.reads(k, extent)
        index = axis.mirrored(k, extent)
        start = k * axis.stride - axis.margin
        if index is None:
            assert (low, high) == (start, start + axis.tile)
            continue
        assert len(index) == axis.tile
        mirrored = np.pad(
            np.arange(low, high), (low - start, start + axis.tile - high), "reflect"
        )
        assert (index + low == mirrored).all()


def test_an_overlap_of_more_than_half_a_window_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"0 to 0\.5"):
        Axis(10, 0, 6)


def test_redundancy_counts_every_voxel_that_passes_through_the_network() -> None:
    plan = TilePlan((10, 10, 10), (Axis(4, 0, 1), Axis(10, 0, 0), Axis(10, 1, 0)))
    assert plan.counts == (3, 1, 1)
    assert plan.redundancy == pytest.approx(3 * 4 * 10 * 12 / 1000)


def test_tiles_in_a_region_are_counted_without_the_rest() -> None:
    plan = TilePlan((16, 16, 16), (Axis(4, 0, 0),) * 3)
    assert plan.tiles_in(Box((4, 0, 0), (8, 5, 4))) == 1 * 2 * 1


@given(
    st.tuples(*[st.integers(1, 33)] * 3),
    st.floats(0, 0.5),
)
def test_any_overlap_up_to_a_half_fits_any_window(
    window: tuple[int, int, int], overlap: float
) -> None:
    spec = ModelSpec("any", "volume", window, window, (0.5, 0.5, 0.5), 0.5)
    for asked in (None, overlap):
        plan = TilePlan.of(spec, (40, 50, 60), asked)
        assert all(2 * axis.overlap <= axis.window for axis in plan.axes)
