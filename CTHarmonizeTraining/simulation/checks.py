"""What a scanner shows of a wire and of a water cylinder, measured, beside what theory says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import j0

from CTHarmonizeTraining.simulation.fan import FanBeam, rebin
from CTHarmonizeTraining.simulation.noise import reading_variance
from CTHarmonizeTraining.simulation.projector import WATER_ATTENUATION, Geometry, Grid, Modulation, back_project
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.scanner import Scanner

CYLINDER_MM = 200.0
"""Diameter of the water cylinder."""

_WIRE, _WIRE_SIGMA, _WIRE_FIELD = (7.03, -4.06), 0.2, 48.0
_CYLINDER_FIELD, _CYLINDER_PIXEL, _NPS_PIXEL, _NPS_SIDE = 240.0, 0.5, 0.4, 80
_EDGE_SIGMA = 0.6
_WATER = Grid(40, 40, 1.0)
_AIR = Grid(12, 12, 1.0, (0.0, CYLINDER_MM / 2 + 10.0))


@dataclass(frozen=True)
class Curve:
    """``measured`` and ``expected`` at the ``frequency`` (n,) in lp/cm."""

    frequency: np.ndarray
    measured: np.ndarray
    expected: np.ndarray

    def f50(self) -> float:
        """Frequency beyond the peak where the measured curve falls to one half, lp/cm; NaN where it does not."""
        start = int(np.argmax(self.measured))
        below = np.flatnonzero(self.measured[start:] < 0.5)
        if not len(below) or below[0] == 0:
            return float("nan")
        at = slice(start + below[0] - 1, start + below[0] + 1)
        return float(np.interp(-0.5, -self.measured[at], self.frequency[at]))


def wire_mtf(scanner: Scanner, mtf: Modulation, device: torch.device | str = "cpu") -> Curve:
    """MTF of a noise-free image of a wire (a Gaussian whose own spectrum is divided out), beside ``mtf``.

    It is set to 1 by the wire's own mass, not by what the image shows of it: an overshooting kernel spreads some of
    it far around.
    """
    pixel = 0.2
    count = round(_WIRE_FIELD / pixel)
    x, y = Grid(count, count, pixel).axes()
    wire = torch.exp(-((x - _WIRE[0]) ** 2 + (y[:, None] - _WIRE[1]) ** 2) / (2 * _WIRE_SIGMA**2))
    hu = (wire.float()[None] * 1000.0 - 1000.0).to(device)
    small = _covering(scanner, _WIRE_FIELD)
    grid = Grid(96, 96, pixel, _WIRE)
    image = small.image(small.project(hu, pixel), mtf, grid)[0].cpu().numpy() + 1000.0
    x, y = (axis.numpy() for axis in grid.axes())
    distance = np.hypot(x - _WIRE[0], y[:, None] - _WIRE[1])
    near = distance < 9.0
    frequency = np.linspace(0.25, 20.0, 317)
    mass = 1000.0 * 2.0 * np.pi * _WIRE_SIGMA**2 / pixel**2
    sums = j0(0.2 * np.pi * frequency[:, None] * distance[near]) @ image[near] / mass
    own = np.exp(-2.0 * (np.pi * _WIRE_SIGMA * frequency / 10.0) ** 2)
    return Curve(frequency, sums / own, np.asarray(mtf(frequency)))


class WaterCylinder:
    """A water cylinder of :data:`CYLINDER_MM` around the isocentre in ``scanner``; ``seed`` of its noise."""

    def __init__(self, scanner: Scanner, seed: int = 0, device: torch.device | str = "cpu") -> None:
        count = round(_CYLINDER_FIELD / _CYLINDER_PIXEL)
        x, y = Grid(count, count, _CYLINDER_PIXEL).axes()
        # a soft edge: a hard one would ring on its pixels' grid under kernels that reach beyond what that can show
        inside = torch.special.ndtr((CYLINDER_MM / 2 - torch.hypot(x, y[:, None])) / _EDGE_SIGMA)
        hu = (inside.float()[None] * 1000.0 - 1000.0).to(device)
        self.scanner = _covering(scanner, _CYLINDER_FIELD)
        self.clean = self.scanner.project(hu, _CYLINDER_PIXEL)
        self.generator = seeded_generator(device, seed)

    def noise_power(self, mtf: Modulation, dose: float, draws: int = 24) -> Curve:
        """Radial noise power spectrum (HU^2 mm^2) in the middle at ``dose`` percent, beside that of theory."""
        grid = Grid(_NPS_SIDE, _NPS_SIDE, _NPS_PIXEL)
        readings = self.scanner.measure(self.clean, [dose] * draws, self.generator)
        images = self.scanner.image(readings, mtf, grid).cpu().numpy().astype(np.float64)
        noise = (images - images.mean(0)) * np.sqrt(draws / (draws - 1))
        window = np.hanning(_NPS_SIDE + 2)[1:-1]
        window = window[:, None] * window
        power = np.mean(np.abs(np.fft.fft2(noise * window)) ** 2, 0) * _NPS_PIXEL**2 / (window**2).sum()
        axis = np.fft.fftfreq(_NPS_SIDE, _NPS_PIXEL / 10.0)
        radius = np.hypot(axis[:, None], axis)
        edges = np.arange(0.15, 5.0 / _NPS_PIXEL, 0.4)
        which = np.digitize(radius.ravel(), edges)
        number = np.bincount(which, minlength=len(edges) + 1)[1:-1]
        measured = np.bincount(which, power.ravel(), minlength=len(edges) + 1)[1:-1] / number
        frequency = np.bincount(which, radius.ravel(), minlength=len(edges) + 1)[1:-1] / number
        return Curve(frequency, measured, self._theory(frequency, mtf, dose, grid))

    def noise(self, mtf: Modulation, doses: Sequence[float], draws: int = 8) -> tuple[np.ndarray, np.ndarray]:
        """(doses,) deviation in HU in the middle at ``doses`` percent, and (doses, 2) mean HU of water and of air."""
        sigma, means = [], []
        for dose in doses:
            readings = self.scanner.measure(self.clean, [dose] * draws, self.generator)
            water, air = (self.scanner.image(readings, mtf, grid) for grid in (_WATER, _AIR))
            sigma.append(float((water - water.mean(0)).square().mean().mul(draws / (draws - 1)).sqrt()))
            means.append((float(water.mean()), float(air.mean())))
        return np.array(sigma), np.array(means)

    def expected_noise(self, mtf: Modulation, doses: Sequence[float]) -> np.ndarray:
        """(doses,) deviation in HU that theory gives for :meth:`noise`: the noise power over all frequencies."""
        frequency = np.linspace(0.0, self.scanner.geometry.usable_band(), 4001)
        rings = 2.0 * np.pi * frequency / 10.0
        powers = [np.trapezoid(rings * self._theory(frequency, mtf, dose, _WATER), frequency / 10.0) for dose in doses]
        return np.sqrt(powers)

    def noise_free(self, mtf: Modulation) -> tuple[float, float]:
        """Mean HU of water and of air without noise."""
        water, air = (float(self.scanner.image(self.clean, mtf, grid).mean()) for grid in (_WATER, _AIR))
        return water, air

    def _theory(self, frequency: np.ndarray, mtf: Modulation, dose: float, grid: Grid) -> np.ndarray:
        """Kak & Slaney, section 5.1: (pi / views) pitch variance f M(f)^2 / blur(f)^2, in HU^2 mm^2.

        ``variance``: mean over the rays through the pixels of ``grid``. Each rebinned ray is one reading.
        """
        geometry, scanner = self.scanner.geometry, self.scanner
        percent = scanner.percent(self.clean, [dose])
        variance = reading_variance(self.clean, percent, scanner.pitch, scanner.exposure)
        if scanner.fan is not None:
            variance = rebin(variance, scanner.fan)
        mean = float(back_project(variance, geometry, grid).mean()) / geometry.views
        per_mm = frequency / 10.0
        gain = per_mm * np.asarray(mtf(frequency)) ** 2 / geometry.blur(per_mm) ** 2
        return np.pi / geometry.views * geometry.pitch * mean * gain * (1000.0 / WATER_ATTENUATION) ** 2


def _covering(scanner: Scanner, width: float) -> Scanner:
    """The same scanner with detectors for a field of view of ``width`` mm alone."""
    old = scanner.geometry
    geometry = Geometry.covering(width, old.views, old.pitch, old.aperture, old.focal_spot)
    fan = scanner.fan
    if fan is not None:
        fan = FanBeam(geometry, fan.source_distance, fan.detector_distance)
    return replace(scanner, geometry=geometry, fan=fan)
