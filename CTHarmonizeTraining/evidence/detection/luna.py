"""Any detector's findings, in the columns of LUNA16's files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.detection.scores import NOTHING, Outcome, Points, match

_PLACE = ["coordX", "coordY", "coordZ"]
_CANDIDATES = ["seriesuid", *_PLACE, "probability"]
_ANNOTATIONS = ["seriesuid", *_PLACE, "diameter_mm"]


def read_luna(path: Path) -> pd.DataFrame:
    """Candidates (seriesuid, coordX, coordY, coordZ, probability) or annotations (diameter_mm in place of the last), mm
    in the patient's frame. Raises InputError for what is neither."""
    try:
        table = pd.read_csv(path, dtype={"seriesuid": str}, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"'{path}' cannot be read as a table of commas: {_line(error)}.") from error
    columns = next((of for of in (_CANDIDATES, _ANNOTATIONS) if set(of) <= {*table.columns}), None)
    if columns is None:
        raise InputError(f"'{path}' has not the columns {', '.join(_CANDIDATES)} (or diameter_mm in the last's place).")
    table = table[columns].copy()
    for name in columns[1:]:
        table[name] = pd.to_numeric(table[name], errors="coerce")
    wrong = ~np.isfinite(table[columns[1:]].to_numpy(float)).all(1) | table["seriesuid"].isna().to_numpy()
    if wrong.any():
        raise InputError(f"Line {int(wrong.argmax()) + 2} of '{path}' is no series with finite numbers.")
    last = table[columns[-1]]
    if columns is _CANDIDATES and not last.between(0.0, 1.0).all():
        raise InputError(f"'{path}' has probabilities that do not lie between 0 and 1.")
    if columns is _ANNOTATIONS and not (last >= 0.0).all():
        raise InputError(f"'{path}' has diameters below 0 mm.")
    return table


def outcomes(
    candidates: pd.DataFrame, annotations: pd.DataFrame, excluded: pd.DataFrame | None = None
) -> Mapping[str, Outcome]:
    """What was found, by series: of every series that one of the tables names. Tables as :func:`read_luna` gives them;
    ``excluded`` are findings that do not count, either way. A scan without candidates and nodules is in no table: add
    ``Outcome(np.zeros(0), np.zeros(0))`` for it, or there are more false positives a scan than there should be."""
    result = {}
    for series in sorted({*candidates["seriesuid"], *annotations["seriesuid"]}):
        seen = candidates[candidates["seriesuid"] == series]
        nodules = _points(annotations, series)
        ignored = NOTHING if excluded is None else _points(excluded, series)
        result[series], _ = match(seen[_PLACE].to_numpy(), seen["probability"].to_numpy(), nodules, ignored)
    return result


def _points(table: pd.DataFrame, series: str) -> Points:
    of = table[table["seriesuid"] == series]
    return Points.of(of[_PLACE].to_numpy(), of["diameter_mm"].to_numpy())


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
