"""CTFlow (Wei et al. 2023): a conditional normalizing flow from a source CT slice to a target acquisition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import EMBEDDING, Modulation, acquisition_embedding, convert, embedded
from CTHarmonizeLib.networks.config import NetworkConfig
from CTHarmonizeLib.networks.flow import ConditionalFlow, Encoding
from CTHarmonizeLib.networks.invertible import FlowStep, Split, Squeeze, TransitionStep
from CTHarmonizeLib.networks.rrdb import RRDBEncoder


@dataclass(frozen=True)
class CTFlowConfig(NetworkConfig):
    """Size and form of a :class:`CTFlow`; the defaults are the paper's.

    ``conditions``: length of the acquisition vector (0: the paper's network exactly). ``planes``: 2 adds the
    source filtered to the target's MTF as a second input. ``form``: ``direct`` models the target itself,
    ``residual`` its difference from the encoder's estimate, times ``residual_gain``. ``gain`` multiplies what the
    network sees of [0, 1]. ``feature_channels``: features are projected to this width at each level (None: not).
    """

    encoder_blocks: int = 14
    encoder_channels: int = 64
    encoder_growth: int = 32
    encoder_taps: tuple[int, ...] = (2, 6, 10, 14)
    encoder_stride: int = 1
    planes: int = 1
    conditions: int = 0
    levels: int = 3
    steps: int = 16
    opening_steps: int = 2
    hidden: int = 64
    feature_channels: int | None = None
    log_scale_limit: float = 1.5
    convolution: Literal["plu", "orthogonal"] = "plu"
    form: Literal["direct", "residual"] = "direct"
    gain: float = 1.0
    residual_gain: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in ("direct", "residual"):
            raise ValueError(f"Unknown form '{self.form}': direct or residual.")

    @property
    def multiple(self) -> int:
        return 2**self.levels


class FlowLevel(nn.Module):
    """Squeeze, opening steps, conditional steps and, but for the last level, a split."""

    def __init__(self, channels: int, features: int, config: CTFlowConfig, split: bool, embedding: int) -> None:
        super().__init__()
        width = config.feature_channels or features
        limit, kind = config.log_scale_limit, config.convolution
        self.squeeze = Squeeze()
        self.opening = nn.ModuleList(TransitionStep(channels, limit, kind) for _ in range(config.opening_steps))
        self.steps = nn.ModuleList(FlowStep(channels, config.hidden, limit, kind) for _ in range(config.steps))
        self.projection = nn.Conv2d(features, width, 1) if config.feature_channels else None
        self.modulation = Modulation(embedding, width) if embedding else None
        # The features' share of the first convolution of both subnetworks of every step, as one convolution.
        self.shares = nn.Conv2d(width, 2 * config.steps * config.hidden, 3, padding=1)
        self.split = Split(channels, limit) if split else None

    def condition(self, features: Tensor, embedding: Tensor | None) -> list:
        """States of all layers from features (b, f, rows, columns) at this level's resolution."""
        if self.projection is not None:
            features = F.leaky_relu(self.projection(features), 0.2)
        if self.modulation is not None:
            features = self.modulation(features, embedding)
        shares = self.shares(features).chunk(2 * len(self.steps), dim=1)
        pairs = zip(shares[0::2], shares[1::2], strict=True)
        return [step.condition() for step in self.opening] + [
            step.condition(*pair) for step, pair in zip(self.steps, pairs, strict=True)
        ]

    def forward(self, x: Tensor, states: list) -> tuple[Tensor, Tensor | None, Tensor]:
        """(kept, latent or None, log-determinant)."""
        x, determinant = self.squeeze(x)
        for step, state in zip([*self.opening, *self.steps], states, strict=True):
            x, change = step(x, state)
            determinant = determinant + change
        if self.split is None:
            return x, None, determinant
        x, latent, change = self.split(x)
        return x, latent, determinant + change

    def inverse(self, z: Tensor, latent: Tensor | None, states: list) -> Tensor:
        if self.split is not None:
            z = self.split.inverse(z, latent)
        for step, state in zip(reversed([*self.opening, *self.steps]), reversed(states), strict=True):
            z = step.inverse(z, state)
        return self.squeeze.inverse(z)


class CTFlow(ConditionalFlow):
    """Encoder and flow. Images are (b, 1, h, w) in [0, 1] (the card's intensity window); h and w are multiples of
    ``2 ** levels``. ``acquisition`` is (b, conditions), or None for a network without conditions."""

    def __init__(self, config: CTFlowConfig = CTFlowConfig()) -> None:
        super().__init__()
        self.config = config
        embedding = EMBEDDING if config.conditions else 0
        self.embedding = acquisition_embedding(config.conditions)
        self.encoder = RRDBEncoder(
            config.encoder_blocks,
            config.encoder_channels,
            config.encoder_growth,
            config.encoder_taps,
            config.encoder_stride,
            config.planes,
            embedding,
        )
        levels, channels = [], 1
        for number in range(config.levels):
            split = number < config.levels - 1
            levels.append(FlowLevel(4 * channels, self.encoder.feature_channels, config, split, embedding))
            channels = 2 * channels if split else 4 * channels
        self.levels = nn.ModuleList(levels)

    def use_precision(self, dtype: torch.dtype) -> CTFlow:
        """Run encoder and subnetworks in ``dtype`` (bfloat16 or float32); what inverts, and the encoder's first
        layer, stay float32."""
        convert(self.encoder, dtype, [self.encoder.first])
        if self.embedding is not None:
            self.embedding.to(dtype)
        for level in self.levels:
            modules = [level.projection, level.modulation, level.shares]
            for step in level.steps:
                modules += [step.affine, step.coupling]
            for module in filter(None, modules):
                module.to(dtype=dtype, memory_format=torch.channels_last)
        return self

    def estimate(self, planes: Tensor, acquisition: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The encoder alone: (estimate in network units, features, embedding)."""
        embedding = embedded(self.embedding, acquisition)
        estimate, features = self.encoder(planes * self.config.gain, embedding)
        return estimate, features, embedding

    def encode(self, planes: Tensor, acquisition: Tensor | None = None, frozen: bool = False) -> Encoding:
        """Everything that does not depend on the sample, of source planes (b, p, h, w).

        With ``frozen`` no gradient reaches the encoder (the paper's second stage).
        """
        estimate, features, embedding = self.estimate(planes, acquisition)
        if frozen:
            estimate, features = estimate.detach(), features.detach()
            embedding = None if embedding is None else embedding.detach()
        encoding = Encoding(estimate)
        for number, level in enumerate(self.levels, start=1):
            factor = 2**number // self.config.encoder_stride
            resized = F.avg_pool2d(features, factor) if factor > 1 else features
            encoding.states.append(level.condition(resized, embedding))
        return encoding

    def forward(self, target: Tensor, encoding: Encoding) -> tuple[list[Tensor], Tensor]:
        """(latents, one a level, log-determinant (b,)) of a target (b, 1, h, w)."""
        x, determinant = self.modelled(target, encoding)
        latents = []
        for level, states in zip(self.levels, encoding.states, strict=True):
            x, latent, change = level(x, states)
            determinant = determinant + change
            if latent is not None:
                latents.append(latent)
        return [*latents, x], determinant

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        """(channels, rows, columns) of each level's latent for an image of that size."""
        count = self.config.levels
        shapes = []
        for number in range(1, count + 1):
            channels = 2**number if number < count else 2 ** (number + 1)
            shapes.append((channels, rows >> number, columns >> number))
        return shapes

    def inverse(self, latents: Sequence[Tensor], encoding: Encoding) -> Tensor:
        """The image (b, 1, h, w) in [0, 1] that these latents stand for."""
        *others, z = latents
        for level, states, latent in zip(
            reversed(self.levels), reversed(encoding.states), [None, *reversed(others)], strict=True
        ):
            z = level.inverse(z, latent, states)
        return self.image(z, encoding)
