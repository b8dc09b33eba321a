"""CTFlow's stages: the encoder by L1, then the flow by likelihood (Wei et al. 2023, sections 2.2 and 2.3), with the
encoder frozen as in the paper, and then with it trained too, as in the authors' code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig, Encoding
from CTHarmonizeTraining.training.base import StageConfig, item_generators
from CTHarmonizeTraining.training.image import ImageStage, NetworkTraining, RegressionStage, truths

MEAN_ERROR_HU = 20.0
"""Pairs on which the encoder errs by less count alike in the flow's mean."""

SHOWN_PAIRS = 4
"""Pairs of opposite samples in a picture's mean and deviation."""


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


class FlowStage(ImageStage):
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
        network.requires_grad_(True)
        for module in (network.encoder, network.embedding):
            if module is not None:
                module.requires_grad_(not freeze_encoder)
        if network.config.form == "direct":  # which needs no estimate: devices wait for gradients that never come
            for module in (network.encoder.head, network.encoder.last):
                module.requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding = self._encode(batch)
        random = list(item_generators(batch))
        noise = self.dequantisation * _drawn(batch["target"].shape[1:], random).to(batch["target"])
        low, high = self.window
        target = (batch["target"] + noise - low) / (high - low)
        likelihood = self.network.log_likelihood(target, encoding)
        values = {"loss": -likelihood.mean() / target[0].numel()}
        if self.mean_weight:
            estimate_error = self.error(self.network.to_image(encoding.estimate), batch).detach()
            # the product of two independent errors has the mean's squared error as its expectation; the square of
            # one would add the pair's variance, and teach the flow to draw too little noise
            pairs = (0.5 * sum(self._opposite_samples(encoding, random)) for _ in range(2))
            first, second = (self.error(mean, batch) for mean in pairs)
            estimate = estimate_error.square().mean((1, 2, 3))
            mean = (first * second).mean((1, 2, 3))
            values["likelihood_loss"] = values["loss"].detach()
            values["encoder_mse_hu2"] = estimate.mean()
            values["mse_hu2"] = mean.detach().mean()
            values["loss"] = values["loss"] + self.mean_weight * (mean / (estimate + MEAN_ERROR_HU**2)).mean()
        return values

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding, random = self._encode(batch), list(item_generators(batch))
        samples = [image for _ in range(SHOWN_PAIRS) for image in self._opposite_samples(encoding, random)]
        samples = self.hu(torch.stack(samples))[:, :, 0]
        images = {"source": batch["planes"][:, 0], "estimate": self.hu(self.network.to_image(encoding.estimate))[:, 0]}
        drawn = {"mean": samples.mean(0), "sample": samples[0], "deviation": samples.std(0)}
        return {**images, **drawn, **truths(batch)}

    def _encode(self, batch: dict[str, Tensor]) -> Encoding:
        encoding = self.network.encode(*self.inputs(batch), frozen=self.freeze_encoder)
        encoding.estimate = encoding.estimate.float()
        return encoding

    def _opposite_samples(self, encoding: Encoding, random: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Two samples (b, 1, rows, columns) in [0, 1] of opposite latents, as the engine draws them."""
        shapes = self.network.latent_shapes(*encoding.estimate.shape[2:])
        latents = [_drawn(shape, random).to(encoding.estimate) for shape in shapes]
        opposite = [-latent for latent in latents]
        return self.network.inverse(latents, encoding), self.network.inverse(opposite, encoding)


@dataclass(kw_only=True)
class CTFlowTraining(NetworkTraining):
    """CTFlow in two stages, ``encoder`` and ``flow``, and, where ``joint`` is given, a third that trains both;
    ``mean_weight`` as :class:`FlowStage` has it."""

    method: ClassVar[str] = "ctflow"
    halved: ClassVar[tuple[str, ...]] = ("encoder.",)

    encoder: StageConfig
    flow: StageConfig
    joint: StageConfig | None = None
    network: CTFlowConfig = CTFlowConfig()
    mean_weight: float = 0.0

    def stages(self) -> dict[str, StageConfig]:
        stages = {"encoder": self.encoder, "flow": self.flow, "joint": self.joint}
        return {name: stage for name, stage in stages.items() if stage is not None and stage.iterations}

    def stage(self, name: str, network: CTFlow) -> ImageStage:
        settings = self.stages()[name], self.intensity_window, self.truth
        if name == "encoder":
            return EncoderStage(network, *settings)
        return FlowStage(network, *settings, self.mean_weight, freeze_encoder=name == "flow")


def _drawn(shape: tuple[int, ...], random: list[torch.Generator]) -> Tensor:
    """Standard normal (b, *shape), each item from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in random])
