"""Agreement: published worked examples, closed forms, and the delta method beside Lin's variance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.agreement import (
    bland_altman,
    bootstrap_mean,
    concordance,
    holm,
    mcbride,
    paired_test,
)

# Peak expiratory flow, first readings by two meters (Bland and Altman 1986, table 1), l/min
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    covariance = np.cov(x, y, bias=True)
    return np.array([x.mean(), y.mean(), covariance[0, 0], covariance[1, 1], covariance[0, 1]])


def transformed(m: np.ndarray) -> float:
    return float(np.arctanh(2 * m[4] / (m[2] + m[3] + (m[0] - m[1]) ** 2)))


def normal_theory(m: np.ndarray) -> np.ndarray:
    """Covariance, times n, of the moments of a bivariate normal sample."""
    s = np.array([[m[2], m[4]], [m[4], m[3]]])
    result = np.zeros((5, 5))
    result[:2, :2] = s
    places = ((0, 0), (1, 1), (0, 1))
    for a, (i, j) in enumerate(places):
        for b, (k, n) in enumerate(places):
            result[2 + a, 2 + b] = s[i, k] * s[j, n] + s[i, n] * s[j, k]
    return result


@pytest.mark.parametrize(("shift", "scale", "noise"), [(0.0, 1.0, 0.3), (0.8, 1.4, 0.5), (-1.5, 0.6, 1.0)])
def test_lins_interval_is_the_delta_methods(shift: float, scale: float, noise: float) -> None:
    random = np.random.default_rng(1)
    x = random.normal(size=40)
    y = shift + scale * x + noise * random.normal(size=40)
    m = moments(x, y)
    step = 1e-6
    gradient = [(transformed(m + step * unit) - transformed(m - step * unit)) / (2 * step) for unit in np.eye(5)]
    error = np.sqrt(np.array(gradient) @ normal_theory(m) @ gradient / (len(x) - 2))
    found = concordance(x, y)
    assert found.value == pytest.approx(np.tanh(transformed(m)))
    limits = np.tanh(transformed(m) + np.array([-1, 1]) * stats.norm.ppf(0.975) * error)
    assert (found.low, found.high) == pytest.approx(limits, rel=1e-5)


def test_concordance_covers_the_true_one_as_often_as_it_says() -> None:
    random = np.random.default_rng(2)
    true = 2 * 0.9 * 1.1 / (1 + 1.1**2 + 0.2**2)  # correlation 0.9, deviations 1 and 1.1, shift 0.2
    covered = 0
    for _ in range(1000):
        x, rest = random.normal(size=(2, 50))
        found = concordance(x, 0.2 + 1.1 * (0.9 * x + np.sqrt(1 - 0.81) * rest))
        covered += found.low <= true <= found.high
    assert 0.93 < covered / 1000 < 0.97


def test_concordance_at_its_ends() -> None:
    x = np.arange(8.0)
    assert concordance(x, x).value == concordance(x, x).low == 1.0
    assert concordance(x, -x + 7.0).value == pytest.approx(-1.0)
    flat = concordance(x, np.ones(8))
    assert flat.value == 0.0 and np.isnan(flat.low)
    assert np.isnan(concordance(np.ones(8), np.ones(8)).value)
    assert np.isnan(concordance([1.0, 2.0, np.nan], [1.0, 2.0, 3.0]).value)
    assert concordance([*x, np.nan], [*(x + 1), 3.0]) == concordance(x, x + 1)
    with pytest.raises(InputError):
        concordance([1.0, 2.0], [1.0])


def test_words() -> None:
    values = (0.2, 0.9, 0.94, 0.95, 0.99, 0.991, float("nan"))
    words = ["poor", "moderate", "moderate", "substantial", "substantial", "almost perfect", "-"]
    assert [mcbride(value) for value in values] == words


def test_limits_of_agreement_are_the_published_ones() -> None:
    found = bland_altman(WRIGHT, MINI)
    assert found.n == 17
    assert found.bias.value == pytest.approx(-2.1, abs=0.05)
    assert found.deviation == pytest.approx(38.8, abs=0.05)
    assert (found.bias.low, found.bias.high) == pytest.approx((-22.0, 17.8), abs=0.1)
    # The paper multiplies by 2 and takes sqrt(3 / n) for the standard error of a limit
    assert found.high.value == pytest.approx(-2.1 + 1.96 * 38.8, abs=0.1)
    assert found.low.high - found.low.low == pytest.approx(-45.1 + 114.3, rel=0.01)
    assert np.isnan(bland_altman([1.0], [2.0]).bias.value)


def test_paired_test() -> None:
    # Hollander and Wolfe, table 3.1 (depression scale, two visits), one-sided p = 0.0195
    first = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    second = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = paired_test(first, second)
    assert found.n == 9 and found.p == pytest.approx(2 * 0.01953125)
    assert found.difference == pytest.approx(np.median(np.subtract(first, second)))
    assert paired_test([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert paired_test([np.nan], [1.0]).n == 0 and np.isnan(paired_test([], []).p)


def test_holm() -> None:
    # 4 x 0.005; 3 x 0.01; 2 x 0.03; then the one before it
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, np.nan, 0.7]), [1.0, np.nan, 1.0])
    assert holm([]).size == 0


def test_bootstrap_of_independent_values_is_the_normal_interval() -> None:
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    found = bootstrap_mean(values, resamples=4000)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.06)


def test_bootstrap_of_clusters_knows_that_their_values_are_alike() -> None:
    of_case = np.random.default_rng(4).normal(size=60)
    repeated, cases = np.repeat(of_case, 9), [f"case {n}" for n in range(60) for _ in range(9)]
    alone, clustered = bootstrap_mean(of_case, resamples=4000), bootstrap_mean(repeated, cases, resamples=4000)
    assert clustered.value == pytest.approx(alone.value)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high), abs=1e-9)
    assert bootstrap_mean(repeated).high < clustered.high


def test_bootstrap_of_too_little() -> None:
    assert np.isnan(bootstrap_mean([]).value) and np.isnan(bootstrap_mean([np.nan], ["a"]).value)
    one = bootstrap_mean([1.0, 3.0, np.nan], ["a", "a", "b"])
    assert one.value == 2.0 and np.isnan(one.low)
