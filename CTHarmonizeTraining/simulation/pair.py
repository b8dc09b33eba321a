"""Two scans of one anatomy, slice by slice; or one scan and the same with noise inserted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import lcm

import numpy as np
import torch

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.ct.volume import PADDING_BELOW, Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.simulation.projector import Grid
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.scanner import Scanner
from CTHarmonizeTraining.simulation.subject import Subject, check

NOISE_FREE = "target_noise_free"
"""Name of the target without noise."""


@dataclass(frozen=True)
class Side:
    """One of the two scans: its ``kernel`` as asked for and as ``mtf``, ``dose`` in percent, and how many slices of
    the subject make one of its own."""

    kernel: float | str
    mtf: Mtf
    dose: float
    slices: int = 1

    @classmethod
    def of(cls, kernel: float | str, dose: float, pixel: float, slices: int = 1) -> Side:
        """For images with pixels of ``pixel`` mm. Raises InputError where kernel or dose are out of range."""
        check("dose", dose, 0.1 <= dose <= 400.0, "0.1 to 400 %")
        return cls(kernel, parse_kernel(kernel, pixel), float(dose), slices)

    def as_dict(self) -> dict[str, float | str]:
        """Kernel and dose, for people."""
        mtf = self.mtf
        return {"kernel": self.kernel, "f50": mtf.f50, "f10": mtf.f10, "mtf_peak": mtf.peak, "dose": self.dose}


@dataclass(frozen=True)
class Desk:
    """Where scans are run: the ``subject``, its ``scanner``, the images' ``grid`` and the ``seed`` of the noise.

    ``say`` is told of every slice.
    """

    subject: Subject
    scanner: Scanner
    grid: Grid
    seed: int
    device: torch.device
    say: Callable[[str], None]

    def pair(self, chosen: range, source: Side, target: Side) -> dict[str, Volume]:
        """``source``, ``target`` and ``target_noise_free`` of the slices ``chosen``, int16.

        A slice of several of the subject's is scanned as their mean, with the photons of all of them.
        """
        if source.slices == target.slices:
            return self._scans(chosen, {"source": source, "target": target})
        return self._scans(chosen, {"source": source}) | self._scans(chosen, {"target": target})

    def insert_noise(self, chosen: range, side: Side) -> dict[str, Volume]:
        """``target``: the slices ``chosen`` as they are; ``source``: the same at ``side.dose`` percent of their dose,
        int16. The noise is made from the scan's own projections and reconstructed with ``side.mtf``; padding stays."""
        names = ("source", "target")
        images = {name: np.empty((len(chosen), self.grid.rows, self.grid.columns), np.int16) for name in names}
        for number, index in enumerate(chosen):
            whole = self.subject.slice_of(index)
            clean = self.scanner.project(torch.from_numpy(whole).to(self.device)[None], self.subject.pixel)
            noise = self.scanner.extra_noise(clean, side.dose, seeded_generator(self.device, self.seed, index))
            added = self.scanner.image(noise, side.mtf, self.grid)[0].cpu().numpy() + 1000.0  # nothing has -1000 HU
            own = self.subject.own_part(whole)
            images["source"][number] = _stored(np.where(own <= PADDING_BELOW, own, own + added))
            images["target"][number] = _stored(own)
            self.say(f"slice {number + 1} of {len(chosen)}")
        return {name: self.subject.place(image, self.grid, chosen.start) for name, image in images.items()}

    def _scans(self, chosen: range, sides: Mapping[str, Side]) -> dict[str, Volume]:
        """A volume for each of ``sides``, all of the same thickness, and ``target_noise_free`` where target is one."""
        (thick,) = {side.slices for side in sides.values()}
        starts = chosen[::thick]
        names = [*sides, *([NOISE_FREE] if "target" in sides else [])]
        images = {name: np.empty((len(starts), self.grid.rows, self.grid.columns), np.int16) for name in names}
        exposure = self.scanner.exposure.of_slices(thick)
        scanner = replace(self.scanner, exposure=exposure)
        for number, index in enumerate(starts):
            true = torch.from_numpy(self.subject.mean_slice(index, thick)).to(self.device)[None]
            clean = scanner.project(true, self.subject.pixel)
            generator = seeded_generator(self.device, self.seed, index, *([thick] if thick > 1 else []))
            noisy = scanner.measure(clean, [side.dose for side in sides.values()], generator)
            for k, (name, side) in enumerate(sides.items()):
                readings = noisy[..., k : k + 1]
                if name == "target":
                    readings = torch.cat((readings, clean), 2)
                made = _stored(scanner.image(readings, side.mtf, self.grid).cpu().numpy())
                images[name][number] = made[0]
                if name == "target":
                    images[NOISE_FREE][number] = made[1]
            self.say(f"slice {number + 1} of {len(starts)}")
        return {name: self.subject.place(image, self.grid, chosen.start, thick) for name, image in images.items()}


def whole_slices(chosen: range, source: Side, target: Side) -> range:
    """``chosen`` less the last ones that do not fill a slice of both sides, so that both end at the same face.

    Raises InputError where nothing is left.
    """
    together = lcm(source.slices, target.slices)
    count = len(chosen) // together * together
    if count == 0:
        raise InputError(
            f"The {len(chosen)} slices {chosen.start}:{chosen.stop} are too few for these thicknesses: give at least "
            f"{together}."
        )
    return chosen[:count]


def _stored(hu: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(hu), -32768, 32767).astype(np.int16)
