"""Nodules by their shape: volume, surface to volume, sphericity of what 2-means segments (Zarei et al. 2024, II-D)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy import ndimage

from CTHarmonizeTraining.evidence.agreement import bootstrap_mean
from CTHarmonizeTraining.evidence.cases import Case, KnownNodule
from CTHarmonizeTraining.evidence.cells import NOTHING, interval, mean_deviation, methods_of
from CTHarmonizeTraining.evidence.plots import boxes
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Picture, Section, Table, towards_first

MARGIN_SHARE, MARGIN_MM = 0.25, 2.0
"""How far around a nodule is looked, beyond its radius: the larger of this share of its diameter and this many mm."""


@dataclass(frozen=True)
class Shape:
    """Of a segmented nodule's mesh: ``volume`` (mm^3), ``ratio`` of surface to volume (1/mm), ``sphericity`` (1 for a
    sphere; about 0.9 for the steps of a voxelized one)."""

    volume: float
    ratio: float
    sphericity: float


NOT_FOUND = Shape(*[float("nan")] * 3)

VOLUME, RATIO, SPHERICITY, BUILT = "volume", "surface/volume", "sphericity", "volume, as built"
"""Measures of :class:`NoduleStudy`; the last is the volume again, its truth that of the nodule's construction."""

_SHAPE = (VOLUME, RATIO, SPHERICITY)


def two_means(values: np.ndarray) -> float:
    """Threshold between the two classes that 2-means finds in ``values`` (any shape): halfway between the classes'
    means, begun at the 5th and 95th percentile, so without chance; NaN where all values are alike."""
    low, high = np.percentile(values, (5.0, 95.0))
    if low == high:
        low, high = float(np.min(values)), float(np.max(values))
    if low == high:
        return float("nan")
    threshold = (low + high) / 2.0
    while True:
        above = values > threshold
        moved = (values[above].mean() + values[~above].mean()) / 2.0
        if abs(moved - threshold) < 1e-3:
            return float(moved)
        threshold = moved


def segment_nodule(hu: np.ndarray, nodule: KnownNodule, spacing: tuple[float, float, float]) -> np.ndarray:
    """Mask (of ``hu``'s shape: slices, rows, columns) of what stands at the known place of ``nodule``; ``spacing``
    (columns, rows, slices) mm.

    In a ball around the known centre, of the nodule's radius and :data:`MARGIN_SHARE`, the denser of two classes; of it
    the component nearest to the centre, where one lies within the radius. The ball cuts vessels that touch the nodule,
    and the tips of long spicules. Nothing is found where HU are all alike.
    """
    size = np.array(spacing[::-1])
    offsets = [(np.arange(n) - c) * mm for n, c, mm in zip(hu.shape, nodule.centre, size, strict=True)]
    radius = nodule.diameter / 2.0
    reach = radius + max(MARGIN_SHARE * nodule.diameter, MARGIN_MM)
    box = tuple(slice(*np.searchsorted(offset, (-reach, reach))) for offset in offsets)
    squares = (offset[part] ** 2 for offset, part in zip(offsets, box, strict=True))
    distance = np.sqrt(np.add.outer(np.add.outer(*(next(squares), next(squares))), next(squares)))
    ball = distance <= reach
    mask = np.zeros(hu.shape, bool)
    if not ball.any():
        return mask
    labels, _ = ndimage.label(ball & (hu[box] > two_means(hu[box][ball].astype(np.float64))))
    near = np.where(labels > 0, distance, np.inf)
    if near.min() <= radius:
        mask[box] = labels == labels.flat[near.argmin()]
    return mask


def measure_shape(mask: np.ndarray, spacing: tuple[float, float, float]) -> Shape:
    """Shape of ``mask`` (slices, rows, columns; bool) by its marching-cubes mesh, both volume and surface, as the
    paper has them; sphericity (36 pi V^2)^(1/3) / A. NaN for an empty mask."""
    from skimage.measure import marching_cubes

    if not mask.any():
        return NOT_FOUND
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    padded = np.pad(mask[box], 1).astype(np.float32)
    points, faces, *_ = marching_cubes(padded, 0.5, spacing=spacing[::-1])
    a, b, c = (points[faces[:, corner]].astype(np.float64) for corner in range(3))
    volume = float(abs(np.einsum("ij,ij->i", a, np.cross(b, c)).sum()) / 6.0)
    area = float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2.0)
    return Shape(volume, area / volume, float((36.0 * np.pi * volume**2) ** (1 / 3) / area))


class NoduleStudy:
    """Shapes of the case's nodules, found by the same algorithm at the same places in every image; the truth is what
    it finds in the anatomy itself."""

    name = "nodules"
    sampled = True
    measured_by = ()

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """Volume, surface to volume, sphericity, and the volume again beside that of the nodule's construction, of
        'nodule k'."""
        findings = []
        known = case.once(self.name, lambda: _shapes(case, case.truth))
        for nodule, found, true in zip(case.nodules, _shapes(case, image.hu), known, strict=True):
            item = f"nodule {nodule.number}"
            pairs = zip(_SHAPE, asdict(found).values(), asdict(true).values(), strict=True)
            findings += [Finding(name, value, truth, item) for name, value, truth in pairs]
            findings.append(Finding(BUILT, found.volume, nodule.volume, item))
        return findings

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """NRMSE of the nodules' volumes against the reference scan, percent; a nodule that was not found has none."""
        of = rows[rows["measure"] == VOLUME].groupby("method")
        error = of.apply(lambda part: nrmse(part["value"].fillna(0.0), part["reference"]))
        return pd.DataFrame({"nodule volume NRMSE, %": error})

    def section(self, rows: pd.DataFrame) -> Section:
        """Normalised errors by method, volumes by source, and the errors' distributions."""
        rows = towards_first(rows)
        parts = [_errors(rows), _bias(rows)]
        if methods_of(rows):
            parts.append(_picture(rows))
        return Section("Nodule morphology", _text(rows), parts)


def _shapes(case: Case, hu: np.ndarray) -> list[Shape]:
    """Of every nodule, found in ``hu``."""
    return [measure_shape(segment_nodule(hu, nodule, case.spacing), case.spacing) for nodule in case.nodules]


def _text(rows: pd.DataFrame) -> str:
    key = ["case", "item"]
    true, built = (rows[rows["measure"] == name].groupby(key, sort=False)["truth"].first() for name in (VOLUME, BUILT))
    return (
        f"{len(built)} nodules of known place, each segmented by 2-means of the HU in a ball of its radius and "
        f"{100 * MARGIN_SHARE:g} % of its diameter ({MARGIN_MM:g} mm at least); volume V and surface A are those of "
        "the mask's marching-cubes mesh, sphericity S is (36 π V²)^(1/3) / A. The truth is what the same algorithm "
        "finds in the anatomy. Its volumes there are "
        f"{mean_deviation(100.0 * (true / built - 1.0), 1)} % off those that the nodules were built with: "
        "what a vessel that touches a nodule has within the ball counts too, and spicules are not in the latter."
    )


def _relative(rows: pd.DataFrame, method: str, measure: str, against: str = "truth") -> pd.DataFrame:
    """Rows of a method and measure with their ``error`` in percent of the truth (or the reference)."""
    of = rows[(rows["method"] == method) & (rows["measure"] == measure)]
    return of.assign(error=100.0 * (of["value"] - of[against]) / of[against])


def nrmse(value: pd.Series, truth: pd.Series) -> float:
    """Root mean square error in percent of the mean truth, over the pairs that are known; NaN without any."""
    known = value.notna() & truth.notna()
    if not known.any():
        return float("nan")
    value, truth = value[known], truth[known]
    return float(100.0 * np.sqrt(((value - truth) ** 2).mean()) / truth.mean())


def _errors(rows: pd.DataFrame) -> Table:
    lines = []
    for method in methods_of(rows):
        line = {"method": method}
        for against in ("truth", "reference"):
            for measure in _SHAPE:
                of = rows[(rows["method"] == method) & (rows["measure"] == measure)]
                each = [nrmse(part["value"], part[against]) for _, part in of.groupby("source", sort=False)]
                line[f"NRMSE {measure}, %, {against}"] = mean_deviation(each, 1)
        of = rows[(rows["method"] == method) & (rows["measure"] == VOLUME)]
        line["not found"] = int(of["value"].isna().sum())
        lines.append(line)
    return Table(
        "nodules-errors",
        "Errors of nodule morphology",
        pd.DataFrame(lines),
        "Mean ± SD over sources of the root mean square error over all nodules, in percent of their mean (Zarei et "
        "al., table II, who do not say what they normalise by), against the truth and the reference scan; 'not found': "
        "nodules of all images at whose place nothing was segmented.",
    )


def _bias(rows: pd.DataFrame) -> Table:
    of_volume = rows[rows["measure"] == VOLUME]
    sources = list(dict.fromkeys(of_volume.loc[of_volume["method"] != REFERENCE, "source"]))
    lines = []
    for method in methods_of(rows):
        of = _relative(rows, method, VOLUME)
        line = {"method": method}
        for source in sources:
            part = of[of["source"] == source]
            line[source] = interval(bootstrap_mean(part["error"], part["case"]), 1, True) if len(part) else NOTHING
        lines.append(line)
    return Table(
        "nodules-volume",
        "Bias of nodule volume by source, %",
        pd.DataFrame(lines),
        "Mean error in percent of each nodule's true volume, with the 95 % bootstrap interval over cases.",
    )


def _picture(rows: pd.DataFrame) -> Picture:
    methods = methods_of(rows)
    panels = {measure: {method: _relative(rows, method, measure)["error"] for method in methods} for measure in _SHAPE}
    return Picture(
        "nodules-errors",
        "Errors of nodule morphology",
        boxes(panels, "error, % of the truth", zero=True),
        "All nodules and sources: quartiles, whiskers to the last value within 1.5 times their distance.",
    )
