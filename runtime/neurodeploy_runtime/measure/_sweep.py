"""Which batch and how many threads an engine is fastest with, on this machine."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime.engines import EngineSettings, open_engine, tile_seconds
from neurodeploy_runtime.engines._cores import usable_cores
from neurodeploy_runtime.measure._compare import candidates


@dataclass(frozen=True)
class Trial:
    """One setting, and the seconds of a tile with it: median, least and most."""

    settings: EngineSettings
    tile_s: float
    spread: tuple[float, float]


def sweep(
    bundle: Bundle,
    settings: EngineSettings,
    *,
    batches: Sequence[int] | None = None,
    threads: Sequence[int] | None = None,
    turns: int = 3,
) -> list[Trial]:
    """Time tiles with every batch and number of threads, in turn; fastest first.

    By default batches are powers of two up to the model's `max_batch`, at most 8 on a
    CPU, and threads (of a CPU engine) all cores that this process may use, and half.
    """
    on_cpu = settings.device == "cpu"
    most = max(1, min(bundle.spec.max_batch, 8) if on_cpu else bundle.spec.max_batch)
    if batches is None:
        batches = [2**n for n in range(most.bit_length()) if 2**n <= most]
    cores = usable_cores()
    counts: Sequence[int | None] = [None]
    if on_cpu:
        counts = threads or sorted({cores, max(1, cores // 2)})
    asked = [replace(settings, batch=b, threads=t) for b in batches for t in counts]
    # TensorRT's engines are made for batches up to some size; where none is possible,
    # opening the first says why.
    asked = [one for one in asked if _possible(bundle, one)] or asked[:1]
    seconds: dict[EngineSettings, list[float]] = {one: [] for one in asked}
    for _ in range(turns):
        for one in asked:
            with open_engine(bundle, one) as engine:
                if engine.batch != one.batch:
                    # A GPU did not hold it: that is another trial's figure.
                    continue
                seconds[one] += tile_seconds(engine, calls=3)
    trials = [
        Trial(one, statistics.median(found), (min(found), max(found)))
        for one, found in seconds.items()
        if found
    ]
    return sorted(trials, key=lambda trial: trial.tile_s)


def _possible(bundle: Bundle, settings: EngineSettings) -> bool:
    return any(one.why_not is None for one in candidates(bundle, settings))
