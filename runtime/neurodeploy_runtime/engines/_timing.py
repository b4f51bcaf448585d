"""How long a tile takes an engine that does nothing else."""

from __future__ import annotations

import threading
import time

import numpy as np

from neurodeploy_runtime.engines._base import Engine


def tile_seconds(
    engine: Engine, calls: int = 5, *, seconds: float = 0.0, most: int = 2000
) -> list[float]:
    """Seconds for each tile, call after call, with as many under way as there can be.

    At least `calls` in each of those, and for as long as `seconds`, but not more than
    `most`; a first one does not count.

    Raises
    ------
    EngineError
        The network could not be run.
    """
    drawn = np.random.default_rng(0).random(engine.input_shape, np.float32)
    tiles = engine.batch * engine.at_once
    found: list[float] = []
    enough = threading.Event()
    # Whoever begins before the others would be alone, and faster.
    warm = threading.Barrier(engine.at_once)

    def call_after_call() -> None:
        try:
            arrays = engine.arrays()
            voxels = arrays.keep(drawn)
            answer = arrays.zeros(engine.output_shape)
            engine.infer_resident(voxels, answer, arrays)
            warm.wait()
            end = time.perf_counter() + seconds
            while not enough.is_set():
                start = time.perf_counter()
                engine.infer_resident(voxels, answer, arrays)
                now = time.perf_counter()
                found.append((now - start) / tiles)
                many = len(found) >= calls * engine.at_once
                if (many and now >= end) or len(found) >= most:
                    enough.set()
        except threading.BrokenBarrierError:
            # Another one has failed, and raises why.
            return
        except BaseException:
            enough.set()
            warm.abort()
            raise

    engine.in_each(call_after_call)
    return found
