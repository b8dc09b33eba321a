"""SRResNet (Ledig et al. 2017) without up-sampling: CTFlow's comparator for denoising."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from CTHarmonizeLib.networks.conditional import EMBEDDING, ImageNetwork, ImageNetworkConfig, ResidualBlock


@dataclass(frozen=True)
class SRResNetConfig(ImageNetworkConfig):
    """Size of an :class:`SRResNet`; the defaults are the paper's, but for its batch normalisation, which would let an
    image's HU depend on those beside it.

    ``outer``: kernel of the first and last layer.
    """

    blocks: int = 16
    channels: int = 64
    outer: int = 9


def _block(channels: int, embedding: int) -> ResidualBlock:
    convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
    for convolution in convolutions:  # as without normalisation in EDSR and ESRGAN: small residuals
        nn.init.kaiming_normal_(convolution.weight, a=0.25)
        convolution.weight.data.mul_(0.3)
        nn.init.zeros_(convolution.bias)
    return ResidualBlock(*convolutions, nn.PReLU(channels), channels, embedding)


class SRResNet(ImageNetwork):
    """Residual blocks with a long skip over the features."""

    def __init__(self, config: SRResNetConfig = SRResNetConfig()) -> None:
        super().__init__(config, config.channels, config.outer)
        self.widest = 5 * config.channels // config.stride**2
        self.activation = nn.PReLU(config.channels)
        embedding = EMBEDDING if config.conditions else 0
        self.blocks = nn.ModuleList(_block(config.channels, embedding) for _ in range(config.blocks))
        self.trunk = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.last = nn.Conv2d(config.channels, config.stride**2, config.outer, padding=config.outer // 2)
        nn.init.zeros_(self.last.bias)
        self.last.weight.data.mul_(0.1)

    def correction(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        first = x = self.activation(x.to(self.trunk.weight.dtype))
        for block in self.blocks:
            x = block(x, embedding)
        return self.last(first + self.trunk(x))
