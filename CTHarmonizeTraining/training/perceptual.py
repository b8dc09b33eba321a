"""Networks whose features tell how alike two images look, and how to train one on CT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.base import StageConfig, Training, TrainingStage
from CTHarmonizeTraining.training.image import UNIT_HU


class Features(nn.Module, ABC):
    """Maps an image (b, 1, h, w) in HU to feature maps, from fine to coarse. Its weights are fixed."""

    @abstractmethod
    def maps(self, hu: Tensor) -> list[Tensor]:
        """Features (b, c, rows, columns) at each resolution."""

    @abstractmethod
    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        """How different two images look: a mean over the batch."""

    def texture(self, one: Tensor, other: Tensor) -> Tensor:
        """Squared difference of the Gram matrices, each divided by its norm, summed over the maps (Zarei et al. 2024,
        Eq. 7); a mean over the batch."""
        pairs = zip(self.maps(one), self.maps(other), strict=True)
        return sum((_gram(a) - _gram(b)).square().mean() for a, b in pairs)


def _gram(features: Tensor) -> Tensor:
    """Gram matrices (b, c, c) of norm 1."""
    flat = features.float().flatten(2)
    gram = flat @ flat.transpose(1, 2)
    return gram / gram.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]


class VGGFeatures(Features):
    """VGG-19 trained on ImageNet (Simonyan & Zisserman 2014); the ``window`` in HU is its range of grey.

    :meth:`maps` are the outputs of its five down-sampling layers; :meth:`distance` is the mean squared difference
    behind its 16th convolution (Yang et al. 2018).
    """

    POOLS = (4, 9, 18, 27, 36)
    DEEPEST = 34

    def __init__(self, network: nn.Sequential, window: tuple[float, float] = (-1000.0, 500.0)) -> None:
        super().__init__()
        self.network, self.window = network.eval().requires_grad_(False), window
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def maps(self, hu: Tensor) -> list[Tensor]:
        return self._at(hu, self.POOLS)

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        (a,), (b,) = (self._at(image, (self.DEEPEST,)) for image in (one, other))
        return (a.float() - b.float()).square().mean()

    def _at(self, hu: Tensor, layers: tuple[int, ...]) -> list[Tensor]:
        low, high = self.window
        x = (((hu - low) / (high - low)).clamp(0.0, 1.0) - self.mean) / self.deviation
        seen = []
        for number, layer in enumerate(self.network[: max(layers) + 1]):
            x = layer(x)
            if number in layers:
                seen.append(x)
        return seen


@dataclass(frozen=True)
class FeatureConfig:
    """Size of an :class:`AcquisitionFeatures`: two 3x3 convolutions of each of ``widths`` at each halving."""

    widths: tuple[int, ...] = (32, 64, 96, 128)


class AcquisitionFeatures(Features):
    """A small VGG that learned to read sharpness and noise from CT: it responds to what kernel and dose change.

    :meth:`distance` is the squared difference relative to the features' own energy, over all resolutions: the fine ones
    hold the anatomy.
    """

    READ = 4
    """It reads f50, f10, MTF peak and noise: the first entries of an acquisition's part of the vector."""

    def __init__(self, config: FeatureConfig = FeatureConfig()) -> None:
        super().__init__()
        widths = (1, *config.widths)
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(one, other, 3, padding=1), nn.LeakyReLU(0.2),
                nn.Conv2d(other, other, 3, padding=1), nn.LeakyReLU(0.2),
            )
            for one, other in zip(widths, widths[1:], strict=False)
        )  # fmt: skip
        self.reading = nn.Linear(widths[-1], self.READ)

    def maps(self, hu: Tensor) -> list[Tensor]:
        x = hu / UNIT_HU
        seen = []
        for number, level in enumerate(self.levels):
            x = level(F.avg_pool2d(x, 2) if number else x)
            seen.append(x)
        return seen

    def forward(self, hu: Tensor) -> Tensor:
        """What is read (b, READ) of images (b, 1, h, w) in HU."""
        return self.reading(self.maps(hu)[-1].float().mean((2, 3)))

    def distance(self, one: Tensor, other: Tensor) -> Tensor:
        pairs = [(a.float(), b.float()) for a, b in zip(self.maps(one), self.maps(other), strict=True)]
        return sum((a - b).square().mean() / b.square().mean().detach().clamp_min(1e-12) for a, b in pairs) / len(pairs)


class ReadingStage(TrainingStage):
    """Learns to read the acquisition of source and noisy target."""

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        source, target = batch["acquisition"][:, :-1].chunk(2, dim=1)
        seen = {"source": (batch["planes"][:, :1], source), "target": (batch["target"], target)}
        errors = [self.network(hu) - told[:, : AcquisitionFeatures.READ] for hu, told in seen.values()]
        error = torch.cat(errors)
        octaves = error[:, 0].abs().mean().detach()
        return {"loss": F.smooth_l1_loss(error, torch.zeros_like(error)), "f50_octaves": octaves}


@dataclass(kw_only=True)
class FeaturesTraining(Training):
    """Training of :class:`AcquisitionFeatures`; the run's folder can then be named as ``features``."""

    reading: StageConfig
    network: FeatureConfig = FeatureConfig()
    truth: Literal["clean", "target"] = "target"

    planes = 1

    @property
    def multiple(self) -> int:
        return 2 ** (len(self.network.widths) - 1)

    def build(self) -> nn.Module:
        return AcquisitionFeatures(self.network).to(memory_format=torch.channels_last)

    def stages(self) -> dict[str, StageConfig]:
        return {"reading": self.reading}

    def stage(self, name: str, network: nn.Module) -> TrainingStage:
        return ReadingStage(network, self.reading)

    def next_step(self, run: Path) -> str:
        return f"ctharmonize-train fit --config wgan-vgg-compact STORES RUN --method.features {run}"

    def card(self) -> dict:
        raise InputError("Features are no method: name this run in another configuration's 'features' instead.")


def load_features(name: str) -> Features:
    """``vgg19``, or :class:`AcquisitionFeatures` from a run's folder. Raises CannotRunError where VGG's weights cannot
    be had, InputError where the folder holds no features."""
    if name == "vgg19":
        return _vgg19()
    run = Path(name)
    if not (run / settings.CONFIG).is_file() or not (run / settings.NETWORK).is_file():
        raise InputError(
            f"'{name}' holds no features: give vgg19, or the folder of a finished 'ctharmonize-train fit --config "
            "features'."
        )
    method, network = settings.trained(run)
    if not isinstance(method, FeaturesTraining):
        raise InputError(f"'{name}' is a training of something else than features.")
    return network


def _vgg19() -> VGGFeatures:
    try:
        from torchvision.models import VGG19_Weights, vgg19
    except (ImportError, RuntimeError) as error:
        raise CannotRunError(
            f"VGG-19 needs the package torchvision, of the release that fits this torch ({error}): install it, or "
            "train features of your own (fit --config features)."
        ) from error
    weights = VGG19_Weights.IMAGENET1K_V1
    try:
        network = vgg19(weights=weights)
    except (OSError, RuntimeError) as error:  # no network; a file that is not whole
        place = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
        raise CannotRunError(
            f"VGG-19's ImageNet weights cannot be had ({error}): download {weights.url} to {place}, or train "
            "features of your own (fit --config features)."
        ) from error
    return VGGFeatures(network.features)
