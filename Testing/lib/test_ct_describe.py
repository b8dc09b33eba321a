"""Where each number of a description comes from."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ct_images import body, noise

import CTHarmonizeLib
from CTHarmonizeLib.ct.acquisition import REFERENCE_NOISE
from CTHarmonizeLib.ct.describe import describe
from CTHarmonizeLib.ct.dicom import DicomFacts
from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, nyquist
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.request import Request, choose, plan

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
MEDIUM = NAMED_KERNELS["medium"]
B40F = DicomFacts(manufacturer="SIEMENS", kernel="B40f", exposure_mas=85.0, slice_thickness=3.0)


def scan(facts: DicomFacts | None = None, sigma: float = 15.0, mtf=MEDIUM, slices: int = 2) -> Volume:
    hu = body(mtf, 256, 0.7) + noise(mtf, (slices, 256, 256), 0.7, sigma)
    return Volume(np.rint(hu).astype(np.int16), (0.7, 0.7, 2.0), facts=facts)


def test_tags_say_the_kernel_and_the_image_its_noise():
    found = describe(scan(B40F))
    assert found.kernel_name == "Siemens B40f" and found.sources["f50"] == "dicom"
    assert found.acquisition.f50 == pytest.approx(3.9) and found.measured_f50 == pytest.approx(4.0, rel=0.05)
    assert found.acquisition.noise == pytest.approx(15.0, rel=0.06) and found.sources["noise"] == "measured"
    assert found.acquisition.slice_thickness == 3.0 and found.sources["slice_thickness"] == "dicom"
    assert found.exposure_mas == 85.0 and found.warnings == ()


def test_header_is_named_as_such():
    facts = DicomFacts(manufacturer="SIEMENS", kernel="Br40f\\3", origin="header")
    found = describe(scan(facts))
    assert found.sources["f50"] == found.sources["pixel_spacing"] == "header"
    assert found.kernel_name == "Siemens Br40f, iterative strength 3"


@pytest.mark.parametrize("facts", [None, DicomFacts(manufacturer="Hitachi", kernel="11")])
def test_unknown_kernel_is_measured(facts):
    found = describe(scan(facts))
    assert found.acquisition.f50 == pytest.approx(4.0, rel=0.05) and found.sources["f50"] == "measured"
    assert "measured" in found.kernel_name and found.warnings == ()
    assert found.acquisition.slice_thickness == 2.0 and found.sources["slice_thickness"] == "assumed"


def test_nothing_to_measure():
    hu = np.random.default_rng(0).normal(-850, 30, (2, 64, 64)).astype(np.float32)
    found = describe(Volume(hu, (0.7, 0.7, 2.0)))
    assert found.sources["f50"] == found.sources["noise"] == "assumed"
    assert found.acquisition.f50 == MEDIUM.f50
    assert any("choose the source kernel" in warning for warning in found.warnings)
    assert any("choose the source dose" in warning for warning in found.warnings)


def test_exposure_is_never_noise():
    low = describe(scan(DicomFacts("SIEMENS", kernel="B40f", exposure_mas=5.0)))
    high = describe(scan(DicomFacts("SIEMENS", kernel="B40f", exposure_mas=500.0)))
    assert low.acquisition == high.acquisition


def test_tags_that_contradict_the_image():
    found = describe(scan(DicomFacts("SIEMENS", kernel="B10f")))
    assert found.sources["f50"] == "dicom" and found.acquisition.f50 < 2.5
    assert "measured at the skin" in found.warnings[0]


@pytest.mark.parametrize(
    ("kernel", "f50", "name"),
    [("sharp", 5.714, "sharp"), (3.0, 3.0, "f50 3 lp/cm"), ("3.0", 3.0, "f50 3 lp/cm"), ("B30f", 3.4, "Siemens B30f")],
)
def test_given_kernel(kernel, f50, name):
    found = describe(scan(B40F), source_kernel=kernel)
    assert found.acquisition.f50 == pytest.approx(f50, abs=0.01)
    assert found.kernel_name == name and found.sources["f50"] == "given"


def test_given_dose():
    quarter, full = (describe(scan(B40F), source_dose=dose) for dose in (25.0, 100.0))
    assert (
        quarter.acquisition.noise == pytest.approx(2 * full.acquisition.noise) and quarter.sources["noise"] == "given"
    )


def test_a_stated_dose_that_contradicts_the_noise_is_warned_of():
    volume = scan(B40F)
    found = describe(volume)
    dose = REFERENCE_NOISE.dose(found.acquisition.f50, found.measured_noise)

    def said(factor: float) -> list[str]:
        request = Request(kernel="smooth", method="mtf-filter", source_dose=dose / factor**2)
        return [
            text for text in plan(request, choose(request), volume).warnings if "was measured in the source" in text
        ]

    assert said(1.0) == said(1.4) == said(1 / 1.4) == []
    for factor in (1.6, 1 / 1.6):
        (sentence,) = said(factor)
        assert f"A noise of {found.measured_noise:.1f} HU was" in sentence and "leave the source dose out" in sentence
        assert f"of {dose / factor**2:g} % means {factor * found.measured_noise:.1f} HU for this method" in sentence


def test_bad_wishes():
    with pytest.raises(InputError, match="unknown"):
        describe(scan(B40F), source_kernel="crisp")
    with pytest.raises(InputError, match="out of range"):
        describe(scan(B40F), source_dose=float("nan"))


def test_kernel_fits_the_grid():
    found = describe(scan(DicomFacts("GE MEDICAL SYSTEMS", kernel="EDGE")))
    assert found.acquisition.f50 == pytest.approx(0.8 * nyquist(0.7))


def test_image_without_noise():
    found = describe(scan(B40F, sigma=0.0))
    assert found.acquisition.noise == 0.5 and any("no noise" in warning for warning in found.warnings)


def test_json():
    facts = json.loads(json.dumps(describe(scan(B40F)).as_dict()))
    assert facts["sources"]["f50"] == "dicom" and facts["acquisition"]["pixel_spacing"] == 0.7
    assert set(facts["sources"]) == set(facts["acquisition"])


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared CT")
@pytest.mark.parametrize(
    ("name", "kernel", "f50", "noise"),
    [
        ("chest_siemens_B40f", "Siemens B40f", (2.7, 4.2), (15, 28)),
        ("chest_ge_SOFT", "GE SOFT", (2.0, 3.4), (12, 23)),
        ("chest_toshiba_FC51_lowdose", "Canon FC51", (4.5, 6.5), (25, 40)),
        ("abdomen_toshiba_FC13", "Canon FC13", None, (14, 26)),
    ],
)
def test_real_scans(name, kernel, f50, noise):
    volume = read_volume(SHARED / f"{name}.nrrd")
    start = time.process_time()
    found = describe(volume)
    assert time.process_time() - start < 8  # the aim is 5 s on a free core
    assert found.kernel_name == kernel and found.sources["f50"] == "header"
    assert noise[0] < found.acquisition.noise < noise[1] and found.sources["noise"] == "measured"
    if f50 is None:
        assert found.measured_f50 is None  # dressed all round: no bare skin
    else:
        assert f50[0] < found.measured_f50 < f50[1]
    assert found.warnings == ()


def test_what_the_reading_warned_of_is_told_too():
    assert CTHarmonizeLib.describe(replace(scan(), warnings=("One slice only.",))).warnings[0] == "One slice only."
