"""What is measured on a harmonized image when the truth is known. Images are (slices, rows, columns) in HU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.fft import rfft2
from scipy.optimize import least_squares

from CTHarmonizeLib.ct.mtf import Mtf, nyquist
from CTHarmonizeTraining.simulation.scan import body_mask

SCORE_WINDOW = (-1000.0, 1000.0)
"""HU to which images are clipped for PSNR and SSIM; their data range is its width."""

TISSUES = {
    "lung": (-950.0, -700.0),
    "fat": (-130.0, -60.0),
    "water-like": (0.0, 80.0),
    "bone": (300.0, 3000.0),
}
"""HU of the tissues in which bias is judged; ``air`` lies outside the body."""

_REGION_MM = 2.0  # sigma of the average that says which tissue it is
_EDGE_MM = 1.5  # tissue masks end this far from other tissue
_AIR_MM = 5.0  # air begins this far from the body
_BONE_HU = 200.0
_RESAMPLES = 2000
_HANN = 35.0 / 18.0  # mean fourth power over squared mean square of a Hann window, along one axis
_LARGEST_ERROR = 0.1  # of a modulation that counts as known


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % confidence interval (from the bootstrap over slices; equal to it for one slice)."""

    value: float
    low: float
    high: float


def estimate(
    statistic: Callable[..., np.ndarray], *per_slice: np.ndarray, resamples: int = _RESAMPLES, seed: int = 0
) -> Estimate:
    """``statistic`` of sums over slices, with a percentile bootstrap interval over slices.

    ``per_slice``: arrays (slices,), resampled together, so that differences are paired; ``statistic`` takes their
    sums (arrays of one shape) and returns that shape. Slices of one patient are alike: the interval says how the
    value varies over slices, not over patients.
    """
    columns = np.stack([np.asarray(column, np.float64) for column in per_slice])
    count = columns.shape[1]
    drawn = np.random.default_rng(seed).integers(0, count, (resamples, count))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(*columns.sum(1)))
        spread = statistic(*columns[:, drawn].sum(2))
    spread = spread[np.isfinite(spread)]
    if not len(spread):
        return Estimate(value, value, value)
    low, high = np.percentile(spread, (2.5, 97.5))
    return Estimate(value, float(low), float(high))


def per_slice_sum(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sum of ``values`` within ``mask`` for every slice, float64 (slices,)."""
    return np.array([value[inside].sum(dtype=np.float64) for value, inside in zip(values, mask, strict=True)])


def squared_error(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Sum of squared differences within ``mask`` for every slice, HU^2."""
    return per_slice_sum((image.astype(np.float32) - truth) ** 2, mask)


def rmse(squares: np.ndarray, pixels: np.ndarray) -> Estimate:
    """Root mean square error, from sums of squares and numbers of pixels for every slice."""
    return estimate(lambda s, n: np.sqrt(s / n), squares, pixels)


def rmse_difference(squares: np.ndarray, other: np.ndarray, pixels: np.ndarray) -> Estimate:
    """RMSE minus that of another image of the same slices; below zero: better than the other."""
    return estimate(lambda s, o, n: np.sqrt(s / n) - np.sqrt(o / n), squares, other, pixels)


def psnr(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Peak signal-to-noise ratio within ``mask``, dB; window and range as :data:`SCORE_WINDOW`."""
    low, high = SCORE_WINDOW
    squares = squared_error(np.clip(image, low, high), np.clip(truth, low, high), mask).sum()
    return float(10.0 * np.log10((high - low) ** 2 * mask.sum() / squares)) if squares else float("inf")


def ssim(image: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Mean structural similarity within ``mask``: Gaussian window of 1.5 pixels (Wang et al. 2004), slice by slice;
    window and range as :data:`SCORE_WINDOW`."""
    from skimage.metrics import structural_similarity

    low, high = SCORE_WINDOW
    total, pixels = 0.0, 0
    for one, other, inside in zip(image, truth, mask, strict=True):
        box = _box(inside, 11)  # the window's size: so large at least is a box at the image's edge
        if box is None:
            continue
        _, similarity = structural_similarity(
            np.clip(one[box], low, high).astype(np.float32),
            np.clip(other[box], low, high).astype(np.float32),
            data_range=high - low,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        total += float(similarity[inside[box]].sum(dtype=np.float64))
        pixels += int(inside.sum())
    return total / pixels if pixels else float("nan")


def _box(mask: np.ndarray, margin: int) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    return tuple(
        slice(max(0, where[0] - margin), min(size, where[-1] + margin + 1))
        for where, size in zip((rows, columns), mask.shape, strict=True)
    )


def coverage(mean: np.ndarray, deviation: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Estimate:
    """Share of the noisy target within one deviation of the mean; about 0.68 where the samples are the target's own
    distribution."""
    within = np.abs(target.astype(np.float32) - mean) <= deviation
    return estimate(lambda c, n: c / n, per_slice_sum(within, mask), mask.sum((1, 2)))


@dataclass(frozen=True)
class Regions:
    """Masks (slices, rows, columns) of one scan, from its noise-free image with the smooth kernel.

    ``body``; ``tissues`` by name, chosen by local averages, away from edges, with ``air``; ``bone_edges``: bone and
    what lies around it.
    """

    body: np.ndarray
    tissues: dict[str, np.ndarray]
    bone_edges: np.ndarray

    @classmethod
    def of(cls, clean: np.ndarray, spacing: float) -> Regions:
        """Regions of a noise-free image with pixels of ``spacing`` mm."""
        body = np.stack([body_mask(plane, spacing) for plane in clean])
        # Chosen by the truth's own voxels, a region would be one where its noise and finest detail happen to lie
        # within the limits, and every image that cannot know them would look biased (regression to the mean).
        average = np.stack([ndimage.gaussian_filter(plane, _REGION_MM / spacing) for plane in clean])
        tissues = {"air": _each(_eroded, (clean < -950.0) & ~_each(_dilated, body, _AIR_MM / spacing), 2.0)}
        for name, (low, high) in TISSUES.items():
            tissues[name] = _each(_eroded, (average > low) & (average < high) & body, _EDGE_MM / spacing)
        bone = _each(ndimage.binary_opening, (clean > _BONE_HU) & body)
        return cls(body, tissues, _each(_dilated, bone, 2.0 / spacing) & body)


def _each(function: Callable, stack: np.ndarray, *arguments: float) -> np.ndarray:
    return np.stack([function(plane, *arguments) for plane in stack])


def _dilated(mask: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask) <= pixels if mask.any() else mask


def _eroded(mask: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.distance_transform_edt(mask) > pixels if not mask.all() else mask


def tissue_mask(image: np.ndarray, spacing: float) -> np.ndarray:
    """Lung and what is denser, in a crop (rows, columns) with pixels of ``spacing`` mm that shows no whole outline:
    where the local average lies above the lung's lower limit."""
    return ndimage.gaussian_filter(image, _REGION_MM / spacing) > TISSUES["lung"][0]


def bias(image: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> Estimate:
    """Mean difference from the noise-free target within ``mask``, HU; NaN where the mask is empty."""
    difference = image.astype(np.float32) - clean
    return estimate(lambda s, n: s / n, per_slice_sum(difference, mask), mask.sum((1, 2)))


def edge_gain(image: np.ndarray, clean: np.ndarray, mask: np.ndarray) -> Estimate:
    """How steep the image's edges are within ``mask``, relative to the noise-free target's.

    The least-squares slope of its gradient on the target's, <g_image . g_target> / <|g_target|^2>: 1 for the
    target's own edges, above for sharper ones, below for duller ones. Noise does not count, unlike in a plain
    gradient energy.
    """
    products, squares = [], []
    for one, other, inside in zip(image, clean, mask, strict=True):
        of_image, of_target = np.gradient(one.astype(np.float32)), np.gradient(other.astype(np.float32))
        products.append(sum((a * b)[inside].sum(dtype=np.float64) for a, b in zip(of_image, of_target, strict=True)))
        squares.append(sum((b * b)[inside].sum(dtype=np.float64) for b in of_target))
    return estimate(lambda p, s: p / s, np.array(products), np.array(squares))


@dataclass(frozen=True)
class SystemMtf:
    """Total MTF of an image against known truth: ``frequency`` (lp/cm), ``modulation`` and its standard ``error``,
    in rings of frequency."""

    frequency: np.ndarray
    modulation: np.ndarray
    error: np.ndarray

    def f50(self) -> float | None:
        """Frequency of 50 % modulation, lp/cm, of the family of :class:`Mtf` that fits best.

        None where that lies beyond what the truth shows (its slices may have no such detail) or the rings show.
        """
        known = self.frequency[self.error < _LARGEST_ERROR]
        if len(known) < 4:
            return None

        def residuals(parameters: np.ndarray) -> np.ndarray:
            log_f50, order, overshoot = parameters
            fitted = Mtf(float(np.exp(log_f50)), float(order), float(overshoot))(self.frequency)
            # weak beliefs, where the rings say nothing: a Gaussian's steepness, no overshoot
            return np.concatenate(
                [(fitted - self.modulation) / np.hypot(self.error, 0.01), parameters[1:] - (2.0, 0.0)]
            )

        found = [
            least_squares(
                residuals,
                [np.log(start), 2.0, 0.1],
                bounds=([np.log(0.3), 1.1, 0.0], [np.log(30.0), 12.0, 3.0]),
                loss="soft_l1",
            )
            for start in (2.5, 5.0)
        ]
        f50 = float(np.exp(min(found, key=lambda fit: fit.cost).x[0]))
        return f50 if f50 <= known[-1] else None


def system_mtf(image: np.ndarray, clean: np.ndarray, mtf: Mtf, spacing: float) -> SystemMtf:
    """Total MTF with which ``image`` shows the object, by least squares against the truth.

    ``clean`` is the noise-free image of the same slices through the known ``mtf``, so its spectrum is that of the
    object times ``mtf``. In rings of frequency, <Re image conj(clean)> / <|clean|^2> is the linear response from
    the one to the other; times ``mtf`` it is the image's own MTF. Noise, independent of the object, cancels. It is
    an average over what is in the slices, in which contrasts count by their energy: mostly edges of air and bone.
    """
    rows, columns = clean.shape[1:]
    window = np.outer(*(np.hanning(size + 2)[1:-1] for size in (rows, columns)))
    pitch = spacing / 10.0
    radius = np.hypot(np.fft.fftfreq(rows, pitch)[:, None], np.fft.rfftfreq(columns, pitch)[None])
    width = max(0.2, 1.0 / (min(rows, columns) * pitch))
    count = int(nyquist(spacing) / width)
    rings = np.minimum((radius / width).astype(int), count).ravel()  # the last: what lies beyond

    def ring_sum(values: np.ndarray) -> np.ndarray:
        return np.bincount(rings, values.ravel(), minlength=count + 1)[:count]

    product, power, seen_power = np.zeros((3, count))
    for one, other in zip(image, clean, strict=True):
        seen, true = (rfft2((plane - np.average(plane, weights=window)) * window) for plane in (one, other))
        product += ring_sum((seen * true.conj()).real)
        power += ring_sum(np.abs(true) ** 2)
        seen_power += ring_sum(np.abs(seen) ** 2)
    number = ring_sum(np.ones_like(radius))
    frequency = ring_sum(radius) / np.maximum(number, 1)
    power = np.maximum(power, 1e-9)
    response = product / power
    # Half of the residual's power is in phase with the truth; the window makes neighbours in a ring alike.
    rest = np.maximum(seen_power - response**2 * power, 0.0) / np.maximum(number * len(image), 1)
    known = mtf(frequency)
    return SystemMtf(frequency, response * known, np.sqrt(0.5 * _HANN**2 * rest / power) * known + (number == 0))
