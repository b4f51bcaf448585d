"""Segmentation of a stack on the disk while it is being written."""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._bundle import Bundle, load_bundle
from neurodeploy_runtime._errors import (
    CancelledError,
    InputError,
    NeurodeployError,
    OutputError,
    OverrunError,
    ReadError,
    SettingsError,
    WriteError,
)
from neurodeploy_runtime._geometry import Box
from neurodeploy_runtime._input_place import local_path
from neurodeploy_runtime._outlet import foreground_level
from neurodeploy_runtime._paths import Paths
from neurodeploy_runtime._picture import draw_picture
from neurodeploy_runtime._progress import Progress, ProgressCallback
from neurodeploy_runtime._report import Report, machine, versions
from neurodeploy_runtime._rss import peak_rss
from neurodeploy_runtime.engines import Engine, choose_engine
from neurodeploy_runtime.live._buffers import check_stream
from neurodeploy_runtime.live._growing import (
    Growing,
    GrowingFolder,
    GrowingZarr,
    is_store,
)
from neurodeploy_runtime.live._projection import GrowingProjections
from neurodeploy_runtime.live._segmenter import LiveSegmenter
from neurodeploy_runtime.live._settings import LiveSettings
from neurodeploy_runtime.live._writer import PlaneWriter
from neurodeploy_runtime.volumes import ReadOptions, open_volume, sink_kind

#: Bytes of planes that are read together.
READ_BYTES = 64_000_000


@dataclass(frozen=True)
class FollowSettings:
    """How a stack that grows is followed.

    Attributes
    ----------
    live
        Of the segmentation; its policy is ``block``, because a disk can wait, and so
        long as the engine goes on: its `timeout_s` cannot be set.
    read
        Which channel, time point and level.
    timeout_s
        It ends when so long nothing new has come.
    planes
        It ends when so many planes have come; None: when the stack says that it is
        complete, or after `timeout_s`.
    settle_s
        A file that has not changed for so long is taken as written.
    poll_s
        How often the disk is looked at.
    """

    live: LiveSettings = field(default_factory=LiveSettings)
    read: ReadOptions = field(default_factory=ReadOptions)
    timeout_s: float = 60.0
    planes: int | None = None
    settle_s: float = 1.0
    poll_s: float = 0.2

    def __post_init__(self) -> None:
        if self.live.when_full != "block":
            raise SettingsError(
                f"when_full {self.live.when_full!r} makes no sense for files, which "
                "wait: use block"
            )
        if self.live.timeout_s != LiveSettings.timeout_s:
            raise SettingsError(
                f"a push of {self.live.timeout_s:g} s makes no sense for files, which "
                "wait as long as the engine goes on: set FollowSettings.timeout_s"
            )
        if not self.timeout_s > self.settle_s:  # NaN, too, is refused
            raise SettingsError(
                f"a timeout of {self.timeout_s:g} s ends before files settle, which "
                f"takes {self.settle_s:g} s: use a longer one"
            )


def follow(
    path: str | Path,
    output: str | Path,
    bundle: Bundle | None = None,
    settings: FollowSettings | None = None,
    *,
    engines: list[Engine] | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    cancel: threading.Event | None = None,
) -> Report:
    """Segment a growing Zarr, or a growing folder of TIFF planes, into a file.

    It begins while the stack is written (or before), stays at most a ring of planes
    and a layer of tiles behind, and ends when the stack is complete. The voxels are
    those of segmenting the finished stack with the same normalisation, which the
    report names: where none is given, it is learnt from the first planes.

    Finished planes are kept in a file without a name, on the disk of the output, until
    the depth is known; the output, its picture and report then take their names
    together. Stopped, it begins anew. A plane that is absent while later ones are there
    is waited for, and named in the `note` of `progress`, which another thread may call.

    Raises
    ------
    InputError
        Nothing came within `timeout_s`, or what came is no stack; planes are missing;
        it lies on a server.
    OutputError
        Something lies at `output`, and `overwrite` is False.
    RunError
        The engine, or the disk, failed.
    """
    place = local_path(path)
    if place is None:
        raise InputError(
            f"{path} lies on a server: what grows is followed on a disk of this "
            "machine, or one that is mounted there"
        )
    run = _FollowRun(
        place,
        Path(output),
        bundle or load_bundle(),
        settings or FollowSettings(),
        overwrite,
        progress,
        cancel or threading.Event(),
    )
    return run.execute(engines)


class Spool:
    """Planes in a file that has no name, so that no kill leaves it behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.planes = 0
        try:
            self._file = tempfile.TemporaryFile(  # noqa: SIM115 it is closed on exit
                dir=folder, buffering=0
            )
        except OSError as error:
            raise OutputError(
                f"{folder} cannot be written to: {error.strerror or error}"
            ) from None

    def add(self, plane: NDArray[np.uint8]) -> None:
        """Append a plane."""
        left = np.ascontiguousarray(plane).reshape(-1).data
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise WriteError(
                f"finished planes cannot be kept in {self.folder} ({error}): make room "
                "and run again"
            ) from error
        self.planes += 1

    def read(self, z: int, out: NDArray[np.uint8]) -> None:
        """Plane z, into `out`."""
        left = out.reshape(-1).data
        self._file.seek(z * out.nbytes)
        while left:
            got = self._file.readinto(left)
            if not got:
                raise ReadError(f"finished planes in {self.folder} have been lost")
            left = left[got:]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class _FollowRun:
    def __init__(
        self,
        path: Path,
        output: Path,
        bundle: Bundle,
        settings: FollowSettings,
        overwrite: bool,
        progress: ProgressCallback | None,
        cancel: threading.Event,
    ) -> None:
        self._path = path
        self._output = output
        self._bundle = bundle
        self._settings = settings
        self._overwrite = overwrite
        self._progress = progress
        self._cancel = cancel
        self._paths = Paths.of(output, settings.live.output_kind)
        self._start = time.perf_counter()
        self._warnings: list[str] = []
        self._stop = threading.Event()
        #: Since when there is a store whose metadata cannot be read.
        self._unread_from: float | None = None
        self._telling = threading.Lock()
        self._told = ""

    def execute(self, engines: list[Engine] | None) -> Report:
        kind = sink_kind(self._output)
        self._paths.check(self._path, kind, may_exist=self._overwrite)
        # What cannot be is refused now, and not when the first plane comes.
        check_stream(self._bundle.spec, self._settings.live)
        if engines is None:
            choose_engine(self._bundle, self._settings.live.engine)
        growing = self._first_planes()
        with (
            LiveSegmenter(
                self._bundle,
                growing.plane_shape,
                growing.dtype,
                self._settings.live,
                engines=engines,
            ) as live,
            Spool(self._output.parent) as spool,
        ):
            image = GrowingProjections(growing.plane_shape, growing.dtype)
            result = GrowingProjections(growing.plane_shape, np.dtype(np.uint8))
            bringer = threading.Thread(
                target=self._bring, args=(growing, live, image), name="follow"
            )
            bringer.start()
            foreground = 0
            level = foreground_level(self._settings.live.output_kind, live.threshold)
            try:
                for plane in live.planes():
                    spool.add(plane.voxels)
                    result.add(plane.voxels)
                    foreground += int(np.count_nonzero(plane.voxels >= level))
                    self._tell(spool.planes, growing)
                live.flush()
            finally:
                self._stop.set()
                bringer.join()
            self._end_s = time.perf_counter()
            return self._finish(growing, live, spool, image, result, foreground)

    # -- what comes ------------------------------------------------------------

    def _first_planes(self) -> Growing:
        """Wait until there is something to know the planes' shape from."""
        settings = self._settings
        deadline = time.monotonic() + settings.timeout_s
        growing: Growing | None = None
        while True:
            if growing is None:
                growing = self._open()
                if self._unread_from is not None:
                    deadline = max(deadline, self._unread_from + settings.timeout_s)
            if growing is not None:
                growing.look()
                self._tell_of_absent(growing, 0)
                if growing.whole or (
                    isinstance(growing, GrowingZarr) and growing.there
                ):
                    return growing
                if growing.quiet_s < settings.timeout_s and growing.there:
                    deadline = max(deadline, growing.news_at + settings.timeout_s)
            if time.monotonic() > deadline:
                if growing is not None and growing.there:
                    growing.end()
                    return growing
                raise InputError(
                    f"{self._path} has brought no plane in {settings.timeout_s:g} s: "
                    "check the path, or wait longer with --follow-timeout"
                )
            self._pause()

    def _open(self) -> Growing | None:
        path, settings = self._path, self._settings
        if not path.is_dir():
            if path.exists():
                raise InputError(
                    f"{path} is a file: a growing Zarr or a growing folder of TIFF "
                    "planes can be followed"
                )
            return None
        if is_store(path):
            try:
                return GrowingZarr(path, settings.settle_s, settings.read)
            except InputError:
                # Its metadata may be half written; in the end, this error counts.
                now = time.monotonic()
                if self._unread_from is None:
                    self._unread_from = now
                if now - self._unread_from > settings.timeout_s / 2:
                    raise
                return None
        if any(p.suffix.lower() in (".tif", ".tiff") for p in path.iterdir()):
            return GrowingFolder(path, settings.settle_s, settings.read)
        return None

    def _pause(self) -> None:
        if self._cancel.wait(self._settings.poll_s):
            raise CancelledError("stopped by the caller")

    def _bring(
        self, growing: Growing, live: LiveSegmenter, image: GrowingProjections
    ) -> None:
        """Push what is whole, until the stack is complete."""
        try:
            z = 0
            ended = False
            # An array that had its depth before its planes is complete with the last;
            # one that is made longer may be made longer still.
            ahead = growing.declared is not None and growing.there < growing.declared
            final = growing.declared if ahead else None
            while not self._stop.is_set():
                if z < self._usable(growing):
                    z = self._push(growing, live, image, z)
                    continue
                if ended or self._is_complete(growing, z, final):
                    break
                # A push may have taken longer than the timeout: what came meanwhile
                # is news that nobody has looked at.
                growing.look()
                self._tell_of_absent(growing, z)
                if z < self._usable(growing):
                    continue
                if growing.quiet_s > self._settings.timeout_s:
                    growing.end()
                    ended = True
                    continue
                self._pause()
            if ended:
                self._warn_of_end(growing, z)
            live.finish()
            while not self._stop.wait(self._settings.poll_s):
                if self._cancel.is_set():
                    raise CancelledError("stopped by the caller")
        except NeurodeployError as error:
            live.fail(error)
        except BaseException as error:
            failed = ReadError(f"{self._path} cannot be read: {error}")
            failed.__cause__ = error
            live.fail(failed)

    def _warn_of_end(self, growing: Growing, planes: int) -> None:
        quiet = f"nothing came for {self._settings.timeout_s:g} s"
        wanted = self._settings.planes or growing.declared or 0
        if planes < wanted:
            self._warnings.append(
                f"the stack ended after {planes} of {wanted} planes: {quiet}"
            )
        if growing.doubtful:
            self._warnings.append(
                f"{growing.doubtful}, and what was not written is taken as empty: "
                f"{quiet}"
            )

    def _usable(self, growing: Growing) -> int:
        """Planes that are whole, as far as they are wanted."""
        wanted = self._settings.planes
        return growing.whole if wanted is None else min(growing.whole, wanted)

    def _is_complete(self, growing: Growing, z: int, final: int | None) -> bool:
        if self._settings.planes is not None:
            return z >= self._settings.planes
        return final is not None and z == final == growing.declared

    def _push(
        self, growing: Growing, live: LiveSegmenter, image: GrowingProjections, z: int
    ) -> int:
        pixels = growing.plane_shape[0] * growing.plane_shape[1]
        most = max(1, READ_BYTES // (pixels * growing.dtype.itemsize))
        stop = min(self._usable(growing), z + most)
        planes = growing.read(z, stop)
        for plane in planes:
            image.add(plane)
        taken = 0
        while taken < len(planes):
            if self._stop.is_set() or self._cancel.is_set():
                raise CancelledError("stopped by the caller")
            try:
                live.push(planes[taken:])
                taken = len(planes)
            except OverrunError as error:
                taken += error.accepted
        return stop

    def _tell(self, planes: int, growing: Growing) -> None:
        if self._progress is None:
            return
        pixels = growing.plane_shape[0] * growing.plane_shape[1]
        total = max(planes, growing.declared or self._settings.planes or growing.there)
        seconds = time.perf_counter() - self._start
        with self._telling:
            self._progress(Progress(planes * pixels, total * pixels, 0, seconds))

    def _tell_of_absent(self, growing: Growing, planes: int) -> None:
        """Say once what is waited for: nothing behind it is segmented meanwhile."""
        if growing.lacks == self._told:
            return
        self._told = growing.lacks
        if self._progress is None or not growing.lacks:
            return
        seconds = time.perf_counter() - self._start
        note = f"waits at plane {planes}: {growing.lacks}"
        with self._telling:
            self._progress(Progress(0, 1, 0, seconds, note))

    # -- what goes -------------------------------------------------------------

    def _finish(
        self,
        growing: Growing,
        live: LiveSegmenter,
        spool: Spool,
        image: GrowingProjections,
        result: GrowingProjections,
        foreground: int,
    ) -> Report:
        if spool.planes == 0:
            raise InputError(f"{self._path} held no plane")
        status = live.status
        shape = (spool.planes, *growing.plane_shape)
        normalisation = status.normalisation
        fingerprint, described = self._identity()
        engine: Callable[[], dict[str, Any]] = live.engines[0].describe
        inside = {
            "input": {
                "fingerprint": fingerprint,
                "shape": list(shape),
                "dtype": growing.dtype.name,
            },
            "model": {
                "name": self._bundle.spec.name,
                "digest": self._bundle.digest,
            },
            "engine": engine(),
            "normalisation": None if normalisation is None else normalisation.to_json(),
            "tiles": {
                "tile": list(live.plan.tile),
                "window": list(live.plan.window),
                "overlap": [axis.overlap for axis in live.plan.axes],
                "flips": self._settings.live.flips,
            },
            "threshold": live.threshold,
            "skip": None,
            "output": {
                "format": sink_kind(self._output),
                "kind": self._settings.live.output_kind,
                "roi": str(Box.whole(shape)),
            },
            "seam_map": False,
            "tissue": None,
            "workers": 1,
            "followed": True,
            "versions": versions(),
            "machine": machine(),
        }
        mask = self._settings.live.output_kind == "mask"
        size = self._settings.read.voxel_size_um or growing.voxel_size_um
        with PlaneWriter(
            self._output,
            shape,
            size,
            mask=mask,
            overwrite=self._overwrite,
        ) as writer:
            plane = np.empty(growing.plane_shape, np.uint8)
            for z in range(spool.planes):
                if self._cancel.is_set():
                    raise CancelledError("stopped by the caller")
                spool.read(z, plane)
                writer.add(plane)
            content = {self._output.name: writer.content()}
            writer.finish(inside)
        png = draw_picture(
            image.projections(growing.plane_shape),
            result.projections(growing.plane_shape),
            size[0] / size[2] if size else 1.0,
        )
        wall = max(self._end_s - self._start, 1e-9)
        seconds = {k: round(v, 3) for k, v in sorted(live.stage_seconds.items())}
        report = Report(
            output=str(self._output),
            outputs=[str(self._output)],
            picture=str(self._paths.picture),
            shape=shape,
            voxels=Box.whole(shape).voxels,
            resumed_voxels=0,
            foreground_voxels=foreground,
            tiles_run=live.tiles_run,
            redundancy=round(replace(live.plan, shape=shape).redundancy, 4),
            wall_s=round(wall, 3),
            seconds=seconds,
            engine_busy=round(seconds.get("infer", 0.0) / wall, 4),
            mvoxel_per_s=round(Box.whole(shape).voxels / wall / 1e6, 4),
            peak_rss_bytes=peak_rss(),
            memory_plan_bytes=live.buffer_bytes,
            warnings=self._warnings,
            provenance={
                **inside,
                "notes": {
                    "passed_over": list(live.passed_over),
                    "opened_with": _only_set(self._settings.read),
                },
                "input_file": described,
                "content": content,
                "latency_s": {
                    "p50": status.latency_p50_s,
                    "p99": status.latency_p99_s,
                    "max": status.latency_max_s,
                },
                "command": sys.argv,
            },
        )
        write_atomically(self._paths.picture, png)
        write_atomically(
            self._paths.report, json.dumps(report.to_json(), indent=1, default=str)
        )
        return report

    def _identity(self) -> tuple[str | None, dict[str, Any]]:
        """By what the input is known again, which may be growing still."""
        try:
            with open_volume(self._path, **_only_set(self._settings.read)) as source:
                return source.fingerprint(), source.describe()
        except (NeurodeployError, OSError) as error:
            self._warnings.append(
                f"the input has no fingerprint, and `reproduce` will refuse it: {error}"
            )
            return None, {"path": str(self._path)}


def _only_set(read: ReadOptions) -> dict[str, Any]:
    names = ("channel", "time", "level", "axes", "dataset")
    return {name: getattr(read, name) for name in names}
