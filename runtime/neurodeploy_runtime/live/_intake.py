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
    overrun
        Makes the error of a plane that found no room, from that plane's index.
    """

    def __init__(
        self,
        ring: PlaneRing,
        axis: Axis,
        settings: LiveSettings,
        tally: Tally,
        overrun: Callable[[int], OverrunError],
    ) -> None:
        self._ring = ring
        self._axis = axis
        self._settings = settings
        self._tally = tally
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
        taken = 0
        whole = True
        while taken < len(stack):
            left = len(stack) - taken
            if self.next < self._useless_until:
                n = min(left, self._useless_until - self.next)
                whole = False
                self._absent(n, "dropped")
                taken += n
                continue
            if self._dropping and self._ring.room < self._axis.layer_planes:
                self._useless_until = self._after_tile(self.next)
                continue
            self._dropping = False
            policy = self._settings.when_full
            wait_s = max(0.0, deadline - time.monotonic()) if policy == "block" else 0
            views = self._ring.room_views(left, wait_s)
            for view in views:
                np.copyto(view, stack[taken : taken + len(view)])
                self._tally.arrived(self.next, len(view))
                self.next += len(view)
                taken += len(view)
                self._ring.bring(len(view))
            if not views and policy == "drop":
                self._dropping = True
                self._useless_until = self._after_tile(self.next)
            elif not views:
                error = self._overrun(self.next)
                error.accepted = taken
                raise error
        return whole

    def _after_tile(self, z: int) -> int:
        """The first plane behind z with which a tile begins that does not read z."""
        axis = self._axis
        layer = (z + axis.margin) // axis.stride + 1
        return layer * axis.stride - axis.margin

    def _absent(self, planes: int, why: Literal["missing", "dropped"]) -> None:
        self._tally.absent(self.next, planes, why)
        self.next += planes
        self._ring.skip(planes)
