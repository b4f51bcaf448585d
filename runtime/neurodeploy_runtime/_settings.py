"""What can be asked of a segmentation, said once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from neurodeploy_runtime._errors import SettingsError
from neurodeploy_runtime._geometry import Box, Shape
from neurodeploy_runtime._normalise import Normalisation
from neurodeploy_runtime._skip import SkipSettings
from neurodeploy_runtime.engines import EngineSettings

OutputKind = Literal["mask", "probability", "both"]

GB = 10**9


@dataclass(frozen=True)
class SegmentSettings:
    """How a volume is segmented.

    Attributes
    ----------
    threshold
        Probability from which a voxel is foreground; None: the model's own.
    overlap
        Share of a tile that neighbours have in common, 0 to 0.5; None: the model's.
    output_kind
        ``mask``: uint8, 0 and 255. ``probability``: uint8, 255 times the probability,
        rounded. ``both``: two files.
    roi
        The box of the input that is segmented; None: all of it. Tiles lie as they
        would for the whole volume, so a region's voxels are those of a whole run.
    memory_bytes
        Cap on what this process holds, the interpreter, libraries and network
        included; None: half of the memory that the machine, or the job, has.
    normalisation
        Constants to use; None: computed from the volume.
    flips
        Average over flips on y and x: four times the work.
    seam_map
        Also write how much overlapping tiles disagreed, at 1/8 resolution.
    skip
        Leave out background tiles, audited; None: run all.
    tissue
        A mask of the volume, scaled down or not: outside it nothing is run or found.
    worker
        (i, n): do the i-th of n shares, counted from 1; with (1, 1), everything.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    threshold: float | None = None
    overlap: float | None = None
    output_kind: OutputKind = "mask"
    roi: Box | None = None
    memory_bytes: int | None = None
    normalisation: Normalisation | None = None
    flips: bool = False
    seam_map: bool = False
    skip: SkipSettings | None = None
    tissue: Path | None = None
    worker: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.output_kind not in get_args(OutputKind):
            raise SettingsError(
                f"output_kind {self.output_kind!r} is unknown: use "
                f"{', '.join(get_args(OutputKind))}"
            )
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise SettingsError(
                f"threshold {self.threshold} is not between 0 and 1: it is compared "
                "with a probability"
            )
        i, n = self.worker
        if not 1 <= i <= n:
            raise SettingsError(
                f"worker {i}/{n} is not one of {n}: count from 1/{n} to {n}/{n}"
            )
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise SettingsError("the memory cap must be positive")

    def region_of(self, shape: Shape) -> Box:
        """The box of a volume of this shape that is segmented.

        Raises
        ------
        SettingsError
            The roi is empty, or not inside the volume.
        """
        whole = Box.whole(shape)
        roi = self.roi or whole
        if not whole.contains(roi) or roi.voxels == 0:
            raise SettingsError(
                f"roi {roi} does not lie inside the volume, which is {whole}"
            )
        return roi
