"""``ctharmonize-train evaluate``: every kernel to every one that a model reaches, low dose to full dose, against known
truth."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from CTHarmonizeLib import report as lib_report
from CTHarmonizeLib.ct.acquisition import TRUTH, target_mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.models import Model
from CTHarmonizeLib.request import Request
from CTHarmonizeLib.request import doses as reached_doses
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evaluation.about import about
from CTHarmonizeTraining.evaluation.candidates import Candidates
from CTHarmonizeTraining.evaluation.measures import Regions
from CTHarmonizeTraining.evaluation.perception import Lpips, available
from CTHarmonizeTraining.evaluation.scores import score
from CTHarmonizeTraining.evaluation.simulated import (
    KERNELS,
    Protocol,
    SimulatedScans,
    simulated_scans,
    slices_of_ct,
    slices_of_phantoms,
)
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.training.origin import check_test_data

USUAL_SPACING = 0.66
"""mm of the images' pixels."""

Mapping = tuple[str, float, str]
"""Source kernel, source dose in percent, target kernel."""

FIGURES = (("sharp", "smooth"), ("sharp", "medium"), ("smooth", "sharp"))
"""Kernel pairs, at the lowest dose, that are shown."""


def evaluate(
    output: Path,
    ct: Path | None = None,
    phantom: int | list[int] | None = None,
    volumes: list[Path] | None = None,
    slices: int | list[int] = 8,
    method: str = "ctflow",
    model: str | None = None,
    samples: int = 16,
    temperature: float | None = None,
    pixel_spacing: float = USUAL_SPACING,
    size: int = 512,
    doses: tuple[float, ...] = (10.0, 25.0),
    target_dose: float = 100.0,
    views: int = 1000,
    photons: float = 2.5e5,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    cache: Path | None = None,
    figures: bool = True,
    lpips: list[str] | None = None,
) -> dict:
    """Judge a method on simulated scans: results.json, results.csv, table.md and figures; returns the results.

    Judged are the smooth, medium and sharp kernels that the model's card reaches, or its own where it reaches none; of
    a method that sets no kernel, the mappings that keep it. Simulated scans and finished mappings are kept, so that a
    stopped run goes on and the next model is judged quickly. A model that makes thin slices of thick ones is judged on
    volumes, in axial, coronal and sagittal planes.

    Args:
        output: folder for the results.
        ct: CT volume whose slices are scanned; or
        phantom: seed or seeds of procedural chests that are scanned, with detail finer than any kernel shows.
        volumes: for a model that makes thin slices, in place of both: stores of thin pairs. Of the options below only
            method, model, seed, device, precision and lpips then count.
        slices: how many, evenly spread (of each phantom); or their indices (for phantoms: z in mm).
        method: what is judged, beside the input, the MTF-ratio filter and the frequency bands.
        model: its model folder, or the name of an installed model.
        samples: how many are drawn for mean and deviation.
        temperature: of the samples; the model's default where left out.
        pixel_spacing: of the images, mm; 0.8 of its Nyquist frequency limits the sharp kernel's f50 (6 lp/cm).
        size: of the images, pixels.
        doses: of the sources, percent.
        target_dose: percent.
        views: of the simulated scan, over 180 degrees.
        photons: at 100 percent dose, per 0.75 mm of detector and view.
        seed: of the scans' noise and of the samples.
        device: auto, cpu, cuda or mps.
        precision: auto, float32 or bfloat16.
        cache: folder of the simulated scans; "simulated" in the output folder where left out.
        figures: draw figures.
        lpips: backbones of LPIPS, alex or vgg; left out where ImageNet's weights cannot be had.
    """
    from CTHarmonizeTraining.evaluation import tables

    phantom = [phantom] if isinstance(phantom, int) else phantom
    if sum(map(bool, (ct, phantom, volumes))) != 1:
        raise InputError("Give either a CT volume, seeds of phantoms, or volumes to evaluate on.")
    if volumes:
        from CTHarmonizeTraining.evaluation.volumes_table import evaluate_volumes

        asked = Request(method=method, model=model, seed=seed, device=device, precision=precision)
        return evaluate_volumes(output, volumes, asked, lpips or ())
    if samples < 2 or not doses:
        raise InputError("At least two samples and one source dose are needed.")
    output = check_output_folder(output)
    request = Request(method=method, model=model, samples=samples, temperature=temperature, seed=seed)
    candidates = Candidates(replace(request, device=device, precision=precision))
    if candidates.choice.factor > 1:
        raise InputError(f"The method {method} makes thin slices of thick ones: give volumes to evaluate it on.")
    if candidates.choice.model and "sources" in (trained := candidates.choice.model.card["training"]):
        check_test_data(trained, ct, phantom)
    named = (TRUTH,) if candidates.choice.method.makes_truth else KERNELS
    sources, targets = _kernels(candidates.choice.model, pixel_spacing, target_dose, named)
    kernels = tuple(dict.fromkeys((*KERNELS, *sources, *targets)))  # the named ones show regions and sharpness
    protocol = Protocol(pixel_spacing, size, tuple(map(float, doses)), target_dose, views, photons, seed, kernels)
    cache = cache or output / "simulated"
    true = slices_of_ct(ct, slices) if ct is not None else slices_of_phantoms(phantom, slices, cache, progress=say)
    scans = simulated_scans(true, protocol, cache, say)
    regions = Regions.of(scans.clean["smooth"], pixel_spacing)
    if not regions.body.any():
        raise InputError("The slices show no body: choose others.")
    distances = available(lpips or (), candidates.device)
    facts = _facts(scans, candidates, distances)
    pairs, start = [], time.perf_counter()
    mappings = [
        (source, dose, target)
        for dose in protocol.doses
        for source in sources
        for target in targets
        if facts["sets_kernel"] or source == target
    ]
    for number, mapping in enumerate(mappings, start=1):
        shown = figures and mapping[1] == min(protocol.doses) and (mapping[0], mapping[2]) in FIGURES
        pairs.append(_evaluated(scans, regions, candidates, mapping, output, facts, shown, distances))
        say(f"{number} of {len(mappings)} mappings, {time.perf_counter() - start:.0f} s")
    results = {**facts, "regions": _sizes(regions), "pairs": pairs}
    tables.write_results(output, results, tables.csv(results), tables.markdown(results))
    return results


def _kernels(
    model: Model | None, pixel_spacing: float, target_dose: float, targets: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Source and target kernels that ``model`` reaches: of :data:`KERNELS` and ``targets``, or, where it is none of
    them, the middle of the card's f50. Says which are left out; raises InputError where nothing is left."""
    if model is None:
        return [*KERNELS], [*targets]
    low, high = model.card["target"]["dose"] or (target_dose, target_dose)  # the truth has none
    if not low <= target_dose <= high:
        raise InputError(
            f"The model '{model.name}' reaches {reached_doses(low, high)}, not {target_dose:g} %: there is nothing to "
            "judge."
        )
    chosen = []
    for side, names in (("source", KERNELS), ("target", targets)):
        low, high = model.card[side]["f50"]

        def reached(kernel: str, low: float = low, high: float = high) -> bool:
            return low - 1e-6 <= target_mtf(kernel, pixel_spacing).f50 <= high + 1e-6

        named, own = [kernel for kernel in names if reached(kernel)], f"{(low + high) / 2:.3g}"
        if not named and not reached(own):
            raise InputError(
                f"The model '{model.name}' is for a {side} f50 of {low:g} to {high:g} lp/cm, which pixels of "
                f"{pixel_spacing:g} mm do not show: give another pixel spacing."
            )
        missing = [kernel for kernel in names if kernel not in named]
        if missing:
            instead = "" if named else f"; its own, of {own} lp/cm, is judged"
            say(f"The model has no {' and no '.join(missing)} {side} kernel: left out{instead}.")
        chosen.append(named or [own])
    return chosen[0], chosen[1]


def _evaluated(
    scans: SimulatedScans,
    regions: Regions,
    candidates: Candidates,
    mapping: Mapping,
    output: Path,
    facts: dict,
    shown: bool,
    distances: dict[str, Lpips],
) -> dict:
    """Scores of one mapping, from an earlier run with the same model, code, scans and settings where there was one."""
    source, dose, target = mapping
    name = f"{source}_{dose:g}_to_{target}"
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:10]
    kept = output / "mappings" / f"{name}-{key}.json"
    figure = output / f"{name}.png"
    if kept.is_file() and (figure.is_file() or not shown):
        try:
            return json.loads(kept.read_text(encoding="utf-8"))
        except ValueError:
            pass  # cut short
    volume = scans.volume(scans.sources[source, dose])
    result = candidates.harmonize(volume, source, target, scans.protocol.target_dose, scans.targets[target])
    scores = score(scans, regions, result, source, dose, target, scans.true.fine, distances)
    if shown:
        from CTHarmonizeTraining.evaluation.figure import draw

        draw(figure, scans, regions, result, source, dose, target)
    write_whole(kept, lib_report.as_json(scores))
    return json.loads(kept.read_text(encoding="utf-8"))


def _facts(scans: SimulatedScans, candidates: Candidates, distances: dict[str, Lpips]) -> dict:
    """What the results depend on."""
    true, protocol = scans.true, scans.protocol
    return {
        **about(candidates.request, candidates.choice, candidates.device, candidates.precision, distances),
        "data": {
            "name": true.name,
            "slices": list(true.indices),
            "thickness": true.thickness,
            "true_detail": true.fine,
            "content": hashlib.sha256(true.hu.tobytes()).hexdigest(),
        },
        "protocol": {**vars(protocol), "doses": list(protocol.doses), "kernels": list(protocol.kernels)},
    }


def _sizes(regions: Regions) -> dict[str, int]:
    return {"body": int(regions.body.sum()), **{name: int(mask.sum()) for name, mask in regions.tissues.items()}}
