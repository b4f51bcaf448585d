"""A batch in portions, once the memory of a GPU no longer holds it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neurodeploy_runtime._errors import GpuMemoryError
from neurodeploy_runtime.engines._base import Engine

Infer = Callable[[Any, Any], None]


class Portions:
    """Runs batches through an engine; smaller ones from where they do not fit.

    That happens amid a run where another program takes memory of the same GPU. What
    was asked for goes on, and `said` is told: half a batch may run other kernels, whose
    last bits may differ.

    Parameters
    ----------
    engine
        Warm: a batch of its has fitted before.
    infer
        How it runs `voxels` (B, 1, *tile) into `answer` (B, 1, *window), float32.
    said
        Called with a sentence each time the portion becomes smaller.
    """

    def __init__(
        self, engine: Engine, infer: Infer, said: Callable[[str], None]
    ) -> None:
        self._engine = engine
        self._infer = infer
        self._said = said
        self._portion = engine.batch

    def __call__(self, voxels: Any, answer: Any) -> None:
        """Run a batch.

        Raises
        ------
        GpuMemoryError
            Not even one tile fits, or the engine runs whole batches only.
        """
        while True:
            try:
                for first in range(0, len(voxels), self._portion):
                    part = slice(first, first + self._portion)
                    self._infer(voxels[part], answer[part])
                return
            except GpuMemoryError as error:
                if self._portion < 2 or not self._engine.divisible:
                    raise
                before, self._portion = self._portion, self._portion // 2
                self._said(
                    f"{self._engine.device} no longer holds {before} tiles at once: "
                    f"they are run {self._portion} at a time from there on, and the "
                    f"last bits of their answers may differ ({error})"
                )
