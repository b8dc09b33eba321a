"""Images of known MTF and noise for the tests: nested ellipses, convolved exactly in Fourier space."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import j1

from CTHarmonizeLib.ct.mtf import Mtf

AIR, SKIN, FAT, MUSCLE = -1000.0, 40.0, -100.0, 50.0


@lru_cache(maxsize=64)
def body(mtf: Mtf, size: int, spacing: float, skin: float = 1.5, fat: float = 12.0, shift=(0.3, -0.2)) -> np.ndarray:
    """One slice (size, size) in HU: skin, fat and muscle as ellipses in air, seen through ``mtf``, without noise.

    The ellipses' Fourier transform is known in closed form, so the blur is exact: it is sampled on a grid fine
    enough that the MTF has died away, and only the image is sampled on the pixel grid.
    """
    fine = 2
    step = spacing / fine
    u = np.fft.rfftfreq(size * fine, step)
    v = np.fft.fftfreq(size * fine, step)
    width = 0.40 * size * spacing
    height = 0.30 * size * spacing
    spectrum = np.zeros((size * fine, size * fine // 2 + 1))
    for inset, change in ((0.0, SKIN - AIR), (skin, FAT - SKIN), (skin + fat, MUSCLE - FAT)):
        a, b = width - inset, height - inset
        radius = np.hypot(a * u[None, :], b * v[:, None])
        radius[0, 0] = 1e-9
        spectrum += change * a * b * j1(2 * np.pi * radius) / radius
    spectrum *= mtf(10.0 * np.hypot(u[None, :], v[:, None]))
    centre = size * spacing / 2 + np.asarray(shift) * spacing
    phase = np.exp(-2j * np.pi * (centre[0] * v[:, None] + centre[1] * u[None, :]))
    image = np.fft.irfft2(spectrum * phase, s=(size * fine, size * fine)) / step**2
    result = AIR + image[::fine, ::fine]
    result.setflags(write=False)  # it is remembered
    return result


def noise(mtf: Mtf, shape: tuple[int, ...], spacing: float, sigma: float, seed: int = 0) -> np.ndarray:
    """Noise of deviation ``sigma`` whose power spectrum is f M(f)^2, as filtered backprojection makes it."""
    rows, columns = shape[-2:]
    frequency = 10.0 * np.hypot(np.fft.fftfreq(rows, spacing)[:, None], np.fft.rfftfreq(columns, spacing)[None, :])
    gain = np.sqrt(frequency) * mtf(frequency)
    white = np.random.default_rng(seed).standard_normal(shape)
    coloured = np.fft.irfft2(np.fft.rfft2(white) * gain, s=(rows, columns))
    return sigma * coloured / coloured.std()
