"""A plain Vision Transformer whose patches have a depth.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929), with the
options of timm's ``VisionTransformer``: its parameters carry the same names here, and
at patch depth 1 both compute the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurodeploy.networks._config import NetworkConfig


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Activate each element."""
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    """A learned factor per channel (Touvron et al., arXiv 2103.17239)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the last axis."""
        return x * self.gamma


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads = config.heads
        head_width = config.width // config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)
        self.proj = nn.Linear(config.width, config.width)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = nn.LayerNorm(head_width, eps=config.norm_eps)
            self.k_norm = nn.LayerNorm(head_width, eps=config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (B, N, E) tokens."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, heads, N, E/heads)
        x = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        mixed: Tensor = self.proj(x.transpose(1, 2).reshape(batch, tokens, width))
        return mixed


class Mlp(nn.Module):
    """The two dense layers of a block."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, hidden)
        self.act = QuickGELU() if config.activation == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform each token."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm Transformer block."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = Mlp(config)
        self.ls1: nn.Module = nn.Identity()
        self.ls2: nn.Module = nn.Identity()
        if config.layer_scale:
            self.ls1 = LayerScale(config.width)
            self.ls2 = LayerScale(config.width)

    def forward(self, x: Tensor) -> Tensor:
        """Transform (B, N, E) tokens."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class Encoder(nn.Module):
    """Voxels to tokens, tapped after several blocks.

    Class and register tokens come first, in the donor's order, and are given back
    with the rest: what a decoder does with them is its own affair.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        depth, height, width = config.grid
        self.patch_embed = nn.Conv3d(
            1, config.width, kernel_size=config.patch, stride=config.patch
        )
        rows = height * width + config.prefix_tokens * config.prefix_position
        self.pos_embed = nn.Parameter(torch.empty(1, rows, config.width))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if config.depth_position:
            self.depth_embed = nn.Parameter(torch.zeros(depth, config.width))
        if config.class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
            nn.init.normal_(self.cls_token, std=1e-6)
        if config.register_tokens:
            self.reg_token = nn.Parameter(
                torch.zeros(1, config.register_tokens, config.width)
            )
            nn.init.normal_(self.reg_token, std=1e-6)
        self.norm_pre: nn.Module = nn.Identity()
        if config.pre_norm:
            self.norm_pre = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def patches(self, voxels: Tensor) -> Tensor:
        """(B, 1, z, y, x) voxels to (B, N, E): the convolution, as a product.

        Kernel and stride are the same, so each patch meets every weight once. A
        convolution of one input channel is no work for a matrix unit: as one it took a
        third of the whole network's time in bfloat16.
        """
        (gz, gy, gx), (pz, py, px) = self.config.grid, self.config.patch
        blocks = voxels.reshape(-1, gz, pz, gy, py, gx, px)
        blocks = blocks.permute(0, 1, 3, 5, 2, 4, 6)
        rows = blocks.reshape(-1, gz * gy * gx, pz * py * px)
        kernel = self.patch_embed.weight.flatten(1)
        return functional.linear(rows, kernel, self.patch_embed.bias)

    def embed(self, voxels: Tensor) -> Tensor:
        """(B, 1, z, y, x) voxels to the first block's (B, prefix + N, E) tokens."""
        config = self.config
        batch = voxels.shape[0]
        tokens = self.patches(voxels)
        prefix_rows = config.prefix_tokens * config.prefix_position
        table = self.pos_embed[:, prefix_rows:]  # (1, H*W, E)
        if config.depth_position:
            table = table + self.depth_embed[:, None]  # (D, H*W, E)
            table = table.reshape(1, -1, config.width)
        else:
            table = table.repeat(1, config.grid[0], 1)
        tokens = tokens + table
        prefix: list[Tensor] = []
        if config.class_token:
            prefix.append(self.cls_token)
        if config.register_tokens:
            prefix.append(self.reg_token)
        if prefix:
            first = torch.cat(prefix, dim=1)
            if config.prefix_position:
                first = first + self.pos_embed[:, :prefix_rows]
            first = first.expand(batch, -1, -1).to(tokens.dtype)
            tokens = torch.cat([first, tokens], dim=1)
        out: Tensor = self.norm_pre(tokens)
        return out

    def forward(self, voxels: Tensor) -> list[Tensor]:
        """The normalised tokens (B, prefix + N, E) after each tapped block."""
        tokens = self.embed(voxels)
        tapped = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in self.config.taps:
                tapped.append(self.norm(tokens))
        return tapped
