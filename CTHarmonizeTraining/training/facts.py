"""What a model card says of the data that a model was trained on: read from the stores, not typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from CTHarmonizeLib.ct.acquisition import TRUTH, Acquisition, NoiseTable, parse_kernel, target_mtf
from CTHarmonizeLib.ct.mtf import NYQUIST_SHARE, nyquist
from CTHarmonizeLib.methods.conditioning import acquisitions_of
from CTHarmonizeTraining.data.measured import FULL_DOSE, MeasuredPairs, averaged
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.patient import SIMULATED, PatientStore
from CTHarmonizeTraining.data.render import LOWEST_F50
from CTHarmonizeTraining.data.scenes import SceneSampler
from CTHarmonizeTraining.simulation.pair import NOISE_FREE
from CTHarmonizeTraining.training.settings import DataConfig

TABLE_F50 = (2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)
"""f50 (lp/cm) at which a card states the noise at full dose."""

FULL_DOSE_PHOTONS = 2.5e5
"""Photons of 100 % dose for the card, per 0.75 mm of detector."""

_DRAWN = 400
"""Pairs that are drawn to see what noise training tells."""

_NEAR = 0.05
"""What lies within this share of a trained value counts as trained."""

_GAP = 0.10
"""Share by which an f50 has to exceed the last one to be another kernel's, not the same one's scatter."""


def data_facts(
    stores: Sequence[Path], data: DataConfig, weights: Mapping[str, float] | None = None, planes: int = 1
) -> dict:
    """A card's ``pixel_spacing``, ``slice_thickness``, ``source``, ``target`` and ``noise_at_full_dose``, for what
    ``stores`` hold and ``data``, the stores' ``weights`` and the network's ``planes`` draw from it."""
    if PatientStore.recognizes(stores[0]):
        return _measured(stores, data, weights, planes)
    return _simulated([SceneSampler(path) for path in stores], stores, data, weights)


def simulation(stores: Sequence[Path], data: DataConfig) -> str:
    """A card's ``training.simulated``: which pairs were simulated, and how."""
    opened = [PatientStore(path) for path in stores if PatientStore.recognizes(path)]
    made = [store for store in opened if store.layout == SIMULATED]
    sentences = []
    if len(opened) < len(stores):
        options, share = data.simulated, data.full_dose_share
        drawn = f"drawn continuously from an f50 of {LOWEST_F50:g} lp/cm to 0.8 of Nyquist's frequency"
        source, target = options.kernels or (None, None)
        kernels = f"kernels {drawn}"
        if options.kernels is not None:
            kernels = f"kernels {source or drawn} (source) and {target} (target)"
        low, high = options.pixel_range
        pixels = f"{low:g} mm" if low == high else f"{low:g} to {high:g} mm"
        sentences.append(
            "Pairs rendered from scenes of parallel-beam scans with Poisson and electronic noise; "
            f"{kernels}; pixels of {pixels}; "
            + (
                f"the target {TRUTH}: without noise, f50 at {NYQUIST_SHARE:g} of Nyquist's frequency."
                if data.towards_truth
                else f"{100.0 * share:g} % of the targets at full dose, the others at any."
            )
        )
    if made:
        ways = dict.fromkeys(_way(store) for store in made)
        sentences.append(f"Whole scans of {len(made)} stores: {'; '.join(ways)}.")
    if len(made) < len(opened):
        sentences.append(f"{'No: m' if not made else 'The others: m'}easured pairs.")
    return " ".join(sentences)


def _way(store: PatientStore) -> str:
    """How the scans of ``store`` were simulated, as ``simulate`` notes it with each."""
    facts = store.sets[0].reconstructions[0].facts
    source, target = facts["source"], facts["target"]
    kernel = f"{source['kernel']} at {source['dose']:g} %"
    if facts["inserted_noise"]:
        return f"noise inserted into a scan ({kernel})"
    return f"{facts['beam']} beam, {kernel} and {target['kernel']} at {target['dose']:g} %"


def use_of(store: Path) -> str:
    """What of a store training reads, in a few words."""
    if PatientStore.recognizes(store):
        opened = PatientStore(store)
        slices = sum(len(entry.body) for entry in opened.sets)
        kind = "simulated" if opened.layout == SIMULATED else "measured"
        return f"{kind}; {slices} slices in {sum(len(entry.reconstructions) for entry in opened.sets)} reconstructions"
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


def _simulated(
    samplers: Sequence[SceneSampler], stores: Sequence[Path], data: DataConfig, weights: Mapping[str, float] | None
) -> dict:
    spacing, kernels = data.simulated.pixel_range, data.simulated.kernels
    reach = [LOWEST_F50, round(NYQUIST_SHARE * nyquist(spacing[0]), 2)]
    f50 = [reach, reach]
    if kernels is not None:  # large pixels hold sharp kernels down
        f50 = [
            reach if kernel is None else _around([target_mtf(kernel, pixel).f50 for pixel in spacing])
            for kernel in kernels
        ]
    table = noise_table(samplers)
    pairs = PairDataset(
        stores, _DRAWN, 32, 1, weights=weights, full_dose_share=data.full_dose_share, **asdict(data.simulated)
    )
    told = [acquisitions_of(pairs[index]["acquisition"].tolist()) for index in range(_DRAWN)]
    noise = np.array([source.noise for source, _ in told])
    doses = [NoiseTable.from_card(table).dose(target.f50, target.noise) for _, target in told]
    dose = None if data.towards_truth else [_lowest_dose(doses), 100]
    return {
        "pixel_spacing": list(spacing),
        "slice_thickness": _around([sampler.thickness for sampler in samplers]),
        "source": {"f50": f50[0], "noise": [float(f"{value:.2g}") for value in np.percentile(noise, (0.5, 99.5))]},
        "target": {"f50": f50[1], "dose": dose, "thickness": None},
        "noise_at_full_dose": table,
    }


def _lowest_dose(doses: Sequence[float]) -> int:
    """In whole steps of 5 percent: below it lie few of the targets that were trained for."""
    return int(np.clip(5 * np.ceil(np.percentile(doses, 5) / 5), 5, 100))


def _measured(stores: Sequence[Path], data: DataConfig, weights: Mapping[str, float] | None, planes: int) -> dict:
    pairs = MeasuredPairs(
        stores, 1, data.size, planes, weights=weights, full_dose_share=data.full_dose_share, depth=data.depth,
        **asdict(data.measured),
    )  # fmt: skip
    sources, targets, parts = [], [], []  # each target's part of its set's full dose
    for drawn, share in zip(pairs.sources, pairs.share, strict=True):
        if share == 0.0:
            continue
        entries = drawn.set.reconstructions
        chosen = drawn.upward if data.full_dose_share >= 1.0 else drawn.pairs
        sources += [entries[index] for index in sorted({source for source, _ in chosen})]
        aims = [entries[index] for index in sorted({target for _, target in chosen})]
        targets += aims
        parts += [entry.dose / max(other.dose for other in entries) for entry in aims]
    highest = 1.0 if max(parts) >= FULL_DOSE else max(parts)  # of less than full dose, noise tells what full would be
    full = [entry for entry, part in zip(targets, parts, strict=True) if part >= FULL_DOSE * highest]
    noisy = [entry.acquisition for entry in full if entry.name != NOISE_FREE] or [entry.acquisition for entry in full]
    source, target = ([entry.acquisition for entry in side] for side in (sources, targets))
    thick = data.measured.averaged_slices
    source = [averaged(entry, thick) for entry in source]
    return {
        "pixel_spacing": _around([entry.pixel_spacing for entry in source]),
        "slice_thickness": _around([entry.slice_thickness for entry in source]),
        "source": {"f50": _around([entry.f50 for entry in source]), "noise": _around([e.noise for e in source])},
        "target": {
            "f50": _around([entry.f50 for entry in target]),
            "dose": [round(100.0 * part, 1) for part in (min(parts), highest)],
            "thickness": _around([entry.slice_thickness for entry in target]) if thick > 1 else None,
        },
        "noise_at_full_dose": _measured_noise([replace(entry, noise=entry.noise * highest**0.5) for entry in noisy]),
    }


def _measured_noise(full: Sequence[Acquisition]) -> dict:
    """Noise against f50 of full-dose reconstructions: a point for each group of them that lies apart; one group is
    taken as flat."""
    groups: list[list[Acquisition]] = []
    for entry in sorted(full, key=lambda entry: entry.f50):
        if not groups or entry.f50 > (1.0 + _GAP) * groups[-1][-1].f50:
            groups.append([])
        groups[-1].append(entry)
    points = [(np.median([entry.f50 for entry in group]), np.median([e.noise for e in group])) for group in groups]
    if len(points) == 1:
        ((f50, sigma),) = points
        points = [((1.0 - _NEAR) * f50, sigma), ((1.0 + _NEAR) * f50, sigma)]
    return {
        "phantom": "the pairs' own full-dose scans, median",
        "pixel_spacing": round(float(np.median([entry.pixel_spacing for entry in full])), 3),
        "slice_thickness": round(float(np.median([entry.slice_thickness for entry in full])), 2),
        "f50": [round(float(f50), 2) for f50, _ in points],
        "sigma": [round(float(sigma), 2) for _, sigma in points],
    }


def _around(values: Sequence[float]) -> list[float]:
    """Interval of ``values``, a little wider."""
    return [round((1.0 - _NEAR) * min(values), 2), round((1.0 + _NEAR) * max(values), 2)]
