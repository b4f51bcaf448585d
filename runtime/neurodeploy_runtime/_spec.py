"""What a bundle says of its network: the contract between export and runtime."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from neurodeploy_runtime._errors import BundleError
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._normalise import Kind

SCHEMA = 1

Mode = Literal["volume", "slice"]

INPUT_NAME = "voxels"
OUTPUT_NAME = "probability"


@dataclass(frozen=True)
class ModelSpec:
    """A network as the runtime sees it; `model.json` without its hashes.

    The network takes ``(B, 1, *tile)`` normalised voxels and gives ``(B, 1, *window)``
    probabilities; the window lies in the middle of the tile. In `volume` mode they
    are the same; in `slice` mode the window is the tile's centre slice.
    """

    name: str
    mode: Mode
    tile: Shape
    window: Shape
    overlap: tuple[float, float, float]
    threshold: float
    normalisation: Kind = "background-asinh"
    voxel_size_um: tuple[float, float, float] | None = None
    max_batch: int = 1
    flop_per_tile: float | None = None
    #: Ranges of the statistics of the volumes that the network was validated on.
    validated_on: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for axis, tile, window, overlap in zip(
            "zyx", self.tile, self.window, self.overlap, strict=True
        ):
            if not 1 <= window <= tile or (tile - window) % 2:
                raise BundleError(
                    f"window {self.window} does not lie in the middle of tile "
                    f"{self.tile} on axis {axis}: use a window that is smaller by an "
                    "even number of voxels"
                )
            if not 0 <= overlap <= 0.5:
                raise BundleError(
                    f"overlap {overlap} on axis {axis} is outside 0 to 0.5"
                )
        if not 0 < self.threshold < 1:
            raise BundleError(
                f"threshold {self.threshold} is not between 0 and 1: it is compared "
                "with a probability"
            )
        for name, value, allowed in (
            ("mode", self.mode, get_args(Mode)),
            ("normalisation", self.normalisation, get_args(Kind)),
        ):
            if value not in allowed:
                raise BundleError(
                    f"{name} {value!r} is unknown: this version knows "
                    f"{', '.join(allowed)}"
                )

    @property
    def margin(self) -> Shape:
        """Voxels that the network reads around its window, on each side."""
        z, y, x = ((t - w) // 2 for t, w in zip(self.tile, self.window, strict=True))
        return z, y, x

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any], where: str) -> ModelSpec:
        """Read from untrusted plain values; `where` names the file in errors."""
        known = {f.name: f for f in dataclasses.fields(cls)}
        schema = values.get("schema")
        if not isinstance(schema, int) or isinstance(schema, bool):
            raise BundleError(f"{where} has no schema number: it is not a model.json")
        if schema > SCHEMA:
            raise BundleError(
                f"{where} is of schema {schema}, this version reads up to {SCHEMA}: "
                "upgrade neurodeploy, or export the checkpoint again with this version"
            )
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise BundleError(f"{where} has fields of no meaning here: {unknown}")
        required = [
            f.name
            for f in known.values()
            if f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        missing = sorted(set(required) - set(values))
        if missing:
            raise BundleError(f"{where} lacks the fields {missing}: export it again")
        clean = dict(values)
        for name, kind in (
            ("tile", int),
            ("window", int),
            ("overlap", float),
            ("voxel_size_um", float),
        ):
            clean[name] = _triple(clean.get(name), kind, name, where)
        for name in ("name", "mode", "normalisation"):
            if name in clean and not isinstance(clean[name], str):
                raise BundleError(f"{where}: {name} is not a text")
        for name in ("threshold", "flop_per_tile"):
            value = clean.get(name)
            if name not in required and value is None:
                continue
            if not _is_number(value) or not value >= 0:
                raise BundleError(f"{where}: {name} is {value!r}, not a number")
        batch = clean.get("max_batch", 1)
        if type(batch) is not int or batch < 1:
            raise BundleError(
                f"{where}: max_batch is {batch!r}, not a whole number from 1 on"
            )
        for name in ("validated_on", "training", "parity"):
            if not isinstance(clean.get(name, {}), dict):
                raise BundleError(f"{where}: {name} is not an object")
        if max(clean["tile"]) > 4096:
            raise BundleError(f"{where}: tile {clean['tile']} is too large to be true")
        return cls(**clean)


def _triple(value: Any, kind: type, name: str, where: str) -> Any:
    if value is None and name == "voxel_size_um":
        return None
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(_is_number(v) and isinstance(v, int | kind) for v in value)
        or not all(v >= 0 for v in value)
    ):
        raise BundleError(f"{where}: {name} is {value!r}, not three numbers (z, y, x)")
    return tuple(kind(v) for v in value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Whether it is a finite number that a float holds; JSON's may have any size."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max
