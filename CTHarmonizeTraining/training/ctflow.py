"""CTFlow's stages: the encoder by L1, then the flow by likelihood (Wei et al. 2023, sections 2.2 and 2.3), with the
encoder frozen as in the paper, and then with it trained too, as in the authors' code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig, Encoding
from CTHarmonizeTraining.training.base import StageConfig, given
from CTHarmonizeTraining.training.image import ImageStage, NetworkTraining, RegressionStage
from CTHarmonizeTraining.training.likelihood import LikelihoodStage


class EncoderStage(RegressionStage):
    """L1 between the encoder's estimate and the truth."""

    network: CTFlow

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage, window, truth)
        network.requires_grad_(True)
        network.levels.requires_grad_(False)

    def image(self, batch: dict[str, Tensor]) -> Tensor:
        estimate, _, _ = self.network.estimate(*self.inputs(batch))
        return self.network.to_image(estimate)


class FlowStage(LikelihoodStage):
    """The flow, with the encoder frozen, as in the paper, or trained along."""

    network: CTFlow

    def __init__(
        self,
        network: CTFlow,
        stage: StageConfig,
        window: tuple[float, float],
        truth: str = "clean",
        mean_weight: float = 0.0,
        freeze_encoder: bool = True,
        dequantisation: float = 1.0,
    ) -> None:
        super().__init__(network, stage, window, truth, mean_weight, dequantisation)
        self.freeze_encoder = freeze_encoder
        network.requires_grad_(True)
        for module in (network.encoder, network.embedding):
            if module is not None:
                module.requires_grad_(not freeze_encoder)
        if network.config.form == "direct":  # which needs no estimate: devices wait for gradients that never come
            for module in (network.encoder.head, network.encoder.last):
                module.requires_grad_(False)

    def encode(self, batch: dict[str, Tensor]) -> Encoding:
        return self.network.encode(*self.inputs(batch), frozen=self.freeze_encoder)


@dataclass(kw_only=True)
class CTFlowTraining(NetworkTraining):
    """CTFlow in two stages, ``encoder`` and ``flow``, and, where ``joint`` is given, a third that trains both;
    ``mean_weight`` as :class:`~CTHarmonizeTraining.training.likelihood.LikelihoodStage` has it."""

    method: ClassVar[str] = "ctflow"
    halved: ClassVar[tuple[str, ...]] = ("encoder.",)

    encoder: StageConfig
    flow: StageConfig
    joint: StageConfig | None = None
    network: CTFlowConfig = CTFlowConfig()
    mean_weight: float = 0.0

    def stages(self) -> dict[str, StageConfig]:
        return given(encoder=self.encoder, flow=self.flow, joint=self.joint)

    def stage(self, name: str, network: CTFlow) -> ImageStage:
        settings = self.stages()[name], self.intensity_window, self.truth
        if name == "encoder":
            return EncoderStage(network, *settings)
        return FlowStage(network, *settings, self.mean_weight, freeze_encoder=name == "flow")
