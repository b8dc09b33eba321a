"""A scanner: how rays are laid, how many photons each gets, and how their readings become images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from CTHarmonizeTraining.simulation.fan import FanBeam, project_fan, rebin
from CTHarmonizeTraining.simulation.noise import DEFAULT_EXPOSURE, Exposure, add_noise, extra_noise, tube_current
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, Modulation, attenuation, forward_project
from CTHarmonizeTraining.simulation.scan import reconstruct


@dataclass(frozen=True)
class Scanner:
    """Parallel beams of ``geometry``, or the ``fan`` that is rebinned to them.

    ``exposure``: what 100 % dose means; ``modulation``: strength of the tube-current modulation (0 none, 1 the
    square root of the attenuation). At the same dose a fan's turn has as many photons as the parallel scan: twice
    the views with half the photons each.
    """

    geometry: Geometry
    fan: FanBeam | None = None
    exposure: Exposure = DEFAULT_EXPOSURE
    modulation: float = 0.0

    def project(self, hu: Tensor, pixel: float) -> Tensor:
        """Noise-free line integrals (views, detectors, batch) of ``hu`` (batch, n, n), pixels of ``pixel`` mm."""
        if self.fan is None:
            return forward_project(attenuation(hu), pixel, self.geometry)
        return project_fan(attenuation(hu), pixel, self.fan)

    def measure(self, clean: Tensor, doses: Sequence[float], generator: torch.Generator) -> Tensor:
        """Noisy line integrals (views, detectors, doses) of one slice's ``clean`` (views, detectors, 1)."""
        repeated = clean.expand(-1, -1, len(doses))
        return add_noise(repeated, self.percent(clean, doses), self.pitch, generator, self.exposure)

    def extra_noise(self, clean: Tensor, dose: float, generator: torch.Generator) -> Tensor:
        """What to add to the readings ``clean`` (views, detectors, 1) of a scan at 100 % to make it one at ``dose``."""
        full, less = self.percent(clean, [100.0]), self.percent(clean, [dose])
        return extra_noise(clean, full, less, self.pitch, generator, self.exposure)

    def percent(self, clean: Tensor, doses: Sequence[float]) -> Tensor | Sequence[float]:
        """Dose of each reading, percent of a parallel one's at 100 %: broadcasts to (views, detectors, doses)."""
        if self.fan is None and not self.modulation:
            return doses
        shared = torch.as_tensor(doses, dtype=torch.float32, device=clean.device) * (0.5 if self.fan else 1.0)
        return tube_current(clean, self.modulation) * shared

    @property
    def pitch(self) -> float:
        """Width of a detector at the isocentre, mm."""
        return self.fan.pitch if self.fan else self.geometry.pitch

    def image(self, readings: Tensor, mtf: Modulation, grid: Grid) -> Tensor:
        """Images in HU (batch, rows, columns) of ``readings`` (views, detectors, batch)."""
        return reconstruct(rebin(readings, self.fan) if self.fan else readings, self.geometry, mtf, grid)
