"""Emphysema by numbers: lungs found in the image, LAA-950, Perc15, lung mass and volume (Zarei et al. 2024, II-D)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from CTHarmonizeLib.errors import InputError
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
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Picture, Section, Table

AERATED_HU = -500.0
EMPHYSEMA_HU = -950.0

_FREE_AIR_HU = -940.0
_SMOOTHING_MM = 1.2
_LEAST_LUMEN_MM2 = 20.0
_WALL_MM = (2.5, 5.0)  # from the contour of the smoothed free air, which lies that far inside the lumen
_WALLED = 0.5
_LUMEN_EDGE_MM = 4.0  # from the same contour, with noise to spare
_CLOSING_MM = 6.0
_LARGEST_HOLE_MM2 = 800.0  # a nodule of 32 mm; the dome of the liver is larger
_LEAST_SHARE = 0.02


class Lungs(NamedTuple):
    """Masks (slices, rows, columns): ``aerated``, where densitometry is measured; ``whole``, with all they hold."""

    aerated: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class Densitometry:
    """``laa950``: percent of the voxels below -950 HU; ``perc15``: 15th percentile, HU; ``mass``, g; ``volume``, ml."""

    laa950: float
    perc15: float
    mass: float
    volume: float


def segment_lungs(hu: np.ndarray, spacing: tuple[float, float, float]) -> Lungs:
    """Both lungs in ``hu`` (slices, rows, columns; a slab or a whole chest), voxels of ``spacing`` (columns, rows,
    slices) mm.

    Aerated is what lies below -500 HU after smoothing in the plane, is not joined to the image's sides, and belongs to
    a component of 2 % of all of it or more. The trachea, main bronchi and gas in the gullet or stomach are free air
    with a wall of soft tissue around it, which is told in every slice by itself: so there is no seed to find and
    no leak to stop, and airways within the lungs, whose surroundings are lung, stay lung. Nothing is found where the
    lungs themselves reach the image's sides. Raises InputError for other than three dimensions.
    """
    if hu.ndim != 3:
        raise InputError(f"Lungs are found in volumes (slices, rows, columns), not in an array of shape {hu.shape}.")
    smooth = _smoothed(hu, spacing)
    air = _without_outside(smooth < AERATED_HU)
    whole = np.zeros_like(air)
    if not air.any():
        return Lungs(air, whole)
    box = tuple(
        slice(max(0, low - 12), high + 13)
        for low, high in ((np.flatnonzero(air.any(axes))[[0, -1]]) for axes in ((1, 2), (0, 2), (0, 1)))
    )
    inner, pixel = air[box], spacing[:2]
    inner &= ~np.stack([_airways(*planes, pixel) for planes in zip(smooth[box], inner, strict=True)])
    labels, count = ndimage.label(inner)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    large = sizes >= _LEAST_SHARE * inner.sum()
    large[0] = False
    air[box] = large[labels]
    whole[box] = np.stack([_filled(plane, pixel) for plane in air[box]])
    return Lungs(air, whole)


def aerated(hu: np.ndarray, lung: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The part of known lungs ``lung`` (bool, all that they hold) that is aerated by the rule of
    :func:`segment_lungs`: so vessels and nodules count on neither side."""
    return lung & (_smoothed(hu, spacing) < AERATED_HU)


def measure_densitometry(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> Densitometry:
    """Densitometry of ``hu`` within ``mask`` (bool, of its shape), values rounded to whole HU; NaN in an empty one.

    The 15th percentile is interpolated, each whole HU spread evenly over half a HU to either side. The mass is the
    paper's: (HU + 1024) / 1024 g/ml, which gives air 0.02 g/ml and water 1.
    """
    values = np.rint(hu[mask]).astype(np.int64)
    voxel = float(np.prod(spacing)) / 1000.0
    if not len(values):
        return Densitometry(float("nan"), float("nan"), 0.0, 0.0)
    lowest = int(values.min())
    below = np.concatenate([[0], np.cumsum(np.bincount(values - lowest))]) / len(values)
    perc15 = np.interp(0.15, below, lowest - 0.5 + np.arange(len(below)))
    mass = (values + 1024.0).sum() / 1024.0 * voxel
    return Densitometry(100.0 * float(np.mean(values < EMPHYSEMA_HU)), float(perc15), float(mass), len(values) * voxel)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice coefficient of two masks; NaN where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else float("nan")


def _smoothed(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    sigma = (0.0, _SMOOTHING_MM / spacing[1], _SMOOTHING_MM / spacing[0])
    return ndimage.gaussian_filter(hu.astype(np.float32), sigma, truncate=3.0)


def _without_outside(air: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(air)
    inside = np.ones(count + 1, bool)
    for edge in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        inside[np.unique(edge)] = False
    inside[0] = False
    return inside[labels]


def _airways(smooth: np.ndarray, air: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Free air within walls, in a slice of smoothed HU and its ``air`` (rows, columns)."""
    labels, count = ndimage.label((smooth < _FREE_AIR_HU) & air)
    area = np.bincount(labels.ravel(), minlength=count + 1) * pixel[0] * pixel[1]
    lumen = np.where(area[labels] >= _LEAST_LUMEN_MM2, labels, 0)
    if not lumen.any():
        return np.zeros_like(air)
    distance, nearest = ndimage.distance_transform_edt(lumen == 0, sampling=pixel[::-1], return_indices=True)
    owner = lumen[tuple(nearest)]
    around = (distance > _WALL_MM[0]) & (distance <= _WALL_MM[1])
    soft = np.bincount(owner[around & ~air], minlength=count + 1)
    walled = soft > _WALLED * np.bincount(owner[around], minlength=count + 1)
    return walled[owner] & (distance <= _LUMEN_EDGE_MM) & air


def _filled(plane: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """A slice of the lungs with vessels and nodules: closed by a disc, small holes filled."""
    if not plane.any():
        return plane
    sampling = pixel[::-1]
    margin = int(np.ceil(_CLOSING_MM / min(pixel))) + 1
    wide = ndimage.distance_transform_edt(~np.pad(plane, margin), sampling=sampling) <= _CLOSING_MM
    closed = ndimage.distance_transform_edt(wide, sampling=sampling) > _CLOSING_MM
    closed = closed[margin:-margin, margin:-margin] | plane
    holes, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~closed)
    small = np.bincount(holes.ravel(), minlength=count + 1) * pixel[0] * pixel[1] <= _LARGEST_HOLE_MM2
    return closed | (small[holes] & (holes > 0))


MEASURES = {"LAA-950": "%", "Perc15": "HU", "lung mass": "g", "lung volume": "ml"}
"""Units of the measures of :class:`DensitometryStudy`."""

DICE = "Dice of the lungs"

_DIGITS = {"LAA-950": 2, "Perc15": 1, "lung mass": 1, "lung volume": 1}
_EMPHYSEMA = ("LAA-950", "Perc15")


class DensitometryStudy:
    """Densitometry as a reader has it, within the lungs found in the image itself; the truth is the same measured in
    the anatomy within its known lungs, of which both sides count the aerated part alone."""

    name = "densitometry"
    sampled = True

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """:data:`MEASURES`, and :data:`DICE` of the whole lungs that were found with the known ones."""
        true = case.once(self.name, lambda: self._true(case))
        found = segment_lungs(image.hu, case.spacing)
        measured = measure_densitometry(image.hu, found.aerated, case.spacing)
        findings = [
            Finding(name, value, truth)
            for name, value, truth in zip(MEASURES, asdict(measured).values(), asdict(true).values(), strict=True)
        ]
        return [*findings, Finding(DICE, dice(found.whole, case.lung), 1.0)]

    @staticmethod
    def _true(case: Case) -> Densitometry:
        return measure_densitometry(case.truth, aerated(case.truth, case.lung, case.spacing), case.spacing)

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Mean absolute errors of LAA-950 and Perc15 against the known truth."""
        error = (rows["value"] - rows["truth"]).abs().groupby([rows["measure"], rows["method"]]).mean()
        return pd.DataFrame({f"|Δ{measure}|, {MEASURES[measure]}": error.get(measure) for measure in _EMPHYSEMA})

    def section(self, rows: pd.DataFrame) -> Section:
        """Errors against the truth and the reference, one case in full, bias and variation, limits of agreement."""
        rows = with_combat(rows, list(MEASURES))
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
        f"after smoothing by {_SMOOTHING_MM:g} mm, without trachea and main bronchi), the truth within the known lungs "
        f"by the same limit, so that vessels and nodules count on neither side. Dice of found and known lungs, over "
        f"all images: {overlap}. {ABOUT_COMBAT}"
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
        "McBride's word; how often the truth lies within 95 % of the samples' values.",
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
