"""The generator of WGAN-VGG and WGAN-MSE (Yang et al. 2018): plain convolutions, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import EMBEDDING, ImageNetwork, ImageNetworkConfig, Modulation


@dataclass(frozen=True)
class WGANConfig(ImageNetworkConfig):
    """Size of a :class:`WGANGenerator`; the defaults are the paper's: eight layers, 32 filters, the last layer one."""

    layers: int = 8
    channels: int = 32


class WGANGenerator(ImageNetwork):
    """3x3 convolutions and ReLU. The output is a correction of the input, where the paper's is the image itself."""

    def __init__(self, config: WGANConfig = WGANConfig()) -> None:
        super().__init__(config, config.channels)
        self.widest = 4 * config.channels // config.stride**2
        channels = config.channels
        self.inner = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.layers - 2))
        self.modulations = nn.ModuleList(
            Modulation(EMBEDDING, channels) for _ in range(config.layers - 2 if config.conditions else 0)
        )
        self.last = nn.Conv2d(channels, config.stride**2, 3, padding=1)
        for convolution in self.inner:
            nn.init.kaiming_normal_(convolution.weight)
            nn.init.zeros_(convolution.bias)
        nn.init.zeros_(self.last.bias)
        self.last.weight.data.mul_(0.1)

    def correction(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        x = F.relu(x).to(self.last.weight.dtype)
        for number, convolution in enumerate(self.inner):
            x = convolution(x)
            if self.modulations:
                x = self.modulations[number](x, embedding)
            x = F.relu(x)
        return self.last(x)
