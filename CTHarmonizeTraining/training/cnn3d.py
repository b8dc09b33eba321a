"""Training of the 3D CNN, and what it shares with the 3D spectral-norm GAN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from CTHarmonizeLib.networks.sngan import VolumeGenerator, VolumeGeneratorConfig
from CTHarmonizeTraining.training.image import NetworkTraining, RegressionTraining


@dataclass(kw_only=True)
class VolumeTraining(NetworkTraining):
    """Of a network that makes ``network.ratio`` slices of each."""

    network: VolumeGeneratorConfig = VolumeGeneratorConfig()

    @property
    def ratio(self) -> int:
        return self.network.ratio

    def laid_out(self, network: VolumeGenerator) -> VolumeGenerator:
        return network.to(memory_format=torch.channels_last_3d)


@dataclass(kw_only=True)
class CNN3DTraining(VolumeTraining, RegressionTraining):
    """The generator by the absolute error alone, the baseline of Wei et al. (2020)."""

    method: ClassVar[str] = "cnn3d"
