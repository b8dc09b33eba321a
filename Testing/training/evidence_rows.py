"""Cases, and findings as the suite hands them to a section, made up: no method is behind them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED

SOURCES = ("smooth 25 %", "medium 25 %", "sharp 25 %", "sharp 100 %")
TARGET = "medium 100 %"
METHODS = (UNTOUCHED, "mtf-filter", "unet", "ctflow, mean", "ctflow, one image")


def rows_of(
    measures: dict[str, tuple[float, float]],
    items: Sequence[str] = ("",),
    cases: int = 6,
    truth: bool = True,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows of ``measures`` by name: (mean, deviation over cases and items) of the truth.

    The untouched scan is off by half a deviation for every source after the first; each method after it by half as much
    as the one before. The mean of 'ctflow' has an interval. With ``truth`` false there is none.
    """
    random = np.random.default_rng(seed)
    lines = []
    for case in range(cases):
        for item in items:
            for measure, (mean, deviation) in measures.items():
                true = mean + deviation * random.normal()
                reference = true + 0.02 * deviation * random.normal()
                common = {"case": f"case {case + 1}", "target": TARGET, "item": item, "measure": measure}
                common |= {"truth": true if truth else np.nan, "reference": reference, "low": np.nan, "high": np.nan}
                lines.append({**common, "method": REFERENCE, "source": TARGET, "value": reference})
                for place, source in enumerate(SOURCES):
                    off, noise = 0.5 * deviation * place, 0.1 * deviation * random.normal()
                    for number, method in enumerate(METHODS):
                        value = true + (off + noise) * 0.5**number
                        line = {**common, "method": method, "source": source, "value": value}
                        if method == "ctflow, mean":
                            line |= {"low": value - deviation, "high": value + deviation}
                        lines.append(line)
    columns = "case method source target item measure value truth reference low high".split()
    return pd.DataFrame(lines)[columns]


def case_of(truth: np.ndarray, spacing: tuple[float, float, float], **known) -> Case:
    """A case of the anatomy ``truth`` (slices, rows, columns) HU, all of it body; ``known``: what else it has."""
    everywhere = np.ones(truth.shape, bool)
    usual = {
        "name": "made up", "scans": {}, "references": {}, "region": Roi.whole(truth.shape), "clean": {},
        "body": everywhere, "lung": everywhere, "tissues": {}, "labels": np.zeros(truth.shape, np.int16),
        "emphysema_percent": 0.0,
    }  # fmt: skip
    return Case(spacing=spacing, truth=truth.astype(np.float32), **usual | known)
