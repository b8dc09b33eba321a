"""Lungs of shapes that are known, and densitometry of known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from ct_chest import LUNG_HU, SPACING, chest, scanned
from scipy import ndimage

from CTHarmonizeLib.ct.lungs import aerated, filled_lungs, find_lungs, measure_densitometry
from CTHarmonizeLib.errors import InputError


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return 2.0 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize(
    ("slices", "middle", "noise"),
    [(76, 0.0, 60.0), (12, -60.0, 120.0), (12, 0.0, 15.0), (12, 0.0, 120.0), (12, 70.0, 120.0)],
    ids=["whole", "apex", "carina", "noisy carina", "base"],
)
def test_lungs_are_found_without_airways(slices: int, middle: float, noise: float) -> None:
    hu, lung = chest(slices, middle)
    if slices == 76:  # coarser: quicker
        hu, lung, spacing = hu[:, ::2, ::2], lung[:, ::2, ::2], (2.0, 2.0, 2.5)
        found = find_lungs(scanned(hu, noise, 0.4), spacing)
    else:
        spacing = SPACING
        found = find_lungs(scanned(hu, noise), spacing)
    assert overlap(filled_lungs(found, spacing), lung) > 0.97
    assert overlap(found, aerated(hu, lung, spacing)) > 0.97
    gas = (hu < -980) & ndimage.binary_erosion(ndimage.binary_fill_holes(hu[len(hu) // 2] > -100))[None] & ~lung
    outside = ndimage.binary_dilation(lung, iterations=4)
    assert (found & gas & ~outside).sum() <= 0.02 * max(1, gas.sum())


def test_no_lungs() -> None:
    air = np.full((4, 40, 40), -1000, np.int16)
    found = find_lungs(air, SPACING)
    assert found.shape == air.shape and not found.any() and not filled_lungs(found, SPACING).any()
    assert np.isnan(measure_densitometry(air, found, SPACING).laa950)
    with pytest.raises(InputError):
        find_lungs(air[0], SPACING)


def scene(slices: int = 6, body: float = 40.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A body of soft tissue and the place of its voxels in the plane, mm from the middle."""
    y, x = np.mgrid[:200, :260] - np.array([99.5, 129.5])[:, None, None]
    hu = np.where((x / 120) ** 2 + (y / 85) ** 2 < 1, body, -1000.0)
    return np.repeat(hu[None], slices, axis=0), x, y


def head() -> np.ndarray:
    """Skull, brain, pharynx, sinuses and, in the temporal bones, many small cells of air."""
    hu, x, y = scene()
    hu[:, (x / 70) ** 2 + (y / 82) ** 2 > 1] = -1000.0
    hu[:, np.abs(np.hypot(x / 70, y / 82) - 0.95) < 0.04] = 1000.0
    hu[:, np.hypot(x, y - 20) < 9] = -995.0
    hu[:, (np.abs(np.abs(x) - 25) < 15) & (np.abs(y + 45) < 14)] = -1000.0
    cells = (np.abs(np.abs(x) - 55) < 8) & (np.abs(y - 20) < 20) & ((np.round(x) % 4 < 2) & (np.round(y) % 4 < 3))
    hu[:, cells] = -900.0
    return hu


def abdomen() -> np.ndarray:
    """Bowel with gas, a stomach whose bubble ends between two slices, and stools with gas in them."""
    hu, x, y = scene(10)
    hu[:5, ((x - 30) / 30) ** 2 + ((y + 40) / 20) ** 2 < 1] = -1000.0
    hu[5, ((x - 30) / 28) ** 2 + ((y + 40) / 18) ** 2 < 1] = -780.0
    hu[:, np.hypot(x + 60, y + 30) < 15] = -1000.0
    stools = np.hypot(x + 80, y - 20) < 16
    hu[:, stools & ((np.round(x) % 8 < 5) & (np.round(y) % 8 < 5))] = -900.0
    return hu


@pytest.mark.parametrize("noise", [8.0, 40.0])
@pytest.mark.parametrize("anatomy", [head, abdomen])
def test_air_elsewhere_is_no_lung(anatomy, noise: float) -> None:
    assert not find_lungs(scanned(anatomy(), noise), SPACING).any()


def with_lungs(value: float) -> tuple[np.ndarray, np.ndarray]:
    hu, x, y = scene()
    lung = np.broadcast_to(((np.abs(x) - 62) / 38) ** 2 + (y / 60) ** 2 < 1, hu.shape)
    return np.where(lung, value, hu), lung


@pytest.mark.parametrize("noise", [8.0, 60.0])
def test_emphysema_is_no_airway(noise: float) -> None:
    """Neither that which fills a corner of the lung, as large a part of its outline as that is, nor all of a lung."""
    hu, lung = with_lungs(LUNG_HU)
    corner = lung & (np.arange(hu.shape[1]) > 140)[:, None]
    hu[corner] = -985.0
    found = find_lungs(scanned(hu, noise), SPACING)
    assert overlap(found, lung) > 0.97 and found[corner].mean() > 0.93
    severe, _ = with_lungs(-960.0)
    assert overlap(find_lungs(scanned(severe, noise), SPACING), lung) > 0.97


def test_table_and_air_outside_are_no_lungs() -> None:
    hu, lung = with_lungs(LUNG_HU)
    rows = np.arange(hu.shape[1])
    hu = np.concatenate([hu, np.full((len(hu), 40, hu.shape[2]), -1000.0)], axis=1)
    hu[:, len(rows) : len(rows) + 30, 20:-20] = 100.0
    hu[:, len(rows) + 3 : len(rows) + 27, 23:-23] = -900.0  # foam
    hu[:, :, :6] = hu[:, :, -6:] = -3024.0  # beyond the field of view
    found = find_lungs(scanned(hu, 15.0), SPACING)
    assert overlap(found[:, : len(rows)], lung) > 0.97 and not found[:, len(rows) :].any()


def test_a_bubble_below_the_lungs_is_not_theirs() -> None:
    hu, lung = with_lungs(LUNG_HU)
    diaphragm, _, _ = scene(2)
    found = find_lungs(scanned(np.concatenate([abdomen(), diaphragm, hu]), 15.0), SPACING)
    assert overlap(found[-len(lung) :], lung) > 0.97 and not found[: -len(lung) - 1].any()


def test_densitometry_in_slices_is_that_of_all() -> None:
    rng = np.random.default_rng(3)
    hu, mask = rng.normal(-880.0, 50.0, (5, 40, 40)).astype(np.float32), rng.random((5, 40, 40)) < 0.3
    found = measure_densitometry(hu, mask, (0.7, 0.7, 1.5))
    values = np.rint(hu[mask])
    assert found.laa950 == pytest.approx(100 * np.mean(values < -950))
    assert found.perc15 == pytest.approx(np.percentile(values, 15), abs=1.0)
    assert found.mass == pytest.approx((values.astype(float) + 1024).sum() / 1024 * found.volume / len(values))


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
