"""What a network is made of, as one frozen value."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from math import lcm
from typing import Any, Literal, get_args

from neurodeploy._errors import ConfigError
from neurodeploy._from_plain import from_plain
from neurodeploy_runtime._geometry import Shape
from neurodeploy_runtime._spec import Mode

_COUNTS = (
    "width",
    "heads",
    "depth",
    "tap_channels",
    "half_channels",
    "quarter_channels",
    "head_channels",
)

#: GELU of most ViTs, and the sigmoid approximation of OpenAI's CLIP.
Activation = Literal["gelu", "quick_gelu"]


@dataclass(frozen=True)
class NetworkConfig:
    """The shape of a network: which way it reads depth, its encoder and its decoder.

    `volume` mode has tokens in 3D and answers every voxel of its tile. `slice` mode
    is the paper's: the patch is as deep as the tile, the tokens form a 2D grid, and
    the answer is the tile's centre slice.

    The encoder's fields name what timm's ``VisionTransformer`` can be, so that any of
    them can give its weights. `half_channels` and `quarter_channels` are the widths of
    the convolutional path at that share of the resolution, `head_channels` of its last
    layer, at half.

    Raises
    ------
    ConfigError
        Where the patch does not divide the tile, or the values contradict each other.
    """

    mode: Mode = "volume"
    tile: Shape = (32, 64, 64)
    patch: Shape = (4, 16, 16)
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    qk_norm: bool = False
    class_token: bool = True
    register_tokens: int = 0
    #: The position table has rows for class and register tokens.
    prefix_position: bool = True
    #: A LayerNorm before the first block, as in CLIP; the patch kernel then often
    #: has no bias.
    pre_norm: bool = False
    layer_scale: bool = False
    norm_eps: float = 1e-6
    activation: Activation = "gelu"
    #: A learned embedding of depth, zero at the start, beside the donor's 2D one.
    depth_position: bool = True
    #: Blocks after which the decoder taps the tokens; the last is the deepest.
    taps: tuple[int, ...] = (2, 4)
    tap_channels: int = 32
    half_channels: int = 32
    quarter_channels: int = 64
    head_channels: int = 32

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", _triple("tile", self.tile))
        object.__setattr__(self, "patch", _triple("patch", self.patch))
        object.__setattr__(self, "taps", tuple(int(tap) for tap in self.taps))
        if self.mode not in get_args(Mode):
            raise ConfigError(f"mode {self.mode!r} is unknown: use volume or slice")
        if self.activation not in get_args(Activation):
            raise ConfigError(
                f"activation {self.activation!r} is unknown: use "
                f"{' or '.join(get_args(Activation))}"
            )
        for axis, tile, patch in zip("zyx", self.tile, self.patch, strict=True):
            # The decoder halves the plane twice, and in volume mode the depth too.
            step = patch if self.mode == "slice" and axis == "z" else lcm(patch, 4)
            if tile % step:
                raise ConfigError(
                    f"tile {self.tile} with patch {self.patch} is no multiple of "
                    f"{step} on axis {axis}: use {-(-tile // step) * step} there"
                )
        if self.mode == "slice":
            if self.patch[0] != self.tile[0] or self.tile[0] % 2 == 0:
                raise ConfigError(
                    f"slice mode predicts the centre slice of a block as deep as its "
                    f"patch, but tile {self.tile} and patch {self.patch} have depths "
                    f"{self.tile[0]} and {self.patch[0]}: use one odd depth for both, "
                    "such as 5"
                )
        elif self.patch[0] % 4:
            raise ConfigError(
                f"volume mode halves the depth twice, but patch {self.patch} is no "
                "multiple of 4 on axis z: use 4 or 8, or slice mode"
            )
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} is below 1")
        if self.register_tokens < 0:
            raise ConfigError(f"register_tokens {self.register_tokens} is below 0")
        if not 1 <= self.width * self.mlp_ratio < math.inf:
            raise ConfigError(
                f"mlp_ratio {self.mlp_ratio} makes no layer between a block's two: "
                "use 4, as most do"
            )
        if not 0 < self.norm_eps < 1:
            raise ConfigError(
                f"norm_eps {self.norm_eps} is not between 0 and 1: use 1e-6"
            )
        if self.width % self.heads:
            raise ConfigError(
                f"width {self.width} does not divide into {self.heads} heads"
            )
        if not self.taps or any(not 1 <= tap <= self.depth for tap in self.taps):
            raise ConfigError(
                f"taps {self.taps} are not block numbers from 1 to depth {self.depth}"
            )
        if len(set(self.taps)) < len(self.taps):
            raise ConfigError(
                f"taps {self.taps} name a block twice: name each once, at most "
                f"{self.depth} of them"
            )

    @property
    def grid(self) -> Shape:
        """How many tokens a tile has along z, y and x."""
        z, y, x = (t // p for t, p in zip(self.tile, self.patch, strict=True))
        return z, y, x

    @property
    def window(self) -> Shape:
        """The voxels that are answered: the tile, or its centre slice."""
        return (1, *self.tile[1:]) if self.mode == "slice" else self.tile

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens, which come before the patches."""
        return int(self.class_token) + self.register_tokens

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> NetworkConfig:
        """Read from plain values; a field that is unknown or odd is a ConfigError."""
        config: NetworkConfig = from_plain(cls, values, "a network")
        return config


def _triple(name: str, value: Any) -> Shape:
    numbers = tuple(value)
    if len(numbers) != 3 or any(
        not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers
    ):
        raise ConfigError(
            f"{name} {value!r} is not three whole numbers above 0 (z, y, x)"
        )
    return numbers
