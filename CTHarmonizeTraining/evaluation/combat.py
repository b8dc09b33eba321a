"""ComBat: features that were measured in batches (scanner, kernel, dose), brought to common means and variances.

Johnson, Li and Rabinovic (Biostatistics 2007); for imaging features Fortin et al. (NeuroImage 2018). It moves
measurements, not images, and needs all batches at hand: the comparator of methods that change images (Zarei et al.
2024).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from CTHarmonizeLib.errors import InputError

_SETTLED = 1e-6
_TURNS = 1000


@dataclass(frozen=True)
class Prior:
    """Of one batch, over features: shifts are normal (``mean``, ``variance``), squared scales inverse gamma (``shape``,
    ``rate``)."""

    mean: float
    variance: float
    shape: float
    rate: float

    @classmethod
    def of(cls, shift: np.ndarray, scale: np.ndarray) -> Prior:
        """By the method of moments, from the estimates of each feature."""
        mean, variance = float(scale.mean()), float(scale.var(ddof=1))
        shape = (2.0 * variance + mean**2) / variance
        return cls(float(shift.mean()), float(shift.var(ddof=1)), shape, (mean * variance + mean**3) / variance)


def combat(
    features: np.ndarray,
    batches: Sequence[Hashable],
    covariates: np.ndarray | None = None,
    reference: Hashable | None = None,
    empirical_bayes: bool = True,
) -> np.ndarray:
    """``features`` (samples, features) without the shift and scale of their ``batches`` (one label a sample).

    ``covariates`` (samples, covariates) are kept: what they explain is no batch effect; give categories as columns of 0
    and 1, one fewer than there are. With a ``reference`` the others are brought to that batch, which stays as it is.
    ``empirical_bayes`` shrinks each feature's shift and scale towards those of all features of its batch, which pays
    where samples are few; it needs two features or more. Features without variance come back unchanged.

    Raises InputError for shapes that do not fit, values that are not finite, a batch with one sample, and covariates
    that are told by the batches alone.
    """
    values = np.asarray(features, dtype=np.float64)
    names, member = _checked(values, batches, reference)
    known = np.zeros((len(values), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    if known.ndim != 2 or len(known) != len(values) or not np.isfinite(known).all():
        raise InputError(f"The covariates must be finite numbers of {len(values)} samples, in columns.")
    onehot = (member[:, None] == np.arange(len(names))).astype(float)
    design = np.hstack([onehot, known])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError("A covariate is told by the batches alone: its effect cannot be kept apart from theirs.")

    fitted, *_ = np.linalg.lstsq(design, values, rcond=None)
    of_batch, of_known = fitted[: len(names)], known @ fitted[len(names) :]
    chosen = None if reference is None else names.index(reference)
    residual = values - design @ fitted
    if chosen is None:
        middle, spread = onehot.mean(0) @ of_batch, residual.var(0)
    else:
        middle, spread = of_batch[chosen], residual[member == chosen].var(0)
    moving = spread > 1e-12 * (1.0 + np.abs(middle)) ** 2
    if not moving.any():
        return values.copy()
    deviation = np.sqrt(spread[moving])
    expected = middle[moving] + of_known[:, moving]
    standard = (values[:, moving] - expected) / deviation

    for batch in range(len(names)):
        if batch == chosen:
            continue
        rows = member == batch
        shift, scale = standard[rows].mean(0), standard[rows].var(0, ddof=1)
        if empirical_bayes and moving.sum() > 1:
            shift, scale = _shrunk(standard[rows], shift, scale)
        standard[rows] = (standard[rows] - shift) / np.sqrt(np.maximum(scale, 1e-12))
    result = values.copy()
    result[:, moving] = deviation * standard + expected
    if chosen is not None:
        result[member == chosen] = values[member == chosen]
    return result


def _checked(
    values: np.ndarray, batches: Sequence[Hashable], reference: Hashable | None
) -> tuple[list[Hashable], np.ndarray]:
    """Names of the batches, and each sample's number in them."""
    if values.ndim != 2 or len(values) != len(batches):
        raise InputError(f"{len(batches)} batch labels do not fit features of shape {values.shape}: one a sample.")
    if not np.isfinite(values).all():
        raise InputError("The features hold values that are not finite numbers: leave those samples or features out.")
    names = list(dict.fromkeys(batches))
    member = np.array([names.index(batch) for batch in batches])
    for number, name in enumerate(names):
        if (member == number).sum() < 2:
            raise InputError(f"The batch '{name}' has one sample: at least two are needed to know its spread.")
    if reference is not None and reference not in names:
        raise InputError(f"There is no batch '{reference}' to refer to: there are {', '.join(map(str, names))}.")
    return names, member


def _shrunk(standard: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior shift and squared scale of a batch's standardised values (Johnson et al. 2007, section 3.2)."""
    if shift.var() == 0.0 or scale.var() == 0.0:
        return shift, scale
    prior, count = Prior.of(shift, scale), len(standard)
    found, squared = shift.copy(), scale.copy()
    for _ in range(_TURNS):
        weight = count * prior.variance
        better = (weight * shift + squared * prior.mean) / (weight + squared)
        rest = ((standard - better) ** 2).sum(0)
        wider = (0.5 * rest + prior.rate) / (0.5 * count + prior.shape - 1.0)
        change = max(np.abs(better - found).max(), np.abs(wider / squared - 1.0).max())
        found, squared = better, wider
        if change < _SETTLED:
            break
    return found, squared
