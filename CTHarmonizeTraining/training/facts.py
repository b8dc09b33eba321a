"""What a model card says of the data that a model was trained on: read from the stores, not typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from CTHarmonizeLib.ct.acquisition import Acquisition, NoiseTable, parse_kernel
from CTHarmonizeLib.ct.mtf import nyquist
from CTHarmonizeLib.methods.ctflow import acquisitions_of
from CTHarmonizeTraining.data.measured import FULL_DOSE, MeasuredPairs
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.patient import PatientStore, Reconstruction
from CTHarmonizeTraining.data.scenes import SceneSampler
from CTHarmonizeTraining.training.settings import DataConfig

TABLE_F50 = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""f50 (lp/cm) at which a card states the noise at full dose."""

FULL_DOSE_PHOTONS = 2.5e5
"""Photons of 100 % dose for the card, per 0.75 mm of detector."""

_DRAWN = 400
"""Pairs that are drawn to see what noise training tells."""

_NEAR = 0.05
"""What lies within this share of a trained value counts as trained."""

_LOWEST_F50 = 2.3


def data_facts(stores: Sequence[Path], data: DataConfig) -> dict:
    """A card's ``pixel_spacing``, ``slice_thickness``, ``source``, ``target`` and ``noise_at_full_dose``, for what
    ``stores`` hold and ``data`` draws from it."""
    if PatientStore.recognizes(stores[0]):
        return _measured(stores, data)
    return _simulated([SceneSampler(path) for path in stores], stores, data)


def use_of(store: Path) -> str:
    """What of a store training reads, in a few words."""
    if PatientStore.recognizes(store):
        sets = PatientStore(store).sets
        slices = sum(len(entry.body) for entry in sets)
        return f"measured; {slices} slices in {sum(len(entry.reconstructions) for entry in sets)} reconstructions"
    sampler = SceneSampler(store)
    starved = len(sampler) - len(sampler.usable)
    without = f" ({starved} starved of photons were left out)" if starved else ""
    return f"projected; {len(sampler.usable)} regions of {len(np.unique(sampler.slice))} slices{without}"


def noise_table(samplers: Sequence[SceneSampler], pixel_spacing: float = 0.5) -> dict:
    """A card's ``noise_at_full_dose``: the median over the usable scenes of the phantoms among ``samplers`` (of all
    where there is none) of the deviation in HU that each kernel shows in water-like tissue at 100 % dose and
    :data:`FULL_DOSE_PHOTONS`."""
    phantoms = [sampler for sampler in samplers if sampler.noiseless] or samplers
    sigma = []
    for f50 in TABLE_F50:
        mtf = parse_kernel(f50, pixel_spacing)
        levels = [
            sampler.noise_level(scene, int(np.argmax(sampler.dose[scene])), mtf)
            * np.sqrt(sampler.photons[scene] / FULL_DOSE_PHOTONS)
            for sampler in phantoms
            for scene in sampler.usable
        ]
        sigma.append(round(float(np.median(levels)), 1))
    kind = "simulated chest" if phantoms[0].noiseless else "projected scan"
    return {
        "phantom": f"median of {len(phantoms)} {kind}{'s' if len(phantoms) > 1 else ''}, parallel beam, "
        f"{FULL_DOSE_PHOTONS:.2g} photons per 0.75 mm of detector".replace("e+0", "e"),
        "pixel_spacing": pixel_spacing,
        "slice_thickness": round(float(np.mean([sampler.thickness for sampler in phantoms])), 2),
        "f50": list(TABLE_F50),
        "sigma": sigma,
    }


def _simulated(samplers: Sequence[SceneSampler], stores: Sequence[Path], data: DataConfig) -> dict:
    spacing, kernels = data.simulated.pixel_range, data.simulated.kernels
    reach = [_LOWEST_F50, round(0.8 * nyquist(spacing[0]), 2)]
    f50 = [reach, reach] if kernels is None else [_around([parse_kernel(k, spacing[0]).f50]) for k in kernels]
    table = noise_table(samplers)
    pairs = PairDataset(
        stores, _DRAWN, 32, 1, pixel_range=spacing, kernels=kernels, full_dose_share=data.full_dose_share
    )
    told = [acquisitions_of(pairs[index]["acquisition"].tolist()) for index in range(_DRAWN)]
    noise = np.array([source.noise for source, _ in told])
    doses = [NoiseTable.from_card(table).dose(target.f50, target.noise) for _, target in told]
    return {
        "pixel_spacing": list(spacing),
        "slice_thickness": _around([sampler.thickness for sampler in samplers]),
        "source": {"f50": f50[0], "noise": [float(f"{value:.2g}") for value in np.percentile(noise, (0.5, 99.5))]},
        "target": {"f50": f50[1], "dose": [_lowest_dose(doses), 100], "thickness": None},
        "noise_at_full_dose": table,
    }


def _lowest_dose(doses: Sequence[float]) -> int:
    """In whole steps of 5 percent: below it lie few of the targets that were trained for."""
    return int(np.clip(5 * np.ceil(np.percentile(doses, 5) / 5), 5, 100))


def _measured(stores: Sequence[Path], data: DataConfig) -> dict:
    pairs = MeasuredPairs(stores, 1, data.size, 1, series=data.measured.series, full_dose_share=data.full_dose_share)
    sides: tuple[list[Reconstruction], list[Reconstruction]] = ([], [])
    for source in pairs.sources:
        for pair in source.upward if data.full_dose_share >= 1.0 else source.pairs:
            for side, which in zip(sides, pair, strict=True):
                side.append(source.set.reconstructions[which])
    sources, targets = ([entry.acquisition for entry in side] for side in sides)
    full = [entry for entry in sides[1] if entry.dose >= FULL_DOSE * max(other.dose for other in sides[1])]
    return {
        "pixel_spacing": _around([entry.pixel_spacing for entry in sources]),
        "slice_thickness": _around([entry.slice_thickness for entry in sources]),
        "source": {"f50": _around([entry.f50 for entry in sources]), "noise": _around([e.noise for e in sources])},
        "target": {
            "f50": _around([entry.f50 for entry in targets]),
            "dose": [min(100.0, round(min(entry.dose for entry in sides[1]))), 100.0],
            "thickness": None,
        },
        "noise_at_full_dose": _measured_noise([entry.acquisition for entry in full]),
    }


def _measured_noise(full: Sequence[Acquisition]) -> dict:
    """Noise against f50 of full-dose reconstructions, in steps of 0.5 lp/cm; one step is taken as flat."""
    steps: dict[float, list[Acquisition]] = {}
    for entry in full:
        steps.setdefault(round(2 * entry.f50) / 2, []).append(entry)
    points = sorted(
        (float(np.median([e.f50 for e in group])), float(np.median([e.noise for e in group])))
        for group in steps.values()
    )
    if len(points) == 1:
        (f50, sigma), = points
        points = [((1.0 - _NEAR) * f50, sigma), ((1.0 + _NEAR) * f50, sigma)]
    return {
        "phantom": "the patients' own full-dose scans, median",
        "pixel_spacing": round(float(np.median([entry.pixel_spacing for entry in full])), 3),
        "slice_thickness": round(float(np.median([entry.slice_thickness for entry in full])), 2),
        "f50": [round(f50, 2) for f50, _ in points],
        "sigma": [round(sigma, 1) for _, sigma in points],
    }


def _around(values: Sequence[float]) -> list[float]:
    """Interval of ``values``, a little wider."""
    return [round((1.0 - _NEAR) * min(values), 2), round((1.0 + _NEAR) * max(values), 2)]
