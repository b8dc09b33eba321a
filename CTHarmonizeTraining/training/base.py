"""What a method brings to training: its network, and the stages that train it, each with its loss."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from CTHarmonizeLib.errors import CannotRunError, InputError


@dataclass(frozen=True)
class Cycle:
    """The learning rate rises to ``highest`` times itself and falls back within so many ``iterations``, over and over,
    in straight lines (Smith 2017, triangular)."""

    iterations: int
    highest: float = 4.0

    def __post_init__(self) -> None:
        if self.iterations < 2 or not self.highest >= 1.0:
            raise InputError(
                f"A cycle of {self.iterations} iterations up to {self.highest:g} times the learning rate is none: give "
                "at least 2 and 1."
            )

    def share(self, step: int) -> float:
        """Of the learning rate at ``step``, 1 to ``highest``."""
        return 1.0 + (self.highest - 1.0) * (1.0 - abs(2.0 * (step % self.iterations) / self.iterations - 1.0))


@dataclass(frozen=True)
class Plateau:
    """Lowers the learning rate to its ``factor`` when the training loss, averaged over windows of ``window``
    iterations, has not fallen by ``threshold`` for ``patience`` windows. (Crops are drawn anew all the time, so their
    loss says what a validation's would.)"""

    window: int = 250
    patience: int = 5
    factor: float = 0.8
    threshold: float = 1e-4

    def __post_init__(self) -> None:
        if self.window < 1 or self.patience < 1 or not 0.0 < self.factor < 1.0:
            raise InputError(
                f"A plateau of {self.patience} windows of {self.window} iterations and a factor of {self.factor:g} "
                "cannot lower a learning rate."
            )


class PlateauWatch:
    """Share of the learning rate that a :class:`Plateau` has left, and what it has seen of the loss so far."""

    def __init__(self, plateau: Plateau) -> None:
        self.plateau = plateau
        self.state = {"share": 1.0, "sum": 0.0, "count": 0, "best": float("inf"), "waited": 0}

    def see(self, loss: float) -> None:
        """The loss of an iteration."""
        plateau, state = self.plateau, self.state
        state["sum"] += loss
        state["count"] += 1
        if state["count"] < plateau.window:
            return
        mean = state["sum"] / state["count"]
        state["sum"], state["count"] = 0.0, 0
        if mean < state["best"] - plateau.threshold:
            state["best"], state["waited"] = mean, 0
            return
        state["waited"] += 1
        if state["waited"] == plateau.patience:
            state["share"] *= plateau.factor
            state["waited"] = 0


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: ``iterations`` of ``batch`` crops (all devices together), Adam with ``betas`` and
    ``weight_decay``; the learning rate is halved at the given shares of the iterations, rises linearly over the first
    ``warmup`` ones, and falls where the loss no longer does, as ``plateau`` says.

    With ``cycle`` the rate goes up and down as well. With ``average`` the stage's result is the exponential moving
    average of its weights with that decay.
    """

    iterations: int
    learning_rate: float
    batch: int = 16
    betas: tuple[float, float] = (0.9, 0.99)
    halved_at: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95)
    warmup: int = 0
    gradient_clip: float | None = None
    average: float | None = None
    cycle: Cycle | None = None
    weight_decay: float | None = None
    plateau: Plateau | None = None

    def __post_init__(self) -> None:
        if self.iterations < 0 or self.batch < 1 or not self.learning_rate > 0.0:
            raise InputError(
                f"A stage of {self.iterations} iterations, batches of {self.batch} and a learning rate of "
                f"{self.learning_rate:g} cannot be trained."
            )

    def rate(self, step: int) -> float:
        """Learning rate at ``step``, as a share of ``learning_rate``."""
        halvings = sum(step >= share * self.iterations for share in self.halved_at)
        cycled = 1.0 if self.cycle is None else self.cycle.share(step)
        return cycled * 0.5**halvings * min(1.0, (step + 1) / (self.warmup + 1))


def given(**stages: StageConfig | None) -> dict[str, StageConfig]:
    """Those of the ``stages`` that there are and that have iterations, in their order."""
    return {name: stage for name, stage in stages.items() if stage is not None and stage.iterations}


class TrainingStage(L.LightningModule, ABC):
    """Trains ``network`` by :meth:`loss`; the only thing that differs between methods and stages."""

    def __init__(self, network: nn.Module, stage: StageConfig) -> None:
        super().__init__()
        self.network = network
        self.stage = stage
        self._plateau = PlateauWatch(stage.plateau) if stage.plateau else None

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values to log; ``loss`` is what is minimised: a mean over the batch's items, so that devices that share a
        batch agree with one that has it all. What is drawn for an item follows from its ``draw`` alone."""

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Images (b, rows, columns) in HU by name, for people who watch the training."""
        return {}

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        values = self.loss(batch)
        self.log_dict({f"train_{name}": value for name, value in values.items()})
        self._loss = values["loss"].detach()
        return values["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise CannotRunError before what is not finite reaches the weights, on all devices at the same step."""
        _, norm = self.gradients()
        self.log("gradient_norm", norm)
        loss = self.trainer.strategy.reduce(self._loss, reduce_op="mean")
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() >= 1.0:
            norm = torch.zeros(())  # in float16 a gradient may overflow: its step is left out, its scale lowered
        self.must_be_finite("loss", loss)
        self.must_be_finite("gradient", norm)
        if self._plateau is not None:  # here, because a checkpoint of this step is written before the step's end
            self._plateau.see(float(loss))

    def gradients(self) -> tuple[list[Tensor], Tensor]:
        """The gradients that there are, and the norm of all together."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        return gradients, torch.stack([gradient.norm() for gradient in gradients]).norm()

    def must_be_finite(self, name: str, value: Tensor) -> None:
        """Raise CannotRunError where ``value`` is not."""
        if not torch.isfinite(value):
            raise CannotRunError(
                f"The {name} became {float(value)} at step {self.global_step}: the last checkpoint before it is kept; "
                "lower the learning rate or clip the gradient, then run again into another folder."
            )

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        values = self.loss(batch)
        logged = {f"validation_{name}": value for name, value in values.items()}
        self.log_dict(logged, batch_size=len(batch["target"]), sync_dist=True)

    def configure_optimizers(self) -> dict:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        stage = self.stage
        optimizer = torch.optim.Adam(
            parameters, lr=stage.learning_rate, betas=stage.betas, weight_decay=stage.weight_decay or 0.0
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._plateau is not None:
            checkpoint["plateau"] = dict(self._plateau.state)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._plateau is not None:
            self._plateau.state = dict(checkpoint["plateau"])

    def rate(self, step: int) -> float:
        """Learning rate at ``step``, as a share of the stage's, with what the plateau has left of it."""
        return self.stage.rate(step) * (1.0 if self._plateau is None else self._plateau.state["share"])


class Training(ABC):
    """How a method is trained: its settings, which are its constructor's parameters, kept under their names.

    A configuration file names a subclass and its parameters; nothing else knows the method.
    """

    truth: str
    """What an estimate is held against: ``clean``, the noise-free image, or ``target``, the noisy one."""

    planes: int
    """Of the network's input, as :func:`CTHarmonizeLib.methods.conditioning.source_planes` makes them."""

    multiple: int
    """Crops have a whole multiple of so many pixels."""

    towards_truth: bool = False
    """The method makes the noise-free truth, so all its targets have to be that, and no other method's may be."""

    ratio: int | None = None
    """Of methods of volumes: target slices for each source slice."""

    rays: object | None = None
    """Of methods that read measurements: the :class:`~CTHarmonizeTraining.simulation.rays.Rays` of these. (Types of
    this class's entries are looked up in its subclasses' modules.)"""

    halved: tuple[str, ...] = ("",)
    """What the names of the convolutions begin with that a model folder holds in half precision: all but those that
    invert."""

    @abstractmethod
    def build(self) -> nn.Module:
        """A network to train."""

    @abstractmethod
    def stages(self) -> dict[str, StageConfig]:
        """The stages in their order, by name."""

    @abstractmethod
    def stage(self, name: str, network: nn.Module) -> TrainingStage:
        """The stage ``name`` for a ``network`` that the stages before it have trained."""

    @abstractmethod
    def card(self) -> dict:
        """A model card's entries that follow from the settings."""

    def next_step(self, run: Path) -> str:
        """The command to give when the training in ``run`` is finished."""
        return f"ctharmonize-train export {run} MODEL about.yaml"

    def as_dict(self) -> dict:
        """Plain values, as a configuration file has them."""
        kind = type(self)
        values = {name: plain(getattr(self, name)) for name in inspect.signature(kind).parameters}
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": values}


def item_generators(batch: dict[str, Tensor]) -> Iterator[torch.Generator]:
    """A generator for each item of a batch: what is drawn belongs to the item, whichever device has it."""
    for draw in batch["draw"].tolist():
        yield torch.Generator().manual_seed(draw)


def plain(value: object) -> object:
    """Dataclasses and tuples in ``value`` as the dictionaries and lists that YAML and JSON have."""
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value
