"""Grey values to what the network sees, with constants frozen for a whole volume.

Normalising by the *background* and not by the signal: a top percentile measures how
many axons a crop holds, the background's median and spread do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import ceil, inf, isfinite
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import InputError, SettingsError

Kind = Literal["background-asinh", "unit"]

#: A minimum that holds more than this share of the voxels is padding or clipping,
#: not background.
PADDING_SHARE = 0.05

#: Half of a normal distribution's central 68.27 % lies below its median.
LOWER_SIGMA = 0.158655

#: Voxels that are counted at a time.
PIECE = 1_000_000


@dataclass(frozen=True)
class Normalisation:
    """The constants by which one volume is normalised, the same for every tile.

    `background-asinh` gives ``asinh((v - background) / noise)``: linear near the
    background, logarithmic for bright neurites. `unit` gives ``(v - background) /
    noise``; for integers, with 0 and the dtype's maximum, that is [0, 1].
    """

    kind: Kind
    background: float
    noise: float

    def __post_init__(self) -> None:
        try:
            usable = isfinite(self.background) and 0 < self.noise < inf
        except TypeError:
            usable = False
        if self.kind not in get_args(Kind) or not usable:
            raise SettingsError(
                f"a background of {self.background!r} and a noise of {self.noise!r} "
                f"({self.kind}) normalise nothing: give finite numbers, the noise "
                f"above 0, and one of {', '.join(get_args(Kind))}"
            )

    def apply(
        self, voxels: NDArray[Any], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Normalised voxels, float32, of the same shape; into `out` where given."""
        if out is None:
            out = np.empty(voxels.shape, np.float32)
        scale = np.float32(1.0 / self.noise)
        if self.background == 0 and voxels.dtype.kind != "f":
            # Nothing to subtract: the same bits in one pass.
            np.multiply(voxels, scale, out=out, casting="unsafe")
        else:
            np.subtract(voxels, np.float32(self.background), out=out, casting="unsafe")
            np.multiply(out, scale, out=out)
        if self.kind == "background-asinh":
            np.arcsinh(out, out=out)
        return out

    def table(self, dtype: np.dtype[Any]) -> NDArray[np.float32] | None:
        """Every value of an 8- or 16-bit dtype normalised, to look voxels up in.

        None where `apply` is as fast or the dtype is another. Index it with the
        unsigned view of the voxels: it is one load per voxel where `apply` is a
        logarithm, and gives the same bits.
        """
        if self.kind == "unit" or dtype.kind not in "iu" or dtype.itemsize > 2:
            return None
        unsigned = np.dtype(f"u{dtype.itemsize}")
        every = np.arange(2 ** (8 * dtype.itemsize), dtype=unsigned)
        return self.apply(every.view(dtype.newbyteorder("=")))

    def to_json(self) -> dict[str, Any]:
        """As plain values for a report or a journal."""
        return asdict(self)


class Histogram:
    """A histogram that grows by chunks, from which a normalisation is frozen.

    Integers of up to 16 bits are counted exactly. Of other values every n-th is kept
    until :meth:`freeze`, n being the least power of 3 with which at most `max_kept`
    are; which ones does not depend on how the values were divided into chunks.
    """

    max_kept = 8_000_000

    def __init__(self, dtype: np.dtype[Any] | type[Any] | str) -> None:
        self.dtype = np.dtype(dtype).newbyteorder("=")
        self._exact = self.dtype.kind in "iu" and self.dtype.itemsize <= 2
        if self._exact:
            self._low = int(np.iinfo(self.dtype).min)
            self._counts = np.zeros(2 ** (8 * self.dtype.itemsize), np.int64)
        self._kept: list[NDArray[np.float32]] = []
        self._stride = 1
        self.voxels = 0

    def add(self, voxels: NDArray[Any]) -> None:
        """Count these voxels; a NaN or an infinity is an InputError."""
        if self._exact:
            flat = voxels.ravel()
            # In pieces: to be counted, each voxel becomes 8 bytes.
            for start in range(0, flat.size, PIECE):
                piece = flat[start : start + PIECE]
                index = piece if self._low == 0 else piece.astype(np.int64) - self._low
                self._counts += np.bincount(index, minlength=self._counts.size)
            self.voxels += flat.size
            return
        flat = voxels.astype(np.float32, copy=False).ravel()
        bad = int(flat.size - np.count_nonzero(np.isfinite(flat)))
        if bad:
            raise InputError(
                f"{bad} of {flat.size} voxels read are NaN or infinite: replace them "
                "(with the background, for example) before segmenting"
            )
        # By the number of voxels before it, so that the last chunk weighs as the first.
        self._kept.append(flat[-self.voxels % self._stride :: self._stride].copy())
        self.voxels += flat.size
        while sum(part.size for part in self._kept) > self.max_kept:
            # By 3: an even stride would meet the same columns in every row.
            self._stride *= 3
            before = 0
            for n, part in enumerate(self._kept):
                self._kept[n] = part[-before % 3 :: 3].copy()
                before += part.size

    def _values(self) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Values, ascending, and how many voxels have each; None: one has each."""
        if self._exact:
            index = np.flatnonzero(self._counts)
            return (index + self._low).astype(np.float64), self._counts[index]
        # Not distinct ones, with counts: that took ten times the memory.
        values = np.concatenate(self._kept)
        values.sort()
        return values, None

    def quantiles(self, shares: Iterable[float]) -> list[float]:
        """Grey values below which these shares of all voxels lie."""
        values, counts = self._values()
        return [_quantile(values, counts, share) for share in shares]

    def freeze(self, kind: Kind) -> Normalisation:
        """The normalisation of the volume that was counted.

        Raises
        ------
        InputError
            Where nothing was counted or every voxel has the same value.
        """
        if self.voxels == 0:
            raise InputError("the image is empty: nothing to normalise by")
        values, counts = self._values()
        if values[0] == values[-1]:
            raise InputError(
                f"the image is constant: every voxel that was read is {values[0]:g}; "
                "check the channel, the time point and the file"
            )
        if kind == "unit":
            top = float(np.iinfo(self.dtype).max) if self.dtype.kind in "iu" else 1.0
            return Normalisation("unit", 0.0, top)
        if counts is None:
            least = int(np.searchsorted(values, values[0], "right"))
            if least > PADDING_SHARE * len(values):
                values = values[least:]
        elif counts[0] > PADDING_SHARE * counts.sum():
            values, counts = values[1:], counts[1:]
        background = _quantile(values, counts, 0.5)
        spread = background - _quantile(values, counts, LOWER_SIGMA)
        floor = 1.0 if self.dtype.kind in "iu" else _float_floor(values)
        return Normalisation("background-asinh", background, max(spread, floor))


def _quantile(
    values: NDArray[Any], counts: NDArray[np.int64] | None, share: float
) -> float:
    """The smallest value at or below which at least this share of the voxels lies."""
    if counts is None:
        index = ceil(share * len(values)) - 1
    else:
        cumulated = np.cumsum(counts)
        index = int(np.searchsorted(cumulated, share * cumulated[-1]))
    return float(values[min(max(index, 0), len(values) - 1)])


def _float_floor(values: NDArray[Any]) -> float:
    """One 65 535th of the range: the grey level of a float image stored as 16 bits."""
    span = float(values[-1]) - float(values[0])
    return span / 65535 if span > 0 else 1.0
