"""Measuring in a process that has done nothing else."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

MARK = "MEASURED "


def metered(work: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """Run `work` once; what it took of wall time, CPU time and memory.

    `peak_bytes` is the kernel's peak of resident memory during the work over what the
    process held before; None where the kernel does not give it.
    """
    gc.collect()
    _reset_peak()
    held = _status("VmRSS")
    cpu, wall = _cpu(), time.perf_counter()
    result = work()
    wall = time.perf_counter() - wall
    cpu = _cpu() - cpu
    peak = _status("VmHWM")
    figures = {"wall_s": wall, "cpu_s": cpu}
    if held is not None and peak is not None:
        figures |= {"peak_bytes": peak - held, "peak_rss_bytes": peak}
    return result, figures


def in_fresh_process(
    script: str | Path,
    job: dict[str, Any],
    *,
    threads: int | None = None,
    timeout_s: float = 3000,
    python: str = sys.executable,
) -> dict[str, Any]:
    """Run ``script --job JSON``, which calls :func:`answer`; what it answered.

    A job that fails gives ``{"error": its last line}``.
    """
    environment = dict(os.environ)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            environment[name] = str(threads)
    try:
        child = subprocess.run(
            [python, str(script), "--job", json.dumps(job)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {timeout_s:.0f} s"}
    for line in child.stdout.splitlines():
        if line.startswith(MARK):
            values: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return values
    last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    return {"error": last}


def answer(values: dict[str, Any]) -> None:
    """What a job found, to the process that asked."""
    print(MARK + json.dumps(values), flush=True)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _status(name: str) -> int | None:
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
