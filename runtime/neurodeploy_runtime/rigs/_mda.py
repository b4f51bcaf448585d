"""Segmentation of what a pymmcore-plus acquisition brings."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import (
    EngineError,
    OverrunError,
    SettingsError,
    StreamError,
)
from neurodeploy_runtime._report import machine, versions
from neurodeploy_runtime._rss import machine_memory
from neurodeploy_runtime._waiting import wait_for
from neurodeploy_runtime.engines import Engine, open_engine
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.rigs._lane import Lane, Stack, StackResult
from neurodeploy_runtime.rigs._shared_engine import SharedEngine
from neurodeploy_runtime.rigs._stacks import (
    Acquisition,
    ExpectedStack,
    Key,
    acquisition_of,
    key_of,
    letters,
)

log = logging.getLogger(__name__)


class MdaSegmenter:
    """Segments every z-stack of a multi-dimensional acquisition while it is acquired.

    It has the methods that pymmcore-plus looks for, so it is an output::

        with MdaSegmenter(bundle, "run.seg.ome.zarr") as live:
            core.run_mda(sequence, output=["run.ome.zarr", live], block=True)
            live.wait(timeout_s=600)
        print(live.results)

    or it listens to the signals, with ``with live.attach(core): …``. As an output it
    is called from a thread of pymmcore-plus, behind a queue without bound: a camera
    that is faster than the engine then fills that queue and not our ring. By signal it
    is called in the thread that acquires: memory stays bounded, and with
    ``when_full="block"`` the camera waits, at most `timeout_s` a frame.

    Stacks (a position, channel, time point) are kept apart, each in a file of its own:
    ``run.seg.p1_c0.ome.zarr``, where there are several; positions may have sequences of
    their own. Frames are counted here, by the index of their event: an acquisition
    whose camera fails ends as "completed" there. A frame that did not come is a gap,
    reported and never shifted.

    An error does not stop the acquisition, which may be worth more than its
    segmentation. A frame that is refused, or finds no room, is a gap of its stack, and
    told in its `StackResult`; so is what a stack fails of, while the others go on. Only
    where the engine fails, or the acquisition cannot be segmented at all, no more
    frames are taken, and the log says so. :meth:`wait` raises the first error when all
    is done; :meth:`check` tells before it begins whether it can be segmented.

    Parameters
    ----------
    output
        Where to write; the suffix says the format.
    settings
        Without a normalisation, every stack learns its own.
    engine
        To use instead of opening one; it is the caller's to close.
    """

    def __init__(
        self,
        bundle: Bundle | None,
        output: str | Path,
        settings: LiveSettings | None = None,
        *,
        engine: Engine | None = None,
        overwrite: bool = False,
    ) -> None:
        self.bundle = bundle or load_bundle()
        self.settings = settings or LiveSettings()
        self.output = Path(output)
        self._overwrite = overwrite
        self._owned = engine is None
        self._engine = engine or open_engine(self.bundle, self.settings.engine)
        self._turns = threading.Semaphore(self._engine.at_once)
        self._lock = threading.Condition()
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._open: dict[Key, tuple[Lane, Stack]] = {}
        self._acquisition = Acquisition("", {}, {})
        #: Stacks whose absence has not been told.
        self._untold: dict[Key, ExpectedStack] = {}
        self._started = False
        self._finished = False
        self._seen: set[Key] = set()
        self._skipped: set[Key] = set()
        self._busy = 0
        #: The first error of a stack.
        self._error: BaseException | None = None
        #: Why no more frames are taken.
        self._fatal: BaseException | None = None
        self._results: list[StackResult] = []
        self._pixel_um = 0.0
        self._group = 0

    # -- what pymmcore-plus calls ----------------------------------------------

    def sequenceStarted(self, sequence: Any, meta: Mapping[str, Any]) -> None:
        """Allocate for the acquisition that begins."""
        try:
            self._start(sequence, meta)
        except BaseException as error:
            log.error("the acquisition is not segmented: %s", error)
            with self._lock:
                self._fatal = self._fatal or error
                self._lock.notify_all()

    def frameReady(
        self, frame: NDArray[Any], event: Any, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Take a frame to the stack that it belongs to."""
        del meta
        if self._fatal is not None:
            return
        try:
            self._take(np.asarray(frame), letters(event.index))
        except BaseException as error:
            self._keep(error)

    def sequenceFinished(self, sequence: Any) -> None:
        """Finish what is open; returns at once."""
        del sequence
        try:
            with self._lock:
                left = list(self._open.values())
                self._open.clear()
            for lane, stack in left:
                lane.finish(stack)
            self._tell_of_absent()
        except BaseException as error:
            self._keep(error)
        finally:
            with self._lock:
                self._finished = True
                self._lock.notify_all()

    # -- what a user calls -----------------------------------------------------

    def check(self, sequence: Any) -> None:
        """Refuse a `useq.MDASequence` that cannot be segmented, before it begins.

        Raises
        ------
        SettingsError
            It has no stacks, or such as are not told apart.
        """
        acquisition_of(sequence)

    @contextmanager
    def attach(self, core: Any) -> Iterator[Self]:
        """Listen to the signals of a `CMMCorePlus`, in the thread that acquires."""
        events = core.mda.events
        pairs = [
            (events.sequenceStarted, self.sequenceStarted),
            (events.frameReady, self.frameReady),
            (events.sequenceFinished, self.sequenceFinished),
        ]
        for signal, slot in pairs:
            signal.connect(slot)
        try:
            yield self
        finally:
            for signal, slot in pairs:
                signal.disconnect(slot)

    @property
    def results(self) -> tuple[StackResult, ...]:
        """The stacks whose files are complete, or have failed, in that order."""
        with self._lock:
            return tuple(self._results)

    def wait(self, timeout_s: float = 600.0) -> tuple[StackResult, ...]:
        """Wait until the acquisition has ended, and every stack of it has its file.

        It waits for the acquisition's beginning, too.

        Raises
        ------
        StreamError
            `timeout_s` passed, or stacks were left out because none could be taken on.
        NeurodeployError
            The first error of the engine, at once; or of a stack or the disk, when the
            other stacks are finished: `results` holds them.
        """
        with self._lock:
            done = wait_for(
                self._lock,
                lambda: self._fatal is not None or (self._finished and self._busy == 0),
                timeout_s,
            )
            error = self._fatal or (self._error if done else None)
            if error is not None:
                raise error.with_traceback(None)
            if done:
                return tuple(self._results)
            if not self._started:
                raise StreamError(
                    f"no acquisition has begun in {timeout_s:g} s: give this to "
                    "run_mda as output, or attach it to the core"
                )
            running = "" if self._finished else ", and the acquisition goes on"
            raise StreamError(
                f"{self._busy} stacks are not finished after {timeout_s:g} s{running}"
            )

    def close(self) -> None:
        """Stop; files that are not complete are removed."""
        with ExitStack() as stack:
            # The last one first; and each of them, where another cannot be closed.
            if self._owned:
                stack.callback(self._engine.close)
            self._close_lanes()

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

    def _keep(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
            self._lock.notify_all()

    def _start(self, sequence: Any, meta: Mapping[str, Any]) -> None:
        with self._lock:
            self._started, self._finished = True, False
            if isinstance(self._fatal, EngineError):
                return
            self._fatal = None
            if self._busy:
                raise StreamError(
                    f"{self._busy} stacks of the acquisition before are not finished: "
                    "call wait() before the next one"
                )
            self._error = None
            self._acquisition, self._untold = Acquisition("", {}, {}), {}
        acquisition = acquisition_of(sequence)
        infos = meta.get("image_infos") or ()
        if not infos:
            raise SettingsError("the acquisition does not say what its frames are")
        shape = tuple(int(n) for n in infos[0]["plane_shape"])
        if len(shape) != 2:
            raise SettingsError(
                f"frames of shape {shape} are no gray images: use a monochrome camera"
            )
        self._pixel_um = float(infos[0].get("pixel_size_um") or 0)
        with self._lock:
            self._seen.clear()
            self._skipped.clear()
            self._acquisition = acquisition
            self._untold = dict(acquisition.stacks)
        # One more than arrive together, so that the next may come while the engine
        # finishes those.
        lanes = min(len(acquisition.stacks), acquisition.together + 1)
        self._make_lanes(lanes, shape, np.dtype(infos[0]["dtype"]))

    def _make_lanes(
        self, lanes: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        kept = [
            lane
            for lane in self._lanes
            if lane.alive and (lane.live.plane_shape, lane.live.dtype) == (shape, dtype)
        ]
        if len(kept) < lanes:
            self._close_lanes()
            kept = self._lanes
            memory = self.settings.memory_bytes or (machine_memory() or 8 * 10**9) // 2
            settings = replace(self.settings, memory_bytes=max(1, memory // lanes))
            for _ in range(lanes):
                engine = SharedEngine(self._engine, self._turns)
                live = LiveSegmenter(
                    self.bundle,
                    (shape[0], shape[1]),
                    dtype,
                    settings,
                    engines=[engine],
                )
                self._lanes.append(
                    Lane(
                        live,
                        self._provenance,
                        self._lane_done,
                        overwrite=self._overwrite,
                    )
                )
        with self._lock:
            self._free = list(kept)

    def _close_lanes(self) -> None:
        with ExitStack() as stack:
            lanes, self._lanes = self._lanes, []
            for lane in lanes:
                stack.callback(lane.close)

    def _take(self, frame: NDArray[Any], index: dict[str, int]) -> None:
        z = index.pop("z", None)
        if z is None:
            return  # a frame outside of every stack, such as an autofocus's
        key = key_of(index)
        expected = self._acquisition.stacks.get(key)
        if expected is None:
            return  # of a channel of which one plane is taken, and no stack
        if expected.group != self._group:
            self._group = expected.group
            self._finish_others(expected.group)
        if key in self._skipped:
            return
        taken = self._open.get(key) or self._begin(key, expected)
        if taken is None:
            return
        lane, stack = taken
        lane.push(stack, frame, z)
        if z + 1 == expected.planes:
            with self._lock:
                self._open.pop(key, None)
            lane.finish(stack)

    def _finish_others(self, group: int) -> None:
        """A stack whose last frame did not come ends when the next ones begin."""
        with self._lock:
            stacks = self._acquisition.stacks
            old = [key for key in self._open if stacks[key].group != group]
            left = [self._open.pop(key) for key in old]
        for lane, stack in left:
            lane.finish(stack)

    def _begin(self, key: Key, expected: ExpectedStack) -> tuple[Lane, Stack] | None:
        if key in self._seen:
            raise StreamError(f"stack {dict(key)} has come to its end before")
        stack = self._stack(key, expected)
        start = time.monotonic()
        with self._lock:
            wait_for(
                self._lock,
                lambda: bool(self._free) or self._fatal is not None,
                self.settings.timeout_s,
            )
            if self._fatal is not None:
                return None
            self._seen.add(key)
            if self._free:
                lane = self._free.pop(0)
                self._open[key] = lane, stack
                self._busy += 1
                lane.begin(stack)
                return lane, stack
            waited = time.monotonic() - start
            text = (
                f"stack {dict(key)} found no room: {len(self._lanes)} stacks before it "
                f"were not finished after {waited:.2g} s"
            )
            if self.settings.when_full != "drop":
                self._error = self._error or OverrunError(
                    f"{text}; wait between stacks, use a faster engine, or "
                    'when_full="drop"'
                )
            self._skipped.add(key)
            self._leave_out(stack, text)
            return None

    def _leave_out(self, stack: Stack, why: str) -> None:
        none = ((0, stack.planes),)
        self._results.append(
            StackResult(stack.index, stack.path, stack.planes, 0, none, None, why)
        )

    def _tell_of_absent(self) -> None:
        """A result for every stack of which no frame was taken."""
        with self._lock:
            why = "no frame of it came before the acquisition ended"
            if self._fatal is not None:
                why = f"no frame of it was taken: {self._fatal}"
            for key, expected in self._untold.items():
                if key not in self._seen:
                    self._leave_out(self._stack(key, expected), why)
            self._untold = {}

    def _stack(self, key: Key, expected: ExpectedStack) -> Stack:
        z, pixel = expected.step_um, self._pixel_um
        size = (z, pixel, pixel) if z > 0 and pixel > 0 else None
        return Stack(expected.index, self._path(key), expected.planes, size)

    def _path(self, key: Key) -> Path:
        sizes, axes = self._acquisition.sizes, self._acquisition.axes
        several = [(a, i) for a, i in key if sizes.get(a, 1) > 1]
        if not several:
            return self.output
        ending = "".join(self.output.suffixes[-2:])
        if not ending.startswith(".ome."):
            ending = self.output.suffix
        order = sorted(several, key=lambda pair: axes.find(pair[0]))
        names = "_".join(f"{a}{i}" for a, i in order)
        stem = self.output.name.removesuffix(ending)
        return self.output.with_name(f"{stem}.{names}{ending}")

    def _provenance(self, stack: Stack) -> dict[str, Any]:
        return {
            "model": {
                "name": self.bundle.spec.name,
                "digest": self.bundle.digest,
            },
            "engine": self._engine.describe(),
            "index": dict(stack.index),
            "sequence": {
                "sizes": dict(self._acquisition.sizes),
                "axis_order": self._acquisition.axes,
            },
            "versions": versions(),
            "machine": machine(),
        }

    def _lane_done(
        self,
        lane: Lane,
        stack: Stack,
        result: StackResult,
        error: BaseException | None,
        free: bool,
    ) -> None:
        with self._lock:
            self._results.append(result)
            self._busy -= 1
            failed = [key for key, (_, open_) in self._open.items() if open_ is stack]
            for key in failed:
                del self._open[key]
                self._skipped.add(key)
            if free:
                self._free.append(lane)
            self._error = self._error or error
            if isinstance(error, EngineError):
                self._fatal = self._fatal or error
            self._lock.notify_all()
