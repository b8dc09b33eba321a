"""What the denoising methods share: how much of the noise goes, and how it is made sure.

A denoiser works with a strength, and its result is mixed with the source:

    output = denoised + share * (source - denoised)

Neither is guessed. Noise of the source's own deviation and spectrum is made in uniform tissue and denoised, and
strength or share are solved for that leave the target's deviation: see :meth:`Denoiser.setting`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import ndimage

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.methods.formula import FormulaMethod

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from CTHarmonizeLib.models import Model

ANCHOR_MM = 2.0
"""Sigma of the low-pass that the output shares with the source, so that mean HU of thin layers (fat between skin and
muscle) move little. CT noise has little power at such low frequencies, and what comes back with it is solved for."""

RANGE_HU = (-1400.0, 3000.0)
"""HU that a denoiser sees. What a voxel has beyond (metal) is taken off before and added back after."""

_UNIFORM_PIXELS = 192  # side of the image of noise that the setting is solved on
_UNIFORM_HU = 40.0


def noise_power(source: Acquisition, shape: tuple[int, int]) -> np.ndarray:
    """Power spectrum of the source's noise on a grid of ``shape`` (rows, columns), as ``numpy.fft.fft2`` orders it.

    Filtered back-projection turns the white noise of the projections into a ramp times the squared MTF (Riederer,
    Pelc and Chesler 1978). Scaled as |fft2(noise)|^2 is: its sum over (rows columns)^2 is the variance, HU^2.
    """
    pitch = source.pixel_spacing / 10.0  # cm
    frequency = np.hypot(np.fft.fftfreq(shape[0], pitch)[:, None], np.fft.fftfreq(shape[1], pitch)[None, :])
    power = frequency * source.mtf()(frequency) ** 2
    return power * (source.noise**2 * power.size**2 / power.sum())


@lru_cache(maxsize=8)
def uniform_noise(source: Acquisition, side: int = _UNIFORM_PIXELS) -> np.ndarray:
    """Noise of the source's deviation and spectrum, (side, side) HU; always the same."""
    white = np.random.Generator(np.random.Philox(20160201)).standard_normal((side, side))
    shaped = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(noise_power(source, (side, side)))).real
    return shaped * (source.noise / shaped.std())


def share_left(noise: np.ndarray, left: np.ndarray, wanted: float) -> float:
    """Share of ``noise`` to mix with what a denoiser has ``left`` of it, so that the deviation is ``wanted``.

    All in HU. 0 where the denoiser leaves more than is wanted, 1 where there is less noise than is wanted.
    """
    a, b, c = np.var(noise), np.var(left), np.mean((noise - noise.mean()) * (left - left.mean()))
    if wanted**2 <= b:
        return 0.0
    if wanted**2 >= a:
        return 1.0
    # (a - 2c + b) s^2 + 2 (c - b) s + b - wanted^2 = 0 has one root in (0, 1): it is below 0 at 0 and above at 1
    square, half, rest = a - 2.0 * c + b, c - b, b - wanted**2
    return float((-half + np.sqrt(half**2 - square * rest)) / square)


class Denoiser(FormulaMethod):
    """Base of the methods that take away the noise beyond the target's, and change nothing else."""

    target_fields: ClassVar[frozenset[str]] = frozenset({"dose"})

    anchor_mm = ANCHOR_MM

    def __init__(self, model: Model | None, device: torch.device, precision: torch.dtype) -> None:
        super().__init__(model, device, precision)
        self._settings: dict[tuple[Acquisition, float], tuple[float, float]] = {}

    @abstractmethod
    def denoise(self, image: np.ndarray, source: Acquisition, strength: float) -> np.ndarray:
        """One slice (rows, columns), float64 HU, with the source's noise taken away; ``strength`` 1 is the usual."""

    def solve(self, left: Callable[[float], np.ndarray], noise: np.ndarray, wanted: float) -> tuple[float, float]:
        """Strength and share that leave a deviation of ``wanted`` HU of ``noise`` in uniform tissue.

        ``left``: from a strength to what it leaves of the noise, HU. Here the strength is the usual one and the
        share is solved for: what stays is the source's own grain, with the texture of its kernel.
        """
        return 1.0, share_left(noise, left(1.0), wanted)

    def filtered(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        import torch

        if source.noise <= target.noise:
            return slices
        strength, share = self.setting(source, target.noise)
        results = []
        for image in slices.cpu().double().numpy():
            seen = np.clip(image, *RANGE_HU)
            results.append(image + (1.0 - share) * (self.denoise(seen, source, strength) - seen))
        return torch.from_numpy(np.stack(results)).to(slices)

    def setting(self, source: Acquisition, wanted: float) -> tuple[float, float]:
        """Strength and share for a remaining noise of ``wanted`` HU, below the source's."""
        if (source, wanted) not in self._settings:
            noise = uniform_noise(source)
            sigma = ANCHOR_MM / source.pixel_spacing

            def left(strength: float) -> np.ndarray:
                rest = self.denoise(noise + _UNIFORM_HU, source, strength) - _UNIFORM_HU
                return rest + ndimage.gaussian_filter(noise - rest, sigma, mode="wrap")  # the anchor

            self._settings[source, wanted] = self.solve(left, noise, wanted)
        return self._settings[source, wanted]

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        return 4 * rows * columns * (24 * slices + 64)
