"""Training of the physics-informed GAN (Zarei et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.methods.conditioning import acquisitions_of, mtf_map
from CTHarmonizeLib.networks.physics import PhysicsConfig
from CTHarmonizeLib.passthrough import low_pass
from CTHarmonizeTraining.training.adversarial import AdversarialStage, Critic, Game
from CTHarmonizeTraining.training.base import StageConfig, TrainingStage, given, item_generators
from CTHarmonizeTraining.training.image import NetworkTraining, RegressionStage
from CTHarmonizeTraining.training.perceptual import Features, load_features

UNIT = 2048.0
"""HU that are 1 to the paper's losses and critic."""

LUNG = (-980.0, -400.0)
"""HU of the smoothed truth in lungs: between air, and what is half lung and half tissue."""

_SMOOTHING = 2.0
_RADIUS = 4  # pixels; the smoothed skin, which has the HU of lung too, is thinner than twice that


@dataclass(frozen=True)
class Losses:
    """Weights of the Huber ``distance``, which is linear beyond ``delta`` (in units of :data:`UNIT`), and of the
    ``texture`` loss in the lung (Eq. 8); the critic's is the :class:`~CTHarmonizeTraining.training.adversarial.Game`'s.
    """

    distance: float = 1000.0
    texture: float = 50.0
    delta: float = 0.5


@dataclass(frozen=True)
class Augmentation:
    """What is done to inputs alone, drawn anew for each: Gaussian noise of up to ``noise`` HU, ``brightness`` of up to
    so many HU more or less, ``contrast`` to air of up to that share more or less, and Gaussian noise of deviation
    ``mtf`` on the MTF. (Turns, flips, places and pixel sizes are the data's.) The sizes are not published."""

    noise: float = 10.0
    brightness: float = 10.0
    contrast: float = 0.02
    mtf: float = 0.02


@dataclass(frozen=True)
class PairCriticConfig:
    """``widths`` of a :class:`PairCritic`'s layers but the last; the paper has five layers, their widths are not
    published (these are Pix2Pix's, Isola et al. 2017)."""

    widths: tuple[int, ...] = (64, 128, 256, 512)


class PairCritic(Critic):
    """Fully convolutional, on image and input together: 4x4 convolutions, of stride 2 but for the last two; the map of
    verdicts is averaged. No normalisation: the gradient penalty is each item's own."""

    def __init__(self, config: PairCriticConfig) -> None:
        widths = (2, *config.widths)
        pairs = list(zip(widths, widths[1:], strict=False))
        super().__init__(
            nn.Conv2d(one, other, 4, 2 if number < len(pairs) - 1 else 1, 1)
            for number, (one, other) in enumerate(pairs)
        )
        self.last = nn.Conv2d(widths[-1], 1, 4, 1, 1)

    def forward(self, image: Tensor, planes: Tensor, acquisition: Tensor) -> Tensor:
        """Verdicts (b,) on images (b, 1, h, w) made of planes (b, 1, h, w)."""
        return self.last(self.features(torch.cat([image, planes], 1), acquisition)).mean((1, 2, 3))


def lung_mask(truth: Tensor) -> Tensor:
    """1 in the lungs of a noise-free ``truth`` (b, 1, h, w) in HU, 0 elsewhere, skin and large airways included."""
    smooth = low_pass(truth[:, 0].float(), _SMOOTHING)[:, None]
    inside = ((smooth > LUNG[0]) & (smooth < LUNG[1])).float()
    size = 2 * _RADIUS + 1
    core = -F.max_pool2d(-inside, size, 1, _RADIUS)
    return F.max_pool2d(core, size, 1, _RADIUS)


def source_mtfs(acquisition: Tensor) -> Tensor:
    """The sources' MTFs (b, 1, n, n) of acquisition vectors (b, conditions)."""
    maps = np.stack([mtf_map(acquisitions_of(vector)[0]) for vector in acquisition.tolist()])
    return torch.from_numpy(maps)[:, None].to(acquisition.device)


class InformedStage(RegressionStage):
    """Regression of a network that is told the source's MTF: by the Huber loss, on augmented inputs, with normalised
    gradients: of norm ``gradient_clip`` exactly, where a stage has one (the paper's norm is not published)."""

    def __init__(self, *settings: Any, losses: Losses, augmentation: Augmentation) -> None:
        super().__init__(*settings)
        self.losses, self.augmentation = losses, augmentation

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Planes in the network's [0, 1], the conditions, and the source's MTF."""
        mtf = batch["mtf"] if "mtf" in batch else source_mtfs(batch["acquisition"])
        return (*super().inputs(batch), mtf)

    def distance(self, error: Tensor) -> Tensor:
        error = error.float() / UNIT
        return self.losses.distance * F.huber_loss(error, torch.zeros_like(error), delta=self.losses.delta)

    def augmented(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``batch`` with changed ``planes``, and the changed ``mtf``."""
        size, planes, mtfs = self.augmentation, [], []
        told = source_mtfs(batch["acquisition"])
        for source, mtf, generator in zip(batch["planes"], told, item_generators(batch), strict=True):
            torch.rand(64, generator=generator)  # others draw from the same beginning
            noise, brightness, contrast = torch.rand(3, generator=generator).tolist()
            grain = torch.randn(source.shape, generator=generator).to(source)
            gain = 1.0 + size.contrast * (2.0 * contrast - 1.0)
            shift = size.brightness * (2.0 * brightness - 1.0)
            planes.append(gain * (source + 1000.0) - 1000.0 + shift + size.noise * noise * grain)
            mtfs.append(mtf + size.mtf * torch.randn(mtf.shape, generator=generator).to(mtf))
        return {**batch, "planes": torch.stack(planes), "mtf": torch.stack(mtfs)}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        return super().training_step(self.augmented(batch), index)

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm=None
    ) -> None:
        if gradient_clip_val is None:
            return
        gradients, norm = self.gradients()
        for gradient in gradients:
            gradient.mul_(gradient_clip_val / norm.clamp_min(1e-12))


class PhysicsStage(InformedStage, AdversarialStage):
    """Against a critic that sees input and image, with the Huber loss and, in the lung, the texture of ``features``
    (None: without)."""

    unit = UNIT

    def __init__(self, *settings: Any, losses: Losses, augmentation: Augmentation, features: Features | None) -> None:
        super().__init__(*settings, losses=losses, augmentation=augmentation)
        self._features = (features,)  # neither trained nor saved

    def content(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        distance = super().content(image, batch)
        (features,) = self._features
        if features is None:
            return distance
        truth = batch[self.truth]
        with torch.autocast(truth.device.type, enabled=False):
            mask = lung_mask(truth)
        texture = features.to(image.device).texture(mask * self.hu(image), mask * truth)
        return distance + self.losses.texture * texture


@dataclass(kw_only=True)
class PhysicsTraining(NetworkTraining):
    """Physics-informed GAN, towards the noise-free truth: first by distance alone (``regression``, which the paper does
    not have; may be left out), then ``adversarial``. ``features`` as
    :func:`~CTHarmonizeTraining.training.perceptual.load_features` reads them."""

    method: ClassVar[str] = "physics-gan"
    towards_truth: ClassVar[bool] = True
    halved: ClassVar[tuple[str, ...]] = ("gamma.", "output.")  # a filter's gains multiply all HU

    adversarial: StageConfig
    regression: StageConfig | None = None
    network: PhysicsConfig = PhysicsConfig()
    intensity_window: tuple[float, float] = (-1024.0, 3072.0)
    truth: Literal["clean", "target"] = "clean"
    critic: PairCriticConfig = PairCriticConfig()
    game: Game = Game()
    losses: Losses = Losses()
    augmentation: Augmentation = Augmentation()
    features: str = "vgg19"

    @cached_property  # a stage is made once to see whether it can be, and once to be trained
    def judge(self) -> Features | None:
        return load_features(self.features) if self.losses.texture else None

    def laid_out(self, network: nn.Module) -> nn.Module:
        network.gamma.to(memory_format=torch.channels_last)  # Lambda's kernel has a dimension too many for it
        return network

    def stages(self) -> dict[str, StageConfig]:
        return given(regression=self.regression, adversarial=self.adversarial)

    def stage(self, name: str, network: nn.Module) -> TrainingStage:
        told = {"losses": self.losses, "augmentation": self.augmentation}
        if name == "regression":
            return InformedStage(network, self.regression, self.intensity_window, self.truth, **told)
        settings = self.adversarial, self.intensity_window, self.truth, PairCritic(self.critic), self.game
        return PhysicsStage(network, *settings, **told, features=self.judge)
