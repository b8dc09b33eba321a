"""Pictures of the evidence: what they hold and how large they are. How they look is for people."""

import numpy as np
import pytest
from evidence_rows import case_of

from CTHarmonizeTraining.evidence.cases import Case, KnownNodule, Scan
from CTHarmonizeTraining.evidence.pictures import MOST_BYTES, example_figure
from CTHarmonizeTraining.evidence.study import UNTOUCHED, Image

SOURCE, TARGET = Scan("sharp", 25.0), Scan("medium", 100.0)


def chest(side: int, nodules: bool = True) -> tuple[Case, np.ndarray, np.ndarray]:
    """A thorax of ellipses with a nodule, and two noisy scans of it."""
    generator = np.random.default_rng(5)
    spacing = 340.0 / side
    y, x = (np.mgrid[:side, :side] - (side - 1) / 2) * spacing
    body, lung = (x / 155) ** 2 + (y / 110) ** 2 < 1, ((np.abs(x) - 65) / 52) ** 2 + (y / 82) ** 2 < 1
    plane = np.where(body, 40.0, -1000.0)
    plane[body & ~((x / 147) ** 2 + (y / 102) ** 2 < 1)] = -100.0
    plane[np.hypot(x, y - 70) < 16] = 500.0
    plane[lung] = -860.0
    truth = np.repeat(plane[None], 4, 0).astype(np.float32)
    known = ()
    if nodules:
        truth[1:3, np.hypot(x + 75, y - 30) < 4] = 30.0
        place = ((30 / spacing + (side - 1) / 2), (-75 / spacing + (side - 1) / 2))
        known = (KnownNodule(1, (1.5, *place), 8.0, 268.0, 30.0, True),)
    noise = generator.normal(0, 1, (2, *truth.shape))
    scans = {
        SOURCE: np.rint(truth + 60 * noise[0]).astype(np.int16), TARGET: np.rint(truth + 15 * noise[1]).astype(np.int16)
    }  # fmt: skip
    lungs = np.repeat(lung[None], 4, 0)
    labels = np.zeros(truth.shape, np.int16)
    known = {"name": "chest-01", "scans": scans, "lung": lungs, "labels": labels, "nodules": known}
    case = case_of(truth, (spacing, spacing, 2.5), **known)
    return case, scans[SOURCE], scans[TARGET]


def images(source: np.ndarray, truth: np.ndarray, deviation: bool) -> list[Image]:
    mean = np.rint(0.2 * source + 0.8 * truth).astype(np.int16)
    return [
        Image(UNTOUCHED, SOURCE, TARGET, source),
        Image("mtf-filter", SOURCE, TARGET, mean),
        Image("ctflow, mean", SOURCE, TARGET, mean, np.abs(source - truth) / 3 if deviation else None),
        Image("ctflow, one image", SOURCE, TARGET, mean),
    ]


@pytest.mark.parametrize("deviation, nodules", [(True, True), (False, False)])
def test_the_example_is_a_small_picture_that_says_what_it_shows(deviation, nodules):
    case, source, reference = chest(256, nodules)
    picture = example_figure(case, images(source, case.truth, deviation), reference, 1, name="chest")
    assert picture.content.startswith(b"\xff\xd8\xff") and len(picture.content) <= MOST_BYTES
    assert picture.name == "chest" and picture.title == "chest-01, sharp 25 % to medium 100 %"
    assert picture.note.startswith("Slice 2 of 4") and ("Deviation" in picture.note) == deviation
    assert ("the detail from slice 3" in picture.note) == nodules
