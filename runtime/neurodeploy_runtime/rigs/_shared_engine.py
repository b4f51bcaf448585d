"""One engine for several streams."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime.arrays import Arrays
from neurodeploy_runtime.engines import Engine


class SharedEngine(Engine):
    """Lets streams use an engine in turn; closing it leaves the engine open.

    `turns` are as many as there are calls that the engine computes at once.
    """

    name = "shared"

    def __init__(self, engine: Engine, turns: threading.Semaphore) -> None:
        super().__init__(
            engine.bundle,
            device=engine.device,
            precision=engine.precision,
            batch=engine.batch,
        )
        self._engine = engine
        self.resident = engine.resident
        self.at_once = engine.at_once
        self._turns = turns

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        with self._turns:
            self._engine.infer(batch, out)

    def arrays(self) -> Arrays:
        """See :meth:`Engine.arrays`."""
        return self._engine.arrays()

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        """See :meth:`Engine.infer_resident`."""
        with self._turns:
            self._engine.infer_resident(batch, out, arrays)

    def close(self) -> None:
        """See :meth:`Engine.close`."""
