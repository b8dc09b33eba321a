"""``ctharmonize-train calibrate``: the temperature by a proper score, and whether the standard deviation is true."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from CTHarmonizeLib import report
from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.models import CARD, WEIGHTS, Model, find_model, load_model
from CTHarmonizeLib.models.schema import card_problem
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.measured import FULL_DOSE
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.data.splits import stores_for
from CTHarmonizeTraining.evaluation.ensembles import USUAL_SHARE, Pairs, Sampler
from CTHarmonizeTraining.evaluation.measures import Estimate, estimate
from CTHarmonizeTraining.evaluation.reliability import (
    CURVE,
    FACTORS,
    LEVELS,
    Crop,
    coverage,
    deviation_factor,
    groups,
    spread_skill,
)

SCORED_SAMPLES = 16
"""Independent samples for the score of a temperature; its expectation is the same for any number."""

FEWEST_SAMPLES = 39
"""Below, no interval between two samples has 95 %."""


def calibrate(
    model: str,
    stores: Path,
    output: Path,
    crops: int = 64,
    size: int = 96,
    samples: int = 64,
    temperatures: tuple[float, ...] = (0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1),
    mapping: tuple[str, str] | None = None,
    seed: int = 0,
    device: str = "auto",
) -> None:
    """Choose a model's temperature on validation data, and measure and mend its standard deviation.

    Doses are drawn as the model was trained: to full dose alone for a model of full dose. Quality that was measured at
    another temperature leaves the card.

    Args:
        model: model folder, or the name of an installed model; it is not changed.
        stores: store of scenes or of measured pairs, or a folder of them; of a folder with splits.json its part
            validation.
        output: folder for the calibrated model and for calibration.json, .csv and .png.
        crops: how many pairs are drawn, from all stores in turn.
        size: of the crops, pixels; a border of 16 is not scored.
        samples: independent samples a crop whose quantiles are held against the target.
        temperatures: that are tried.
        mapping: (source, target), for a model of one mapping: kernels of simulated scenes, or names of measured
            series, where * stands for anything.
        seed: of crops, samples and confidence intervals.
        device: auto, cpu, cuda or mps.
    """
    found = find_model(model)
    method_class = method_named(found.method)
    ensemble = found.card["default_samples"]
    tried = sorted({float(temperature) for temperature in temperatures})
    if not method_class.stochastic:
        raise InputError(f"The method {found.method} draws no samples, so it has no deviation to calibrate.")
    if ensemble < 2:
        raise InputError(f"The model '{found.name}' draws one sample by default, so it has no deviation to calibrate.")
    if crops < 1 or samples < FEWEST_SAMPLES:
        raise InputError(f"At least one crop and {FEWEST_SAMPLES} samples are needed.")
    if not tried or tried[0] <= 0.0 or tried[-1] > 2.0:
        raise InputError("Give at least one temperature, above 0 and up to 2.")
    output = output_for(found, output)

    place = choose_device(device)
    precision = choose_precision(place)
    chosen_stores = validation_stores(stores, found.card["training"].get("stores", ()))
    sampler = Sampler(method_class(found, place, precision), size, seed)
    share = _full_dose_share(found.card, mapping is not None and not any(map(PatientStore.recognizes, chosen_stores)))
    pairs = list(Pairs(chosen_stores, crops, size, seed, tuple(found.card["pixel_spacing"]), mapping, share))
    if not pairs:
        raise InputError("The crops show no tissue: give others, or more.")

    scores = []
    for number, pair in enumerate(pairs, start=1):
        scores.append(sampler.score(pair, tried, SCORED_SAMPLES))
        say(f"temperature: {number} of {len(pairs)} crops")
    curve = _curve(tried, np.array(scores), np.array([pair.mask.sum() for pair in pairs]))
    temperature = chosen_temperature(curve)
    if len(tried) > 1 and temperature in (tried[0], tried[-1]):
        say(f"The temperature is at the edge, {temperature:g}: try others beyond it.")
    measured = []
    for number, pair in enumerate(pairs, start=1):
        measured.append(sampler.crop(pair, temperature, samples, ensemble))
        say(f"deviation: {number} of {len(pairs)} crops")

    results = {
        "model": {key: found.card[key] for key in ("name", "version", "weights_sha256")},
        "stores": [path.stem for path in chosen_stores],
        "mapping": mapping,
        "full_dose_share": share,
        "size": size,
        "precision": str(precision).removeprefix("torch."),
        "seed": seed,
        **_measures(measured, curve, temperature, ensemble, seed),
    }
    _write(found, output, json.loads(report.as_json(results)))
    _tell(results)


def validation_stores(stores: Path, trained: Collection[str]) -> list[Path]:
    """What of ``stores`` validates. Raises InputError where one has the name of a store that was ``trained`` on."""
    chosen = stores_for(stores, "validation")
    if seen := sorted({path.stem for path in chosen} & {*trained}):
        raise InputError(f"The model was trained on a store called '{seen[0]}': calibrate it on other data.")
    return chosen


def output_for(model: Model, output: Path) -> Path:
    """``output``, checked. Raises InputError where it holds the model itself or another one."""
    output = check_output_folder(output)
    if output.resolve() == model.folder.resolve():
        raise InputError(f"'{output}' is the model itself, which is never changed: give another folder.")
    if (output / CARD).exists() and load_model(output).card["weights_sha256"] != model.card["weights_sha256"]:
        raise InputError(f"'{output}' holds another model, which would be lost: give another folder.")
    return output


def _full_dose_share(card: dict, simulated_mapping: bool) -> float:
    """Share of pairs that lead to full dose, as in training. Where the card does not say, 1 for a model of full dose
    and for a ``simulated_mapping``, else training's usual one."""
    only_full = card["target"]["dose"][0] >= 100.0 * FULL_DOSE or simulated_mapping
    return card["training"].get("full_dose_share", 1.0 if only_full else USUAL_SHARE)


def chosen_temperature(curve: Sequence[Mapping]) -> float:
    """The temperature nearest to 1, with which the flow was trained, whose score is not clearly above the lowest.

    Of two that the crops cannot tell apart (the 95 % interval of their difference holds 0), the one that is farther
    from 1 would only follow the noise.
    """
    alike = [entry["temperature"] for entry in curve if entry["above_lowest"].low <= 0.0]
    return min(alike, key=lambda temperature: abs(temperature - 1.0))


def _curve(temperatures: Sequence[float], scores: np.ndarray, pixels: np.ndarray) -> list[dict]:
    """CRPS (HU) at each temperature, and by how much it exceeds the lowest (paired: the same crops and latents).

    ``scores`` (crops, temperatures): sums over pixels; ``pixels`` (crops,).
    """
    best = scores[:, scores.sum(0).argmin()]
    return [
        {
            "temperature": temperature,
            "crps": estimate(lambda s, n: s / n, own, pixels),
            "above_lowest": estimate(lambda s, b, n: (s - b) / n, own, best, pixels),
        }
        for temperature, own in zip(temperatures, scores.T, strict=True)
    ]


def _vertex(curve: Sequence[dict]) -> float | None:
    """Temperature at which the parabola through the lowest score and its neighbours is lowest; None at the edge."""
    x, y = (np.array(column) for column in zip(*((e["temperature"], e["crps"].value) for e in curve), strict=True))
    at = int(y.argmin())
    if not 0 < at < len(x) - 1:
        return None
    square, linear, _ = np.polyfit(x[at - 1 : at + 2], y[at - 1 : at + 2], 2)
    return float(-linear / (2.0 * square)) if square > 0.0 else None


def _measures(crops: Sequence[Crop], curve: Sequence[dict], temperature: float, ensemble: int, seed: int) -> dict:
    factor = deviation_factor(crops, seed)
    chosen = round(factor.value, 3)
    return {
        "crops": len(crops),
        "pixels": sum(len(crop.error) for crop in crops),
        "samples": crops[0].samples,
        "ensemble": ensemble,
        "temperatures": _plain(curve),
        "temperature": temperature,
        "interpolated_temperature": _vertex(curve),
        "deviation_factor": {**asdict(factor), "value": chosen},
        "coverage": _plain(coverage(crops, LEVELS, chosen)),
        "reliability": _plain(coverage(crops, CURVE, chosen)),
        "spread": spread_skill(crops),
        "groups": [
            {
                "group": name,
                "crops": len(members),
                "pixels": sum(len(crop.error) for crop in members),
                "own_factor": asdict(deviation_factor(members, seed)),
                "coverage": _plain(coverage(members, LEVELS, chosen)),
            }
            for name, members in groups(crops).items()
        ],
    }


def _plain(rows: Sequence[dict]) -> list[dict]:
    return [{key: asdict(v) if isinstance(v, Estimate) else v for key, v in row.items()} for row in rows]


def _write(model: Model, output: Path, results: dict) -> None:
    """The calibrated model folder, and the results as JSON, CSV and figure. ``results`` as JSON has them."""
    from CTHarmonizeTraining.evaluation.calibration_figure import draw

    kept = ("stores", "crops", "pixels", "samples", "ensemble", "seed", "temperatures", "coverage")
    card = {
        **model.card,
        "default_temperature": results["temperature"],
        "quality": _still_true(model.card, results["temperature"]),
        "deviation_factor": results["deviation_factor"]["value"],
        "calibration": {
            **{key: results[key] for key in kept},
            "factor_interval": [results["deviation_factor"][key] for key in ("low", "high")],
        },
    }
    problem = card_problem(card)
    if problem:
        raise InputError(f"The card cannot be written: {problem}.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "calibration.json").write_text(report.as_json(results, indent=1) + "\n", encoding="utf-8")
        (output / "calibration.csv").write_text(_csv(results), encoding="utf-8")
        draw(results, output / "calibration.png")
        shutil.copyfile(model.folder / WEIGHTS, output / WEIGHTS)
        (output / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotRunError(f"'{output}' cannot be written: {error.strerror}.") from error
    load_model(output)


def _still_true(card: dict, temperature: float) -> list[dict]:
    """The card's ``quality``, as far as it holds at ``temperature``."""
    entries = card["quality"]
    if temperature == card["default_temperature"] or not entries:
        return entries
    say(
        f"The card's quality was measured at temperature {card['default_temperature']:g}, so its {len(entries)} "
        "entries are left out: 'export' with --calibration measures it anew."
    )
    return []


def _csv(results: dict) -> str:
    """One number a row: table, group, at what (temperature, nominal level, deviation), measure, value and interval."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "group", "at", "measure", "value", "low", "high"])

    def rows(table: str, group: str, at: str, entries: Sequence[dict]) -> None:
        for entry in entries:
            for measure, value in entry.items():
                if measure != at and value is not None:
                    numbers = [value[key] for key in ("value", "low", "high")] if isinstance(value, dict) else [value]
                    writer.writerow([table, group, entry[at], measure, *numbers, *[""] * (3 - len(numbers))])

    rows("temperature", "all", "temperature", results["temperatures"])
    rows("reliability", "all", "nominal", results["reliability"])
    rows("spread", "all", "deviation", results["spread"])
    for group in results["groups"]:
        rows("coverage", group["group"], "nominal", group["coverage"])
        rows("factor", group["group"], "group", [{"group": group["group"], "own_factor": group["own_factor"]}])
    return text.getvalue()


def _tell(results: dict) -> None:
    factor = results["deviation_factor"]
    if not FACTORS[1] <= factor["value"] <= FACTORS[-2]:
        say(f"The factor is at the edge of what is tried, {FACTORS[0]:.2g} to {FACTORS[-1]:.2g}: do not trust it.")
    print(f"Temperature {results['temperature']:g}, deviation times {factor['value']:.3f}.")
    for entry in results["coverage"]:
        drawn, before, after = (f"{100 * entry[name]['value']:.1f}" for name in ("samples", "before", "after"))
        level = f"{100 * entry['nominal']:.0f} %"
        print(f"{level}: quantiles of the samples cover {drawn} %, the deviation {before} % before, {after} % after.")
