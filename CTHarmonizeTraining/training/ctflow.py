"""CTFlow's stages: the encoder by L1, then the flow by likelihood (Wei et al. 2023, sections 2.2 and 2.3), with the
encoder frozen as in the paper, and then with it trained too, as in the authors' code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import CONDITIONS, to_hu, to_unit
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig, Encoding
from CTHarmonizeTraining.training.base import StageConfig, Training, TrainingStage, item_generators

L1_UNIT_HU = 250.0
"""HU are too small a unit for a loss."""

MEAN_ERROR_HU = 20.0
"""Pairs on which the encoder errs by less count alike in the flow's mean."""

SHOWN_PAIRS = 4
"""Pairs of opposite samples in a picture's mean and deviation."""


class CTFlowStage(TrainingStage):
    """What the stages share: the intensity window, and ``truth``, what an estimate is held against: the noise-free
    image (``clean``, as simulation knows it) or the noisy one (``target``, as the paper's pairs are)."""

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage)
        self.window, self.truth = tuple(window), truth

    def inputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Planes in the network's [0, 1], and the conditions."""
        return to_unit(batch["planes"], self.window), batch["acquisition"]

    def hu(self, image: Tensor) -> Tensor:
        """Image in [0, 1] in HU."""
        return to_hu(image, self.window)

    def error(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """Image in [0, 1] minus truth, HU."""
        return self.hu(image) - batch[self.truth]

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        estimate, _, _ = self.network.estimate(*self.inputs(batch))
        images = {"source": batch["planes"][:, :1], "estimate": self.hu(self.network.to_image(estimate))}
        return {name: image[:, 0] for name, image in {**images, **self._truths(batch)}.items()}

    def _truths(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        names = {"target": "target", "clean": "noise-free target"}
        return {title: batch[name] for name, title in names.items() if name in batch}


class EncoderStage(CTFlowStage):
    """L1 between the encoder's estimate and the truth."""

    def __init__(self, network: CTFlow, stage: StageConfig, window: tuple[float, float], truth: str = "clean") -> None:
        super().__init__(network, stage, window, truth)
        network.requires_grad_(True)
        network.levels.requires_grad_(False)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        estimate, _, _ = self.network.estimate(*self.inputs(batch))
        error = self.error(self.network.to_image(estimate), batch)
        return {"loss": error.abs().mean() / L1_UNIT_HU, "mse_hu2": error.detach().square().mean()}


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
        images = super().pictures(batch)
        drawn = {"mean": samples.mean(0), "sample": samples[0], "deviation": samples.std(0)}
        return {"source": images.pop("source"), "estimate": images.pop("estimate"), **drawn, **images}

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


class CTFlowTraining(Training):
    """CTFlow in two stages, ``encoder`` and ``flow``, and, where ``joint`` is given, a third that trains both.

    ``intensity_window`` in HU; ``anchor_mm`` as on the model's card; ``truth`` and ``mean_weight`` as
    :class:`FlowStage` has them.
    """

    def __init__(
        self,
        encoder: StageConfig,
        flow: StageConfig,
        joint: StageConfig | None = None,
        network: CTFlowConfig = CTFlowConfig(),
        intensity_window: tuple[float, float] = (-1000.0, 500.0),
        anchor_mm: float | None = None,
        truth: Literal["clean", "target"] = "target",
        mean_weight: float = 0.0,
    ) -> None:
        if network.conditions not in (0, CONDITIONS):
            given = network.conditions
            raise InputError(f"The network's conditions are {CONDITIONS}, or 0 for one mapping, not {given}.")
        self.encoder, self.flow, self.joint = encoder, flow, joint
        self.network, self.intensity_window, self.anchor_mm = network, intensity_window, anchor_mm
        self.truth, self.mean_weight = truth, mean_weight
        self.planes, self.multiple = network.planes, 2**network.levels

    def build(self) -> CTFlow:
        return CTFlow(self.network).to(memory_format=torch.channels_last)

    def stages(self) -> dict[str, StageConfig]:
        stages = {"encoder": self.encoder, "flow": self.flow, "joint": self.joint}
        return {name: stage for name, stage in stages.items() if stage is not None and stage.iterations}

    def stage(self, name: str, network: CTFlow) -> CTFlowStage:
        settings = self.stages()[name], self.intensity_window, self.truth
        if name == "encoder":
            return EncoderStage(network, *settings)
        return FlowStage(network, *settings, self.mean_weight, freeze_encoder=name == "flow")

    def card(self) -> dict:
        return {
            "method": "ctflow",
            "network": self.network.as_dict(),
            "intensity_window": list(self.intensity_window),
            "anchor_mm": self.anchor_mm,
        }


def _drawn(shape: tuple[int, ...], random: list[torch.Generator]) -> Tensor:
    """Standard normal (b, *shape), each item from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in random])
