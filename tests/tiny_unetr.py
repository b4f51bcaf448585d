"""A small network of the kind that TensorRT finds risky, and what is said of it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurodeploy_runtime import ModelSpec

TILE = (8, 16, 16)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, e = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, n, 3, 2, e // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, n, e))
        return x + self.mlp(self.norm2(x))


class TinyUnetr(nn.Module):
    """ViT tokens, ConvTranspose3d and InstanceNorm; takes and gives (B, 1, *tile)."""

    def __init__(
        self,
        tile: tuple[int, int, int] = TILE,
        *,
        flips_when_exported: bool = False,
    ) -> None:
        super().__init__()
        patch, width = (4, 8, 8), 16
        self.grid = tuple(t // p for t, p in zip(tile, patch, strict=True))
        self.flips_when_exported = flips_when_exported
        self.patch = nn.Conv3d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, math.prod(self.grid), width) / 10)
        self.block = Block(width)
        self.up = nn.ConvTranspose3d(width, 8, patch, patch)
        self.norm = nn.InstanceNorm3d(8, affine=True)
        self.conv = nn.Conv3d(9, 4, 3, padding=1)
        self.head = nn.Conv3d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = x
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        tokens = self.block(tokens)
        y = tokens.transpose(1, 2).reshape(x.shape[0], -1, *self.grid)
        y = F.gelu(self.norm(self.up(y)))
        y = self.head(F.gelu(self.conv(torch.cat([y, x], 1))))
        # A random network answers a half everywhere; the image makes it answer.
        p = torch.sigmoid(y + 4 * (image - 1.5))
        if self.flips_when_exported and torch.compiler.is_exporting():
            p = p.flip(2)
        return p


def make_network(**options: bool) -> nn.Module:
    torch.manual_seed(1)
    return TinyUnetr(**options).eval()  # type: ignore[arg-type]


def make_spec(tile: tuple[int, int, int] = TILE, depth: int | None = None) -> ModelSpec:
    return ModelSpec(
        name="tiny",
        mode="volume" if depth is None else "slice",
        tile=tile,
        window=tile if depth is None else (depth, *tile[1:]),
        overlap=(0.25, 0.25, 0.25) if depth is None else (0.0, 0.25, 0.25),
        threshold=0.5,
        max_batch=4,
        voxel_size_um=(2.0, 0.8, 0.8),
    )
