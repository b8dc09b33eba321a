"""What is measured on a scan before and after, without knowing the truth; and against it, where it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from CTHarmonizeLib.ct.measure import measure_mtf, measure_noise
from CTHarmonizeLib.ct.volume import PADDING_BELOW, Volume
from CTHarmonizeTraining.evaluation.measures import Regions

_SMOOTHING_MM = 2.5
_FEWEST_PIXELS = 200
_PATCH_MM = 11.0
_LUNG_SHARE = 0.05
TISSUES = ("air", "water-like", "fat", "lung", "bone")


@dataclass(frozen=True)
class Measurements:
    """HU, and lp/cm for ``f50``; None where the scan does not show what is needed. ``error``: root mean square
    difference from the truth inside the body."""

    noise: float | None
    f50: float | None
    means: Mapping[str, float | None]
    error: float | None = None


def regions(volume: Volume) -> Regions:
    """Body and tissues, from the low-passed input, so that they are the same before and after."""
    spacing = volume.pixel_spacing
    hu = np.maximum(volume.hu.astype(np.float32), -1000.0)
    low_pass = ndimage.gaussian_filter(hu, (0, _SMOOTHING_MM / spacing, _SMOOTHING_MM / spacing))
    found = Regions.of(low_pass, spacing)
    padding = volume.hu <= PADDING_BELOW
    if padding.any():  # its rim is no air
        found.tissues["air"] &= ndimage.uniform_filter(padding.astype(np.float32), (0, 25, 25)) == 0.0
    return found


def has_lung(volume: Volume, where: Regions) -> bool:
    """Whether a good part of the body is aerated lung."""
    return bool(where.tissues["lung"].sum() > _LUNG_SHARE * max(1, where.body.sum()))


def quiet_tissue(volume: Volume, where: Regions) -> np.ndarray:
    """The most uniform third of the water-like tissue in the least noisy image at hand, with a margin.

    Noise is measured here in all images, so that before and after are compared at the same place; elsewhere the
    texture of the tissue itself would count once the noise is gone.
    """
    spacing = volume.pixel_spacing
    smooth = ndimage.gaussian_filter(volume.hu.astype(np.float64), (0, 1.5 / spacing, 1.5 / spacing))
    window = (1, *2 * (round(_PATCH_MM / spacing),))
    variance = ndimage.uniform_filter(smooth**2, window) - ndimage.uniform_filter(smooth, window) ** 2
    tissue = where.tissues["water-like"]
    if not tissue.any():
        return tissue
    uniform = tissue & (variance <= np.percentile(variance[tissue], 100 / 3))
    return np.stack([ndimage.distance_transform_edt(~plane) * spacing <= _PATCH_MM for plane in uniform])


def measure(volume: Volume, where: Regions, quiet: np.ndarray, truth: Volume | None = None) -> Measurements:
    """Measure ``volume``; its noise within ``quiet``."""
    noise = measure_noise(np.where(quiet, volume.hu, -1000), volume.pixel_spacing)
    mtf = measure_mtf(volume.hu, volume.pixel_spacing)
    means = {}
    for name in TISSUES:
        if name == "lung" and not has_lung(volume, where):
            means[name] = None
            continue
        mask = where.tissues[name]
        means[name] = float(volume.hu[mask].mean(dtype=np.float64)) if mask.sum() >= _FEWEST_PIXELS else None
    error = None
    if truth is not None:
        error = float(np.sqrt(np.mean((volume.hu[where.body] - truth.hu[where.body]) ** 2, dtype=np.float64)))
    return Measurements(noise and noise.sigma, mtf and mtf.f50, means, error)


def table(columns: Mapping[str, Measurements], target: Mapping[str, float | None]) -> str:
    """Text; ``target`` is the noise (HU) and f50 (lp/cm) that were asked for, None where the method cannot set it."""
    names = list(columns)
    rows = [
        ("noise (HU)", [m.noise for m in columns.values()], target["noise"], ".1f"),
        ("sharpness, f50 (lp/cm)", [m.f50 for m in columns.values()], target["f50"], ".2f"),
        *(
            (f"mean of {tissue} (HU)", [m.means[tissue] for m in columns.values()], None, ".1f")
            for tissue in TISSUES
        ),
        ("error in the body (HU, RMS)", [m.error for m in columns.values()], None, ".1f"),
    ]
    lines = [f"{'':28}" + "".join(f"{name:>13}" for name in [*names, "asked for"])]
    for name, values, wanted, style in rows:
        if any(value is not None for value in values):
            cells = [*values, wanted]
            lines.append(f"{name:28}" + "".join(f"{_cell(value, style):>13}" for value in cells))
    return "\n".join(lines)


def _cell(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)
