"""Training of WGAN-MSE and WGAN-VGG (Yang et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.wgan import WGANConfig
from CTHarmonizeTraining.training.adversarial import AdversarialStage, AdversarialTraining, Critic
from CTHarmonizeTraining.training.perceptual import Features, load_features


@dataclass(frozen=True)
class CriticConfig:
    """Size of a :class:`PatchCritic`; the defaults are the paper's. ``sees_source``: whether it also sees the input's
    planes and is told of the acquisitions, which a model of more than one mapping needs."""

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256)
    hidden: int = 1024
    sees_source: bool = False


class PatchCritic(Critic):
    """Six 3x3 convolutions, every second of stride 2, and two dense layers (Yang et al. 2018, figure 2), for 64 x 64
    pixels; of other sizes the last features are averaged to 8 x 8."""

    GRID = 8

    def __init__(self, config: CriticConfig, planes: int, conditions: int) -> None:
        seen, told = (planes, conditions) if config.sees_source else (0, 0)
        widths = (1 + seen, *config.widths)
        pairs = zip(widths, widths[1:], strict=False)
        convolutions = (nn.Conv2d(one, other, 3, 1 + number % 2, 1) for number, (one, other) in enumerate(pairs))
        super().__init__(convolutions, config.widths, told)
        self.sees_source = config.sees_source
        self.dense = nn.Linear(config.widths[-1] * self.GRID**2, config.hidden)
        self.last = nn.Linear(config.hidden, 1)

    def forward(self, image: Tensor, planes: Tensor, acquisition: Tensor) -> Tensor:
        """Verdicts (b,) on images (b, 1, h, w)."""
        x = torch.cat([image, planes], 1) if self.sees_source else image
        x = F.adaptive_avg_pool2d(self.features(x, acquisition), self.GRID).flatten(1)
        return self.last(F.leaky_relu(self.dense(x), 0.2))[:, 0]


class PerceptualStage(AdversarialStage):
    """Against a critic, with the squared difference of ``features`` as content."""

    def __init__(self, *settings, features: Features) -> None:
        super().__init__(*settings)
        self._features = (features,)  # neither trained nor saved

    def content(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        (features,) = self._features
        return features.to(image.device).distance(self.hu(image), batch[self.truth])


@dataclass(kw_only=True)
class WGANTraining(AdversarialTraining):
    """Against a ``critic`` of patches."""

    network: WGANConfig = WGANConfig()
    critic: CriticConfig = CriticConfig()
    penalty: Literal["l1", "mse"] = "mse"

    def new_critic(self) -> nn.Module:
        return PatchCritic(self.critic, self.network.planes, self.network.conditions)


@dataclass(kw_only=True)
class WGANMSETraining(WGANTraining):
    """Wasserstein GAN with squared error."""

    method: ClassVar[str] = "wgan-mse"


@dataclass(kw_only=True)
class WGANVGGTraining(WGANTraining):
    """Wasserstein GAN with perceptual loss; ``features`` as
    :func:`~CTHarmonizeTraining.training.perceptual.load_features` reads them."""

    method: ClassVar[str] = "wgan-vgg"

    features: str = "vgg19"

    @cached_property  # a stage is made once to see whether it can be, and once to be trained
    def judge(self) -> Features:
        return load_features(self.features)

    def against(self, network: nn.Module, *settings: Any) -> AdversarialStage:
        return PerceptualStage(network, *settings, features=self.judge)
