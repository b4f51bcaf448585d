"""What can be asked of a live segmentation, said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime.engines import EngineSettings

WhenFull = Literal["block", "drop", "fail"]


@dataclass(frozen=True)
class LiveSettings:
    """How planes are segmented while they arrive.

    Attributes
    ----------
    normalisation
        Constants to use; None: learnt from the first `learn_planes` planes, which are
        kept and segmented like all others.
    when_full
        What a push does that finds the ring full. ``block``: it waits, for as long as
        it was told, and then raises OverrunError; the plane may be pushed again.
        ``drop``: whole tiles along z are left out, and reported. ``fail``: the stream
        fails.
    ring_planes
        Raw planes that are held; None: as many as let one layer of tiles be computed
        while the next arrives.
    outlet_planes
        Finished planes that wait for their reader, at most; None: a window's depth.
    timeout_s
        How long a push may wait where the call does not say.
    limit_gap
        Missing planes in a row that are believed; more is a mistaken index.
    output_kind
        ``mask``: uint8, 0 and 255. ``probability``: 255 times the probability.
    threshold, overlap, flips
        As in `SegmentSettings`.
    memory_bytes
        Cap on the buffers, which are all allocated at the start; None: half of the
        machine's memory.
    niceness
        By how much the threads that compute give way to others, 0 to 19, on Linux. 10
        shortens the longest pushes on a machine that does nothing else; beside
        programs that take every core it starves the segmentation.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    normalisation: Normalisation | None = None
    learn_planes: int = 16
    when_full: WhenFull = "block"
    ring_planes: int | None = None
    outlet_planes: int | None = None
    timeout_s: float = 1.0
    limit_gap: int = 1024
    output_kind: Literal["mask", "probability"] = "mask"
    threshold: float | None = None
    overlap: float | None = None
    flips: bool = False
    memory_bytes: int | None = None
    niceness: int = 0

    def __post_init__(self) -> None:
        if self.when_full not in ("block", "drop", "fail"):
            raise SettingsError(
                f"when_full {self.when_full!r} is unknown: use block, drop or fail"
            )
        if self.output_kind not in ("mask", "probability"):
            raise SettingsError(
                f"output_kind {self.output_kind!r} is none of a stream: use mask or "
                "probability"
            )
        for name in ("learn_planes", "ring_planes", "outlet_planes", "memory_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} {value} is too small: use 1 or more")
        if not 0 <= self.niceness <= 19:
            raise SettingsError(
                f"niceness {self.niceness} is not between 0 and 19: more priority than "
                "the program itself has cannot be given"
            )
        if not self.timeout_s >= 0 or self.limit_gap < 0:  # NaN, too, is refused
            raise SettingsError(
                f"timeout_s {self.timeout_s} and limit_gap {self.limit_gap}: neither "
                "may be less than 0"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SettingsError(
                f"threshold {self.threshold} is not between 0 and 1: it is compared "
                "with a probability"
            )
