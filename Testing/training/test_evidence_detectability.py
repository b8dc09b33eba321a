"""Detectability: closed forms of white noise, spectra of known noise, sections of made-up findings."""

from __future__ import annotations

import numpy as np
import pytest
from evidence_rows import METHODS, SOURCES, case_of, rows_of
from scipy.special import j0, j1

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.ct.measure import NoiseSpectrum, measure_noise
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeTraining.evaluation.measures import SystemMtf
from CTHarmonizeTraining.evidence.cases import Scan
from CTHarmonizeTraining.evidence.detectability import (
    F50,
    INDEX,
    MEAN_FREQUENCY,
    PEAK_FREQUENCY,
    SIGMA,
    DetectabilityStudy,
    Observer,
    Task,
    detectability,
    measured_modulation,
)
from CTHarmonizeTraining.evidence.study import Image

FREQUENCY = np.arange(0.05, 7.0, 0.1)


def white(power: float) -> NoiseSpectrum:
    return NoiseSpectrum(FREQUENCY, np.full_like(FREQUENCY, power), 20.0, 3.5)


def test_white_noise_and_a_perfect_mtf() -> None:
    """The disc's energy within a circle of frequencies (Airy's encircled energy) over the noise."""
    task, last = Task(4.0, 100.0), 0.7  # cycles/mm, the spectrum's last bin and half a bin
    x = 2 * np.pi * 2.0 * last
    energy = 100.0**2 * np.pi * 2.0**2 * (1 - j0(x) ** 2 - j1(x) ** 2)
    for distance in (300.0, 900.0):  # without internal noise the eye does not matter
        found = detectability(np.ones_like, white(50.0), task, Observer(distance, alpha=0.0))
        assert found == pytest.approx(np.sqrt(energy / 50.0), rel=1e-4)


def test_index_is_the_integral_over_the_plane() -> None:
    """The same by a sum over a square grid of frequencies, and the eye by its own formula."""
    mtf, observer = Mtf.from_points(3.5), Observer(450.0, 1.3, 1e-3)
    power = 400.0 * FREQUENCY * np.exp(-FREQUENCY / 3.0)
    axis = (np.arange(1400) - 699.5) * 0.001
    f = np.hypot(axis[:, None], axis[None])
    angular = f * 450.0 / 1.3 * np.pi / 180.0
    eye = angular**1.3 * np.exp(-1.3 / 32.0 * angular**2)
    eye /= 4.0**1.3 * np.exp(-1.3 / 2)
    nps = np.interp(10 * f, FREQUENCY, power)
    disc = 100.0 * np.pi * 2.0**2 * 2.0 * j1(4 * np.pi * f) / (4 * np.pi * f)
    density = disc**2 * mtf(10 * f) ** 2 * eye**2 / (eye**2 * nps + 1e-3 * 450.0**2)
    expected = np.sqrt(density[f <= 0.7].sum() * 0.001**2)
    noise = NoiseSpectrum(FREQUENCY, power, 20.0, 3.5)
    assert detectability(mtf, noise, observer=observer) == pytest.approx(expected, rel=2e-3)


def test_what_makes_a_lesion_easier_to_see() -> None:
    plain = detectability(Mtf.from_points(3.0), white(50.0))
    assert detectability(Mtf.from_points(3.0), white(12.5)) == pytest.approx(2 * plain, rel=0.02)
    assert detectability(Mtf.from_points(5.0), white(50.0)) > plain
    assert detectability(Mtf.from_points(3.0), white(50.0), Task(contrast=50.0)) == pytest.approx(plain / 2, rel=1e-3)
    assert detectability(Mtf.from_points(3.0), white(50.0), observer=Observer(alpha=1e-3)) < plain


def test_eye_peaks_at_four_cycles_per_degree() -> None:
    f = np.linspace(0.0, 2.0, 20001)
    eye = Observer(600.0).eye(f)
    assert eye.max() == pytest.approx(1.0) and f[eye.argmax()] * 600.0 * np.pi / 180 == pytest.approx(4.0, abs=0.01)


def test_unsure_modulation_does_not_count() -> None:
    frequency = np.arange(5.0)
    found = SystemMtf(frequency, np.array([1.0, 0.8, 0.5, 0.05, 0.3]), np.full(5, 0.03))
    assert measured_modulation(found)(np.array([0.5, 2.0, 2.1, 4.0])) == pytest.approx([0.9, 0.5, 0.0, 0.0])
    assert measured_modulation(SystemMtf(frequency, np.zeros(5), np.ones(5)))(frequency).sum() == 0.0


PIXEL = 0.8


def grid(size: int) -> np.ndarray:
    """Frequencies (lp/cm) of the discrete Fourier transform of ``size`` pixels a side."""
    return np.hypot(*np.meshgrid(*[np.fft.fftfreq(size, PIXEL / 10)] * 2, indexing="ij"))


def noisy_water(shape, sigma: float = 20.0, slices: int = 12, size: int = 160) -> np.ndarray:
    """Water with noise whose amplitude at each frequency (lp/cm) is ``shape``'s."""
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(slices, size, size))) * shape(grid(size))
    noise = np.fft.ifft2(noise).real
    return 30.0 + sigma * noise / noise.std()


def test_spectrum_of_white_noise_is_flat_and_its_variance_over_the_pixels() -> None:
    water = noisy_water(np.ones_like)
    found = measure_noise(water, PIXEL).spectrum
    # from nearly zero on: the patches' planes are taken into account
    assert found.power == pytest.approx(20.0**2 * PIXEL**2, rel=0.15)
    assert found.power.mean() == pytest.approx(20.0**2 * PIXEL**2, rel=0.05)
    assert found.sigma == pytest.approx(20.0, rel=0.03)
    assert found.mean_frequency == measure_noise(water, PIXEL).mean_frequency


@pytest.mark.parametrize(("peak", "width"), [(0.0, 6.0), (3.0, 3.0)])
def test_spectrum_of_coloured_noise(peak: float, width: float) -> None:
    def shape(f: np.ndarray) -> np.ndarray:
        return np.exp(-(((f - peak) / width) ** 2))

    found = measure_noise(noisy_water(shape), PIXEL).spectrum
    cell = (1.0 / (512 * PIXEL)) ** 2  # (cycles/mm)^2
    law = 20.0**2 * shape(found.frequency) ** 2 / ((shape(grid(512)) ** 2).sum() * cell)
    for low in np.arange(1.0, 6.0):
        band = (found.frequency > low) & (found.frequency < low + 1.0)
        assert found.power[band].mean() == pytest.approx(law[band].mean(), rel=0.08)
    if peak:
        assert found.peak_frequency == pytest.approx(peak, abs=0.3)
    assert measure_noise(np.full((3, 160, 160), 500.0), PIXEL) is None


def test_study() -> None:
    """A body of water with inserts through known kernels: the MTF is found again, and with it the index."""
    pixel, size = PIXEL, 160
    random = np.random.default_rng(1)
    truth = np.full((6, size, size), 30.0)
    for plane in truth:
        for _ in range(14):
            row, column, half = *random.integers(8, size - 8, 2), random.integers(2, 6)
            plane[row - half : row + half, column - half : column + half] = random.choice([-900.0, 900.0])
        plane[:, :70] = 30.0

    def through(mtf: Mtf) -> np.ndarray:
        return np.fft.ifft2(np.fft.fft2(truth) * mtf(grid(size))).real

    clean = {name: through(target_mtf(name, pixel)) for name in ("smooth", "sharp")}
    case = case_of(truth, (pixel, pixel, 1.0), clean=clean)
    scan = Scan("smooth", 100.0)
    image = clean["smooth"] + 15.0 * random.normal(size=truth.shape)
    found = {f.measure: f for f in DetectabilityStudy().measure(case, Image("untouched", scan, scan, np.rint(image)))}
    assert set(found) == {SIGMA, MEAN_FREQUENCY, PEAK_FREQUENCY, F50, INDEX}
    assert found[SIGMA].value == pytest.approx(15.0, rel=0.05)
    assert found[F50].value == pytest.approx(target_mtf("smooth", pixel).f50, rel=0.05)
    flat = NoiseSpectrum(FREQUENCY[:62], np.full(62, 15.0**2 * pixel**2), 15.0, 3.5)
    assert found[INDEX].value == pytest.approx(detectability(target_mtf("smooth", pixel), flat), rel=0.1)
    bare = DetectabilityStudy().measure(
        case_of(truth, case.spacing),
        Image("untouched", scan, scan, np.full(truth.shape, -900, np.int16)),
    )
    assert all(np.isnan(finding.value) for finding in bare) and len(bare) == len(found)


def test_section() -> None:
    measures = {SIGMA: (20, 4), MEAN_FREQUENCY: (3, 0.2), PEAK_FREQUENCY: (2.5, 0.2), F50: (4, 0.3), INDEX: (12, 3)}
    section = DetectabilityStudy().section(rows_of(measures, truth=False))
    by_method, by_source = (part.frame.set_index("method") for part in section.parts[:2])
    assert list(by_method.index) == [*METHODS, "reference"] and list(by_source.columns) == list(SOURCES)
    assert "±" in by_method.loc["unet", INDEX]
    assert "±" in by_source.loc["unet", "sharp 25 %"]
    assert section.parts[2].content.startswith(b"\x89PNG")
