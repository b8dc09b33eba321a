"""What the studies' tables share: methods in order, and numbers as the cells of a table."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from CTHarmonizeTraining.evaluation.measures import Estimate
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED

NOTHING = "-"
"""Cell of what could not be measured."""


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods in ``rows``, the untouched scan first, else as they come; without the reference."""
    names = [name for name in dict.fromkeys(rows["method"]) if name not in (UNTOUCHED, REFERENCE)]
    return ([UNTOUCHED] if (rows["method"] == UNTOUCHED).any() else []) + names


def mean_deviation(values: ArrayLike, digits: int = 2) -> str:
    """'mean ± SD' of the finite ``values`` (SD with n - 1; the mean alone of one value)."""
    values = _finite(values)
    if not len(values):
        return NOTHING
    mean = number(values.mean(), digits)
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def interval(found: Estimate, digits: int = 2, signed: bool = False) -> str:
    """'value [low; high]'; the value alone where its interval is not known."""
    if not np.isfinite(found.value):
        return NOTHING
    low, high = (number(limit, digits, signed) for limit in (found.low, found.high))
    return number(found.value, digits, signed) + ("" if NOTHING in (low, high) else f" [{low}; {high}]")


def number(value: float, digits: int = 2, signed: bool = False) -> str:
    """``value`` with ``digits`` places, with its sign where ``signed``."""
    if not np.isfinite(value):
        return NOTHING
    text = f"{value:{'+' if signed else ''}.{digits}f}"
    return text.lstrip("+-") if not float(text) else text


def p_value(p: float) -> str:
    """A probability with three places, '< 0.001' below them."""
    return NOTHING if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def deviation_over_sources(rows: pd.DataFrame) -> float:
    """Within-case standard deviation of ``value`` over the sources of one ``case``, ``item`` and ``target`` (n - 1),
    pooled as the root mean square over them (Bland and Altman, BMJ 1996); NaN where none was scanned twice."""
    variance = rows.groupby(["case", "item", "target"], sort=False)["value"].var(ddof=1).dropna()
    return float(np.sqrt(variance.mean())) if len(variance) else float("nan")


def _finite(values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, np.float64)
    return values[np.isfinite(values)]
