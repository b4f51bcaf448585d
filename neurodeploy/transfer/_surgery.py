"""The formulae that make 3D weights of 2D ones.

Cheng et al., "Boosting 3D Neuron Segmentation with 2D Vision Transformer Pre-trained
on Natural Images" (arXiv 2405.02686): *average* and *center* weight transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from neurodeploy._errors import DonorError

Inflation = Literal["center", "average"]


def fold_colour(
    kernel: Tensor,
    bias: Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    gray_range: tuple[float, float] = (0.0, 1.0),
) -> tuple[Tensor, Tensor]:
    """One-channel kernel and bias of an RGB patch embedding.

    A gray image g in [0, 1] enters the donor as ``(g - mean_c) / std_c`` in channel
    c. Here ``Kg = Σ_c K_c / s_c`` and ``b' = b − Σ_c (μ_c / s_c) Σ_uv K_c`` answer
    the same on g itself. Our voxels v are no g: `gray_range` says which v is black
    and which is white, and folds ``g = (v − black) / (white − black)`` in too.

    Parameters
    ----------
    kernel
        (E, 3, P, P), or (E, 1, P, P) with a `mean` and a `std` of one channel.
    bias
        (E,), or None for none.

    Returns
    -------
    tuple
        (E, P, P) kernel and (E,) bias.
    """
    channels = kernel.shape[1]
    if len(mean) != channels or len(std) != channels:
        raise DonorError(
            f"the donor's patch kernel has {channels} channels and its statistics "
            f"{len(mean)} and {len(std)}: give one mean and deviation per channel"
        )
    exact = kernel.double()
    mu = torch.tensor(mean, dtype=torch.float64)
    s = torch.tensor(std, dtype=torch.float64)
    gray = (exact / s[:, None, None]).sum(dim=1)  # (E, 3, P, P) -> (E, P, P)
    offset = (exact.sum(dim=(2, 3)) * (mu / s)).sum(dim=1)  # (E,)
    folded = -offset if bias is None else bias.double() - offset
    black, white = gray_range
    scaled = gray / (white - black)
    folded = folded - black * scaled.sum(dim=(1, 2))
    # A donor in half precision is exact in it; what is folded is not.
    kept = torch.promote_types(kernel.dtype, torch.float32)
    return scaled.to(kept), folded.to(kept)


def inflate(kernel: Tensor, depth: int, how: Inflation) -> Tensor:
    """A 3D kernel (E, 1, depth, P, P) of a 2D one (E, P, P).

    `average` spreads it evenly, ``W[z] = K / depth``: tokens of a stack that is
    constant along z are those of its slice. `center` puts it into slice ``depth //
    2`` and zeros elsewhere: tokens of *any* stack are those of that slice, and the
    zeros learn what depth adds.

    >>> inflate(torch.ones(1, 2, 2), 3, "center").sum(dim=(0, 1, 3, 4)).tolist()
    [0.0, 4.0, 0.0]
    """
    if how == "average":
        return (kernel / depth)[:, None, None].repeat(1, 1, depth, 1, 1)
    out = kernel.new_zeros(kernel.shape[0], 1, depth, *kernel.shape[1:])
    out[:, 0, depth // 2] = kernel
    return out


def resample_positions(
    table: Tensor, old: tuple[int, int], new: tuple[int, int]
) -> Tensor:
    """A (1, H*W, E) table of positions on another grid, bicubic with antialiasing.

    The same grid gives the same numbers, and so does timm for a new one.
    """
    if old == new:
        return table
    width = table.shape[-1]
    picture = table.reshape(1, *old, width).permute(0, 3, 1, 2)  # (1, E, H, W)
    picture = functional.interpolate(
        picture.float(), new, mode="bicubic", antialias=True, align_corners=False
    )
    kept = torch.promote_types(table.dtype, torch.float32)
    return picture.permute(0, 2, 3, 1).reshape(1, -1, width).to(kept)
