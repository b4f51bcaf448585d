"""What a run did: one screen for a person, JSON for a program."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from typing import Any

from neurodeploy_runtime._normalise import Histogram, Normalisation
from neurodeploy_runtime._spec import ModelSpec

LIBRARIES = (
    "neurodeploy",
    "numpy",
    "tifffile",
    "imagecodecs",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "tensorstore",
    "cupy-cuda12x",
    "cupy-cuda13x",
)


@dataclass(frozen=True)
class Report:
    """The end of a run.

    `seconds` are by stage; stages overlap, so they sum to more than `wall_s`.
    `engine_busy` is the share of `wall_s` in which an engine was computing, for one
    engine; `resumed_voxels` were done by earlier runs and count in no rate.
    """

    output: str
    outputs: list[str]
    picture: str
    shape: tuple[int, int, int]
    voxels: int
    resumed_voxels: int
    foreground_voxels: int
    tiles_run: int
    redundancy: float
    wall_s: float
    seconds: dict[str, float]
    engine_busy: float
    mvoxel_per_s: float
    peak_rss_bytes: int | None
    memory_plan_bytes: int
    warnings: list[str]
    provenance: dict[str, Any]
    skip: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def versions() -> dict[str, str]:
    """Versions of what takes part, where installed."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    # Once a process: each is parsed out of a file of metadata.
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What this machine is, as far as its system says."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    model = line.partition(":")[2].strip()
                    break
    except OSError:
        pass
    return {
        "system": platform.platform(),
        "cpu": model,
        "cores": os.cpu_count(),
    }


def out_of_range(
    spec: ModelSpec, normalisation: Normalisation, histogram: Histogram
) -> list[str]:
    """Warnings where the volume lies outside what the model was validated on.

    A bundle lists ranges under `validated_on`: of `background_over_noise` and of
    `bright_over_noise`, the normalised 99.9th percentile before asinh.
    """
    (bright,) = histogram.quantiles([0.999])
    measured = {
        "background_over_noise": normalisation.background / normalisation.noise,
        "bright_over_noise": (bright - normalisation.background) / normalisation.noise,
    }
    warnings = []
    for name, value in measured.items():
        limits = spec.validated_on.get(name)
        if (
            isinstance(limits, list | tuple)
            and len(limits) == 2
            and not limits[0] <= value <= limits[1]
        ):
            warnings.append(
                f"{name.replace('_', ' ')} is {value:.3g} in this volume, and the "
                f"model was validated between {limits[0]:.3g} and {limits[1]:.3g}: "
                "look at the picture before you trust the result"
            )
    return warnings
