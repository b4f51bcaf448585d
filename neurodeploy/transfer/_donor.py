"""Where 2D weights come from, and what shape of network they belong to."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neurodeploy._errors import DonorError
from neurodeploy_runtime._errors import said_by

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Every published ViT of these widths has heads of 64 channels.
_WIDTHS_OF_64 = (192, 384, 768, 1024)

#: Parameters that belong to the donor's own task, and to what of it.
_OF_ITS_TASK = {
    re.compile(r"(head|fc_norm|head_drop|attn_pool|last_layer)\..*"): "its classifier",
    re.compile(r"(decoder_.*|mask_token)"): "its pre-training",
    re.compile(r"(dino_head|ibot_head|student|projector)\..*"): "its pre-training",
}


@dataclass(frozen=True, eq=False)
class Donor:
    """A 2D Vision Transformer's parameters under timm's names.

    Parameters
    ----------
    tensors
        Every parameter; none is dropped before the transfer has seen it.
    grid
        Rows and columns of the position table.
    mean, std
        The statistics that the donor's images were normalised by, per channel.
    """

    name: str
    tensors: dict[str, Tensor]
    heads: int
    grid: tuple[int, int]
    norm_eps: float
    activation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def patch(self) -> tuple[int, int]:
        """The patch's extent in y and x."""
        y, x = self.tensors["patch_embed.proj.weight"].shape[2:]
        return y, x

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.tensors["patch_embed.proj.weight"].shape[0])

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return 1 + max(
            (int(n.split(".")[1]) for n in self.tensors if n.startswith("blocks.")),
            default=-1,
        )

    @property
    def prefix_tokens(self) -> int:
        """Class and register tokens."""
        registers = self.tensors.get("reg_token")
        return int("cls_token" in self.tensors) + (
            0 if registers is None else int(registers.shape[1])
        )

    def encoder_fields(self) -> dict[str, Any]:
        """The fields of a :class:`NetworkConfig` that this donor decides."""
        names = self.tensors
        fc1 = names["blocks.0.mlp.fc1.weight"]
        registers = names.get("reg_token")
        return {
            "width": self.width,
            "depth": self.depth,
            "heads": self.heads,
            "mlp_ratio": fc1.shape[0] / self.width,
            "qkv_bias": "blocks.0.attn.qkv.bias" in names,
            "qk_norm": "blocks.0.attn.q_norm.weight" in names,
            "class_token": "cls_token" in names,
            "register_tokens": 0 if registers is None else int(registers.shape[1]),
            "prefix_position": names["pos_embed"].shape[1] > math.prod(self.grid),
            "pre_norm": "norm_pre.weight" in names,
            "layer_scale": "blocks.0.ls1.gamma" in names,
            "norm_eps": self.norm_eps,
            "activation": self.activation,
        }


def task_of(name: str) -> str | None:
    """What of a donor's own task a parameter belongs to; None for its encoder's."""
    return next((w for p, w in _OF_ITS_TASK.items() if p.fullmatch(name)), None)


def load_donor(init: str, architecture: str = "") -> Donor:
    """The donor that an ``--init`` names: ``timm:NAME``, or a file of weights.

    A file is read as safetensors or as a state dict with `weights_only`; nothing in
    it is executed. `architecture` is the timm model that a file's weights belong to,
    which says what shapes do not: heads, activation, statistics.

    Raises
    ------
    DonorError
        Where the weights cannot be had or their architecture is not supported.
    """
    if init.startswith("timm:"):
        name = init.removeprefix("timm:")
        return donor_from_timm(_timm_model(name, pretrained=True), name)
    path = Path(init)
    tensors = read_tensors(path)
    if architecture:
        return _donor_of(architecture, tensors, path)
    return donor_from_tensors(tensors, path.name)


def _donor_of(architecture: str, tensors: dict[str, Tensor], path: Path) -> Donor:
    """The donor that a file's tensors are as timm's `architecture`."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = _timm_model(architecture, pretrained=False)
    kernel, table = (
        tensors.get(name) for name in ("patch_embed.proj.weight", "pos_embed")
    )
    patch = tuple(model.patch_embed.proj.weight.shape[2:])
    if kernel is not None and kernel.ndim == 4 and tuple(kernel.shape[2:]) != patch:
        # timm would make it another by interpolation, and say nothing.
        raise DonorError(
            f"{path} has patches of {tuple(kernel.shape[2:])} and timm's "
            f"{architecture} of {patch}: name the model that the file belongs to"
        )
    side = None if table is None else _side(table, {model.num_prefix_tokens, 1, 0})
    if side is not None and (side, side) != tuple(model.patch_embed.grid_size):
        # Else timm puts the table on its own grid, and the transfer on one more.
        size = (side * patch[0], side * patch[1])
        model = _timm_model(architecture, pretrained=False, img_size=size)
    try:
        weights = checkpoint_filter_fn(tensors, model)
    except (RuntimeError, KeyError, AttributeError, AssertionError) as error:
        raise DonorError(
            f"{path} does not hold the weights of timm's {architecture}: "
            f"{said_by(error)}"
        ) from error
    _require_fit(weights, model.state_dict(), f"{path}", architecture)
    return replace(donor_from_timm(model, path.name), tensors=weights)


def _require_fit(
    weights: dict[str, Tensor], own: dict[str, Tensor], where: str, architecture: str
) -> None:
    """Refuse weights whose encoder is not of the shape of a model's, `own`."""
    # A classifier of other classes, or none, is left out anyway.
    weights, own = (
        {name: t for name, t in tensors.items() if task_of(name) is None}
        for tensors in (weights, own)
    )
    wrong = [f"lacks {name}" for name in own if name not in weights]
    wrong += [f"has {name} too many" for name in weights if name not in own]
    wrong += [
        f"has {name} of shape {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DonorError(
            f"{where} does not hold the weights of timm's {architecture}: it "
            f"{wrong[0]}{more}; name the model that it belongs to"
        )


def _side(table: Tensor, prefixes: set[int]) -> int | None:
    """Rows of the square grid of a table (1, prefix + side², E); None for no such."""
    if table.ndim != 3 or table.shape[0] != 1:
        return None
    for prefix in sorted(prefixes, reverse=True):
        rows = int(table.shape[1]) - prefix
        if rows > 0 and math.isqrt(rows) ** 2 == rows:
            return math.isqrt(rows)
    return None


def _timm_model(name: str, *, pretrained: bool, **changes: Any) -> Any:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:3]
        raise DonorError(
            f"timm has no model {name}: its Vision Transformers are listed by "
            f"timm.list_models('vit_*')" + (f"; near are {near}" if near else "")
        )
    # Built without weights first: an unsupported kind is refused before a download.
    try:
        skeleton = timm.create_model(name, pretrained=False, **changes)
    except RuntimeError as error:  # a tag that it does not have
        there = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*"))
        raise DonorError(
            f"timm cannot make {name} ({said_by(error)}): it has weights for "
            f"{there or 'none of its kind'}"
        ) from error
    why_not = _why_not(skeleton)
    if why_not:
        raise DonorError(f"timm's {name} cannot be a donor: {why_not}")
    if not pretrained:
        return skeleton
    try:
        return timm.create_model(name, pretrained=True)
    except Exception as error:
        raise DonorError(
            f"the weights of timm's {name} could not be downloaded "
            f"({type(error).__name__}): give a local file of them with --init FILE, "
            "or train from scratch with --init scratch"
        ) from error


def _why_not(model: Any) -> str | None:
    """Why a timm model cannot be a donor; None where it can."""
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    kind = type(model).__name__
    if getattr(model, "rope", None) is not None or kind == "Eva":
        return (
            f"it is a {kind} with rotary position embeddings (EVA, DINOv3), which are "
            "not supported; use one with a position table, such as "
            "vit_base_patch16_224.dino"
        )
    if type(model) is not VisionTransformer:
        return f"it is a {kind}, not a plain VisionTransformer"
    if model.pos_embed is None:
        return "it has no position table"
    block = model.blocks[0]
    if type(block) is not Block:
        return f"its blocks are {type(block).__name__}, not the plain pre-norm Block"
    if type(block.mlp) is not Mlp or not isinstance(
        getattr(block.mlp, "norm", nn.Identity()), nn.Identity
    ):
        return f"its blocks' MLP is a {type(block.mlp).__name__}, not two dense layers"
    if type(block.attn) is not Attention:
        return f"its attention is {type(block.attn).__name__}"
    if not isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity):
        return "its attention has an inner norm"
    if not isinstance(block.norm1, nn.LayerNorm):
        return f"its norms are {type(block.norm1).__name__}, not LayerNorm"
    return None


def donor_from_timm(model: Any, name: str) -> Donor:
    """The donor that a timm model in memory is."""
    why_not = _why_not(model)
    if why_not:
        raise DonorError(f"timm's {name} cannot be a donor: {why_not}")
    config = getattr(model, "pretrained_cfg", None) or {}
    block = model.blocks[0]
    activation = type(block.mlp.act).__name__
    names = {"GELU": "gelu", "QuickGELU": "quick_gelu"}
    if activation not in names:
        raise DonorError(
            f"timm's {name} cannot be a donor: its activation is {activation}, not "
            "GELU or QuickGELU"
        )
    return Donor(
        name=name,
        tensors={k: v.detach().clone() for k, v in model.state_dict().items()},
        heads=int(block.attn.num_heads),
        grid=tuple(model.patch_embed.grid_size),
        norm_eps=float(block.norm1.eps),
        activation=names[activation],
        mean=tuple(config.get("mean", IMAGENET_MEAN)),
        std=tuple(config.get("std", IMAGENET_STD)),
    )


def donor_from_tensors(tensors: dict[str, Tensor], name: str) -> Donor:
    """The donor that a state dict with timm's (and DINO's and MAE's) names is.

    Its statistics are taken to be ImageNet's, its activation GELU, and its heads 64
    channels wide, which holds for every published ViT of width 192, 384, 768 and
    1024.
    """
    for needed in ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"):
        if needed not in tensors:
            raise DonorError(
                f"{name} has no {needed}: it is not a Vision Transformer with timm's "
                f"names and a position table (it begins with {sorted(tensors)[:3]})"
            )
    kernel, table = tensors["patch_embed.proj.weight"], tensors["pos_embed"]
    for what, tensor, axes in (
        ("patch kernel", kernel, 4),
        ("position table", table, 3),
        ("dense layer", tensors["blocks.0.mlp.fc1.weight"], 2),
    ):
        if tensor.ndim != axes:
            raise DonorError(
                f"{name} has a {what} of shape {tuple(tensor.shape)}, where a 2D "
                f"Vision Transformer's has {axes} axes: it is of another kind"
            )
    _require_blocks(tensors, name)
    width = int(kernel.shape[0])
    if width not in _WIDTHS_OF_64 or "norm_pre.weight" in tensors:
        raise DonorError(
            f"{name} does not tell its heads or activation: name the timm model that "
            "it belongs to with donor_architecture"
        )
    prefix = 0
    if "cls_token" in tensors:
        prefix = 1
    if "register_tokens" in tensors or "reg_token" in tensors:
        raise DonorError(
            f"{name} has register tokens, whose order its names do not tell: name the "
            "timm model that it belongs to with donor_architecture"
        )
    side = _side(table, {prefix, 0})
    if side is None:
        raise DonorError(
            f"{name} has a position table of shape {tuple(table.shape)}, whose rows "
            "are no square grid"
        )
    return Donor(
        name=name,
        tensors=tensors,
        heads=width // 64,
        grid=(side, side),
        norm_eps=1e-6,
        activation="gelu",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _require_blocks(tensors: dict[str, Tensor], name: str) -> None:
    """Refuse blocks that are not numbered from 0 without a gap."""
    numbers = {n.split(".")[1] for n in tensors if n.startswith("blocks.")}
    odd = sorted(numbers - {str(i) for i in range(len(numbers))})
    if odd:
        raise DonorError(
            f"{name} has parameters of a block {odd[0]}, and {len(numbers)} blocks in "
            "all: it is damaged, or of another kind"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, without executing anything that is in it.

    Wrappers that training code leaves (`state_dict`, `model`, `teacher`; `module.`
    and `backbone.` before every name) are taken off.
    """
    if not path.is_file():
        raise DonorError(
            f"{path} is no file of weights: use scratch, timm:NAME, or a file"
        )
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            values: Any = load_file(path)
        except SafetensorError as error:
            raise DonorError(f"{path} is not whole safetensors: {error}") from error
    else:
        try:
            values = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file fails in many ways
            raise DonorError(
                f"{path} is no state dict that loads without executing code: convert "
                f"it to safetensors ({said_by(error)})"
            ) from error
    while isinstance(values, dict):
        inner = (values.get(name) for name in ("state_dict", "model", "teacher"))
        found = next((value for value in inner if isinstance(value, dict)), None)
        if found is None:
            break
        values = found
    if not isinstance(values, dict):
        raise DonorError(f"{path} holds a {type(values).__name__}, not a state dict")
    tensors = {str(k): v for k, v in values.items() if isinstance(v, Tensor)}
    if not tensors:
        names = ", ".join(str(name) for name in list(values)[:5]) or "nothing"
        raise DonorError(
            f"{path} holds no tensors where a state dict has them, but {names}: save "
            "the state dict of the encoder by itself"
        )
    while prefix := next(
        (p for p in ("module.", "backbone.") if any(k.startswith(p) for k in tensors)),
        None,
    ):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    return tensors
