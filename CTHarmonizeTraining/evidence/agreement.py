"""How well paired measurements agree: concordance, limits of agreement, paired tests, intervals of means.

Pairs, or values, that are not finite are left out everywhere. Where too few are left to say something, the answer is
NaN, not an error: a report has to be written all the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evaluation.measures import Estimate, estimate

_NAN = float("nan")
_UNKNOWN = Estimate(_NAN, _NAN, _NAN)
_Z = float(stats.norm.ppf(0.975))


def concordance(x: ArrayLike, y: ArrayLike) -> Estimate:
    """Lin's concordance correlation coefficient of paired ``x`` and ``y`` (one dimension each), with the 95 % interval
    of its Fisher transform (Lin, Biometrics 1989; variance as corrected in Biometrics 2000, 56:324).

    NaN with fewer than three pairs or where neither varies; the interval is NaN where the two do not correlate at all.
    Raises InputError where the lengths differ.
    """
    x, y = _pairs(x, y)
    if len(x) < 3:
        return _UNKNOWN
    sxx, syy, sxy = x.var(), y.var(), np.mean((x - x.mean()) * (y - y.mean()))
    shift = (x.mean() - y.mean()) ** 2
    if sxx + syy + shift == 0.0:
        return _UNKNOWN
    value = float(2.0 * sxy / (sxx + syy + shift))
    if sxx * syy == 0.0 or sxy == 0.0:
        return Estimate(value, _NAN, _NAN)
    if 1.0 - abs(value) < 1e-12:
        return Estimate(value, value, value)
    r, scaled = sxy / np.sqrt(sxx * syy), shift / np.sqrt(sxx * syy)
    variance = (
        (1.0 - r**2) * value**2 / ((1.0 - value**2) * r**2)
        + 2.0 * value**3 * (1.0 - value) * scaled / (r * (1.0 - value**2) ** 2)
        - value**4 * scaled**2 / (2.0 * r**2 * (1.0 - value**2) ** 2)
    ) / (len(x) - 2)
    half = _Z * np.sqrt(max(variance, 0.0))
    return Estimate(value, *(float(np.tanh(np.arctanh(value) + side * half)) for side in (-1.0, 1.0)))


def mcbride(value: float) -> str:
    """McBride's word for a concordance (NIWA report HAM2005-062, 2005): poor below 0.90, moderate to 0.95, substantial
    to 0.99, almost perfect above; '-' for NaN."""
    if np.isnan(value):
        return "-"
    if value > 0.99:
        return "almost perfect"
    return "substantial" if value >= 0.95 else "moderate" if value >= 0.90 else "poor"


@dataclass(frozen=True)
class Agreement:
    """Limits of agreement of ``n`` pairs: mean difference ``bias``, limits ``low`` and ``high`` between which 95 % of
    differences lie, each with its 95 % interval; ``deviation`` of the differences."""

    n: int
    bias: Estimate
    low: Estimate
    high: Estimate
    deviation: float


def bland_altman(x: ArrayLike, y: ArrayLike) -> Agreement:
    """Limits of agreement of ``x`` with ``y`` (one dimension each), of the differences x - y (Bland and Altman, Lancet
    1986; the limits' standard error as in Stat Methods Med Res 1999, section 2). All but ``n`` is NaN with fewer than
    two pairs. Raises InputError where the lengths differ."""
    x, y = _pairs(x, y)
    n = len(x)
    if n < 2:
        return Agreement(n, _UNKNOWN, _UNKNOWN, _UNKNOWN, _NAN)
    difference = x - y
    bias, deviation = float(difference.mean()), float(difference.std(ddof=1))
    t = float(stats.t.ppf(0.975, n - 1))

    def around(value: float, error: float) -> Estimate:
        return Estimate(value, value - t * error, value + t * error)

    of_limit = deviation * np.sqrt(1.0 / n + _Z**2 / (2.0 * (n - 1)))
    return Agreement(
        n,
        around(bias, deviation / np.sqrt(n)),
        around(bias - _Z * deviation, of_limit),
        around(bias + _Z * deviation, of_limit),
        deviation,
    )


@dataclass(frozen=True)
class PairedTest:
    """Of ``n`` pairs: the median ``difference`` a - b, and ``p``, two-sided, that there is none."""

    n: int
    difference: float
    p: float


def paired_test(a: ArrayLike, b: ArrayLike) -> PairedTest:
    """Wilcoxon's signed-rank test of paired ``a`` and ``b`` (one dimension each). Equal pairs are left out of the ranks
    (p is 1 where all are equal); NaN without pairs. Raises InputError where the lengths differ."""
    a, b = _pairs(a, b)
    if not len(a):
        return PairedTest(0, _NAN, _NAN)
    p = float(stats.wilcoxon(a, b).pvalue) if (a != b).any() else 1.0
    return PairedTest(len(a), float(np.median(a - b)), p)


def holm(p: ArrayLike) -> np.ndarray:
    """``p`` values of several tests, adjusted so that all of them together err with the stated probability at most
    (Holm 1979); in the order given. A NaN stays one and does not count as a test."""
    p = np.asarray(p, np.float64)
    adjusted = np.full(p.shape, _NAN)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def bootstrap_mean(
    values: ArrayLike, clusters: Sequence[Hashable] | None = None, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of ``values`` (one dimension) with a percentile bootstrap interval of 95 %.

    With ``clusters``, one label a value, whole clusters are resampled: values of one case are alike, and its many
    sources are no more cases. NaN without values; the interval is NaN with fewer than two clusters (values). Raises
    InputError where the lengths differ.
    """
    values = np.asarray(values, np.float64)
    labels = list(range(len(values)) if clusters is None else clusters)
    number = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    values, member = _pairs(values, [number[label] for label in labels])
    if not len(values):
        return _UNKNOWN
    _, member = np.unique(member, return_inverse=True)
    if member.max() == 0:
        return Estimate(float(values.mean()), _NAN, _NAN)
    sums, counts = np.bincount(member, values), np.bincount(member)
    return estimate(lambda total, number: total / number, sums, counts, resamples=resamples, seed=seed)


def _pairs(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """``x`` and ``y`` where both are finite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"Paired values must be two lists of one length, not of shapes {x.shape} and {y.shape}.")
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]
