"""Training against a critic: generative adversarial networks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.networks.conditional import EMBEDDING, Modulation, acquisition_embedding, embedded
from CTHarmonizeTraining.training.base import StageConfig, TrainingStage, given, item_generators
from CTHarmonizeTraining.training.image import UNIT_HU, NetworkTraining, RegressionStage


@dataclass(frozen=True)
class Game:
    """How generator and critic are trained against each other.

    ``kind``: ``wasserstein`` with gradient penalty (Gulrajani et al. 2017; ``gradient_penalty`` times the squared
    distance of the gradient's norm from 1), or ``hinge`` (for critics whose layers are spectrally normalised). The
    generator minimises ``adversarial`` times the critic's verdict and ``content`` times the stage's own penalty. The
    critic takes ``critic_steps`` steps of ``critic_rate`` on every batch before the generator takes one.
    """

    kind: Literal["wasserstein", "hinge"] = "wasserstein"
    adversarial: float = 1.0
    content: float = 1.0
    critic_rate: float = 1e-4
    critic_betas: tuple[float, float] = (0.5, 0.9)
    critic_steps: int = 1
    gradient_penalty: float = 10.0


class Critic(nn.Module):
    """What critics share: ``convolutions``, each with leaky ReLU behind; where the critic is told of the acquisitions,
    vectors of ``conditions`` numbers, these modulate what each makes, of ``widths`` channels."""

    def __init__(self, convolutions: Iterable[nn.Module], widths: Sequence[int] = (), conditions: int = 0) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(convolutions)
        self.embedding = acquisition_embedding(conditions)
        self.modulations = nn.ModuleList(Modulation(EMBEDDING, width) for width in (widths if conditions else ()))

    def features(self, x: Tensor, acquisition: Tensor) -> Tensor:
        """What the last convolution makes of ``x``."""
        told = embedded(self.embedding, acquisition)
        for number, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if told is not None:
                x = self.modulations[number](x, told)
            x = F.leaky_relu(x, 0.2)
        return x


class AdversarialStage(RegressionStage):
    """Regression, and a ``critic`` that tells the network's images from targets.

    ``critic(image, planes, acquisition)`` gives a verdict (b,), the higher the more real; image (b, 1, ...) and planes
    (b, p, ...) are HU in units of :attr:`unit`. What is real is always the target, noisy where it has noise, whatever
    the content's truth: texture is what a critic is there for.

    The critic is no submodule: optimiser, averages and gradient clipping are the network's alone. It has its own
    optimiser, and its gradients are averaged between devices here. Checkpoints hold both.
    """

    unit: float = UNIT_HU

    def __init__(
        self,
        network: nn.Module,
        stage: StageConfig,
        window: tuple[float, float],
        truth: str,
        critic: nn.Module,
        game: Game,
        penalty: Literal["l1", "mse"] = "l1",
    ) -> None:
        super().__init__(network, stage, window, truth, penalty)
        self.game = game
        self._opponent = (critic, torch.optim.Adam(critic.parameters(), lr=game.critic_rate, betas=game.critic_betas))
        self._kept: dict[str, Any] | None = None

    @property
    def critic(self) -> nn.Module:
        return self._opponent[0]

    def content(self, image: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What the generator minimises beside the critic's verdict, of an ``image`` in [0, 1]."""
        return self.distance(self.error(image, batch))

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image = self.image(batch)
        error = self.error(image.detach(), batch)
        content = self.content(image, batch)
        self.critic.requires_grad_(False)
        verdict = self._verdict(self.hu(image), batch).mean()
        return {
            "loss": self.game.content * content - self.game.adversarial * verdict,
            "content_loss": content.detach(),
            "verdict": verdict.detach(),
            "mse_hu2": error.square().mean(),
        }

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        with torch.no_grad():
            made = self.hu(self.image(batch))
        for number in range(self.game.critic_steps):
            self._teach_critic(made, batch, number)
        return super().training_step(batch, index)

    def _teach_critic(self, made: Tensor, batch: dict[str, Tensor], number: int) -> None:
        critic, optimizer = self._opponent
        critic.requires_grad_(True)
        for group in optimizer.param_groups:
            group["lr"] = self.game.critic_rate * self.rate(self.global_step)
        values = self.critic_loss(made, batch, number)
        optimizer.zero_grad()
        values["loss"].backward()
        loss = self.trainer.strategy.reduce(values["loss"].detach(), reduce_op="mean")
        self.must_be_finite("critic's loss", loss)
        for parameter in critic.parameters():
            if parameter.grad is not None:
                parameter.grad = self.trainer.strategy.reduce(parameter.grad, reduce_op="mean")
        optimizer.step()
        self.log_dict({f"train_critic_{name}": value.detach() for name, value in values.items()})

    def critic_loss(self, made: Tensor, batch: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """Of images that were ``made`` (HU, without gradient) for ``batch``; ``number``: the how manyth step on it."""
        real = batch["target"]
        for_real, for_made = self._verdict(real, batch), self._verdict(made, batch)
        values = {"distance": (for_real - for_made).mean()}
        if self.game.kind == "hinge":
            return {"loss": F.relu(1.0 - for_real).mean() + F.relu(1.0 + for_made).mean(), **values}
        shares = []
        for generator in item_generators(batch):
            shares.append(torch.rand(number + 1, generator=generator)[number])  # another one at each step
        share = torch.stack(shares).to(real).view(-1, *[1] * (real.ndim - 1))
        between = (share * real + (1.0 - share) * made).requires_grad_(True)
        (gradient,) = torch.autograd.grad(self._verdict(between, batch).sum(), between, create_graph=True)
        norm = (self.unit * gradient.float()).flatten(1).norm(dim=1)
        values["gradient_norm"] = norm.mean()
        penalty = self.game.gradient_penalty * (norm - 1.0).square().mean()
        return {"loss": penalty - values["distance"], **values}

    def _verdict(self, hu: Tensor, batch: dict[str, Tensor]) -> Tensor:
        return self.critic(hu / self.unit, batch["planes"] / self.unit, batch["acquisition"]).float()

    def on_train_start(self) -> None:
        critic, optimizer = self._opponent
        critic.to(self.device)
        if self._kept is not None:
            critic.load_state_dict(self._kept["weights"])
            optimizer.load_state_dict(self._kept["optimizer"])
            self._kept = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        critic, optimizer = self._opponent
        checkpoint["critic"] = {"weights": critic.state_dict(), "optimizer": optimizer.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._kept = checkpoint["critic"]  # taken when the critic is where it will compute


@dataclass(kw_only=True)
class AdversarialTraining(NetworkTraining):
    """First by ``penalty`` alone (``regression``, which the papers do not have; may be left out), then ``adversarial``
    against a critic."""

    adversarial: StageConfig
    regression: StageConfig | None = None
    game: Game = Game()
    penalty: Literal["l1", "mse"] = "l1"

    @abstractmethod
    def new_critic(self) -> nn.Module:
        """A critic, as :class:`AdversarialStage` asks for verdicts."""

    def stages(self) -> dict[str, StageConfig]:
        return given(regression=self.regression, adversarial=self.adversarial)

    def stage(self, name: str, network: nn.Module) -> TrainingStage:
        if name == "regression":
            return RegressionStage(network, self.regression, self.intensity_window, self.truth, self.penalty)
        settings = self.adversarial, self.intensity_window, self.truth, self.new_critic(), self.game, self.penalty
        return self.against(network, *settings)

    def against(self, network: nn.Module, *settings: Any) -> AdversarialStage:
        """The stage against a critic, with the ``settings`` of an :class:`AdversarialStage`."""
        return AdversarialStage(network, *settings)
