"""Frequency-band normalization: bands, masks, gains and their limits, and one filter for the whole volume."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from stochastic_method import ACQUISITION

from CTHarmonizeLib import denoising, engine
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import band_normalization as bands
from CTHarmonizeLib.methods.band_normalization import BandNormalization

SPACING = 0.8
SIDE = 192


def acquisition(kernel: str, noise: float) -> Acquisition:
    mtf = NAMED_KERNELS[kernel].limited_to(SPACING)
    return replace(ACQUISITION, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, noise=noise, pixel_spacing=SPACING)


def chest(kernel: str = "sharp", noise: float = 60.0, slices: int = 3) -> tuple[Volume, dict[str, np.ndarray]]:
    """A body with fat and two lungs full of vessels, seen through a kernel, with its noise; the regions' masks."""
    random = np.random.default_rng(4)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    radius = np.hypot(y / 0.8, x)
    image = np.full((slices, SIDE, SIDE), -1000.0)
    image[:, radius < 88] = -100.0
    image[:, radius < 66] = 40.0
    lungs = np.hypot(y, np.abs(x) - 34) < 26
    image[:, lungs] = -860.0
    for plane in image:
        vessels = ndimage.gaussian_filter(random.standard_normal((SIDE, SIDE)), 1.2) > 0.3
        plane[lungs & vessels] = -600.0
    source = acquisition(kernel, noise)
    pitch = SPACING / 10
    frequency = np.hypot(np.fft.fftfreq(SIDE, pitch)[:, None], np.fft.rfftfreq(SIDE, pitch)[None])
    clean = np.fft.irfft2(np.fft.rfft2(image) * source.mtf()(frequency), s=(SIDE, SIDE))
    power = np.sqrt(denoising.noise_power(source, (SIDE, SIDE))) / SIDE
    grain = np.fft.ifft2(np.fft.fft2(random.standard_normal(image.shape)) * power).real
    regions = {
        "lung": np.hypot(y, np.abs(x) - 34) < 19,
        "water": (radius < 60) & (np.hypot(y, np.abs(x) - 34) > 31),
        "fat": (radius > 71) & (radius < 83),
        "air": radius > 96,
    }
    return Volume(np.rint(clean + grain).astype(np.int16), (SPACING, SPACING, 2.0)), regions


def run(volume: Volume, source: Acquisition, target: Acquisition, **settings) -> tuple[np.ndarray, np.ndarray]:
    method = BandNormalization(None, torch.device("cpu"), torch.float32)
    outcome = engine.run(volume, method, source, target, engine.Settings(**settings))
    assert outcome.redrawn == 0
    return outcome.mean, method.gains


def energies(volume: Volume, hu: np.ndarray) -> np.ndarray:
    moments = bands.Moments()
    for plane, before in zip(hu, volume.hu, strict=True):
        moments.add(plane.astype(np.float32), bands.masks(before, SPACING)[0], SPACING)
    return moments.energies(np.ones(len(bands.SIGMAS_MM)))


def test_bands_sum_to_one_and_are_of_millimetres():
    responses = bands.bands((64, 60), 0.7)
    assert responses.shape == (len(bands.SIGMAS_MM) + 1, 64, 31)
    np.testing.assert_allclose(responses.sum(0), 1.0, atol=1e-12)
    np.testing.assert_allclose(responses[:-1, 0, 0], 0.0, atol=1e-12)  # mean HU lie in what stays
    # the same frequency in cycles per mm on two grids
    np.testing.assert_allclose(bands.bands((50, 50), 0.6)[:, 3, 0], bands.bands((100, 100), 0.3)[:, 3, 0])


def test_the_table_grows_finer_with_the_kernel():
    for reference in (bands.LUNG, bands.SOFT_TISSUE):
        for table in (reference.signal, reference.noise):
            rows = np.array(table)
            assert rows.shape == (len(bands.F50), len(bands.SIGMAS_MM)) and (rows > 0).all()
        assert (np.diff(np.array(reference.signal)[:, 0]) > 0).all()
        share = np.array(reference.noise)
        assert (np.diff(share[:, 0]) > 0).all() and (np.diff(share[:, -1]) < 0).all()
        middle = reference.energies(acquisition("medium", 30.0))
        row = bands.F50.index(4.0)
        np.testing.assert_allclose(middle**2, np.array(reference.signal[row]) ** 2 + (30.0 * share[row]) ** 2)


def test_lung_and_soft_tissue_are_found():
    volume, regions = chest()
    lung, soft = bands.masks(volume.hu[0], SPACING)
    assert lung[regions["lung"]].all() and not lung[regions["water"]].any() and not lung[regions["air"]].any()
    assert soft[regions["water"]].mean() > 0.8 and not soft[regions["lung"]].any() and not soft[regions["air"]].any()


def test_a_small_pocket_of_gas_is_no_lung():
    y, x = np.mgrid[:128, :128] - 63.5
    image = np.where(np.hypot(y, x) < 50, 40.0, -1000.0)
    image[np.hypot(y, x) < 12] = -1000.0  # 2.9 cm^2
    lung, soft = bands.masks(image, SPACING)
    assert not lung.any() and soft.any()
    assert not any(mask.any() for mask in bands.masks(np.full((64, 64), -1000.0), SPACING))


def test_moments_tell_the_energies_of_a_filtered_image():
    volume, _ = chest(slices=1)
    image, mask = volume.hu[0].astype(np.float32), np.zeros((SIDE, SIDE), bool)
    mask[60:130, 60:130] = True
    gains = np.array([0.3, 0.6, 1.5, 1.0, 0.8])
    moments = bands.Moments()
    moments.add(image, mask, SPACING)
    padded = np.pad(image, 48, mode="reflect")
    weights = np.tensordot(np.append(gains, 1.0), bands.bands(padded.shape, SPACING), 1)
    filtered = np.fft.irfft2(np.fft.rfft2(padded) * weights, s=padded.shape)
    parts = np.fft.irfft2(np.fft.rfft2(filtered) * bands.bands(padded.shape, SPACING), s=padded.shape)
    direct = [part[48:-48, 48:-48][mask].std() for part in parts[:-1]]
    np.testing.assert_allclose(moments.energies(gains), direct, rtol=1e-3)


def test_sharp_and_noisy_becomes_smooth():
    source, target = acquisition("sharp", 60.0), acquisition("smooth", 9.0)
    volume, regions = chest("sharp", 60.0)
    made, gains = run(volume, source, target)
    low, high = bands.limits(bands.LUNG, source, target)
    assert (gains >= low).all() and (gains <= high).all() and (gains[:2] < 0.5).all()
    free = (gains > 1.001 * low) & (gains < 0.999 * high)
    assert free.any()
    wanted = bands.LUNG.energies(target)
    np.testing.assert_allclose(energies(volume, made)[free], wanted[free], rtol=0.05)
    water = regions["water"]
    assert made[:, water].std() < 0.5 * volume.hu[:, water].std()


def test_gains_are_limited_and_mean_hu_stay():
    volume, regions = chest("smooth", 9.0)
    source = acquisition("smooth", 9.0)
    for target in (acquisition("sharp", 300.0), acquisition("sharp", 29.0), acquisition("medium", 5.0)):
        made, gains = run(volume, source, target)
        assert gains.max() <= bands.LARGEST_GAIN
        water = regions["water"]
        assert made[:, water].std() <= bands.LARGEST_GAIN * volume.hu[:, water].std()
        for tissue in ("air", "fat", "lung", "water"):
            inside = regions[tissue]
            assert made[:, inside].mean() == pytest.approx(volume.hu[:, inside].mean(), abs=1.0), tissue
    assert run(volume, source, acquisition("sharp", 29.0))[1][0] > 1.5


def test_noise_is_not_made_by_a_filter():
    volume, _ = chest("medium", 20.0, 1)
    made, gains = run(volume, acquisition("medium", 20.0), acquisition("medium", 60.0))
    np.testing.assert_array_equal(gains, 1.0)


def test_the_same_acquisition_changes_nothing():
    source = acquisition("medium", 20.0)
    volume, _ = chest("medium", 20.0, 1)
    made, gains = run(volume, source, source)
    np.testing.assert_array_equal(gains, 1.0)
    assert np.abs(made.astype(int) - volume.hu).max() <= 1


@pytest.mark.parametrize("settings", [{"slab": 3}, {"tile": 64}, {"roi": Roi((0, 50), (10, 90), (2, 4))}])
def test_one_filter_serves_the_whole_volume(settings):
    source, target = acquisition("sharp", 60.0), acquisition("smooth", 9.0)
    volume, _ = chest("sharp", 60.0, 4)
    volume.hu[2] //= 2  # a slice that alone would get another filter
    whole, gains = run(volume, source, target)
    part, again = run(volume, source, target, **settings)
    np.testing.assert_array_equal(gains, again)
    np.testing.assert_array_equal(part, whole[settings.get("roi", Roi.whole(volume.shape)).index()])


def test_where_there_is_no_lung_soft_tissue_counts():
    source, target = acquisition("sharp", 60.0), acquisition("smooth", 9.0)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    noise = np.random.default_rng(0).normal(0.0, 60.0, (1, SIDE, SIDE))
    hu = np.where(np.hypot(y, x) < 80, 40.0, -1000.0) + noise
    made, _ = run(Volume(np.rint(hu).astype(np.int16), (SPACING, SPACING, 2.0)), source, target)
    assert made[0, 80:110, 80:110].std() < 0.4 * hu[0, 80:110, 80:110].std()


def test_air_alone_is_one_sentence():
    source, target = acquisition("sharp", 60.0), acquisition("smooth", 9.0)
    with pytest.raises(InputError, match="too little lung or soft tissue"):
        run(Volume(np.full((2, 64, 64), -1000, np.int16), (SPACING, SPACING, 2.0)), source, target)
