"""U-Net (Ronneberger et al. 2015): after a filtered back-projection (Jin et al. 2017), and, with concurrent spatial and
channel squeeze and excitation (Roy et al. 2018), the part of the physics-informed GAN that sees the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import EMBEDDING, ImageNetwork, ImageNetworkConfig, Modulation


@dataclass(frozen=True)
class UNetConfig(ImageNetworkConfig):
    """Size of a :class:`UNet`; the defaults are the original's, 31 million parameters, without normalisation (it would
    let an image's HU depend on its own contrast).

    ``channels`` at full resolution, doubled at each of ``depth`` halvings; ``attention``: ``none``; ``spatial``
    squeeze and excitation; or ``scse``, which adds the channels' own and with it the mean of the whole image.
    """

    channels: int = 64
    depth: int = 4
    attention: Literal["none", "spatial", "scse"] = "none"

    def __post_init__(self) -> None:
        if self.attention not in ("none", "spatial", "scse"):
            raise ValueError(f"Unknown attention '{self.attention}': none, spatial or scse.")

    @property
    def multiple(self) -> int:
        return self.stride * 2**self.depth


class Excitation(nn.Module):
    """Spatial and, with ``channel``, channel squeeze and excitation of ``channels``; the larger of both counts, as in
    Roy et al. (2018)."""

    REDUCTION = 2

    def __init__(self, channels: int, channel: bool) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, 1, 1)
        hidden = channels // self.REDUCTION
        squeeze = nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels)
        self.channel = nn.Sequential(*squeeze) if channel else None

    def forward(self, x: Tensor) -> Tensor:
        spatial = x * torch.sigmoid(self.spatial(x))
        if self.channel is None:
            return spatial
        return torch.maximum(spatial, x * torch.sigmoid(self.channel(x.mean((2, 3))))[:, :, None, None])


class Block(nn.Module):
    """Two 3x3 convolutions, told of the acquisitions after the first, and attention."""

    def __init__(self, incoming: int, channels: int, embedding: int, attention: str) -> None:
        super().__init__()
        self.one = nn.Conv2d(incoming, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulation = Modulation(embedding, channels) if embedding else None
        self.excitation = None if attention == "none" else Excitation(channels, attention == "scse")
        for convolution in (self.one, self.two):
            nn.init.kaiming_normal_(convolution.weight, a=0.2)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        x = F.leaky_relu(self.one(x), 0.2)
        if self.modulation is not None:
            x = self.modulation(x, embedding)
        x = F.leaky_relu(self.two(x), 0.2)
        return x if self.excitation is None else self.excitation(x)


class UNet(ImageNetwork):
    """Contracting and expanding path, joined at each resolution.

    ``images``: how many are made, each the last plane plus a correction of its own; a part of another network may need
    more than one.
    """

    def __init__(self, config: UNetConfig = UNetConfig(), images: int = 1) -> None:
        super().__init__(config, config.channels)
        self.whole_slices = config.attention == "scse"
        self.widest = 12 * config.channels // config.stride**2
        embedding = EMBEDDING if config.conditions else 0
        widths = [config.channels * 2**level for level in range(config.depth + 1)]

        def block(incoming: int, channels: int) -> Block:
            return Block(incoming, channels, embedding, config.attention)

        self.down = nn.ModuleList(block(widths[max(level - 1, 0)], width) for level, width in enumerate(widths))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, 2) for width in reversed(widths[:-1]))
        self.up = nn.ModuleList(block(2 * width, width) for width in reversed(widths[:-1]))
        self.last = nn.Conv2d(config.channels, images * config.stride**2, 1)
        nn.init.zeros_(self.last.bias)
        self.last.weight.data.mul_(0.1)

    def correction(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        x = F.leaky_relu(x, 0.2).to(self.last.weight.dtype)
        seen = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x, embedding)
            seen.append(x)
        seen.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = block(torch.cat([seen.pop(), rise(x)], 1), embedding)
        return self.last(x)
