"""What tells the cINN's levels of the condition: the network of the paper's appendix, or an RRDB encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import Modulation, convert
from CTHarmonizeLib.networks.rrdb import RRDBEncoder

APPENDIX = (
    ((32, 3, 2, False), (64, 3, 1, False), (128, 3, 1, True), (64, 3, 1, True), (32, 3, 1, True), (4, 3, 1, True)),
    ((32, 3, 2, True), (32, 1, 1, False), (32, 3, 1, True), (8, 3, 1, True)),
    ((32, 1, 1, False), (64, 3, 2, False), (16, 3, 1, True)),
    ((64, 1, 1, False), (64, 3, 2, False), (32, 3, 1, True)),
    ((96, 1, 1, False), (128, 3, 2, False), (32, 1, 1, True)),
)
"""The appendix's convolutions by level: (channels, kernel, stride, batch normalisation). Its first layer, printed as
1 -> 3, has 32 channels: so many does the second one read."""

DENSE = ((64, 3, 2, False), (256, 3, 2, False))
"""Of level 6, before its average pooling."""

SLOPE = 0.01
"""Of LeakyReLU; the paper gives none: PyTorch's."""


class Normalisation(nn.BatchNorm2d):
    """Batch normalisation that computes in float32 whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class AppendixConditioning(nn.Module):
    """The appendix's conditioning network: the features of so many ``levels``, and with ``dense`` 256 numbers for the
    dense one. ``embedding`` > 0 modulates every level's features by the acquisitions; they go on to the next level.

    Batch normalisation tells images apart by their batch in training, but uses its running statistics, and nothing of
    an image's own, when it is used.
    """

    def __init__(self, levels: int, dense: bool, planes: int, embedding: int) -> None:
        super().__init__()
        if levels > len(APPENDIX):
            raise ValueError(f"The appendix's conditioning network has {len(APPENDIX)} levels, not {levels}.")
        self.levels, incoming = nn.ModuleList(), planes
        for number, layers in enumerate(APPENDIX[:levels]):
            self.levels.append(_layers(incoming, layers, opened=number > 0))
            incoming = layers[-1][0]
        self.feature_channels = [layers[-1][0] for layers in APPENDIX[:levels]]
        self.modulations = nn.ModuleList(Modulation(embedding, c) for c in self.feature_channels if embedding)
        self.dense = _layers(incoming, DENSE, opened=True) if dense else None
        self.dense_norm = nn.BatchNorm1d(DENSE[-1][0]) if dense else None
        self.dense_channels = DENSE[-1][0]

    def use_precision(self, dtype: torch.dtype) -> None:
        """All but the first layer and the normalisations in ``dtype``."""
        norms = [module for module in self.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
        convert(self, dtype, [self.levels[0][0], *norms])

    def forward(self, planes: Tensor, embedding: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        """Features (b, channels, h / 2^level, w / 2^level) of each level, and the dense level's (b, 256) or None."""
        first, *others = self.levels[0]
        # bfloat16 would round soft tissue to steps of several HU before the network sees it.
        with torch.autocast(planes.device.type, enabled=False):
            x = first(planes.to(first.weight.dtype))
        x, features = x.to(self._dtype), []
        for number, layers in enumerate([others, *self.levels[1:]]):
            for layer in layers:
                x = layer(x)
            if self.modulations:
                x = self.modulations[number](x, embedding)
            features.append(x)
        if self.dense is None:
            return features, None
        pooled = F.leaky_relu(self.dense(x), SLOPE).mean((2, 3))
        return features, self.dense_norm(pooled.to(self.dense_norm.weight.dtype)).to(pooled.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.levels[0][2].weight.dtype


class EncoderConditioning(nn.Module):
    """An RRDB encoder whose features, averaged to each of ``levels`` and projected to ``channels``, are every level's;
    it has an estimate of the target too."""

    def __init__(self, levels: int, channels: int, encoder: RRDBEncoder, embedding: int) -> None:
        super().__init__()
        self.encoder, self.feature_channels = encoder, [channels] * levels
        self.projections = nn.ModuleList(nn.Conv2d(encoder.feature_channels, channels, 1) for _ in range(levels))
        self.modulations = nn.ModuleList(Modulation(embedding, channels) for _ in range(levels if embedding else 0))

    def use_precision(self, dtype: torch.dtype) -> None:
        """All but the encoder's first layer in ``dtype``."""
        convert(self, dtype, [self.encoder.first])

    def forward(self, planes: Tensor, embedding: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Features of each level, as :class:`AppendixConditioning` has them, and the estimate (b, 1, h, w)."""
        estimate, seen = self.encoder(planes, embedding)
        features = []
        for number, projection in enumerate(self.projections):
            factor = 2 ** (number + 1) // self.encoder.stride
            level = projection(F.avg_pool2d(seen, factor) if factor > 1 else seen)
            level = F.leaky_relu(level, 0.2)
            features.append(self.modulations[number](level, embedding) if self.modulations else level)
        return features, estimate


def _layers(incoming: int, layers: Sequence[tuple[int, int, int, bool]], opened: bool) -> nn.Sequential:
    """Convolutions with LeakyReLU between them, and before the first where ``opened``: the last one of a level has
    none, because its features go to the flow as they are."""
    modules: list[nn.Module] = []
    for number, (channels, kernel, stride, normalised) in enumerate(layers):
        if number or opened:
            modules.append(nn.LeakyReLU(SLOPE))
        modules.append(nn.Conv2d(incoming, channels, kernel, stride, kernel // 2))
        if normalised:
            modules.append(Normalisation(channels))
        incoming = channels
    return nn.Sequential(*modules)
