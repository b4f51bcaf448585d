"""Segmentation of planes while they arrive."""

from __future__ import annotations

import operator
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from math import prod
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from neurodeploy_runtime._at_exit import at_exit
from neurodeploy_runtime._blend import BlendRing
from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import (
    CancelledError,
    EngineError,
    NeurodeployError,
    OverrunError,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._plan import Axis, TilePlan
from neurodeploy_runtime._planes import PlaneRing
from neurodeploy_runtime._stream import RegionStream, StreamBuffers
from neurodeploy_runtime._waiting import acquired
from neurodeploy_runtime.engines import Engine, choose_engine, open_engines
from neurodeploy_runtime.live._buffers import (
    UNKNOWN_DEPTH,
    checked_bytes,
    ring_planes,
)
from neurodeploy_runtime.live._delivery import Delivery
from neurodeploy_runtime.live._intake import Intake
from neurodeploy_runtime.live._outlet import Outlet
from neurodeploy_runtime.live._pool import PlanePool
from neurodeploy_runtime.live._priority import step_back
from neurodeploy_runtime.live._projection import GrowingProjections
from neurodeploy_runtime.live._right_of_way import RightOfWay
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._tally import Tally
from neurodeploy_runtime.live._values import LivePlane, LiveStatus, State
from neurodeploy_runtime.volumes._base import DTYPES

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
        #: The tiles of a stack whose depth is not known yet.
        self.plan = TilePlan.of(spec, shape, settings.overlap)
        #: Probability from which a voxel is foreground.
        self.threshold = settings.threshold or spec.threshold
        self._region = Box.whole(shape)
        self._axis: Axis = self.plan.axes[0]
        self.ring_planes = ring_planes(self._axis, settings)
        self.outlet_planes = settings.outlet_planes or self._axis.window
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
            self.buffer_bytes = checked_bytes(
                self.plan,
                self.dtype,
                self.ring_planes,
                self.outlet_planes,
                engines,
                settings.memory_bytes,
            )
            self._ring = PlaneRing(self.ring_planes, self.plane_shape, self.dtype)
            self._way = RightOfWay()
            self._buffers = StreamBuffers.of(
                self.plan, self._region, engines, give_way=self._way.give
            )
            if len(engines) == 1 and engines[0].resident:
                self._buffers.warm_up(engines[0], self.dtype)
            self._pool = PlanePool(self.outlet_planes + 2, self.plane_shape)
        except BaseException:
            self._close_engines()
            raise
        self._pushing = threading.Lock()
        #: The thread that holds it.
        self._bringing: int | None = None
        #: The thread of the stream that calls what waits for a future.
        self._telling: int | None = None
        self._lock = threading.Lock()
        #: Held while one stack gives way to another: what is closed is then the last.
        self._turning = threading.Lock()
        self._closed = False
        self._projection: GrowingProjections | None = None
        self._projected = 0
        self._stacks = 0
        self._begin()
        self._forget_exit = at_exit(_closing(self))

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
        stack = self._intake.checked(planes)
        wait_s = self._patience(timeout_s)
        deadline = time.monotonic() + wait_s
        with self._alone(wait_s):
            self._check_open()
            self._intake.place(z, len(stack))
            return self._intake.bring(stack, deadline)

    @contextmanager
    def slot(
        self, z: int | None = None, timeout_s: float | None = None
    ) -> Iterator[NDArray[Any] | None]:
        """The next plane's place (y, x) in the ring, to be written by the camera.

        For acquisition software that writes into memory it is given: a push without
        its copy. Leaving the ``with`` block brings the plane, an exception in it does
        not; the array is not to be written after that. Where it did not, say `z` with
        the next plane, which takes this one's index otherwise. Other pushes, and
        `finish`, wait meanwhile, for as long as they may::

            with live.slot() as voxels:
                if voxels is not None:
                    grabber.read_into(voxels)

        It gives None where ``when_full="drop"`` leaves the plane out. Parameters and
        errors are those of :meth:`push`.
        """
        wait_s = self._patience(timeout_s)
        deadline = time.monotonic() + wait_s
        with self._alone(wait_s):
            self._check_open()
            self._intake.place(z, 1)
            views, _ = self._intake.claim(1, deadline)
            if not views:
                yield None
                return
            yield views[0][0]
            self._check_open()
            self._intake.take(1)

    @property
    def ready_planes(self) -> int:
        """The most planes for which :meth:`ready_for` can be True again and again.

        The ring keeps, until the next ones come, planes that a tile still needs.
        """
        return self.ring_planes - (self._axis.layer_planes - 1)

    def ready_for(self, planes: int) -> bool:
        """Whether so many planes can be pushed now without waiting; never waits.

        Raises
        ------
        SettingsError
            It would stay False for ever: more than `ready_planes`, or more than there
            is room for beside the first planes, from which the normalisation is learnt.
        """
        if planes > self.ready_planes:
            raise SettingsError(
                f"a ring of {self.ring_planes} planes, of which tiles keep up to "
                f"{self._axis.layer_planes - 1}, never has room for {planes}: ask for "
                f"{self.ready_planes} at most, or use a larger ring"
            )
        if self.state != "streaming":
            return False
        room = self._ring.room
        if planes > room and self._learns_from(held := self.ring_planes - room):
            raise SettingsError(
                f"a ring of {self.ring_planes} planes has no room for {planes} beside "
                f"{held} of the {self.settings.learn_planes} from which the "
                f"normalisation is learnt: ask for {room} at most, or use a larger ring"
            )
        return room >= planes

    def finish(self) -> None:
        """Say that the stack is complete; returns at once.

        What is still to come is finished; :meth:`flush` waits for it, and the iterator
        ends after it. May be called twice.

        Raises
        ------
        StreamError
            Another thread has been bringing a plane for `timeout_s` of the settings;
            nothing was ended.
        """
        with self._alone(self.settings.timeout_s, StreamError):
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
            # The last ones may have gone to futures, and are not delivered.
            passed = self._delivery.wait(min(due, self._outlet.queued), left)
        self._raise_error()
        if self._closed:
            raise CancelledError("the live segmenter was closed")
        if passed and self._finishing:
            # The state says done as soon as whoever waited for it goes on.
            left = max(0.0, deadline - time.monotonic())
            self._worker.join(min(CLOSE_S, left))
        if passed:
            return
        waiting = self._outlet.waiting
        left_over = due - self._outlet.passed
        text = (
            f"{left_over} planes were not finished in {timeout_s:g} s"
            if left_over > 0
            else f"on_plane had not taken all finished planes after {timeout_s:g} s"
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
        """A future of plane z, to be asked for before that plane is finished.

        What is called when it is done is called by the stream, which waits for it: it
        may not close the stream. Of one that is cancelled in time, the plane goes where
        all others go.
        """
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

        Pooled so that no side exceeds what the first call said. Another stack begins
        another maximum, which is kept from its first plane on.
        """
        with self._lock:
            if self._projection is None:
                self._projected = longest
                self._projection = self._new_projection()
            projection = self._projection
        return projection.along_z()

    def _new_projection(self) -> GrowingProjections:
        return GrowingProjections(
            self.plane_shape, np.dtype(np.uint8), self._projected, sides=False
        )

    # -- how it stands ---------------------------------------------------------

    @property
    def stacks(self) -> int:
        """How many stacks were begun: 1, and one more with each :meth:`again`."""
        return self._stacks

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

        See `Axis.lag`.
        """
        return self._axis.lag

    @property
    def wall_s(self) -> float:
        """Seconds from the first plane pushed to the last one finished."""
        return self._tally.counts().wall_s

    @property
    def tiles_run(self) -> int:
        """Tiles that the network has answered, of this stack."""
        return self._stream.tiles_run

    @property
    def status(self) -> LiveStatus:
        """How it stands now; a snapshot."""
        state = self.state
        # Counted first: what is finished by then has arrived by the line behind.
        counts = self._tally.counts()
        arrived, released = self._ring.arrived, self._ring.released
        room = self._ring.room
        finished = counts.done + counts.lost
        voxels = counts.done * prod(self.plane_shape)
        cut = min(max(released, finished), arrived)
        return LiveStatus(
            state=state,
            pushed=arrived,
            queued=arrived - cut,
            in_flight=max(0, cut - finished),
            done=counts.done,
            lost=counts.lost,
            missing=counts.missing,
            dropped=counts.dropped,
            waiting=self._outlet.waiting,
            room_planes=room,
            latency_p50_s=counts.latency_p50_s,
            latency_p95_s=counts.latency_p95_s,
            latency_p99_s=counts.latency_p99_s,
            latency_max_s=counts.latency_max_s,
            lag_planes=max(0, arrived - finished),
            mvoxel_per_s=voxels / counts.wall_s / 1e6 if counts.wall_s > 0 else 0.0,
            buffer_bytes=self.buffer_bytes,
            normalisation=self._normalisation,
            gaps=counts.gaps,
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
            The stack before is not done yet, or finished planes of it wait for their
            reader; or another thread has begun one.
        """
        outlet, state = self._outlet, self.state
        if state not in ("done", "failed"):
            raise StreamError(f"a {state} stack cannot be followed by another one")
        self._worker.join(CLOSE_S)
        if self._worker.is_alive():
            raise StreamError(f"a tile has not come back for {CLOSE_S:g} s")
        if self._delivery is not None and not self._delivery.join(CLOSE_S):
            raise StreamError(f"on_plane has not returned for {CLOSE_S:g} s")
        if state == "done" and (waiting := self._outlet.waiting):
            raise StreamError(
                f"{waiting} finished planes of this stack wait for their reader: read "
                "planes() to its end first"
            )
        with self._alone(self.settings.timeout_s, StreamError), self._turning:
            if self._closed:
                raise StreamError("the live segmenter is closed: open another")
            if self._outlet is not outlet:
                raise StreamError("another thread has begun the next stack")
            self._ring.reset()
            self._begin()

    def close(self) -> None:
        """Stop, and give back the engine; what is not finished is lost.

        Works in every state, and twice.

        Raises
        ------
        StreamError
            A tile or `on_plane` has not come back for a minute; it is left behind. Or
            what is called when a future is done asks for it: nothing was stopped.
        """
        if self._telling == threading.get_ident() and not self._closed:
            raise StreamError(
                "the stream waits for what is called when a future is done: let that "
                "return, and close from another thread"
            )
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._forget_exit()
        error = CancelledError("the live segmenter was closed")
        with self._turning:
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
        # Whoever asks for the status of a closed one does not keep its buffers.
        self._ring.let_go()
        self._stream.let_go()
        self._pool.let_go()
        del self._buffers
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

    def _begin(self) -> None:
        self._error: BaseException | None = None
        self._finishing = False
        self._is_done = False
        self._stacks += 1
        with self._lock:
            if self._projection is not None:
                self._projection = self._new_projection()
        # One for every stack: whoever still reads the one before stays with it.
        self._outlet = Outlet(self.outlet_planes)
        self._tally = Tally()
        self._intake = Intake(
            self._ring, self._axis, self.settings, self._tally, self._way, self._overrun
        )
        self._normalisation = self.settings.normalisation
        self._stream = RegionStream(
            self.plan,
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
            else Delivery(self._outlet, self._on_plane, self.fail)
        )

    def _work(self) -> None:
        step_back(self.settings.niceness)
        error: NeurodeployError | None = None
        try:
            self._stream.run()
        except NeurodeployError as known:
            error = known
        except BaseException as unknown:
            kind = type(unknown).__name__
            error = EngineError(f"the stream failed: {kind}: {unknown}")
            error.__cause__ = unknown
        with self._told_by_stream():
            if error is not None:
                self.fail(error)
                return
            with self._lock:
                self._is_done = True
            self._outlet.end()

    def fail(self, error: BaseException) -> None:
        """End the stack with an error that every push and every reader gets."""
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

    @contextmanager
    def _alone(
        self, wait_s: float, busy: type[StreamError] = OverrunError
    ) -> Iterator[None]:
        """One thread brings planes, or ends them.

        Raises
        ------
        StreamError
            Of the kind `busy`: another thread has been bringing planes for so long.
        """
        if self._bringing == threading.get_ident():
            raise StreamError(
                "this thread is bringing a plane: leave the block of slot() first"
            )
        if not acquired(self._pushing, wait_s):
            raise busy(
                f"another thread has been pushing for {wait_s:g} s: push from one "
                "thread, or wait longer"
            )
        self._bringing = threading.get_ident()
        try:
            yield
        finally:
            self._bringing = None
            self._pushing.release()

    def _patience(self, timeout_s: float | None) -> float:
        return max(0.0, self.settings.timeout_s if timeout_s is None else timeout_s)

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

    def _overrun(self, z: int) -> OverrunError:
        status = self.status
        rate = status.mvoxel_per_s * 1e6 / prod(self.plane_shape)
        text = f"plane {z} found no room: {self.ring_planes} planes are held"
        if status.waiting >= self.outlet_planes:
            text += f" and {status.waiting} finished ones wait for their reader"
        elif rate > 0:
            text += f", and {rate:.3g} planes/s are being finished"
        text += ": take planes more slowly, or use a faster engine or a larger ring"
        error = OverrunError(text)
        if self.settings.when_full == "fail":
            self.fail(error)
        return error

    def _due(self) -> int:
        """Planes before this one are, or will be, finished without another push."""
        arrived = self._ring.arrived
        if self._finishing:
            return arrived
        if self._learns_from(self.ring_planes - self._ring.room):
            return 0
        axis = self._axis
        behind = arrived - axis.window - max(axis.margin, 1)
        return max(0, (behind // axis.stride + 1) * axis.stride)

    def _learns_from(self, held: int) -> bool:
        """Whether so many planes in the ring are too few to learn from."""
        return self._normalisation is None and held < self.settings.learn_planes

    # -- within: called by the stream ------------------------------------------

    def _learn(self) -> Normalisation | None:
        """From the first planes that came, which stay and are segmented, too."""
        wanted = need = self.settings.learn_planes
        while True:
            arrived, ended = self._ring.wait(need)
            held = self.ring_planes - self._ring.room
            if held >= wanted or ended:
                break
            # Some of these never came.
            need = arrived + wanted - held
        # Those that were counted, some of which may have come since.
        arrived = self._ring.arrived
        if arrived == 0:
            return None
        kind = self.bundle.spec.normalisation
        if held == 0:
            # No tile can be run; every plane is told to be lost.
            return Normalisation(kind, 0.0, 1.0)
        histogram = Histogram(self.dtype)
        came = (z for z in range(arrived) if self._ring.whole(z, z + 1))
        for z in islice(came, wanted):
            for view in self._ring.views(z, z + 1):
                histogram.add(view)
        self._normalisation = histogram.freeze(kind)
        return self._normalisation

    def _finish_plane(self, z: int, blend: BlendRing) -> None:
        voxels = self._pool.take()
        blend.quantise(z, self.settings.output_kind, self.threshold, voxels)
        voxels.flags.writeable = False
        if self._projection is not None:
            self._projection.add(voxels)
        self._put(z, voxels, valid=True)

    def _lose_plane(self, z: int) -> None:
        self._put(z, self._pool.zeros, valid=False)

    def _put(self, z: int, voxels: NDArray[np.uint8], *, valid: bool) -> None:
        arrived = self._ring.arrived
        latency = self._tally.finished(z, valid=valid)
        with self._told_by_stream():
            self._outlet.put(LivePlane(z, voxels, valid, latency, arrived - 1 - z))

    @contextmanager
    def _told_by_stream(self) -> Iterator[None]:
        """Around what may call those who wait for a future, in a thread of the stream.

        Closing waits for that thread, which would wait for itself.
        """
        self._telling = threading.get_ident()
        try:
            yield
        finally:
            self._telling = None


def _closing(live: LiveSegmenter) -> Callable[[], None]:
    """What closes one that nobody has closed, and does not keep it alive."""
    known = weakref.ref(live)

    def close() -> None:
        if (left := known()) is not None:
            left.close()

    return close
