"""Kernel conversion by the MTF ratio: the linear method that every network must beat. No training.

Zarei et al. 2024 (Eq. 2) and Ohkubo et al. 2011: an image with MTF M_s becomes one with MTF M_t when its spectrum
is multiplied by M_t / M_s. Noise goes through the same filter, so the dose cannot be chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.methods.formula import FormulaMethod

if TYPE_CHECKING:
    from torch import Tensor

REGULARISATION = 0.01
"""Source power |M_s|^2 at which half of a gain above 1 is given up: the gain stays below
1 + peak / (2 sqrt(REGULARISATION)), 6 without overshoot."""

_FLOOR = 1e-4  # keeps 0 / 0 at 1


def wiener_ratio(
    source: Mtf, target: Mtf, shape: tuple[int, int], spacing: float, regularisation: float = REGULARISATION
) -> np.ndarray:
    """Gain that turns the MTF ``source`` into ``target``, for the half spectrum of ``numpy.fft.rfft2``.

    ``shape`` (rows, columns) of the image, ``spacing`` in mm; returns float64 (rows, columns // 2 + 1).

    With r = M_t / M_s the gain is r where it suppresses, and 1 + (r - 1) M_s^2 / (M_s^2 + eps) where it amplifies:
    the Wiener weight returns the gain to 1 where the source has nothing left to amplify but noise. It is exactly 1
    at zero frequency, so mean HU stay, and 1 everywhere for equal MTFs.
    """
    pitch = spacing / 10.0  # cm
    frequency = np.hypot(np.fft.fftfreq(shape[0], pitch)[:, None], np.fft.rfftfreq(shape[1], pitch)[None, :])
    have, want = source(frequency), target(frequency)
    ratio = (want + _FLOOR) / (have + _FLOOR)
    weight = have**2 / (have**2 + regularisation)
    return np.where(ratio > 1.0, 1.0 + (ratio - 1.0) * weight, ratio)


def apply_filter(slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
    """Whole ``slices`` (b, rows, columns), float32 HU, taken from the source's MTF to the target's."""
    return filter_slices(
        slices, lambda shape: wiener_ratio(source.mtf(), target.mtf(), shape, source.pixel_spacing)
    )


def filter_slices(slices: Tensor, gain: Callable[[tuple[int, int]], np.ndarray]) -> Tensor:
    """Whole ``slices`` (b, rows, columns), float32 HU, with their spectra multiplied by a gain.

    ``gain``: from (rows, columns) to the gain for the half spectrum of ``numpy.fft.rfft2`` of an image of that shape.
    Borders are reflected before the Fourier transform, so that opposite sides do not mix.
    """
    import torch

    from CTHarmonizeLib.networks.fourier import reflected

    padded, inner = reflected(slices)
    shape = tuple(padded.shape[-2:])
    factor = torch.from_numpy(gain(shape).astype(np.float32)).to(slices.device)
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded) * factor, s=shape)
    return filtered[inner]


class MtfFilter(FormulaMethod):
    """The MTF-ratio filter as a method."""

    name: ClassVar[str] = "mtf-filter"
    title: ClassVar[str] = "MTF filter (classical)"
    summary: ClassVar[str] = "Changes the kernel by a Fourier filter; noise changes with it. Needs no model."
    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel"})

    def filtered(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        return apply_filter(slices, source, target)

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        return 4 * slices * rows * columns * 24
