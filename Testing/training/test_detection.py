"""Nodule detection: scores against worked examples and other definitions, boxes joined to nodules, and the detector."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage, stats

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.cases import KnownNodule, Scan
from CTHarmonizeTraining.evidence.detection import detect
from CTHarmonizeTraining.evidence.detection.detect import Candidates2D, Detector, joined
from CTHarmonizeTraining.evidence.detection.luna import outcomes, read_luna
from CTHarmonizeTraining.evidence.detection.patches import Anatomy, patch
from CTHarmonizeTraining.evidence.detection.scores import (
    NOTHING,
    RATES,
    Counts,
    Outcome,
    Points,
    auc,
    average_precision,
    best_threshold,
    bootstrap,
    cpm,
    froc,
    match,
    sensitivity_at,
)
from CTHarmonizeTraining.evidence.detection.study import DetectionStudy
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Image
from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.noise import Exposure
from CTHarmonizeTraining.simulation.phantom import ChestPhantom
from CTHarmonizeTraining.simulation.projector import Geometry, Grid
from CTHarmonizeTraining.simulation.scan import simulate

needs_monai = pytest.mark.skipif(importlib.util.find_spec("monai") is None, reason="the package monai is not installed")


def outcome(hits: list[float], false: list[float]) -> Outcome:
    return Outcome(np.array(hits), np.array(false))


def drawn(count: int, seed: int = 0) -> list[Outcome]:
    rng = np.random.default_rng(seed)
    return [
        Outcome(rng.beta(3, 2, 4) * (rng.random(4) < 0.8), rng.beta(1, 3, rng.integers(0, 9))) for _ in range(count)
    ]


# Matching


def test_only_what_lies_within_the_radius_hits() -> None:
    nodules = Points.of([[0, 0, 0], [50, 0, 0]], [10, 6])
    found, hit = match(np.array([[0, 0, 4.9], [0, 0, 5.1], [50, 2.9, 0]]), np.array([0.9, 0.8, 0.3]), nodules)
    assert hit.tolist() == [0, -1, 1]
    assert found.hits.tolist() == [0.9, 0.3] and found.false.tolist() == [0.8]


def test_several_hits_of_a_nodule_count_once_and_the_rest_not_at_all() -> None:
    found, hit = match(np.zeros((3, 3)), np.array([0.2, 0.7, 0.5]), Points.of([[0, 0, 1]], [8]))
    assert hit.tolist() == [-2, 0, -2]
    assert found.hits.tolist() == [0.7] and not len(found.false)


def test_excluded_findings_and_small_nodules_count_neither_way() -> None:
    places = np.array([[0, 0, 0], [20, 0, 0], [40, 0, 0]])
    nodules, excluded = Points.of([[0, 0, 0], [60, 0, 0]], [2.9, 4]), Points.of([[20, 0, 1]], [6])
    found, hit = match(places, np.array([0.9, 0.8, 0.7]), nodules, excluded)
    assert hit.tolist() == [-2, -2, -1]
    assert found.hits.tolist() == [0.0] and found.false.tolist() == [0.7]


def test_a_nodule_beside_an_excluded_finding_is_a_nodule() -> None:
    found, _ = match(np.zeros((1, 3)), np.array([0.4]), Points.of([[0, 0, 1]], [8]), Points.of([[0, 1, 0]], [8]))
    assert found.hits.tolist() == [0.4] and not len(found.false)


def test_nothing_is_matched_with_nothing() -> None:
    found, hit = match(np.zeros((0, 3)), np.zeros(0), NOTHING)
    assert not len(found.hits) and not len(found.false) and not len(hit)


# Scores: a worked example of two scans, four nodules, of which one was missed, and three false candidates

WORKED = [outcome([0.9, 0.6], [0.8]), outcome([0.7, 0.0], [0.5, 0.2])]


def test_precision_recall_and_f1_of_the_worked_example() -> None:
    counts = Counts.of(WORKED, 0.6)
    assert (counts.hits, counts.false, counts.missed) == (3, 1, 1)
    assert counts.precision == pytest.approx(3 / 4) and counts.recall == pytest.approx(3 / 4)
    assert counts.f1 == pytest.approx(3 / 4)
    assert np.isnan(Counts.of([outcome([], [])], 0.5).f1)
    assert Counts.of([outcome([0.2], [])], 0.5).f1 == 0.0


def test_the_threshold_of_the_best_f1() -> None:
    # from 0.9: 2/5, 0.8: 2/6, 0.7: 4/7, 0.6: 6/8, 0.5: 6/9; between the best and the next
    assert best_threshold(WORKED) == pytest.approx(0.55)
    assert best_threshold([outcome([0.0], [])]) == 1.0


def test_froc_of_the_worked_example() -> None:
    false, sensitivity = froc(WORKED)
    assert false.tolist() == [0, 0, 0.5, 0.5, 0.5, 1.0, 1.5]
    assert sensitivity.tolist() == [0, 0.25, 0.25, 0.5, 0.75, 0.75, 0.75]
    # at 1/8 and 1/4 on the line from (0, 1/4) to (1/2, 1/4), from 1/2 on the third nodule is found
    assert sensitivity_at(WORKED).tolist() == [0.25, 0.25, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert cpm(WORKED) == pytest.approx((2 * 0.25 + 5 * 0.75) / 7)


def test_cpm_is_that_of_the_definition_at_every_threshold() -> None:
    scans = drawn(30)
    points = [(0.0, 0.0)]
    for threshold in sorted({*np.concatenate([np.append(s.hits[s.hits > 0], s.false) for s in scans])}, reverse=True):
        counts = Counts.of(scans, threshold)
        points.append((counts.false / len(scans), counts.recall))
    rates, recalls = np.array(points).T
    assert cpm(scans) == pytest.approx(np.mean([np.interp(rate, rates, recalls) for rate in RATES]))


def test_a_detector_that_finds_all_and_nothing_else() -> None:
    scans = [outcome([0.9, 0.8], [0.1])] * 3
    assert cpm(scans) == 1.0 and auc(scans) == 1.0 and Counts.of(scans, best_threshold(scans)).f1 == 1.0


def test_auc_is_mann_and_whitneys() -> None:
    scans = drawn(20)
    hits = np.concatenate([scan.hits for scan in scans])
    hits, false = hits[hits > 0].round(1), np.concatenate([scan.false for scan in scans]).round(1)  # with ties
    expected = stats.mannwhitneyu(hits, false).statistic / (len(hits) * len(false))
    assert auc([Outcome(hits, false)]) == pytest.approx(expected)
    assert np.isnan(auc([outcome([0.5], [])]))


def test_the_interval_of_sensitivity_is_near_the_binomials() -> None:
    rng = np.random.default_rng(1)
    scans = [outcome([float(rng.random() < 0.7)], []) for _ in range(200)]
    value, _, low, high = bootstrap(lambda chosen: Counts.of(chosen, 0.5).recall, scans)
    error = 1.96 * np.sqrt(value * (1 - value) / 200)
    assert (low, high) == pytest.approx((value - error, value + error), abs=0.015)


def test_bootstrap_of_curves_and_of_what_is_not_known() -> None:
    value, mean, low, high = bootstrap(sensitivity_at, drawn(12), resamples=200)
    assert value.shape == mean.shape == (7,) and (low <= value).all() and (value <= high).all()
    assert all(np.isnan(one) for one in bootstrap(auc, [outcome([0.3], [])], resamples=5))


def test_average_precision_of_the_worked_example() -> None:
    true = [np.array([[0, 0, 10, 10], [20, 20, 30, 30.0]]), np.array([[0, 0, 4, 4.0]])]
    # right, twice the same box (false), a box of overlap 0.49 (false), right: precisions 1/1 and 2/4 at recall 1/3, 2/3
    found = [np.array([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 27, 27.0]]), np.array([[0, 0, 4, 3.0]])]
    scores = [np.array([0.9, 0.8, 0.7]), np.array([0.6])]
    assert average_precision(found, scores, true) == pytest.approx((1.0 + 0.5) / 3)
    assert np.isnan(average_precision(found[:1], scores[:1], [np.zeros((0, 4))]))


# LUNA16's files


def test_files_in_lunas_columns_are_scored(tmp_path: Path) -> None:
    (tmp_path / "found.csv").write_text(
        "seriesuid,coordX,coordY,coordZ,probability\n1.2,1,2,3,0.9\n1.2,90,2,3,0.4\n1.3,0,0,0,0.5\n"
    )
    (tmp_path / "true.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.2,1,2,5,6\n1.3,50,0,0,5\n")
    (tmp_path / "excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n1.3,1,0,0,5\n")
    tables = [read_luna(tmp_path / f"{name}.csv") for name in ("found", "true", "excluded")]
    found = outcomes(*tables)
    assert found["1.2"].hits.tolist() == [0.9] and found["1.2"].false.tolist() == [0.4]
    assert found["1.3"].hits.tolist() == [0.0] and not len(found["1.3"].false)
    assert outcomes(*tables[:2])["1.3"].false.tolist() == [0.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("seriesuid,coordX\n1,2\n", "has not the columns"),
        ("seriesuid,coordX,coordY,coordZ,probability\n1,2,3,4,0.5\n1,2,x,4,0.5\n", "Line 3"),
        ("seriesuid,coordX,coordY,coordZ,probability\n1,2,3,4,1.5\n", "between 0 and 1"),
        ("seriesuid,coordX,coordY,coordZ,diameter_mm\n1,2,3,4,-5\n", "below 0"),
    ],
)
def test_what_is_no_file_of_luna_is_said(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "a.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        read_luna(tmp_path / "a.csv")


# Boxes of slices become candidates


def ball(slices: int, at: tuple[float, float, float], radius: float, score: float) -> list[Candidates2D]:
    """Boxes of a ball in slices of 1 mm, pixels of 1 mm."""
    found = []
    for index in range(slices):
        section = np.sqrt(max(radius**2 - (index - at[0]) ** 2, 0.0))
        boxes = [[at[1] + 0.5 - section, at[2] + 0.5 - section, at[1] + 0.5 + section, at[2] + 0.5 + section]]
        count = int(section > 0.5 * radius)
        found.append(Candidates2D(np.array(boxes[:count]).reshape(-1, 4), np.full(count, score)))
    return found


def test_boxes_of_neighbouring_slices_are_one_candidate() -> None:
    table = joined(ball(20, (8.0, 30.0, 40.0), 5.0, 0.8), (1.0, 1.0, 1.0))
    assert len(table) == 1
    assert table[["slice", "row", "column"]].to_numpy()[0] == pytest.approx([8, 30, 40])
    assert table["diameter_mm"][0] == pytest.approx(10.0) and table["probability"][0] == pytest.approx(0.8)


def test_what_shows_in_one_slice_alone_is_less_probable() -> None:
    slices = ball(20, (8.0, 30.0, 40.0), 5.0, 0.8)
    alone = [one if index == 8 else Candidates2D(np.zeros((0, 4)), np.zeros(0)) for index, one in enumerate(slices)]
    assert joined(alone, (1.0, 1.0, 1.0))["probability"][0] == pytest.approx(0.8 / 5)


def test_balls_apart_are_two_and_those_outside_the_lung_none() -> None:
    first, second = ball(30, (8.0, 30.0, 20.0), 5.0, 0.8), ball(30, (20.0, 30.0, 20.0), 4.0, 0.9)
    both = [
        Candidates2D(np.concatenate((a.boxes, b.boxes)), np.concatenate((a.scores, b.scores)))
        for a, b in zip(first, second, strict=True)
    ]
    table = joined(both, (1.0, 1.0, 1.0))
    assert table["slice"].to_numpy() == pytest.approx([20, 8])
    lung = np.zeros((30, 60, 60), bool)
    lung[:14] = True
    assert joined(both, (1.0, 1.0, 1.0), lung)["slice"].to_numpy() == pytest.approx([8])
    assert list(joined([], (1.0, 1.0, 1.0)).columns) == detect.COLUMNS


# The study


class Told:
    """A detector that finds what the image's HU names."""

    threshold = 0.5
    card = {
        "training": {"kernel": "medium", "dose": 100.0},
        "validation": {"f1": 0.9, "boxes_ap50": 0.6},
    }

    def __init__(self, tables: dict[int, pd.DataFrame]) -> None:
        self.tables = tables

    def detect(self, hu: np.ndarray, spacing: tuple, lung: np.ndarray) -> pd.DataFrame:
        return self.tables[int(hu[0, 0, 0])]


def candidates(*rows: tuple[float, float, float, float]) -> pd.DataFrame:
    """Candidates at slice, row, column, with a probability."""
    table = pd.DataFrame(np.array(rows, float).reshape(-1, 4), columns=["slice", "row", "column", "probability"])
    return table.assign(diameter_mm=6.0)


NODULES = (
    KnownNodule(1, (4.0, 20.0, 20.0), 6.0, 113.0, 40.0, True),
    KnownNodule(2, (12.0, 40.0, 40.0), 8.0, 268.0, 40.0, True),
)


def case(name: str, lesions: tuple = ()) -> SimpleNamespace:
    """The part of a case that detection is told: 24 slices of 1 mm, pixels of 0.5 mm."""
    lung = np.ones((24, 64, 64), bool)
    return SimpleNamespace(name=name, spacing=(0.5, 0.5, 1.0), lung=lung, nodules=NODULES, lesions=lesions)


def image(code: int, method: str = "untouched", source: Scan = Scan("smooth", 25.0)) -> Image:  # noqa: B008
    return Image(method, source, Scan("medium", 100.0), np.full((24, 64, 64), code, np.int16))


def test_the_study_measures_nodules_false_candidates_and_blocks() -> None:
    lesion = SimpleNamespace(centre=(20.0, 10.0, 10.0), diameter=3.0)
    found = candidates((4, 20, 24, 0.9), (12, 40, 57, 0.8), (12, 40, 44, 0.3), (20, 10, 11, 0.9))
    findings = DetectionStudy(Told({1: found})).measure(case("a", (lesion,)), image(1))
    told = {(finding.measure, finding.item): finding.value for finding in findings}
    assert told == {
        ("probability", "nodule 1"): 0.9,
        ("probability", "nodule 2"): 0.3,
        ("false probability", "false 1"): 0.8,
        ("F1", ""): 0.5,
        ("precision", ""): 0.5,
        ("recall", ""): 0.5,
        ("F1", "0 to 8 mm"): 1.0,
        ("F1", "8 to 16 mm"): 0.0,
    }


def test_the_section_has_scores_concordance_and_curves() -> None:
    """The rows that a suite would join, of three kernels, two methods, five cases."""
    pytest.importorskip("CTHarmonizeTraining.evidence.agreement", reason="there is no module for concordance yet")
    rng, rows = np.random.default_rng(0), []
    pairs = [("smooth", "medium"), ("medium", "sharp"), ("smooth", "sharp")]
    for name in "abcde":
        truth = [(*nodule.centre, float(rng.uniform(0.4, 1.0))) for nodule in NODULES]
        false = [(*rng.uniform(0, 24, 1), 60, 5, float(rng.uniform(0.0, 0.7)))]
        study = DetectionStudy(Told({0: candidates(*truth, *false), 1: candidates(*truth[:1], *false)}))
        reference = {(f.measure, f.item): f.value for f in study.measure(case(name), image(0))}
        for target in ("medium 100 %", "sharp 100 %"):
            rows += [(name, REFERENCE, target, target, *key, value, value) for key, value in reference.items()]
        for source, target in pairs:
            for method, code in ((UNTOUCHED, 1), ("same", 0)):
                for dose in (25, 100):
                    for found in study.measure(case(name), image(code)):
                        key = (found.measure, found.item)
                        ends = (f"{source} {dose} %", f"{target} 100 %")
                        rows.append((name, method, *ends, *key, found.value, reference.get(key, np.nan)))
    columns = ["case", "method", "source", "target", "measure", "item", "value", "reference"]
    section = study.section(pd.DataFrame(rows, columns=columns))
    scored, concordance, scores, picture = section.parts
    assert "10 nodules in 5 slabs" in section.text
    assert len(scored.frame) == 6 * 3
    medium = scored.frame[(scored.frame["source"] == "smooth 25 %") & (scored.frame["target"] == "medium 100 %")]
    assert medium["method"].tolist() == [UNTOUCHED, "same", REFERENCE]
    assert medium.iloc[1]["precision":].equals(medium.iloc[2]["precision":])
    assert medium["recall"].iloc[0] < medium["recall"].iloc[1]
    table = concordance.frame.set_index("method")
    assert table.loc["same", "mean"] == pytest.approx(1.0) and table.loc[UNTOUCHED, "mean"] < 0.9
    assert table.loc["same", "F1 differs by"] == 0.0 < table.loc[UNTOUCHED, "F1 differs by"]
    assert "almost perfect (n = 10)" in table.loc["same", "smooth to medium"]
    odds = scores.frame.set_index("method")
    assert odds.loc["same", "mean"] == pytest.approx(1.0) and odds.loc[UNTOUCHED, "mean"] < 0.9
    assert picture.content.startswith(b"\x89PNG")


# The network


@needs_monai
def test_a_few_iterations_lower_the_loss_and_a_training_that_stopped_goes_on(tmp_path: Path, monkeypatch) -> None:
    from CTHarmonizeTraining.evidence.detection import train

    monkeypatch.setattr(train, "_SIDE", 64)
    monkeypatch.setattr(train, "_KEPT_EVERY", 18)
    anatomy, place = bare_lung(), tmp_path / "training.pt"
    network, course = train.fitted([anatomy], 25, 2, 3e-3, 1, place)
    assert np.mean(course[-4:]) < 0.8 * np.mean(course[:2])
    again, _ = train.fitted([anatomy], 25, 2, 3e-3, 1, place)  # from the 18th iteration on
    for one, other in zip(network.state_dict().values(), again.state_dict().values(), strict=True):
        assert (one == other).all()


def bare_lung() -> Anatomy:
    """Noisy lung tissue and nothing else."""
    noise = np.random.default_rng(0).normal(0, 20, (6, 160, 160)).astype(np.int16)
    return Anatomy(np.full((3, 160, 160), -850, np.int16), np.full((3, 160, 160), 60, np.uint8), noise)


@needs_monai
def test_patches_show_their_nodules() -> None:
    lung, rng, count = bare_lung(), np.random.default_rng(0), 0
    for _ in range(20):
        image, boxes = patch(lung, 96, rng)
        assert image.shape == (5, 96, 96)
        smooth = ndimage.uniform_filter(image[2], 3)
        for box in boxes:
            row, column = np.clip(((box[:2] + box[2:]) / 2).astype(int), 0, 95)
            assert smooth[row, column] > -760  # the lung has -850
            count += 1
    assert count > 10


@pytest.fixture(scope="module")
def scanned() -> dict[str, np.ndarray]:
    """Simulated scans (slices of 1 mm, pixels of 0.7 mm) of a chest around a nodule of 10 mm, and without it."""
    chest = ChestPhantom(8201, 0.7, 528, emphysema=0.0, nodules=0)
    rng = np.random.default_rng(0)
    points = chest.targets[0][(chest.targets[0][:, 2] > 130) & (chest.targets[0][:, 2] < 150)]
    deep = points[chest._lung(*points.T) < -15.0]
    place = deep[rng.integers(len(deep))]
    bright = Nodule(tuple(map(float, place)), 10.0, 60.0, 0.0, 0, 1)
    heights = place[2] + np.arange(-5, 6.0)
    planes = np.stack([chest.plane(float(z)) for z in heights])
    column, row = (place[:2] / 0.7 + 263.5).astype(int)
    here = np.s_[:, row - 100 : row + 100, column - 100 : column + 100]
    centre = tuple(float(chest.axis[index] - 0.35) for index in (column, row))
    found = {"lung": np.stack([chest.lung(z) for z in heights])[here]}
    geometry, exposure = Geometry.covering(528 * 0.7, 320, 0.5), Exposure(6.25e5)
    grid, kernel = Grid(200, 200, 0.7, centre), target_mtf("medium", 0.7)
    for name in ("empty", "nodule"):
        if name == "nodule":
            for plane, z in zip(planes, heights, strict=True):
                paint_nodule(plane, bright, chest.axis, float(z))
        made = simulate(torch.from_numpy(planes), 0.7, kernel, 100.0, grid, geometry, exposure, seed=3)
        found[name] = made.noisy.numpy().round().astype(np.int16)
    found["at"] = np.array([5.0, *(place[1::-1] / 0.7 + 263.5 - (row - 100, column - 100))])
    return found


@needs_monai
def test_the_shipped_detector_finds_a_nodule_and_none_where_there_is_none(scanned: dict[str, np.ndarray]) -> None:
    detector, spacing = Detector.load(), (0.7, 0.7, 1.0)
    table = detector.detect(scanned["nodule"], spacing, scanned["lung"])
    best = table.iloc[0]
    away = (best[["slice", "row", "column"]].to_numpy(float) - scanned["at"]) * (1.0, 0.7, 0.7)
    assert np.linalg.norm(away) < 3.0 and best["diameter_mm"] == pytest.approx(10.0, abs=2.5)
    assert best["probability"] > detector.threshold
    assert (table["probability"][1:] < detector.threshold).all()
    empty = detector.detect(scanned["empty"], spacing, scanned["lung"])
    assert (empty["probability"] < detector.threshold).all()


@needs_monai
def test_another_pixel_size_is_the_same_nodule(scanned: dict[str, np.ndarray]) -> None:
    fine = scanned["nodule"].astype(np.float32)
    coarse = ndimage.zoom(fine, (1, 0.8, 0.8), order=1, grid_mode=True, mode="nearest").astype(np.int16)
    best = Detector.load().detect(coarse, (0.875, 0.875, 1.0)).iloc[0]
    row, column = ((best[["row", "column"]].to_numpy(float) + 0.5) / 0.8) - 0.5
    assert np.hypot(*(np.array([row, column]) - scanned["at"][1:])) * 0.7 < 2.0
    assert best["diameter_mm"] == pytest.approx(10.0, abs=2.5)


@needs_monai
def test_a_folder_that_is_no_detector_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no detector"):
        Detector.load(tmp_path)
    for name in (detect.CARD, detect.WEIGHTS):
        shutil.copy(detect.SHIPPED / name, tmp_path)
    with (tmp_path / detect.WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="do not match"):
        Detector.load(tmp_path)


def test_the_shipped_card_says_what_the_detector_is() -> None:
    card = json.loads((detect.SHIPPED / detect.CARD).read_text())
    assert card["training"]["phantoms"][1] < card["validation"]["phantoms"][0] < 9000
    assert 0.0 < card["threshold"] == card["validation"]["threshold"] < 1.0
    assert len(card["validation"]["sensitivity"]) == len(RATES)
    assert (detect.SHIPPED / detect.WEIGHTS).stat().st_size < 1.5e6
