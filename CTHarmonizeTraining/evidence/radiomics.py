"""Radiomic features of nodules: how far harmonization brings them to the reference's (Wei et al. 2020, section 2.5)."""

from __future__ import annotations

import logging
from functools import lru_cache

import numpy as np
import pandas as pd

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.agreement import concordance, holm, mcbride, paired_test
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.cells import NOTHING, interval, mean_deviation, methods_of, number, p_value
from CTHarmonizeTraining.evidence.comparator import ABOUT_COMBAT, with_combat
from CTHarmonizeTraining.evidence.plots import boxes
from CTHarmonizeTraining.evidence.study import (
    REFERENCE,
    UNTOUCHED,
    Finding,
    Image,
    Picture,
    Section,
    Table,
    towards_first,
)

BIN_WIDTH = 25.0
"""HU of a grey level, the same for all images."""

CLASSES = ("firstorder", "glcm", "glrlm", "glszm", "gldm", "ngtdm")

NINE = (
    "firstorder Entropy",
    "firstorder RootMeanSquared",
    "firstorder Variance",
    "glcm Contrast",
    "glcm Idm",
    "glcm JointEntropy",
    "glrlm RunEntropy",
    "glszm ZonePercentage",
    "ngtdm Coarseness",
)
"""Nine representative features: the paper's text shows nine but does not name them, so these are chosen from all
classes."""

_MARGIN = 2  # voxels around the mask that the extractor is given; it reads the mask's alone
_AGREED = (0.90, 0.95, 0.99)


def measure_features(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """All features of :data:`CLASSES` of ``hu`` within ``mask`` (slices, rows, columns; bool), by name
    ('glcm Contrast'), voxels of ``spacing`` (columns, rows, slices) mm, as pyradiomics has them (van Griethuysen et
    al. 2017; no resampling, no filters, grey levels of :data:`BIN_WIDTH`). NaN where the mask has fewer than
    two voxels.

    Raises InputError where pyradiomics is not installed.
    """
    extractor, names = _extractor()
    if mask.sum() < 2:
        return dict.fromkeys(names, float("nan"))
    import SimpleITK as sitk

    places = np.argwhere(mask)
    box = tuple(
        slice(max(0, low - _MARGIN), high + 1 + _MARGIN) for low, high in zip(places.min(0), places.max(0), strict=True)
    )
    image, label = (
        sitk.GetImageFromArray(np.ascontiguousarray(array))
        for array in (hu[box].astype(np.float32), mask[box].astype(np.uint8))
    )
    for one in (image, label):
        one.SetSpacing([float(side) for side in spacing])
    found = extractor.execute(image, label)
    return {name: float(found["original_" + name.replace(" ", "_")]) for name in names}


@lru_cache(maxsize=1)
def _extractor():
    """pyradiomics' extractor, and the names of the features that it is set to."""
    try:
        from radiomics import featureextractor
    except ImportError:
        raise InputError("Radiomic features need pyradiomics: install it with 'pip install pyradiomics'.") from None
    logging.getLogger("radiomics").setLevel(logging.ERROR)
    extractor = featureextractor.RadiomicsFeatureExtractor(binWidth=BIN_WIDTH)
    extractor.disableAllFeatures()
    names = []
    for group in CLASSES:
        extractor.enableFeatureClassByName(group)
        known = featureextractor.getFeatureClasses()[group].getFeatureNames()
        names += [f"{group} {name}" for name, deprecated in known.items() if not deprecated]
    return extractor, names


class RadiomicsStudy:
    """Features of every nodule within the voxels that it truly fills, the same in all images, so that what differs is
    the image. The truth is the features of the anatomy itself, which has no noise."""

    name = "radiomics"
    sampled = False  # a tenth of a second a nodule, for features that nobody reads by their samples
    measured_by = ()

    def __init__(self) -> None:
        """Raises InputError where pyradiomics is not installed."""
        _extractor()

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """All features of every 'nodule k'. Raises InputError where pyradiomics is not installed."""
        findings = []
        known = case.once(self.name, lambda: self._features(case, case.truth))
        for nodule, found, true in zip(case.nodules, self._features(case, image.hu), known, strict=True):
            findings += [Finding(name, found[name], true[name], f"nodule {nodule.number}") for name in found]
        return findings

    @staticmethod
    def _features(case: Case, hu: np.ndarray) -> list[dict[str, float]]:
        """Of every nodule."""
        return [measure_features(hu, case.labels == nodule.number, case.spacing) for nodule in case.nodules]

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Median over all features of the concordance with the reference."""
        found = {
            method: float(_concordances(part).median()) for method, part in rows.groupby("method") if len(part)
        }
        return pd.DataFrame({"concordance of radiomic features": pd.Series(found, dtype=float)})

    def section(self, rows: pd.DataFrame) -> Section:
        """Normalised errors of the nine, their concordance, and how many of all features agree with the reference."""
        rows = with_combat(towards_first(rows), list(dict.fromkeys(rows["measure"])))
        rows = rows[rows["method"] != REFERENCE]
        rows = rows.assign(error=100.0 * (rows["value"] - rows["reference"]).abs() / rows["reference"].abs())
        rows["error"] = rows["error"].where(np.isfinite(rows["error"]))
        shown = [name for name in NINE if (rows["measure"] == name).any()]
        parts = [_errors(rows, shown), _tests(rows, shown), _concordance(rows, shown), _agreeing(rows)]
        if shown:
            parts.append(_picture(rows, shown))
        nodules = len(rows[["case", "item"]].drop_duplicates())
        text = (
            f"{rows['measure'].nunique()} features (first order, GLCM, GLRLM, GLSZM, GLDM, NGTDM; grey levels of "
            f"{BIN_WIDTH:g} HU) of {nodules} nodules, each within the voxels that it truly fills, against the same in "
            "the reference scan, whose own noise is one of many: features of texture cannot agree fully with it. The "
            "nine that are shown by name are chosen from all classes, as Wei et al. (2020) do not name theirs. "
            f"{ABOUT_COMBAT}"
        )
        return Section("Radiomic features of nodules", text, parts)


def _of(rows: pd.DataFrame, method: str, feature: str) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["measure"] == feature)]


def _errors(rows: pd.DataFrame, features: list[str]) -> Table:
    lines = [
        {
            "feature": name,
            **{method: mean_deviation(_of(rows, method, name)["error"], 1) for method in methods_of(rows)},
        }
        for name in features
    ]
    return Table(
        "radiomics-errors",
        "Normalised error of nine features, %",
        pd.DataFrame(lines),
        "|x - reference| / |reference| in percent, mean ± SD over nodules and sources.",
    )


def _tests(rows: pd.DataFrame, features: list[str]) -> Table:
    """Of each method against the untouched scans, adjusted over the features."""
    found = {}
    for method in methods_of(rows):
        if method != UNTOUCHED:
            tests = [_against_untouched(rows, method, name) for name in features]
            cells = zip(tests, holm([test.p for test in tests]), strict=True)
            found[method] = [f"{number(test.difference, 1, True)}, {p_value(p)}" for test, p in cells]
    return Table(
        "radiomics-tests",
        "Normalised error against that of the untouched scans",
        pd.DataFrame({"feature": features, **found}),
        "Median difference in percent (below zero: nearer to the reference than the untouched scan) and p of "
        "Wilcoxon's signed-rank test, paired by nodule (mean over its sources), adjusted by Holm over the features. "
        "Nodules of one chest are not independent: p is too small rather than too large.",
    )


def _against_untouched(rows: pd.DataFrame, method: str, feature: str):
    both = rows[rows["method"].isin([method, UNTOUCHED]) & (rows["measure"] == feature)]
    per_nodule = both.pivot_table(index=["case", "item"], columns="method", values="error", dropna=False)
    per_nodule = per_nodule.reindex(columns=[method, UNTOUCHED])
    return paired_test(per_nodule[method], per_nodule[UNTOUCHED])


def _concordance(rows: pd.DataFrame, features: list[str]) -> Table:
    lines = []
    for name in features:
        line = {"feature": name}
        for method in methods_of(rows):
            of = _of(rows, method, name)
            found = concordance(of["value"], of["reference"])
            line[method] = f"{interval(found, 3)}, {mcbride(found.value)}" if np.isfinite(found.value) else NOTHING
        lines.append(line)
    return Table(
        "radiomics-concordance",
        "Concordance of nine features with the reference scan",
        pd.DataFrame(lines),
        "Lin's concordance over nodules and sources with its 95 % interval, which takes them as independent, and "
        "McBride's word.",
    )


def _concordances(rows: pd.DataFrame) -> pd.Series:
    """Of each feature, over all ``rows`` of it; features without one left out."""
    found = {name: concordance(part["value"], part["reference"]).value for name, part in rows.groupby("measure")}
    return pd.Series(found, dtype=float).dropna()


def _agreeing(rows: pd.DataFrame) -> Table:
    lines = []
    for method in methods_of(rows):
        found = _concordances(rows[rows["method"] == method])
        line = {"method": method, "features": len(found), "median": number(float(found.median()), 3)}
        line |= {f"{limit:g} or more": int((found >= limit).sum()) for limit in _AGREED}
        for group in CLASSES:
            of_group = found[found.index.str.startswith(group)]
            if len(of_group):
                line[f"{group}, {_AGREED[0]:g} or more"] = f"{int((of_group >= _AGREED[0]).sum())} of {len(of_group)}"
        lines.append(line)
    return Table(
        "radiomics-agreeing",
        "How many features agree with the reference scan",
        pd.DataFrame(lines),
        "Of all features, those whose concordance over nodules and sources reaches a limit, in all and by class.",
    )


def _picture(rows: pd.DataFrame, features: list[str]) -> Picture:
    methods = methods_of(rows)
    panels = {name: {method: _of(rows, method, name)["error"] for method in methods} for name in features}
    return Picture(
        "radiomics-errors",
        "Normalised error of nine features, %",
        boxes(panels, "|x - reference| / |reference|, %"),
        "All nodules and sources: quartiles, whiskers to the last value within 1.5 times their distance (Wei et al. "
        "2020, figure 3).",
    )
