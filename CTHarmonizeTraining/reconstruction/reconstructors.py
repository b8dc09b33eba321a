"""Every way to an image of measurements under one interface, so that they can be compared."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import acquisition_vector, to_hu, to_unit
from CTHarmonizeLib.networks.flow import ConditionalFlow
from CTHarmonizeTraining.data.measured import as_seen
from CTHarmonizeTraining.data.patient import FBP, TRUTH, PatientStore
from CTHarmonizeTraining.importing.observations import back_projected
from CTHarmonizeTraining.reconstruction.classical import deep_image_prior, total_variation
from CTHarmonizeTraining.reconstruction.training import WINDOW
from CTHarmonizeTraining.simulation.rays import Rays, RayTransform
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.origin import check_test_stores, origin
from CTHarmonizeTraining.training.perceptual import FeaturesTraining

FBP_F50 = (0.25, 0.3, 0.35, 0.4, 0.5, 0.6)
"""f50 of a filtered back-projection that are tried, as shares of the beams' Nyquist frequency."""

TV_WEIGHTS = tuple(float(f"{weight:.3g}") for weight in np.geomspace(1e-4, 1e-2, 9))
PRIOR_WEIGHTS = TV_WEIGHTS[2:8:2]
"""Weights of the total variation that are tried."""

HALF_HU = 0.5 / (WINDOW[1] - WINDOW[0])
"""Stores have LoDoPaB-CT's HU rounded down: half a HU less, in the mean, than the measurements hold."""


@dataclass(frozen=True)
class Case:
    """One slice: ``observation`` (1, 1, views, beams) as stored, ``fbp`` and ``truth`` (1, 1, side, side) in shares of
    the largest attenuation, and the ``acquisition`` vector (1, n) of the pair."""

    name: str
    rays: Rays
    observation: Tensor
    fbp: Tensor
    truth: Tensor
    acquisition: Tensor

    @property
    def seed(self) -> int:
        """Of what is drawn for it."""
        return zlib.crc32(self.name.encode())


def cases(stores: Sequence[Path], count: int, device: torch.device) -> list[Case]:
    """``count`` slices, spread evenly over all of ``stores``. Raises InputError where one has no measurements."""
    places = []
    for path in stores:
        store = PatientStore(path)
        for entry in store.sets:
            names = [reconstruction.name for reconstruction in entry.reconstructions]
            if entry.rays is None or not {FBP, TRUTH} <= {*names}:
                raise InputError(f"The store '{path.name}' holds no measurements: make it with 'import lodopab-pairs'.")
            pair = names.index(FBP), names.index(TRUTH)
            places += [(path.stem, entry, pair, index) for index in range(entry.hu.shape[1])]
    chosen = np.unique(np.linspace(0, len(places) - 1, count).round().astype(int))
    found = []
    for name, entry, pair, index in (places[number] for number in chosen):
        told = (entry.reconstructions[which].acquisition for which in pair)
        fbp, truth = (
            to_unit(as_seen(entry.hu[which, index]), WINDOW)[None, None].to(device)
            for which in pair
        )
        observation = torch.from_numpy(entry.observation[index])[None, None].to(device)
        vector = torch.tensor(acquisition_vector(*told), device=device)[None]
        found.append(Case(f"{name}, image {index}", entry.rays, observation, fbp, truth, vector))
    if len({case.rays for case in found}) > 1:
        raise InputError("These measurements were made along different rays: compare on one kind at a time.")
    return found


class Reconstructor(ABC):
    """``name``; ``settings`` in words, for the table; ``side`` of the images that it can make, None for any."""

    name: str
    settings: str = ""
    side: int | None = None

    @abstractmethod
    def image(self, case: Case) -> Tensor:
        """Image (1, 1, side, side) in shares of the largest attenuation; of a smaller :attr:`side` the middle."""


class Tuned(Reconstructor):
    """One whose only number is, of those ``tried``, the one with the least squared error on ``validation``."""

    tried: Sequence[float]
    told: str
    """The number in words, with a place for it."""

    def __init__(self, validation: Sequence[Case]) -> None:
        def error(value: float) -> float:
            return sum(float((self.made(case, value) - HALF_HU - case.truth).square().mean()) for case in validation)

        self.chosen = min(self.tried, key=error)
        end = " (an end of what was tried)" if self.chosen in (self.tried[0], self.tried[-1]) else ""
        self.settings = self.told.format(self.chosen) + end

    def image(self, case: Case) -> Tensor:
        return self.made(case, self.chosen) - HALF_HU

    @abstractmethod
    def made(self, case: Case, value: float) -> Tensor:
        """Image with ``value``, as the measurements have it."""


class FilteredBackProjection(Tuned):
    """Tuned in sharpness."""

    name = "FBP"
    tried = FBP_F50
    told = "f50 at {:g} of the beams' Nyquist frequency"

    def made(self, case: Case, value: float) -> Tensor:
        mtf = Mtf.from_points(value * 5.0 / case.rays.geometry.pitch).limited_to(case.rays.grid.pixel)
        image = back_projected(case.observation[0].cpu().numpy(), case.rays, mtf)
        return torch.from_numpy(image.astype(np.float32))[None].to(case.fbp)


class TotalVariation(Tuned):
    """Tuned in weight."""

    name = "TV"
    tried = TV_WEIGHTS
    told = "weight {:g}"

    def __init__(self, transform: RayTransform, validation: Sequence[Case]) -> None:
        self.transform = transform
        super().__init__(validation)

    def made(self, case: Case, value: float) -> Tensor:
        return total_variation(case.observation, self.transform, value)


class DeepImagePrior(TotalVariation):
    """Tuned in weight."""

    name = "DIP + TV"
    tried = PRIOR_WEIGHTS

    def __init__(self, transform: RayTransform, validation: Sequence[Case], iterations: int) -> None:
        self.iterations = iterations
        super().__init__(transform, validation)
        self.settings = f"{iterations} iterations, {self.settings}"

    def made(self, case: Case, value: float) -> Tensor:
        return deep_image_prior(case.observation, case.fbp, self.transform, value, self.iterations)


class Trained(Reconstructor):
    """The network of a finished ``fit``, which reads an observation or its filtered back-projection."""

    def __init__(self, run: Path, rays: Rays, device: torch.device) -> None:
        self.name = run.name
        self.method, network = settings.trained(run)
        if self.method.rays not in (None, rays):
            raise InputError(f"'{run}' was trained along other rays than those of the measurements.")
        if self.method.planes != 1 or self.method.ratio is not None or isinstance(self.method, FeaturesTraining):
            raise InputError(f"The network in '{run}' does not make an image of one image: it cannot reconstruct.")
        self.network = network.to(device)
        self.window = getattr(self.method, "intensity_window", WINDOW)
        self.side = getattr(self.network.config, "dense_size", None)
        if self.side is not None and self.side > rays.side:
            raise InputError(f"The network in '{run}' makes images of {self.side} pixels; these have {rays.side}.")
        count = sum(parameter.numel() for parameter in self.network.parameters())
        self.settings = f"{type(self.network).__name__}, {count / 1e6:.2g} million parameters"

    @property
    def draws(self) -> bool:
        """Whether it makes samples."""
        return isinstance(self.network, ConditionalFlow)

    @torch.no_grad()
    def image(self, case: Case) -> Tensor:
        if self.method.rays is not None:
            return self.network(case.observation, case.fbp)
        *inputs, side = self._inputs(case)
        return self._share(self.network(*inputs)[..., :side, :side])

    @torch.no_grad()
    def samples(self, case: Case, count: int) -> Iterator[Tensor]:
        """Independent samples of a flow, as :meth:`image` makes images; their mean is the paper's reconstruction."""
        padded, told, side = self._inputs(case)
        encoding = self.network.encode(padded, told)
        shapes = self.network.latent_shapes(*padded.shape[2:])
        random = torch.Generator().manual_seed(case.seed)
        for _ in range(count):
            latents = [torch.randn((1, *shape), generator=random).to(padded) for shape in shapes]
            yield self._share(self.network.inverse(latents, encoding)[..., :side, :side])

    def _inputs(self, case: Case) -> tuple[Tensor, Tensor | None, int]:
        """The network's image, padded to what it needs, its conditions, and the side of what counts of its output."""
        hu = to_hu(case.fbp, WINDOW)
        if self.side is not None:
            hu = middle(hu, self.side)
        side = hu.shape[-1]
        margin = -side % (self.side or self.network.config.multiple)
        padded = F.pad(to_unit(hu, self.window), (0, margin, 0, margin), mode="reflect")
        return padded, case.acquisition if self.network.config.conditions else None, side

    def _share(self, image: Tensor) -> Tensor:
        return to_unit(to_hu(image.float(), self.window), WINDOW)


def check_unseen(run: Path, stores: Sequence[Path]) -> None:
    """Raise InputError where the training in ``run`` has read, or was validated on, what one of ``stores`` shows."""
    record = settings.record(run)
    check_test_stores(origin({**record, "stores": [*record["stores"], *record["validation"]]}), stores)


def middle(image: Tensor, side: int) -> Tensor:
    """The middle (..., side, side) of square images."""
    first = (image.shape[-1] - side) // 2
    return image[..., first : first + side, first : first + side]
