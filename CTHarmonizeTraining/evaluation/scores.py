"""All measures of one mapping, as plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.ct.measure import measure_mtf, measure_noise
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.candidates import ENCODER, INPUT, MEAN, RIVALS, SAMPLE, Harmonized
from CTHarmonizeTraining.evaluation.measures import Regions
from CTHarmonizeTraining.evaluation.simulated import SimulatedScans

TARGET = "target"

Distances = Mapping[str, Callable[[np.ndarray, np.ndarray], float | None]]
"""Perceptual distances of images (slices, rows, columns) in HU, by name."""

_SKIN_SLICES = 5


def score(
    scans: SimulatedScans,
    regions: Regions,
    result: Harmonized,
    source: str,
    dose: float,
    target: str,
    skin: bool,
    distances: Distances,
) -> dict:
    """Measures of ``result``, the harmonization of ``scans`` from the kernel ``source`` at ``dose`` to ``target``.

    ``distances`` are taken from the noisy target: texture counts, and the noise-free one has none. ``skin``: also
    measure the MTF at the skin, which takes seconds an image and where slices are all alike is only worth it for
    made-up ones (a patient's true slices are blurred already).
    """
    noisy, clean = scans.targets[target], scans.clean[target]
    spacing, body = scans.protocol.pixel_spacing, regions.body
    pixels = body.sum((1, 2))
    against = {"noisy": noisy, "clean": clean}
    squares = {
        truth: {name: measures.squared_error(image, other, body) for name, image in result.images.items()}
        for truth, other in against.items()
    }
    compared = {**result.images, TARGET: noisy}
    best = MEAN if MEAN in result.images else ENCODER
    rivals = [name for name in (*RIVALS, ENCODER) if name != best and name in result.images]
    scores = {
        "source": source,
        "dose": dose,
        "target": target,
        "target_dose": scans.protocol.target_dose,
        "told": {"source": result.source.as_dict(), "target": result.target.as_dict()},
        "warnings": result.warnings,
        "rmse": {
            truth: {name: asdict(measures.rmse(values, pixels)) for name, values in of.items()}
            for truth, of in squares.items()
        },
        "difference": {
            truth: {
                f"{best} - {rival}": asdict(measures.rmse_difference(of[best], of[rival], pixels)) for rival in rivals
            }
            for truth, of in squares.items()
        },
        "psnr": {name: measures.psnr(image, clean, body) for name, image in result.images.items()},
        "ssim": {name: measures.ssim(image, clean, body) for name, image in result.images.items()},
        "lpips": {
            backbone: {name: distance(image, noisy) for name, image in result.images.items()}
            for backbone, distance in distances.items()
        },
        "bias": _bias(result, clean, regions),
        "bone": {
            name: asdict(measures.edge_gain(image, clean, regions.bone_edges)) for name, image in compared.items()
        },
        "noise": {name: noise(image, spacing) for name, image in compared.items()},
        "sharpness": _sharpness(scans, result, target, skin),
        "seconds_a_slice": result.seconds,
        "machine": result.machine,
        "redrawn_share": result.redrawn,
    }
    if result.deviation is not None:
        water = regions.tissues["water-like"]
        scores["deviation"] = {
            "coverage": asdict(measures.coverage(result.images[MEAN], result.deviation, noisy, body)),
            "in_water": float(result.deviation[water].mean()) if water.any() else None,
            "target_noise_in_water": float((noisy - clean)[water].std()) if water.any() else None,
        }
    return scores


def _bias(result: Harmonized, clean: np.ndarray, regions: Regions) -> dict:
    return {
        tissue: {
            "pixels": int(mask.sum()),
            **{name: asdict(measures.bias(image, clean, mask)) for name, image in result.images.items() if mask.any()},
        }
        for tissue, mask in regions.tissues.items()
    }


def noise(image: np.ndarray, spacing: float) -> dict | None:
    """Deviation in HU and mean frequency in lp/cm, in water-like tissue; None where there is too little of it."""
    found = measure_noise(image, spacing)
    return None if found is None else {"sigma": found.sigma, "mean_frequency": found.mean_frequency}


def _sharpness(scans: SimulatedScans, result: Harmonized, target: str, skin: bool) -> dict:
    """f50 in lp/cm: the target's own, against the truth, and as a user would measure it at the skin."""
    spacing = scans.protocol.pixel_spacing
    sharp = target_mtf("sharp", spacing)  # the truth through the kernel that shows most of it
    images = [(TARGET, scans.targets[target]), *result.images.items()]
    against = {name: measures.system_mtf(image, scans.clean["sharp"], sharp, spacing) for name, image in images}
    found = {
        "wanted_f50": target_mtf(target, spacing).f50,
        "f50": {name: mtf.f50() for name, mtf in against.items()},
        "frequency": next(iter(against.values())).frequency.round(3).tolist(),
        "modulation": {name: mtf.modulation.round(4).tolist() for name, mtf in against.items()},
        "modulation_error": {name: mtf.error.round(4).tolist() for name, mtf in against.items()},
    }
    if skin:
        judged = [(name, image) for name, image in images if name in (TARGET, INPUT, SAMPLE, MEAN)]
        found["skin_f50"] = {name: _skin_f50(image, spacing) for name, image in judged}
    return found


def _skin_f50(image: np.ndarray, spacing: float) -> float | None:
    # Each slice thrice: these slices lie far apart, so it is only beside itself that a surface does not lean.
    chosen = np.unique(np.linspace(0, len(image) - 1, min(len(image), _SKIN_SLICES)).round().astype(int))
    found = measure_mtf(np.repeat(image[chosen], 3, axis=0), spacing)
    return None if found is None else found.f50
