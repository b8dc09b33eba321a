"""Scenes of one store, read crop by crop, and the noise that they show through any kernel."""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import fft

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.measure import measure_noise, water_like
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.render import PixelGrid, Sampler, seen_through
from CTHarmonizeTraining.simulation.projector import wide_band_mtf
from CTHarmonizeTraining.simulation.scenes import CLEAN_STEP, SceneStore
from CTHarmonizeTraining.simulation.subject import phantom_seed

LEAST_TISSUE = 0.02
"""Share of a scene that must be water-like tissue for its noise to be told by it."""

STARVED_NOISE = 45.0
"""HU through the smooth kernel at full dose, above which a scene is left out: no scanner would be set so."""

KERNEL_MARGIN = 6.0
"""mm of scene around a crop, for the tails of the point spread."""

OWN_F50 = (2.6, 4.0, 6.0, 8.0)
"""f50 (lp/cm) of the kernels through which the noise of a projected patient scan itself is measured."""

OWN_PIXEL = 0.7
"""mm of the images in which it is measured."""

MEASURED = "measured-noise.npz"
"""What was measured in a store, kept inside it."""

_CODE = ("CTHarmonizeLib.ct.measure", "CTHarmonizeLib.ct.mtf", "CTHarmonizeTraining.data.render", __name__)
"""Modules whose change lets noise be measured anew."""


class SceneSampler:
    """Reads the scenes of one store crop by crop, and knows each slice's noise through any kernel: the simulated one
    (:meth:`noise_level`), and what a projected patient scan brought along (:meth:`own_noise`).

    Images stay on the disk. Noise is measured once: :data:`MEASURED` in the store keeps it, as long as its scenes stay
    and where the store can be written. Raises InputError for what holds no usable scenes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            store = SceneStore(path)
            self.slice = np.asarray(store.group["slice"])
            self.clean, self.noise = store.group["clean"], store.group["noise"]
            self.dose = np.asarray(store.group["dose"])[: len(self.slice)]
            self.photons = np.asarray(store.group["photons"])[: len(self.slice)]
        except KeyError as error:  # no array of that name
            raise InputError(
                f"'{path}' holds no simulated scenes: if it was being made, start simulate again, it goes on."
            ) from error
        except OSError as error:
            raise InputError(f"'{path}' holds no simulated scenes: {error}.") from error
        if not len(self.slice):
            raise InputError(f"'{path}' holds no simulated scenes yet: start simulate again, it goes on.")
        self.pixel = float(store.group.attrs["pixel_mm"])
        self.thickness = float(store.group.attrs["slice_thickness"])
        self.size = self.clean.shape[-1]
        self.frequency = np.linspace(0.0, 10.0 * 0.5 / self.pixel, 61)
        # Procedural phantoms have no noise: a measurement would read 2 to 5 HU of anatomy.
        self.noiseless = phantom_seed(str(store.group.attrs["source"])) is not None
        self.power, self.own = self._kept() or self._keep(self._measure_noise(), self._measure_own_noise())
        self.full_dose_noise = self._full_dose_noise()
        self.usable = np.flatnonzero(self.full_dose_noise < STARVED_NOISE)
        if not len(self.usable):
            raise InputError(f"All scenes of {self.path} are starved of photons: simulate them with more.")

    def __len__(self) -> int:
        return len(self.dose)

    def _key(self) -> str:
        """Of the scenes, and of the code that measures them: what was measured counts as long as it stays."""
        digest = hashlib.sha256(self.slice.tobytes() + self.dose.tobytes() + self.photons.tobytes())
        for name in _CODE:
            digest.update(Path(sys.modules[name].__file__).read_bytes())
        return digest.hexdigest()

    def _kept(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Power and own noise as they were measured before, None where they were not, or in other scenes."""
        try:
            with np.load(self.path / MEASURED) as kept:
                if str(kept["key"]) == self._key():
                    return kept["power"], kept["own"]
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            pass
        return None

    def _keep(self, power: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both, kept in the store, whole or not at all: others may be reading it, or measuring too."""
        partial = self.path / f".{os.getpid()}-{MEASURED}"
        try:
            np.savez(partial, power=power, own=own, key=self._key())
            os.replace(partial, self.path / MEASURED)
        except OSError:  # a store that is only read is measured every time
            partial.unlink(missing_ok=True)
        return power, own

    def _measure_noise(self) -> np.ndarray:
        """Power of each slice's noise against frequency, as water-like tissue shows it, so that its deviation
        through any kernel is one sum: (scene, realisation, frequency), HU squared."""
        radius = 10.0 * np.hypot(fft.fftfreq(self.size, self.pixel)[:, None], fft.rfftfreq(self.size, self.pixel)[None])
        bins = np.clip(np.digitize(radius, self.frequency) - 1, 0, 60).ravel()
        weight = np.full(radius.shape, 2.0)
        weight[:, 0] = 1.0
        seen = seen_through(NAMED_KERNELS["medium"], wide_band_mtf())(radius)
        power = np.empty((*self.dose.shape, 61), dtype=np.float32)
        tissue_share = np.full(len(self), np.nan)
        for scene in range(len(self)):
            spectra = fft.rfft2(self.noise[scene].astype(np.float32))
            for realisation, spectrum in enumerate(spectra):
                energy = (np.abs(spectrum) ** 2 * weight).ravel() / self.size**4
                power[scene, realisation] = np.bincount(bins, energy, minlength=61)
            tissue = water_like(self.clean[scene] * np.float32(CLEAN_STEP), self.pixel)
            if tissue.mean() > LEAST_TISSUE:
                noise = fft.irfft2(spectra[int(np.argmin(self.dose[scene]))] * seen, (self.size, self.size))
                tissue_share[scene] = noise[tissue].var() / noise.var()
        for number in np.unique(self.slice):
            members = self.slice == number
            # A slice has one noise level per realisation: its regions' mean at the same dose.
            relative = (power[members] * self.dose[members][..., None]).mean((0, 1))
            shares = tissue_share[members if np.isfinite(tissue_share[members]).any() else slice(None)]
            share = np.nanmedian(shares) if np.isfinite(shares).any() else 1.0
            power[members] = share * relative / self.dose[members][..., None]
        return power

    def _full_dose_noise(self) -> np.ndarray:
        """Of each scene, HU through the smooth kernel at 100 % dose."""
        smooth, strongest = NAMED_KERNELS["smooth"], self.dose.argmax(1)
        return np.array(
            [
                self.noise_level(scene, strongest[scene], smooth) * np.sqrt(self.dose[scene, strongest[scene]] / 100.0)
                for scene in range(len(self))
            ]
        )

    def _measure_own_noise(self) -> np.ndarray:
        """Noise in HU that the noise-free scenes show through kernels of :data:`OWN_F50`, (scene, kernel): their
        slice's median, else the store's, else 0."""
        if self.noiseless:
            return np.zeros((len(self), len(OWN_F50)))
        whole = (slice(0, self.size), slice(0, self.size))
        room = (self.size - 1) * self.pixel
        grid = PixelGrid(int((room - 2 * KERNEL_MARGIN) / OWN_PIXEL), OWN_PIXEL, (0.5 * room, 0.5 * room))
        kernels = [parse_kernel(f50, self.pixel) for f50 in OWN_F50]
        samplers = [self.sampler(whole, grid, kernel) for kernel in kernels]
        seen = np.full((len(self), len(OWN_F50)), np.nan)
        for scene in range(len(self)):
            spectrum = self.spectrum(scene, None, whole)
            for kernel, sampler in enumerate(samplers):
                measured = measure_noise(sampler(spectrum), OWN_PIXEL)
                if measured is not None:
                    seen[scene, kernel] = measured.sigma
        everywhere = _median(seen)
        own = np.empty_like(seen)
        for number in np.unique(self.slice):
            members = self.slice == number
            of_slice = _median(seen[members])
            own[members] = np.where(np.isfinite(of_slice), of_slice, np.nan_to_num(everywhere))
        return own

    def own_noise(self, scene: int, mtf: Mtf) -> float:
        """Deviation in HU that water-like tissue of the noise-free scene's slice shows through ``mtf``: a patient
        scan's own noise, which simulated noise comes on top of."""
        return float(np.interp(mtf.f50, OWN_F50, self.own[scene]))

    def noise_level(self, scene: int, realisation: int, mtf: Mtf) -> float:
        """Deviation in HU of the simulated noise in water-like tissue of the scene's slice, seen through ``mtf``."""
        centres = self.frequency + 0.5 * self.frequency[1]
        response = seen_through(mtf, wide_band_mtf())(centres)
        return float(np.sqrt((self.power[scene, realisation] * response**2).sum()))

    def told_noise(self, scene: int, realisation: int, strength: float, mtf: Mtf) -> float:
        """What a measurement in the image finds, HU: ``strength`` times the simulated noise, and the scan's own."""
        return float(np.hypot(strength * self.noise_level(scene, realisation, mtf), self.own_noise(scene, mtf)))

    def spectrum(self, scene: int, realisation: int | Sequence[int] | None, window: tuple[slice, slice]) -> np.ndarray:
        """``rfft2`` of the noise-free image (``realisation`` None) or of a realisation's noise in ``window``; of
        several, which are read at once, (realisations, ...)."""
        if realisation is None:
            return fft.rfft2(self.clean[(scene, *window)].astype(np.float32) * CLEAN_STEP)
        # The chunk is read whole in any case.
        return fft.rfft2(self.noise[scene][(realisation, *window)].astype(np.float32))

    def sampler(self, window: tuple[slice, slice], grid: PixelGrid, mtf: Mtf) -> Sampler:
        """Samples spectra of ``window`` on ``grid`` as ``mtf`` shows them."""
        rows, columns = window
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        origin = (columns.start * self.pixel, rows.start * self.pixel)
        return Sampler(shape, self.pixel, origin, grid, seen_through(mtf, wide_band_mtf()))


def _median(values: np.ndarray) -> np.ndarray:
    """Of the finite ``values`` along the first axis; NaN where there is none."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.median(column) if len(column) else np.nan for column in columns])
