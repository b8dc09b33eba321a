"""Lesions and uncertainty, against what is known of signals and noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeTraining.evidence import uncertainty
from CTHarmonizeTraining.evidence.cases import Case, Place, Scan
from CTHarmonizeTraining.evidence.lesions import LesionStudy, response
from CTHarmonizeTraining.evidence.quality import QualityStudy
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Image
from CTHarmonizeTraining.evidence.uncertainty import UncertaintyStudy, auroc

SPACING = (0.7, 0.7, 1.0)
TARGET, SOURCE = Scan("medium", 100.0), Scan("sharp", 25.0)
SHAPE = (16, 48, 60)


def case(clean: np.ndarray, reference: np.ndarray, **known) -> Case:
    whole = np.ones(SHAPE, bool)
    return Case(
        name="made up",
        spacing=SPACING,
        scans={SOURCE: reference},
        references={TARGET: reference},
        region=Roi.whole(SHAPE),
        clean={"medium": clean},
        truth=clean,
        body=whole,
        lung=whole,
        tissues={"lung": whole},
        labels=np.zeros(SHAPE, np.int16),
        emphysema_percent=0.0,
        **known,
    )


def blurred_sphere(place: Place) -> np.ndarray:
    """The sphere as a Gaussian of the kernel's f50 shows it, counted on a fine grid: (slices, rows, columns)."""
    from scipy.ndimage import gaussian_filter

    fine = 5
    axes = [
        ((np.arange(size * fine) + 0.5) / fine - 0.5 - centre) * step
        for size, centre, step in zip(SHAPE, place.centre, SPACING[::-1], strict=True)
    ]
    z, y, x = np.meshgrid(*axes, indexing="ij", sparse=True)
    sphere = ((z**2 + y**2 + x**2) <= (place.diameter / 2) ** 2).astype(np.float32) * place.contrast
    slices = sphere.reshape(SHAPE[0], fine, *sphere.shape[1:]).mean(1)
    # MTF exp(-2 pi^2 s^2 f^2) = 1/2 at f50
    sigma = np.sqrt(np.log(2) / 2) / np.pi / (MEDIUM_F50 / 10.0)
    seen = gaussian_filter(slices, (0, sigma / SPACING[1] * fine, sigma / SPACING[0] * fine))
    return seen[:, fine // 2 :: fine, fine // 2 :: fine]


MEDIUM_F50 = 4.0


@pytest.mark.parametrize("centre", [(8.0, 24.0, 30.0), (7.75, 23.5, 30.25)])
@pytest.mark.parametrize("diameter", [2.0, 4.0])
def test_response_is_the_contrast_whatever_lies_around(centre, diameter):
    place = Place(centre, diameter, 80.0)
    found = response(blurred_sphere(place) - 850.0, place, "medium", SPACING)
    assert found == pytest.approx(80.0, rel=0.08)  # the kernel is no Gaussian
    assert response(np.full(SHAPE, -850.0), place, "medium", SPACING) == pytest.approx(0.0, abs=1e-6)


def test_a_lesion_that_reaches_out_of_the_image_is_not_measured():
    assert np.isnan(response(np.zeros(SHAPE), Place((0.0, 24.0, 30.0), 4.0, 80.0), "medium", SPACING))


def rows(findings: dict[tuple[str, str], list], study: str) -> pd.DataFrame:
    lines = [
        {
            "study": study, "case": "made up", "method": method, "source": source, "target": str(TARGET),
            "item": one.item, "measure": one.measure, "value": one.value, "truth": one.truth,
            "low": np.nan, "high": np.nan,
        }
        for (method, source), found in findings.items()
        for one in found
    ]  # fmt: skip
    from CTHarmonizeTraining.evidence.desk import joined

    return joined(pd.DataFrame(lines))


def test_lesions_lost_and_made_up_are_counted():
    rng = np.random.default_rng(0)
    places = [(8.0, 12.0 + 24 * row, 12.0 + 12 * column) for row in range(2) for column in range(4)]
    known = tuple(Place(centre, 3.0, 100.0) for centre in places[:4])
    vacant = tuple(Place(centre, 3.0, 0.0) for centre in places[4:])
    clean = sum(blurred_sphere(place) for place in known) - 850.0
    reference = np.rint(clean + rng.normal(0, 2, SHAPE)).astype(np.int16)
    fades, appears = (blurred_sphere(Place(places[k], 3.0, contrast)) for k, contrast in ((0, 120.0), (5, 90.0)))
    made = np.rint(reference - fades + appears).astype(np.int16)
    one, study = case(clean, reference, lesions=known, vacant=vacant), LesionStudy()
    found = {
        (REFERENCE, str(TARGET)): study.measure(one, Image(REFERENCE, TARGET, TARGET, reference)),
        (UNTOUCHED, str(SOURCE)): study.measure(one, Image(UNTOUCHED, SOURCE, TARGET, made)),
    }
    table = rows(found, "lesions")
    section = study.section(table)
    line = section.parts[0].frame.set_index("method").loc[UNTOUCHED]
    assert line["lost (%)"] == pytest.approx(25.0)
    assert line["made up (%)"] == pytest.approx(25.0)
    assert line["AUC, faintest"] == pytest.approx(75.0)  # 12 of 16 pairs
    # less the vacant places' mean, a quarter of 90 HU
    assert line["contrast kept (%)"] == pytest.approx(70.0 - 22.5, abs=6.0)
    assert {part.name for part in section.parts} == {"lesions", "lesions-kept", "lesions-lost"}


def noisy(deviation: np.ndarray, told: np.ndarray) -> tuple[Case, Image]:
    rng = np.random.default_rng(1)
    clean = np.zeros(SHAPE, np.float32)
    reference = np.rint(rng.normal(0.0, deviation)).astype(np.int16)
    one = case(clean, reference)
    return one, Image("flow, mean", SOURCE, TARGET, clean.astype(np.int16), told.astype(np.float32))


def of(found, measure: str) -> dict[str, float]:
    return {one.item: one.value for one in found if one.measure == measure}


def test_a_true_deviation_covers_what_it_should_and_half_of_it_less():
    deviation = np.random.default_rng(2).uniform(10.0, 60.0, SHAPE)
    found = UncertaintyStudy().measure(*noisy(deviation, deviation))
    for level, share in of(found, "coverage").items():
        assert share == pytest.approx(float(level.split()[0]) / 100.0, abs=0.02)
    half = of(UncertaintyStudy().measure(*noisy(deviation, deviation / 2)), "coverage")
    assert half["68 %"] == pytest.approx(2 * stats.norm.cdf(stats.norm.ppf(0.84) / 2) - 1, abs=0.02)
    told = of(found, "RMS deviation")
    true = {one.item: one.truth for one in found if one.measure == "RMS deviation"}
    assert list(told.values()) == pytest.approx(list(true.values()), rel=0.15)


def test_area_under_the_curve_is_that_of_pairs():
    rng = np.random.default_rng(3)
    score, positive = rng.integers(0, 9, 60).astype(float), rng.random(60) < 0.3
    pairs = np.subtract.outer(score[positive], score[~positive])
    assert auroc(score, positive) == pytest.approx(np.mean(pairs > 0) + 0.5 * np.mean(pairs == 0))
    assert np.isnan(auroc(score, np.zeros(60, bool)))


def test_an_image_without_deviation_has_no_uncertainty():
    deviation = np.full(SHAPE, 20.0)
    one, image = noisy(deviation, deviation)
    assert UncertaintyStudy().measure(one, Image("unet", SOURCE, TARGET, image.hu)) == []
    assert "No method" in UncertaintyStudy().section(pd.DataFrame()).text


def test_intervals_hold_the_reference_or_not():
    table = pd.DataFrame(
        {
            "case": ["a"] * 4, "method": ["flow, mean over samples"] * 4, "study": ["densitometry"] * 4,
            "measure": ["LAA-950"] * 4,
            "value": [1.0] * 4, "low": [0.0] * 4, "high": [2.0] * 4, "reference": [0.5, 1.5, 1.9, 3.0],
            "truth": [5.0, 1.0, np.nan, np.nan],
        }
    )  # fmt: skip
    line = uncertainty.intervals(table).frame.iloc[0]
    assert line["hold the reference's (%)"] == 75.0
    assert line["hold the truth (%)"] == 50.0
    assert line["values"] == 4


def test_quality_of_a_shifted_image_is_the_shift():
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    clean = np.broadcast_to(300.0 * np.sin(x / 3.0) + y, SHAPE).astype(np.float32)
    one = case(clean, np.rint(clean).astype(np.int16))
    found = QualityStudy().measure(one, Image("unet", SOURCE, TARGET, np.rint(clean + 7.0).astype(np.int16)))
    for item in ("axial, body", "coronal, body", "sagittal, body"):
        assert of(found, "RMSE")[item] == pytest.approx(7.0, abs=0.3)  # few columns, rounded
        assert of(found, "PSNR")[item] == pytest.approx(20 * np.log10(2000 / 7.0), abs=0.3)
    assert of(found, "bias")["lung"] == pytest.approx(7.0, abs=0.05)
    assert of(found, "NRMSE")["axial, body"] == pytest.approx(700.0 / np.ptp(clean), rel=0.02)
