"""What a method is told of a source and of a target: physical numbers, the same for every vendor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from CTHarmonizeLib.ct.kernels import preset_kernel
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, NYQUIST_SHARE, Mtf, nyquist
from CTHarmonizeLib.errors import InputError


@dataclass(frozen=True)
class Acquisition:
    """Acquisition of one CT image.

    ``f50``, ``f10``: frequencies of 50 % and 10 % total in-plane modulation, lp/cm; ``mtf_peak``: highest
    modulation (1 without overshoot); ``noise``: standard deviation in water-like tissue, HU;
    ``noise_frequency``: mean frequency of the noise power spectrum, lp/cm, where known; ``pixel_spacing`` and
    ``slice_thickness`` in mm.
    """

    f50: float
    f10: float
    mtf_peak: float
    noise: float
    pixel_spacing: float
    slice_thickness: float
    noise_frequency: float | None = None

    def mtf(self) -> Mtf:
        """The total MTF that these numbers describe."""
        return Mtf.from_points(self.f50, self.f10, self.mtf_peak)

    def as_dict(self) -> dict[str, float | None]:
        """Plain numbers, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class NoiseTable:
    """Noise at 100 % dose against sharpness, for a stated phantom, pixel spacing and slice thickness.

    ``f50`` in lp/cm, rising; ``sigma`` in HU. Between the points it is interpolated log-log, beyond them
    extrapolated with the last slope.
    """

    phantom: str
    pixel_spacing: float
    slice_thickness: float
    f50: tuple[float, ...]
    sigma: tuple[float, ...]

    @classmethod
    def from_card(cls, entry: dict) -> NoiseTable:
        """Table from a model card's ``noise_at_full_dose``."""
        return cls(
            entry["phantom"],
            float(entry["pixel_spacing"]),
            float(entry["slice_thickness"]),
            tuple(map(float, entry["f50"])),
            tuple(map(float, entry["sigma"])),
        )

    def noise(self, f50: float, dose: float) -> float:
        """Noise in HU at ``dose`` percent: sigma(f50) / sqrt(dose / 100)."""
        x, y = np.log(self.f50), np.log(self.sigma)
        at = np.log(f50)
        if at < x[0]:
            value = y[0] + (at - x[0]) * (y[1] - y[0]) / (x[1] - x[0])
        elif at > x[-1]:
            value = y[-1] + (at - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2])
        else:
            value = np.interp(at, x, y)
        return float(np.exp(value) / np.sqrt(dose / 100.0))

    def dose(self, f50: float, noise: float) -> float:
        """Dose in percent that gives ``noise`` (HU) at ``f50``: the inverse of :meth:`noise`; infinite for none."""
        return 100.0 * (self.noise(f50, 100.0) / noise) ** 2 if noise > 0.0 else math.inf


_CLEARLY_MORE_DOSE, _CLEARLY_MORE_NOISE = 1.5, 1.2

REFERENCE_NOISE = NoiseTable(
    phantom="eleven simulated chests, parallel beam, 2.5e5 photons per 0.75 mm of detector",
    pixel_spacing=0.5,
    slice_thickness=2.0,
    f50=(2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0),
    sigma=(7.2, 9.5, 11.9, 14.6, 21.4, 28.9, 36.5, 45.0),
)
"""Noise at 100 % dose where no model card says otherwise: the median over the phantoms, in water-like tissue."""


def parse_kernel(kernel: str | float | Sequence[float], pixel_spacing: float) -> Mtf:
    """MTF of a target or source kernel.

    ``kernel`` is ``smooth``, ``medium`` or ``sharp``, a vendor's such as ``siemens-b30f`` (both held below the
    grid's limit), or an f50 in lp/cm. Raises InputError for another name, and for an f50 that the pixel grid (mm)
    cannot show.
    """
    if isinstance(kernel, str) and kernel.strip().lower() in NAMED_KERNELS:
        return NAMED_KERNELS[kernel.strip().lower()].limited_to(pixel_spacing)
    if isinstance(kernel, str) and (entry := preset_kernel(kernel)) is not None:
        return entry.mtf.limited_to(pixel_spacing)
    try:
        f50 = float(kernel)
    except (TypeError, ValueError):
        names = ", ".join(NAMED_KERNELS)
        raise InputError(
            f"Kernel '{kernel}' is unknown: give one of {names}, a vendor's such as siemens-b30f, or its f50 in lp/cm."
        ) from None
    if not (np.isfinite(f50) and 0.5 <= f50 <= nyquist(pixel_spacing)):
        raise InputError(
            f"A kernel with f50 {f50:g} lp/cm does not fit pixels of {pixel_spacing:.3g} mm: "
            f"give 0.5 to {nyquist(pixel_spacing):.1f} lp/cm."
        )
    peak = float(np.interp(f50, [4.0, 6.0], [1.0, 1.15]))
    return Mtf.from_points(f50, peak=peak).limited_to(pixel_spacing)


TRUTH = "truth"
"""Target kernel that stands for the noise-free truth."""


def is_truth(kernel: object) -> bool:
    """Whether ``kernel`` asks for the noise-free truth."""
    return isinstance(kernel, str) and kernel.strip().lower() == TRUTH


def truth_mtf(pixel_spacing: float) -> Mtf:
    """Total MTF at which pixels (mm) show the noise-free truth: the sharpest that they hold, without overshoot.

    A phantom drawn pixel by pixel, the truth of Zarei et al. (2024), has no blur at all, but no scanner's image can be
    held against it. Steeper fall-offs would alias less and ring more: this one rings by 1.3 % at an edge.
    """
    return Mtf.from_points(NYQUIST_SHARE * nyquist(pixel_spacing))


def target_mtf(kernel: str | float | Sequence[float], pixel_spacing: float) -> Mtf:
    """MTF of a target: ``truth``, or a kernel as :func:`parse_kernel` reads it."""
    return truth_mtf(pixel_spacing) if is_truth(kernel) else parse_kernel(kernel, pixel_spacing)


def target_acquisition(
    source: Acquisition, table: NoiseTable, kernel: str | float | None = None, dose: float | None = None
) -> Acquisition:
    """The acquisition asked for: an unset field equals the source's.

    ``kernel`` as in :func:`target_mtf`; ``dose`` in percent (5 to 400), turned into noise by ``table``. With a
    kernel alone the noise becomes that of the source's dose seen through the new kernel. The truth has no noise.
    """
    if is_truth(kernel):
        if dose is not None:
            raise InputError("The noise-free truth has no dose: leave the dose out.")
        mtf = truth_mtf(source.pixel_spacing)
        return replace(source, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, noise=0.0, noise_frequency=None)
    if dose is not None and not (np.isfinite(dose) and 1.0 <= dose <= 400.0):
        raise InputError(f"A dose of {dose:g} % is out of range: give 1 to 400 %.")
    target = source
    if kernel is not None:
        mtf = parse_kernel(kernel, source.pixel_spacing)
        target = replace(target, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, noise_frequency=None)
    percent = table.dose(source.f50, source.noise) if dose is None else dose
    if kernel is not None or dose is not None:
        target = replace(target, noise=table.noise(target.f50, percent))
    return target


def added_noise(source: Acquisition, target: Acquisition, table: NoiseTable) -> str:
    """A sentence where the target asks for clearly less dose than the source's noise stands for, so that noise is
    added; empty otherwise."""
    asked, has = table.dose(target.f50, target.noise), table.dose(source.f50, source.noise)
    if has < _CLEARLY_MORE_DOSE * asked or target.noise < _CLEARLY_MORE_NOISE * source.noise:
        return ""
    return (
        f"The source has less noise ({source.noise:.0f} HU) than the target ({target.noise:.0f} HU): the harmonized "
        "volume gets noisier, as the target is; the mean volume does not."
    )
