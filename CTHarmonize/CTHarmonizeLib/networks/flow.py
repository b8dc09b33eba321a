"""What conditional flows of images share: how a target becomes what is modelled, and its likelihood."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from CTHarmonizeLib.networks.config import NetworkConfig


@dataclass
class Encoding:
    """What does not depend on the sample: the estimate (b, 1, h, w) in network units that a residual form adds, and
    every layer's state."""

    estimate: Tensor
    states: list[list] = field(default_factory=list)


class ConditionalFlow(nn.Module, ABC):
    """Base of the flows. ``config`` has ``gain``, which multiplies what the network sees of [0, 1], and ``form``:
    ``direct`` models the target itself, ``residual`` its difference from the estimate, times ``residual_gain``."""

    config: NetworkConfig

    @abstractmethod
    def forward(self, target: Tensor, encoding: Encoding) -> tuple[list[Tensor], Tensor]:
        """(latents, log-determinant (b,)) of a target (b, 1, h, w) in [0, 1]."""

    def log_likelihood(self, target: Tensor, encoding: Encoding) -> Tensor:
        """log p(target | source), (b,), in nats (CTFlow's Eq. 2; the cINN paper's section 3.2)."""
        latents, determinant = self(target, encoding)
        prior = sum(-0.5 * (latent**2 + math.log(2 * math.pi)).sum((1, 2, 3)) for latent in latents)
        return prior + determinant

    def to_image(self, estimate: Tensor) -> Tensor:
        """Network units back to [0, 1]."""
        return estimate / self.config.gain

    def modelled(self, target: Tensor, encoding: Encoding) -> tuple[Tensor, Tensor]:
        """What is modelled of a target in [0, 1], and the log-determinant (b,) of that step."""
        config = self.config
        x, scale = target * config.gain, config.gain
        if config.form == "residual":
            x, scale = (x - encoding.estimate) * config.residual_gain, scale * config.residual_gain
        return x, x.new_full((len(x),), math.log(scale) * x[0].numel())

    def image(self, modelled: Tensor, encoding: Encoding) -> Tensor:
        """The image in [0, 1] of which :meth:`modelled` is ``modelled``."""
        if self.config.form == "residual":
            modelled = modelled / self.config.residual_gain + encoding.estimate
        return self.to_image(modelled)
