"""The denoisers: what they leave of the noise, what they do to mean HU, and that nothing depends on the division."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from stochastic_method import ACQUISITION

from CTHarmonizeLib import denoising, engine
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.methods import available

METHODS = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(package.module) is None for package in method.packages),
            reason=f"the packages of {name} are not installed",
        ),
    )
    for name, method in available().items()
    if issubclass(method, denoising.Denoiser)
]
SPACING = 0.8
HU = {"water": 40.0, "fat": -100.0, "lung": -850.0}
PADDING = -2000


def acquisition(kernel: str = "medium", noise: float = 40.0) -> Acquisition:
    mtf = NAMED_KERNELS[kernel].limited_to(SPACING)
    return replace(
        ACQUISITION, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, noise=noise, pixel_spacing=SPACING
    )


def coloured(random: np.random.Generator, source: Acquisition, shape: tuple[int, int]) -> np.ndarray:
    """Noise as the source's, but not that which the methods make for themselves."""
    power = denoising.noise_power(source, shape)
    return np.fft.ifft2(np.fft.fft2(random.standard_normal(shape)) * np.sqrt(power / np.prod(shape))).real


@pytest.fixture(scope="module")
def scan() -> tuple[Volume, dict[str, np.ndarray]]:
    """A noisy slice of water with fat and lung in air, metal in one slice and padding at the corners; and the
    regions' masks (rows, columns)."""
    rows, columns = 112, 128
    y, x = np.mgrid[:rows, :columns]
    radius = np.hypot((y - 55.5) / 50, (x - 63.5) / 58)
    image = np.where(radius < 1.0, HU["water"], -1000.0)
    image[(radius > 0.65) & (radius < 0.97)] = HU["fat"]
    lung = np.hypot(y - 50, x - 50) < 14
    image[lung] = HU["lung"]
    smooth = np.fft.irfft2(
        np.fft.rfft2(image)
        * acquisition().mtf()(
            np.hypot(np.fft.fftfreq(rows, SPACING / 10)[:, None], np.fft.rfftfreq(columns, SPACING / 10)[None])
        ),
        s=image.shape,
    )
    random = np.random.default_rng(7)
    hu = np.stack([smooth + coloured(random, acquisition(), image.shape) for _ in range(3)])
    hu[2, 60:66, 80:86] = 9000.0
    outside = np.hypot(y - 55.5, x - 63.5) > 76
    hu[:, outside] = PADDING
    regions = {
        "water": (radius < 0.6) & (np.hypot(y - 50, x - 50) > 18),
        "fat": (radius > 0.7) & (radius < 0.92),
        "lung": np.hypot(y - 50, x - 50) < 10,
        "air": (radius > 1.06) & (np.hypot(y - 55.5, x - 63.5) < 72),
    }
    return Volume(np.rint(hu).astype(np.int16), (SPACING, SPACING, 2.0)), {**regions, "outside": outside}


def run(name: str, volume: Volume, noise: float = 12.0, **settings) -> np.ndarray:
    method = available()[name](None, torch.device("cpu"), torch.float32)
    source = acquisition()
    outcome = engine.run(volume, method, source, replace(source, noise=noise), engine.Settings(**settings))
    assert outcome.redrawn == 0 and outcome.deviation is None
    np.testing.assert_array_equal(outcome.harmonized, outcome.mean)
    return outcome.mean


def test_the_noise_is_a_ramp_times_the_kernel():
    source = acquisition("smooth", 25.0)
    power = denoising.noise_power(source, (90, 120))
    assert power.sum() / power.size**2 == pytest.approx(25.0**2)
    assert power[0, 0] == 0.0
    low, high = 3 / (90 * 0.08), 6 / (90 * 0.08)  # lp/cm, rows 3 and 6
    assert power[6, 0] / power[3, 0] == pytest.approx(2.0 * (source.mtf()(high) / source.mtf()(low)) ** 2)
    made = denoising.uniform_noise(source)
    assert made.std() == pytest.approx(25.0) and abs(made.mean()) < 1e-6


@pytest.mark.parametrize("wanted", [5.0, 11.0, 19.0])
def test_the_share_leaves_what_is_wanted(wanted):
    random = np.random.default_rng(1)
    noise = random.normal(0.0, 20.0, 10000)
    left = 0.1 * noise + random.normal(0.0, 2.0, 10000)
    share = denoising.share_left(noise, left, wanted)
    assert (left + share * (noise - left)).std() == pytest.approx(wanted)


def test_the_share_stays_between_none_and_all():
    noise = np.random.default_rng(1).normal(0.0, 20.0, 1000)
    assert denoising.share_left(noise, 0.5 * noise, 3.0) == 0.0
    assert denoising.share_left(noise, 0.5 * noise, 30.0) == 1.0


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kernel", ["smooth", "medium", "sharp"])
@pytest.mark.parametrize("ratio", [0.4, 0.7])
def test_the_noise_that_stays_is_the_targets(name, kernel, ratio):
    source = acquisition(kernel, 40.0)
    noise = coloured(np.random.default_rng(3), source, (128, 128))
    hu = np.rint(noise * (source.noise / noise.std()) + 40.0).astype(np.int16)[None]
    volume = Volume(hu, (SPACING, SPACING, 2.0))
    method = available()[name](None, torch.device("cpu"), torch.float32)
    target = replace(source, noise=ratio * source.noise)
    made = engine.run(volume, method, source, target, engine.Settings()).mean
    assert made.std() == pytest.approx(target.noise, rel=0.1)
    assert made.mean() == pytest.approx(volume.hu.mean(), abs=0.2)


@pytest.mark.parametrize("name", METHODS)
def test_mean_hu_stay(name, scan):
    volume, regions = scan
    made = run(name, volume)
    for tissue in ("water", "fat", "lung", "air"):
        inside = regions[tissue]
        assert made[:2, inside].mean() == pytest.approx(volume.hu[:2, inside].mean(), abs=1.0), tissue
    water = regions["water"]
    assert made[:2, water].std() < 0.5 * volume.hu[:2, water].std()


@pytest.mark.parametrize("name", METHODS)
def test_padding_and_metal_stay(name, scan):
    volume, regions = scan
    made = run(name, volume)
    assert (made[:, regions["outside"]] == PADDING).all()
    assert np.abs(made[2, 60:66, 80:86].astype(int) - 9000).max() < 2500
    beside = regions["water"] & ~regions["outside"]
    beside[50:76, 70:96] = False
    assert made[2, beside].mean() == pytest.approx(volume.hu[2, beside].mean(), abs=1.0)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("settings", [{"tile": 48}, {"slab": 3}, {"roi": Roi((5, 90), (20, 91), (1, 3))}])
def test_the_division_changes_nothing(name, settings, scan):
    volume, _ = scan
    roi = settings.get("roi", Roi.whole(volume.shape))
    np.testing.assert_array_equal(run(name, volume, **settings), run(name, volume)[roi.index()])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("noise", [40.0, 60.0])
def test_a_source_with_no_more_noise_than_the_target_comes_back(name, noise, scan):
    volume, _ = scan
    np.testing.assert_array_equal(run(name, volume, noise), volume.hu)


@pytest.mark.parametrize("name", METHODS)
def test_small_slices(name):
    hu = np.rint(np.random.default_rng(0).normal(40.0, 40.0, (1, 17, 23))).astype(np.int16)
    made = run(name, Volume(hu, (SPACING, SPACING, 2.0)))
    assert made.shape == hu.shape and made.std() < hu.std()
