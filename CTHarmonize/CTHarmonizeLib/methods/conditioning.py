"""What a network is told and shown: the acquisition vector, the input planes, and HU as numbers around [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.methods.mtf_filter import apply_filter

if TYPE_CHECKING:
    from torch import Tensor

CONDITIONS = 11
"""Length of :func:`acquisition_vector`."""

CLIP_MARGIN = 0.1
"""The network's input is clipped this share of the window's width beyond the window: noise around an edge of the
window stays whole, padding and metal do not reach the network."""


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


MTF_SAMPLES = 64
"""Of an :func:`mtf_map`'s side, as in Zarei et al. (2024)."""


def mtf_map(acquisition: Acquisition) -> np.ndarray:
    """Modulation (MTF_SAMPLES, MTF_SAMPLES), float32, that an image of ``acquisition`` has at the middles of equal
    cells between minus and plus the Nyquist frequency: in cycles per pixel, so that it is the same for images of any
    size. Rows and columns as the image's."""
    per_pixel = (np.arange(MTF_SAMPLES) + 0.5) / MTF_SAMPLES - 0.5
    frequency = np.hypot(per_pixel[:, None], per_pixel) * 10.0 / acquisition.pixel_spacing  # lp/cm
    return acquisition.mtf()(frequency).astype(np.float32)


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
