"""Invertible layers of a conditional normalizing flow.

One contract for all: ``condition(...)`` turns what does not depend on the sample into a state, computed once;
``forward(x, state) -> (z, log_determinant)`` and ``inverse(z, state) -> x`` are exact inverses of each other.
Images are (batch, channels, rows, columns); the log-determinant is (batch,), in nats. What inverts runs in
float32 (or float64 in tests); the subnetworks may run in bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def soft_clamp(value: Tensor, limit: float) -> Tensor:
    """Odd, smooth, slope 1 at zero, within +-``limit``: keeps a log-scale bounded in both directions.

    A one-sided bound (sigmoid) is stable forward and explodes in the inverse; see Ardizzone et al. 2019 for the
    arctangent form.
    """
    return limit * (2.0 / math.pi) * torch.atan(value * (math.pi / (2.0 * limit)))


def before_soft_clamp(value: Tensor, limit: float) -> Tensor:
    """What :func:`soft_clamp` maps to ``value``, or nearly to it where ``value`` is at or beyond the limit."""
    value = value.clamp(-0.98 * limit, 0.98 * limit)
    return torch.tan(value * (math.pi / (2.0 * limit))) * (2.0 * limit / math.pi)


def zero_convolution(inputs: int, outputs: int) -> nn.Conv2d:
    """3x3 convolution that starts as zero, so that the layer it feeds starts as the identity."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    return convolution


def _over_ranks(value: Tensor) -> Tensor:
    """Mean of ``value`` over the devices of a distributed run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value


class ActNorm(nn.Module):
    """Channel-wise affine map, initialised from the first batch to zero mean and unit variance (Glow)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set bias and scale from the batch ``x``; in a distributed run from the batches of all ranks, which thereby
        agree."""
        mean = _over_ranks(x.mean((0, 2, 3), keepdim=True))
        variance = _over_ranks((x - mean).square().mean((0, 2, 3), keepdim=True))
        self.bias.copy_(-mean)
        self.log_scale.copy_(-0.5 * variance.clamp_min(1e-6).log())
        self.initialized.fill_(True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and not self.initialized:
            self.initialize(x.detach())
        z = (x + self.bias) * self.log_scale.exp()
        return z, self.log_scale.sum() * (x.shape[2] * x.shape[3])

    def inverse(self, z: Tensor) -> Tensor:
        return z * (-self.log_scale).exp() - self.bias


class InvertibleConvolution(nn.Module):
    """1x1 convolution with a square matrix: ``plu`` (learned, Glow's factorisation, the logarithm of its diagonal
    within ``limit``; at first a random rotation, but for what the limit cuts) or ``orthogonal`` (a fixed rotation, the
    safest)."""

    def __init__(self, channels: int, kind: str = "plu", limit: float = 1.5) -> None:
        super().__init__()
        if kind not in ("plu", "orthogonal"):
            raise ValueError(f"Unknown 1x1 convolution '{kind}': plu or orthogonal.")
        self.kind, self.limit = kind, limit
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        if kind == "orthogonal":
            self.register_buffer("weight", rotation.float())
            return
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_diagonal = nn.Parameter(before_soft_clamp(diagonal.abs().log(), limit).float())

    def matrix(self) -> tuple[Tensor, Tensor]:
        """The matrix and the logarithm of its determinant's size."""
        if self.kind == "orthogonal":  # up to rounding
            return self.weight, torch.linalg.slogdet(self.weight)[1]
        log_diagonal = soft_clamp(self.log_diagonal, self.limit)
        unit = torch.eye(len(self.sign), dtype=self.lower.dtype, device=self.lower.device)
        upper = self.upper.triu(1) + torch.diag(self.sign * log_diagonal.exp())
        with torch.autocast(upper.device.type, enabled=False):  # mixed precision would round it, and not its inverse
            return self.permutation @ (self.lower.tril(-1) + unit) @ upper, log_diagonal.sum()

    def condition(self) -> Tensor:
        """The inverse matrix, computed in float64."""
        weight, _ = self.matrix()
        # On the processor: tiny, and not every GPU computes in float64.
        return torch.linalg.inv(weight.cpu().double()).to(weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            weight, log_determinant = self.matrix()
            return F.conv2d(x, weight[:, :, None, None]), log_determinant * (x.shape[2] * x.shape[3])

    def inverse(self, z: Tensor, matrix: Tensor) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            return F.conv2d(z, matrix[:, :, None, None])


class Subnetwork(nn.Module):
    """ReLU -> 1x1 -> ReLU -> zero-initialised 3x3 behind a first 3x3 convolution.

    The first convolution is linear in its input channels, so the features' share of it is computed elsewhere,
    once for all samples, and comes in as ``share``; ``inputs`` channels of the flow add theirs here.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, hidden, 3, padding=1, bias=False) if inputs else None
        self.second = nn.Conv2d(hidden, hidden, 1)
        self.last = zero_convolution(hidden, outputs)

    def forward(self, share: Tensor, x: Tensor | None = None) -> Tensor:
        hidden = share if x is None else share + self.first(x.to(self.first.weight.dtype))
        return self.last(F.relu(self.second(F.relu(hidden))))


def _scale_and_shift(raw: Tensor, limit: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    log_scale, shift = raw.to(dtype).chunk(2, dim=1)
    return soft_clamp(log_scale, limit), shift


class FlowStep(nn.Module):
    """ActNorm, 1x1 convolution, feature-conditional affine, affine coupling (CTFlow, Fig. 2a)."""

    def __init__(self, channels: int, hidden: int, limit: float, convolution: str) -> None:
        super().__init__()
        self.limit = limit
        self.kept = channels // 2
        self.norm = ActNorm(channels)
        self.convolution = InvertibleConvolution(channels, convolution, limit)
        self.affine = Subnetwork(0, hidden, 2 * channels)
        self.coupling = Subnetwork(self.kept, hidden, 2 * (channels - self.kept))

    def condition(self, affine_share: Tensor, coupling_share: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """State from the features' shares (batch, hidden, rows, columns) of both subnetworks."""
        log_scale, shift = _scale_and_shift(self.affine(affine_share), self.limit, self.norm.bias.dtype)
        return log_scale, shift, coupling_share, self.convolution.condition()

    def _coupled(self, kept: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        return _scale_and_shift(self.coupling(share, kept), self.limit, kept.dtype)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        log_scale, shift, share, _ = state
        x, norm_determinant = self.norm(x)
        x, convolution_determinant = self.convolution(x)
        x = x * log_scale.exp() + shift
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        coupling_scale, coupling_shift = self._coupled(kept, share)
        changed = changed * coupling_scale.exp() + coupling_shift
        determinant = log_scale.sum((1, 2, 3)) + coupling_scale.sum((1, 2, 3))
        return torch.cat([kept, changed], 1), determinant + norm_determinant + convolution_determinant

    def inverse(self, z: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        log_scale, shift, share, matrix = state
        kept, changed = z[:, : self.kept], z[:, self.kept :]
        coupling_scale, coupling_shift = self._coupled(kept, share)
        changed = (changed - coupling_shift) * (-coupling_scale).exp()
        x = (torch.cat([kept, changed], 1) - shift) * (-log_scale).exp()
        return self.norm.inverse(self.convolution.inverse(x, matrix))


class TransitionStep(nn.Module):
    """ActNorm and 1x1 convolution alone; two of them open each level, before features take part."""

    def __init__(self, channels: int, limit: float, convolution: str) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.convolution = InvertibleConvolution(channels, convolution, limit)

    def condition(self) -> Tensor:
        """The inverse matrix of the convolution."""
        return self.convolution.condition()

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, norm_determinant = self.norm(x)
        x, convolution_determinant = self.convolution(x)
        return x, (norm_determinant + convolution_determinant).expand(len(x))

    def inverse(self, z: Tensor, state: Tensor) -> Tensor:
        return self.norm.inverse(self.convolution.inverse(z, state))


class Squeeze(nn.Module):
    """Space-to-depth by 2, i-RevNet's down-sampling (Jacobsen et al. 2018); volume-preserving."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.pixel_unshuffle(x, 2), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, 2)


class Haar(nn.Module):
    """Haar wavelet of 2x2 pixels: mean, horizontal, vertical and diagonal difference of each channel, halved twice so
    that the map is orthonormal (Ardizzone et al. 2019b); volume-preserving. Its matrix is its own inverse."""

    def __init__(self) -> None:
        super().__init__()
        signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]])
        self.register_buffer("signs", 0.5 * signs.float(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._mixed(F.pixel_unshuffle(x, 2)), x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(self._mixed(z), 2)

    def _mixed(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.einsum("ij,bcjhw->bcihw", self.signs.to(x), x.unflatten(1, (-1, 4))).flatten(1, 2)


class Permutation(nn.Module):
    """Fixed random order of the channels; volume-preserving."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, z: Tensor) -> Tensor:
        return z[:, self.order.argsort()]


class CrossCoupling(nn.Module):
    """Affine coupling in which each half of the channels changes the other: v1 = u1 exp(s1(u2)) + t1(u2), then
    v2 = u2 exp(s2(v1)) + t2(v1) (cINN paper, section 3.3).

    ``subnetwork(inputs, outputs)`` makes a module called as ``module(half, share)``, which gives log-scale and shift; a
    state is the pair of the condition's shares in both, None where there is no condition.
    """

    def __init__(self, channels: int, subnetwork: Callable[[int, int], nn.Module], limit: float) -> None:
        super().__init__()
        self.limit, self.half = limit, channels // 2
        self.one = subnetwork(channels - self.half, 2 * self.half)
        self.two = subnetwork(self.half, 2 * (channels - self.half))

    def _told(self, subnetwork: nn.Module, half: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        return _scale_and_shift(subnetwork(half, share), self.limit, half.dtype)

    def forward(self, x: Tensor, state: tuple[Tensor | None, Tensor | None] = (None, None)) -> tuple[Tensor, Tensor]:
        one, two = x[:, : self.half], x[:, self.half :]
        log_scale, shift = self._told(self.one, two, state[0])
        one = one * log_scale.exp() + shift
        determinant = log_scale.flatten(1).sum(1)
        log_scale, shift = self._told(self.two, one, state[1])
        two = two * log_scale.exp() + shift
        return torch.cat([one, two], 1), determinant + log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, state: tuple[Tensor | None, Tensor | None] = (None, None)) -> Tensor:
        one, two = z[:, : self.half], z[:, self.half :]
        log_scale, shift = self._told(self.two, one, state[1])
        two = (two - shift) * (-log_scale).exp()
        log_scale, shift = self._told(self.one, two, state[0])
        return torch.cat([(one - shift) * (-log_scale).exp(), two], 1)


class Split(nn.Module):
    """Half the channels leave as latents, standardised by a Gaussian that the kept half predicts.

    ``forward`` gives (kept, standard-normal latent, log-determinant), so that one standard normal prior serves
    every latent and temperature scales this one too.
    """

    def __init__(self, channels: int, limit: float) -> None:
        super().__init__()
        self.kept, self.limit = channels // 2, limit
        self.prior = zero_convolution(self.kept, 2 * (channels - self.kept))

    def _gaussian(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        return _scale_and_shift(self.prior(kept.to(self.prior.weight.dtype)), self.limit, kept.dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, out = x[:, : self.kept], x[:, self.kept :]
        log_scale, mean = self._gaussian(kept)
        return kept, (out - mean) * (-log_scale).exp(), -log_scale.sum((1, 2, 3))

    def inverse(self, kept: Tensor, latent: Tensor) -> Tensor:
        log_scale, mean = self._gaussian(kept)
        return torch.cat([kept, latent * log_scale.exp() + mean], 1)
