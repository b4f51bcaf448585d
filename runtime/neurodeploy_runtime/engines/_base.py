"""What every engine is: a context manager that runs a network on a batch of tiles."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._bundle import Bundle
from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._rss import machine_memory
from neurodeploy_runtime.arrays import Arrays, HostArrays

EngineName = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]
PlaceName = Literal["auto", "host", "gpu"]


@dataclass(frozen=True)
class EngineSettings:
    """Which engine is asked for; `auto` chooses and says why.

    `device` is ``auto``, ``cpu``, ``cuda:N`` or, to segment a volume, several GPUs of
    one kind as ``cuda:0,cuda:1``; `threads` are those of a CPU engine
    (None: every core that this process may use); `batch` is the fixed number of tiles
    of a call (None: 1 on a CPU, the model's `max_batch` on a GPU). Where the bundle has
    local settings of this machine, None is what they say. `blend_on` says
    where tiles are normalised, blended and quantised: with `auto` on the engine's GPU
    where CuPy is installed, else on the host. The result has the same bits.
    """

    engine: EngineName = "auto"
    device: str = "auto"
    precision: PrecisionName = "auto"
    threads: int | None = None
    batch: int | None = None
    blend_on: PlaceName = "auto"


def take_answer(answer: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Copy what a network answered; a ValueError where it is no window for each tile.

    A smaller answer would be repeated until it fills `out`.
    """
    if answer.shape != out.shape:
        raise ValueError(
            f"it answers {answer.shape}, and the bundle says {out.shape} (batch, 1, "
            "*window): export the checkpoint again"
        )
    np.copyto(out, answer, casting="same_kind")


class Engine(ABC):
    """A network, loaded and warm.

    The batch shape is fixed: the last batch of a run is padded. That is what makes a
    tile's answer independent of its neighbours in the batch.
    """

    #: The name a user asks for it by.
    name: ClassVar[str]
    #: Whether tiles stay on its GPU between normalising and quantising.
    resident: bool = False
    #: Whether `infer` also takes a part of a batch.
    divisible: ClassVar[bool] = False
    #: How many calls of `infer` it computes at the same time.
    at_once: int = 1
    #: What was asked for and is not so, for a report.
    notes: tuple[str, ...] = ()

    def __init__(
        self, bundle: Bundle, *, device: str, precision: str, batch: int
    ) -> None:
        self.bundle = bundle
        self.device = device
        self.precision = precision
        self.batch = batch
        self._require_room()

    def _require_room(self) -> None:
        """Refuse a batch whose tiles alone are more than the machine's memory."""
        wanted = 4 * (math.prod(self.input_shape) + math.prod(self.output_shape))
        there = machine_memory()
        if there is not None and wanted > there:
            one = wanted // self.batch
            most = there // one
            raise SettingsError(
                f"a batch of {self.batch} tiles takes {wanted / 1e9:.1f} GB, but this "
                f"process can have {there / 1e9:.1f}: "
                + (
                    f"ask for a batch of at most {max(1, most // 4)}"
                    if most
                    else "use another machine, or a model of smaller tiles"
                )
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(B, 1, *tile)."""
        return (self.batch, 1, *self.bundle.spec.tile)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(B, 1, *window)."""
        return (self.batch, 1, *self.bundle.spec.window)

    @abstractmethod
    def infer(self, batch: NDArray[np.float32], out: NDArray[np.float32]) -> None:
        """Run the network: `batch` is `input_shape`, `out` is `output_shape`.

        Streams may share an engine: it may be called from several threads.

        Raises
        ------
        EngineError
            The network could not be run; the text says what the library said.
        """

    def arrays(self) -> Arrays:
        """New arrays that lie where :meth:`infer_resident` reads and writes."""
        return HostArrays()

    def infer_resident(self, batch: Any, out: Any, arrays: Arrays) -> None:
        """As :meth:`infer`, on what `arrays` hold; done when it returns.

        Raises
        ------
        EngineError
            The network could not be run; the text says what the library said.
        """
        self.infer(batch, out)

    def warm_up(self) -> None:
        """Run once, so that the first real tile costs what all others do.

        As many calls as are computed at once: each of them has memory of its own.
        """

        def run() -> None:
            out = np.empty(self.output_shape, np.float32)
            self.infer(np.zeros(self.input_shape, np.float32), out)

        self.in_each(run)

    def in_each(self, job: Callable[[], object]) -> None:
        """Run `job` in as many threads as there are calls at once; the first error."""
        if self.at_once == 1:
            job()
            return
        with ThreadPoolExecutor(self.at_once, f"{self.name} call") as pool:
            for ended in [pool.submit(job) for _ in range(self.at_once)]:
                ended.result()

    def describe(self) -> dict[str, Any]:
        """What runs where, for a report."""
        return {
            "engine": self.name,
            "device": self.device,
            "precision": self.precision,
            "batch": self.batch,
        }

    @abstractmethod
    def close(self) -> None:
        """Give back what it holds; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
