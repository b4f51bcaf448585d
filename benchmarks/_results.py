"""What a benchmark found, as a JSON file that says where and how it was found."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from neurodeploy_runtime._report import machine, versions
from neurodeploy_runtime._rss import machine_memory

RESULTS = Path(__file__).parent / "results"

#: Libraries of peers and of the training side, beside those that the runtime names.
PEERS = ("torch", "monai", "torchio", "nnunetv2", "torch-em", "zarr", "onnx")

#: What the kernel calls the parts of a CPU that decide these figures.
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile")


def stamp() -> dict[str, Any]:
    """Where, with what, when and by which command a figure was made."""
    libraries = versions()
    for name in PEERS:
        try:
            libraries[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    script = Path(sys.argv[0])
    return {
        "machine": {
            **machine(),
            "memory_bytes": machine_memory(),
            "cpu_flags": cpu_flags(),
            "gpu": gpu_name(),
        },
        "versions": libraries,
        "commit": commit(),
        "dirty": dirty(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        # Where somebody's folders lie is nobody's business.
        "command": " ".join(
            ["python", f"benchmarks/{script.name}"]
            + [Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:]]
        ),
        "load_at_start": round(os.getloadavg()[0], 2),
    }


def save(name: str, values: dict[str, Any], started: dict[str, Any]) -> Path:
    """Write ``results/<name>.json``; `started` is the stamp taken at the start."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    written = {
        **started,
        "load_at_end": round(os.getloadavg()[0], 2),
        **values,
    }
    path.write_text(json.dumps(written, indent=1) + "\n")
    return path


def load(name: str) -> dict[str, Any] | None:
    """What ``results/<name>.json`` holds; None where it was not run."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, and the least and most of it."""
    return {
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "n": len(values),
    }


def cpu_flags() -> list[str]:
    """Which of `CPU_FLAGS` this CPU has."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    words = set(text.partition("flags")[2].partition("\n")[0].split())
    return [flag for flag in CPU_FLAGS if flag in words]


def gpu_name() -> str | None:
    """The GPU that the NVIDIA driver names; None without one."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def commit() -> str | None:
    """The commit of this checkout."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or None


def dirty(checkout: Path = Path(__file__).parents[1]) -> bool | None:
    """Whether what ran differs from that commit; None where git does not say.

    What runs write themselves, the results, does not count.
    """
    found = subprocess.run(
        [
            *("git", "status", "--porcelain", "--untracked-files=no", "--"),
            *(".", ":(exclude)benchmarks/results"),
        ],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    return bool(found.stdout.strip()) if found.returncode == 0 else None


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, columns padded so that it also reads as text."""
    cells = [[str(c) for c in row] for row in [head, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
