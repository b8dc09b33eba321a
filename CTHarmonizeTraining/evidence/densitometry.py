"""Emphysema by numbers, against the known truth and the reference scan (Zarei et al. 2024, II-D)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd

from CTHarmonizeLib.ct import lungs
from CTHarmonizeLib.ct.lungs import Densitometry, aerated, filled_lungs, find_lungs, measure_densitometry
from CTHarmonizeTraining.evidence.agreement import bland_altman, bootstrap_mean, concordance, mcbride
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.cells import (
    deviation_over_sources,
    interval,
    mean_deviation,
    methods_of,
    number,
)
from CTHarmonizeTraining.evidence.comparator import ABOUT_COMBAT, with_combat
from CTHarmonizeTraining.evidence.plots import colour, png
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Picture, Section, Table, towards_first

MEASURES = {"LAA-950": "%", "Perc15": "HU", "lung mass": "g", "lung volume": "ml"}
"""Units of the measures of :class:`DensitometryStudy`."""

DICE = "Dice of the lungs"

_DIGITS = {"LAA-950": 2, "Perc15": 1, "lung mass": 1, "lung volume": 1}
_EMPHYSEMA = ("LAA-950", "Perc15")


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice coefficient of two masks; NaN where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else float("nan")


class DensitometryStudy:
    """Densitometry as a reader has it, within the lungs found in the image itself; the truth is the same measured in
    the anatomy within its known lungs, of which both sides count the aerated part alone."""

    name = "densitometry"
    sampled = True
    measured_by = (lungs,)

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """:data:`MEASURES`, and :data:`DICE` of the whole lungs that were found with the known ones."""
        true = case.once(self.name, lambda: self._true(case))
        found = find_lungs(image.hu, case.spacing)
        measured = measure_densitometry(image.hu, found, case.spacing)
        findings = [
            Finding(name, value, truth)
            for name, value, truth in zip(MEASURES, asdict(measured).values(), asdict(true).values(), strict=True)
        ]
        return [*findings, Finding(DICE, dice(filled_lungs(found, case.spacing), case.lung), 1.0)]

    @staticmethod
    def _true(case: Case) -> Densitometry:
        return measure_densitometry(case.truth, aerated(case.truth, case.lung, case.spacing), case.spacing)

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Mean absolute errors of LAA-950 and Perc15 against the reference scan."""
        error = (rows["value"] - rows["reference"]).abs().groupby([rows["measure"], rows["method"]]).mean()
        return pd.DataFrame({f"|Δ{measure}|, {MEASURES[measure]}": error.get(measure) for measure in _EMPHYSEMA})

    def section(self, rows: pd.DataFrame) -> Section:
        """Errors against the truth and the reference, one case in full, bias and variation, limits of agreement."""
        rows = with_combat(towards_first(rows), list(MEASURES))
        parts = [
            _errors(rows),
            _variation(rows),
            *(_one_case(rows, measure) for measure in _EMPHYSEMA),
            _limits_of_agreement(rows),
            *(_bland_altman(rows, measure) for measure in _EMPHYSEMA),
        ]
        return Section("Lung densitometry", _text(rows), [part for part in parts if part is not None])


def _text(rows: pd.DataFrame) -> str:
    overlap = mean_deviation(rows.loc[rows["measure"] == DICE, "value"], 3)
    return (
        "LAA-950 is the share of lung below -950 HU, Perc15 the 15th percentile of its HU, lung mass the sum of "
        "(HU + 1024) / 1024 g/ml over its volume. Each image is measured within the lungs found in it (below -500 HU "
        f"after smoothing by {lungs.SMOOTHING_MM:g} mm, without trachea and main bronchi), the truth within the known "
        "lungs by the same limit, so that vessels and nodules count on neither side. Dice of found and known lungs, "
        f"over all images: {overlap}. {ABOUT_COMBAT}"
    )


def _of(rows: pd.DataFrame, method: str, measure: str) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["measure"] == measure)]


def _errors(rows: pd.DataFrame) -> Table:
    lines = []
    for method in methods_of(rows):
        line = {"method": method}
        for against in ("truth", "reference"):
            for measure in ("LAA-950", "Perc15", "lung mass"):
                of = _of(rows, method, measure)
                title = f"|Δ{measure}|, {MEASURES[measure]}, {against}"
                line[title] = mean_deviation((of["value"] - of[against]).abs())
        lines.append(line)
    return Table(
        "densitometry-errors",
        "Absolute errors of densitometry",
        pd.DataFrame(lines),
        "Mean ± SD over cases and sources (Zarei et al., table I), against the known truth and the reference scan.",
    )


def _variation(rows: pd.DataFrame) -> Table:
    lines = []
    for method in methods_of(rows):
        for measure in _EMPHYSEMA:
            of, digits = _of(rows, method, measure), _DIGITS[measure]
            agreed = concordance(of["value"], of["reference"])
            sampled = of.dropna(subset=["low", "high", "truth"])
            inside = 100.0 * sampled["truth"].between(sampled["low"], sampled["high"]).mean()
            lines.append(
                {
                    "method": method,
                    "measure": f"{measure}, {MEASURES[measure]}",
                    "bias to truth": interval(bootstrap_mean(of["value"] - of["truth"], of["case"]), digits, True),
                    "bias to reference": interval(
                        bootstrap_mean(of["value"] - of["reference"], of["case"]), digits, True
                    ),
                    "SD over sources": number(deviation_over_sources(of), digits),
                    "concordance with reference": f"{interval(agreed, 3)}, {mcbride(agreed.value)}",
                    "truth within samples, %": number(inside, 0),
                }
            )
    return Table(
        "densitometry-variation",
        "Bias and variation of densitometry over acquisitions",
        pd.DataFrame(lines),
        "Bias with the 95 % bootstrap interval over cases; SD over the sources of one case, pooled over cases "
        "(repeatability, where sources are repeated scans of a patient); Lin's concordance with its 95 % interval and "
        "McBride's word; how often the truth lies within 95 % of the samples' values. The sources of one case are not "
        "independent, so the concordance's intervals are too narrow.",
    )


def _one_case(rows: pd.DataFrame, measure: str) -> Table:
    """All sources of the first case, towards the first target."""
    (case, target), digits = rows[["case", "target"]].iloc[0], _DIGITS[measure]
    of_case = rows[(rows["case"] == case) & (rows["target"] == target) & (rows["measure"] == measure)]
    sources = list(dict.fromkeys(of_case.loc[of_case["method"] != REFERENCE, "source"]))
    lines = []
    for method in methods_of(of_case):
        of = of_case[of_case["method"] == method]
        line = {source: number(of.loc[of["source"] == source, "value"].mean(), digits) for source in sources}
        lines.append({"method": method, **line, "SD": number(deviation_over_sources(of), digits)})
    truth, reference = of_case["truth"].mean(), of_case["reference"].mean()
    return Table(
        f"densitometry-one-case-{measure.lower()}",
        f"{measure} ({MEASURES[measure]}) of one case, {case}",
        pd.DataFrame(lines),
        f"Every source, as each method leaves it, and the SD over sources (Zarei et al., table IV). "
        f"Truth {number(truth, digits)}, reference scan {number(reference, digits)}.",
    )


def _limits_of_agreement(rows: pd.DataFrame) -> Table:
    lines = []
    for method in methods_of(rows):
        for measure in _EMPHYSEMA:
            of, digits = _of(rows, method, measure), _DIGITS[measure]
            found = bland_altman(of["value"], of["reference"])
            lines.append(
                {
                    "method": method,
                    "measure": f"{measure}, {MEASURES[measure]}",
                    "pairs": found.n,
                    "bias": interval(found.bias, digits, True),
                    "lower limit": interval(found.low, digits, True),
                    "upper limit": interval(found.high, digits, True),
                    "SD": number(found.deviation, digits),
                }
            )
    return Table(
        "densitometry-agreement",
        "Limits of agreement with the reference scan",
        pd.DataFrame(lines),
        "Bland and Altman, of method minus reference, with 95 % intervals. They take pairs as independent, which the "
        "sources of one case are not: the intervals are too narrow rather than too wide.",
    )


def _bland_altman(rows: pd.DataFrame, measure: str) -> Picture | None:
    from matplotlib.figure import Figure

    of_measure = rows[rows["measure"] == measure].dropna(subset=["value", "reference"])
    methods = methods_of(of_measure)
    if not methods:
        return None
    sources = list(dict.fromkeys(of_measure.loc[of_measure["method"] != REFERENCE, "source"]))
    columns = min(4, len(methods))
    lines = -(-len(methods) // columns)
    figure = Figure(figsize=(0.8 + 2.7 * columns, 0.9 + 2.3 * lines), dpi=120, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, method in zip(grid.flat, methods, strict=False):
        of = of_measure[of_measure["method"] == method]
        for index, source in enumerate(sources):
            points = of[of["source"] == source]
            middle, difference = (points["value"] + points["reference"]) / 2, points["value"] - points["reference"]
            axes.plot(middle, difference, "o", color=colour(index + 1), markersize=4, alpha=0.8, label=source)
        found = bland_altman(of["value"], of["reference"])
        axes.axhline(0.0, color="#bbbbbb", linewidth=0.8, zorder=0)
        for limit, style in ((found.bias, "-"), (found.low, "--"), (found.high, "--")):
            if np.isfinite(limit.value):
                axes.axhline(limit.value, color="black", linewidth=1.0, linestyle=style)
                axes.axhspan(limit.low, limit.high, color="black", alpha=0.08, linewidth=0)
        axes.set_title(method, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(methods) :]:
        axes.set_visible(False)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8, frameon=False
    )
    figure.supxlabel(f"mean of both, {MEASURES[measure]}", fontsize=9)
    figure.supylabel(f"method - reference, {MEASURES[measure]}", fontsize=9)
    return Picture(
        f"densitometry-agreement-{measure.lower()}",
        f"{measure} against the reference scan",
        png(figure),
        "Bland-Altman: bias (solid) and limits of agreement (dashed), each with its 95 % interval; a point a case and "
        "source.",
    )
