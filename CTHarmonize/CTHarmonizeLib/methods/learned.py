"""What methods with a trained network share: the model folder becomes a network, HU its input, its output HU."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.methods.conditioning import acquisition_vector, source_planes, to_hu, to_unit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from CTHarmonizeLib.models import Model

LARGEST_CORRECTION = 1000.0
"""A sample that lies further than this from the estimate, in HU, is implausible."""


class LearnedMethod(Method):
    """A method whose model's network reads :meth:`inputs`.

    The network has ``config``, a :class:`~CTHarmonizeLib.networks.config.NetworkConfig`, and ``use_precision(dtype)``.
    """

    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel", "dose"})

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(model, device, precision)
        try:
            network = self.build(model.card["network"])
            network.load_state_dict(model.weights())
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The model in {model.folder} does not fit the {self.title} network: {reason}") from error
        self.multiple = network.config.multiple
        self.anchor_mm = model.card.get("anchor_mm")
        self.network = network.eval().requires_grad_(False).to(device).use_precision(precision)

    @staticmethod
    @abstractmethod
    def build(entries: dict) -> nn.Module:
        """The network that a card's ``network`` describes. Raises ValueError or TypeError where it is none."""

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """The source and, where the network reads it, the source filtered to the target's MTF."""
        return source_planes(slices, source, target, self.network.config.planes)

    def inputs(self, planes: Tensor, source: Acquisition, target: Acquisition) -> tuple[Tensor, Tensor | None]:
        """Planes in the network's [0, 1], and the conditions (b, conditions) or None."""
        acquisition = None
        if self.network.config.conditions:
            acquisition = planes.new_tensor(acquisition_vector(source, target)).expand(len(planes), -1)
        return to_unit(planes, self.window), acquisition


class FlowMethod(LearnedMethod):
    """A conditional flow: ``network.encode(planes, acquisition)`` is an encoding of what no sample changes, and
    ``network.inverse(latents, encoding)`` an image (b, 1, h, w) in [0, 1], with latents as ``network.latent_shapes``.
    """

    stochastic: ClassVar[bool] = True

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Any:
        """States of all layers for a tile."""
        return self.network.encode(*self.inputs(planes, source, target))

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        return self.network.latent_shapes(rows, columns)

    def sample(self, state: Any, latents: list[Tensor]) -> Tensor:
        import torch

        drawn = [self.network.inverse(one, state) for one in zip(*latents, strict=True)]
        return to_hu(torch.stack(drawn), self.window)[:, :, 0]

    def implausible(self, samples: Tensor, state: Any) -> Tensor:
        far = (samples - self.estimate(state)).abs() <= LARGEST_CORRECTION
        return super().implausible(samples, state) | ~far


class ImageMethod(LearnedMethod):
    """A network that makes one image of each slice: ``network(planes, acquisition)`` is (b, 1, h, w) in [0, 1].

    Where its pixels depend on the whole image (``whole_slices``) it sees whole slices, never tiles.
    """

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        import torch

        planes = super().prepare(slices, source, target)
        if not self.network.whole_slices:
            return planes
        return torch.stack([slices, self._image(planes, source, target)], 1)

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        return planes[:, 1] if self.network.whole_slices else self._image(planes, source, target)

    def estimate(self, state: Tensor) -> Tensor:
        return state

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        return slices * rows * columns * (self.precision.itemsize * self.network.widest + 64)

    def _image(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """(b, h, w) in HU."""
        return to_hu(self.network(*self.inputs(planes, source, target)), self.window)[:, 0]


class VolumeMethod(LearnedMethod):
    """A network that makes thin slices of thick ones: ``network(planes, acquisition)`` is (1, 1, d * ratio, h, w) in
    [0, 1] of planes (1, p, d, h, w). Its ``config`` says how far it sees: ``context`` slices, ``halo`` pixels."""

    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel", "dose", "thickness"})

    usual_ratio: ClassVar[int]
    """Of a card whose network does not say it."""

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(model, device, precision)
        # what the network depends on is known, so nothing need be measured
        self.context, self.halo = self.network.config.context, self.network.config.halo

    @classmethod
    def slices_made(cls, card: dict | None) -> int:
        ratio = cls.usual_ratio if card is None else card["network"].get("ratio", cls.usual_ratio)
        return ratio if isinstance(ratio, int) and ratio > 0 else 1  # the network refuses others when it is built

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        planes, acquisition = self.inputs(planes.transpose(0, 1)[None], source, target)
        return to_hu(self.network(planes, acquisition), self.window)[0, 0]

    def estimate(self, state: Tensor) -> Tensor:
        return state

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        seen = slices + 2 * self.context
        size = self.precision.itemsize + 1  # the last layer's input in float32 too
        return self.factor * seen * rows * columns * (size * self.network.widest + 64)
