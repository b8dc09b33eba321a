"""How a volume was acquired: from its tags where they say it, from the image itself where they do not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from CTHarmonizeLib.ct.acquisition import REFERENCE_NOISE, Acquisition, NoiseTable, parse_kernel
from CTHarmonizeLib.ct.kernels import lookup_kernel
from CTHarmonizeLib.ct.measure import MtfMeasurement, NoiseMeasurement, measure_mtf, measure_noise
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError

DISAGREEMENT = 0.35
"""Share by which the f50 measured at the skin may differ from the named kernel's before the reader is told: the
edge lies far from the isocentre, and kernels' figures are approximate."""

LOWEST_NOISE_HU = 0.5
"""Deviation that an image without noise is given, so that it has a place on the scale of doses."""


@dataclass(frozen=True)
class Description:
    """``acquisition`` and, for each of its fields, where it comes from (``dicom``, ``header``, ``measured``, ``given``,
    ``assumed``). ``kernel_name``: in words; ``measured_f50`` (lp/cm): at the skin, whatever the tags say, None where
    that was not possible or not needed; ``measured_noise`` (HU): likewise; ``exposure_mas``: for the reader only;
    ``warnings``: sentences."""

    acquisition: Acquisition
    sources: dict[str, str]
    kernel_name: str
    exposure_mas: float | None = None
    measured_f50: float | None = None
    measured_noise: float | None = None
    warnings: tuple[str, ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "acquisition": self.acquisition.as_dict(),
            "sources": dict(self.sources),
            "kernel_name": self.kernel_name,
            "exposure_mas": self.exposure_mas,
            "measured_f50": self.measured_f50,
            "measured_noise": self.measured_noise,
            "warnings": list(self.warnings),
        }


def describe(
    volume: Volume,
    source_kernel: str | float | None = None,
    source_dose: float | None = None,
    table: NoiseTable = REFERENCE_NOISE,
) -> Description:
    """Acquisition of ``volume``.

    Kernel: ``source_kernel`` (smooth, medium, sharp, an f50 in lp/cm, or a vendor's name), else the name in the
    tags, else measured at the skin, else assumed. Noise: ``source_dose`` (percent, read with ``table``), else
    measured, else assumed. Exposure is never used as if it were noise. Raises InputError for oblong pixels and for
    a kernel or dose that cannot be.
    """
    spacing = volume.pixel_spacing
    facts = volume.facts
    stated = facts.origin if facts is not None else "header"
    warnings: list[str] = []
    mtf, name, kernel_source, measured = _kernel(volume, source_kernel, warnings)
    seen = measure_noise(volume.hu, spacing)
    noise, frequency, noise_source, frequency_source = _noise(seen, mtf.f50, source_dose, table, warnings)
    entry = lookup_kernel(facts.manufacturer, facts.kernel, facts.iterative_strength) if facts else None
    if frequency is None and entry is not None and kernel_source == stated:
        frequency, frequency_source = entry.noise_frequency, stated
    thickness = facts.slice_thickness if facts and facts.slice_thickness else None
    acquisition = Acquisition(
        f50=mtf.f50,
        f10=mtf.f10,
        mtf_peak=mtf.peak,
        noise=noise,
        pixel_spacing=spacing,
        slice_thickness=thickness or volume.spacing[2],
        noise_frequency=frequency,
    )
    sources = {
        "f50": kernel_source,
        "f10": kernel_source,
        "mtf_peak": kernel_source,
        "noise": noise_source,
        "pixel_spacing": stated,
        "slice_thickness": stated if thickness else "assumed",
    }
    if frequency is not None:
        sources["noise_frequency"] = frequency_source
    return Description(
        acquisition,
        sources,
        name,
        facts.exposure_mas if facts else None,
        measured.f50 if measured else None,
        seen.sigma if seen else None,
        tuple(warnings),
    )


def _kernel(
    volume: Volume, given: str | float | None, warnings: list[str]
) -> tuple[Mtf, str, str, MtfMeasurement | None]:
    """MTF on the volume's grid, the kernel in words, where it comes from, and what was measured."""
    spacing = volume.pixel_spacing
    facts = volume.facts
    if given is not None:
        mtf, name = _given_kernel(given, facts.manufacturer if facts else "", spacing)
        return mtf, name, "given", None
    measured = measure_mtf(volume.hu, spacing)
    stated = facts.kernel if facts else ""
    entry = lookup_kernel(facts.manufacturer, stated, facts.iterative_strength) if facts else None
    if entry is not None:
        mtf = entry.mtf.limited_to(spacing)
        if measured is not None and abs(measured.f50 / mtf.f50 - 1.0) > DISAGREEMENT:
            warnings.append(
                f"The kernel {entry} stands for an f50 of {mtf.f50:.1f} lp/cm, but {measured.f50:.1f} lp/cm was "
                "measured at the skin: the named kernel is kept; choose the source kernel if the image was processed "
                "afterwards."
            )
        return mtf, str(entry), facts.origin, measured
    unknown = f"'{stated.replace(chr(92), ' ')}', " if stated else ""
    if measured is not None:
        return measured.mtf().limited_to(spacing), f"{unknown}measured at the skin", "measured", measured
    reason = f"The kernel '{stated.replace(chr(92), ' ')}' is not known" if stated else "The file states no kernel"
    warnings.append(
        f"{reason}, and the sharpness could not be measured, as no bare skin with air before it was found: a medium "
        "kernel is assumed; choose the source kernel if you know it."
    )
    return NAMED_KERNELS["medium"].limited_to(spacing), f"{unknown}medium assumed", "assumed", None


def _given_kernel(given: str | float, manufacturer: str, spacing: float) -> tuple[Mtf, str]:
    try:
        mtf = parse_kernel(given, spacing)
    except InputError:
        entry = lookup_kernel(manufacturer, str(given)) or lookup_kernel("", str(given))
        if entry is None:
            raise
        return entry.mtf.limited_to(spacing), str(entry)
    text = str(given).strip().lower()
    return mtf, text if text in NAMED_KERNELS else f"f50 {mtf.f50:.3g} lp/cm"


def _noise(
    measured: NoiseMeasurement | None, f50: float, dose: float | None, table: NoiseTable, warnings: list[str]
) -> tuple[float, float | None, str, str]:
    """Noise in HU, its mean frequency where ``measured``, and where both come from."""
    if dose is not None and not 1.0 <= dose <= 400.0:
        raise InputError(f"A source dose of {dose:g} % is out of range: give 1 to 400 %.")
    frequency = measured.mean_frequency if measured else None
    if dose is not None:
        return table.noise(f50, dose), frequency, "given", "measured"
    if measured is None:
        noise = table.noise(f50, 100.0)
        warnings.append(
            "The noise could not be measured, as too little uniform soft tissue was found: that of a full dose "
            f"({noise:.0f} HU) is assumed; choose the source dose if you know it."
        )
        return noise, None, "assumed", "assumed"
    if measured.sigma < LOWEST_NOISE_HU:
        warnings.append(
            f"The image shows next to no noise ({measured.sigma:.2g} HU): it may have been denoised or simulated."
        )
    return max(measured.sigma, LOWEST_NOISE_HU), frequency, "measured", "measured"
