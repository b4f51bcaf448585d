"""Files that name the process which has a place, and are taken over from the dead."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path

from neurodeploy_runtime._errors import OutputError
from neurodeploy_runtime._process import still_runs, this_process

#: A lock whose heartbeat is older than this is a dead worker's, where it cannot be
#: seen whether its process runs: of another host, boot or container, and on Windows.
LEASE_S = 120.0
#: A lock that names nobody for longer was left by a kill.
STARTING, STARTING_S = "a process that is just starting", 2.0


def take_lock(path: Path) -> str | None:
    """Make a lock file that names this process; None, or who has it.

    A lock of a process that is dead, or of which only the heartbeat can be seen and
    that has stopped, is taken over.
    """
    seen: tuple[int, int] | None = None
    patience = 0.0
    taken_over = 0
    while taken_over < 3:
        if _place(path):
            return None
        content = _content(path)
        alive = lock_holder(path)
        if alive == STARTING:
            # Its name comes at once, or it was killed before it could write it. By our
            # clock, whatever that of the disk says; another lock has its own time.
            now = _stamp(path)
            if now != seen:
                seen, patience = now, time.monotonic() + STARTING_S
            if time.monotonic() < patience:
                time.sleep(0.05)
                continue
            alive = None
        if alive is not None:
            return alive
        _remove_dead(path, content)
        taken_over += 1
    return "another process, at this very moment,"


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _remove_dead(path: Path, content: bytes | None) -> None:
    """Remove the lock of this content, and none that has come in its place.

    Two may find one that is dead at the same moment: what the slower of them moves
    aside is then the lock of the faster, and goes back.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.dead")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _content(aside) != content:
            with contextlib.suppress(OSError):
                os.link(aside, path)
        aside.unlink(missing_ok=True)


def _place(path: Path) -> bool:
    """Put a lock there that names this process; whether there was none."""
    mine = json.dumps(this_process())
    whole = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        whole.write_text(mine)
        try:
            # Written before it is seen: no lock is ever empty.
            os.link(whole, path)
            return True
        except FileExistsError:
            return False
        except OSError:
            # A file system without hard links.
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(handle, "w") as out:
                out.write(mine)
            return True
    except FileExistsError:
        return False
    except OSError as error:
        raise OutputError(f"cannot write to {path.parent}: {error}") from None
    finally:
        whole.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def lock_holder(path: Path) -> str | None:
    """Who holds a lock and lives; None where nobody does."""
    try:
        beat = path.stat().st_mtime
        values = json.loads(path.read_text() or "{}")
    except FileNotFoundError:
        return None
    except ValueError:
        values = {}
    if not isinstance(values, dict):
        values = {}
    host, pid = values.get("host"), values.get("pid")
    if not isinstance(pid, int):
        # Killed between making the file and writing it, or being written just now.
        return None if _now_there(path) - beat > STARTING_S else STARTING
    runs = still_runs(values)
    if runs:
        return f"process {pid} on this machine"
    if runs is False or (age := _now_there(path) - beat) > LEASE_S:
        return None
    return f"process {pid} on {host} (seen {age:.0f} s ago)"


def _now_there(path: Path) -> float:
    """The time by the clock of the disk, which dates heartbeats; ours may be another.

    A machine some minutes ahead would take every lock of the others for a dead one's.
    """
    probe = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.now")
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
