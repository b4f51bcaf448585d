"""From a donor to an encoder: one rule for every parameter."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, replace
from math import lcm
from typing import Any, Literal

import torch
from torch import Tensor

from neurodeploy._errors import ConfigError, DonorError
from neurodeploy.networks import NetworkConfig
from neurodeploy.networks._encoder import Encoder
from neurodeploy.transfer._donor import Donor, task_of
from neurodeploy.transfer._surgery import (
    Inflation,
    fold_colour,
    inflate,
    resample_positions,
)

Rule = Literal["copied", "inflated", "interpolated", "new", "left out"]

#: Normalised voxels that a donor of photographs sees as black and as white: the
#: asinh of two noises below the background, and of some 200 above it.
GRAY_RANGE = (-1.5, 6.0)
#: Fields of a :class:`NetworkConfig` that no donor decides; it has a share in two more,
#: `patch` and `taps`.
OWN_FIELDS = (
    "mode", "tile", "depth_position", "tap_channels", "half_channels",
    "quarter_channels", "head_channels",
)  # fmt: skip

_COPIED = re.compile(
    r"cls_token|reg_token|(norm|norm_pre)\.(weight|bias)"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj|q_norm|k_norm)|mlp\.fc[12])\.(weight|bias)"
    r"|blocks\.\d+\.ls[12]\.gamma"
)


@dataclass(frozen=True)
class TransferRow:
    """What became of one parameter, of the donor or of the encoder."""

    parameter: str
    rule: Rule
    shape: tuple[int, ...]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def config_for(donor: Donor, config: NetworkConfig) -> NetworkConfig:
    """The configuration with the encoder that a donor's weights fit into.

    Mode, tile, patch depth and decoder stay; a shallower encoder than the donor's is
    kept where its width is the donor's already. Taps are moved to the same shares of
    the depth.

    Raises
    ------
    ConfigError
        Where the donor's patches do not divide the tile.
    """
    patch = (config.patch[0], *donor.patch)
    # The decoder halves the plane twice.
    steps = [lcm(side, 4) for side in donor.patch]
    plane = [-(-t // s) * s for t, s in zip(config.tile[1:], steps, strict=True)]
    tile = (config.tile[0], *plane)
    if tile != config.tile:
        raise ConfigError(
            f"{donor.name} has patches of {donor.patch}, which do not divide tile "
            f"{config.tile}: use tile {tile} and patch {patch} "
            f"(--tile {_plain(tile)} --patch {_plain(patch)})"
        )
    fields = donor.encoder_fields()
    if config.width == donor.width and config.depth < donor.depth:
        fields["depth"] = config.depth
    taps = tuple(
        max(1, round(tap * fields["depth"] / config.depth)) for tap in config.taps
    )
    return replace(config, **fields, patch=patch, taps=taps)


def _plain(three: tuple[int, ...]) -> str:
    return ",".join(map(str, three))


def config_like(begun: NetworkConfig, config: NetworkConfig) -> NetworkConfig:
    """As :func:`config_for`, by a network that the donor's weights were put into.

    What a donor does not decide is as `config` has it.
    """
    own: dict[str, Any] = {name: getattr(config, name) for name in OWN_FIELDS}
    return replace(begun, **own, patch=(config.patch[0], *begun.patch[1:]))


def transfer(
    donor: Donor,
    encoder: Encoder,
    how: Inflation = "center",
    gray_range: tuple[float, float] = GRAY_RANGE,
) -> list[TransferRow]:
    """Put a donor's weights into an encoder; what became of each parameter.

    Every parameter of the donor has one rule, and every parameter of the encoder is
    given by one; the encoder is changed only once all of them hold.

    Raises
    ------
    DonorError
        Where a parameter has no rule or does not fit; it is named.
    """
    config = encoder.config
    own = encoder.state_dict()
    given: dict[str, Tensor] = {}
    rows: list[TransferRow] = []

    def give(name: str, tensor: Tensor, rule: Rule, note: str = "") -> None:
        if name not in own:
            raise DonorError(
                f"{donor.name}: {name} has no place in this encoder: build it with "
                "the fields of the donor (config_for)"
            )
        if own[name].shape != tensor.shape:
            raise DonorError(
                f"{donor.name}: {name} is {tuple(tensor.shape)} and the encoder's "
                f"{tuple(own[name].shape)}: build it with the fields of the donor "
                "(config_for)"
            )
        if not tensor.isfinite().all():
            raise DonorError(
                f"{donor.name}: {name} holds NaN or infinity: nothing can be learned "
                "from it; take another donor"
            )
        given[name] = tensor
        rows.append(TransferRow(name, rule, tuple(tensor.shape), note))

    for name, tensor in donor.tensors.items():
        left_out = task_of(name)
        block = re.match(r"blocks\.(\d+)\.", name)
        if name == "patch_embed.proj.weight":
            kernel, bias = fold_colour(
                tensor,
                donor.tensors.get("patch_embed.proj.bias"),
                donor.mean,
                donor.std,
                gray_range,
            )
            note = f"{how}, colour folded, gray {gray_range[0]} to {gray_range[1]}"
            give(
                "patch_embed.weight",
                inflate(kernel, config.patch[0], how),
                "inflated",
                note,
            )
            give("patch_embed.bias", bias, "inflated", "colour folded")
        elif name == "patch_embed.proj.bias":
            continue  # with its kernel
        elif name == "pos_embed":
            table, rule, note = _positions(donor, config)
            give(name, table, rule, note)
        elif left_out:
            rows.append(TransferRow(name, "left out", tuple(tensor.shape), left_out))
        elif block and int(block.group(1)) >= config.depth:
            note = f"the encoder has {config.depth} blocks"
            rows.append(TransferRow(name, "left out", tuple(tensor.shape), note))
        elif _COPIED.fullmatch(name):
            give(name, tensor, "copied")
        else:
            raise DonorError(
                f"{donor.name}: there is no rule for its parameter {name} "
                f"{tuple(tensor.shape)}: this kind of donor is not supported"
            )
    for name in own:
        if name in given:
            continue
        why = _new(name, donor)
        if why is None:
            raise DonorError(
                f"{donor.name} has nothing for the encoder's {name}: build it with "
                "the fields of the donor (config_for)"
            )
        rows.append(TransferRow(name, "new", tuple(own[name].shape), why))
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)
    return rows


def _positions(donor: Donor, config: NetworkConfig) -> tuple[Tensor, Rule, str]:
    """The donor's table on the encoder's grid; prefix rows stay first."""
    table = donor.tensors["pos_embed"]
    prefix = int(table.shape[1]) - math.prod(donor.grid)
    grid = config.grid[1:]
    moved = resample_positions(table[:, prefix:], donor.grid, grid)
    if grid == donor.grid:
        return table, "copied", ""
    note = f"bicubic, {donor.grid[0]}×{donor.grid[1]} to {grid[0]}×{grid[1]}"
    return torch.cat([table[:, :prefix], moved], dim=1), "interpolated", note


def _new(name: str, donor: Donor) -> str | None:
    """Why a parameter of the encoder is new; None where it should not be."""
    if name == "depth_embed":
        return "depth, zero at the start"
    if name.startswith("norm.") and "norm.weight" not in donor.tensors:
        return "the donor has no final norm"
    return None
