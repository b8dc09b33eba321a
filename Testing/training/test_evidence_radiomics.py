"""Radiomics: features by hand and by their definitions, the study's plumbing, sections of made-up findings."""

from __future__ import annotations

import builtins

import numpy as np
import pytest
from evidence_rows import METHODS, case_of, rows_of

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evidence import radiomics as study
from CTHarmonizeTraining.evidence.agreement import concordance
from CTHarmonizeTraining.evidence.cases import Case, KnownNodule, Scan
from CTHarmonizeTraining.evidence.cells import mean_deviation
from CTHarmonizeTraining.evidence.comparator import COMBAT
from CTHarmonizeTraining.evidence.radiomics import BIN_WIDTH, CLASSES, NINE, RadiomicsStudy, measure_features
from CTHarmonizeTraining.evidence.study import Image

SPACING = (0.7, 0.7, 1.0)
SHAPE = (16, 40, 40)


def a_case() -> Case:
    z, y, x = (np.indices(SHAPE) - np.reshape([8, 20, 20], (3, 1, 1, 1))) * np.reshape([1.0, 0.7, 0.7], (3, 1, 1, 1))
    labels = (np.sqrt(z**2 + y**2 + x**2) < 5.0).astype(np.int16)
    truth = np.where(labels > 0, 30.0, -850.0) + 20.0 * np.sin(x + y)
    nodules = (KnownNodule(1, (8.0, 20.0, 20.0), 10.0, 523.6, 30.0, True), KnownNodule(2, (3, 3, 3), 4, 33.5, 0, False))
    return case_of(truth, SPACING, labels=labels, nodules=nodules)


def test_features_by_their_definitions() -> None:
    pytest.importorskip("radiomics")
    case, random = a_case(), np.random.default_rng(0)
    hu = np.rint(case.truth + 40.0 * random.normal(size=SHAPE)).astype(np.int16)
    mask = case.labels == 1
    found, values = measure_features(hu, mask, SPACING), hu[mask].astype(np.float64)
    assert {name.split(" ")[0] for name in found} == set(CLASSES) and set(NINE) < set(found) and len(found) == 93
    assert found["firstorder Variance"] == pytest.approx(values.var(), rel=1e-6)
    assert found["firstorder RootMeanSquared"] == pytest.approx(np.sqrt(np.mean(values**2)), rel=1e-6)
    levels = np.floor(values / BIN_WIDTH)
    _, counts = np.unique(levels, return_counts=True)
    share = counts / counts.sum()
    assert found["firstorder Entropy"] == pytest.approx(-(share * np.log2(share)).sum(), rel=1e-6)
    # pairs of neighbours, each direction's mean alone, then their mean
    grid = np.full(SHAPE, np.nan)
    grid[mask] = levels
    contrast = []
    for step in [(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1) if (a, b, c) > (0, 0, 0)]:
        moved = np.roll(grid, step, (0, 1, 2))  # the mask lies off the sides
        contrast.append(np.nanmean((grid - moved) ** 2))
    assert len(contrast) == 13 and found["glcm Contrast"] == pytest.approx(np.mean(contrast), rel=1e-6)


def test_study_looks_at_the_same_voxels_in_all_images() -> None:
    pytest.importorskip("radiomics")
    case, scan = a_case(), Scan("sharp", 25.0)
    other = np.where(case.labels > 0, case.truth, 3000.0)  # what lies around does not count
    found = RadiomicsStudy().measure(case, Image("unet", scan, scan, other))
    assert len(found) == 2 * 93 and not RadiomicsStudy().sampled
    assert all(f.value == f.truth for f in found if f.item == "nodule 1")
    assert all(np.isnan(f.value) for f in found if f.item == "nodule 2")  # fills no voxel


def test_missing_extra_is_a_plain_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *rest, **named):
        if name.startswith("radiomics"):
            raise ImportError(name)
        return imported(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    study._extractor.cache_clear()
    with pytest.raises(InputError, match="pyradiomics"):
        RadiomicsStudy().measure(a_case(), Image("unet", Scan("sharp", 25.0), Scan("sharp", 25.0), a_case().truth))
    study._extractor.cache_clear()


def test_section() -> None:
    names = [*NINE, "gldm DependenceEntropy", "firstorder Mean"]
    made = rows_of({name: (10.0 + place, 2.0) for place, name in enumerate(names)}, items=("nodule 1", "nodule 2"))
    section = RadiomicsStudy().section(made)
    errors, tests, agreed, counts = (part.frame.set_index(part.frame.columns[0]) for part in section.parts[:4])
    assert list(errors.index) == list(NINE) and list(errors.columns) == [*METHODS, COMBAT]
    of = made[(made["method"] == "unet") & (made["measure"] == NINE[3])]
    error = 100 * (of["value"] - of["reference"]).abs() / of["reference"].abs()
    assert errors.loc[NINE[3], "unet"] == mean_deviation(error, 1)
    assert list(tests.columns) == [*METHODS[1:], COMBAT]
    difference, p = tests.loc[NINE[3], "unet"].split(", ")
    assert float(difference) < 0 and p == "0.004"  # 12 nodules of one sign: 2 / 2^12, times 9 features
    ccc = concordance(of["value"], of["reference"])
    assert agreed.loc[NINE[3], "unet"].startswith(f"{ccc.value:.3f} [{ccc.low:.3f}; {ccc.high:.3f}]")
    assert counts.loc["untouched", "features"] == len(names)
    column = "0.9 or more"
    assert counts.loc["untouched", column] < counts.loc["ctflow, mean", column] == len(names)
    assert counts.loc["ctflow, mean", "gldm, 0.9 or more"] == "1 of 1"
    assert section.parts[4].content.startswith(b"\x89PNG")


def test_section_without_the_reference() -> None:
    made = rows_of({NINE[0]: (5.0, 1.0)}, items=("nodule 1",))
    made = made[made["method"] != "reference"].assign(reference=np.nan)
    section = RadiomicsStudy().section(made)
    assert section.parts[0].frame.set_index("feature").loc[NINE[0], "unet"] == "-"
