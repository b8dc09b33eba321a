"""Quantum and electronic noise of a scan, from its noise-free line integrals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

REFERENCE_PITCH = 0.75
"""Width in mm at the isocentre of the detector pixel for which photons and electronic noise are stated."""


@dataclass(frozen=True)
class Exposure:
    """What 100 % dose means, per detector pixel of :data:`REFERENCE_PITCH`, view and slice.

    ``photons`` without an object in the beam, and ``electronic``, the deviation of the electronic noise in
    counts. Both are scaled to the detectors in use (photons and electronic variance with their pitch).
    """

    photons: float = 2.5e5
    electronic: float = 5.0

    def of_slices(self, count: int) -> Exposure:
        """Of the sum of ``count`` slices' readings."""
        return Exposure(self.photons * count, self.electronic * count**0.5)


DEFAULT_EXPOSURE = Exposure()


def add_noise(
    line_integrals: Tensor,
    dose: float | Sequence[float] | Tensor,
    pitch: float,
    generator: torch.Generator,
    exposure: Exposure = DEFAULT_EXPOSURE,
) -> Tensor:
    """Noisy line integrals, of the same shape, at ``dose`` percent (one number, one per last-axis entry, or what
    else broadcasts to the shape).

    I = Poisson(I0 exp(-p)) + N(0, electronic^2), and -ln(I / I0) with the second-order correction of the
    logarithm's bias, E[ln I] = ln(mean) - variance / (2 mean^2), counts below 1 raised to 1. So the bias
    stays below 0.01 in p down to 16 counts (without the correction it would be 0.06 there).
    """
    blank, variance = _blank(line_integrals, dose, pitch, exposure)
    counts = torch.poisson(torch.exp(-line_integrals).mul_(blank), generator)
    electronic = torch.empty_like(counts).normal_(generator=generator)
    counts.add_(electronic, alpha=variance**0.5).clamp_min_(1.0)
    counts += 0.5 + 0.5 * variance / counts
    return counts.div_(blank).log_().neg_()


def extra_noise(
    line_integrals: Tensor,
    full: float | Sequence[float] | Tensor,
    less: float | Sequence[float] | Tensor,
    pitch: float,
    generator: torch.Generator,
    exposure: Exposure = DEFAULT_EXPOSURE,
) -> Tensor:
    """What turns readings at the dose ``full`` into readings at ``less`` (percent, as in :func:`add_noise`).

    The noise of ``less``, scaled so that its variance is what that of ``full`` lacks (Yu et al., J. Comput. Assist.
    Tomogr. 36, 2012, with the electronic part, :func:`reading_variance`).
    """
    variance = partial(reading_variance, line_integrals, pitch=pitch, exposure=exposure)
    noise = add_noise(line_integrals, less, pitch, generator, exposure).sub_(line_integrals)
    return noise.mul_((1.0 - variance(full) / variance(less)).sqrt())


def reading_variance(
    line_integrals: Tensor,
    dose: float | Sequence[float] | Tensor,
    pitch: float,
    exposure: Exposure = DEFAULT_EXPOSURE,
) -> Tensor:
    """Variance of readings at ``dose`` (percent, as in :func:`add_noise`): 1 / N + electronic^2 / N^2 for N counts."""
    blank, electronic = _blank(line_integrals, dose, pitch, exposure)
    counts = blank * torch.exp(-line_integrals)
    return 1.0 / counts + electronic / counts**2


def _blank(
    line_integrals: Tensor, dose: float | Sequence[float] | Tensor, pitch: float, exposure: Exposure
) -> tuple[Tensor, float]:
    """Counts without an object, and the variance of the electronic noise, of detectors of ``pitch`` mm."""
    share = pitch / REFERENCE_PITCH
    dose = torch.as_tensor(dose, dtype=torch.float32, device=line_integrals.device)
    return dose / 100.0 * (exposure.photons * share), exposure.electronic**2 * share


def tube_current(line_integrals: Tensor, strength: float) -> Tensor:
    """Tube current (views, 1, batch) of an angular modulation, mean 1, for ``line_integrals`` (views, rays, batch).

    It goes as the attenuation exp(p) of each view's longest way, to the power of ``strength`` / 2: 0 is none, 1
    the square root, which gives the least noise in the middle for a given dose (Gies et al., Med. Phys. 26, 1999).
    """
    current = torch.exp(line_integrals.amax(1, keepdim=True) * (0.5 * strength))
    return current / current.mean(0, keepdim=True)
