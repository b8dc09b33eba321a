"""Training of the cINN: conditioning network and flow together, by likelihood (Denker et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from CTHarmonizeLib.networks.cinn import CINN, CINNConfig
from CTHarmonizeTraining.training.base import StageConfig, given
from CTHarmonizeTraining.training.image import NetworkTraining
from CTHarmonizeTraining.training.likelihood import LikelihoodStage


@dataclass(kw_only=True)
class CINNTraining(NetworkTraining):
    """One stage, ``flow``. ``mean_weight`` as :class:`~CTHarmonizeTraining.training.likelihood.LikelihoodStage` has it;
    ``target_noise``: HU of the Gaussian noise on the target (the authors' later code: 0.005 of the window)."""

    method: ClassVar[str] = "cinn"
    halved: ClassVar[tuple[str, ...]] = ("conditioning.", "openings.", "sections.")

    flow: StageConfig
    network: CINNConfig = CINNConfig()
    mean_weight: float = 0.0
    target_noise: float = 1.0

    def stages(self) -> dict[str, StageConfig]:
        return given(flow=self.flow)

    def stage(self, name: str, network: CINN) -> LikelihoodStage:
        return LikelihoodStage(
            network, self.flow, self.intensity_window, self.truth, self.mean_weight, self.target_noise
        )
