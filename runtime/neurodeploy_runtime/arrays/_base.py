"""What any memory does for a stream: hold tiles, and compute where they lie."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._normalise import Normalisation

PlaneKind = Literal["mask", "probability"]


@dataclass(frozen=True)
class Normaliser:
    """A normalisation, ready for one dtype.

    `table` holds every value of the dtype normalised, where the dtype allows one; it
    lies where the arrays do. `unsigned` is the dtype to look voxels up by.
    """

    normalisation: Normalisation
    table: Any | None
    unsigned: np.dtype[Any]


class Arrays(ABC):
    """Where tiles, answers and their sums lie; one for each stream.

    Every kind gives the same bits: products, sums and roundings are single IEEE
    operations in one order, and what is none, the logarithm of a float voxel, is
    always computed by the host. Sums below 1.2e-38, which a GPU may take for 0, are 0
    in every output.
    """

    #: For a report: where it is.
    place: str
    #: Bytes that it may still take; None: the host, whose memory is planned elsewhere.
    free_bytes: int | None = None
    #: NumPy, or a module with its functions.
    xp: ModuleType

    def step(self) -> AbstractContextManager[None]:
        """Work of the calling thread; it is done, and visible to others, at the end."""
        return nullcontext()

    @abstractmethod
    def zeros(self, shape: tuple[int, ...]) -> Any:
        """Zeros, float32, every page of them touched."""

    @abstractmethod
    def keep(self, constant: NDArray[np.float32]) -> Any:
        """A constant where the arrays lie."""

    def prepare(self, normalisation: Normalisation, dtype: np.dtype[Any]) -> Normaliser:
        """A normalisation for voxels of a dtype."""
        table = normalisation.table(dtype)
        return Normaliser(
            normalisation,
            None if table is None else self.keep(table),
            np.dtype(f"u{dtype.itemsize}"),
        )

    @abstractmethod
    def normalise(
        self, parts: Sequence[NDArray[Any]], normaliser: Normaliser, out: Any
    ) -> None:
        """Raw voxels of the host, stacked in z, into a tile (z, y, x) float32."""

    @abstractmethod
    def add_weighted(
        self, window: Any, weights: Any, depth: Any, into: Any, squares: Any | None
    ) -> None:
        """Add ``(window * weights) * depth`` to `into`.

        And that times `window` to `squares`, where given.

        Parameters
        ----------
        window, into, squares
            (z, y, x) float32.
        weights, depth
            (y, x) and (z,) float32, from :meth:`keep`.
        """

    @abstractmethod
    def quantise(
        self, kind: PlaneKind, threshold: float, plane: Any, out: NDArray[np.uint8]
    ) -> None:
        """A plane of probabilities (y, x) as uint8, into `out` on the host.

        `mask` is 255 where the probability is at or above the threshold, else 0;
        `probability` is 255 times the probability, rounded to even.
        """

    def finite(self, array: Any) -> bool:
        """Whether no value is NaN or infinite.

        A NaN is the least value of its array and the largest, by NumPy's rule and
        CuPy's; nothing of the array's size is allocated.
        """
        with self.step():
            return all(math.isfinite(float(v)) for v in (array.min(), array.max()))

    @abstractmethod
    def spread(self, mean: Any, squares: Any) -> NDArray[np.float32]:
        """``sqrt(max(squares - mean * mean, 0))`` on the host; may use up `squares`."""

    @abstractmethod
    def fetch(self, array: Any) -> NDArray[np.float32]:
        """The array on the host: itself where it lies there."""
