"""Training of networks that make images: what their stages share, and regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.conditioning import CONDITIONS, to_hu, to_unit
from CTHarmonizeLib.networks.config import NetworkConfig
from CTHarmonizeTraining.training.base import StageConfig, Training, TrainingStage

UNIT_HU = 250.0
"""HU are too small a unit for a loss."""


class ImageStage(TrainingStage):
    """A stage whose network's images are held against ``truth``: the noise-free image (``clean``, as simulation knows
    it) or the noisy one (``target``, as measured pairs have it). ``window``: HU that are [0, 1] to the network."""

    def __init__(self, network: nn.Module, stage: StageConfig, window: tuple[float, float], truth: str) -> None:
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


def truths(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a picture shows of the truth: images (b, rows, columns) in HU by title."""
    names = {"target": "target", "clean": "noise-free target"}
    return {title: shown(batch[name]) for name, title in names.items() if name in batch}


def shown(images: Tensor) -> Tensor:
    """What a picture shows of (b, c, rows, columns) or (b, c, slices, rows, columns): the first channel, of a volume
    the middle slice."""
    first = images[:, 0]
    return first if first.ndim == 3 else first[:, first.shape[1] // 2]


class RegressionStage(ImageStage):
    """``penalty`` between :meth:`image` and the truth: the absolute error (``l1``) or the squared one (``mse``)."""

    def __init__(
        self,
        network: nn.Module,
        stage: StageConfig,
        window: tuple[float, float],
        truth: str = "clean",
        penalty: Literal["l1", "mse"] = "l1",
    ) -> None:
        super().__init__(network, stage, window, truth)
        self.penalty = penalty

    def image(self, batch: dict[str, Tensor]) -> Tensor:
        """The network's image, (b, 1, h, w) in [0, 1]."""
        return self.network(*self.inputs(batch))

    def distance(self, error: Tensor) -> Tensor:
        """What an ``error`` in HU costs."""
        return penalized(error, self.penalty)

    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        error = self.error(self.image(batch), batch)
        return {"loss": self.distance(error), "mse_hu2": error.detach().square().mean()}

    def pictures(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        estimate = self.hu(self.image(batch))
        return {"source": shown(batch["planes"]), "estimate": shown(estimate), **truths(batch)}


def penalized(error: Tensor, penalty: str) -> Tensor:
    """Mean absolute or squared ``error`` (HU), in units of :data:`UNIT_HU`."""
    error = error / UNIT_HU
    return error.abs().mean() if penalty == "l1" else error.square().mean()


@dataclass(kw_only=True)
class NetworkTraining(Training):
    """Settings of a method with a network that makes images; a subclass names its ``method`` and adds stages.

    ``intensity_window`` in HU; ``anchor_mm`` as on the model's card; ``truth`` as :class:`ImageStage` has it.
    """

    method: ClassVar[str]

    network: NetworkConfig
    intensity_window: tuple[float, float] = (-1000.0, 500.0)
    anchor_mm: float | None = None
    truth: Literal["clean", "target"] = "target"

    def __post_init__(self) -> None:
        if self.network.conditions not in (0, CONDITIONS):
            given = self.network.conditions
            raise InputError(f"The network's conditions are {CONDITIONS}, or 0 for one mapping, not {given}.")

    @property
    def planes(self) -> int:
        return self.network.planes

    @property
    def multiple(self) -> int:
        return self.network.multiple

    def build(self) -> nn.Module:
        return self.laid_out(method_named(self.method).build(self.network.as_dict()))

    def laid_out(self, network: nn.Module) -> nn.Module:
        """``network`` with its weights in the order in which convolutions read them fastest."""
        return network.to(memory_format=torch.channels_last)

    def card(self) -> dict:
        return {
            "method": self.method,
            "network": self.network.as_dict(),
            "intensity_window": list(self.intensity_window),
            "anchor_mm": self.anchor_mm,
        }


@dataclass(kw_only=True)
class RegressionTraining(NetworkTraining):
    """One stage, ``regression``, that learns by ``penalty``."""

    regression: StageConfig
    penalty: Literal["l1", "mse"] = "l1"

    def stages(self) -> dict[str, StageConfig]:
        return {"regression": self.regression}

    def stage(self, name: str, network: nn.Module) -> TrainingStage:
        return RegressionStage(network, self.regression, self.intensity_window, self.truth, self.penalty)
