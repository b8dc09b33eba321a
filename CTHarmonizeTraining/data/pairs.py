"""Training pairs: random crops of simulated scenes at random source and target acquisitions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from CTHarmonizeLib.ct.acquisition import Acquisition, is_truth, parse_kernel, target_mtf
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import acquisition_vector, source_planes
from CTHarmonizeTraining.data.render import KernelSampler, PixelGrid, crop_window
from CTHarmonizeTraining.data.scenes import KERNEL_MARGIN, SceneSampler

FILTER_MARGIN = 16
"""Pixels rendered around a crop so that the MTF-ratio plane sees what a whole slice would show it."""

SOURCE_NOISE, TARGET_NOISE = (4.0, 24.0), (6.0, 20.0)
"""HU through the smooth kernel at full dose, between which noise is scaled: patients and scanners differ."""

LARGEST_SCALING = 2.0
"""Of simulated noise: few photons look unlike many."""


def item_key(seed: int, index: int) -> Tensor:
    """Key of all that training draws for an item, int64 scalar: of the item, whichever step or rank gets it."""
    state = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0]
    return torch.tensor(int(state) >> 1, dtype=torch.int64)


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
    name how often a store is drawn; the others count their usable scenes. ``kernels`` (source, target) fixes both, for
    a model of one mapping, or with None as source the target alone; ``full_dose_share`` of the pairs have a target at
    full dose, the others at any. The target kernel ``truth`` is the noise-free truth, which only procedural phantoms
    have: InputError for other stores. Sources then have any dose.
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
        kernels: tuple[str | None, str] | None = None,
        full_dose_share: float = 0.6,
    ) -> None:
        self.stores = [SceneSampler(path) for path in stores]
        self.length, self.size, self.planes, self.seed = length, size, planes, seed
        self.pixel_range, self.measurement_error = pixel_range, measurement_error
        given = weights_of([store.path for store in self.stores], weights)
        share = np.array([given.get(store.path.stem, len(store.usable)) for store in self.stores], dtype=float)
        if not share.sum() > 0.0 or share.min() < 0.0:
            raise InputError("The weights leave no store to draw from: give positive ones.")
        self.share = share / share.sum()
        self.towards_truth = kernels is not None and is_truth(kernels[1])
        if self.towards_truth:
            _check_truths(store for store, drawn in zip(self.stores, self.share, strict=True) if drawn > 0.0)
        for store in self.stores:
            if (size - 1) * pixel_range[1] > (store.size - 1) * store.pixel:
                raise InputError(
                    f"A crop of {size} pixels of {pixel_range[1]:g} mm is larger than the scenes of {store.path.name}, "
                    f"{store.size * store.pixel:.0f} mm: give fewer or smaller pixels."
                )
            if store.dose.shape[1] < 2:
                raise InputError(f"The scenes of {store.path.name} have one realisation of noise: two are needed.")
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
        source_spectrum, target_spectrum = store.spectrum(scene, [drawn, target_drawn], window)
        source = as_source(clean + strength * source_spectrum)
        truth = as_target(clean)
        target = truth if self.towards_truth else truth + as_target(target_strength * target_spectrum)

        measured = np.exp(rng.normal(0.0, self.measurement_error))
        source_told = measured * store.told_noise(scene, drawn, strength, source_mtf)
        target_told = 0.0
        if not self.towards_truth:
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
        turned = Turn.drawn(rng)
        return {
            "planes": turned(planes[inner]),
            "clean": turned(torch.from_numpy(truth)[None][inner]),
            "target": turned(torch.from_numpy(target)[None][inner]),
            "acquisition": torch.tensor(acquisition_vector(source_acquisition, target_acquisition)),
            "draw": item_key(self.seed, index),
        }

    def _kernels(self, rng: np.random.Generator, pixel: float) -> tuple[Mtf, Mtf]:
        if self.fixed_kernels is not None:
            source, target = self.fixed_kernels
            drawn = self.kernels.draw(rng, pixel) if source is None else parse_kernel(source, pixel)
            return drawn, target_mtf(target, pixel)
        source = self.kernels.draw(rng, pixel)
        return source, source if rng.random() < 0.1 else self.kernels.draw(rng, pixel)

    def _realisations(
        self, rng: np.random.Generator, store: SceneSampler, scene: int
    ) -> tuple[tuple[int, float], tuple[int, float]]:
        """(realisation, scaling of its noise) of source and target: mostly any dose to full dose, else any to any."""
        dose = store.dose[scene]
        full = int(np.argmax(dose))
        order = rng.permutation(len(dose))
        if rng.random() < self.full_dose_share and not self.towards_truth:
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


def _check_truths(stores: Iterable[SceneSampler]) -> None:
    known = [store.path.name for store in stores if not store.noiseless]
    if known:
        raise InputError(
            f"The noise-free truth is known of procedural phantoms only, not of {', '.join(known)}: train on stores of "
            "phantoms (ctharmonize-train simulate phantom:1 ...), or give the others a weight of 0."
        )


def _acquisition(mtf: Mtf, noise: float, pixel: float, thickness: float) -> Acquisition:
    return Acquisition(mtf.f50, mtf.f10, mtf.peak, noise, pixel, thickness)


@dataclass(frozen=True)
class Turn:
    """One of the eight turns and flips of a square: ``turns`` by 90 degrees, then a ``flip`` of the columns."""

    turns: int
    flip: bool

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Turn:
        """Any of them, for all images of a pair."""
        return cls(int(rng.integers(4)), bool(rng.integers(2)))

    def __call__(self, image: Tensor) -> Tensor:
        """Of images (..., rows, columns)."""
        image = torch.rot90(image, self.turns, (-2, -1))
        return (image.flip(-1) if self.flip else image).contiguous()

    def lines(self, observation: Tensor) -> Tensor:
        """Line integrals (..., views, beams) of the turned image: those of the image, in another order.

        The views are those of :class:`~CTHarmonizeTraining.simulation.projector.Geometry`, an even number.
        """
        half = observation.shape[-2] // 2
        for _ in range(self.turns):  # a view at a becomes that at a + 90 degrees; from 180 on, seen from behind
            first, second = observation[..., :half, :], observation[..., half:, :]
            observation = torch.cat((second, first.flip(-1)), -2)
        return (observation.flip(-2) if self.flip else observation).contiguous()
