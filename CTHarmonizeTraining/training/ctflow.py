"""CTFlow's stages: the encoder by L1, then the flow by likelihood (Wei et al. 2023, sections 2.2 and 2.3), with the
encoder frozen as in the paper, and then with it trained too, as in the authors' code."""

from __future__ import annotations

import torch
from torch import Tensor

from CTHarmonizeLib.methods.ctflow import to_hu, to_unit
from CTHarmonizeLib.networks.ctflow import CTFlow, Encoding
from CTHarmonizeTraining.training.base import StageConfig, TrainingStage

L1_UNIT_HU = 250.0
"""HU are too small a unit for a loss."""

MEAN_ERROR_HU = 20.0
"""Pairs on which the encoder errs by less count alike in the flow's mean."""


class CTFlowStage(TrainingStage):
    """What both stages share: the intensity window, and ``truth``, what an estimate is held against: the noise-free
    image (``clean``, as simulation knows it) or the noisy one (``target``, as the paper's pairs are)."""

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage)
        self.window, self.truth = tuple(window), truth

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Planes in the network's [0, 1], and the conditions."""
        return to_unit(batch["planes"], self.window), batch["acquisition"]

    def error(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Image in [0, 1] minus truth, HU."""
        return to_hu(image, self.window) - batch[self.truth]


class EncoderStage(CTFlowStage):
    """L1 between the encoder's estimate and the truth."""

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage, window, truth)
        network.levels.requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        estimate, _, _ = self.network.estimate(*self.inputs(batch))
        error = self.error(self.network.to_image(estimate), batch)
        return {"loss": error.abs().mean() / L1_UNIT_HU, "rmse_hu": error.detach().square().mean().sqrt()}


class FlowStage(CTFlowStage):
    """Negative log-likelihood of the noisy target, per pixel in nats, dequantised by noise of ``dequantisation`` HU
    (stored HU are integers, and clipped air would make the likelihood unbounded).

    ``mean_weight`` times the squared error of the samples' mean against ``truth`` is added (the paper has no such
    term): its minimum is the conditional mean, as the likelihood's is, but where the truth is noise-free it is learned
    from far fewer pairs. It is estimated without bias from two pairs of opposite samples. Errors count in units of
    :data:`MEAN_ERROR_HU` and of the encoder's own error, so that noisy pairs do not outweigh the others. The encoder is
    frozen, as in the paper, or trained along.
    """

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
        super().__init__(network, stage, window, truth)
        self.mean_weight, self.freeze_encoder, self.dequantisation = mean_weight, freeze_encoder, dequantisation
        network.levels.requires_grad_(True)
        for module in (network.encoder, network.embedding):
            if module is not None:
                module.requires_grad_(not freeze_encoder)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding = self.network.encode(*self.inputs(batch), frozen=self.freeze_encoder)
        encoding.estimate = encoding.estimate.float()
        random = self._generator()
        noise = self.dequantisation * torch.randn(batch["target"].shape, generator=random).to(batch["target"])
        low, high = self.window
        target = (batch["target"] + noise - low) / (high - low)
        likelihood = self.network.log_likelihood(target, encoding)
        values = {"loss": -likelihood.mean() / target[0].numel()}
        if self.mean_weight:
            estimate_error = self.error(self.network.to_image(encoding.estimate), batch).detach()
            # the product of two independent errors has the mean's squared error as its expectation; the square of
            # one would add the pair's variance, and teach the flow to draw too little noise
            first, second = (self.error(self._pair_mean(encoding, random), batch) for _ in range(2))
            estimate = estimate_error.square().mean((1, 2, 3))
            mean = (first * second).mean((1, 2, 3))
            values["likelihood_loss"] = values["loss"].detach()
            values["encoder_rmse_hu"] = estimate.mean().sqrt()
            values["rmse_hu"] = mean.detach().mean().clamp_min(0.0).sqrt()
            values["loss"] = values["loss"] + self.mean_weight * (mean / (estimate + MEAN_ERROR_HU**2)).mean()
        return values

    def _pair_mean(self, encoding: Encoding, random: torch.Generator) -> Tensor:
        """Mean of two samples of opposite latents, as the engine draws them, (b, 1, rows, columns) in [0, 1]."""
        count, _, rows, columns = encoding.estimate.shape
        shapes = self.network.latent_shapes(rows, columns)
        latents = [torch.randn(count, *shape, generator=random).to(encoding.estimate) for shape in shapes]
        first = self.network.inverse(latents, encoding)
        return 0.5 * (first + self.network.inverse([-latent for latent in latents], encoding))

    def _generator(self) -> torch.Generator:
        """What is drawn belongs to the step, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.global_step)
