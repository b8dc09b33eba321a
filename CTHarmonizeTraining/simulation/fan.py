"""Fan beams: the rays that a clinical scanner measures in a full turn, and the way from them to parallel beams.

A ray is named by the turn ``beta`` of the source and its angle ``gamma`` in the fan. It is the parallel ray
x cos + y sin = t of view beta + gamma at t = R sin gamma, R the distance from source to isocentre (Kak & Slaney,
section 3.4.1; the source stands at (-R sin beta, R cos beta)). Projection and rebinning both use that:

- the exact parallel projection is evaluated at the fan's t, no interpolation needed;
- going from view to beta is a shift of each detector's values along the turn, by its gamma. Values along a turn are
  periodic, so the shift is a phase of their Fourier series: exact up to the views' Nyquist frequency, and it
  leaves white noise white.

The detector is displaced by a quarter of its pitch, as in clinical scanners: rays that meet from opposite sides
interleave, and the rebinned beams are sampled twice as finely as the detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from CTHarmonizeTraining.simulation.projector import Geometry, forward_project

RADIAL_UPSAMPLING = 4
"""Rebinned rays are up-sampled (by zero padding of the spectrum) before cubic interpolation to even t."""


@dataclass(frozen=True)
class FanBeam:
    """Equiangular fan over a full turn, for rebinning to the parallel beams of ``geometry``.

    ``source_distance``: mm from the source to the isocentre, ``detector_distance``: mm from the source to the
    detector. The detectors are twice as wide as the rebinned pitch at the isocentre. The turn has twice the views
    of ``geometry``, at (i + 1/2) pi / views. Raises ValueError where the fan cannot reach as far as the parallel beams.
    """

    geometry: Geometry
    source_distance: float = 570.0
    detector_distance: float = 1040.0

    def __post_init__(self) -> None:
        if not self._edge < 0.95 * self.source_distance < 0.95 * self.detector_distance:
            raise ValueError(
                f"a source {self.source_distance:g} mm from the isocentre and {self.detector_distance:g} mm from the "
                f"detector sees no field of view of {2 * self._edge:g} mm"
            )

    @property
    def _edge(self) -> float:
        return self.geometry.detectors / 2 * self.geometry.pitch

    @property
    def pitch(self) -> float:
        """Width of a detector at the isocentre, mm."""
        return 2 * self.geometry.pitch

    @property
    def element(self) -> float:
        """Width of a detector where it stands, mm."""
        return self.pitch * self.detector_distance / self.source_distance

    @property
    def detectors(self) -> int:
        """Number of detectors."""
        step = self.element / self.detector_distance
        return 2 * int(np.ceil(np.arcsin(self._edge / self.source_distance) / step)) + 8

    @property
    def fine_gammas(self) -> Tensor:
        """Angles (2 detectors,) rad, float64, of the rays of both directions together, in equal steps."""
        step = self.element / self.detector_distance / 2
        count = 2 * self.detectors
        return (torch.arange(count, dtype=torch.float64) - (count - 1) / 2) * step

    @property
    def gammas(self) -> Tensor:
        """Angles (detectors,) of the fan's rays, rad, float64."""
        return self.fine_gammas[::2]

    @property
    def betas(self) -> Tensor:
        """Turns (2 views,) of the source, rad, float64."""
        return (torch.arange(2 * self.geometry.views, dtype=torch.float64) + 0.5) * (np.pi / self.geometry.views)


def project_fan(images: Tensor, pixel: float, fan: FanBeam) -> Tensor:
    """Line integrals (2 views, detectors, batch) on the fan's rays; else as :func:`forward_project`."""
    positions = fan.source_distance * fan.fine_gammas.sin()
    half = forward_project(images, pixel, fan.geometry, positions)
    turn = torch.cat((half, half.flip(1)))  # from behind, a ray at t is one at -t
    return _turned(turn[:, ::2], fan.gammas)


def rebin(sinograms: Tensor, fan: FanBeam) -> Tensor:
    """Parallel projections (views, detectors, batch) of ``fan.geometry`` from fan projections (2 views, ...)."""
    turn = _turned(sinograms, -fan.gammas)
    front, back = turn.split(fan.geometry.views)
    fine = torch.stack((front, back.flip(1)), 2).flatten(1, 2)
    return _to_even_positions(fine, fan)


def _turned(values: Tensor, angles: Tensor) -> Tensor:
    """``values`` (2 views, detectors, batch) of a full turn, each detector's shifted: at turns larger by its angle."""
    spectra = torch.fft.rfft(values, dim=0)
    phase = torch.arange(len(spectra), dtype=torch.float64)[:, None] * angles
    spectra *= torch.polar(torch.ones_like(phase), phase).to(spectra)[..., None]
    return torch.fft.irfft(spectra, len(values), dim=0)


def _to_even_positions(fine: Tensor, fan: FanBeam) -> Tensor:
    """From equal steps in gamma to the detectors of ``fan.geometry``, equal steps in t; (views, rays, batch).

    Up-sampled, then by cubic polynomials: midway between samples they keep 99.2 % of the modulation at the rays'
    Nyquist frequency and 99.9 % at half of it, so nothing needs to be compensated.
    """
    rays = fine.shape[1]
    n = next_fast_len(rays + 32, real=True)
    n += n % 2
    gammas = fan.fine_gammas
    step = float(gammas[1] - gammas[0]) / RADIAL_UPSAMPLING
    wanted = ((fan.geometry.positions / fan.source_distance).asin() - gammas[0]) / step
    first = wanted.floor()
    weights = _cubic_weights(wanted - first).to(fine)
    index = first.long().to(fine.device)
    result = fine.new_zeros(len(fine), len(wanted), fine.shape[2])
    block = max(1, int(2e7 / (n * RADIAL_UPSAMPLING * fine.shape[2])))
    for i in range(0, len(fine), block):
        rows = torch.fft.rfft(fine[i : i + block], n, dim=1)
        rows[:, -1] *= 0.5  # half of it belongs to the frequency's negative
        dense = torch.fft.irfft(rows, n * RADIAL_UPSAMPLING, dim=1) * RADIAL_UPSAMPLING
        for tap, weight in enumerate(weights):
            result[i : i + block] += dense[:, index + (tap - 1)] * weight[:, None]
    return result


def _cubic_weights(share: Tensor) -> Tensor:
    """Lagrange's weights (4, n) of the samples at -1, 0, 1, 2 for places ``share`` (n,) between 0 and 1."""
    x = share
    return torch.stack(
        (
            -x * (x - 1) * (x - 2) / 6,
            (x + 1) * (x - 1) * (x - 2) / 2,
            -(x + 1) * x * (x - 2) / 2,
            (x + 1) * x * (x - 1) / 6,
        )
    )
