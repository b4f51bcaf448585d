"""Segmentation of planes while they arrive."""

from __future__ import annotations

import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from math import prod
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import (
    CancelledError,
    EngineError,
    MemoryCapError,
    NeurodeployError,
    OverrunError,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._plan import Axis, TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._rss import machine_memory
from neurodeploy_runtime._stream import RegionStream, StreamBuffers
from neurodeploy_runtime.engines import Engine, choose_engine, open_engines
from neurodeploy_runtime.live._delivery import Delivery
from neurodeploy_runtime.live._latency import Latencies
from neurodeploy_runtime.live._outlet import Outlet
from neurodeploy_runtime.live._pool import PlanePool
from neurodeploy_runtime.live._priority import step_back
from neurodeploy_runtime.live._projection import GrowingProjections
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._values import Gap, LivePlane, LiveStatus, State
from neurodeploy_runtime.volumes._base import DTYPES

#: How deep a stack may become: 2 ** 40 planes are a plane a millisecond for 34 years.
UNKNOWN_DEPTH = 1 << 40
KEPT_GAPS = 256
#: How long closing waits for a tile that is being computed, or a callback.
CLOSE_S = 60.0


class LiveSegmenter:
    """Segments the planes of a stack while a microscope brings them.

    When the constructor returns, the engine is built and warm and every buffer is
    allocated and touched; from then on memory does not grow. The result is, bit for
    bit, what `Segmenter` gives for the finished stack with the same normalisation::

        with LiveSegmenter(bundle, (2048, 2048), "uint16", on_plane=save) as live:
            for plane in camera:
                live.push(plane)
            live.finish()
            live.flush(timeout_s=600)

    Each finished plane goes, in order, to exactly one place: to its :meth:`future`
    where one was asked for; else to `on_plane`, where that was given; else to whoever
    iterates :meth:`planes`. That way loses nothing: a reader that is slow fills
    `outlet_planes`, then the ring, and then `when_full` says what a push does.
    :meth:`preview` only looks at the latest plane and holds up nobody.

    A plane's result is due when the tiles that hold it are complete: with tiles of
    `window` planes, every `stride` planes, that is 1 to `window` planes later, and at
    the latest after :meth:`finish`.

    **Planes that are not there.** A missing plane (a gap in the indices) and a dropped
    one are reported, and nothing is shifted: every plane keeps its index. Tiles that
    read an absent plane are not run. Planes in which such a tile has a share come out
    with ``valid=False``; all others are, bit for bit, what they would be with nothing
    absent. With ``when_full="drop"`` whole tiles are left out: once a plane has found
    no room, planes are dropped until a tile begins for which there is room.

    ::

                      finish()              last plane
        streaming ---------------> finishing ---------> done ---again()--> streaming
            |                          |                  |
            +------- an error ---------+--> failed        |
            |                          |       |          |
            +--------------------------+-------+----------+----close()---> closed

    Every method may be called from any thread.

    Parameters
    ----------
    bundle
        As :func:`load_bundle` gives it; None: the one that ships.
    plane_shape
        (y, x) of every plane.
    dtype
        uint8, uint16, int16 or float32.
    engines
        Engines to use instead of opening one (they are the caller's to close).
    on_plane
        Called with each finished plane, from one thread of its own. An exception from
        it ends the stream.

    Raises
    ------
    SettingsError, MemoryCapError, DeviceError
        The request cannot be served here; nothing was started.

    Examples
    --------
    >>> from neurodeploy_runtime.live import LiveSegmenter
    >>> with LiveSegmenter(None, (512, 512), "uint16") as live:  # doctest: +SKIP
    ...     live.push(camera.snap())
    ...     live.finish()
    ...     masks = [plane.voxels for plane in live.planes()]
    """

    def __init__(
        self,
        bundle: Bundle | None,
        plane_shape: tuple[int, int],
        dtype: DTypeLike,
        settings: LiveSettings | None = None,
        *,
        engines: list[Engine] | None = None,
        on_plane: Callable[[LivePlane], object] | None = None,
    ) -> None:
        self.bundle = bundle or load_bundle()
        self.settings = settings = settings or LiveSettings()
        self.dtype = np.dtype(dtype).newbyteorder("=")
        if self.dtype not in DTYPES:
            raise SettingsError(
                f"planes of {self.dtype.name} cannot be segmented: use "
                f"{', '.join(d.name for d in DTYPES)}"
            )
        height, width = (operator.index(n) for n in plane_shape)
        if min(height, width) < 1:
            raise SettingsError(f"a plane of {height} × {width} pixels holds nothing")
        self.plane_shape = (height, width)
        spec = self.bundle.spec
        shape = (UNKNOWN_DEPTH, height, width)
        self._plan = TilePlan.of(spec, shape, settings.overlap)
        self._region = Box.whole(shape)
        self._z_axis = self._plan.axes[0]
        self._threshold = settings.threshold or spec.threshold
        self.ring_planes = self._ring_planes()
        self.outlet_planes = settings.outlet_planes or self._z_axis.window
        self._owned: list[Engine] = []
        #: Why no better engine was chosen.
        self.passed_over: tuple[str, ...] = ()
        if engines is None:
            choice = choose_engine(self.bundle, settings.engine)
            engines = self._owned = open_engines(self.bundle, [choice])
            self.passed_over = (*choice.passed_over, *engines[0].notes)
        self.engines = engines
        self._on_plane = on_plane
        try:
            self.buffer_bytes = self._checked_bytes()
            self._ring = PlaneRing(self.ring_planes, self.plane_shape, self.dtype)
            self._buffers = StreamBuffers.of(self._plan, self._region, engines)
            if len(engines) == 1 and engines[0].resident:
                self._buffers.warm_up(engines[0], self.dtype)
            self._pool = PlanePool(self.outlet_planes + 2, self.plane_shape)
        except BaseException:
            self._close_engines()
            raise
        self._outlet = Outlet(self.outlet_planes)
        self._pushing = threading.Lock()
        self._lock = threading.Lock()
        self._closed = False
        self._projection: GrowingProjections | None = None
        self._begin()

    # -- bringing planes -------------------------------------------------------

    def push(
        self,
        planes: NDArray[Any],
        z: int | None = None,
        timeout_s: float | None = None,
    ) -> bool:
        """Copy a plane (y, x), or a stack (n, y, x), into the ring, and return.

        Parameters
        ----------
        z
            Index of the (first) plane; None: the one after the last. A larger one
            says that planes are missing.
        timeout_s
            How long it may wait for room, at most; None: what the settings say.

        Returns
        -------
        bool
            Whether all were taken; False where ``when_full="drop"`` left some out.

        Raises
        ------
        SettingsError
            The plane is of another shape or dtype. The stream lives on.
        StreamError
            The plane comes out of order (the stream lives on); or after `finish` or
            `close`.
        OverrunError
            There was no room. With ``block`` the stream lives on and the planes from
            `accepted` on may be pushed again; with ``fail`` it has ended.
        NeurodeployError
            What the stream failed of, in this or another thread.
        """
        stack = self._checked(planes)
        wait_s = self.settings.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + wait_s
        if not self._pushing.acquire(timeout=max(0.0, wait_s)):
            raise OverrunError(
                f"another thread has been pushing for {wait_s:g} s: push from one "
                "thread, or wait longer"
            )
        try:
            self._check_open()
            self._place(z, len(stack))
            return self._bring(stack, deadline)
        finally:
            self._pushing.release()

    def ready_for(self, planes: int) -> bool:
        """Whether so many planes can be pushed now without waiting; never waits."""
        return self.state == "streaming" and self._ring.room >= planes

    def finish(self) -> None:
        """Say that the stack is complete; returns at once.

        What is still to come is finished; :meth:`flush` waits for it, and the iterator
        ends after it. May be called twice.
        """
        with self._pushing:
            if self._closed:
                raise StreamError("the live segmenter is closed: open another")
            self._raise_error()
            self._finishing = True
            self._ring.end()

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until every plane that is due is finished, and `on_plane` has had it.

        Before :meth:`finish` a plane is due when all its tiles are complete; after it,
        every plane is.

        Raises
        ------
        StreamError
            `timeout_s` passed; the text says what was waited for.
        NeurodeployError
            What the stream failed of.
        """
        deadline = time.monotonic() + timeout_s
        due = self._due()
        passed = self._outlet.wait_passed(due, timeout_s)
        if passed and self._delivery is not None:
            left = max(0.0, deadline - time.monotonic())
            passed = self._delivery.wait(due, left)
        self._raise_error()
        if passed and self._finishing:
            # The state says done as soon as whoever waited for it goes on.
            self._worker.join(max(0.0, deadline - time.monotonic()))
        if passed:
            return
        waiting = self._outlet.waiting
        text = (
            f"{due - self._outlet.passed} planes were not finished in {timeout_s:g} s"
        )
        if waiting >= self.outlet_planes:
            text = (
                f"{waiting} finished planes wait and nobody takes them: read planes() "
                "in another thread, or give on_plane"
            )
        raise StreamError(text)

    # -- taking results --------------------------------------------------------

    def planes(self) -> Iterator[LivePlane]:
        """The finished planes, in order, until the last one after :meth:`finish`.

        Raises, after what was finished before it, what the stream failed of. One
        reader at a time; not together with `on_plane`.
        """
        if self._on_plane is not None:
            raise StreamError("the planes go to on_plane: leave it out to iterate")
        outlet = self._outlet
        while (plane := outlet.get()) is not None:
            yield plane

    def future(self, z: int) -> Future[LivePlane]:
        """A future of plane z, to be asked for before that plane is finished."""
        return self._outlet.future(operator.index(z))

    def preview(self, newer_than: int = -1, timeout_s: float = 0.0) -> LivePlane | None:
        """The latest valid finished plane behind `newer_than`; None where none comes.

        It takes nothing from any other reader, and skips what nobody looked at.
        """
        return self._outlet.latest(newer_than, timeout_s)

    def preview_image(self, longest: int = 512) -> tuple[int, NDArray[Any]] | None:
        """The latest raw plane, every so many pixels that no side exceeds `longest`.

        None where no plane is held. Costs a push nothing, but for the time of copying
        these few pixels.
        """
        return self._ring.copy_newest(max(1, -(-max(self.plane_shape) // longest)))

    def preview_projection(self, longest: int = 512) -> NDArray[np.uint8]:
        """The maximum along z of all finished planes since it was first asked for.

        Pooled so that no side exceeds what the first call said.
        """
        with self._lock:
            projection = self._projection
            if projection is None:
                projection = GrowingProjections(
                    self.plane_shape, np.dtype(np.uint8), longest
                )
                self._projection = projection
        return projection.along_z()

    # -- how it stands ---------------------------------------------------------

    @property
    def state(self) -> State:
        """See the diagram of the class."""
        with self._lock:
            if self._closed:
                return "closed"
            if self._error is not None:
                return "failed"
            if self._is_done:
                return "done"
            return "finishing" if self._finishing else "streaming"

    @property
    def lag_planes(self) -> tuple[int, int]:
        """Least and most planes that must come after a plane before its result is due.

        With windows of 64 planes, an overlap of 16 and no margin, that is (17, 64).
        """
        extra = max(self._z_axis.margin, 1)
        return self._z_axis.overlap + extra, self._z_axis.window - 1 + extra

    @property
    def status(self) -> LiveStatus:
        """How it stands now; a snapshot."""
        state = self.state
        arrived, released = self._ring.arrived, self._ring.released
        room = self._ring.room
        with self._lock:
            finished = self._done + self._lost
            p50, p95, p99 = self._latencies.quantiles((0.5, 0.95, 0.99))
            seconds = self._last_finished - self._first_push
            voxels = self._done * prod(self.plane_shape)
            cut = min(max(released, finished), arrived)
            return LiveStatus(
                state=state,
                pushed=arrived,
                queued=arrived - cut,
                in_flight=max(0, cut - finished),
                done=self._done,
                lost=self._lost,
                missing=self._missing,
                dropped=self._dropped,
                waiting=self._outlet.waiting,
                room_planes=room,
                latency_p50_s=p50,
                latency_p95_s=p95,
                latency_p99_s=p99,
                latency_max_s=self._latencies.max,
                lag_planes=max(0, arrived - finished),
                mvoxel_per_s=voxels / seconds / 1e6 if seconds > 0 else 0.0,
                buffer_bytes=self.buffer_bytes,
                normalisation=self._normalisation,
                gaps=tuple(self._gaps),
            )

    @property
    def stage_seconds(self) -> dict[str, float]:
        """Seconds spent in each stage, in all; stages overlap."""
        return self._stream.clock.seconds

    # -- ending ----------------------------------------------------------------

    def again(self) -> None:
        """Begin another stack, in the same memory, with the same engine.

        Raises
        ------
        StreamError
            The stack before is not done yet.
        """
        state = self.state
        if state not in ("done", "failed"):
            raise StreamError(f"a {state} stack cannot be followed by another one")
        self._worker.join(CLOSE_S)
        if self._delivery is not None and not self._delivery.join(CLOSE_S):
            raise StreamError(f"on_plane has not returned for {CLOSE_S:g} s")
        with self._pushing:
            self._ring.reset()
            self._outlet.reset()
            self._begin()

    def close(self) -> None:
        """Stop, and give back the engine; what is not finished is lost.

        Works in every state, and twice.

        Raises
        ------
        StreamError
            A tile or `on_plane` has not come back for a minute; it is left behind.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        error = CancelledError("the live segmenter was closed")
        self._outlet.fail(error)
        self._stream.stop(error)
        self._worker.join(CLOSE_S)
        left = ["a tile"] if self._worker.is_alive() else []
        if self._delivery is not None and not self._delivery.join(CLOSE_S):
            left.append("on_plane")
        if left:
            raise StreamError(
                f"{' and '.join(left)} has not come back for {CLOSE_S:g} s: the engine "
                "is not given back"
            )
        self._close_engines()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- within ----------------------------------------------------------------

    def _ring_planes(self) -> int:
        axis = self._z_axis
        # One more where only it tells whether another layer follows.
        least = axis.tile + (axis.margin == 0)
        asked = self.settings.ring_planes
        learn = 0 if self.settings.normalisation else self.settings.learn_planes
        if asked is None:
            return max(least + 2 * axis.stride, 2 * least, learn, 16)
        if asked < max(least, learn):
            raise SettingsError(
                f"a ring of {asked} planes is too small: tiles of this model need "
                f"{least}, learning the normalisation {learn}"
            )
        return asked

    def _checked_bytes(self) -> int:
        need = buffer_bytes(
            self._plan, self.dtype, self.ring_planes, self.outlet_planes, self.engines
        )
        cap = self.settings.memory_bytes or (machine_memory() or 8 * 10**9) // 2
        if need > cap:
            plane = prod(self.plane_shape)
            raw = self.ring_planes * plane * self.dtype.itemsize
            raise MemoryCapError(
                f"live buffers for planes of {self.plane_shape[0]} × "
                f"{self.plane_shape[1]} take {need / 1e9:.2f} GB and may take "
                f"{cap / 1e9:.2f}: {self.ring_planes} planes in the ring are "
                f"{raw / 1e9:.2f} GB, {self.outlet_planes} results "
                f"{self.outlet_planes * plane / 1e9:.2f}; use fewer, or allow more "
                "memory"
            )
        return need

    def _begin(self) -> None:
        self._error: BaseException | None = None
        self._finishing = False
        self._is_done = False
        self._next = 0
        #: Planes before this one are dropped: the tiles that read them lack others.
        self._useless_until = 0
        self._dropping = False
        self._arrival: dict[int, float] = {}
        self._gaps: deque[Gap] = deque(maxlen=KEPT_GAPS)
        self._missing = self._dropped = self._done = self._lost = 0
        self._latencies = Latencies()
        self._projection = None
        self._first_push = self._last_finished = 0.0
        self._normalisation = self.settings.normalisation
        self._stream = RegionStream(
            self._plan,
            self._region,
            self._ring,
            self.engines,
            self._normalisation or self._learn,
            self._finish_plane,
            dtype=self.dtype,
            depth=None,
            flips=self.settings.flips,
            lost=self._lose_plane,
            buffers=self._buffers,
        )
        self._worker = threading.Thread(target=self._work, name="live", daemon=True)
        self._worker.start()
        self._delivery = (
            None
            if self._on_plane is None
            else Delivery(self._outlet, self._on_plane, self._fail)
        )

    def _work(self) -> None:
        step_back(self.settings.niceness)
        try:
            self._stream.run()
        except NeurodeployError as error:
            self._fail(error)
        except BaseException as error:
            failed = EngineError(f"the stream failed: {type(error).__name__}: {error}")
            failed.__cause__ = error
            self._fail(failed)
        else:
            with self._lock:
                self._is_done = True
            self._outlet.end()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            error = self._error
        self._stream.stop(error)
        self._outlet.fail(error)

    def _raise_error(self) -> None:
        if self._error is not None:
            # The same object is raised many times: its traceback must not grow.
            raise self._error.with_traceback(None)

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the live segmenter is closed: open another")
        self._raise_error()
        if self._finishing:
            raise StreamError("the stack is finished: call again() to begin another")

    def _close_engines(self) -> None:
        for engine in self._owned:
            engine.close()
        self._owned = []

    # -- within: planes --------------------------------------------------------

    def _checked(self, planes: NDArray[Any]) -> NDArray[Any]:
        planes = np.asarray(planes)
        stack = planes[None] if planes.ndim == 2 else planes
        if stack.ndim != 3 or stack.shape[1:] != self.plane_shape:
            raise SettingsError(
                f"a plane of shape {planes.shape} does not belong to this stream of "
                f"{self.plane_shape}: it was not taken"
            )
        if planes.dtype.newbyteorder("=") != self.dtype:
            raise SettingsError(
                f"a plane of {planes.dtype.name} does not belong to this stream of "
                f"{self.dtype.name}: it was not taken"
            )
        return stack

    def _place(self, z: int | None, planes: int) -> None:
        """Take note of what is missing before plane z."""
        if z is None or (z := operator.index(z)) == self._next:
            return
        if z < self._next:
            raise StreamError(
                f"plane {z} comes after plane {self._next - 1}: planes come in order, "
                "each once; it was not taken"
            )
        gap = z - self._next
        if gap > self.settings.limit_gap:
            raise StreamError(
                f"plane {z} comes after plane {self._next - 1}: {gap} planes in a row "
                f"are not missed, the limit is {self.settings.limit_gap}; it was not "
                "taken"
            )
        self._absent(gap, "missing")
        if z + planes > UNKNOWN_DEPTH:
            raise StreamError(f"plane {z} lies deeper than any stack")

    def _bring(self, stack: NDArray[Any], deadline: float) -> bool:
        taken = 0
        whole = True
        while taken < len(stack):
            left = len(stack) - taken
            if self._next < self._useless_until:
                n = min(left, self._useless_until - self._next)
                whole = False
                self._absent(n, "dropped")
                taken += n
                continue
            if self._dropping and self._ring.room < self._tile_planes:
                self._useless_until = self._after_tile(self._next)
                continue
            self._dropping = False
            policy = self.settings.when_full
            wait_s = max(0.0, deadline - time.monotonic()) if policy == "block" else 0
            views = self._ring.room_views(left, wait_s)
            for view in views:
                np.copyto(view, stack[taken : taken + len(view)])
                now = time.perf_counter()
                with self._lock:
                    if self._first_push == 0:
                        self._first_push = now
                    for z in range(self._next, self._next + len(view)):
                        self._arrival[z] = now
                self._next += len(view)
                taken += len(view)
                self._ring.bring(len(view))
            if not views and policy == "drop":
                self._dropping = True
                self._useless_until = self._after_tile(self._next)
            elif not views:
                self._overrun(taken)
        return whole

    @property
    def _tile_planes(self) -> int:
        return self._z_axis.tile + (self._z_axis.margin == 0)

    def _after_tile(self, z: int) -> int:
        """The first plane behind z with which a tile begins that does not read z."""
        axis = self._z_axis
        layer = (z + axis.margin) // axis.stride + 1
        return layer * axis.stride - axis.margin

    def _absent(self, planes: int, why: Literal["missing", "dropped"]) -> None:
        start, stop = self._next, self._next + planes
        with self._lock:
            if why == "missing":
                self._missing += planes
            else:
                self._dropped += planes
            last = self._gaps[-1] if self._gaps else None
            if last is not None and (last.stop, last.why) == (start, why):
                self._gaps[-1] = Gap(last.start, stop, last.why)
            else:
                self._gaps.append(Gap(start, stop, why))
        self._next = stop
        self._ring.skip(planes)

    def _overrun(self, taken: int) -> None:
        status = self.status
        rate = status.mvoxel_per_s * 1e6 / prod(self.plane_shape)
        text = f"plane {self._next} found no room: {self.ring_planes} planes are held"
        if status.waiting >= self.outlet_planes:
            text += f" and {status.waiting} finished ones wait for their reader"
        elif rate > 0:
            text += f", and {rate:.3g} planes/s are being finished"
        text += ": take planes more slowly, or use a faster engine or a larger ring"
        error = OverrunError(text)
        error.accepted = taken
        if self.settings.when_full == "fail":
            self._fail(error)
        raise error

    def _due(self) -> int:
        """Planes before this one are, or will be, finished without another push."""
        arrived = self._ring.arrived
        if self._finishing:
            return arrived
        if self._normalisation is None and arrived < self.settings.learn_planes:
            return 0
        axis: Axis = self._z_axis
        behind = arrived - axis.window - max(axis.margin, 1)
        return max(0, (behind // axis.stride + 1) * axis.stride)

    # -- within: called by the stream ------------------------------------------

    def _learn(self) -> Normalisation | None:
        """From the first planes, which stay in the ring and are segmented, too."""
        arrived, _ = self._ring.wait(self.settings.learn_planes)
        if arrived == 0:
            return None
        histogram = Histogram(self.dtype)
        for z in range(min(arrived, self.settings.learn_planes)):
            if z >= self._ring.released and self._ring.whole(z, z + 1):
                for view in self._ring.views(z, z + 1):
                    histogram.add(view)
        self._normalisation = histogram.freeze(self.bundle.spec.normalisation)
        return self._normalisation

    def _finish_plane(self, z: int, blend: BlendRing) -> None:
        voxels = self._pool.take()
        blend.quantise(z, self.settings.output_kind, self._threshold, voxels)
        voxels.flags.writeable = False
        if self._projection is not None:
            self._projection.add(voxels)
        self._put(z, voxels, valid=True)

    def _lose_plane(self, z: int) -> None:
        self._put(z, self._pool.zeros, valid=False)

    def _put(self, z: int, voxels: NDArray[np.uint8], *, valid: bool) -> None:
        arrived = self._ring.arrived
        with self._lock:
            now = time.perf_counter()
            latency = now - self._arrival.pop(z, float("nan"))
            if valid:
                self._done += 1
                self._latencies.add(latency)
            else:
                self._lost += 1
            self._last_finished = now
        self._outlet.put(LivePlane(z, voxels, valid, latency, arrived - 1 - z))


def buffer_bytes(
    plan: TilePlan,
    dtype: np.dtype[Any],
    ring_planes: int,
    outlet_planes: int,
    engines: Sequence[Engine],
) -> int:
    """Bytes of the host that a live segmenter allocates when it is opened."""
    pixels = prod(plan.shape[1:])
    raw = ring_planes * pixels * dtype.itemsize
    blend = plan.window[0] * pixels * 4
    tiles = prod(plan.tile) + prod(plan.window)
    slots = (2 * len(engines) + 2) * engines[0].batch * tiles * 4
    if len(engines) == 1 and engines[0].resident:
        # They lie on the GPU.
        blend = slots = 0
    return raw + blend + slots + (outlet_planes + 3) * pixels
