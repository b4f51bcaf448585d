"""What has become durable, bound to the input, the model and the settings.

Beside an unfinished output lies a folder, ``OUTPUT.neurodeploy`` (of an ingest,
``OUTPUT.ingest``)::

    plan.json            what is being made: identity of input, model, settings
    data.tif | …         the output so far
    done-I.log           one line per durable unit, by worker I
    failed-I.log         one line per unit that the disk refused, and why
    notes-I.log          what happened on the way and belongs into the report
    worker-I.lock        who works as I: host, process, its start, heartbeat
    begin.lock           who begins or joins: one at a time
    finish.lock          who gives the output its name

A unit is written and flushed first and recorded after; done means recorded and present
and readable. The folder goes away when the output has its final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._errors import OutputError, ResumeError, WriteError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._lock_file import LEASE_S, lock_holder, take_lock

PLAN = "plan.json"
HEARTBEAT_S = 10.0
MAX_PLAN_BYTES = 64_000_000
#: What runs leave in their folder, until they are finished: nothing else is removed.
OURS = (
    *("plan.json", "*.log", "*.lock", "naming", "replaced", "projections-*"),
    *("mask.*", "probability.*", "volume.*", "seam.*"),
    *(".plan.json.*", ".worker-*", ".begin.lock.*", ".finish.lock.*"),
    *(".projections-*", ".neurodeploy-*", ".nfs*"),
)


def checksum(voxels: NDArray[Any]) -> int:
    """CRC-32 of a unit's voxels."""
    return zlib.crc32(np.ascontiguousarray(voxels).data)


@dataclass(frozen=True)
class Record:
    """A durable unit: its first voxel, and of each of its outputs the checksum."""

    start: Shape
    checksums: tuple[int, ...]
    #: Voxels of the first output that are not zero.
    foreground: int = 0


class Journal:
    """The records of one output, and the lock of one of its workers."""

    def __init__(self, folder: Path, worker: int = 1) -> None:
        self.folder = folder
        self._worker = worker
        self._log: int | None = None
        self._beat: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock_path = folder / f"worker-{worker}.lock"
        self._held = [self._lock_path]

    @property
    def exists(self) -> bool:
        """Whether an unfinished run lies here."""
        return (self.folder / PLAN).is_file()

    def read_plan(self) -> dict[str, Any]:
        """What the unfinished run here is making."""
        path = self.folder / PLAN
        try:
            if path.stat().st_size > MAX_PLAN_BYTES:
                raise ValueError("too large")
            values = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise ResumeError(
                f"{path} cannot be read ({error}): remove {self.folder} to start again"
            ) from None
        if not isinstance(values, dict):
            raise ResumeError(
                f"{path} is not a plan: remove {self.folder} to start again"
            )
        return values

    def read_batch(self) -> int | None:
        """How many tiles a call had in the unfinished run here; None: not said."""
        return _batch(self.read_plan())

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Write down what is being made; atomic, so that half a plan is never seen."""
        try:
            self.folder.mkdir(exist_ok=True)
            write_atomically(
                self.folder / PLAN, json.dumps(plan, indent=1, sort_keys=True)
            )
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error}") from None

    def check(self, plan: Mapping[str, Any]) -> None:
        """Refuse to go on where the run here is of something else, naming what."""
        different = self.differences(plan["identity"])
        batch = _batch(self.read_plan())
        if (
            batch is not None
            and len(different) == 1
            and different[0].startswith("engine.batch ")
        ):
            # A GPU with less room than then, or more, may be all that changed.
            raise ResumeError(
                f"{self.folder} holds an unfinished run with "
                f"{different[0].removeprefix('engine.')}: pass --batch {batch} to go "
                "on with it, or --overwrite to start again"
            )
        if different and all(one.startswith("versions.") for one in different):
            raise ResumeError(
                f"{self.folder} holds an unfinished run of other "
                f"{'; '.join(different)}: go on with it where those are installed, "
                "choose another output, or pass --overwrite to start again"
            )
        if different:
            raise ResumeError(
                f"{self.folder} holds an unfinished run that differs in "
                f"{'; '.join(different[:4])}: repeat its command to go on with it, "
                "choose another output, or pass --overwrite to start again"
            )

    def differences(self, identity: Mapping[str, Any]) -> list[str]:
        """What the run here differs in from `identity`, each with both values."""
        mine = json.loads(json.dumps(identity))
        return _differences(self.read_plan().get("identity", {}), mine)

    # -- records ---------------------------------------------------------------

    def records(self) -> dict[Shape, Record]:
        """All units recorded by all workers; torn last lines count for nothing."""
        found: dict[Shape, Record] = {}
        for path in sorted(self.folder.glob("done-*.log")):
            try:
                text = path.read_bytes()
            except FileNotFoundError:
                # Another worker has finished, and removes what is not needed any more.
                continue
            for line in text[: text.rfind(b"\n") + 1].splitlines():
                try:
                    numbers = [int(field) for field in line.split()]
                    z, y, x, foreground, *sums = numbers
                except ValueError:
                    continue
                found[(z, y, x)] = Record((z, y, x), tuple(sums), foreground)
        return found

    def record(
        self, unit: Box, checksums: tuple[int, ...], foreground: int = 0
    ) -> None:
        """Note that a unit is durable; the note is flushed before it returns."""
        numbers = (*unit.start, foreground, *checksums)
        line = " ".join(str(n) for n in numbers) + "\n"
        try:
            if self._log is None:
                path = self.folder / f"done-{self._worker}.log"
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
                self._log = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o644)
                size = os.lseek(self._log, 0, os.SEEK_END)
                os.lseek(self._log, max(0, size - 1), os.SEEK_SET)  # no pread: Windows
                # A line torn by a kill is closed, so that it spoils no other.
                if os.read(self._log, 1) not in (b"", b"\n"):
                    os.write(self._log, b"\n")
            os.write(self._log, line.encode())
            os.fsync(self._log)
        except OSError as error:
            raise WriteError(
                f"cannot record in {self.folder}: {error}; make room and run the same "
                "command again to continue"
            ) from error

    def record_failure(self, unit: Box, reason: str) -> None:
        """Note that a unit could not be written; for people to read."""
        when = time.strftime("%Y-%m-%dT%H:%M:%S")
        self._append("failed", f"{when} {unit} {reason}")

    def note(self, text: str) -> None:
        """Keep a sentence for the report, whoever will write it."""
        self._append("notes", " ".join(text.split()))

    def notes(self) -> list[str]:
        """What all workers of this run, and of the ones it continues, have noted."""
        return [
            line
            for path in sorted(self.folder.glob("notes-*.log"))
            for line in path.read_text("utf-8", "replace").splitlines()
        ]

    def _append(self, log: str, line: str) -> None:
        path = self.folder / f"{log}-{self._worker}.log"
        try:
            with path.open("a", encoding="utf-8") as out:
                out.write(line + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {path}: {error}") from error

    # -- one process per worker ------------------------------------------------

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """Within, nobody else begins, clears or joins what lies here: they wait.

        Who begins removes what lies here without a plan, and that must not be what
        another worker, whose place is not yet seen, has just made. The folder is made
        where it is not there.
        """
        path = self.folder / "begin.lock"
        end = time.monotonic() + LEASE_S
        while (holder := self._take_in_folder(path)) is not None:
            if time.monotonic() > end:
                raise ResumeError(
                    f"{holder} has been about to begin in {self.folder} for "
                    f"{LEASE_S:.0f} s: wait for it, or stop it"
                )
            time.sleep(0.05)
        self._held.append(path)
        try:
            yield
        finally:
            self._held.remove(path)
            path.unlink(missing_ok=True)

    def _take_in_folder(self, path: Path) -> str | None:
        """As :func:`take_lock`; who was refused may remove the folder at any moment."""
        for _ in range(10):
            try:
                self.folder.mkdir(exist_ok=True)
            except OSError as error:
                raise OutputError(f"cannot write to {self.folder}: {error}") from None
            try:
                return take_lock(path)
            except OutputError:
                if self.folder.is_dir():
                    raise
        return "another process, at this very moment,"

    def lock(self) -> None:
        """Take this worker's place; ResumeError where another process has it.

        The folder is made where it is not there; who has the place keeps it.
        """
        if self._beat is not None:
            return
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write to {self.folder}: {error}") from None
        holder = take_lock(self._lock_path)
        if holder is not None:
            raise ResumeError(
                f"{holder} is working on this output as worker {self._worker}: wait "
                "for it, or stop it"
            )
        self._stop.clear()
        self._beat = threading.Thread(
            target=self._keep_alive, name="heartbeat", daemon=True
        )
        self._beat.start()

    def clear(self) -> None:
        """Remove what an unfinished run has left; this worker keeps its place.

        The plan goes first: what a kill leaves of the rest belongs to nobody then.

        Raises
        ------
        ResumeError
            Another worker of that run is alive.
        OutputError
            Something else lies there, too, or cannot be removed: nothing is.
        """
        for path in self.folder.iterdir():
            if not any(fnmatch(path.name, pattern) for pattern in OURS):
                raise OutputError(
                    f"{path} is not of an unfinished run, and {self.folder} is in the "
                    "way: move it elsewhere, or choose another output"
                )
        if others := self._others():
            raise ResumeError(
                f"{others[0]} is working on what lies in {self.folder}: wait for it, "
                "or stop it"
            )
        self._close_log()
        try:
            if self.exists:
                (self.folder / PLAN).unlink(missing_ok=True)
            for path in self.folder.iterdir():
                if path in self._held:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot clear {self.folder}: {error}") from None

    def remove(self) -> None:
        """Clear the folder, give the place back, and remove the folder itself."""
        self.clear()
        self.close()
        # Somebody may have taken the place in this very moment.
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _keep_alive(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            for path in tuple(self._held):
                # A file server that fails once may answer the next time.
                with contextlib.suppress(OSError):
                    os.utime(path)

    def claim_finish(self) -> bool:
        """Whether this worker is the one that gives the output its final name.

        It waits for the others to leave: they may be saving their part of the picture,
        or making a unit again that they found damaged. One that stays for long has
        more to do, and finishes itself.
        """
        path = self.folder / "finish.lock"
        if not self.folder.is_dir() or take_lock(path) is not None:
            return False
        # To finish a large output may take longer than a lock lasts without a sign.
        self._held.append(path)
        alone = False
        try:
            end = time.monotonic() + LEASE_S
            while not (alone := not self._others()) and time.monotonic() < end:
                time.sleep(0.05)
        finally:
            if not alone:
                self.leave_finish()
        return alone

    def leave_finish(self) -> None:
        """Let another worker, or a later run, give the output its name."""
        path = self.folder / "finish.lock"
        if path in self._held:
            self._held.remove(path)
            path.unlink(missing_ok=True)

    def _others(self) -> list[str]:
        """The other workers that are alive."""
        locks = self.folder.glob("worker-*.lock")
        found = [lock_holder(path) for path in locks if path != self._lock_path]
        return [holder for holder in found if holder is not None]

    def close(self) -> None:
        """Give the worker's place back; may be called twice."""
        self._stop.set()
        self._close_log()
        if self._beat is not None:
            # Ctrl-C may fall while it is started; it ends by itself then.
            if self._beat.is_alive():
                self._beat.join()
            self._beat = None
            self._lock_path.unlink(missing_ok=True)

    def _close_log(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None


def _batch(plan: Mapping[str, Any]) -> int | None:
    """The batch that a run was begun with; None where the plan does not say."""
    identity = plan.get("identity")
    engine = identity.get("engine") if isinstance(identity, dict) else None
    batch = engine.get("batch") if isinstance(engine, dict) else None
    return batch if type(batch) is int and batch >= 1 else None


def _differences(theirs: Any, mine: Any, name: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        found = []
        for key in sorted(set(theirs) | set(mine)):
            found += _differences(
                theirs.get(key), mine.get(key), f"{name}.{key}" if name else key
            )
        return found
    if theirs == mine:
        return []
    return [f"{name} ({_short(theirs)} there, {_short(mine)} asked for)"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "…" + text[-8:]
