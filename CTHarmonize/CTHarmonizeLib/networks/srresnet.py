"""SRResNet (Ledig et al. 2017) without up-sampling: CTFlow's comparator for denoising."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from CTHarmonizeLib.networks.conditional import EMBEDDING, ImageNetwork, ImageNetworkConfig, Modulation


@dataclass(frozen=True)
class SRResNetConfig(ImageNetworkConfig):
    """Size of an :class:`SRResNet`; the defaults are the paper's, but for its batch normalisation, which would let an
    image's HU depend on those beside it.

    ``outer``: kernel of the first and last layer.
    """

    blocks: int = 16
    channels: int = 64
    outer: int = 9


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip."""

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)
        self.activation = nn.PReLU(channels)
        self.modulation = Modulation(embedding, channels) if embedding else None
        for convolution in (self.one, self.two):  # as without normalisation in EDSR and ESRGAN: small residuals
            nn.init.kaiming_normal_(convolution.weight, a=0.25)
            convolution.weight.data.mul_(0.3)
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        change = self.activation(self.one(x))
        if self.modulation is not None:
            change = self.modulation(change, embedding)
        return x + self.two(change)


class SRResNet(ImageNetwork):
    """Residual blocks with a long skip over the features."""

    def __init__(self, config: SRResNetConfig = SRResNetConfig()) -> None:
        super().__init__(config, config.channels, config.outer)
        self.widest = 5 * config.channels // config.stride**2
        self.activation = nn.PReLU(config.channels)
        embedding = EMBEDDING if config.conditions else 0
        self.blocks = nn.ModuleList(ResidualBlock(config.channels, embedding) for _ in range(config.blocks))
        self.trunk = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.last = nn.Conv2d(config.channels, config.stride**2, config.outer, padding=config.outer // 2)
        nn.init.zeros_(self.last.bias)
        self.last.weight.data.mul_(0.1)

    def correction(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        first = x = self.activation(x.to(self.trunk.weight.dtype))
        for block in self.blocks:
            x = block(x, embedding)
        return self.last(first + self.trunk(x))
