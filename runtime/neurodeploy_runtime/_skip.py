"""Leaving out tiles that hold nothing but background, and auditing what that costs.

A tile is background when even its brightest voxels, but for a few hot ones, do not
rise above the background by `limit_sigma` noise scales. Naive thresholds lose dim
axons, so a random sample of the skipped tiles is run anyway, its answers are thrown
away but counted, and the foreground lost is reported with its interval.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurodeploy_runtime._errors import SettingsError, WriteError
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._normalise import Normalisation

#: Share of a window that a skipped tile is taken to lose where no loss was seen.
ASSUMED_LOSS = 1e-3
#: Ends every line of the log: one without it was torn by a kill.
END = "."


@dataclass(frozen=True)
class SkipSettings:
    """When a tile is background, and how that is checked.

    `audit_share` of the skipped tiles are run; the run fails where the upper end of
    the 95 % interval of the lost foreground, as a share of all that there is, found and
    lost, exceeds `limit_lost`.
    """

    limit_sigma: float = 4.0
    hot_voxels: int = 16
    audit_share: float = 0.05
    limit_lost: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.limit_sigma) and self.limit_sigma >= 0):
            raise SettingsError(
                f"a limit of {self.limit_sigma} noise means nothing: use 0 or more"
            )
        if not (0 <= self.audit_share <= 1 and self.limit_lost >= 0):
            raise SettingsError(
                f"an audit of {self.audit_share} of the skipped tiles, or a limit of "
                f"{self.limit_lost} lost, means nothing: use shares"
            )
        if self.hot_voxels < 0:
            raise SettingsError(f"{self.hot_voxels} hot voxels mean nothing")


class BackgroundSkip:
    """Decides tile by tile, the same way whatever order tiles come in."""

    def __init__(
        self,
        settings: SkipSettings,
        counts: Shape,
        window: Shape,
        threshold: float,
        log: Path | None = None,
    ) -> None:
        self.settings = settings
        self._log = log
        self._pending: list[str] = []
        self._window_voxels = window[0] * window[1] * window[2]
        self._threshold = threshold
        self._lock = threading.Lock()
        #: 1 where a tile was skipped, by layer, row, column.
        self.map = np.zeros(counts, np.uint8)
        #: What audited tiles would have given, by tile.
        self._lost: dict[Shape, int] = {}

    def decide(
        self, tile: Shape, raw: list[NDArray[Any]], normalisation: Normalisation
    ) -> tuple[bool, bool]:
        """Whether to run a tile, and whether only for the audit.

        One with a NaN is run, which refuses it: it is not above any limit, and no
        background either.
        """
        if not all(part.dtype.kind in "iu" or np.isfinite(part).all() for part in raw):
            return True, False
        limit = normalisation.background + (
            self.settings.limit_sigma * normalisation.noise
        )
        above = sum(int(np.count_nonzero(part > limit)) for part in raw)
        if above > self.settings.hot_voxels:
            return True, False
        self.map[tile] = 1
        with self._lock:
            self._pending.append(_line(tile))
        draw = hashlib.blake2b(repr(tile).encode(), digest_size=8).digest()
        audited = int.from_bytes(draw) < self.settings.audit_share * 2**64
        return audited, audited

    def audit(self, tile: Shape, window: NDArray[np.float32]) -> None:
        """Count what a skipped tile would have given."""
        lost = int(np.count_nonzero(window >= self._threshold))
        with self._lock:
            self._lost[tile] = lost
            self._pending.append(_line((*tile, lost)))

    def flush(self) -> None:
        """Write down what was skipped and audited, before its units become durable.

        A run that continues must not forget what an earlier one has seen.
        """
        with self._lock:
            lines, self._pending = self._pending, []
        if self._log is not None and lines:
            try:
                with self._log.open("a") as log:
                    # First a line torn by a kill is closed, so that it spoils no other.
                    log.write("\n" + "".join(lines))
            except OSError as error:
                raise WriteError(
                    f"cannot write {self._log} ({error}): make room, then run the same "
                    "command again"
                ) from error

    def recall(self, logs: Iterable[Path]) -> None:
        """Take in what earlier runs and other workers wrote down."""
        for path in logs:
            for line in path.read_text(errors="replace").splitlines():
                *fields, end = line.split() or [""]
                if end != END or not all(field.isdecimal() for field in fields):
                    continue
                numbers = [int(field) for field in fields]
                if len(numbers) not in (3, 4):
                    continue
                tile = (numbers[0], numbers[1], numbers[2])
                if all(
                    n < count for n, count in zip(tile, self.map.shape, strict=True)
                ):
                    self.map[tile] = 1
                    if len(numbers) == 4:
                        self._lost[tile] = numbers[3]

    def report(self, foreground: int, tiles: int) -> dict[str, float | int | None]:
        """What was skipped, and the estimated loss with its 95 % interval.

        `foreground` voxels were found in what `tiles` cover, skipped ones among them.
        The interval is the normal one for a mean of counts. Where the sample saw no
        foreground at all, it is the rule of three: at most 3 in `audited` tiles hold
        any, and each is taken to hold `ASSUMED_LOSS` of a window. The shares are None
        where nothing was audited, and where there is no foreground anywhere: nothing
        can be a share of that.
        """
        skipped = int(self.map.sum())
        losses = list(self._lost.values())
        audited = len(losses)
        values: dict[str, float | int | None] = {
            "tiles": tiles,
            "skipped": skipped,
            "audited": audited,
            "audited_with_foreground": sum(1 for n in losses if n),
            "lost_voxels": None,
            "lost_share": None,
            "lost_share_upper": None,
        }
        if audited == 0:
            return values
        mean = sum(losses) / audited
        variance = sum((n - mean) ** 2 for n in losses) / max(1, audited - 1)
        half = 1.96 * math.sqrt(variance / audited)
        upper = (
            mean + half
            if any(losses)
            else min(1.0, 3 / audited) * ASSUMED_LOSS * self._window_voxels
        )
        values["lost_voxels"] = round(mean * skipped)
        if not foreground and not any(losses):
            return values
        for name, each in (("lost_share", mean), ("lost_share_upper", upper)):
            lost = each * skipped
            values[name] = lost / (foreground + lost) if lost else 0.0
        return values

    def save(self, path: Path) -> None:
        """The map as a TIFF, 255 where a tile was skipped; z, y, x in tiles."""
        import tifffile

        tifffile.imwrite(path, self.map * 255, photometric="minisblack")


def _line(numbers: tuple[int, ...]) -> str:
    return " ".join(str(n) for n in numbers) + f" {END}\n"
