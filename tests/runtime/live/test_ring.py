"""The ring of planes, with planes that never come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neurodeploy_runtime import StreamError
from neurodeploy_runtime._planes import PlaneRing


def plane(z: int) -> np.ndarray:
    return np.full((1, 2), z, np.uint16)


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=30),
)
def test_the_ring_gives_back_each_plane_under_its_own_index(depth, runs):
    ring = PlaneRing(depth, (1, 2), np.dtype(np.uint16))
    held: list[int] = []
    came: set[int] = set()
    for n, missing in runs:
        start = ring.arrived
        if missing:
            ring.skip(n)
        else:
            for _ in range(n):
                if ring.room == 0:
                    ring.release(held[0] + 1)
                    held = [z for z in held if z > held[0]]
                (view,) = ring.room_views(1, 0)
                view[:] = plane(ring.arrived)
                held.append(ring.arrived)
                came.add(ring.arrived)
                ring.bring(1)
        assert ring.arrived == start + n
        assert ring.room == depth - len(held)
        for z in held:
            (view,) = ring.views(z, z + 1)
            assert (view == z).all()
            assert ring.whole(z, z + 1)
        for z in range(ring.released, ring.arrived):
            assert ring.whole(z, z + 1) == (z in came)


def test_planes_across_a_gap_are_not_given_as_neighbours():
    ring = PlaneRing(4, (1, 2), np.dtype(np.uint16))
    ring.room_views(1)[0][:] = plane(0)
    ring.bring(1)
    ring.skip(1000)
    ring.room_views(1)[0][:] = plane(1001)
    ring.bring(1)
    assert not ring.whole(0, 1002)
    with pytest.raises(StreamError, match="0:1002 did not all come"):
        ring.views(0, 1002)


def test_the_newest_plane_is_the_last_that_came():
    ring = PlaneRing(4, (4, 4), np.dtype(np.uint16))
    assert ring.copy_newest(1) is None
    ring.room_views(1)[0][:] = 7
    ring.bring(1)
    ring.skip(3)
    z, pixels = ring.copy_newest(2)
    assert z == 0
    assert pixels.shape == (2, 2)
    assert (pixels == 7).all()
    ring.release(4)
    assert ring.copy_newest(1) is None


def test_a_ring_can_serve_another_stack():
    ring = PlaneRing(2, (1, 2), np.dtype(np.uint16))
    ring.skip(5)
    ring.end()
    ring.fail(StreamError("over"))
    ring.reset()
    assert (ring.arrived, ring.released, ring.room) == (0, 0, 2)
    ring.room_views(1, 0)[0][:] = plane(0)
    ring.bring(1)
    assert ring.whole(0, 1)
