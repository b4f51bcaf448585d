"""A live segmenter and the thread that writes what it finishes, stack after stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._errors import (
    CancelledError,
    EngineError,
    NeurodeployError,
    StreamError,
)
from neurodeploy_runtime.live import LiveSegmenter, LiveStatus
from neurodeploy_runtime.live._writer import PlaneWriter

#: Refused frames of a stack that are told one by one.
KEPT_REFUSALS = 16


@dataclass(frozen=True, eq=False)
class Stack:
    """One z-stack of an acquisition: where in it, and what file it becomes."""

    index: Mapping[str, int]
    path: Path
    planes: int
    voxel_size_um: tuple[float, float, float] | None


@dataclass(frozen=True)
class StackResult:
    """What became of a stack.

    `frames` came from the camera, of `planes` that were announced; `invalid` planes
    (start, stop) of the file hold zeros that mean nothing. `error` says why there is
    no file. `refused` says why frames that came were not taken: the first 16.
    """

    index: Mapping[str, int]
    path: Path
    planes: int
    frames: int
    invalid: tuple[tuple[int, int], ...]
    status: LiveStatus | None
    error: str | None = None
    refused: tuple[str, ...] = ()


class Lane:
    """Takes one stack at a time; is free again when that has its file, or has failed.

    `done` is told of every stack's end: with its result, with its error, and whether
    the lane can take another one, which it cannot once the engine has failed.
    """

    def __init__(
        self,
        live: LiveSegmenter,
        provenance: Callable[[Stack], dict[str, Any]],
        done: Callable[[Lane, Stack, StackResult, BaseException | None, bool], None],
        *,
        overwrite: bool,
    ) -> None:
        self.live = live
        self._frames = 0
        self._refused: list[str] = []
        #: Who brings a frame, or ends a stack, holds it.
        self._entry = threading.Lock()
        self._stack: Stack | None = None
        self._provenance = provenance
        self._done = done
        self._overwrite = overwrite
        self._stacks: Channel[Stack] = Channel(1)
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it takes stacks still."""
        return self._thread.is_alive()

    def begin(self, stack: Stack) -> None:
        """Begin a stack; frames may be pushed at once."""
        with self._entry:
            self._frames = 0
            self._refused = []
            self._stack = stack
        self._stacks.put(stack)

    def push(self, stack: Stack, frame: NDArray[Any], z: int) -> None:
        """Bring a frame of a stack; one that is refused, or finds no room, is a gap.

        Frames of a stack that has come to its end, or failed, are passed over.
        """
        with self._entry:
            if self._stack is not stack:
                return
            try:
                self.live.push(frame, z=z)
            except NeurodeployError as error:
                # What ends the stream is told by the thread that writes.
                if self.live.state == "streaming" and (
                    len(self._refused) < KEPT_REFUSALS
                ):
                    self._refused.append(f"frame {z}: {error}")
            else:
                self._frames += 1

    def finish(self, stack: Stack) -> None:
        """No more frames of this stack come; a later one's are not ended."""
        # A stream that has failed says so here, too: the thread that writes tells it.
        with self._entry, suppress(NeurodeployError):
            if self._stack is stack:
                self.live.finish()

    def close(self) -> None:
        """Stop; a file that is not complete is removed."""
        self._stacks.fail(CancelledError("closed"))
        self.live.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                stack = self._stacks.get()
            except CancelledError:
                return
            if stack is None:
                return
            error: BaseException | None = None
            invalid: tuple[tuple[int, int], ...] = ()
            try:
                invalid = self._write(stack)
            except BaseException as caught:
                error = caught
                # Whoever pushes hears of it, and the ring does not fill.
                self.live.fail(caught)
            with self._entry:
                self._stack = None
            result = StackResult(
                stack.index,
                stack.path,
                stack.planes,
                self._frames,
                invalid,
                self.live.status,
                None if error is None else f"{type(error).__name__}: {error}",
                tuple(self._refused),
            )
            free = not isinstance(error, EngineError) and self._again(error is None)
            self._done(self, stack, result, error, free)
            if not free:
                return

    def _again(self, whole: bool) -> bool:
        """Begin another stack; False where that is not possible, or it was closed."""
        try:
            if whole:
                self.live.flush()
            self.live.again()
        except (CancelledError, StreamError):
            return False
        return True

    def _write(self, stack: Stack) -> tuple[tuple[int, int], ...]:
        live = self.live
        shape = (stack.planes, *live.plane_shape)
        mask = live.settings.output_kind == "mask"
        invalid: list[tuple[int, int]] = []
        with PlaneWriter(
            stack.path,
            shape,
            stack.voxel_size_um,
            mask=mask,
            overwrite=self._overwrite,
        ) as writer:
            for plane in live.planes():
                writer.add(plane.voxels)
                if not plane.valid:
                    _extend(invalid, plane.z, plane.z + 1)
            _extend(invalid, writer.planes, stack.planes)
            status = live.status
            writer.finish(
                {
                    **self._provenance(stack),
                    "normalisation": status.normalisation
                    and status.normalisation.to_json(),
                    "gaps": [str(gap) for gap in status.gaps],
                    "invalid_planes": invalid,
                    "frames": self._frames,
                }
            )
        return tuple(invalid)


def _extend(runs: list[tuple[int, int]], start: int, stop: int) -> None:
    if start >= stop:
        return
    if runs and runs[-1][1] == start:
        start = runs.pop()[0]
    runs.append((start, stop))
