"""Conditional invertible neural network (Denker et al. 2020): a normalizing flow whose condition is the source image,
a filtered back-projection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.cinn_conditioning import SLOPE, AppendixConditioning, EncoderConditioning
from CTHarmonizeLib.networks.conditional import EMBEDDING, acquisition_embedding, embedded
from CTHarmonizeLib.networks.config import NetworkConfig
from CTHarmonizeLib.networks.flow import ConditionalFlow, Encoding
from CTHarmonizeLib.networks.invertible import CrossCoupling, Haar, InvertibleConvolution, Permutation, Squeeze
from CTHarmonizeLib.networks.rrdb import RRDBEncoder

DIAGONAL_LIMIT = 3.0
"""Of the logarithm of a learned 1x1 convolution's diagonal: rotations of 128 channels have up to 2.5."""


@dataclass(frozen=True)
class CINNConfig(NetworkConfig):
    """Size and form of a :class:`CINN`; the defaults are the paper's appendix.

    ``kept``: channels that go on into each level's conditional section; what a down-sampling has more of leaves as
    latents. ``haar``: numbers of the levels, from 1, that begin with Haar's wavelet; the others begin with i-RevNet's
    down-sampling. ``blocks`` of four layers a section, ``hidden`` channels of its subnetworks, ``opening_hidden`` of
    those after a down-sampling. ``dense_size``: side in pixels of the only images that the dense last level fits, which
    takes ``dense_kept`` channels; None leaves it out, and the network fits any multiple of 2 ** levels pixels.

    ``conditions``: length of the acquisition vector. ``planes``: 2 adds the source filtered to the target's MTF.
    ``conditioning``: the network of the ``appendix``, or an ``encoder`` (RRDB, as CTFlow's; the paper leaves this
    network free) with ``feature_channels`` at each level. ``form``: ``direct`` models the target, ``residual`` its
    difference from an estimate, times ``residual_gain``: the encoder's, or the last plane where there is none.
    ``gain`` multiplies what the network sees of [0, 1].

    What the paper leaves open: a coupling is affine and changes both halves (its section 3.3), with log-scales softly
    bounded (1.5, from the authors' later code); 1x1 convolutions are learned (``plu``, Glow) and start as
    random rotations, so that the network starts as one, not as the identity; LeakyReLU
    has PyTorch's slope; all three convolutions of a subnetwork have its kernel; latents that leave early have a
    standard normal prior.
    """

    planes: int = 1
    conditions: int = 0
    kept: tuple[int, ...] = (4, 8, 16, 32, 32)
    haar: tuple[int, ...] = (5,)
    blocks: int = 3
    hidden: tuple[int, int] = (64, 92)
    opening_hidden: int = 64
    dense_size: int | None = 352
    dense_kept: int = 4
    dense_blocks: int = 4
    dense_hidden: int = 512
    log_scale_limit: float = 1.5
    convolution: Literal["plu", "orthogonal"] = "plu"
    conditioning: Literal["appendix", "encoder"] = "appendix"
    encoder_blocks: int = 4
    encoder_channels: int = 48
    encoder_growth: int = 24
    encoder_taps: tuple[int, ...] = (2, 4)
    encoder_stride: int = 2
    feature_channels: int = 48
    form: Literal["direct", "residual"] = "direct"
    gain: float = 1.0
    residual_gain: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in (("form", ("direct", "residual")), ("conditioning", ("appendix", "encoder"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"Unknown {name} '{getattr(self, name)}': {' or '.join(choices)}.")
        steps = zip((1, *self.kept[:-1]), self.kept, strict=True)
        if not self.kept or any(kept % 2 or not 0 < kept <= 4 * before for before, kept in steps):
            raise ValueError(f"Channels {list(self.kept)} cannot be kept: even numbers, at most 4 times the last.")
        if self.dense_size is not None:
            if self.dense_size % 2 ** len(self.kept):
                raise ValueError(f"A dense_size of {self.dense_size} is no multiple of {2 ** len(self.kept)} pixels.")
            if self.conditioning != "appendix":
                raise ValueError("The dense level needs the appendix's conditioning network.")
            if not 0 < self.dense_kept <= self.kept[-1]:
                raise ValueError(f"The dense level cannot keep {self.dense_kept} of {self.kept[-1]} channels.")

    @property
    def multiple(self) -> int:
        return self.dense_size or 2 ** len(self.kept)


class CouplingNetwork(nn.Module):
    """Three layers with LeakyReLU between them, the last one zero at first.

    ``layer(inputs, outputs, bias=...)`` makes one. The first is linear in its inputs, so the condition's share of it is
    computed elsewhere, once for all samples, and added; without a condition there is none.
    """

    def __init__(
        self, layer: Callable[..., nn.Module], hidden: tuple[int, int], conditional: bool, inputs: int, outputs: int
    ) -> None:
        super().__init__()
        self.first = layer(inputs, hidden[0], bias=not conditional)
        self.second = layer(hidden[0], hidden[1])
        self.last = layer(hidden[1], outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, share: Tensor | None) -> Tensor:
        x = self.first(x.to(self.first.weight.dtype))
        x = x if share is None else x + share
        return self.last(F.leaky_relu(self.second(F.leaky_relu(x, SLOPE)), SLOPE))


def _convolution(kernel: int) -> Callable[..., nn.Conv2d]:
    return partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2)


class Chain(nn.Module):
    """Invertible layers one after the other; a layer without a state is None in ``states``."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, states: list) -> tuple[Tensor, Tensor]:
        determinant = x.new_zeros(len(x))
        for layer, state in zip(self.layers, states, strict=True):
            # a convolution's state, the inverse matrix, is for the way back
            told = state is not None and isinstance(layer, CrossCoupling)
            x, change = layer(x, state) if told else layer(x)
            determinant = determinant + change
        return x, determinant

    def inverse(self, z: Tensor, states: list) -> Tensor:
        for layer, state in zip(reversed(self.layers), reversed(states), strict=True):
            z = layer.inverse(z) if state is None else layer.inverse(z, state)
        return z

    def condition(self, shares: Sequence[tuple[Tensor, Tensor]] = ()) -> list:
        """States, of the couplings from their ``shares`` of the condition in order, where there is one."""
        waiting = iter(shares)
        return [
            layer.condition() if isinstance(layer, InvertibleConvolution)
            else next(waiting, None) if isinstance(layer, CrossCoupling)
            else None
            for layer in self.layers
        ]  # fmt: skip


class Opening(Chain):
    """Down-sampling, and twice a 1x1 convolution and an unconditional coupling (the appendix's downsample section)."""

    def __init__(self, channels: int, haar: bool, config: CINNConfig) -> None:
        hidden, limit = config.opening_hidden, config.log_scale_limit
        subnetwork = partial(CouplingNetwork, _convolution(1), (hidden, hidden), False)
        layers: list[nn.Module] = [Haar() if haar else Squeeze()]
        for _ in range(2):
            layers.append(InvertibleConvolution(channels, config.convolution, DIAGONAL_LIMIT))
            layers.append(CrossCoupling(channels, subnetwork, limit))
        super().__init__(layers)


class Section(Chain):
    """Conditional section: ``blocks`` times a coupling of 1x1 subnetworks, a 1x1 convolution, a coupling of 3x3
    subnetworks, a 1x1 convolution."""

    def __init__(self, channels: int, features: int, config: CINNConfig) -> None:
        layers: list[nn.Module] = []
        for _ in range(config.blocks):
            for kernel in (1, 3):
                subnetwork = partial(CouplingNetwork, _convolution(kernel), config.hidden, True)
                layers.append(CrossCoupling(channels, subnetwork, config.log_scale_limit))
                layers.append(InvertibleConvolution(channels, config.convolution, DIAGONAL_LIMIT))
        super().__init__(layers)
        # The features' shares of the first convolutions of all subnetworks of a kernel, as one convolution.
        count = 2 * config.blocks
        self.shares = nn.ModuleList(_convolution(kernel)(features, count * config.hidden[0]) for kernel in (1, 3))

    def condition(self, features: Tensor) -> list:
        """States of all layers from features (b, f, rows, columns) at this level's resolution."""
        narrow, wide = (share(features).chunk(len(self.layers) // 2, dim=1) for share in self.shares)
        couplings = []
        for block in range(0, len(narrow), 2):
            couplings += [narrow[block : block + 2], wide[block : block + 2]]
        return super().condition(couplings)


class DenseSection(Chain):
    """``dense_blocks`` times a random permutation of all numbers and a coupling of fully connected subnetworks."""

    def __init__(self, numbers: int, features: int, config: CINNConfig) -> None:
        subnetwork = partial(CouplingNetwork, nn.Linear, (config.dense_hidden,) * 2, True)
        layers: list[nn.Module] = []
        for _ in range(config.dense_blocks):
            layers += [Permutation(numbers), CrossCoupling(numbers, subnetwork, config.log_scale_limit)]
        super().__init__(layers)
        self.shares = nn.Linear(features, 2 * config.dense_blocks * config.dense_hidden)

    def condition(self, features: Tensor) -> list:
        """States of all layers from features (b, f)."""
        shares = self.shares(features).chunk(len(self.layers), dim=1)
        return super().condition([shares[number : number + 2] for number in range(0, len(shares), 2)])


class CINN(ConditionalFlow):
    """Conditioning network and flow. Images are (b, 1, h, w) in [0, 1] (the card's intensity window); h and w are
    multiples of ``config.multiple``, or with the dense level equal to it. ``acquisition`` is (b, conditions) or None.
    """

    def __init__(self, config: CINNConfig = CINNConfig()) -> None:
        super().__init__()
        self.config = config
        embedding = EMBEDDING if config.conditions else 0
        self.embedding = acquisition_embedding(config.conditions)
        self.conditioning = _conditioning(config, embedding)
        self.openings, self.sections, channels = nn.ModuleList(), nn.ModuleList(), 1
        for number, kept in enumerate(config.kept):
            self.openings.append(Opening(4 * channels, number + 1 in config.haar, config))
            self.sections.append(Section(kept, self.conditioning.feature_channels[number], config))
            channels = kept
        self.dense = None
        if config.dense_size is not None:
            numbers = config.dense_kept * (config.dense_size >> len(config.kept)) ** 2
            self.dense = DenseSection(numbers, self.conditioning.dense_channels, config)

    def use_precision(self, dtype: torch.dtype) -> CINN:
        """Run conditioning network and subnetworks in ``dtype`` (bfloat16 or float32); what inverts, the conditioning
        network's first layer and batch normalisation stay float32."""
        self.conditioning.use_precision(dtype)
        if self.embedding is not None:
            self.embedding.to(dtype)
        for chain in [*self.openings, *self.sections, *filter(None, [self.dense])]:
            for module in chain.modules():
                if isinstance(module, CouplingNetwork) or module is getattr(chain, "shares", None):
                    module.to(dtype=dtype, memory_format=torch.channels_last)
        return self

    def encode(self, planes: Tensor, acquisition: Tensor | None = None) -> Encoding:
        """Everything that does not depend on the sample, of source planes (b, p, h, w)."""
        config, side = self.config, self.config.dense_size
        if side is not None and planes.shape[2:] != (side, side):
            height, width = planes.shape[2:]
            raise ValueError(f"The dense level fits images of {side} x {side} pixels, not {height} x {width}.")
        embedding = embedded(self.embedding, acquisition)
        planes = planes * config.gain
        features, other = self.conditioning(planes, embedding)
        estimated = config.conditioning == "encoder" and config.form == "residual"
        encoding = Encoding(other if estimated else planes[:, -1:])
        encoding.states = [
            [*opening.condition(), *section.condition(level)]
            for opening, section, level in zip(self.openings, self.sections, features, strict=True)
        ]
        if self.dense is not None:
            encoding.states.append(self.dense.condition(other))
        return encoding

    def forward(self, target: Tensor, encoding: Encoding) -> tuple[list[Tensor], Tensor]:
        """(latents, as :meth:`latent_shapes` says, log-determinant (b,)) of a target (b, 1, h, w)."""
        config = self.config
        x, determinant = self.modelled(target, encoding)
        latents = []
        for level, kept in enumerate(config.kept):
            states, count = encoding.states[level], len(self.openings[level].layers)
            x, change = self.openings[level](x, states[:count])
            determinant = determinant + change
            if kept < x.shape[1]:
                latents.append(x[:, kept:])
                x = x[:, :kept]
            x, change = self.sections[level](x, states[count:])
            determinant = determinant + change
        if self.dense is not None:
            if config.dense_kept < x.shape[1]:
                latents.append(x[:, config.dense_kept :])
                x = x[:, : config.dense_kept]
            numbers, change = self.dense(x.flatten(1), encoding.states[-1])
            x, determinant = numbers.view_as(x), determinant + change
        return [*latents, x], determinant

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        """(channels, rows, columns) of each latent for an image of that size, in the order in which they leave."""
        config, shapes, channels = self.config, [], 1
        for level, kept in enumerate(config.kept, start=1):
            if kept < 4 * channels:
                shapes.append((4 * channels - kept, rows >> level, columns >> level))
            channels = kept
        last = rows >> len(config.kept), columns >> len(config.kept)
        if self.dense is not None and config.dense_kept < channels:
            shapes.append((channels - config.dense_kept, *last))
            channels = config.dense_kept
        return [*shapes, (channels, *last)]

    def inverse(self, latents: Sequence[Tensor], encoding: Encoding) -> Tensor:
        """The image (b, 1, h, w) in [0, 1] that these latents stand for."""
        config, waiting = self.config, list(latents)
        z = waiting.pop()
        if self.dense is not None:
            z = self.dense.inverse(z.flatten(1), encoding.states[-1]).view_as(z)
            if config.dense_kept < config.kept[-1]:
                z = torch.cat([z, waiting.pop()], 1)
        for level in reversed(range(len(config.kept))):
            states, count = encoding.states[level], len(self.openings[level].layers)
            z = self.sections[level].inverse(z, states[count:])
            if z.shape[1] < self._opened(level):
                z = torch.cat([z, waiting.pop()], 1)
            z = self.openings[level].inverse(z, states[:count])
        return self.image(z, encoding)

    def _opened(self, level: int) -> int:
        """Channels after the down-sampling of ``level``, from 0."""
        return 4 * (self.config.kept[level - 1] if level else 1)


def _conditioning(config: CINNConfig, embedding: int) -> AppendixConditioning | EncoderConditioning:
    levels = len(config.kept)
    if config.conditioning == "appendix":
        return AppendixConditioning(levels, config.dense_size is not None, config.planes, embedding)
    encoder = RRDBEncoder(
        config.encoder_blocks, config.encoder_channels, config.encoder_growth, config.encoder_taps,
        config.encoder_stride, config.planes, embedding,
    )  # fmt: skip
    if config.form == "direct":  # which needs no estimate: devices would wait for gradients that never come
        for module in (encoder.head, encoder.last):
            module.requires_grad_(False)
    return EncoderConditioning(levels, config.feature_channels, encoder, embedding)
