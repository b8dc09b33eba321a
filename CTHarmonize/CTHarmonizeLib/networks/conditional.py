"""How a network is told of the acquisitions, and what all networks of images share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.config import NetworkConfig

EMBEDDING = 64
"""Width of an acquisition's embedding."""


def acquisition_embedding(conditions: int) -> nn.Sequential | None:
    """From acquisition vectors (b, conditions) to embeddings (b, EMBEDDING); None for a network without conditions."""
    if not conditions:
        return None
    return nn.Sequential(nn.Linear(conditions, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU())


def embedded(embedding: nn.Sequential | None, acquisition: Tensor | None) -> Tensor | None:
    """``acquisition`` through ``embedding``, in the type of its weights."""
    return None if embedding is None else embedding(acquisition.to(embedding[0].weight.dtype))


def convert(
    module: nn.Module,
    dtype: torch.dtype,
    but: Sequence[nn.Module] = (),
    memory_format: torch.memory_format = torch.channels_last,
) -> None:
    """All layers of ``module`` in ``dtype`` without those ``but``: going there and back again would round them."""
    for layer in module.modules():
        if not any(layer is kept for kept in but) and not list(layer.children()):
            layer.to(dtype=dtype, memory_format=memory_format)


class Modulation(nn.Module):
    """Scales and shifts channels by a condition vector; starts as the identity (FiLM, Perez et al. 2018)."""

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(embedding, 2 * channels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        scale, shift = self.linear(embedding).to(x.dtype).view(len(x), -1, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """Convolutions ``one`` and ``two`` with a skip; between them an ``activation`` and, told of the acquisitions by an
    ``embedding`` of that width (0: not), a modulation of the ``channels``."""

    def __init__(
        self, one: nn.Module, two: nn.Module, activation: nn.Module, channels: int, embedding: int
    ) -> None:
        super().__init__()
        self.one, self.two, self.activation = one, two, activation
        self.modulation = Modulation(embedding, channels) if embedding else None

    def forward(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        change = self.activation(self.one(x))
        if self.modulation is not None:
            change = self.modulation(change, embedding)
        return x + self.two(change)


@dataclass(frozen=True)
class ImageNetworkConfig(NetworkConfig):
    """What the configurations of all :class:`ImageNetwork` have: ``planes`` of the input; ``conditions``, the length of
    the acquisition vector; ``stride`` 2: on the space-to-depth grid; ``gain`` multiplies what the network sees of
    [0, 1]."""

    planes: int = 1
    conditions: int = 0
    stride: int = 1
    gain: float = 1.0

    @property
    def multiple(self) -> int:
        return self.stride


class ImageNetwork(nn.Module, ABC):
    """Base of networks that make one image: the last plane plus a correction.

    ``correction`` of a subclass sees planes (b, planes * stride^2, h / stride, w / stride), on the space-to-depth grid
    where ``stride`` is 2, through :attr:`first`, which stays in float32: bfloat16 would round soft tissue to steps of
    several HU before the network sees it. ``widest``: values a pixel that live at once, about; ``whole_slices``: every
    pixel of the output depends on the whole image, so it must not be cut.
    """

    widest: int = 0
    whole_slices: bool = False

    def __init__(self, config: ImageNetworkConfig, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.config = config
        self.embedding = acquisition_embedding(config.conditions)
        self.first = nn.Conv2d(config.planes * config.stride**2, channels, kernel, padding=kernel // 2)

    def use_precision(self, dtype: torch.dtype) -> ImageNetwork:
        """Run all but the first layer in ``dtype`` (bfloat16 or float32)."""
        convert(self, dtype, [self.first])
        return self

    def forward(self, planes: Tensor, acquisition: Tensor | None = None) -> Tensor:
        """Image (b, 1, h, w) in [0, 1] of planes (b, p, h, w) in [0, 1] and acquisition (b, conditions)."""
        stride, gain = self.config.stride, self.config.gain
        x = F.pixel_unshuffle(planes, stride) if stride > 1 else planes
        with torch.autocast(x.device.type, enabled=False):
            x = self.first((gain * x).to(self.first.weight.dtype))
        correction = self.correction(x, embedded(self.embedding, acquisition))
        if stride > 1:
            correction = F.pixel_shuffle(correction, stride)
        return planes[:, -1:] + correction.to(planes.dtype) / gain

    @abstractmethod
    def correction(self, x: Tensor, embedding: Tensor | None) -> Tensor:
        """Correction (b, stride^2, h, w), times ``gain``, from the first layer's channels (b, channels, h, w)."""
