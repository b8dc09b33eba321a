"""Validation crops, and samples of them as a user gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.latents import Latents
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.methods.conditioning import acquisitions_of
from CTHarmonizeLib.passthrough import SourceSlab
from CTHarmonizeLib.statistics import PairStatistics
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.evaluation.measures import tissue_mask
from CTHarmonizeTraining.evaluation.reliability import Crop, crps

BORDER = 16
"""Pixels at a crop's edges that are not scored: the network sees less around them than in a whole slice."""

USUAL_SHARE = 0.6
"""Of pairs that lead to full dose in training, unless its configuration says otherwise."""

_STEP = 8  # crops of measured pairs are cut on blocks of so many pixels


@dataclass(frozen=True)
class Pair:
    """Crop ``number``: its store's name, source and target acquisition, ``source`` and noisy ``target``
    (size, size) in HU, and which of the inner pixels are scored (``mask``, without :data:`BORDER`)."""

    number: int
    store: str
    acquisitions: tuple[Acquisition, Acquisition]
    source: np.ndarray
    target: np.ndarray
    mask: np.ndarray


class Pairs:
    """``count`` random pairs, the same for the same seed, taken from ``stores`` in turn.

    ``mapping`` (source, target) limits them: kernels of simulated scenes, or names of measured series with ``*``.
    Pixel sizes of scenes are drawn from ``pixel_range``, mm; ``full_dose_share`` of the pairs lead to full dose. What
    is told of the target is true, of the source as exact as a measurement. Crops without tissue are left out.
    """

    def __init__(
        self,
        stores: Sequence[Path],
        count: int,
        size: int,
        seed: int,
        pixel_range: tuple[float, float],
        mapping: tuple[str, str] | None = None,
        full_dose_share: float = USUAL_SHARE,
    ) -> None:
        self.count, self.names = count, [Path(path).stem for path in stores]
        self.datasets: list[MeasuredPairs | PairDataset] = []
        for path in stores:
            if PatientStore.recognizes(path):
                only = {} if mapping is None else {"series": mapping}
                pairs = MeasuredPairs([path], count, size, 1, seed, full_dose_share=full_dose_share, **only)
            else:
                options = {"pixel_range": pixel_range, "kernels": mapping, "full_dose_share": full_dose_share}
                pairs = PairDataset([path], count, size, 1, seed, **options)
            self.datasets.append(pairs)

    def __iter__(self) -> Iterator[Pair]:
        for number in range(self.count):
            turn = number % len(self.datasets)
            item = self.datasets[turn][number]
            source, target = acquisitions_of(item["acquisition"].tolist())
            image = item.get("clean", item["target"])[0].numpy()
            mask = _inner(tissue_mask(image, target.pixel_spacing))
            if mask.any():
                images = item["planes"][0].numpy(), item["target"][0].numpy()
                yield Pair(number, self.names[turn], (source, target), *images, mask)


class Sampler:
    """Draws samples of pairs with ``method``, as the engine finishes them: anchored and blended."""

    def __init__(self, method: Method, size: int, seed: int) -> None:
        multiple = int(np.lcm(method.multiple, _STEP))
        if size % multiple or size <= 2 * BORDER:
            raise InputError(
                f"Crops of {size} pixels do not do: give a multiple of {multiple} pixels, more than {2 * BORDER}."
            )
        self.method = method
        self.size = size
        self.latents = Latents(seed, method.latent_shapes(size, size), (size, size), 1.0)

    def score(self, pair: Pair, temperatures: Sequence[float], samples: int) -> np.ndarray:
        """Sum of the CRPS (HU) over a pair's pixels at each temperature, with the same random numbers."""
        numbers = _independent(samples)
        truth = _inner(pair.target)[pair.mask]
        return np.array([crps(drawn, truth).sum() for drawn in self._draw(pair, temperatures, numbers)])

    def crop(self, pair: Pair, temperature: float, samples: int, ensemble: int) -> Crop:
        """Rank of the target among ``samples`` independent samples; mean and deviation as the engine takes them of
        ``ensemble`` samples, half of which mirror the others."""
        independent, truth = _independent(samples), _inner(pair.target)[pair.mask]
        numbers = sorted({*independent, *range(ensemble)})
        (drawn,) = self._draw(pair, [temperature], numbers)
        of = dict(zip(numbers, drawn, strict=True))
        statistics = PairStatistics(torch.zeros(drawn.shape[1:]))
        for number in range(ensemble):
            statistics.add(torch.from_numpy(of[number]))
        rank = sum((of[number] < truth).astype(np.int64) for number in independent)
        error = truth - statistics.mean().numpy()
        return Crop(pair.store, pair.acquisitions[0].noise, samples, rank, error, statistics.deviation().numpy())

    def _draw(self, pair: Pair, temperatures: Sequence[float], numbers: Sequence[int]) -> Iterator[np.ndarray]:
        """Samples ``numbers`` of the pair's pixels (n, pixels), float32 HU, at each temperature."""
        method, whole = self.method, (slice(0, self.size),) * 2
        slab = SourceSlab.from_hu(pair.source[None], (self.size, self.size), method.window, method.device)
        anchor = None if method.anchor_mm is None else method.anchor_mm / pair.acquisitions[0].pixel_spacing
        # the pair's number stands for the slice, so that no two pairs share random numbers
        fields = [self.latents.draw(range(pair.number, pair.number + 1), number, whole) for number in numbers]
        latents = [torch.from_numpy(np.stack(level)).to(method.device) for level in zip(*fields, strict=True)]
        with torch.inference_mode():
            state = method.encode(method.prepare(slab.clean, *pair.acquisitions), *pair.acquisitions)
            estimate = method.estimate(state)
            for temperature in temperatures:
                samples = method.sample(state, [temperature * level for level in latents])
                # the engine draws these again first; they are too few to matter here
                samples = torch.where(method.implausible(samples, state), estimate, samples)
                finished = torch.cat([slab.finish(sample, anchor) for sample in samples])
                yield _inner(finished).cpu().numpy()[:, pair.mask]


def _independent(samples: int) -> range:
    """Numbers of independent samples: odd ones have minus the latents of the even ones before them."""
    return range(0, 2 * samples, 2)


def _inner(images: np.ndarray | Tensor) -> np.ndarray | Tensor:
    return images[..., BORDER:-BORDER, BORDER:-BORDER]
