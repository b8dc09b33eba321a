"""What an image itself tells: its noise in uniform water-like tissue here, its MTF in :mod:`edge`."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from CTHarmonizeLib.ct.edge import MtfMeasurement, measure_mtf

__all__ = [
    "MtfMeasurement",
    "NoiseMeasurement",
    "NoiseSpectrum",
    "measure_mtf",
    "measure_noise",
    "water_like",
]

WATER_LIKE_HU = (-30.0, 100.0)
"""Mean HU of tissue that counts as water-like: muscle, blood, organs with little contrast agent."""

_PATCH_MM = 11.0
_SMOOTHING_MM = 2.5
_MINIMUM_PATCHES = 20
_MAXIMUM_SLICES = 24
_LOWEST_PEAK = 0.5  # lp/cm
_LOWEST_SPREAD = 1.6
"""Patches that are called the lowest reach to this multiple of the 10th percentile of all deviations."""


@dataclass(frozen=True)
class NoiseSpectrum:
    """Radially averaged noise power spectrum: ``power`` (HU^2 mm^2) at ``frequency`` (lp/cm), up to Nyquist's; its
    integral over the plane is the variance ``sigma``^2 (HU^2). ``mean_frequency`` as in :class:`NoiseMeasurement`, from
    the spectrum before what the patches' planes took is given back."""

    frequency: np.ndarray
    power: np.ndarray
    sigma: float
    mean_frequency: float

    @property
    def peak_frequency(self) -> float:
        """Where the spectrum is highest, lp/cm; below half a line pair the patches are too small to tell."""
        known = self.frequency >= _LOWEST_PEAK
        return float(self.frequency[known][self.power[known].argmax()])


@dataclass(frozen=True)
class NoiseMeasurement:
    """``sigma``: standard deviation in HU; ``mean_frequency`` (lp/cm) of the radial noise power spectrum, None where
    too few patches were found; ``pixels``: how many pixels of water-like tissue were looked at."""

    sigma: float
    mean_frequency: float | None
    pixels: int
    spectrum: NoiseSpectrum | None = field(default=None, repr=False, compare=False)


def measure_noise(hu: np.ndarray, pixel_spacing: float) -> NoiseMeasurement | None:
    """Noise of ``hu`` ((slices, rows, columns) or one slice, HU) with square pixels of ``pixel_spacing`` mm.

    In small patches whose low-passed values all are water-like, a plane is subtracted and the deviation taken.
    Anatomy can only raise a patch's deviation, so the most frequent value (half-sample mode) of the lowest ones
    counts, not the mean.
    The patches near it give the radially averaged noise power spectrum and its mean, sum f NPS(f) / sum NPS(f)
    (ICRU 87). Returns None where there is too little such tissue.
    """
    slices = hu[None] if hu.ndim == 2 else hu
    side = max(9, int(round(_PATCH_MM / pixel_spacing)))
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), _MAXIMUM_SLICES)).round().astype(int))
    patches, pixels = [], 0
    for index in chosen:
        found, count = _uniform_patches(slices[index].astype(np.float32), pixel_spacing, side)
        patches.append(found)
        pixels += count
    stack = np.concatenate(patches)
    if len(stack) < _MINIMUM_PATCHES:
        return None
    stack, used_degrees = _detrended(stack)
    deviation = np.sqrt((stack**2).sum((1, 2)) / (side * side - used_degrees))
    logarithm = np.log(np.maximum(deviation, 1e-3))
    # where there is little noise, patches of alike anatomy may be the most frequent: only the lowest are looked at
    lowest = logarithm[logarithm <= np.percentile(logarithm, 10) + np.log(_LOWEST_SPREAD)]
    sigma = float(np.exp(_half_sample_mode(lowest)))
    near = np.abs(logarithm - np.log(sigma)) < 0.25
    # chi-distributed deviations of few effective degrees of freedom have their mode below the root mean square:
    # the root mean square of the patches around the mode takes most of that back
    if near.any():
        sigma = float(np.sqrt(np.mean(deviation[near] ** 2)))
    spectrum = _spectrum(stack[near], sigma, pixel_spacing) if np.count_nonzero(near) >= _MINIMUM_PATCHES else None
    return NoiseMeasurement(sigma, None if spectrum is None else spectrum.mean_frequency, pixels, spectrum)


def water_like(image: np.ndarray, pixel_spacing: float) -> np.ndarray:
    """Where the low-passed slice ``image`` (rows, columns; HU) is water-like (mask)."""
    low_pass = ndimage.gaussian_filter(image, _SMOOTHING_MM / pixel_spacing)
    return (low_pass > WATER_LIKE_HU[0]) & (low_pass < WATER_LIKE_HU[1])


def _uniform_patches(image: np.ndarray, pixel_spacing: float, side: int) -> tuple[np.ndarray, int]:
    """(patches, side, side) that overlap by half and are water-like throughout, and the number of such pixels."""
    tissue = water_like(image, pixel_spacing)
    pixels = int(np.count_nonzero(tissue))
    if min(image.shape) < side:
        return np.empty((0, side, side)), pixels
    step = max(1, side // 2)
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))[::step, ::step]
    inside = np.lib.stride_tricks.sliding_window_view(tissue, (side, side))[::step, ::step].all((2, 3))
    return windows[inside].astype(np.float64), pixels


def _detrended(patches: np.ndarray) -> tuple[np.ndarray, int]:
    """Patches less their best plane, and the number of degrees of freedom it took."""
    side = patches.shape[-1]
    axis = np.arange(side) - (side - 1) / 2
    power = side * (axis**2).sum()
    patches = patches - patches.mean((1, 2), keepdims=True)
    slope_rows = np.einsum("pij,i->p", patches, axis) / power
    slope_columns = np.einsum("pij,j->p", patches, axis) / power
    plane = slope_rows[:, None, None] * axis[:, None] + slope_columns[:, None, None] * axis[None, :]
    return patches - plane, 3


def _half_sample_mode(values: np.ndarray) -> float:
    """Most frequent value: the densest half of the sample, again and again (Robertson and Cryer 1974)."""
    values = np.sort(values)
    while len(values) > 3:
        half = (len(values) + 1) // 2
        widths = values[half - 1 :] - values[: len(values) - half + 1]
        start = int(np.argmin(widths))
        values = values[start : start + half]
    return float(values.mean())


def _spectrum(patches: np.ndarray, sigma: float, pixel_spacing: float) -> NoiseSpectrum | None:
    """Radially averaged noise power spectrum of detrended patches, scaled to ``sigma``; None without noise."""
    side = patches.shape[-1]
    window = np.hanning(side + 2)[1:-1]
    padded = 4 * side
    spectrum = np.zeros((padded, padded // 2 + 1))
    for start in range(0, len(patches), 256):
        part = patches[start : start + 256] * (window[:, None] * window)
        spectrum += (np.abs(np.fft.rfft2(part, s=(padded, padded))) ** 2).sum(0)
    across = np.fft.rfftfreq(padded, pixel_spacing / 10.0)
    down = np.fft.fftfreq(padded, pixel_spacing / 10.0)
    radius = np.hypot(down[:, None], across[None, :])
    bins = np.arange(0.0, 5.0 / pixel_spacing, 0.1)
    which = np.digitize(radius.ravel(), bins) - 1
    keep = which < len(bins) - 1
    number = np.bincount(which[keep], minlength=len(bins) - 1)
    valid = number > 0

    def radial(plane: np.ndarray) -> np.ndarray:
        return np.bincount(which[keep], plane.ravel()[keep], minlength=len(bins) - 1)[valid] / number[valid]

    frequency, power = (bins[:-1] + 0.05)[valid], radial(spectrum)
    if not power.sum() > 0:
        return None
    mean_frequency = float((frequency * power).sum() / power.sum())
    # white noise without its patches' planes keeps this share of its power at each frequency, and of its variance
    axis = np.arange(side) - (side - 1) / 2
    flat, slope = np.full(side, side**-0.5), axis / np.sqrt((axis**2).sum())
    planes = (
        np.outer(rows, columns) * window[:, None] * window
        for rows, columns in ((flat, flat), (slope, flat), (flat, slope))
    )
    energy = (window**2).sum() ** 2
    taken = sum(np.abs(np.fft.rfft2(plane, s=(padded, padded))) ** 2 for plane in planes) / energy
    share = radial(1.0 - taken)
    # the variance is the sum over the whole plane, of which half is here, and its first and last column all
    sums = [2.0 * plane.sum() - plane[:, 0].sum() - plane[:, -1].sum() for plane in (spectrum, 1.0 - taken)]
    cell = (across[1] / 10.0) ** 2  # (cycles/mm)^2
    power *= sigma**2 / (sums[0] * cell) * sums[1] / padded**2
    return NoiseSpectrum(frequency, power / share, sigma, mean_frequency)
