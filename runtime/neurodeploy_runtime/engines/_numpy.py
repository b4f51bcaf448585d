"""An engine that is a NumPy function: for tests, and pipelines without a network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime.engines._base import Engine

Function = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class NumpyEngine(Engine):
    """Runs `function` on each batch, (B, 1, *tile) to (B, 1, *window).

    Without a function it is the identity on the window.
    """

    name = "numpy"
    divisible = True

    def __init__(
        self, bundle: Bundle, function: Function | None = None, *, batch: int = 1
    ) -> None:
        super().__init__(bundle, device="cpu", precision="fp32", batch=batch)
        z, y, x = bundle.spec.margin
        d, h, w = bundle.spec.window
        self._window = (
            slice(None),
            slice(None),
            slice(z, z + d),
            slice(y, y + h),
            slice(x, x + w),
        )
        self._function = function

    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """See :meth:`Engine.infer`."""
        if self._function is None:
            np.copyto(out, batch[self._window])
        else:
            np.copyto(out, self._function(batch))

    def close(self) -> None:
        """See :meth:`Engine.close`."""
