"""Training of the 3D spectral-norm GAN (Wei et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from CTHarmonizeTraining.training.adversarial import AdversarialTraining, Critic, Game
from CTHarmonizeTraining.training.cnn3d import VolumeTraining


@dataclass(frozen=True)
class VolumeCriticConfig:
    """Size of a :class:`VolumeCritic`; the defaults are the paper's: eight convolutions of 64 to 512 filters, then a
    hidden layer of 512. ``told``: whether it is told of the acquisitions, which a model of several doses needs."""

    widths: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 512, 512)
    hidden: int = 512
    told: bool = False


class VolumeCritic(Critic):
    """Spectrally normalised 3^3 convolutions with leaky ReLU, average pooling to 4^3, two normalised dense layers.

    Every second convolution has a stride: the first of them (1, 2, 2), as slices are few, the later 2. So the paper's
    32 x 64 x 64 voxels become 4^3 without any pooling; the paper's figure leaves open which ones stride.
    """

    GRID = 4

    def __init__(self, config: VolumeCriticConfig, conditions: int) -> None:
        widths = (1, *config.widths)
        strides = [1 if number % 2 == 0 else (1, 2, 2) if number == 1 else 2 for number in range(len(config.widths))]
        convolutions = (
            spectral_norm(nn.Conv3d(one, other, 3, stride, 1))
            for one, other, stride in zip(widths, widths[1:], strides, strict=False)
        )
        super().__init__(convolutions, config.widths, conditions if config.told else 0)
        self.dense = spectral_norm(nn.Linear(config.widths[-1] * self.GRID**3, config.hidden))
        self.last = spectral_norm(nn.Linear(config.hidden, 1))

    def forward(self, image: Tensor, planes: Tensor, acquisition: Tensor) -> Tensor:
        """Verdicts (b,) on images (b, 1, d, h, w)."""
        with parametrize.cached():
            with torch.autocast(image.device.type, enabled=False):  # norms are found in float32, then used in any type
                for layer in (*self.convolutions, self.dense, self.last):
                    layer.weight  # noqa: B018
            x = F.adaptive_avg_pool3d(self.features(image, acquisition), self.GRID).flatten(1)
            return self.last(F.leaky_relu(self.dense(x), 0.2))[:, 0]


@dataclass(kw_only=True)
class SNGANTraining(VolumeTraining, AdversarialTraining):
    """First by the absolute error alone, then against a ``critic`` by hinge loss."""

    method: ClassVar[str] = "sngan"

    critic: VolumeCriticConfig = VolumeCriticConfig()
    game: Game = Game(kind="hinge")

    def new_critic(self) -> nn.Module:
        return VolumeCritic(self.critic, self.network.conditions).to(memory_format=torch.channels_last_3d)
