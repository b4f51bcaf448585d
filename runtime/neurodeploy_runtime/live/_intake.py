"""The way in of a live segmentation: planes in order, and what a full ring means."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import OverrunError, SettingsError, StreamError
from neurodeploy_runtime._plan import Axis
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime.live._buffers import UNKNOWN_DEPTH
from neurodeploy_runtime.live._right_of_way import RightOfWay
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._tally import Tally


class Intake:
    """Copies the planes of one stack into the ring; one thread at a time.

    Parameters
    ----------
    ring
        Takes the planes; its planes' shape and dtype are those that are taken.
    axis
        The tiles along z: with ``when_full="drop"`` whole ones are left out.
    way
        Taken while a plane is copied.
    overrun
        Makes the error of a plane that found no room, from that plane's index.
    """

    def __init__(
        self,
        ring: PlaneRing,
        axis: Axis,
        settings: LiveSettings,
        tally: Tally,
        way: RightOfWay,
        overrun: Callable[[int], OverrunError],
    ) -> None:
        self._ring = ring
        self._axis = axis
        self._settings = settings
        self._tally = tally
        self._way = way
        self._overrun = overrun
        #: Index of the plane that is expected.
        self.next = 0
        #: Planes before this one are dropped: the tiles that read them lack others.
        self._useless_until = 0
        self._dropping = False

    def checked(self, planes: NDArray[Any]) -> NDArray[Any]:
        """A plane or stack of this stream, as a stack (n, y, x).

        Raises
        ------
        SettingsError
            It is of another shape or dtype.
        """
        planes = np.asarray(planes)
        shape, dtype = self._ring.plane_shape, self._ring.dtype
        stack = planes[None] if planes.ndim == 2 else planes
        if stack.ndim != 3 or stack.shape[1:] != shape:
            raise SettingsError(
                f"a plane of shape {planes.shape} does not belong to this stream of "
                f"{shape}: it was not taken"
            )
        if planes.dtype.newbyteorder("=") != dtype:
            raise SettingsError(
                f"a plane of {planes.dtype.name} does not belong to this stream of "
                f"{dtype.name}: it was not taken"
            )
        return stack

    def place(self, z: int | None, planes: int) -> None:
        """Take note of what is missing before plane z; None: nothing is.

        Raises
        ------
        StreamError
            The plane comes out of order, or too far ahead to be believed.
        """
        if z is None or (z := operator.index(z)) == self.next:
            return
        if z < self.next:
            raise StreamError(
                f"plane {z} comes after plane {self.next - 1}: planes come in order, "
                "each once; it was not taken"
            )
        gap = z - self.next
        if gap > self._settings.limit_gap:
            raise StreamError(
                f"plane {z} comes after plane {self.next - 1}: {gap} planes in a row "
                f"are not missed, the limit is {self._settings.limit_gap}; it was not "
                "taken"
            )
        if z + planes > UNKNOWN_DEPTH:
            raise StreamError(f"plane {z} lies deeper than any stack")
        self._absent(gap, "missing")

    def bring(self, stack: NDArray[Any], deadline: float) -> bool:
        """Copy planes in, as the policy says; whether all were taken.

        Raises
        ------
        OverrunError
            There was no room until `deadline` (of ``time.monotonic``).
        """
        taken = dropped = 0
        while taken + dropped < len(stack):
            done = taken + dropped
            try:
                views, absent = self.claim(len(stack) - done, deadline)
            except OverrunError as error:
                error.accepted = done
                raise
            dropped += absent
            for view in views:
                done = taken + dropped
                # One at a time: of a long stack, too, others get their turn.
                mine = stack[done : done + len(view)]
                for place, plane in zip(view, mine, strict=True):
                    with self._way.taken():
                        np.copyto(place, plane)
                self.take(len(view))
                taken += len(view)
        return not dropped

    def claim(self, most: int, deadline: float) -> tuple[list[NDArray[Any]], int]:
        """Where the next planes are to be written, at most `most` of them.

        One or two arrays (n, y, x) of the ring, to be written and then taken; or none,
        and how many planes were dropped instead.

        Raises
        ------
        OverrunError
            There was no room until `deadline` (of ``time.monotonic``).
        """
        policy = self._settings.when_full
        if self._dropping and self.next >= self._useless_until:
            if self._ring.room < self._axis.layer_planes:
                self._useless_until = self._after_tile(self.next)
            else:
                self._dropping = False
        if self.next >= self._useless_until:
            wait_s = max(0.0, deadline - time.monotonic()) if policy == "block" else 0
            if views := self._ring.room_views(most, wait_s):
                return views, 0
            if policy != "drop":
                raise self._overrun(self.next)
            self._dropping = True
            self._useless_until = self._after_tile(self.next)
        dropped = min(most, self._useless_until - self.next)
        self._absent(dropped, "dropped")
        return [], dropped

    def take(self, planes: int) -> None:
        """So many planes have been written where :meth:`claim` said."""
        self._tally.arrived(self.next, planes)
        self.next += planes
        self._ring.bring(planes)

    def _after_tile(self, z: int) -> int:
        """The first plane behind z with which a tile begins that does not read z."""
        axis = self._axis
        layer = (z + axis.margin) // axis.stride + 1
        return layer * axis.stride - axis.margin

    def _absent(self, planes: int, why: Literal["missing", "dropped"]) -> None:
        self._tally.absent(self.next, planes, why)
        self.next += planes
        self._ring.skip(planes)
