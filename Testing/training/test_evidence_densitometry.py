"""Densitometry of a chest that is known, and sections of made-up findings."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from evidence_rows import METHODS, SOURCES, case_of, rows_of

from CTHarmonizeTraining.evidence.agreement import bland_altman
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.cells import deviation_over_sources, interval, mean_deviation, number
from CTHarmonizeTraining.evidence.comparator import COMBAT, with_combat
from CTHarmonizeTraining.evidence.densitometry import (
    DICE,
    MEASURES,
    DensitometryStudy,
    dice,
)
from CTHarmonizeTraining.evidence.study import Image, Picture, Table

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from ct_chest import LUNG_HU, SPACING, chest, scanned  # noqa: E402


def a_case() -> Case:
    hu, lung = chest()
    return case_of(hu, SPACING, lung=lung)


def test_study_measures_what_is_there() -> None:
    case, scan = a_case(), Scan("sharp", 25.0)
    clear = DensitometryStudy().measure(case, Image("unet", scan, scan, scanned(case.truth, 5.0, 0.3)))
    noisy = DensitometryStudy().measure(case, Image("untouched", scan, scan, scanned(case.truth, 80.0, 0.3)))
    assert [finding.measure for finding in clear] == [*MEASURES, DICE] == [finding.measure for finding in noisy]
    of = {finding.measure: finding for finding in clear}
    assert of["LAA-950"].truth < 0.5 and of["LAA-950"].value < 0.5  # the ends of the bronchi
    assert of["Perc15"].value == pytest.approx(LUNG_HU - 5 * 1.04, abs=3.0)
    assert of["lung mass"].value == pytest.approx(of["lung mass"].truth, rel=0.05)
    assert {finding.measure: finding for finding in noisy}["LAA-950"].value == pytest.approx(
        13.0, abs=2.0
    )  # of the law


def test_dice() -> None:
    one, none = np.array([True, True, False, False]), np.zeros(4, bool)
    assert dice(one, one[::-1]) == 0.0 and dice(one, ~none) == pytest.approx(2 / 3) and np.isnan(dice(none, none))


def table(section, name: str):
    return next(part for part in section.parts if part.name == name).frame.set_index("method")


def test_section() -> None:
    made = rows_of({"LAA-950": (10, 4), "Perc15": (-930, 15), "lung mass": (400, 50), "lung volume": (3000, 300)})
    section = DensitometryStudy().section(made)
    errors = table(section, "densitometry-errors")
    assert list(errors.index) == [*METHODS, COMBAT]
    of = made[(made["method"] == "unet") & (made["measure"] == "LAA-950")]
    assert errors.loc["unet", "|ΔLAA-950|, %, truth"] == mean_deviation((of["value"] - of["truth"]).abs())
    one = table(section, "densitometry-one-case-perc15")
    first = made[(made["case"] == "case 1") & (made["method"] == "untouched") & (made["measure"] == "Perc15")]
    assert float(one.loc["untouched", "SD"]) == pytest.approx(first["value"].std(), abs=0.05)
    assert set(SOURCES) < set(one.columns)
    limits = table(section, "densitometry-agreement").loc["unet"].iloc[0]
    assert limits["bias"] == interval(bland_altman(of["value"], of["reference"]).bias, 2, True)
    assert "truth within samples, %" in table(section, "densitometry-variation").columns
    for part in section.parts:
        assert isinstance(part, Table) or _is_image(part)
        assert isinstance(part, Picture) or not part.frame.empty


def _is_image(picture: Picture) -> bool:
    from matplotlib.image import imread

    return imread(io.BytesIO(picture.content)).std() > 0.01


def test_section_of_scans_without_truth_or_enough_cases() -> None:
    measures = {"LAA-950": (10, 4), "Perc15": (-930, 15), "lung mass": (400, 50), "lung volume": (3000, 300)}
    section = DensitometryStudy().section(rows_of(measures, cases=1, truth=False))
    errors = table(section, "densitometry-errors")
    assert COMBAT not in errors.index  # it needs two samples a batch
    assert errors.loc["unet", "|ΔPerc15|, HU, truth"] == "-"
    assert "[" not in table(section, "densitometry-variation").loc["unet", "bias to reference"].iloc[0]


def test_combat_brings_the_sources_to_the_reference() -> None:
    made = rows_of({"LAA-950": (10, 4), "Perc15": (-930, 15)}, cases=12)
    moved = with_combat(made, ["LAA-950", "Perc15"])
    of = moved[moved["method"] == COMBAT]
    assert len(of) == 12 * len(SOURCES) * 2
    worst = of[(of["source"] == "sharp 100 %") & (of["measure"] == "Perc15")]
    before = made[(made["method"] == "untouched") & (made["source"] == "sharp 100 %") & (made["measure"] == "Perc15")]
    assert abs((worst["value"] - worst["reference"]).mean()) < 0.15 * abs(
        (before["value"] - before["reference"]).mean()
    )
    assert of["low"].isna().all() and (moved[moved["method"] != COMBAT].reset_index(drop=True).equals(made))


def test_cells() -> None:
    assert mean_deviation([1.0, 3.0, np.nan]) == "2.00 ± 1.41" and mean_deviation([2.0]) == "2.00"
    assert mean_deviation([]) == "-" and number(-0.001) == "0.00" and number(0.5, 1, True) == "+0.5"
    made = rows_of({"LAA-950": (10, 4)}, cases=2)
    of = made[made["method"] == "untouched"]
    one, two = (of[of["case"] == name]["value"].var() for name in ("case 1", "case 2"))
    assert deviation_over_sources(of) == pytest.approx(np.sqrt((one + two) / 2))
