"""Measures of the evaluation against values known in closed form."""

import numpy as np
import pytest
from scipy.special import erf

from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.measures import Regions, estimate, rmse, squared_error, system_mtf

SPACING = 0.7


def scene(seed: int = 0, slices: int = 3, size: int = 96) -> np.ndarray:
    """Blobs and edges with detail at all frequencies, HU."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((slices, size, size), -1000.0)
    for plane in image:
        for _ in range(150):
            row, column = rng.uniform(8, size - 8, 2)
            plane[np.hypot(y - row, x - column) < rng.uniform(1, 5)] += rng.uniform(-300, 600)
    return image


def through(image: np.ndarray, mtf: Mtf, spacing: float = SPACING) -> np.ndarray:
    """``image`` filtered by ``mtf``."""
    rows, columns = image.shape[-2:]
    frequency = 10.0 * np.hypot(np.fft.fftfreq(rows, spacing)[:, None], np.fft.rfftfreq(columns, spacing)[None])
    return np.fft.irfft2(np.fft.rfft2(image) * mtf(frequency), s=(rows, columns))


def test_rmse_is_that_of_known_errors_and_counts_the_mask_alone():
    truth = np.zeros((2, 10, 10))
    image = truth.copy()
    image[0], image[1] = 3.0, 4.0
    mask = np.ones(truth.shape, bool)
    mask[1, 5:] = False
    image[1, 5:] = 1e6
    found = rmse(squared_error(image, truth, mask), mask.sum((1, 2)))
    assert found.value == pytest.approx(np.sqrt((100 * 9 + 50 * 16) / 150))
    assert found.low == pytest.approx(3.0) and found.high == pytest.approx(4.0)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        squares = 25.0 * rng.chisquare(40, 24)  # 40 pixels a slice, deviation 5 HU
        found = estimate(lambda s, n: np.sqrt(s / n), squares, np.full(24, 40.0), resamples=400, seed=trial)
        held += found.low <= 5.0 <= found.high
    assert 0.88 < held / 300 < 0.985


def test_differences_are_paired():
    """Slices that vary far more than the difference between two images does hide nothing."""
    pixels = np.full(10, 100.0)
    squares = np.linspace(10.0, 100.0, 10) ** 2 * 100
    better = measures.rmse_difference(0.9 * squares, squares, pixels)
    whole = rmse(squares, pixels)
    assert better.value == pytest.approx((np.sqrt(0.9) - 1) * whole.value)
    assert better.high < 0 and whole.high - whole.low > 5 * (better.high - better.low)
    assert rmse(squares, pixels) == whole


def test_psnr_and_ssim_of_a_known_error():
    truth = np.clip(scene(), -1000, 1000).astype(np.float32)
    mask = np.ones(truth.shape, bool)
    shifted = np.where(truth > 0, truth - 10, truth + 10)
    assert measures.psnr(shifted, truth, mask) == pytest.approx(20 * np.log10(2000 / 10), abs=1e-4)
    assert measures.psnr(truth, truth, mask) == np.inf
    beyond = truth.copy()
    beyond[truth >= 1000] = 3000  # outside the window nothing counts
    assert measures.psnr(beyond, truth, mask) == np.inf
    assert measures.ssim(truth, truth, mask) == pytest.approx(1.0)
    flat = np.full((1, 40, 40), 100.0)
    c1 = (0.01 * 2000) ** 2  # Wang 2004: of two flat images only the luminance term is left
    expected = (2 * 100 * 300 + c1) / (100**2 + 300**2 + c1)
    assert measures.ssim(flat, flat + 200, np.ones(flat.shape, bool)) == pytest.approx(expected, rel=1e-5)


def test_coverage_of_normal_noise():
    rng = np.random.default_rng(1)
    mean = np.zeros((4, 64, 64), np.float32)
    mask = np.ones(mean.shape, bool)
    target = rng.normal(0.0, 20.0, mean.shape)
    for factor in (0.5, 1.0, 2.0):
        found = measures.coverage(mean, np.full(mean.shape, 20.0 * factor), target, mask)
        assert found.value == pytest.approx(erf(factor / np.sqrt(2)), abs=0.015)
        assert found.low <= found.value <= found.high


def test_bias_is_found_in_each_tissue_away_from_edges():
    y, x = np.mgrid[:128, :128]
    radius = np.hypot(y - 64, x - 64)
    clean = np.full((2, 128, 128), -1000.0, np.float32)
    for edge, hu in ((54, -95.0), (42, 45.0), (26, -850.0), (12, 700.0)):
        clean[:, radius < edge] = hu
    regions = Regions.of(clean, SPACING)
    assert regions.body[0].sum() == pytest.approx(np.pi * 54**2, rel=0.02)
    image = clean + np.where(clean > 0, 2.0, -3.0) + np.random.default_rng(0).normal(0, 5, clean.shape)
    for name, wanted in (("air", -3), ("lung", -3), ("fat", -3), ("water-like", 2), ("bone", 2)):
        mask = regions.tissues[name]
        assert mask.sum() > 300
        assert measures.bias(image, clean, mask).value == pytest.approx(wanted, abs=0.6)
        assert np.ptp(clean[mask]) == 0
    gaps = (26 - radius[regions.tissues["lung"][0]]) * SPACING
    assert gaps.min() > 0.9  # lung ends 1.5 mm from other tissue, less the pixels' stairs
    assert regions.tissues["air"][0][radius < 54 + 5 / SPACING].sum() == 0
    assert np.isnan(measures.bias(image, clean, np.zeros(clean.shape, bool)).value)


def test_edge_gain_is_the_scale_of_the_edges_and_blind_to_noise():
    clean = through(scene(), NAMED_KERNELS["medium"])
    mask = np.ones(clean.shape, bool)
    noise = np.random.default_rng(2).normal(0.0, 30.0, clean.shape)
    assert measures.edge_gain(clean, clean, mask).value == pytest.approx(1.0)
    assert measures.edge_gain(0.7 * clean + noise + 40, clean, mask).value == pytest.approx(0.7, abs=0.02)
    assert measures.edge_gain(through(scene(), NAMED_KERNELS["sharp"]), clean, mask).value > 1.1
    assert measures.edge_gain(through(scene(), NAMED_KERNELS["smooth"]), clean, mask).value < 0.9


@pytest.mark.parametrize("kernel", ["smooth", "medium"])
@pytest.mark.parametrize("sigma", [0.0, 25.0])
def test_the_mtf_against_the_truth_is_the_one_applied(kernel, sigma):
    sharp = NAMED_KERNELS["sharp"]
    noise = np.random.default_rng(4).normal(0.0, 1.0, (3, 96, 96)) * sigma
    wanted = NAMED_KERNELS[kernel]
    found = system_mtf(through(scene(), wanted) + noise, through(scene(), sharp), sharp, SPACING)
    inside = found.frequency < 4.0
    expected = wanted(found.frequency)
    assert np.abs(found.modulation - expected)[inside].max() < (0.03 if sigma == 0 else 0.1)
    assert found.f50() == pytest.approx(wanted.f50, rel=0.04)


def test_errors_of_the_mtf_are_those_of_the_noise():
    """On a small image rings are thin, and the stated error is somewhat too large."""
    sharp, wanted = NAMED_KERNELS["sharp"], NAMED_KERNELS["medium"]
    truth, image = through(scene(), sharp), through(scene(), wanted)
    rng = np.random.default_rng(5)
    draws = [system_mtf(image + rng.normal(0, 25, image.shape), truth, sharp, SPACING) for _ in range(40)]
    spread = np.std([draw.modulation for draw in draws], axis=0)[2:]
    said = np.mean([draw.error for draw in draws], axis=0)[2:]
    assert 0.6 < np.median(spread / said) < 1.1


def test_no_f50_where_the_truth_has_no_such_detail():
    sharp = NAMED_KERNELS["sharp"]
    dull = Mtf.from_points(1.2)
    noise = np.random.default_rng(6).normal(0.0, 20.0, (3, 96, 96))
    truth = through(scene(), dull)
    assert system_mtf(truth + noise, through(truth, sharp), sharp, SPACING).f50() is None
