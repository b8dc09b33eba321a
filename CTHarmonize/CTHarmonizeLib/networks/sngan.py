"""The generator of the 3D spectral-norm GAN (Wei et al. 2020, "CT image normalization"), also its CNN baseline.

Residual blocks of 3^3 convolutions on thick slices, then nearest up-sampling along z and two convolutions on thin
ones. As in EDSR (Lim et al. 2017), which the paper follows, only the blocks have activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import EMBEDDING, ResidualBlock, acquisition_embedding, convert, embedded
from CTHarmonizeLib.networks.config import NetworkConfig

_SKIPS = ("none", "nearest", "linear")


@dataclass(frozen=True)
class VolumeGeneratorConfig(NetworkConfig):
    """Size of a :class:`VolumeGenerator`; the defaults are the paper's.

    ``ratio``: slices made of each; ``stride`` 2: in-plane on the space-to-depth grid; ``gain``: of the network's input,
    undone at its output; ``skip``: what the output is a correction of, the last plane with each slice repeated
    (``nearest``) or interpolated (``linear``), or the whole image (``none``). ``initial``: the random weights, as a
    share of those by Kaiming's rule.
    """

    blocks: int = 8
    channels: int = 64
    ratio: int = 2
    planes: int = 1
    conditions: int = 0
    stride: int = 1
    gain: float = 1.0
    skip: str = "none"
    initial: float = 0.1

    def __post_init__(self) -> None:
        if self.ratio < 1 or self.stride < 1:
            raise ValueError(f"A ratio of {self.ratio} and a stride of {self.stride} do not do: give 1 or more.")
        if self.skip not in _SKIPS:
            raise ValueError(f"There is no skip '{self.skip}': give one of {', '.join(_SKIPS)}.")

    @property
    def multiple(self) -> int:
        return self.stride

    @property
    def context(self) -> int:
        """Thick slices on each side that an output slice depends on: a convolution sees one, the two after the
        up-sampling two thin ones."""
        return 2 * self.blocks + 2 + -(-2 // self.ratio)

    @property
    def halo(self) -> int:
        """Pixels on each side that an output pixel depends on."""
        return self.stride * (2 * self.blocks + 5) - 1


class VolumeGenerator(nn.Module):
    """Thick slices in, ``ratio`` times as many thin ones out, between the same outer faces.

    The first and the last convolution stay in float32: in between, bfloat16 rounds features, but a whole image in it
    would have steps of several HU.
    """

    def __init__(self, config: VolumeGeneratorConfig = VolumeGeneratorConfig()) -> None:
        super().__init__()
        self.config = config
        channels, cells, initial = config.channels, config.stride**2, config.initial
        self.embedding = acquisition_embedding(config.conditions)
        self.first = _convolution(config.planes * cells, channels, initial)
        embedding = EMBEDDING if config.conditions else 0
        self.blocks = nn.ModuleList(_block(channels, embedding, initial) for _ in range(config.blocks))
        self.trunk = _convolution(channels, channels, initial)
        self.thin = _convolution(channels, channels, initial)
        self.last = _convolution(channels, cells, initial)

    @property
    def widest(self) -> int:
        """Values a pixel and thin slice that live at once, about."""
        return 4 * self.config.channels // self.config.stride**2

    def use_precision(self, dtype: torch.dtype) -> VolumeGenerator:
        """Run all but the first and last layer in ``dtype`` (bfloat16 or float32)."""
        convert(self, dtype, [self.first, self.last], torch.channels_last_3d)
        return self

    def forward(self, planes: Tensor, acquisition: Tensor | None = None) -> Tensor:
        """Image (b, 1, d * ratio, h, w) in [0, 1] of planes (b, p, d, h, w) in [0, 1] and acquisition
        (b, conditions)."""
        config = self.config
        x = self._in_float32(self.first, config.gain * _to_depth(planes, config.stride))
        told = embedded(self.embedding, acquisition)
        first = x = x.to(self.trunk.weight.dtype)
        for block in self.blocks:
            x = block(x, told)
        x = first + self.trunk(x)
        x = self.thin(x.repeat_interleave(config.ratio, 2))
        image = _to_space(self._in_float32(self.last, x), config.stride) / config.gain
        if config.skip == "none":
            return image
        source, scale = planes[:, -1:], (config.ratio, 1, 1)
        mode = "nearest" if config.skip == "nearest" else "trilinear"
        return F.interpolate(source.float(), scale_factor=scale, mode=mode) + image

    @staticmethod
    def _in_float32(layer: nn.Conv3d, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return layer(x.to(layer.weight.dtype))


def _block(channels: int, embedding: int, initial: float) -> ResidualBlock:
    one, two = (_convolution(channels, channels, initial) for _ in range(2))
    return ResidualBlock(one, two, nn.ReLU(), channels, embedding)


def _convolution(inside: int, outside: int, initial: float) -> nn.Conv3d:
    layer = nn.Conv3d(inside, outside, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight)
    layer.weight.data.mul_(initial)
    nn.init.zeros_(layer.bias)
    return layer


def _to_depth(x: Tensor, stride: int) -> Tensor:
    """(b, c, d, h, w) to (b, c * stride^2, d, h / stride, w / stride)."""
    return x if stride == 1 else F.pixel_unshuffle(x.transpose(1, 2), stride).transpose(1, 2)


def _to_space(x: Tensor, stride: int) -> Tensor:
    """The inverse of :func:`_to_depth`."""
    return x if stride == 1 else F.pixel_shuffle(x.transpose(1, 2), stride).transpose(1, 2)
