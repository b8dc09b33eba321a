"""ComBat: what it takes away, what it keeps, and the published implementation beside it."""

from __future__ import annotations

import numpy as np
import pytest

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evaluation.combat import Prior, combat

SIZES = {"smooth": 24, "medium": 30, "sharp": 18}
BATCHES = [name for name, size in SIZES.items() for _ in range(size)]
FEATURES = 40


def measured(seed: int = 0, effect: bool = True, age: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (samples, features) with a shift and scale for each batch and feature, and the samples' age (0 to 1)."""
    random = np.random.default_rng(seed)
    years = random.uniform(0.0, 1.0, len(BATCHES))
    values = random.normal(0.0, 1.0, (len(BATCHES), FEATURES)) + age * years[:, None] + random.normal(0, 5, FEATURES)
    for name in SIZES:
        rows = np.array(BATCHES) == name
        shift, scale = random.normal(1.0, 1.0, FEATURES), random.uniform(0.5, 2.5, FEATURES)
        if effect:
            values[rows] = values[rows] * scale + shift
    return values, years[:, None]


def per_batch(values: np.ndarray, of) -> np.ndarray:
    return np.stack([of(values[np.array(BATCHES) == name], axis=0) for name in SIZES])


def test_batches_agree_afterwards_in_mean_and_variance() -> None:
    values, _ = measured()
    exact = combat(values, BATCHES, empirical_bayes=False)
    assert np.ptp(per_batch(values, np.mean), axis=0).mean() > 1.0
    np.testing.assert_allclose(np.ptp(per_batch(exact, np.mean), axis=0), 0.0, atol=1e-9)
    spread = per_batch(exact, lambda rows, axis: rows.var(axis, ddof=1))
    np.testing.assert_allclose(spread / spread[0], 1.0, rtol=1e-9)
    np.testing.assert_allclose(exact.mean(0), values.mean(0), atol=1e-9)  # the grand mean stays
    shrunk = combat(values, BATCHES)
    assert np.ptp(per_batch(shrunk, np.mean), axis=0).mean() < 0.2 * np.ptp(per_batch(values, np.mean), axis=0).mean()


def test_the_reference_stays_as_it_is() -> None:
    values, _ = measured()
    rows = np.array(BATCHES) == "medium"
    moved = combat(values, BATCHES, reference="medium", empirical_bayes=False)
    np.testing.assert_array_equal(moved[rows], values[rows])
    for name in ("smooth", "sharp"):
        others = moved[np.array(BATCHES) == name]
        np.testing.assert_allclose(others.mean(0), values[rows].mean(0), atol=1e-9)
        np.testing.assert_allclose(others.std(0, ddof=1), values[rows].std(0), rtol=1e-9)


def test_what_covariates_explain_is_kept() -> None:
    values, years = measured(age=6.0)
    years[np.array(BATCHES) == "sharp"] += 1.0  # older patients had the sharp kernel
    values[np.array(BATCHES) == "sharp"] += 6.0

    def slope(features: np.ndarray) -> np.ndarray:
        return np.polyfit(years[:, 0], features, 1)[0]

    kept, lost = combat(values, BATCHES, years), combat(values, BATCHES)
    ages = np.array([years[np.array(BATCHES) == name].mean() for name in SIZES])
    assert np.ptp(ages) > 0.8 and abs(slope(kept).mean() / slope(lost).mean()) > 1.5
    apart = per_batch(kept, np.mean)[2] - per_batch(kept, np.mean)[:2].mean(0)
    assert apart.mean() > 3.0  # an effect of age, no batch effect


def test_shrinking_helps_where_samples_are_few() -> None:
    """Against the same features without batch effects: a mean over repetitions."""
    errors = {True: [], False: []}
    names = ["a"] * 4 + ["b"] * 4
    for seed in range(40):
        random = np.random.default_rng(seed)
        truth = random.normal(0.0, 1.0, (8, 60))
        values = truth.copy()
        values[4:] = 1.5 * values[4:] + 2.0 + random.normal(0.0, 0.2, 60)
        for bayes, found in errors.items():
            moved = combat(values, names, reference="a", empirical_bayes=bayes)
            found.append(np.square(moved[4:] - truth[4:]).mean())
    assert np.mean(errors[True]) < 0.8 * np.mean(errors[False])


def test_prior_has_the_moments_of_the_estimates() -> None:
    """An inverse gamma distribution has the mean b / (a - 1) and the variance b^2 / ((a - 1)^2 (a - 2))."""
    scale = np.array([0.5, 1.0, 1.5, 3.0])
    prior = Prior.of(np.array([1.0, 2.0, 3.0, 6.0]), scale)
    assert prior.rate / (prior.shape - 1) == pytest.approx(scale.mean())
    variance = prior.rate**2 / ((prior.shape - 1) ** 2 * (prior.shape - 2))
    assert variance == pytest.approx(scale.var(ddof=1))
    assert (prior.mean, prior.variance) == (3.0, pytest.approx(np.var([1, 2, 3, 6], ddof=1)))


def test_features_that_do_not_vary_come_back() -> None:
    values, _ = measured()
    values[:, 3] = 7.0
    moved = combat(values, BATCHES)
    np.testing.assert_array_equal(moved[:, 3], 7.0)
    assert np.isfinite(moved).all() and not np.array_equal(moved[:, 4], values[:, 4])


@pytest.mark.parametrize("reference", [None, "smooth"])
@pytest.mark.parametrize("with_age", [False, True])
@pytest.mark.parametrize("bayes", [False, True])
def test_agrees_with_the_published_implementation(
    reference: str | None, with_age: bool, bayes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = pytest.importorskip("neuroCombat").neuroCombat
    monkeypatch.setattr(np, "int", int, raising=False)  # it was written for an older NumPy
    pandas = pytest.importorskip("pandas")
    values, years = measured(age=2.0)
    table = pandas.DataFrame({"batch": BATCHES, "age": years[:, 0]})
    continuous = ["age"] if with_age else None
    theirs = published(
        dat=values.T, covars=table, batch_col="batch", continuous_cols=continuous, ref_batch=reference, eb=bayes
    )["data"].T
    ours = combat(values, BATCHES, years if with_age else None, reference, empirical_bayes=bayes)
    np.testing.assert_allclose(ours, theirs, atol=2e-3 if bayes else 1e-6)  # they stop their iteration at 1e-4


def test_what_cannot_be_is_one_sentence() -> None:
    values, years = measured()
    with pytest.raises(InputError, match="3 batch labels do not fit"):
        combat(values, ["a", "b", "c"])
    with pytest.raises(InputError, match="batch 'b' has one sample"):
        combat(values[:3], ["a", "a", "b"])
    with pytest.raises(InputError, match="no batch 'bone' to refer to"):
        combat(values, BATCHES, reference="bone")
    with pytest.raises(InputError, match="told by the batches alone"):
        combat(values, BATCHES, (np.array(BATCHES) == "sharp")[:, None].astype(float))
    values[0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        combat(values, BATCHES)
    with pytest.raises(InputError, match="covariates must be finite"):
        combat(measured()[0], BATCHES, years[:5])
