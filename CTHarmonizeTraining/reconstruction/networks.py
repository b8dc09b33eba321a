"""Networks that read measurements: learned gradient descent, learned primal-dual and iRadonMap.

All map an observation (b, 1, views, beams), line integrals over the largest attenuation as LoDoPaB-CT stores them
(metres), and its filtered back-projection (b, 1, side, side) in [0, 1], to an image (b, 1, side, side) in [0, 1].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.config import NetworkConfig
from CTHarmonizeTraining.simulation.projector import filter_projections, wide_band_mtf
from CTHarmonizeTraining.simulation.rays import Rays, RayTransform


@dataclass(frozen=True)
class ReconstructionConfig(NetworkConfig):
    """The ``rays`` that a network knows."""

    rays: Rays = field(default_factory=Rays)


class ReconstructionNetwork(nn.Module, ABC):
    """Base of the networks of this module."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, observation: Tensor, image: Tensor) -> Tensor:
        """Image of an observation and its filtered back-projection."""


@dataclass(frozen=True)
class LearnedGradientDescentConfig(ReconstructionConfig):
    """Of :class:`LearnedGradientDescent`; the defaults are those of Adler & Öktem (2017)."""

    iterations: int = 10
    memory: int = 5
    channels: int = 32

    def __post_init__(self) -> None:
        if min(self.iterations, self.memory, self.channels) < 1:
            raise ValueError("Learned gradient descent needs one iteration, memory and channel or more.")


class LearnedGradientDescent(ReconstructionNetwork):
    """Partially learned gradient descent (Adler & Öktem, Inverse Problems 33, 2017).

    Three convolutions, the same in every iteration, see the image, a memory, and the gradients of data error and of the
    regulariser (here Dirichlet's energy), and change image and memory. It starts from the filtered back-projection.
    """

    def __init__(self, config: LearnedGradientDescentConfig = LearnedGradientDescentConfig()) -> None:
        super().__init__(config)
        self.transform = RayTransform(config.rays)
        width = config.channels
        self.step = nn.Sequential(
            nn.Conv2d(3 + config.memory, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, 1 + config.memory, 3, padding=1),
        )  # fmt: skip
        self.step[-1].weight.data.mul_(0.1)  # at first near the filtered back-projection
        nn.init.zeros_(self.step[-1].bias)

    def forward(self, observation: Tensor, image: Tensor) -> Tensor:
        observation = observation / self.transform.unit
        memory = image.new_zeros(len(image), self.config.memory, *image.shape[2:])
        for _ in range(self.config.iterations):
            data = self.transform.adjoint(self.transform(image) - observation)
            seen = torch.cat([image, memory, data, _dirichlet_gradient(image)], 1)
            change = self.step(seen).to(image.dtype)
            image, memory = image + change[:, :1], torch.relu(change[:, 1:])
        return image


def _dirichlet_gradient(image: Tensor) -> Tensor:
    """Minus the Laplacian, with mirrored borders."""
    kernel = image.new_tensor([[0.0, -1.0, 0.0], [-1.0, 4.0, -1.0], [0.0, -1.0, 0.0]])[None, None]
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), kernel)


@dataclass(frozen=True)
class LearnedPrimalDualConfig(ReconstructionConfig):
    """Of :class:`LearnedPrimalDual`; the defaults are those of Adler & Öktem (2018)."""

    iterations: int = 10
    primal: int = 5
    dual: int = 5
    channels: int = 32

    def __post_init__(self) -> None:
        if min(self.iterations, self.dual, self.channels) < 1 or self.primal < 2:
            raise ValueError("Learned primal-dual needs one iteration, dual and channel or more, and two primals.")


class LearnedPrimalDual(ReconstructionNetwork):
    """Learned primal-dual reconstruction (Adler & Öktem, IEEE Trans. Med. Imaging 37, 2018).

    In each iteration three convolutions with PReLU change the dual variables, of measurements, and three more the
    primal ones, of images, which the operator and its adjoint connect; every iteration has its own. All start at zero:
    the filtered back-projection is not read.
    """

    def __init__(self, config: LearnedPrimalDualConfig = LearnedPrimalDualConfig()) -> None:
        super().__init__(config)
        self.transform = RayTransform(config.rays)
        self.dual = nn.ModuleList(_update(config.dual + 2, config.dual, config) for _ in range(config.iterations))
        self.primal = nn.ModuleList(_update(config.primal + 1, config.primal, config) for _ in range(config.iterations))

    def forward(self, observation: Tensor, image: Tensor) -> Tensor:
        observation = observation / self.transform.unit
        dual = observation.new_zeros(len(observation), self.config.dual, *observation.shape[2:])
        primal = image.new_zeros(len(image), self.config.primal, *image.shape[2:])
        for change_dual, change_primal in zip(self.dual, self.primal, strict=True):
            lines = self.transform(primal[:, 1:2])
            dual = dual + change_dual(torch.cat([dual, lines, observation], 1)).to(dual.dtype)
            image = self.transform.adjoint(dual[:, :1])
            primal = primal + change_primal(torch.cat([primal, image], 1)).to(primal.dtype)
        return primal[:, :1]


def _update(inputs: int, outputs: int, config: LearnedPrimalDualConfig) -> nn.Sequential:
    width = config.channels
    layers = nn.Sequential(
        nn.Conv2d(inputs, width, 3, padding=1), nn.PReLU(width),
        nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width),
        nn.Conv2d(width, outputs, 3, padding=1),
    )  # fmt: skip
    for layer in layers[::2]:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return layers


@dataclass(frozen=True)
class IRadonMapConfig(ReconstructionConfig):
    """Of :class:`IRadonMap`; width and number of ``blocks`` of the last part are ours, the paper's code is not public.

    ``learned_views``: the back-projection has a weight for every pixel and view, side^2 * views; else one a view.
    """

    learned_views: bool = True
    blocks: int = 4
    channels: int = 64


class IRadonMap(ReconstructionNetwork):
    """iRadonMap (He, Wang & Ma, IEEE Trans. Med. Imaging 39, 2020): a fully connected layer over the beams filters each
    view; a sinusoidal back-projection sums the views with learned weights; residual convolutions mend the image.

    Both start as a filtered back-projection, so that thousands of pairs, not millions, will do; the paper does not say
    how it starts.
    """

    def __init__(self, config: IRadonMapConfig = IRadonMapConfig()) -> None:
        super().__init__(config)
        rays = config.rays
        geometry = rays.geometry
        self.filter = nn.Linear(rays.beams, rays.beams, bias=False)
        nyquist = 5.0 / geometry.pitch  # lp/cm
        each = torch.eye(rays.beams)[None]  # what the filter makes of each beam alone
        (filtered,) = filter_projections(each, geometry, wide_band_mtf(0.5 * nyquist, nyquist))
        filtered = filtered.unflatten(0, (rays.beams, 2)).mean(1)  # up-sampled values lie a quarter beside a beam
        # in metres, and without the sum's pi / views, which the weights have
        self.filter.weight.data.copy_(1000.0 * geometry.views / torch.pi * filtered)
        count = rays.side**2 if config.learned_views else 1
        self.weights = nn.Parameter(torch.full((rays.views, count), torch.pi / rays.views))
        x, y = rays.grid.axes()
        angles = geometry.angles[:, None, None]
        place = (x * angles.cos() + y[:, None] * angles.sin()) / geometry.pitch + (rays.beams - 1) / 2
        place = place.clamp(0, rays.beams - 1.001).flatten(1)
        self.register_buffer("lower", place.long(), persistent=False)
        self.register_buffer("share", (place - place.floor()).float(), persistent=False)
        self.first = nn.Conv2d(1, config.channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(config.channels, config.channels, 3, padding=1), nn.BatchNorm2d(config.channels), nn.ReLU(),
                nn.Conv2d(config.channels, config.channels, 3, padding=1), nn.BatchNorm2d(config.channels),
            )
            for _ in range(config.blocks)
        )  # fmt: skip
        self.last = nn.Conv2d(config.channels, 1, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, observation: Tensor, image: Tensor) -> Tensor:
        with torch.autocast(observation.device.type, enabled=False):
            image = self.back_projected(self.filter(observation[:, 0].float()))
        x = torch.relu(self.first(image))
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return image + self.last(x).to(image.dtype)

    def back_projected(self, filtered: Tensor) -> Tensor:
        """Image (b, 1, side, side) of filtered views (b, views, beams)."""
        side = self.config.rays.side
        total = filtered.new_zeros(len(filtered), side**2)
        for view, (lower, share, weight) in enumerate(zip(self.lower, self.share, self.weights, strict=True)):
            line = filtered[:, view]
            total = total + weight * torch.lerp(line[:, lower], line[:, lower + 1], share)
        return total.view(-1, 1, side, side)
