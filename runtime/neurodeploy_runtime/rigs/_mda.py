"""Segmentation of what a pymmcore-plus acquisition brings."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from math import prod
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
from neurodeploy_runtime.engines import Engine, open_engine
from neurodeploy_runtime.live import LiveSegmenter, LiveSettings
from neurodeploy_runtime.rigs._lane import Lane, Stack, StackResult
from neurodeploy_runtime.rigs._shared_engine import SharedEngine

Key = tuple[tuple[str, int], ...]


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
    ``run.seg.p1_c0.ome.zarr``, where there are several. Frames are counted here, by
    the index of their event: an acquisition whose camera fails ends as "completed"
    there. A frame that did not come is a gap, reported and never shifted.

    An error does not stop the acquisition, which may be worth more than its
    segmentation. A frame that is refused, or finds no room, is a gap of its stack, and
    told in its `StackResult`; so is what a stack fails of, while the others go on. Only
    where the engine fails, or the acquisition cannot be segmented at all, no more
    frames are taken. :meth:`wait` raises the first error when all is done.

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
        self._engine_lock = threading.Lock()
        self._lock = threading.Condition()
        self._lanes: list[Lane] = []
        self._free: list[Lane] = []
        self._open: dict[Key, tuple[Lane, Stack]] = {}
        #: Stacks that the acquisition is to bring.
        self._expected: list[dict[str, int]] = []
        #: Channels of which one plane is taken, and no stack.
        self._single: frozenset[int] = frozenset()
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
        self._axes = ""
        self._sizes: dict[str, int] = {}
        self._voxel_size_um: tuple[float, float, float] | None = None
        self._group: Key = ()
        self._sequence: dict[str, Any] = {}

    # -- what pymmcore-plus calls ----------------------------------------------

    def sequenceStarted(self, sequence: Any, meta: Mapping[str, Any]) -> None:
        """Allocate for the acquisition that begins."""
        try:
            self._start(sequence, meta)
        except BaseException as error:
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
            self._take(np.asarray(frame), _letters(event.index))
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
            done = self._lock.wait_for(
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
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        if self._owned:
            self._engine.close()

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
            self._expected = []
            if isinstance(self._fatal, EngineError):
                return
            self._fatal = None
            if self._busy:
                raise StreamError(
                    f"{self._busy} stacks of the acquisition before are not finished: "
                    "call wait() before the next one"
                )
            self._error = None
        sizes = {axis: n for axis, n in _letters(sequence.sizes).items() if n}
        if "z" not in sizes:
            raise SettingsError(
                "the acquisition has no z axis of known length: give run_mda an "
                "MDASequence with a z_plan"
            )
        _refuse_sub_sequences(sequence)
        infos = meta.get("image_infos") or ()
        if not infos:
            raise SettingsError("the acquisition does not say what its frames are")
        shape = tuple(int(n) for n in infos[0]["plane_shape"])
        if len(shape) != 2:
            raise SettingsError(
                f"frames of shape {shape} are no gray images: use a monochrome camera"
            )
        with self._lock:
            self._sizes = sizes
            order = [str(getattr(a, "value", a)) for a in sequence.axis_order]
            self._axes = "".join(a for a in order if a in sizes)
            self._seen.clear()
            self._skipped.clear()
            channels = list(getattr(sequence, "channels", ()))
            self._single = frozenset(
                i for i, c in enumerate(channels) if not getattr(c, "do_stack", True)
            )
            self._expected = _stacks(sizes, channels, self._single)
        self._voxel_size_um = _voxel_size(sequence, infos[0])
        self._sequence = {"sizes": sizes, "axis_order": self._axes}
        inside = prod(sizes[a] for a in self._axes[self._axes.index("z") + 1 :])
        stacks = max(1, len(self._expected))
        # One more than arrive together, so that the next may come while the engine
        # finishes those.
        self._make_lanes(min(stacks, inside + 1), shape, np.dtype(infos[0]["dtype"]))

    def _make_lanes(
        self, lanes: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        kept = [
            lane
            for lane in self._lanes
            if (lane.live.plane_shape, lane.live.dtype) == (shape, dtype)
        ]
        if len(kept) < lanes:
            for lane in self._lanes:
                lane.close()
            self._lanes = []
            memory = self.settings.memory_bytes or (machine_memory() or 8 * 10**9) // 2
            settings = replace(self.settings, memory_bytes=max(1, memory // lanes))
            for _ in range(lanes):
                engine = SharedEngine(self._engine, self._engine_lock)
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
            self._free = list(self._lanes)

    def _take(self, frame: NDArray[Any], index: dict[str, int]) -> None:
        z = index.pop("z", None)
        if z is None:
            return  # a frame outside of every stack, such as an autofocus's
        if index.get("c") in self._single:
            return
        key: Key = tuple(sorted(index.items()))
        outer = self._axes[: self._axes.index("z")]
        group: Key = tuple((a, i) for a, i in key if a in outer)
        if group != self._group:
            self._group = group
            self._finish_others(group, outer)
        if key in self._skipped:
            return
        taken = self._open.get(key) or self._begin(key, index)
        if taken is None:
            return
        lane, stack = taken
        lane.push(stack, frame, z)
        if z + 1 == self._sizes["z"]:
            with self._lock:
                self._open.pop(key, None)
            lane.finish(stack)

    def _finish_others(self, group: Key, outer: str) -> None:
        """A stack whose last frame did not come ends when the next ones begin."""
        with self._lock:
            old = [
                key
                for key in self._open
                if tuple((a, i) for a, i in key if a in outer) != group
            ]
            left = [self._open.pop(key) for key in old]
        for lane, stack in left:
            lane.finish(stack)

    def _begin(self, key: Key, index: dict[str, int]) -> tuple[Lane, Stack] | None:
        if key in self._seen:
            raise StreamError(f"stack {dict(key)} has come to its end before")
        stack = Stack(index, self._path(key), self._sizes["z"], self._voxel_size_um)
        start = time.monotonic()
        with self._lock:
            self._lock.wait_for(
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
            for index in self._expected:
                key: Key = tuple(sorted(index.items()))
                if key not in self._seen:
                    path, planes = self._path(key), self._sizes["z"]
                    self._leave_out(
                        Stack(index, path, planes, self._voxel_size_um), why
                    )
            self._expected = []

    def _path(self, key: Key) -> Path:
        several = [(a, i) for a, i in key if self._sizes.get(a, 1) > 1]
        if not several:
            return self.output
        ending = "".join(self.output.suffixes[-2:])
        if not ending.startswith(".ome."):
            ending = self.output.suffix
        order = sorted(several, key=lambda pair: self._axes.find(pair[0]))
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
            "sequence": self._sequence,
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


def _stacks(
    sizes: Mapping[str, int], channels: Sequence[Any], single: frozenset[int]
) -> list[dict[str, int]]:
    """The index of every stack of an acquisition, without its z."""
    axes = [axis for axis in sizes if axis != "z"]
    found = []
    for numbers in product(*(range(sizes[axis]) for axis in axes)):
        index = dict(zip(axes, numbers, strict=True))
        if (c := index.get("c")) is not None and c < len(channels):
            every = getattr(channels[c], "acquire_every", 1)
            if c in single or index.get("t", 0) % every:
                continue
        found.append(index)
    return found


def _refuse_sub_sequences(sequence: Any) -> None:
    """Positions with axes of their own have stacks that `sizes` says nothing of."""
    for number, position in enumerate(getattr(sequence, "stage_positions", ())):
        inner = getattr(position, "sequence", None)
        if inner is None:
            continue
        axes = [axis for axis, n in _letters(inner.sizes).items() if n]
        if axes:
            raise SettingsError(
                f"position {number} has a sequence of its own, along {', '.join(axes)}:"
                " stacks of such acquisitions are not told apart; give the axes to the "
                "whole sequence, or segment each position in an acquisition of its own"
            )


def _letters(index: Mapping[Any, Any]) -> dict[str, int]:
    """Numbers by the letter of their axis, which useq gives as a string or an enum."""
    return {str(getattr(axis, "value", axis)): int(n) for axis, n in index.items()}


def _voxel_size(
    sequence: Any, info: Mapping[str, Any]
) -> tuple[float, float, float] | None:
    """Micrometres on z, y, x, as far as the acquisition says."""
    steps = list(sequence.z_plan) if sequence.z_plan is not None else []
    pixel = float(info.get("pixel_size_um") or 0)
    z = abs(float(steps[1]) - float(steps[0])) if len(steps) > 1 else 0.0
    return (z, pixel, pixel) if z > 0 and pixel > 0 else None
