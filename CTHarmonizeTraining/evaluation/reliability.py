"""Is a distribution of samples true? Proper score, coverage of intervals, spread against error. Pure functions.

A *crop* is what stays of one validation image: arrays over its pixels. Crops, not pixels, are independent, so intervals
of confidence come from the bootstrap over crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from CTHarmonizeTraining.evaluation.measures import Estimate, estimate

LEVELS = (0.5, 0.8, 0.95)
"""Central intervals that a card reports and that the factor is chosen by."""

CURVE = (*(step / 20 for step in range(1, 20)), 0.99)
"""Levels of the reliability curve."""

FACTORS = np.exp(0.005 * np.arange(-460, 461))
"""Factors that are tried, 0.1 to 10 in steps of 0.5 %, and exactly 1."""

_SMALLEST_HU = 1e-6
_RESAMPLES = 1000
_AT_ONCE = 50


@dataclass(frozen=True)
class Crop:
    """One crop: for each pixel (n,) how many of ``samples`` independent samples lie below the truth (``rank``), the
    truth minus the ensemble's mean (``error``, HU) and the ensemble's ``deviation`` (HU). ``store`` and
    ``source_noise`` (HU) say where it comes from."""

    store: str
    source_noise: float
    samples: int
    rank: np.ndarray
    error: np.ndarray
    deviation: np.ndarray


def crps(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Continuous ranked probability score of independent ``samples`` (n, ...) against ``truth`` (...), in its unit.

    mean|x_i - y| - sum|x_i - x_j| / (2 n (n - 1)): its expectation does not depend on n (the "fair" form, Ferro 2014),
    and is lowest for samples of the truth's own distribution. Needs two samples.
    """
    count = len(samples)
    ordered = np.sort(samples.astype(np.float64), axis=0)
    weights = 2.0 * np.arange(count) - (count - 1)  # the sum over all i, j of |x_i - x_j| is twice this on sorted x
    spread = np.tensordot(weights, ordered, 1) / (count * (count - 1))
    return np.abs(ordered - truth).mean(0) - spread


def rank_hits(crop: Crop, levels: Sequence[float]) -> np.ndarray:
    """Pixels whose truth lies in the samples' central interval of each level (levels,); NaN where n is too small.

    Between the j-th lowest and the j-th highest of n samples lies one more draw of their distribution with the
    probability (n + 1 - 2 j) / (n + 1), exactly. Levels between two such are interpolated, which is exact as well.
    """
    count = crop.samples
    depth = np.minimum(crop.rank, count - crop.rank)  # j-th intervals hold the truth from j = 0, which is all, to this
    within = np.bincount(depth, minlength=count // 2 + 1)[::-1].cumsum()[:-1]  # the narrowest first
    nominal = (count + 1 - 2.0 * np.arange(count // 2, 0, -1)) / (count + 1)
    return np.interp(levels, [0.0, *nominal], [0.0, *within], right=np.nan)


def deviation_hits(crop: Crop, levels: Sequence[float], factors: np.ndarray) -> np.ndarray:
    """Pixels whose truth lies within z * factor * deviation of the mean, (levels, factors); z is the level's normal
    quantile."""
    ratio = np.sort(np.abs(crop.error) / np.maximum(crop.deviation, _SMALLEST_HU))
    limits = norm.ppf(0.5 + 0.5 * np.asarray(levels))[:, None] * factors
    return np.searchsorted(ratio, limits, side="right")


def deviation_factor(crops: Sequence[Crop], seed: int = 0) -> Estimate:
    """The factor with which mean +- z * factor * deviation covers 50, 80 and 95 % best: least sum of squared
    differences from :data:`LEVELS`; with a 95 % bootstrap interval over crops.

    Not the root mean square of error / deviation: a few pixels with a tiny deviation or at a missed edge would decide
    that, and the factor would be wrong for all others.
    """
    hits = np.stack([deviation_hits(crop, LEVELS, FACTORS) for crop in crops]).astype(float)
    pixels = np.array([len(crop.error) for crop in crops], float)

    def best(weights: np.ndarray) -> np.ndarray:
        share = np.tensordot(weights, hits, 1) / (weights @ pixels)[:, None, None]
        return FACTORS[((share - np.array(LEVELS)[:, None]) ** 2).sum(1).argmin(1)]

    count = len(crops)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1.0 / count), _RESAMPLES)
    drawn = drawn[drawn @ pixels > 0]
    spread = np.concatenate([best(part) for part in np.array_split(drawn, max(1, len(drawn) // _AT_ONCE))])
    low, high = np.percentile(spread, (2.5, 97.5))
    return Estimate(float(best(np.ones((1, count)))[0]), float(low), float(high))


def coverage(crops: Sequence[Crop], levels: Sequence[float], factor: float) -> list[dict]:
    """For each level ``nominal`` and, as :class:`Estimate`, what is covered by the ``samples``' own quantiles (None
    where they are too few), by the deviation ``before`` and ``after`` it is multiplied by ``factor``."""
    pixels = np.array([len(crop.error) for crop in crops], float)
    by_rank = np.stack([rank_hits(crop, levels) for crop in crops])
    by_deviation = np.stack([deviation_hits(crop, levels, np.array([1.0, factor])) for crop in crops])

    def share(hits: np.ndarray) -> Estimate:
        return estimate(lambda h, n: h / n, hits, pixels)

    return [
        {
            "nominal": float(level),
            "samples": None if np.isnan(by_rank[:, number]).any() else share(by_rank[:, number]),
            "before": share(by_deviation[:, number, 0]),
            "after": share(by_deviation[:, number, 1]),
        }
        for number, level in enumerate(levels)
    ]


def spread_skill(crops: Sequence[Crop], bins: int = 10) -> list[dict]:
    """Root mean square ``deviation`` and ``error`` (HU) of pixels grouped by their deviation, equally many a group."""
    columns = {name: np.concatenate([getattr(crop, name) for crop in crops]) for name in ("deviation", "error")}
    parts = np.array_split(np.argsort(columns["deviation"], kind="stable"), bins)
    return [
        {name: float(np.sqrt(np.mean(values[part] ** 2))) for name, values in columns.items()}
        for part in parts
        if len(part)
    ]


def groups(crops: Sequence[Crop]) -> dict[str, list[Crop]]:
    """Crops by store, and by thirds of the source's noise, named so that people can read them."""
    found = {f"store {name}": [crop for crop in crops if crop.store == name] for name in {c.store: 0 for c in crops}}
    by_noise = sorted(crops, key=lambda crop: crop.source_noise)
    for part in np.array_split(np.arange(len(crops)), 3):
        if len(part):
            low, high = by_noise[part[0]].source_noise, by_noise[part[-1]].source_noise
            found[f"source noise {low:.3g} to {high:.3g} HU"] = [by_noise[index] for index in part]
    return found
