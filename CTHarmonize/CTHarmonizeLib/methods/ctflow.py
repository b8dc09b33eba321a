"""CTFlow as a method: one conditional flow for every source and target acquisition (Wei et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.methods.mtf_filter import apply_filter

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from CTHarmonizeLib.models import Model
    from CTHarmonizeLib.networks.ctflow import Encoding

CONDITIONS = 11
"""Length of :func:`acquisition_vector`."""

CLIP_MARGIN = 0.1
"""The network's input is clipped this share of the window's width beyond the window: noise around an edge of the
window stays whole, padding and metal do not reach the network."""

LARGEST_CORRECTION = 1000.0
"""A sample that lies further than this from the estimate, in HU, is implausible."""


def acquisition_vector(source: Acquisition, target: Acquisition) -> list[float]:
    """What the network is told of source and target: numbers of order one.

    Frequencies in cycles per pixel, as its convolutions see them; noise, spacing and thickness
    on a logarithmic scale.
    """

    def of(acquisition: Acquisition) -> list[float]:
        per_pixel = acquisition.pixel_spacing / 10.0
        return [
            math.log2(max(acquisition.f50, 0.1) * per_pixel / 0.25),
            math.log2(max(acquisition.f10, 0.1) * per_pixel / 0.4),
            5.0 * (acquisition.mtf_peak - 1.0),
            math.log(max(acquisition.noise, 1.0) / 20.0),
            math.log2(acquisition.slice_thickness / 2.0),
        ]

    return [*of(source), *of(target), 2.0 * math.log2(source.pixel_spacing / 0.7)]


def acquisitions_of(vector: Sequence[float]) -> tuple[Acquisition, Acquisition]:
    """Source and target of which :func:`acquisition_vector` made ``vector``: its inverse."""
    *both, pixel = map(float, vector)
    spacing = 0.7 * 2.0 ** (0.5 * pixel)

    def of(f50: float, f10: float, peak: float, noise: float, thickness: float) -> Acquisition:
        per_pixel = spacing / 10.0
        return Acquisition(
            f50=0.25 * 2.0**f50 / per_pixel,
            f10=0.4 * 2.0**f10 / per_pixel,
            mtf_peak=1.0 + peak / 5.0,
            noise=20.0 * math.exp(noise),
            pixel_spacing=spacing,
            slice_thickness=2.0 * 2.0**thickness,
        )

    return of(*both[:5]), of(*both[5:])


class CTFlowMethod(Method):
    """Samples of the target image given the source, from the model's network and acquisition numbers."""

    name: ClassVar[str] = "ctflow"
    title: ClassVar[str] = "CTFlow"
    summary: ClassVar[str] = (
        "Normalizing flow: changes kernel and dose, draws plausible images, and shows their mean and deviation."
    )
    stochastic: ClassVar[bool] = True
    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel", "dose"})

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(model, device, precision)
        from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig

        try:
            config = CTFlowConfig.from_dict(model.card["network"])
            network = CTFlow(config)
            network.load_state_dict(model.weights())
        except (ValueError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"The model in {model.folder} does not fit the CTFlow network: {reason}") from error
        self.multiple = 2**config.levels
        self.anchor_mm = model.card.get("anchor_mm")
        self.network = network.eval().requires_grad_(False).to(device).use_precision(precision)

    def prepare(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        """The source and, where the network reads it, the source filtered to the target's MTF."""
        return source_planes(slices, source, target, self.network.config.planes)

    def encode(self, planes: Tensor, source: Acquisition, target: Acquisition) -> Encoding:
        """States of all layers for a tile."""
        acquisition = None
        if self.network.config.conditions:
            vector = planes.new_tensor(acquisition_vector(source, target))
            acquisition = vector.expand(len(planes), -1)
        return self.network.encode(to_unit(planes, self.window), acquisition)

    def estimate(self, state: Encoding) -> Tensor:
        """The encoder's estimate, in HU."""
        return to_hu(self.network.to_image(state.estimate), self.window)[:, 0]

    def latent_shapes(self, rows: int, columns: int) -> list[tuple[int, int, int]]:
        return self.network.latent_shapes(rows, columns)

    def sample(self, state: Encoding, latents: list[Tensor]) -> Tensor:
        import torch

        drawn = [self.network.inverse(one, state) for one in zip(*latents, strict=True)]
        return to_hu(torch.stack(drawn), self.window)[:, :, 0]

    def implausible(self, samples: Tensor, state: Encoding) -> Tensor:
        far = (samples - self.estimate(state)).abs() <= LARGEST_CORRECTION
        return super().implausible(samples, state) | ~far

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        config, size = self.network.config, 2 if self.precision.itemsize == 2 else 4
        encoder = (config.encoder_channels + 4 * config.encoder_growth) * 4 / config.encoder_stride**2
        shares = sum(2 * config.steps * config.hidden / 4**level for level in range(1, config.levels + 1))
        return int(rows * columns * slices * (size * (encoder + 2 * shares) + 4 * (40 + 24 * samples)))


def source_planes(slices: Tensor, source: Acquisition, target: Acquisition, planes: int) -> Tensor:
    """Input planes (b, planes, rows, columns) in HU from whole slices (b, rows, columns).

    Plane 1, where there is one, is the source seen through the ratio of the target's to the source's MTF: the
    linear part of the change, which the network corrects.
    """
    import torch

    if planes == 1:
        return slices[:, None]
    return torch.stack([slices, apply_filter(slices, source, target)], 1)


def to_unit(hu: Tensor, window: tuple[float, float]) -> Tensor:
    """HU to the network's [0, 1], clipped :data:`CLIP_MARGIN` beyond the window."""
    low, high = window
    return ((hu - low) / (high - low)).clamp(-CLIP_MARGIN, 1.0 + CLIP_MARGIN)


def to_hu(unit: Tensor, window: tuple[float, float]) -> Tensor:
    """The network's [0, 1] to HU."""
    low, high = window
    return unit.float() * (high - low) + low
