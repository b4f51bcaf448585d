"""Whoever works on it, and however often it was stopped: every unit once."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._shares import chapters, undone, worker_shares

extents = st.tuples(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
starts = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
grains = st.tuples(st.integers(1, 12), st.integers(4, 8), st.integers(4, 8))


def box_of(start: tuple[int, ...], extent: tuple[int, ...]) -> Box:
    stop = tuple(a + n for a, n in zip(start, extent, strict=True))
    return Box(start, stop)  # type: ignore[arg-type]


def planes_of(boxes: list[Box]) -> list[int]:
    return [z for box in boxes for z in range(box.start[0], box.stop[0])]


@given(starts, extents, grains, st.integers(1, 6))
def test_workers_share_out_every_layer_of_units_once(start, extent, grain, n):
    roi = box_of(start, extent)
    rows = -(-extent[0] // grain[0])
    if n > rows > 0 and n > 1:
        with pytest.raises(SettingsError, match=f"at most {rows}"):
            worker_shares([roi], roi, grain, (1, n))
        return
    shares = [worker_shares([roi], roi, grain, (i, n)) for i in range(1, n + 1)]
    assert sorted(planes_of([box for share in shares for box in share])) == planes_of(
        [roi]
    )
    for share in shares:
        (box,) = share
        assert (box.start[0] - roi.start[0]) % grain[0] == 0
        assert box.start[1:] == roi.start[1:]
        assert box.stop[1:] == roi.stop[1:]


@given(starts, extents, grains, st.data())
def test_what_is_undone_holds_every_unit_that_is_not_done(start, extent, grain, data):
    roi = box_of(start, extent)
    units = list(Box.whole(extent).grid(grain))
    done = data.draw(st.frozensets(st.sampled_from([unit.start for unit in units])))
    parts = undone(roi, roi, grain, done)
    planes = planes_of(parts)
    assert len(planes) == len(set(planes))
    for unit in units:
        layer = [u for u in units if u.start[0] == unit.start[0]]
        todo = any(u.start not in done for u in layer)
        for z in range(unit.start[0], unit.stop[0]):
            assert (z + start[0] in planes) == todo
    # What lies together is run together.
    for one, two in pairwise(parts):
        assert one.stop[0] < two.start[0]


@given(starts, extents, grains, st.integers(-5, 60))
def test_chapters_are_whole_layers_and_miss_nothing(start, extent, grain, planes):
    roi = box_of(start, extent)
    boxes = chapters(roi, grain, planes)
    assert planes_of(boxes) == planes_of([roi])
    for box in boxes:
        assert box.shape[0] <= max(planes, grain[0])
        assert (box.start[0] - roi.start[0]) % grain[0] == 0
