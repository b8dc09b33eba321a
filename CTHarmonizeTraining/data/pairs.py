"""Training pairs: random crops of simulated scenes at random source and target acquisitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import fft
from torch import Tensor
from torch.utils.data import Dataset

from CTHarmonizeLib.ct.acquisition import Acquisition, parse_kernel
from CTHarmonizeLib.ct.measure import measure_noise, water_like
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.ctflow import acquisition_vector, source_planes
from CTHarmonizeTraining.data.render import (
    KernelSampler,
    PixelGrid,
    Sampler,
    crop_window,
    seen_through,
)
from CTHarmonizeTraining.simulation.projector import wide_band_mtf
from CTHarmonizeTraining.simulation.scenes import CLEAN_STEP, SceneStore

FILTER_MARGIN = 16
"""Pixels rendered around a crop so that the MTF-ratio plane sees what a whole slice would show it."""

LEAST_TISSUE = 0.02
"""Share of a scene that must be water-like tissue for its noise to be told by it."""

STARVED_NOISE = 45.0
"""HU through the smooth kernel at full dose, above which a scene is left out: no scanner would be set so."""

SOURCE_NOISE, TARGET_NOISE = (4.0, 24.0), (6.0, 20.0)
"""HU through the smooth kernel at full dose, between which noise is scaled: patients and scanners differ."""

LARGEST_SCALING = 2.0
"""Of simulated noise: few photons look unlike many."""

KERNEL_MARGIN = 6.0
"""mm of scene around a crop, for the tails of the point spread."""


OWN_F50 = (2.6, 4.0, 6.0, 8.0)
"""f50 (lp/cm) of the kernels through which the noise of a projected patient scan itself is measured."""

OWN_PIXEL = 0.7
"""mm of the images in which it is measured."""


def item_key(seed: int, index: int) -> Tensor:
    """Key of all that training draws for an item, int64 scalar: of the item, whichever step or rank gets it."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.tensor(int(state) >> 1, dtype=torch.int64)


class SceneSampler:
    """Reads the scenes of one store crop by crop, and knows each slice's noise through any kernel: the simulated one
    (:meth:`noise_level`), and what a projected patient scan brought along (:meth:`own_noise`)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            store = SceneStore(path)
            self.slice = np.asarray(store.group["slice"])
            # In memory, shared by the loader's forked workers: a crop is read in microseconds, not milliseconds.
            self.clean = np.asarray(store.group["clean"][: len(self.slice)])
            self.noise = np.asarray(store.group["noise"][: len(self.slice)])
            self.dose = np.asarray(store.group["dose"])[: len(self.slice)]
            self.photons = np.asarray(store.group["photons"])[: len(self.slice)]
        except (KeyError, FileNotFoundError, OSError) as error:
            raise InputError(f"{path} holds no simulated scenes: {error}") from error
        if not len(self.slice):
            raise InputError(f"{path} holds no simulated scenes.")
        self.pixel = float(store.group.attrs["pixel_mm"])
        self.thickness = float(store.group.attrs["slice_thickness"])
        self.base = wide_band_mtf()
        self.size = self.clean.shape[-1]
        self._measure_noise()
        # Procedural phantoms have no noise: a measurement would read 2 to 5 HU of anatomy.
        self.phantom = str(store.group.attrs["source"]).startswith("phantom")
        self.own = np.zeros((len(self), len(OWN_F50))) if self.phantom else self._measure_own_noise()

    def __len__(self) -> int:
        return len(self.dose)

    def _measure_noise(self) -> None:
        """Power of each slice's noise against frequency, as water-like tissue shows it, so that its deviation
        through any kernel is one sum."""
        radius = 10.0 * np.hypot(fft.fftfreq(self.size, self.pixel)[:, None], fft.rfftfreq(self.size, self.pixel)[None])
        self.frequency = np.linspace(0.0, 10.0 * 0.5 / self.pixel, 61)
        bins = np.clip(np.digitize(radius, self.frequency) - 1, 0, 60).ravel()
        weight = np.full(radius.shape, 2.0)
        weight[:, 0] = 1.0
        seen = seen_through(NAMED_KERNELS["medium"], self.base)(radius)
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
        self.power = power
        smooth = NAMED_KERNELS["smooth"]
        strongest = self.dose.argmax(1)
        self.full_dose_noise = np.array(
            [
                self.noise_level(scene, strongest[scene], smooth) * np.sqrt(self.dose[scene, strongest[scene]] / 100.0)
                for scene in range(len(self))
            ]
        )
        self.usable = np.flatnonzero(self.full_dose_noise < STARVED_NOISE)
        if not len(self.usable):
            raise InputError(f"All scenes of {self.path} are starved of photons: simulate them with more.")

    def _measure_own_noise(self) -> np.ndarray:
        """Noise in HU that the noise-free scenes show through kernels of :data:`OWN_F50`, (scene, kernel): their
        slice's median, else the store's, else 0."""
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
        response = seen_through(mtf, self.base)(centres)
        return float(np.sqrt((self.power[scene, realisation] * response**2).sum()))

    def told_noise(self, scene: int, realisation: int, strength: float, mtf: Mtf) -> float:
        """What a measurement in the image finds, HU: ``strength`` times the simulated noise, and the scan's own."""
        return float(np.hypot(strength * self.noise_level(scene, realisation, mtf), self.own_noise(scene, mtf)))

    def spectrum(self, scene: int, realisation: int | None, window: tuple[slice, slice]) -> np.ndarray:
        """``rfft2`` of the noise-free image (``realisation`` None) or of one realisation's noise in ``window``."""
        image = (
            self.clean[(scene, *window)].astype(np.float32) * CLEAN_STEP
            if realisation is None
            else self.noise[(scene, realisation, *window)].astype(np.float32)
        )
        return fft.rfft2(image)

    def sampler(self, window: tuple[slice, slice], grid: PixelGrid, mtf: Mtf) -> Sampler:
        """Samples spectra of ``window`` on ``grid`` as ``mtf`` shows them."""
        rows, columns = window
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        origin = (columns.start * self.pixel, rows.start * self.pixel)
        return Sampler(shape, self.pixel, origin, grid, seen_through(mtf, self.base))


def _median(values: np.ndarray) -> np.ndarray:
    """Of the finite ``values`` along the first axis; NaN where there is none."""
    columns = [column[np.isfinite(column)] for column in values.T]
    return np.array([np.median(column) if len(column) else np.nan for column in columns])


def weights_of(stores: Sequence[Path], weights: Mapping[str, float] | None) -> Mapping[str, float]:
    """``weights`` by store name; empty for None. Raises InputError for a name that none of ``stores`` has."""
    weights = weights or {}
    unknown = set(weights) - {path.stem for path in stores}
    if unknown:
        raise InputError(f"There is no store called {', '.join(sorted(unknown))}.")
    return weights


class PairDataset(Dataset):
    """Endless pairs; item ``i`` is always the same for the same seed and stores.

    An item has ``planes`` (p, size, size), ``clean`` and ``target`` (1, size, size) in HU, the noise-free and the
    noisy image at the target acquisition, ``acquisition``, the conditions, and ``draw``, the key of what training draws
    for it (:func:`item_key`). Noise is told as it would be measured, the anatomy's own included, and the source's with
    the error that a measurement has; half of the sources are clipped at -1024 HU as scanners do. ``weights`` says by
    name how often a store is drawn; the others count their scenes. ``kernels`` (source, target) fixes both, for a model
    of one mapping; ``full_dose_share`` of the pairs have a target at full dose, the others at any.
    """

    def __init__(
        self,
        stores: Sequence[str | Path],
        length: int,
        size: int = 64,
        planes: int = 2,
        seed: int = 0,
        pixel_range: tuple[float, float] = (0.45, 1.0),
        weights: Mapping[str, float] | None = None,
        measurement_error: float = 0.12,
        kernels: tuple[str, str] | None = None,
        full_dose_share: float = 0.6,
    ) -> None:
        self.stores = [SceneSampler(path) for path in stores]
        self.length, self.size, self.planes, self.seed = length, size, planes, seed
        self.pixel_range, self.measurement_error = pixel_range, measurement_error
        given = weights_of([store.path for store in self.stores], weights)
        share = np.array([given.get(store.path.stem, len(store)) for store in self.stores], dtype=float)
        self.share = share / share.sum()
        self.kernels = KernelSampler(seed, named=list(NAMED_KERNELS.values()))
        self.fixed_kernels, self.full_dose_share = kernels, full_dose_share

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        store = self.stores[rng.choice(len(self.stores), p=self.share)]
        scene = int(rng.choice(store.usable))
        pixel = float(rng.uniform(*self.pixel_range))
        source_mtf, target_mtf = self._kernels(rng, pixel)
        source_noise, target_noise = self._realisations(rng, store, scene)

        grid = self._place(rng, store, pixel)
        window = crop_window(grid, store.size, store.pixel, KERNEL_MARGIN)
        (drawn, strength), (target_drawn, target_strength) = source_noise, target_noise
        clean = store.spectrum(scene, None, window)
        as_source = store.sampler(window, grid, source_mtf)
        as_target = store.sampler(window, grid, target_mtf)
        source = as_source(clean + strength * store.spectrum(scene, drawn, window))
        truth = as_target(clean)
        target = truth + as_target(target_strength * store.spectrum(scene, target_drawn, window))

        measured = np.exp(rng.normal(0.0, self.measurement_error))
        source_told = measured * store.told_noise(scene, drawn, strength, source_mtf)
        target_told = store.told_noise(scene, target_drawn, target_strength, target_mtf)
        source_acquisition = _acquisition(source_mtf, source_told, pixel, store.thickness)
        target_acquisition = _acquisition(target_mtf, target_told, pixel, store.thickness)
        source = np.round(source)
        if rng.random() < 0.5:
            source = np.maximum(source, -1024.0)
        planes = source_planes(
            torch.from_numpy(source.astype(np.float32))[None], source_acquisition, target_acquisition, self.planes
        )[0]
        inner = (..., slice(FILTER_MARGIN, -FILTER_MARGIN), slice(FILTER_MARGIN, -FILTER_MARGIN))
        turned = turner(rng)
        return {
            "planes": turned(planes[inner]),
            "clean": turned(torch.from_numpy(truth)[None][inner]),
            "target": turned(torch.from_numpy(target)[None][inner]),
            "acquisition": torch.tensor(acquisition_vector(source_acquisition, target_acquisition)),
            "draw": item_key(self.seed, index),
        }

    def _kernels(self, rng: np.random.Generator, pixel: float) -> tuple[Mtf, Mtf]:
        if self.fixed_kernels is not None:
            source, target = (parse_kernel(kernel, pixel) for kernel in self.fixed_kernels)
            return source, target
        source = self.kernels.draw(rng, pixel)
        return source, source if rng.random() < 0.1 else self.kernels.draw(rng, pixel)

    def _realisations(
        self, rng: np.random.Generator, store: SceneSampler, scene: int
    ) -> tuple[tuple[int, float], tuple[int, float]]:
        """(realisation, scaling of its noise) of source and target: mostly any dose to full dose, else any to any."""
        dose = store.dose[scene]
        full = int(np.argmax(dose))
        order = rng.permutation(len(dose))
        if rng.random() < self.full_dose_share:
            target = full
            source = int(order[0] if order[0] != full else order[1])
        else:
            source, target = int(order[0]), int(order[1])

        def scaling(limits: tuple[float, float]) -> float:
            wanted = np.exp(rng.uniform(*np.log(limits)))
            return float(min(wanted / store.full_dose_noise[scene], LARGEST_SCALING))

        return (source, scaling(SOURCE_NOISE)), (target, scaling(TARGET_NOISE))

    def _place(self, rng: np.random.Generator, store: SceneSampler, pixel: float) -> PixelGrid:
        size = self.size + 2 * FILTER_MARGIN
        room = (store.size - 1) * store.pixel
        reach = min(0.5 * (size - 1) * pixel, 0.5 * room)
        # The filter's margin may leave the scene at the largest pixels; the crop itself never does.
        lowest = min(reach, 0.5 * room - 1e-3)
        centre = rng.uniform(lowest, room - lowest, size=2) if room > 2 * lowest else np.full(2, 0.5 * room)
        return PixelGrid(size, pixel, (float(centre[0]), float(centre[1])))


def _acquisition(mtf: Mtf, noise: float, pixel: float, thickness: float) -> Acquisition:
    return Acquisition(mtf.f50, mtf.f10, mtf.peak, noise, pixel, thickness)


def turner(rng: np.random.Generator):
    """One of the eight turns and flips of a square, the same for all images of a pair."""
    turns, flip = int(rng.integers(4)), bool(rng.integers(2))

    def turned(image: Tensor) -> Tensor:
        image = torch.rot90(image, turns, (-2, -1))
        return (image.flip(-1) if flip else image).contiguous()

    return turned
