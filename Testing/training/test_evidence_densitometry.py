"""Densitometry: shapes whose lungs, percentiles and masses are known, and sections of made-up findings."""

from __future__ import annotations

import io

import numpy as np
import pytest
from evidence_rows import METHODS, SOURCES, rows_of
from scipy import ndimage

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.agreement import bland_altman
from CTHarmonizeTraining.evidence.cases import Case, Scan
from CTHarmonizeTraining.evidence.cells import deviation_over_sources, interval, mean_deviation, number
from CTHarmonizeTraining.evidence.comparator import COMBAT, with_combat
from CTHarmonizeTraining.evidence.densitometry import (
    DICE,
    MEASURES,
    DensitometryStudy,
    aerated,
    dice,
    measure_densitometry,
    segment_lungs,
)
from CTHarmonizeTraining.evidence.study import Image, Picture, Table

SPACING = (1.0, 1.0, 2.5)
LUNG_HU = -860.0


def chest(slices: int = 12, middle: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Anatomy (HU) and lungs: a body with two ellipsoid lungs, vessels, a trachea that forks into them, stomach gas.

    ``middle``: z (mm) of the slab's middle; the lungs reach from -90 to 90, the carina lies at 0.
    """
    shape = (slices, 200, 260)
    z, y, x = (axis.astype(np.float32) for axis in np.indices(shape))
    z, y, x = (z - (slices - 1) / 2) * SPACING[2] + middle, y - 99.5, x - 129.5
    hu = np.full(shape, -1000.0, np.float32)
    hu[(x / 120) ** 2 + (y / 85) ** 2 < 1] = 40.0
    hu[(np.abs(x) < 60) & (np.abs(y - 96) < 2)] = 100.0  # the table
    lung = ((np.abs(x) - 62) / 40) ** 2 + (y / 60) ** 2 + (z / 90) ** 2 < 1
    hu[lung] = LUNG_HU
    tubes = np.random.default_rng(seed).uniform([25, -55], [95, 55], (40, 2))
    for px, py in tubes:
        hu[lung & (np.hypot(np.abs(x) - px, y - py) < 2.0)] = 40.0
    for wall, value in ((2.5, 40.0), (0.0, -995.0)):
        hu[(np.hypot(x, y - 5) < 8.0 + wall) & (z < 0)] = value
        hu[(np.hypot(np.abs(x) - np.clip(z + 12, 0, 26), y - 5) < 7.0 + wall) & (z > -12) & (z < 14)] = value
    hu[((x - 20) / 20) ** 2 + ((y + 45) / 14) ** 2 + ((z - 80) / 25) ** 2 < 1] = -990.0
    return hu, lung


def scanned(hu: np.ndarray, noise: float, blur: float = 0.8, seed: int = 1) -> np.ndarray:
    white = np.random.default_rng(seed).normal(size=hu.shape)
    grain = ndimage.gaussian_filter(white, (0, 0.6, 0.6))
    image = ndimage.gaussian_filter(hu, (0.3, blur, blur)) + noise * grain / grain.std()
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)


@pytest.mark.parametrize(
    ("slices", "middle", "noise"),
    [(76, 0.0, 60.0), (12, -60.0, 120.0), (12, 0.0, 15.0), (12, 0.0, 120.0), (12, 70.0, 120.0)],
    ids=["whole", "apex", "carina", "noisy carina", "base"],
)
def test_lungs_are_found_without_airways(slices: int, middle: float, noise: float) -> None:
    hu, lung = chest(slices, middle)
    if slices == 76:  # coarser: quicker
        hu, lung, spacing = hu[:, ::2, ::2], lung[:, ::2, ::2], (2.0, 2.0, 2.5)
        found = segment_lungs(scanned(hu, noise, 0.4), spacing)
    else:
        spacing = SPACING
        found = segment_lungs(scanned(hu, noise), spacing)
    assert dice(found.whole, lung) > 0.97
    assert dice(found.aerated, aerated(hu, lung, spacing)) > 0.97
    gas = (hu < -980) & ndimage.binary_erosion(ndimage.binary_fill_holes(hu[len(hu) // 2] > -100))[None] & ~lung
    outside = ndimage.binary_dilation(lung, iterations=4)
    assert (found.aerated & gas & ~outside).sum() <= 0.02 * max(1, gas.sum())


def test_no_lungs() -> None:
    air = np.full((4, 40, 40), -1000, np.int16)
    found = segment_lungs(air, SPACING)
    assert not found.whole.any() and not found.aerated.any()
    assert np.isnan(measure_densitometry(air, found.aerated, SPACING).laa950)
    assert np.isnan(dice(found.whole, found.whole))
    with pytest.raises(InputError):
        segment_lungs(air[0], SPACING)


def test_densitometry_of_a_normal_distribution() -> None:
    from scipy import stats

    values = np.random.default_rng(2).normal(-900.0, 60.0, (40, 100, 100))
    found = measure_densitometry(values, np.ones(values.shape, bool), (0.5, 0.5, 2.0))
    law = stats.norm(-900.0, 60.0)
    assert found.laa950 == pytest.approx(100 * law.cdf(-950.5), abs=0.15)  # values are rounded first
    assert found.perc15 == pytest.approx(law.ppf(0.15), abs=0.4)
    assert found.volume == pytest.approx(400000 * 0.5 / 1000)
    assert found.mass == pytest.approx(found.volume * 124.0 / 1024.0, rel=2e-3)


def test_densitometry_by_hand() -> None:
    hu = np.array([-1000, -960, -951, -950, -900, -900, -900, -900, -900, -900], np.int16)
    found = measure_densitometry(hu, np.ones(10, bool), (1.0, 1.0, 1.0))
    assert found.laa950 == 30.0  # strictly below
    assert found.perc15 == pytest.approx(-960.0)  # a tenth lies below -960.5, two below -959.5
    assert found.mass == pytest.approx((24 + 64 + 73 + 74 + 6 * 124) / 1024 / 1000)


def a_case() -> Case:
    hu, lung = chest()
    return Case("made up", SPACING, {}, {}, hu, lung, np.zeros(hu.shape, np.int16), 0.0)


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
