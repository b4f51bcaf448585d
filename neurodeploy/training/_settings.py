"""The settings of a training run: one frozen value, from options or a TOML file."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neurodeploy._errors import ConfigError
from neurodeploy._from_plain import from_plain
from neurodeploy.data import Augmentation, Labels, Reading
from neurodeploy.networks import NetworkConfig
from neurodeploy.training._losses import LossSettings

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True)
class TrainSettings:
    """A training run.

    Parameters
    ----------
    data
        Folders of images and their annotations.
    out
        Folder of the run; it must be absent or empty, or be resumed.
    init
        ``scratch``, ``timm:NAME``, a file of weights (safetensors, or a state dict
        that loads with `weights_only`), or a checkpoint folder of this network.
    donor_architecture
        The timm model that a file of weights belongs to, where `init` is a file.
    inflate
        How a 2D patch kernel becomes a 3D one: `center` or `average`.
    steps
        Optimiser steps in all.
    batch
        Crops per step.
    learning_rate
        Of AdamW at the end of the warm-up; then a cosine down to a hundredth.
    layer_decay
        Factor on the learning rate per layer further from the decoder, for what a
        donor gave to the encoder; 1 turns it off.
    unit, voxel_size_um
        Of tracings and images that do not say their own; z, y, x.
    labels
        How voxel annotations are read: as `mask`, as labelled `slices`, or by their
        values, those of a folder together (`auto`).
    reading
        What is read of every image, where files hold several volumes.
    validation_share
        Share of the volumes, at least one where there are two, held out to choose the
        best checkpoint and its threshold; 0 turns validation off. The seed and the
        voxels of the images decide which.
    devices
        Devices to train on, which share out each batch; more than one needs
        Lightning Fabric.
    """

    data: tuple[str, ...] = ()
    out: str = "run"
    name: str = "neurodeploy"
    init: str = "scratch"
    donor_architecture: str = ""
    inflate: Literal["center", "average"] = "center"
    seed: int = 0
    steps: int = 5000
    batch: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 200
    clip: float = 1.0
    ema: float = 0.999
    layer_decay: float = 0.75
    precision: Precision = "auto"
    device: str = "auto"
    devices: int = 1
    workers: int = 0
    neurite_share: float = 0.6
    #: Relative number of samples per group of volumes.
    shares: dict[str, float] = field(default_factory=dict)
    unit: Literal["voxel", "um"] = "voxel"
    voxel_size_um: tuple[float, float, float] | None = None
    labels: Labels = "auto"
    reading: Reading = field(default_factory=Reading)
    validation_share: float = 0.2
    validate_every: int = 500
    save_every: int = 250
    log_every: int = 10
    loss: LossSettings = field(default_factory=LossSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch",
            "devices",
            "validate_every",
            "save_every",
            "log_every",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 1 or more")
        for name in ("workers", "warmup", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: use 0 or more")
        if self.seed >= 2**64:
            raise ConfigError(f"seed is {self.seed}: use at most {2**64 - 1}")
        for name in ("learning_rate", "clip", "layer_decay"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}: use more than 0")
        if not all(0 < size < math.inf for size in self.voxel_size_um or ()):
            raise ConfigError(
                f"voxel_size_um is {list(self.voxel_size_um or ())}: use z, y, x in "
                "micrometres, each more than 0"
            )
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay is {self.weight_decay}: use 0 or more")
        for group, share in self.shares.items():
            if not 0 <= share < math.inf:
                raise ConfigError(f"shares.{group} is {share}: use 0 or more")
        from_timm = self.init.startswith("timm:")
        if self.donor_architecture and (from_timm or self.init == "scratch"):
            raise ConfigError(
                f"donor_architecture is {self.donor_architecture!r}, which says what a "
                f"file of weights belongs to, and init is {self.init!r}: leave it out, "
                "or name the file in init"
            )
        if self.inflate != "center" and self.init == "scratch":
            raise ConfigError(
                f"inflate is {self.inflate!r} and init is 'scratch', which has no 2D "
                "kernels to inflate: leave it out, or name a donor in init"
            )
        if self.batch % self.devices:
            raise ConfigError(
                f"a batch of {self.batch} cannot be shared out over {self.devices} "
                f"devices: use a multiple of {self.devices}"
            )
        for name, end in (
            ("ema", 1.0),
            ("validation_share", 0.9),
            ("neurite_share", 1.0),
        ):
            if not 0 <= getattr(self, name) <= end:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}: use a value from 0 to {end:g}"
                )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_plain(
        cls, values: dict[str, Any], where: str = "the configuration"
    ) -> TrainSettings:
        """Read from plain nested values; a misspelt field is named.

        Raises
        ------
        ConfigError
            Where a field is unknown or of the wrong type.

        Examples
        --------
        >>> TrainSettings.from_plain({"steps": 10}).steps
        10
        """
        settings: TrainSettings = from_plain(cls, values, where)
        return settings


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a TOML configuration."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
