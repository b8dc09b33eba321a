"""CTFlow's stages: the encoder by L1, then the flow by likelihood (Wei et al. 2023, sections 2.2 and 2.3), then,
which the paper does not do, both together."""

from __future__ import annotations

import torch
from torch import Tensor

from CTHarmonizeLib.methods.ctflow import to_hu, to_unit
from CTHarmonizeLib.networks.ctflow import CTFlow
from CTHarmonizeTraining.training.base import StageConfig, TrainingStage


class EncoderStage(TrainingStage):
    """L1 between the encoder's estimate and the target, noise-free (``clean``, as simulation knows it) or noisy
    (``target``, as the paper's pairs are)."""

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage)
        self.window, self.truth = tuple(window), truth
        network.levels.requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        estimate, _, _ = self.network.estimate(to_unit(batch["planes"], self.window), batch["acquisition"])
        error = estimate_error(self.network, estimate, batch[self.truth], self.window)
        return {"loss": estimate_loss(error), "rmse_hu": error.detach().square().mean().sqrt()}


class FlowStage(TrainingStage):
    """Negative log-likelihood of the noisy target, per pixel in nats, dequantised by noise of ``dequantisation`` HU
    (stored HU are integers, and clipped air would make the likelihood unbounded).

    The encoder is frozen, as in the paper, or trained along with the flow: then ``estimate_weight`` times the
    encoder stage's L1 keeps its estimate good by itself.
    """

    def __init__(
        self,
        network: CTFlow,
        stage: StageConfig,
        window: tuple[float, float],
        freeze_encoder: bool = True,
        estimate_weight: float = 0.0,
        dequantisation: float = 1.0,
    ) -> None:
        super().__init__(network, stage)
        self.window, self.freeze_encoder, self.dequantisation = tuple(window), freeze_encoder, dequantisation
        self.estimate_weight = estimate_weight
        network.levels.requires_grad_(True)
        for module in (network.encoder, network.embedding):
            if module is not None:
                module.requires_grad_(not freeze_encoder)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding = self.network.encode(
            to_unit(batch["planes"], self.window), batch["acquisition"], frozen=self.freeze_encoder
        )
        encoding.estimate = encoding.estimate.float()
        noise = self.dequantisation * torch.randn(
            batch["target"].shape, generator=self._generator(), dtype=torch.float32
        ).to(batch["target"].device)
        low, high = self.window
        target = (batch["target"] + noise - low) / (high - low)
        likelihood = self.network.log_likelihood(target, encoding)
        values = {"loss": -likelihood.mean() / target[0].numel()}
        if not self.freeze_encoder:
            error = estimate_error(self.network, encoding.estimate, batch["clean"], self.window)
            values["likelihood_loss"] = values["loss"].detach()
            values["rmse_hu"] = error.detach().square().mean().sqrt()
            values["loss"] = values["loss"] + self.estimate_weight * estimate_loss(error)
        return values

    def _generator(self) -> torch.Generator:
        """Dequantisation noise belongs to the step, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.global_step)


def estimate_error(network: CTFlow, estimate: Tensor, truth: Tensor, window: tuple[float, float]) -> Tensor:
    """Estimate (in network units) minus truth, HU."""
    return to_hu(network.to_image(estimate), window) - truth


def estimate_loss(error: Tensor) -> Tensor:
    """L1 of an error in HU, in units of 250 HU: HU are too small a unit for a loss."""
    return (error / 250.0).abs().mean()
