"""Noise and MTF of images whose own are known."""

from __future__ import annotations

import numpy as np
import pytest
from ct_images import body, noise

from CTHarmonizeLib.ct.measure import MtfMeasurement, measure_mtf, measure_noise
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf

SMOOTH, MEDIUM, SHARP = NAMED_KERNELS.values()


def image(mtf: Mtf, spacing: float, sigma: float, slices: int = 2, size: int = 256, **anatomy) -> np.ndarray:
    return np.rint(body(mtf, size, spacing, **anatomy) + noise(mtf, (slices, size, size), spacing, sigma))


@pytest.mark.parametrize("sigma", [4.0, 20.0, 80.0, 160.0])
@pytest.mark.parametrize(("mtf", "spacing"), [(SMOOTH, 0.8), (MEDIUM, 0.6), (SHARP, 0.6)])
def test_noise(mtf, spacing, sigma):
    measured = measure_noise(image(mtf, spacing, sigma), spacing)
    assert measured.sigma == pytest.approx(sigma, rel=0.06)
    frequency = np.linspace(0.01, 5 / spacing, 500)
    power = frequency * mtf(frequency) ** 2
    assert measured.mean_frequency == pytest.approx((frequency * power).sum() / power.sum(), rel=0.08)


def test_anatomy_is_not_noise():
    clean = image(MEDIUM, 0.8, 10.0, slices=4)
    rows, columns = np.mgrid[:256, :256]
    vessels = ((rows % 40 < 4) & (columns % 40 < 4)) * 120.0
    gradient = 0.1 * (columns - 128)
    assert measure_noise(clean + vessels + gradient, 0.8).sigma == pytest.approx(10.0, rel=0.15)


def test_little_noise_among_much_alike_anatomy():
    """In a denoised image most patches may be marbled muscle: the few uniform ones still tell the noise."""
    rng = np.random.default_rng(5)
    marbled = 25.0 * np.sin(np.arange(256) / 1.7) * np.ones((2, 256, 1))
    marbled[:, :, :70] = 0.0
    hu = 45.0 + marbled + rng.normal(0.0, 3.0, (2, 256, 256))
    assert measure_noise(hu, 0.7).sigma == pytest.approx(3.0, rel=0.1)


def test_no_noise_without_soft_tissue():
    assert measure_noise(np.full((3, 128, 128), -1000.0), 0.7) is None
    assert measure_noise(image(MEDIUM, 0.8, 10.0) - 500.0, 0.8) is None


# at most 0.8 of the grid's Nyquist frequency, smooth to sharp with overshoot
GRIDS = [
    (2.8, 1.0, 0.9),
    (4.0, 1.0, 0.9),
    (3.4, 1.0, 0.7),
    (5.5, 1.1, 0.7),
    (4.0, 1.0, 0.5),
    (6.0, 1.3, 0.6),
    (8.0, 1.2, 0.5),
]


@pytest.mark.parametrize(("f50", "peak", "spacing"), GRIDS)
@pytest.mark.parametrize(("sigma", "skin"), [(0.0, 1.5), (25.0, 1.0), (25.0, 2.2), (80.0, 1.5)])
def test_mtf(f50, peak, spacing, sigma, skin):
    mtf = Mtf.from_points(f50, peak=peak)
    measured = measure_mtf(image(mtf, spacing, sigma, skin=skin), spacing)
    assert measured.f50 == pytest.approx(f50, rel=0.05)
    assert measured.f10 == pytest.approx(mtf.f10, rel=0.07)
    assert measured.peak == pytest.approx(peak, abs=0.04)


def test_mtf_of_another_family():
    # a cosine-weighted ramp's M(f) is none of the model's
    class Cosine:
        def __call__(self, frequency):
            return np.where(frequency < 9.0, np.cos(np.pi * frequency / 18.0), 0.0)

    measured = measure_mtf(image(Cosine(), 0.6, 15.0), 0.6)
    assert measured.f50 == pytest.approx(6.0, rel=0.1)


def test_clothes_and_table_do_not_count():
    spacing, mtf = 0.7, MEDIUM
    scan = image(mtf, spacing, 20.0, slices=3)
    blanket = body(mtf, 256, spacing, skin=0.01, fat=0.01, shift=(-1.6, 0.0))  # leans on one side of the body
    scan[:, :120] = np.maximum(scan, -1000 + 0.35 * (blanket + 1000))[:, :120]
    scan[:, 204:211, 40:220] = 100.0  # a table that touches it from below
    measured = measure_mtf(scan, spacing)
    assert measured.f50 == pytest.approx(mtf.f50, rel=0.1)


def test_leaning_surfaces_do_not_count():
    spacing, mtf = 0.7, MEDIUM
    slices = []
    for shift in np.linspace(-1.0, 1.0, 7):  # rows move with the slice: each image is blurred by what it spans
        thick = [body(mtf, 256, spacing, shift=(4.0 * (shift + part), 0.0)) for part in np.linspace(-1 / 6, 1 / 6, 4)]
        slices.append(np.mean(thick, axis=0) + noise(mtf, (256, 256), spacing, 10.0, seed=len(slices)))
    assert measure_mtf(np.array(slices), spacing).f50 == pytest.approx(mtf.f50, rel=0.07)


def test_no_edge():
    assert measure_mtf(np.full((2, 128, 128), -1000.0), 0.7) is None
    clipped = image(MEDIUM, 0.7, 20.0)[:, 90:170, 70:190]
    assert measure_mtf(clipped, 0.7) is None
    padded = image(MEDIUM, 0.7, 20.0)
    rows, columns = np.mgrid[:256, :256]
    padded[:, np.hypot(rows - 128, columns - 128) > 60] = -2000
    assert measure_mtf(padded, 0.7) is None


def test_one_slice_is_enough():
    assert measure_mtf(image(MEDIUM, 0.7, 20.0, slices=1)[0], 0.7).f50 == pytest.approx(4.0, rel=0.05)


def test_images_smaller_than_a_patch_are_not_measured():
    hu = np.random.default_rng(0).normal(40, 10, (3, 16, 16)).astype(np.float32)
    assert measure_noise(hu, 0.3) is None


def test_a_measured_overshoot_beyond_the_family_is_held_at_its_limit():
    measured = MtfMeasurement(f50=5.0, f10=7.5, peak=2.3, edges=100, slices=1, residual=1.0)
    assert measured.mtf().peak == pytest.approx(2.0, abs=0.01)
