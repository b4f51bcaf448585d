"""A thread that brings the planes of a source into a ring."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from neurodeploy_runtime._clock import Clock
from neurodeploy_runtime._errors import CancelledError
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._memory import ring_depth
from neurodeploy_runtime._patience import read_patiently
from neurodeploy_runtime._plan import TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._projections import Projections
from neurodeploy_runtime.volumes import Source

#: Planes are read together up to this size, so that threads can decode side by side.
READ_BYTES = 64_000_000


def ring_of(plan: TilePlan, region: Box, dtype: np.dtype[Any]) -> PlaneRing:
    """A ring for the planes that a region needs, from the first one on."""
    (y0, y1), (x0, x1) = plan.layer(region).reads
    first, _ = plan.planes_read(region.start[0], region.stop[0])
    return PlaneRing(ring_depth(plan, region), (y1 - y0, x1 - x0), dtype, first)


def planes_at_once(plan: TilePlan, region: Box, dtype: np.dtype[Any]) -> int:
    """How many planes of a region are read together, at most."""
    (y0, y1), (x0, x1) = plan.layer(region).reads
    return max(1, READ_BYTES // ((y1 - y0) * (x1 - x0) * dtype.itemsize))


class PlaneReader:
    """Reads what a region needs, in plane order, each plane once."""

    def __init__(
        self,
        source: Source,
        plan: TilePlan,
        region: Box,
        ring: PlaneRing,
        *,
        projections: Projections | None,
        clock: Clock,
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._source = source
        self._ring = ring
        self._projections = projections
        self._clock = clock
        self._on_error = on_error
        z0, z1 = plan.planes_read(region.start[0], region.stop[0])
        self.start_plane, self._stop_plane = z0, z1
        self._spans = plan.layer(region).reads
        self._most = planes_at_once(plan, region, source.dtype)
        self._thread = threading.Thread(target=self._run, name="read", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the end of the thread, where it was started."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._read_all()
            self._ring.end()
        except CancelledError:
            pass
        except BaseException as error:
            self._on_error(error)

    def _read_all(self) -> None:
        (y0, y1), (x0, x1) = self._spans
        z = self.start_plane
        while z < self._stop_plane:
            views = self._ring.room_views(min(self._most, self._stop_plane - z))
            for view in views:
                box = Box((z, y0, x0), (z + len(view), y1, x1))
                with self._clock.stage("read"):
                    read_patiently(self._source, box, view)
                if self._projections is not None:
                    with self._clock.stage("picture"):
                        for i, plane in enumerate(view):
                            self._projections.add(z + i, y0, x0, plane)
                self._ring.bring(len(view))
                z += len(view)
