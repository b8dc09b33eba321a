"""Vendors' reconstruction kernels as points in the space of total in-plane MTFs.

The figures are **approximate**: rounded points of f50, f10 (lp/cm) and peak after system manuals and published wire
and edge measurements near the isocentre, where scanners of one vendor differ among themselves by 10 to 20 %. At the
patient's surface, 15 to 20 cm from it, the same kernel shows less (the focal spot's and the detector's blur grow
with the radius). What is not in the table is measured in the image instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.errors import InputError


@dataclass(frozen=True)
class KernelEntry:
    """A vendor's kernel: ``vendor`` and ``name`` for the reader, its total ``mtf``, and the ``iterative_strength``
    (0 where the name states none)."""

    vendor: str
    name: str
    mtf: Mtf
    iterative_strength: float = 0.0

    @property
    def noise_frequency(self) -> float:
        """Mean frequency (lp/cm) to expect of the noise power spectrum, a hint where it cannot be measured.

        Filtered backprojection's spectrum goes as f M(f)^2; each step of iterative strength takes about 4 %.
        """
        frequency = np.linspace(0.01, 4.0 * self.mtf.f50, 400)
        power = frequency * self.mtf(frequency) ** 2
        return float((frequency * power).sum() / power.sum() * (1.0 - 0.04 * min(self.iterative_strength, 5.0)))

    def __str__(self) -> str:
        strength = f", iterative strength {self.iterative_strength:g}" if self.iterative_strength else ""
        return f"{self.vendor} {self.name}{strength}"


# f50, f10 (None: typical for the peak), peak
_NAMED: dict[str, dict[str, tuple[float, float | None, float]]] = {
    "GE": {
        "SOFT": (3.2, 5.6, 1.0),
        "STANDARD": (4.1, 6.7, 1.0),
        "STD": (4.1, 6.7, 1.0),
        "STD+": (4.6, 7.4, 1.0),
        "CHEST": (4.6, 7.4, 1.0),
        "DETAIL": (5.0, 8.2, 1.0),
        "LUNG": (6.0, 8.5, 1.30),
        "BONE": (8.0, 11.5, 1.10),
        "BONEPLUS": (8.4, 11.8, 1.20),
        "ULTRA": (9.0, 12.5, 1.15),
        "EDGE": (10.5, 14.0, 1.20),
    },
    "Philips": {
        "A": (3.0, 5.2, 1.0),
        "EA": (3.0, 5.2, 1.0),
        "XA": (3.0, 5.2, 1.0),
        "B": (3.7, 6.2, 1.0),
        "EB": (3.7, 6.2, 1.0),
        "XB": (3.7, 6.2, 1.0),
        "C": (4.4, 7.2, 1.0),
        "EC": (4.4, 7.2, 1.0),
        "XC": (4.4, 7.2, 1.0),
        "D": (6.8, 10.1, 1.05),
        "E": (8.2, 11.6, 1.10),
        "F": (7.4, 11.0, 1.05),
        "L": (6.0, 8.7, 1.15),
        "YA": (5.4, 8.0, 1.05),
        "YB": (6.8, 9.9, 1.10),
        "YC": (8.2, 11.4, 1.15),
        "YD": (9.4, 12.8, 1.15),
        "YE": (10.5, 14.0, 1.15),
        "UA": (3.2, 5.4, 1.0),
        "UB": (3.8, 6.4, 1.0),
        "UC": (4.6, 7.4, 1.0),
    },
    # Canon's last digit rises with sharpness inside a family: 0x body with, 1x without beam-hardening correction,
    # 2x head, 3x bone and inner ear, 5x lung, 6x head without beam-hardening correction, 8x high resolution.
    "Canon": {
        "FC01": (2.8, 4.9, 1.0),
        "FC02": (3.1, 5.3, 1.0),
        "FC03": (3.5, 5.9, 1.0),
        "FC04": (4.0, 6.6, 1.0),
        "FC05": (4.6, 7.4, 1.0),
        "FC07": (3.5, 5.9, 1.0),
        "FC08": (4.0, 6.6, 1.0),
        "FC09": (4.4, 7.2, 1.0),
        "FC10": (2.5, 4.4, 1.0),
        "FC11": (2.8, 4.9, 1.0),
        "FC12": (3.1, 5.3, 1.0),
        "FC13": (3.5, 5.9, 1.0),
        "FC14": (4.0, 6.6, 1.0),
        "FC15": (4.6, 7.4, 1.0),
        "FC17": (3.5, 5.9, 1.0),
        "FC18": (4.0, 6.6, 1.0),
        "FC19": (4.4, 7.2, 1.0),
        "FC20": (2.8, 4.9, 1.0),
        "FC21": (3.2, 5.4, 1.0),
        "FC22": (3.5, 5.9, 1.0),
        "FC23": (3.9, 6.4, 1.0),
        "FC24": (4.3, 7.0, 1.0),
        "FC25": (4.8, 7.7, 1.0),
        "FC26": (4.1, 6.7, 1.0),
        "FC27": (4.4, 7.2, 1.0),
        "FC28": (4.6, 7.4, 1.0),
        "FC30": (7.2, 10.4, 1.10),
        "FC31": (8.0, 11.4, 1.15),
        "FC35": (8.0, 11.4, 1.15),
        "FC50": (5.2, 7.7, 1.05),
        "FC51": (5.8, 8.5, 1.08),
        "FC52": (6.6, 9.4, 1.12),
        "FC53": (7.0, 9.9, 1.15),
        "FC55": (7.0, 9.9, 1.15),
        "FC56": (7.6, 10.6, 1.15),
        "FC62": (3.5, 5.9, 1.0),
        "FC63": (3.9, 6.4, 1.0),
        "FC64": (4.3, 7.0, 1.0),
        "FC67": (4.4, 7.2, 1.0),
        "FC68": (4.6, 7.4, 1.0),
        "FC80": (7.6, 10.8, 1.10),
        "FC81": (8.4, 11.8, 1.12),
        "FC82": (9.0, 12.4, 1.15),
        "FC83": (9.4, 12.8, 1.15),
        "FC84": (9.8, 13.2, 1.15),
        "FC85": (8.8, 12.2, 1.12),
        "FC86": (9.2, 12.6, 1.15),
        "FL01": (3.5, 5.9, 1.0),
        "FL03": (3.8, 6.3, 1.0),
        "FL04": (4.2, 6.9, 1.0),
        "FL05": (4.6, 7.4, 1.0),
    },
}

# Siemens: index -> f50, f10, peak; between the points log-linear.
# Until about 2013 (B30f, H40s, I41f with SAFIRE): ten steps of the index are one kernel up.
_SIEMENS_OLD = {
    10: (2.3, 4.0, 1.0),
    20: (2.8, 4.8, 1.0),
    30: (3.4, 5.7, 1.0),
    40: (3.9, 6.4, 1.0),
    50: (5.2, 7.7, 1.05),
    60: (6.1, 8.9, 1.10),
    70: (7.4, 10.2, 1.25),
    80: (8.8, 11.8, 1.25),
    90: (10.0, 13.2, 1.25),
}
# Since then (Br40d, Qr36, Hr68h): each step of the index is about 4 % in resolution; a wire gives Hr68h 9.4 to 11.9.
_SIEMENS_NEW = {
    16: (1.7, 3.0, 1.0),
    40: (4.0, 6.6, 1.0),
    50: (5.7, 8.5, 1.04),
    60: (8.0, 11.0, 1.10),
    68: (10.6, 13.4, 1.12),
    98: (22.0, 27.0, 1.12),
}
_SIEMENS_NEW_FAMILIES = {"BR", "BL", "BV", "BF", "BM", "BP", "QR", "QS", "HR", "HV", "HC", "HF", "HP", "HS", "HK"} | {
    "UR", "UV", "SA", "SD", "SP", "TR",
}  # fmt: skip
_SIEMENS_OLD_FAMILIES = {"B", "C", "D", "H", "I", "J", "U", "S", "T"}
_SIEMENS_NAME = re.compile(
    r"(?P<family>[A-Z]{1,2})(?P<index>\d{2})(?P<variant>[A-Z]{0,2})(?:[\s,/\\_(\[]+(?P<strength>\d)[)\]]?)?"
)
_VENDORS = {
    "Siemens": ("SIEMENS",),
    "GE": ("GE ", "GEMS", "GENERAL ELECTRIC"),
    "Philips": ("PHILIPS", "MARCONI", "PICKER", "ELSCINT"),
    "Canon": ("CANON", "TOSHIBA"),
}


SIMULATOR = "CTHarmonize simulation"
"""Manufacturer that simulated images name: their kernel is written with its exact points."""

_SIMULATED = re.compile(r"(?P<name>.+) \(f50 (?P<f50>[\d.]+), f10 (?P<f10>[\d.]+) lp/cm, peak (?P<peak>[\d.]+)\)")


def simulated_kernel(name: str, mtf: Mtf) -> str:
    """What a simulated image's tags say of its kernel, for :func:`lookup_kernel` to find."""
    return f"{name} (f50 {mtf.f50:.4f}, f10 {mtf.f10:.4f} lp/cm, peak {mtf.peak:.4f})"


def lookup_kernel(manufacturer: str, name: str, iterative_strength: str = "") -> KernelEntry | None:
    """Entry of the kernel ``name`` as DICOM gives it (several values joined by a backslash), None where unknown.

    Without a manufacturer a name that only one vendor uses is found too, but no single letter.
    """
    name = name.strip()
    if manufacturer.strip() == SIMULATOR:
        return _simulated(name)
    vendor = vendor_of(manufacturer)
    single = len(name.split("\\")[0].strip()) == 1
    if not name or (vendor is None and (manufacturer.strip() or single)):
        return None
    vendors = [vendor] if vendor else list(_VENDORS)
    found = [entry for entry in (_in_vendor(known, name, iterative_strength) for known in vendors) if entry]
    return found[0] if len(found) == 1 else None


def preset_kernel(text: str) -> KernelEntry | None:
    """Entry of ``vendor-kernel``, such as siemens-b30f, ge-lung or toshiba-fc51; None where unknown."""
    vendor, _, name = text.strip().partition("-")
    return lookup_kernel(vendor, name) if vendor_of(vendor) else None


def vendor_of(manufacturer: str) -> str | None:
    """Siemens, GE, Philips or Canon (Toshiba's CT is Canon's now); None for another manufacturer."""
    text = manufacturer.strip().upper() + " "
    for vendor, starts in _VENDORS.items():
        if text.startswith(starts):
            return vendor
    return None


def _simulated(text: str) -> KernelEntry | None:
    match = _SIMULATED.fullmatch(text)
    try:
        points = [float(match[name]) for name in ("f50", "f10", "peak")] if match else None
        return points and KernelEntry("simulated", match["name"], Mtf.from_points(*points))
    except (ValueError, InputError):  # written by hand
        return None


def _in_vendor(vendor: str, name: str, iterative_strength: str) -> KernelEntry | None:
    if vendor == "Siemens":
        return _siemens(name)
    first = name.split("\\")[0].strip()
    key = first.upper().replace(" ", "").replace("_", "")
    if vendor == "Canon":
        key = key.partition("-")[0]  # FC08-H: the suffix is the scanner's own
    point = _NAMED[vendor].get(key)
    if point is None:
        return None
    return KernelEntry(vendor, first, Mtf.from_points(*point), _strength(vendor, name, iterative_strength))


def _siemens(name: str) -> KernelEntry | None:
    """Siemens by rule: family letters, index, and the iterative strength as a second value or in parentheses."""
    match = _SIEMENS_NAME.fullmatch(name.strip().upper())
    if match is None:
        return None
    family = match["family"]
    if family in _SIEMENS_NEW_FAMILIES:
        points = _SIEMENS_NEW
    elif family in _SIEMENS_OLD_FAMILIES:
        points = _SIEMENS_OLD
    else:
        return None
    index = int(match["index"])
    known = sorted(points)
    if not known[0] - 2 <= index <= known[-1]:
        return None
    f50, f10 = (float(np.exp(np.interp(index, known, np.log([points[key][part] for key in known])))) for part in (0, 1))
    peak = float(np.interp(index, known, [points[key][2] for key in known]))
    short = re.match(r"\w+", name.strip())[0]
    return KernelEntry("Siemens", short, Mtf.from_points(f50, f10, peak), float(match["strength"] or 0))


def _strength(vendor: str, name: str, stated: str) -> float:
    """Iterative strength on Siemens' scale of 1 to 5, from Philips' iDose level or GE's percentage (``SS40``)."""
    number = re.search(r"\d+", stated or "\\".join(name.split("\\")[1:]))
    if number is None:
        return 0.0
    value = float(number[0])
    scale = {"GE": 20.0, "Philips": 1.4}.get(vendor, 1.0)
    return min(value / scale, 5.0)
