"""Nodule detection: scores against worked examples and other definitions, boxes joined to nodules, and the detector."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence.detection import detect
from CTHarmonizeTraining.evidence.detection.detect import Candidates2D, joined
from CTHarmonizeTraining.evidence.detection.luna import outcomes, read_luna
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
    interval,
    match,
    sensitivity_at,
)

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
    assert best_threshold(WORKED) == 0.6  # 0.9: 2/5, 0.8: 2/6, 0.7: 4/7, 0.6: 6/8, 0.5: 6/9
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
    found = interval(lambda chosen: Counts.of(chosen, 0.5).recall, scans)
    error = 1.96 * np.sqrt(found.value * (1 - found.value) / 200)
    assert found.low == pytest.approx(found.value - error, abs=0.015)
    assert found.high == pytest.approx(found.value + error, abs=0.015)


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
