"""Whether two answers to the same tiles are the same segmentation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_export._errors import ParityError
from neurodeploy_export._settings import ParityLimits
from neurodeploy_runtime._spec import ModelSpec

#: What additions in another order make of a probability: labels that differ by less are
#: the same. A threshold is one of a network's own answers, so some lie beside it, and
#: of 65 536 voxels the limit allows no flip.
ROUNDING = 2.0**-16


@dataclass(frozen=True)
class Parity:
    """How far one step's answers are from the answers before it.

    Attributes
    ----------
    flips
        Share of voxels whose label differs by more than rounding (`ROUNDING`); as in a
        result, a probability at the threshold is foreground.
    dice
        Between the two segmentations, over all tiles; 1 where both are empty.
    max_difference, p999_difference
        Of probability; infinite where an answer is not finite.
    nan, inf
        How many values of the new answer are so.
    foreground
        Share of voxels that are foreground in the old answer: with none, flips and
        Dice prove little.
    worst_tile
        Index of the tile with the largest difference.
    """

    step: str
    tiles: int
    flips: float
    dice: float
    max_difference: float
    p999_difference: float
    nan: int
    inf: int
    foreground: float
    worst_tile: int

    def failures(self, limits: ParityLimits) -> list[str]:
        """What is beyond the limits, as phrases; none where the two agree."""
        found = []
        if self.nan or self.inf:
            found.append(f"{self.nan} NaN and {self.inf} infinite values")
        if not self.flips <= limits.flips:
            found.append(
                f"{self.flips:.3%} of the voxels change label "
                f"(limit {limits.flips:.3%})"
            )
        if not self.dice >= limits.dice:
            found.append(f"Dice {self.dice:.4f} (limit {limits.dice})")
        if not self.max_difference <= limits.max_difference:
            found.append(
                f"largest difference {self.max_difference:.2g} "
                f"(limit {limits.max_difference})"
            )
        if not self.p999_difference <= limits.p999_difference:
            found.append(
                f"99.9th percentile of differences {self.p999_difference:.2g} "
                f"(limit {limits.p999_difference})"
            )
        return found

    def require(self, limits: ParityLimits, hint: str = "") -> None:
        """Raise a ParityError where a limit is broken."""
        found = self.failures(limits)
        if found:
            raise ParityError(
                f"{self.step}: the answers changed: {'; '.join(found)} on "
                f"{self.tiles} tiles, worst in tile {self.worst_tile}"
                + (f"; {hint}" if hint else "")
            )

    def to_json(self) -> dict[str, Any]:
        """As plain values; what is not finite as text, which JSON can hold."""
        return {
            k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in asdict(self).items()
        }


def compare(
    step: str,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    threshold: float,
) -> Parity:
    """Compare two answers of shape (N, 1, z, y, x), probabilities.

    A value that is not finite, on either side, differs from everything, itself
    included.
    """
    if before.shape != after.shape:
        raise ParityError(
            f"{step}: the shape changed from {before.shape} to {after.shape}"
        )
    finite = np.isfinite(before) & np.isfinite(after)
    with np.errstate(invalid="ignore"):
        difference = np.where(finite, np.abs(before - after), np.inf)
        old, new = before >= threshold, after >= threshold
    new = np.where(difference <= ROUNDING, old, new)
    flipped = (old != new) | ~finite
    both = int(np.count_nonzero(old & new & finite))
    either = int(np.count_nonzero(old)) + int(np.count_nonzero(new))
    per_tile = difference.reshape(len(difference), -1).max(axis=1)
    # An order statistic, not an interpolation, which would turn inf into NaN.
    rank = min(difference.size - 1, math.ceil(0.999 * difference.size) - 1)
    p999 = float(np.partition(difference.ravel(), rank)[rank])
    return Parity(
        step=step,
        tiles=len(before),
        flips=float(flipped.mean()),
        dice=2 * both / either if either else float(finite.all()),
        max_difference=float(per_tile.max()),
        p999_difference=p999,
        nan=int(np.isnan(after).sum()),
        inf=int(np.isinf(after).sum()),
        foreground=float(old.mean()),
        worst_tile=int(per_tile.argmax()),
    )


def picture(
    parity: Parity,
    voxels: NDArray[np.float32],
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    spec: ModelSpec,
) -> bytes:
    """The worst tile as a PNG: input, old answer, new answer, difference.

    Side by side as maximum projections along z; the difference is scaled to its
    own maximum.
    """
    import imagecodecs

    i = parity.worst_tile
    z, y, x = spec.margin
    window = tuple(slice(m, m + w) for m, w in zip((z, y, x), spec.window, strict=True))
    image = voxels[i, 0][window].max(axis=0)
    low, high = np.percentile(image, (1, 99.8))
    gap = np.abs(np.nan_to_num(before[i, 0] - after[i, 0], nan=1, posinf=1, neginf=1))
    panels = [
        (image - low) / max(high - low, 1e-6),
        before[i, 0].max(axis=0),
        np.nan_to_num(after[i, 0], nan=1).max(axis=0),
        gap.max(axis=0) / max(float(gap.max()), 1e-6),
    ]
    rule = np.ones((image.shape[0], 2))
    row = np.concatenate([p for panel in panels for p in (panel, rule)][:-1], axis=1)
    grey = (np.clip(np.nan_to_num(row), 0, 1) * 255).astype(np.uint8)
    return bytes(imagecodecs.png_encode(np.ascontiguousarray(grey)))
