"""The table of vendors' kernels."""

from __future__ import annotations

import numpy as np
import pytest

from CTHarmonizeLib.ct.acquisition import parse_kernel
from CTHarmonizeLib.ct.kernels import _NAMED, lookup_kernel, preset_kernel, vendor_of
from CTHarmonizeLib.ct.mtf import nyquist


@pytest.mark.parametrize(
    ("manufacturer", "vendor"),
    [
        ("SIEMENS", "Siemens"),
        ("Siemens Healthineers", "Siemens"),
        ("GE MEDICAL SYSTEMS", "GE"),
        ("GE", "GE"),
        ("Philips", "Philips"),
        ("TOSHIBA", "Canon"),
        ("Canon Medical Systems", "Canon"),
        ("Hitachi Medical Corporation", None),
        ("Gemini", None),
        ("", None),
    ],
)
def test_vendor(manufacturer, vendor):
    assert vendor_of(manufacturer) == vendor


@pytest.mark.parametrize("name", ["Br40f\\3", "Br40f(3)", "Br40f 3", "br40F_3"])
def test_iterative_strength(name):
    plain, iterative = lookup_kernel("SIEMENS", "Br40f"), lookup_kernel("SIEMENS", name)
    assert (plain.iterative_strength, iterative.iterative_strength) == (0, 3)
    assert iterative.mtf == plain.mtf
    assert iterative.noise_frequency < 0.95 * plain.noise_frequency


def test_siemens_index_is_resolution():
    f50 = [lookup_kernel("SIEMENS", f"Br{index}d").mtf.f50 for index in range(30, 69)]
    steps = np.diff(np.log(f50))
    assert steps.min() > 0.025 and steps.max() < 0.05
    assert 9.4 < lookup_kernel("SIEMENS", "Hr68h").mtf.f50 < 11.9  # measured on a real wire
    old = [lookup_kernel("SIEMENS", f"B{index}f").mtf.f50 for index in range(10, 91, 5)]
    assert (np.diff(old) > 0).all()


@pytest.mark.parametrize(
    ("manufacturer", "kernel", "smoother"),
    [
        ("SIEMENS", "B30s", "B20f"),
        ("SIEMENS", "I50f\\2", "I31s\\3"),
        ("SIEMENS", "H60s", "H30s"),
        ("SIEMENS", "Qr44", "Qr36d"),
        ("SIEMENS", "Ur77u", "Hv49d"),
        ("SIEMENS", "Bl57d\\2", "Bv40f"),
        ("GE MEDICAL SYSTEMS", "Bone Plus", "bone"),
        ("GE MEDICAL SYSTEMS", "STANDARD", "SOFT"),
        ("GE MEDICAL SYSTEMS", "EDGE", "ULTRA"),
        ("GE MEDICAL SYSTEMS", "LUNG", "DETAIL"),
        ("Philips", "YC", "YB"),
        ("Philips", "UC", "UB"),
        ("Philips", "C", "B"),
        ("TOSHIBA", "FC51", "FC13"),
        ("TOSHIBA", "FC86", "FC03"),
        ("CANON_MEC", "FC18", "FC17"),
    ],
)
def test_known_kernels_in_order(manufacturer, kernel, smoother):
    assert lookup_kernel(manufacturer, kernel).mtf.f50 > lookup_kernel(manufacturer, smoother).mtf.f50


def test_unknown():
    for manufacturer, name in (("Hitachi", "11"), ("SIEMENS", ""), ("SIEMENS", "Zz40"), ("SIEMENS", "B99f"),
                               ("SIEMENS", "Br40fxyz"), ("GE MEDICAL SYSTEMS", "FC13"), ("Philips", "Standard"),
                               ("Hitachi", "STANDARD")):  # fmt: skip
        assert lookup_kernel(manufacturer, name) is None


def test_without_manufacturer():
    assert lookup_kernel("", "STANDARD").vendor == "GE"
    assert lookup_kernel("", "B40f").vendor == "Siemens"
    assert lookup_kernel("", "FC51").vendor == "Canon"


def test_other_vendors_iterative_strength():
    assert lookup_kernel("GE MEDICAL SYSTEMS", "STANDARD", "SS40").iterative_strength == 2
    assert lookup_kernel("Philips", "B", "iDose 7").iterative_strength == 5


def test_table_holds_possible_mtfs():
    for vendor, table in _NAMED.items():
        for name, (f50, f10, peak) in table.items():
            mtf = lookup_kernel({"Canon": "TOSHIBA"}.get(vendor, vendor), name).mtf
            assert mtf.f50 == f50 and mtf.f10 == pytest.approx(f10, rel=0.02), (vendor, name)
            assert mtf.peak == pytest.approx(peak, abs=0.01), (vendor, name)
            assert mtf.limited_to(0.9).f50 <= 0.8 * nyquist(0.9)
            rising = np.linspace(0.0, 0.4 * f50, 200)
            assert peak == 1.0 or mtf(rising).min() > 0.994, (vendor, name)  # a dip there shifts water and air


def test_scanner_suffixes_and_single_letters():
    assert lookup_kernel("Canon Medical Systems", "FC08-H").mtf == lookup_kernel("TOSHIBA", "FC08").mtf
    assert lookup_kernel("Philips", "B") is not None
    assert lookup_kernel("", "B") is None and lookup_kernel("", "D\\3") is None
    assert lookup_kernel("", "FC18-H").mtf == lookup_kernel("TOSHIBA", "FC18").mtf


@pytest.mark.parametrize(
    ("text", "manufacturer", "name"),
    [
        ("siemens-b30f", "SIEMENS", "B30f"),
        ("siemens-b50f", "SIEMENS", "B50f"),
        ("siemens-b70f", "SIEMENS", "B70f"),
        ("GE-Standard", "GE MEDICAL SYSTEMS", "STANDARD"),
        ("ge-lung", "GE MEDICAL SYSTEMS", "LUNG"),
        ("ge-bone", "GE MEDICAL SYSTEMS", "BONE"),
        ("philips-b", "Philips", "B"),
        ("philips-yb", "Philips", "YB"),
        ("toshiba-fc13", "TOSHIBA", "FC13"),
        (" canon-fc08-h", "TOSHIBA", "FC08-H"),
        ("toshiba-fc51", "TOSHIBA", "FC51"),
    ],
)
def test_presets_are_the_table(text, manufacturer, name):
    mtf = preset_kernel(text).mtf
    assert mtf == lookup_kernel(manufacturer, name).mtf
    assert parse_kernel(text, 0.4) == mtf
    assert parse_kernel(text, 2.0).f50 == pytest.approx(min(mtf.f50, 2.0))


@pytest.mark.parametrize("text", ["siemens-", "siemens-b99", "-b30f", "b30f", "acme-b30f", "ge-b30f", "3.5", ""])
def test_what_is_no_preset(text):
    assert preset_kernel(text) is None


def test_sharp_presets_overshoot():
    for text in ("siemens-b70f", "ge-lung", "ge-bone", "philips-yb", "toshiba-fc51"):
        mtf = preset_kernel(text).mtf
        assert mtf(np.linspace(0.0, 10.0, 1001)).max() == pytest.approx(mtf.peak, abs=1e-3) and mtf.peak > 1.04
