"""Residual-in-residual dense blocks (ESRGAN), the encoder of CTFlow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import Modulation


class ResidualDenseBlock(nn.Module):
    """Five densely connected 3x3 convolutions with a scaled residual."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels + i * growth, growth if i < 4 else channels, 3, padding=1) for i in range(5)
        )
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, a=0.2)
            convolution.weight.data.mul_(0.1)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x]
        for convolution in self.convolutions[:-1]:
            parts.append(F.leaky_relu(convolution(torch.cat(parts, 1)), 0.2))
        return x + 0.2 * self.convolutions[-1](torch.cat(parts, 1))


class RRDBEncoder(nn.Module):
    """Features of a source image and an estimate of the target.

    ``blocks`` RRDBs of ``channels``/``growth``; ``taps``: numbers of the blocks (from 1) whose outputs, with the
    trunk's, are the features. ``stride`` 2 works on the space-to-depth grid. ``planes`` input planes; the estimate
    is a correction added to the last of them. ``embedding`` > 0 modulates every block by a condition vector.
    """

    def __init__(
        self,
        blocks: int,
        channels: int,
        growth: int,
        taps: Sequence[int],
        stride: int = 1,
        planes: int = 1,
        embedding: int = 0,
    ) -> None:
        super().__init__()
        if not all(1 <= tap <= blocks for tap in taps):
            raise ValueError(f"Taps {list(taps)} must lie between 1 and {blocks}.")
        self.taps, self.stride = frozenset(taps), stride
        self.feature_channels = channels * (len(self.taps) + 1)
        self.first = nn.Conv2d(planes * stride**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualDenseBlock(channels, growth) for _ in range(3))) for _ in range(blocks)
        )
        self.modulations = nn.ModuleList(Modulation(embedding, channels) for _ in range(blocks if embedding else 0))
        self.trunk = nn.Conv2d(channels, channels, 3, padding=1)
        self.head = nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, stride**2, 3, padding=1)

    def forward(self, planes: Tensor, embedding: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(estimate (b, 1, h, w), features (b, feature_channels, h / stride, w / stride)) of planes (b, p, h, w)."""
        x = F.pixel_unshuffle(planes, self.stride) if self.stride > 1 else planes
        # bfloat16 would round soft tissue to steps of several HU before the network sees it.
        with torch.autocast(x.device.type, enabled=False):
            x = self.first(x.to(self.first.weight.dtype))
        first = x = x.to(self.trunk.weight.dtype)
        features = []
        for number, block in enumerate(self.blocks, start=1):
            x = x + 0.2 * (block(x) - x)
            if self.modulations:
                x = self.modulations[number - 1](x, embedding)
            if number in self.taps:
                features.append(x)
        trunk = first + self.trunk(x)
        features.append(trunk)
        correction = self.last(F.leaky_relu(self.head(trunk), 0.2))
        if self.stride > 1:
            correction = F.pixel_shuffle(correction, self.stride)
        return planes[:, -1:] + correction.to(planes.dtype), torch.cat(features, 1)
