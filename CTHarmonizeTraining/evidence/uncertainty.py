"""Is the standard deviation true, and does it find the errors? And: do the samples' intervals hold the measures?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.plots import png
from CTHarmonizeTraining.evidence.study import Finding, Image, Picture, Section, Table

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Shares of voxels that an interval of the mean +- so many deviations should hold, were errors normal."""

LARGE_ERROR = 0.95
"""Quantile of the absolute error from which on an error is large."""

NOT_OF_SAMPLES = ("Dice of the lungs", "volume, as built")
"""Measures whose intervals tell nothing: one has its truth at its end, one is another's again."""

_BINS = 10
_EVERY = 7  # voxels: neighbours are alike


class UncertaintyStudy:
    """Coverage of intervals, error against deviation, and how well the deviation finds large errors.

    The error is that of the mean from the reference scan, whose noise is part of what the samples show.
    """

    name = "uncertainty"
    sampled = False
    measured_by = ()

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """Nothing of an image without deviation. Items: ``50 %`` and other levels; bins of the deviation, whose limits
        are its deciles."""
        if image.deviation is None:
            return []
        truth = case.seen(case.references[image.target])
        error = (truth.astype(np.float32) - image.hu)[case.body][::_EVERY]
        deviation = image.deviation[case.body][::_EVERY]
        clean = np.abs(case.clean[image.target.kernel] - image.hu)[case.body][::_EVERY]
        return [*_coverage(error, deviation), *_found(np.abs(error), clean, deviation), *_bins(error, deviation)]

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Coverage of the 95 % intervals of voxels, percent."""
        held = rows[(rows.measure == "coverage") & (rows.item == "95 %")].groupby("method").value.mean()
        return pd.DataFrame({"voxels in their 95 % interval, %": 100.0 * held})

    def section(self, rows: pd.DataFrame) -> Section:
        """Tables of coverage and of what the deviation finds; the reliability diagram."""
        text = (
            "Of methods that draw samples. Coverage: the share of voxels of the reference scan, noise and all, within "
            "so many deviations of the mean that a normal distribution would have the stated share there. Mean and "
            "deviation of few samples are uncertain themselves: of 8 true samples 89 %, of 16 samples 92 %, would lie "
            "where 95 % is stated, did the model's calibration not widen the deviation. The "
            "deviation finds large errors where voxels with the 5 % largest errors have larger deviations than the "
            "rest: area under the ROC curve, 0.5 for chance."
        )
        if rows.empty:
            return Section("Uncertainty", "No method that draws samples was judged.")
        return Section("Uncertainty", text, [_coverage_table(rows), _found_table(rows), _figure(rows)])


def _coverage(error: np.ndarray, deviation: np.ndarray) -> Iterator[Finding]:
    for level in LEVELS:
        within = np.abs(error) <= stats.norm.ppf(0.5 + level / 2) * deviation
        yield Finding("coverage", float(within.mean()), level, f"{100 * level:g} %")


def _found(error: np.ndarray, clean: np.ndarray, deviation: np.ndarray) -> Iterator[Finding]:
    yield Finding("AUROC of large errors", auroc(deviation, error >= np.quantile(error, LARGE_ERROR)))
    large = clean >= np.quantile(clean, LARGE_ERROR)
    yield Finding("AUROC of large errors, noise-free target", auroc(deviation, large))
    yield Finding("rank correlation of deviation and error", float(stats.spearmanr(deviation, error).statistic))


def _bins(error: np.ndarray, deviation: np.ndarray) -> Iterator[Finding]:
    """RMS deviation and, as truth, RMS error in each tenth of the voxels by deviation."""
    order = np.argsort(deviation, kind="stable")
    for number, chosen in enumerate(np.array_split(order, _BINS), start=1):
        told, true = (float(np.sqrt(np.mean(np.square(values[chosen])))) for values in (deviation, error))
        yield Finding("RMS deviation", told, true, f"tenth {number}")


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of ``score`` for the ``positive`` ones (Mann-Whitney); NaN where all are alike."""
    count = int(positive.sum())
    rest = len(positive) - count
    if not count or not rest:
        return float("nan")
    ranks = stats.rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * rest))


def _coverage_table(rows: pd.DataFrame) -> Table:
    values = rows[rows.measure == "coverage"].assign(percent=lambda r: 100 * r.value)
    frame = values.pivot_table(index=["method", "source", "target"], columns="item", values="percent", sort=False)
    return Table("coverage", "Coverage of intervals (%)", frame.reset_index(), "Columns: what it should be.", digits=1)


def _found_table(rows: pd.DataFrame) -> Table:
    names = ["AUROC of large errors", "AUROC of large errors, noise-free target"]
    names.append("rank correlation of deviation and error")
    values = rows[rows.measure.isin(names)]
    frame = values.pivot_table(index=["method", "source", "target"], columns="measure", values="value", sort=False)
    return Table("deviation-finds", "Does the deviation find the errors?", frame[names].reset_index())


def _figure(rows: pd.DataFrame) -> Picture:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 4.0), dpi=130, layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = rows[rows.measure == "coverage"].groupby(["method", "truth"]).value.mean()
    for method in shown.index.unique("method"):
        left.plot(100 * shown[method].index, 100 * shown[method], "o-", label=method)
    left.plot([40, 100], [40, 100], color="0.6", zorder=0, label="as it should be")
    left.set(xlabel="stated share (%)", ylabel="share of voxels within (%)", title="Reliability")
    left.legend(frameon=False)
    bins = rows[rows.measure == "RMS deviation"].groupby(["method", "item"], sort=False)[["value", "truth"]].mean()
    for method in bins.index.unique("method"):
        right.plot(bins.loc[method].value, bins.loc[method].truth, "o-", label=method)
    most = float(bins.max().max()) * 1.05
    right.plot([0, most], [0, most], color="0.6", zorder=0)
    right.set(
        xlabel="told: RMS deviation (HU)", ylabel="true: RMS error (HU)", title="Error against deviation, in tenths",
        xlim=(0, most), ylim=(0, most),
    )  # fmt: skip
    note = "Means over cases and mappings; grey: a true deviation."
    return Picture("reliability", "Is the deviation true?", png(figure), note)


def intervals(rows: pd.DataFrame) -> Table:
    """How often the interval of a measure over the samples holds what the reference scan has, and the truth; from the
    rows of all studies."""
    drawn = rows[rows.low.notna() & rows.reference.notna() & ~rows.measure.isin(NOT_OF_SAMPLES)].copy()
    drawn["held"] = 100.0 * ((drawn.low <= drawn.reference) & (drawn.reference <= drawn.high))
    known = drawn.truth.notna()
    drawn["true"] = np.where(known, 100.0 * ((drawn.low <= drawn.truth) & (drawn.truth <= drawn.high)), np.nan)
    drawn["error"] = (drawn.value - drawn.reference).abs()
    drawn["width"] = (drawn.high - drawn.low) / 2
    grouped = drawn.groupby(["method", "study", "measure"], sort=False)
    frame = grouped.agg(
        values=("held", "size"),
        held=("held", "mean"),
        true=("true", "mean"),
        width=("width", "median"),
        error=("error", "median"),
    )
    frame.columns = [
        "values", "hold the reference's (%)", "hold the truth (%)", "half width, median", "error, median",
    ]  # fmt: skip
    note = (
        "Intervals of 95 %, from the spread of the measure over the samples. They tell what noise and missing detail "
        "leave open, and no common error of all samples: where an organ is large, noise hardly matters and the rest is "
        "such errors. The reference's own noise is in its value: were the samples true, 95 % would be held. Sources of "
        f"one chest share a reference; there are {rows['case'].nunique()} chests."
    )
    return Table("intervals", "Intervals of biomarkers and features over the samples", frame.reset_index(), note)
