"""The physics-informed generator (Zarei et al. 2024, Eq. 3): a U-Net, and a filter that follows the source's MTF.

    G(I, MTF) = O(F^-1[Lambda(F[Gamma(I)], Omega(MTF))])

Its linear special case is the ratio of two MTFs (Eq. 2): Gamma and O pass the image on, Omega is the ratio, Lambda its
product with the spectrum. The paper does not say how Lambda meets Omega; here it sees the spectrum, and beside it the
spectrum times Omega's gains, so that the product is a matter of weights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.config import NetworkConfig
from CTHarmonizeLib.networks.fourier import reflected
from CTHarmonizeLib.networks.unet import UNet, UNetConfig


@dataclass(frozen=True)
class PhysicsConfig(NetworkConfig):
    """Size of a :class:`PhysicsGenerator`. The widths are not published; the defaults make the published 26.5 million
    parameters.

    ``channels``, ``depth`` and ``attention`` of the U-Net, ``stride``, ``gain`` and ``conditions`` (0: told of the MTF
    alone) as :class:`~CTHarmonizeLib.networks.unet.UNetConfig` has them; ``images`` that it hands to the filter;
    ``hidden`` channels of Omega and O; ``frequencies``: side of Lambda's kernel. 3 is the published 3D convolution,
    over real and imaginary part and neighbouring frequencies: what it does to a pixel depends on where that lies in an
    image of which size. 1 weights each frequency by itself, real and imaginary part alike: a filter of the image, the
    same everywhere and for every size. Without ``spectral`` it is the paper's ablation, the U-Net alone.
    """

    channels: int = 57
    depth: int = 4
    images: int = 64
    hidden: int = 128
    frequencies: int = 3
    attention: Literal["none", "spatial", "scse"] = "scse"
    spectral: bool = True
    planes: int = 1
    conditions: int = 0
    stride: int = 1
    gain: float = 1.0

    def __post_init__(self) -> None:
        if self.frequencies not in (1, 3):
            raise ValueError(f"The kernel over frequencies has a side of 1 or 3, not {self.frequencies}.")
        if self.planes != 1:
            raise ValueError(f"The generator filters by itself: it reads the source alone, not {self.planes} planes.")

    @property
    def multiple(self) -> int:
        return self.unet.multiple

    @property
    def unet(self) -> UNetConfig:
        """Gamma's."""
        shared = {entry.name: getattr(self, entry.name) for entry in fields(UNetConfig)}
        return UNetConfig(**shared)


class PhysicsGenerator(nn.Module):
    """The generator; it starts as the U-Net alone."""

    whole_slices = True

    def __init__(self, config: PhysicsConfig = PhysicsConfig()) -> None:
        super().__init__()
        self.config = config
        images = config.images if config.spectral else 1
        self.gamma = UNet(config.unet, images)
        self.widest = self.gamma.widest + (24 * images + 2 * config.hidden if config.spectral else 0)
        self.omega = Gains(config.hidden, images) if config.spectral else None
        self.filter = SpectralFilter(images, config.frequencies) if config.spectral else None
        self.output = Output(images, config.hidden, config.gain) if config.spectral else None

    def use_precision(self, dtype: torch.dtype) -> PhysicsGenerator:
        """Run U-Net and output in ``dtype`` (bfloat16 or float32); spectra stay in float32."""
        self.gamma.use_precision(dtype)
        if self.output is not None:
            self.output.to(dtype=dtype, memory_format=torch.channels_last)
        return self

    def forward(self, planes: Tensor, acquisition: Tensor | None, mtf: Tensor) -> Tensor:
        """Image (b, 1, h, w) in [0, 1] of planes (b, 1, h, w) in [0, 1], acquisition (b, conditions) and ``mtf``
        (b, 1, n, n), the source's modulation on cells between minus and plus the Nyquist frequency."""
        images = self.gamma(planes, acquisition)
        if self.filter is None:
            return images
        with torch.autocast(planes.device.type, enabled=False):
            images = self.filter(images.float(), self.omega(mtf.float()))
        return self.output(images, planes)


class Gains(nn.Module):
    """Omega: two transposed convolutions, from an MTF on n x n frequencies to gains on 4n x 4n, which start at 0."""

    def __init__(self, hidden: int, images: int) -> None:
        super().__init__()
        self.one = nn.ConvTranspose2d(1, hidden, 4, 2, 1)
        self.two = nn.ConvTranspose2d(hidden, images, 4, 2, 1)
        nn.init.zeros_(self.two.weight)
        nn.init.zeros_(self.two.bias)

    def forward(self, mtf: Tensor) -> Tensor:
        """(b, images, 4n, 4n) of ``mtf`` (b, 1, n, n)."""
        return self.two(F.leaky_relu(self.one(mtf), 0.2))


class SpectralFilter(nn.Module):
    """Lambda, between two Fourier transforms: a 3D convolution over real and imaginary part, rows and columns of the
    half spectrum F, from F and F times the gains to the filtered F. Starts as F + gains F.

    It has no bias, which would be a bright point in the image's corner. Rows of a spectrum are a circle and are padded
    as such, columns with zeros.
    """

    def __init__(self, images: int, frequencies: int) -> None:
        super().__init__()
        self.images, self.side = images, frequencies // 2
        self.convolution = nn.Conv3d(2 * images, images, frequencies, bias=False)
        middle = self.convolution.weight.data.zero_()[:, :, self.side, self.side, self.side]
        middle += torch.eye(images).repeat(1, 2)

    def forward(self, images: Tensor, gains: Tensor) -> Tensor:
        """(b, images, h, w), filtered, of ``images`` and ``gains`` (b, images, n, n) between minus and plus Nyquist."""
        padded, inner = reflected(images)
        spectrum = torch.view_as_real(torch.fft.rfft2(padded)).movedim(-1, 2)  # (b, images, 2, rows, half)
        gains = at_half_spectrum(gains, *padded.shape[-2:])[:, :, None]
        x = torch.cat([spectrum, gains * spectrum], 1)
        if self.side:
            x = torch.cat([x[..., -1:, :], x, x[..., :1, :]], -2)
            x = F.pad(x, (1, 1, 0, 0, 1, 1))
        x = self.convolution(x)
        filtered = torch.view_as_complex(x.movedim(2, -1).contiguous())
        return torch.fft.irfft2(filtered, s=padded.shape[-2:])[inner]


def at_half_spectrum(gains: Tensor, rows: int, columns: int) -> Tensor:
    """``gains`` (b, c, n, n) on cells between minus and plus Nyquist at the frequencies of ``torch.fft.rfft2``,
    bilinear: (b, c, rows, columns // 2 + 1)."""
    vertical = torch.fft.fftfreq(rows, device=gains.device)[:, None]
    horizontal = torch.fft.rfftfreq(columns, device=gains.device)[None]
    place = 2.0 * torch.stack(torch.broadcast_tensors(horizontal, vertical), -1)  # -1 and 1: the outer cells' edges
    place = place.to(gains.dtype).expand(len(gains), -1, -1, -1)
    return F.grid_sample(gains, place, padding_mode="border", align_corners=False)


class Output(nn.Module):
    """O: the filtered images' mean, corrected by two convolutions, and where a long attention skip says so the input.

    The attention sees both; it starts with an eighth of the input.
    """

    def __init__(self, images: int, hidden: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.one = nn.Conv2d(images, hidden, 3, padding=1)
        self.two = nn.Conv2d(hidden, 1, 3, padding=1)
        self.attention = nn.Conv2d(images + 1, 1, 3, padding=1)
        nn.init.kaiming_normal_(self.one.weight, a=0.2)
        for layer in (self.one, self.two):
            nn.init.zeros_(layer.bias)
        self.two.weight.data.mul_(0.1)
        self.attention.weight.data.mul_(0.1)
        nn.init.constant_(self.attention.bias, -2.0)

    def forward(self, images: Tensor, source: Tensor) -> Tensor:
        """Image (b, 1, h, w) of filtered ``images`` (b, images, h, w) and the ``source`` (b, 1, h, w)."""
        dtype = self.one.weight.dtype
        change = (self.gain * (images - source)).to(dtype)  # differences: bfloat16 would round HU themselves
        correction = self.two(F.leaky_relu(self.one(change), 0.2)).to(source.dtype) / self.gain
        image = images.mean(1, keepdim=True) + correction
        kept = torch.sigmoid(self.attention(torch.cat([source.to(dtype), change], 1)).to(source.dtype))
        return image + kept * (source - image)
