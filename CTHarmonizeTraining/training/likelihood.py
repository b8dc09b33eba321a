"""Training of conditional flows by likelihood, and by the error of their samples' mean."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from CTHarmonizeTraining.training.base import StageConfig, item_generators
from CTHarmonizeTraining.training.image import ImageStage, truths

MEAN_ERROR_HU = 20.0
"""Pairs on which the estimate errs by less count alike in the flow's mean."""

SHOWN_PAIRS = 4
"""Pairs of opposite samples in a picture's mean and deviation."""


class Encoding(Protocol):
    """What a flow's network computes once for all samples of a slice; ``estimate`` of the target, (b, 1, h, w)."""

    estimate: Tensor


class LikelihoodStage(ImageStage):
    """Negative log-likelihood of the noisy target, per pixel in nats, dequantised by noise of ``dequantisation`` HU
    (stored HU are integers, and clipped air would make the likelihood unbounded).

    ``mean_weight`` times the squared error of the samples' mean against ``truth`` is added (the papers have no such
    term): its minimum is the conditional mean, as the likelihood's is, but where the truth is noise-free it is learned
    from far fewer pairs. It is estimated without bias from two pairs of opposite samples. Errors count in units of
    :data:`MEAN_ERROR_HU` and of the estimate's own error, so that noisy pairs do not outweigh the others.

    The network has ``encode``, ``log_likelihood``, ``inverse``, ``latent_shapes`` and ``to_image``, as
    :class:`~CTHarmonizeLib.networks.ctflow.CTFlow` has them.
    """

    def __init__(
        self,
        network: nn.Module,
        stage: StageConfig,
        window: tuple[float, float],
        truth: str = "clean",
        mean_weight: float = 0.0,
        dequantisation: float = 1.0,
    ) -> None:
        super().__init__(network, stage, window, truth)
        self.mean_weight, self.dequantisation = mean_weight, dequantisation

    def encode(self, batch: dict[str, Tensor]) -> Encoding:
        """What does not depend on the sample."""
        return self.network.encode(*self.inputs(batch))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding, random = self._encoded(batch), list(item_generators(batch))
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
            values["estimate_mse_hu2"] = estimate.mean()
            values["mse_hu2"] = mean.detach().mean()
            values["loss"] = values["loss"] + self.mean_weight * (mean / (estimate + MEAN_ERROR_HU**2)).mean()
        return values

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        encoding, random = self._encoded(batch), list(item_generators(batch))
        samples = [image for _ in range(SHOWN_PAIRS) for image in self._opposite_samples(encoding, random)]
        samples = self.hu(torch.stack(samples))[:, :, 0]
        images = {"source": batch["planes"][:, 0], "estimate": self.hu(self.network.to_image(encoding.estimate))[:, 0]}
        drawn = {"mean": samples.mean(0), "sample": samples[0], "deviation": samples.std(0)}
        return {**images, **drawn, **truths(batch)}

    def _encoded(self, batch: dict[str, Tensor]) -> Encoding:
        encoding = self.encode(batch)
        encoding.estimate = encoding.estimate.float()
        return encoding

    def _opposite_samples(self, encoding: Encoding, random: list[torch.Generator]) -> tuple[Tensor, Tensor]:
        """Two samples (b, 1, rows, columns) in [0, 1] of opposite latents, as the engine draws them."""
        shapes = self.network.latent_shapes(*encoding.estimate.shape[2:])
        latents = [_drawn(shape, random).to(encoding.estimate) for shape in shapes]
        opposite = [-latent for latent in latents]
        return self.network.inverse(latents, encoding), self.network.inverse(opposite, encoding)


def _drawn(shape: tuple[int, ...], random: list[torch.Generator]) -> Tensor:
    """Standard normal (b, *shape), each item from its own generator."""
    return torch.stack([torch.randn(tuple(shape), generator=generator) for generator in random])
