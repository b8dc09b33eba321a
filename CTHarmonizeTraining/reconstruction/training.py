"""Training of the networks that read measurements, by the squared error of their images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import to_unit
from CTHarmonizeTraining.reconstruction.networks import (
    IRadonMap,
    IRadonMapConfig,
    LearnedGradientDescent,
    LearnedGradientDescentConfig,
    LearnedPrimalDual,
    LearnedPrimalDualConfig,
    ReconstructionConfig,
)
from CTHarmonizeTraining.simulation.rays import Rays
from CTHarmonizeTraining.training.base import StageConfig, Training
from CTHarmonizeTraining.training.image import RegressionStage

WINDOW = (-1001.0, 3071.0)
"""HU of no attenuation and of the largest, LoDoPaB-CT's 0 and 1."""


class ReconstructionStage(RegressionStage):
    """Regression of a network that sees measurements beside their filtered back-projection."""

    def image(self, batch: dict[str, Tensor]) -> Tensor:
        return self.network(batch["observation"], to_unit(batch["planes"], self.window))


@dataclass(kw_only=True)
class ReconstructionTraining(Training):
    """Settings of a network that reconstructs; a subclass says which."""

    regression: StageConfig
    network: ReconstructionConfig
    penalty: Literal["l1", "mse"] = "mse"

    truth = "target"
    planes = 1
    multiple = 1

    @property
    def rays(self) -> Rays:
        return self.network.rays

    def stages(self) -> dict[str, StageConfig]:
        return {"regression": self.regression}

    def stage(self, name: str, network: nn.Module) -> ReconstructionStage:
        return ReconstructionStage(network, self.regression, WINDOW, self.truth, self.penalty)

    def next_step(self, run: Path) -> str:
        return f"ctharmonize-train reconstruct STORES OUTPUT --runs [{run}]"

    def card(self) -> dict:
        raise InputError("What reads measurements cannot harmonize images: compare it with 'reconstruct' instead.")


@dataclass(kw_only=True)
class LearnedGradientDescentTraining(ReconstructionTraining):
    """Learned gradient descent (Adler & Öktem 2017)."""

    network: LearnedGradientDescentConfig = LearnedGradientDescentConfig()

    def build(self) -> nn.Module:
        return LearnedGradientDescent(self.network)


@dataclass(kw_only=True)
class LearnedPrimalDualTraining(ReconstructionTraining):
    """Learned primal-dual (Adler & Öktem 2018)."""

    network: LearnedPrimalDualConfig = LearnedPrimalDualConfig()

    def build(self) -> nn.Module:
        return LearnedPrimalDual(self.network)


@dataclass(kw_only=True)
class IRadonMapTraining(ReconstructionTraining):
    """iRadonMap (He et al. 2020)."""

    network: IRadonMapConfig = IRadonMapConfig()

    def build(self) -> nn.Module:
        return IRadonMap(self.network)
