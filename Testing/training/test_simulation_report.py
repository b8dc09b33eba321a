"""The report of a simulated pair, and the measurements that it shows."""

import base64
import re

import numpy as np
import pytest

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.io import write_nrrd
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.simulation import report
from CTHarmonizeTraining.simulation.checks import Curve, WaterCylinder, wire_mtf
from CTHarmonizeTraining.simulation.fan import FanBeam
from CTHarmonizeTraining.simulation.projector import Geometry
from CTHarmonizeTraining.simulation.scanner import Scanner

GEOMETRY = Geometry.covering(240.0, views=180, pitch=0.4, aperture=0.6, focal_spot=0.5)
SCANNERS = {"parallel": Scanner(GEOMETRY), "fan": Scanner(GEOMETRY, FanBeam(GEOMETRY))}
KERNEL = Mtf.from_points(5.5, 8.0, 1.1)


@pytest.mark.parametrize("beam", SCANNERS)
def test_a_wire_shows_the_kernel(beam):
    curve = wire_mtf(SCANNERS[beam], KERNEL)
    assert curve.measured.max() == pytest.approx(KERNEL.peak, rel=0.01)
    assert curve.f50() == pytest.approx(KERNEL.f50, rel=0.02)
    assert np.abs(curve.measured - curve.expected).max() < 0.05
    assert wire_mtf(SCANNERS[beam], Mtf.from_points(3.0)).f50() == pytest.approx(3.0, rel=0.02)


@pytest.mark.parametrize("beam", SCANNERS)
def test_water_shows_the_noise_of_theory(beam):
    cylinder = WaterCylinder(SCANNERS[beam], seed=3)
    curve = cylinder.noise_power(KERNEL, 50.0, draws=12)
    seen = (curve.frequency > 1.0) & (curve.frequency < 7.0)
    assert np.mean(curve.measured[seen] / curve.expected[seen]) == pytest.approx(1.0, abs=0.08)
    assert np.corrcoef(curve.measured[seen], curve.expected[seen])[0, 1] > 0.97
    noise, means = cylinder.noise(KERNEL, [1.0, 100.0, 400.0], draws=4)
    assert np.log(noise[2] / noise[1]) / np.log(4.0) == pytest.approx(-0.5, abs=0.04)
    assert noise[0] > 1.1 * noise[1] * 10.0  # electronic noise
    np.testing.assert_allclose(means[1], (0.0, -1000.0), atol=4.0)
    np.testing.assert_allclose(cylinder.noise_free(KERNEL), (0.0, -1000.0), atol=2.0)


PRESETS = ("smooth", "medium", "sharp", "siemens-b30f", "siemens-b70f", "siemens-br50", "ge-standard", "ge-lung",
           "ge-edge", "philips-b", "philips-ya", "philips-l", "toshiba-fc13", "toshiba-fc51")  # fmt: skip


@pytest.fixture(scope="module")
def cylinder() -> WaterCylinder:
    return WaterCylinder(Scanner(Geometry.covering(240.0, views=180)), seed=1)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_card_says(cylinder, name):
    """Sharpness and noise within 5 %, HU of water within 1 and of air within 4."""
    mtf = parse_kernel(name, 0.2)
    curve = wire_mtf(cylinder.scanner, mtf)
    assert curve.f50() == pytest.approx(mtf.f50, rel=0.02)
    assert curve.measured.max() == pytest.approx(mtf.peak, rel=0.02)
    noise, _ = cylinder.noise(mtf, [100.0], draws=4)
    assert noise == pytest.approx(cylinder.expected_noise(mtf, [100.0]), rel=0.05)
    water, air = cylinder.noise_free(mtf)
    assert abs(water) < 1.0 and abs(air + 1000.0) < 4.0


@pytest.mark.parametrize("beam", SCANNERS)
def test_noise_against_dose_is_that_of_theory(beam):
    cylinder = WaterCylinder(SCANNERS[beam], seed=5)
    doses = [5.0, 100.0, 400.0]
    noise, _ = cylinder.noise(KERNEL, doses, draws=6)
    np.testing.assert_allclose(noise, cylinder.expected_noise(KERNEL, doses), rtol=0.05)


def test_a_curve_that_never_falls_has_no_f50():
    frequency = np.linspace(0, 10, 11)
    assert Curve(frequency, 1 - frequency / 10, frequency).f50() == pytest.approx(5.0)
    assert np.isnan(Curve(frequency, np.ones(11), frequency).f50())


def test_the_page_needs_no_other_file(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DOSES", (10.0, 100.0, 200.0, 400.0))
    y, x = np.mgrid[:40, :40]
    hu = np.repeat(np.where(np.hypot(x - 19.5, y - 19.5) < 17, 0, -1000)[None], 2, 0).astype(np.int16)
    path = write_nrrd(Volume(hu, (1.0, 1.0, 2.0)), tmp_path / "a & b.nrrd")
    run = ["simulate", str(path), str(tmp_path), "--source_kernel", "ge-standard", "--target_kernel", "smooth"]
    assert main([*run, "--views", "64", "--device", "cpu", "--report", "true"]) == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == 3 and all(base64.b64decode(data).startswith(b"\x89PNG") for data in pictures)
    assert "http:" not in page and "https:" not in page and "a &amp; b.nrrd" in page
    row = re.search(r"<td>source</td><td>ge-standard</td>" + r'<td class="n">([\d.]+)</td>' * 2, page)
    assert float(row[1]) == pytest.approx(4.0) and float(row[2]) == pytest.approx(4.0, rel=0.05)
    row = re.search(r"<td>source</td><td>25</td>" + r'<td class="n">([\d.]+)</td>' * 2, page)
    assert float(row[1]) == pytest.approx(float(row[2]), rel=0.05)
