"""Nodules: spheres and blocks of known shape, thresholds beside Otsu's, meshes beside pyradiomics'."""

from __future__ import annotations

import numpy as np
import pytest
from evidence_rows import METHODS, SOURCES, case_of, rows_of
from scipy import ndimage

from CTHarmonizeTraining.evidence.cases import KnownNodule, Scan
from CTHarmonizeTraining.evidence.nodules import (
    BUILT,
    RATIO,
    SPHERICITY,
    VOLUME,
    NoduleStudy,
    measure_shape,
    nrmse,
    segment_nodule,
    two_means,
)
from CTHarmonizeTraining.evidence.study import Image

SPACING = (0.5, 0.5, 1.0)
SHAPE = (30, 60, 60)
CENTRE = (14.3, 29.7, 30.2)


def distance(centre=CENTRE, shape=SHAPE, spacing=SPACING) -> np.ndarray:
    """mm from ``centre``."""
    grid = np.indices(shape, dtype=np.float64)
    return np.sqrt(sum(((grid[i] - centre[i]) * spacing[::-1][i]) ** 2 for i in range(3)))


def a_nodule(diameter: float, centre=CENTRE, number: int = 1) -> KnownNodule:
    return KnownNodule(number, centre, diameter, np.pi / 6 * diameter**3, 40.0, True)


def scene(diameter: float, noise: float = 0.0) -> np.ndarray:
    """HU: a sphere in lung, edges averaged over voxels, and a vessel that ends 1.5 mm from it."""
    cover = np.clip(0.5 + (diameter / 2 - distance()) / 0.6, 0, 1)
    hu = -850.0 + 890.0 * cover
    beside = np.indices(SHAPE)[2] > CENTRE[2] + (diameter / 2 + 1.5) / 0.5
    hu[:, 28:32][beside[:, 28:32]] = 40.0
    return hu + noise * np.random.default_rng(0).normal(size=SHAPE)


def test_threshold_is_the_best_one() -> None:
    random = np.random.default_rng(1)
    values = np.rint(np.concatenate([random.normal(-850, 60, 4000), random.normal(20, 90, 700)]))
    spread = {}
    for threshold in np.arange(-700.0, -100.0, 5.0):  # exhaustively, what 2-means and Otsu minimise
        above = values > threshold
        spread[threshold] = values[above].var() * above.sum() + values[~above].var() * (~above).sum()
    assert spread[5 * round(two_means(values) / 5)] == pytest.approx(min(spread.values()), rel=1e-3)
    from scipy.cluster.vq import kmeans2

    means, _ = kmeans2(values[:, None], np.array([[-800.0], [0.0]]), minit="matrix", iter=100)
    assert two_means(values) == pytest.approx(means.mean(), abs=0.01)
    assert np.isnan(two_means(np.full(9, 3.0)))
    assert two_means(np.array([0.0] * 99 + [10.0])) == pytest.approx(5.0)


@pytest.mark.parametrize("diameter", [5.0, 9.0, 14.0])
@pytest.mark.parametrize("noise", [0.0, 60.0])
def test_spheres_have_their_volume(diameter: float, noise: float) -> None:
    mask = segment_nodule(scene(diameter, noise), a_nodule(diameter), SPACING)
    found = measure_shape(mask, SPACING)
    assert found.volume == pytest.approx(np.pi / 6 * diameter**3, rel=0.08)
    assert found.volume == pytest.approx(mask.sum() * np.prod(SPACING), rel=0.06)
    assert found.ratio == pytest.approx(6.0 / diameter, rel=0.2) and found.ratio > 6.0 / diameter  # voxels have steps
    assert 0.8 < found.sphericity < 1.0


def test_mesh_of_a_smooth_sphere_is_a_sphere() -> None:
    """The formulas, without the steps of voxels: a fine, large sphere's steps are those of its mesh alone."""
    ball = distance((24.5,) * 3, (50,) * 3, (1.0, 1.0, 1.0)) <= 20.0
    found = measure_shape(ball, (1.0, 1.0, 1.0))
    assert found.volume == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.01)
    assert found.ratio == pytest.approx(found.volume ** (-1 / 3) * (36 * np.pi) ** (1 / 3) / found.sphericity)


def test_mesh_of_a_block() -> None:
    """A block of n voxels a side: marching cubes cut its edges by half a voxel, which can be counted."""
    block = np.zeros((14, 14, 14), bool)
    block[2:12, 2:12, 2:12] = True
    found = measure_shape(block, (1.0, 1.0, 1.0))
    # 12 edges lose a prism of 1/8 each a mm, corners a little more: V = 1000 - 12 x 9 / 8 - corners
    assert found.volume == pytest.approx(1000 - 12 * 9 / 8, abs=8 * 0.25)
    assert found.ratio * found.volume == pytest.approx(6 * 9**2 + 12 * 9 / np.sqrt(2), abs=8 * 0.5)
    doubled = measure_shape(block, (2.0, 2.0, 2.0))
    assert doubled.volume == pytest.approx(8 * found.volume) and doubled.ratio == pytest.approx(found.ratio / 2)
    assert doubled.sphericity == pytest.approx(found.sphericity)


def test_mesh_is_pyradiomics() -> None:
    radiomics = pytest.importorskip("radiomics.shape")
    import SimpleITK as sitk

    mask = segment_nodule(scene(9.0, 60.0), a_nodule(9.0), SPACING)
    image, label = (sitk.GetImageFromArray(array) for array in (mask.astype(np.float32), mask.astype(np.uint8)))
    for one in (image, label):
        one.SetSpacing(SPACING)
    features = radiomics.RadiomicsShape(image, label)
    features.enableAllFeatures()
    other, found = features.execute(), measure_shape(mask, SPACING)
    assert found.volume == pytest.approx(float(other["MeshVolume"]), rel=0.005)
    assert found.ratio == pytest.approx(float(other["SurfaceVolumeRatio"]), rel=0.02)
    assert found.sphericity == pytest.approx(float(other["Sphericity"]), rel=0.02)


def test_nothing_there() -> None:
    empty = np.full(SHAPE, -850.0)
    assert not segment_nodule(empty, a_nodule(6.0), SPACING).any()
    assert np.isnan(measure_shape(np.zeros(SHAPE, bool), SPACING).volume)
    elsewhere = np.where(distance() > 4.5, 0.0, -850.0)  # the ball's rim alone
    assert not segment_nodule(elsewhere, a_nodule(6.0), SPACING).any()
    outside = a_nodule(6.0, (-40.0, 10.0, 10.0))
    assert not segment_nodule(empty, outside, SPACING).any()


def test_study() -> None:
    truth, other = scene(9.0), scene(5.0)
    nodules = (a_nodule(9.0), a_nodule(9.0, (14.3, 29.7, 30.2), 2))
    case = case_of(truth, SPACING, nodules=nodules)
    scan = Scan("smooth", 100.0)
    blurred = ndimage.gaussian_filter(truth, (0.4, 2.0, 2.0))
    found = NoduleStudy().measure(case, Image("untouched", scan, scan, np.rint(blurred).astype(np.int16)))
    assert [finding.item for finding in found] == ["nodule 1"] * 4 + ["nodule 2"] * 4
    of = {finding.measure: finding for finding in found[:4]}
    assert set(of) == {VOLUME, RATIO, SPHERICITY, BUILT}
    assert of[BUILT].value == of[VOLUME].value and of[BUILT].truth == nodules[0].volume
    assert of[VOLUME].truth == pytest.approx(nodules[0].volume, rel=0.08)
    exact = NoduleStudy().measure(case, Image("unet", scan, scan, truth))
    assert all(finding.value == finding.truth for finding in exact if finding.measure != BUILT)
    small = NoduleStudy().measure(case, Image("unet", scan, scan, other))
    assert small[0].value < 0.4 * small[0].truth


def test_nrmse() -> None:
    import pandas as pd

    value, truth = pd.Series([1.0, 4.0, np.nan]), pd.Series([2.0, 2.0, 9.0])
    assert nrmse(value, truth) == pytest.approx(100 * np.sqrt(2.5) / 2)
    assert np.isnan(nrmse(value[2:], truth[2:]))


def test_section() -> None:
    measures = {VOLUME: (400, 150), RATIO: (0.9, 0.1), SPHERICITY: (0.8, 0.05), BUILT: (400, 150)}
    made = rows_of(measures, items=("nodule 1", "nodule 2"))
    made.loc[(made["measure"] == VOLUME) & (made["method"] == "unet") & (made["case"] == "case 1"), "value"] = np.nan
    section = NoduleStudy().section(made)
    errors, bias = (part.frame.set_index("method") for part in section.parts[:2])
    assert list(errors.index) == list(METHODS) and list(bias.columns) == list(SOURCES)
    assert errors.loc["unet", "not found"] == 2 * len(SOURCES) and errors.loc["mtf-filter", "not found"] == 0
    of = made[(made["method"] == "mtf-filter") & (made["measure"] == VOLUME) & (made["source"] == SOURCES[3])]
    error = 100 * ((of["value"] - of["truth"]) / of["truth"]).mean()
    assert float(bias.loc["mtf-filter", SOURCES[3]].split(" ")[0]) == pytest.approx(error, abs=0.06)
    assert "12 nodules" in section.text
    assert section.parts[2].content.startswith(b"\x89PNG")
