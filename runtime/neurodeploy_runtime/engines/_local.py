"""A bundle's local settings: the batch and threads that are fastest on this machine.

They lie in ``local.json`` in the bundle's folder, outside of its seal, as its TensorRT
engines do: they are no part of the model. Each entry names the machine that it was
measured on; what was measured on another one counts for nothing here.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from neurodeploy_runtime._atomic import write_atomically
from neurodeploy_runtime._bundle import LOCAL_JSON, Bundle
from neurodeploy_runtime._errors import BundleError, OutputError
from neurodeploy_runtime._report import machine
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.engines._cuda_driver import gpus

#: Larger than any honest one; checked before it is read.
MAX_BYTES = 1_000_000


@dataclass(frozen=True)
class LocalSettings:
    """What an engine is run with on one machine where nobody says otherwise.

    `tile_s` are the seconds of a tile that were measured, on the day `date`.
    """

    engine: str
    precision: str
    machine: str
    batch: int
    threads: int | None
    tile_s: float
    date: str

    @property
    def key(self) -> tuple[str, str, str]:
        """One entry for each engine, precision and machine."""
        return self.engine, self.precision, self.machine


def this_machine(device: str) -> str:
    """What a figure of speed belongs to: the GPU, or the CPU and its usable cores."""
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        return next((gpu.name for gpu in gpus() if gpu.index == index), device)
    return f"{machine()['cpu']}, {usable_cores()} cores"


def local_settings(
    bundle: Bundle, engine: str, device: str, precision: str
) -> LocalSettings | None:
    """What was measured here for an engine in a precision; None where nothing was.

    Raises
    ------
    BundleError
        The file is not what :func:`keep_local` writes.
    """
    key = engine, precision, this_machine(device)
    return next((one for one in read_local(bundle) if one.key == key), None)


def read_local(bundle: Bundle) -> list[LocalSettings]:
    """All entries, of every machine.

    Raises
    ------
    BundleError
        The file is not what :func:`keep_local` writes.
    """
    path = bundle.path / LOCAL_JSON
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        return [_entry(bundle, one) for one in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise BundleError(
            f"{path} is not what `neurodeploy benchmark --tune` writes ({error}): "
            "remove it, and run that again"
        ) from None


def _entry(bundle: Bundle, values: Any) -> LocalSettings:
    names = {field.name for field in fields(LocalSettings)}
    if not isinstance(values, dict) or set(values) != names:
        raise ValueError(f"an entry does not hold {', '.join(sorted(names))}")
    one = LocalSettings(**values)
    if not all(isinstance(text, str) for text in (*one.key, one.date)):
        raise ValueError("engine, precision, machine and date are texts")
    if type(one.batch) is not int or not 1 <= one.batch <= bundle.spec.max_batch:
        raise ValueError(
            f"batch {one.batch!r} is not between 1 and {bundle.spec.max_batch}"
        )
    if one.threads is not None and (type(one.threads) is not int or one.threads < 1):
        raise ValueError(f"threads {one.threads!r} is not a whole number from 1 on")
    if type(one.tile_s) not in (int, float) or not 0 < one.tile_s < math.inf:
        raise ValueError(f"tile_s {one.tile_s!r} is no time that a tile takes")
    return one


def keep_local(
    bundle: Bundle,
    *,
    engine: str,
    device: str,
    precision: str,
    batch: int,
    threads: int | None,
    tile_s: float,
) -> Path:
    """Keep what was measured, in place of what was measured here before.

    Raises
    ------
    OutputError
        The bundle's folder cannot be written to.
    """
    new = LocalSettings(
        engine,
        precision,
        this_machine(device),
        batch,
        threads,
        tile_s,
        time.strftime("%Y-%m-%d"),
    )
    path = bundle.path / LOCAL_JSON
    others = [one for one in read_local(bundle) if one.key != new.key]
    text = json.dumps([asdict(one) for one in (*others, new)], indent=1)
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error}): copy the bundle to where you may write, "
            "and name it with -m; or name the batch and the threads in each command"
        ) from None
    return path


def may_keep(bundle: Bundle) -> bool:
    """Whether local settings can be written, asked before minutes are spent."""
    return os.access(bundle.path, os.W_OK)
