"""From tokens and voxels to logits: a light UNETR.

Hatamizadeh et al., "UNETR" (arXiv 2103.10504) decodes tokens of several depths with
wide convolutions up to full resolution, where nearly half of its work lies. Here the
voxels enter by a lossless rearrangement into half resolution, where most of the
convolutions are, and leave by the reverse: the last layer gives every voxel of half
resolution its 8 answers (Shi et al., "sub-pixel convolution", arXiv 1609.05158,
section 2.2). No layer is narrow and large, which matrix units compute badly.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from neurodeploy.networks._config import NetworkConfig
from neurodeploy_runtime._geometry import Shape


class PlaneConv(nn.Conv2d):
    """A 2D convolution of a volume of depth 1.

    Not a Conv3d with a kernel of depth 1: the backward of that in bfloat16 on a CPU
    writes over its memory (PyTorch 2.15, oneDNN, 8 channels of 96 × 96).
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, y, x) to the same with other channels."""
        return super().forward(x.squeeze(2)).unsqueeze(2)


def _conv(inputs: int, outputs: int, kernel: Shape, stride: Shape) -> nn.Module:
    if kernel[0] == 1:
        return PlaneConv(
            inputs,
            outputs,
            kernel[1:],
            stride[1:],
            (kernel[1] // 2, kernel[2] // 2),
            bias=False,
        )
    z, y, x = (k // 2 for k in kernel)
    return nn.Conv3d(inputs, outputs, kernel, stride, (z, y, x), bias=False)


class ConvUnit(nn.Sequential):
    """Convolution, batch normalisation (folded away at export), ReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: Shape, stride: Shape = (1, 1, 1)
    ) -> None:
        super().__init__(
            _conv(inputs, outputs, kernel, stride),
            nn.BatchNorm3d(outputs),
            nn.ReLU(inplace=True),
        )


class Residual(nn.Module):
    """A convolution unit added to its input."""

    def __init__(self, channels: int, kernel: Shape) -> None:
        super().__init__()
        self.unit = ConvUnit(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Refine features of any shape."""
        out: Tensor = x + self.unit(x)
        return out


class Decoder(nn.Module):
    """Tapped tokens and the voxels themselves to one logit per voxel of the window.

    In slice mode the slices of the block are the channels of a picture of depth 1,
    and every kernel has depth 1.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        volume = config.mode == "volume"
        kernel: Shape = (3, 3, 3) if volume else (1, 3, 3)
        half: Shape = (2, 2, 2) if volume else (1, 2, 2)
        half_c, quarter_c = config.half_channels, config.quarter_channels
        answers = half[0] * half[1] * half[2]
        picture_c = answers * (1 if volume else config.tile[0])
        self.stem = ConvUnit(picture_c, half_c, kernel)
        self.half_in = Residual(half_c, kernel)
        self.down = ConvUnit(half_c, quarter_c, kernel, half)
        self.quarter_in = Residual(quarter_c, kernel)
        # (tokens' grid) -> as near to a quarter as whole factors reach
        step_z = config.patch[0] // 4 if volume else 1
        step: Shape = (
            step_z,
            max(1, config.patch[1] // 4),
            max(1, config.patch[2] // 4),
        )
        self.taps = nn.ModuleList(
            nn.ConvTranspose3d(config.width, config.tap_channels, step, step)
            for _ in config.taps
        )
        taps_c = config.tap_channels * len(config.taps)
        self.tokens_in = nn.Conv3d(taps_c, quarter_c, 1)
        self.quarter_out = Residual(quarter_c, kernel)
        self.up_half = nn.ConvTranspose3d(quarter_c, half_c, half, half)
        self.half_out = Residual(half_c, kernel)
        # It sees the voxels again, as they came.
        self.last = ConvUnit(half_c + picture_c, config.head_channels, kernel)
        self.head = nn.Conv3d(config.head_channels, answers, 1)
        # Neurites are a few per cent of the voxels: start where the loss is calm.
        nn.init.constant_(self.head.bias, -2.0)  # type: ignore[arg-type]

    # No rearrangement has more than 7 axes: TensorRT transposes up to 8.

    def _picture(self, voxels: Tensor) -> Tensor:
        """Voxels as channels of half resolution."""
        depth, height, width = self.config.tile
        if self.config.mode == "slice":
            blocks = voxels.reshape(-1, depth, height // 2, 2, width // 2, 2)
            channels = blocks.permute(0, 1, 3, 5, 2, 4)  # (B, d, 2, 2, H/2, W/2)
            return channels.reshape(-1, depth * 4, 1, height // 2, width // 2)
        blocks = voxels.reshape(-1, depth // 2, 2, height // 2, 2, width // 2, 2)
        channels = blocks.permute(0, 2, 4, 6, 1, 3, 5)  # (B, 2, 2, 2, D/2, H/2, W/2)
        return channels.reshape(-1, 8, depth // 2, height // 2, width // 2)

    def _window(self, answers: Tensor) -> Tensor:
        """Channels of half resolution as voxels: the reverse of `_picture`."""
        depth, height, width = self.config.window
        if self.config.mode == "slice":
            blocks = answers.reshape(-1, 2, 2, height // 2, width // 2)
            voxels = blocks.permute(0, 3, 1, 4, 2)  # (B, H/2, 2, W/2, 2)
        else:
            blocks = answers.reshape(-1, 2, 2, 2, depth // 2, height // 2, width // 2)
            voxels = blocks.permute(0, 4, 1, 5, 2, 6, 3)
        return voxels.reshape(-1, 1, depth, height, width)

    def forward(self, voxels: Tensor, tapped: list[Tensor]) -> Tensor:
        """(B, 1, *tile) voxels and the taps' tokens to (B, 1, *window) logits."""
        config = self.config
        picture = self._picture(voxels)
        half = self.half_in(self.stem(picture))
        quarter = self.quarter_in(self.down(half))
        maps = []
        for tokens, up in zip(tapped, self.taps, strict=True):
            grid = tokens[:, config.prefix_tokens :].transpose(1, 2)
            grid = grid.reshape(-1, config.width, *config.grid)
            features = up(grid)
            if features.shape[2:] != quarter.shape[2:]:  # a patch of 14, not of 16
                features = functional.interpolate(
                    features, quarter.shape[2:], mode="trilinear", align_corners=False
                )
            maps.append(features)
        quarter = self.quarter_out(quarter + self.tokens_in(torch.cat(maps, dim=1)))
        half = self.half_out(half + self.up_half(quarter))
        last = self.last(torch.cat([half, picture.to(half.dtype)], dim=1))
        return self._window(self.head(last))
