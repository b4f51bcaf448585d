"""A live segmenter and the thread that writes what it finishes, stack after stack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neurodeploy_runtime._channel import Channel
from neurodeploy_runtime._errors import CancelledError
from neurodeploy_runtime.live import LiveSegmenter, LiveStatus
from neurodeploy_runtime.live._writer import PlaneWriter


@dataclass(frozen=True)
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
    no file.
    """

    index: Mapping[str, int]
    path: Path
    planes: int
    frames: int
    invalid: tuple[tuple[int, int], ...]
    status: LiveStatus | None
    error: str | None = None


class Lane:
    """Takes one stack at a time; is free again when its file is complete."""

    def __init__(
        self,
        live: LiveSegmenter,
        provenance: Callable[[Stack], dict[str, Any]],
        done: Callable[[Lane, StackResult, BaseException | None], None],
        *,
        overwrite: bool,
    ) -> None:
        self.live = live
        self.frames = 0
        self._provenance = provenance
        self._done = done
        self._overwrite = overwrite
        self._stacks: Channel[Stack] = Channel(1)
        self._thread = threading.Thread(target=self._run, name="lane", daemon=True)
        self._thread.start()

    def begin(self, stack: Stack) -> None:
        """Begin a stack; planes may be pushed to `live` at once."""
        self.frames = 0
        self._stacks.put(stack)

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
            result = StackResult(
                stack.index,
                stack.path,
                stack.planes,
                self.frames,
                invalid,
                self.live.status,
                None if error is None else f"{type(error).__name__}: {error}",
            )
            closed = False
            if error is None:
                try:
                    self.live.flush()
                    self.live.again()
                except CancelledError:
                    # Closed behind the last plane: the stack itself is whole.
                    closed = True
            self._done(self, result, error)
            if error is not None or closed:
                return

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
                    "frames": self.frames,
                }
            )
        return tuple(invalid)


def _extend(runs: list[tuple[int, int]], start: int, stop: int) -> None:
    if start >= stop:
        return
    if runs and runs[-1][1] == start:
        start = runs.pop()[0]
    runs.append((start, stop))
