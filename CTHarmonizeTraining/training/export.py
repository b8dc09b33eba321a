"""``ctharmonize-train export``: from a trained network to a model folder whose card is measured, not typed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.learned import VolumeMethod
from CTHarmonizeLib.models import CARD, WEIGHTS, Model, load_model
from CTHarmonizeLib.models.schema import card_problem
from CTHarmonizeLib.request import Request
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.evaluation.calibration import calibrate, output_for, validation_stores
from CTHarmonizeTraining.evaluation.candidates import RIVALS, towards
from CTHarmonizeTraining.evaluation.invariance import compared
from CTHarmonizeTraining.evaluation.pairs_table import USUAL_SPACING, evaluate
from CTHarmonizeTraining.evaluation.quality import not_better, volume_quality
from CTHarmonizeTraining.evaluation.tables import target_dose
from CTHarmonizeTraining.evaluation.volumes import judge_volumes
from CTHarmonizeTraining.simulation.phantom import ChestPhantom
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.base import StageConfig, Training
from CTHarmonizeTraining.training.facts import data_facts, simulation, use_of
from CTHarmonizeTraining.training.origin import check_test_data, check_test_stores, initial, origin

HALOS = (16, 32, 48, 64, 96)
"""Pixels of context that are tried."""

LARGEST_DIFFERENCE = 0.01
"""HU between the deviation (or the spread), which is not rounded, of a tiled and of an untiled run that a halo may
leave."""

NOTICE = "Research use, not a medical device."


@dataclass(frozen=True)
class About:
    """What only people know of a model: its ``name``, ``version``, ``licence``; ``limits`` in words; and ``data``,
    entries with ``stores`` (a store's name, or a pattern such as ``phantom*``), ``name`` and ``licence``."""

    name: str
    version: str
    licence: str
    data: tuple[dict[str, str], ...]
    limits: str

    @classmethod
    def load(cls, path: Path) -> About:
        """From a YAML file. Raises InputError."""
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise InputError(f"'{path}' cannot be read: {reason}.") from error
        given, wanted = {*entries} if isinstance(entries, dict) else set(), [field.name for field in fields(cls)]
        kinds = {
            "missing": [name for name in wanted if name not in given],
            "unknown": sorted(given - {*wanted}, key=str),
        }
        if any(kinds.values()):
            words = "; ".join(f"{kind}: {', '.join(map(str, names))}" for kind, names in kinds.items() if names)
            raise InputError(f"'{path}' does not say what a card needs, {', '.join(wanted)} ({words}).")
        data = entries["data"]
        parts = {"stores", "name", "licence"}
        if not isinstance(data, list) or any(not isinstance(entry, dict) or {*entry} != parts for entry in data):
            raise InputError(f"'data' in '{path}' is a list whose entries have stores, name and licence, nothing else.")
        return cls(**{**entries, "data": tuple(data), "version": str(entries["version"])})

    def training_data(self, stores: Sequence[Path]) -> list[dict[str, str]]:
        """A card's ``training.data``. Raises InputError where no entry speaks of one of ``stores``."""
        groups: dict[int, list[Path]] = {}
        for store in stores:
            match = [number for number, entry in enumerate(self.data) if fnmatch(store.stem, entry["stores"])]
            if not match:
                raise InputError(f"Under which licence '{store.stem}' was used is not said: add it to 'data'.")
            groups.setdefault(match[0], []).append(store)
        return [
            {
                "name": self.data[number]["name"],
                "licence": self.data[number]["licence"],
                "use": "; ".join(f"{store.stem}: {use_of(store)}" for store in members),
            }
            for number, members in sorted(groups.items())
        ]


def export(
    run: Path,
    output: Path,
    about: Path,
    ct: Path | None = None,
    phantom: int | list[int] | None = None,
    volumes: list[Path] | None = None,
    slices: int | list[int] = 8,
    samples: int = 16,
    calibration: Path | None = None,
    cache: Path | None = None,
    device: str = "auto",
) -> None:
    """Make a model folder of a trained network: the weights, and a card with measured quality.

    What the stores and the configuration say goes onto the card by itself. The halo is measured with the engine;
    temperature and deviation are calibrated, where there is data for it, and then the quality is measured on simulated
    scans of test data that training has not seen, as 'evaluate' judges it. The folder appears when all is done.

    Args:
        run: output folder of 'fit'.
        output: the model folder; an earlier export of the same weights is replaced, another model never.
        about: YAML file with what only people know: name, version, licence, limits, and data, entries with stores
            (a name or a pattern such as phantom*), name and licence.
        ct: CT volume to judge the model on; or, and also
        phantom: seed or seeds of procedural chests to judge it on.
        volumes: for a model that makes thin slices, in place of both: stores of thin pairs to judge it on.
        slices: of each, as in 'evaluate'.
        samples: that the model draws by default.
        calibration: validation stores, as 'calibrate' reads them; without them the temperature is 1.
        cache: folder of calibration, simulated scans and results, beside the model folder where left out.
        device: auto, cpu, cuda or mps.
    """
    phantom = [phantom] if isinstance(phantom, int) else phantom
    method, data = settings.load(settings.of_run(run, settings.CONFIG))
    record = settings.record(run)
    told = About.load(about)
    trained = origin(record)
    if method.ratio is None:
        check_test_data(trained, ct, phantom)
    else:
        check_test_stores(trained, volumes)
    for name in trained.get("unlisted", ()):
        say(f"Note: the card of '{name}', the model to start from, lists no sources: see that it knows no test data.")
    stores = _stores(record)
    if calibration is not None:
        validation_stores(calibration, trained["stores"])
    output = check_output_folder(output)
    try:
        weights = load_file(settings.of_run(run, settings.NETWORK))
    except (OSError, SafetensorError) as error:
        raise InputError(f"'{run / settings.NETWORK}' cannot be read: {error}.") from error
    facts = {
        "name": told.name,
        "version": told.version,
        **data_facts(stores, data, record.get("weights"), method.planes),
        "default_samples": samples,
        "default_temperature": 1.0,
        "deviation_factor": 1.0,
        "halo": HALOS[-1],
        "training": {
            **trained,
            "data": _with_initial(told.training_data(stores), record),
            "simulated": _simulated(simulation(stores, data), record),
            "full_dose_share": None if data.towards_truth else data.full_dose_share,
            "schedule": _schedule(method, data.size, record),
            "validation": ", ".join(entry["name"] for entry in record["validation"]) or "none",
            "limits": told.limits,
        },
        "quality": [],
        "licence": told.licence,
    }
    aside = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        model = load_model(write_model(weights, method, facts, aside))
        _check_replaced(model, output, calibration)
        facts["halo"] = measured_halo(aside, device)
        write_model(weights, method, facts, aside)
        folder = cache or output.with_name(f"{output.name}-evaluation")
        if calibration is not None:
            calibrated = folder / f"calibration-{model.card['weights_sha256'][:10]}"
            measured = PatientStore.recognizes(stores[0])
            mapping = data.measured.series if measured else data.simulated.kernels
            calibrate(str(aside), calibration, calibrated, mapping=mapping, device=device)
            found = load_model(calibrated).card
            facts |= {name: found[name] for name in ("default_temperature", "deviation_factor", "calibration")}
            write_model(weights, method, facts, aside)
        reached = {
            "pixel_spacing": float(np.clip(USUAL_SPACING, *facts["pixel_spacing"])),
            "target_dose": float(facts["target"]["dose"][1]) if facts["target"]["dose"] else 100.0,
        }
        tests = {"ct": ct, "phantom": phantom}
        for store in volumes or ():
            for judged in judge_volumes(Request(method=method.method, model=str(aside), device=device), store, {}):
                facts["quality"] += volume_quality(judged)
        for kind, test in tests.items():
            if test and method.ratio is None:
                results = evaluate(
                    folder / kind, slices=slices, method=method.method, model=str(aside), samples=samples,
                    device=device, cache=folder / "simulated", figures=False, **reached, **{kind: test},
                )  # fmt: skip
                facts["quality"] += quality(results)
        _move(write_model(weights, method, facts, aside), output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    say(f"{output}: {told.name} {told.version}, halo {facts['halo']} pixels, {len(facts['quality'])} measured entries")
    if beaten := sum("not_better_than" in entry for entry in facts["quality"]):
        say(f"In {beaten} of them it is not better than the input or a classical method: its card says so.")


def write_model(weights: dict[str, Tensor], method: Training, facts: dict, folder: str | Path) -> Path:
    """Write a model folder and check that it loads.

    ``facts`` are the card's entries that the method's settings do not say. Subnetworks are stored in half precision
    where they run in it anyway; what inverts stays float32. Raises InputError where the card would not be valid,
    CannotRunError where it cannot be written.
    """
    folder = Path(folder)
    content = save({name: _stored(name, value, method.halved) for name, value in weights.items()})
    card = {**method.card(), "notice": NOTICE, **facts, "weights_sha256": hashlib.sha256(content).hexdigest()}
    problem = card_problem(card)
    if problem:
        raise InputError(f"The card is not complete: {problem}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(content)
        (folder / CARD).write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise CannotRunError(f"The model folder '{folder}' cannot be written: {error.strerror}.") from error
    model = load_model(folder)
    method_named(model.method)(model, torch.device("cpu"), torch.float32)
    return folder


def quality(results: dict) -> list[dict]:
    """A card's ``quality`` from the ``results`` of an evaluation: an entry for each mapping, with the 95 % interval of
    its value and, beside it, what the other images have; it names the classical ones that are no worse."""
    data = results["data"]
    entries = []
    for pair in results["pairs"]:
        dose = target_dose(pair["target"], pair["target_dose"])
        mapping = f"{pair['source']} {pair['dose']:g} % to {pair['target']} {dose}"
        rmse = dict(pair["rmse"]["clean"])
        drawn = {key: results[key] for key in ("samples", "temperature")} if "mean" in rmse else {}
        image = "mean of {samples} samples at temperature {temperature:g}".format(**drawn) if drawn else "output"
        best = rmse.pop("mean") if drawn else rmse.pop("encoder")
        entries.append(
            {
                "data": f"{data['name']}, {len(data['slices'])} slices, simulated scans",
                "measure": f"RMSE in HU inside the body against the noise-free target, {mapping}; {image}; interval: "
                "95 %, bootstrap over slices",
                **{key: round(best[key], 2) for key in ("value", "low", "high")},
                **drawn,
                **{_COLUMNS.get(name, name): round(of["value"], 2) for name, of in rmse.items()},
                **not_better(
                    best["value"], {_COLUMNS[name]: of["value"] for name, of in rmse.items() if name in RIVALS}
                ),
            }
        )
    return entries


_COLUMNS = {
    "input": "untouched", "mtf-filter": "mtf_filter", "band-normalization": "band_normalization",
    "sample": "one_sample",
}  # fmt: skip


def measured_halo(folder: Path, device: str = "auto") -> int:
    """Twice the smallest of :data:`HALOS` with which tiles of 128 pixels agree with a whole slice of a phantom, in
    float32, to :data:`LARGEST_DIFFERENCE`: other images may reach further. Raises CannotRunError where none does."""
    phantom, card = ChestPhantom(0), json.loads((folder / CARD).read_text(encoding="utf-8"))
    if issubclass(method_named(card["method"]), VolumeMethod):  # which knows how far it sees
        return method_named(card["method"])(load_model(folder), torch.device("cpu"), torch.float32).halo
    low, high = card["pixel_spacing"]
    spacing = float(np.clip(phantom.pixel * 2, low, high))
    hu = phantom.slice(120.0, 2.0)[::2, ::2]
    side = min(384, 8 * (len(hu) // 8))
    first = (len(hu) - side) // 2
    hu = hu[first : first + side, first : first + side] + np.random.default_rng(0).normal(0.0, 25.0, (side, side))
    volume = Volume(hu[None].astype(np.float32), (spacing, spacing, 2.0))
    with tempfile.TemporaryDirectory() as trial:
        for halo in HALOS:
            shutil.copy(folder / WEIGHTS, trial)
            Path(trial, CARD).write_text(json.dumps({**card, "halo": halo}), encoding="utf-8")
            asked = Request(
                method=card["method"], model=trial, source_kernel=float(np.mean(card["source"]["f50"])), samples=2,
                device=device, precision="float32", augment=not method_named(card["method"]).stochastic,
            )  # fmt: skip
            whole = towards(asked, float(np.mean(card["target"]["f50"])), (card["target"]["dose"] or [100.0])[-1])
            (difference,) = compared(volume, whole, [("tiles", replace(whole, tile=128))])
            largest = max(difference.largest.get(name, 0.0) for name in ("standard_deviation", "augmentation_spread"))
            say(f"halo {halo}: tiles differ by {largest:.4f} HU at most")
            if largest <= LARGEST_DIFFERENCE:
                return 2 * halo
    raise CannotRunError(f"No halo up to {HALOS[-1]} pixels makes tiles agree with whole slices.")



def _stores(record: dict) -> list[Path]:
    stores = [Path(entry["path"]) for entry in record["stores"]]
    for store in stores:
        if not store.exists():
            raise InputError(f"The store '{store}' that was trained on is no longer there: put it back for the export.")
    return stores


def _with_initial(own: list[dict], record: dict) -> list[dict]:
    began = initial(record)
    before = began["training"]["data"] if began else []
    return [*before, *(entry for entry in own if entry not in before)]


def _simulated(own: str, record: dict) -> str:
    began = initial(record)
    return f"{own} Of {began['name']} {began['version']}: {began['training']['simulated']}" if began else own


def _check_replaced(model: Model, output: Path, calibration: Path | None) -> None:
    """Raise InputError where ``output`` holds another model than ``model``, or a calibrated one and no calibration is
    given."""
    output_for(model, output)
    if calibration is None and (output / CARD).exists() and "calibration" in load_model(output).card:
        raise InputError(
            f"'{output}' holds this model with a calibration, which would be lost: give the calibration's stores "
            "again, or another folder."
        )


def _move(made: Path, output: Path) -> None:
    """The finished model into its place; the card last, without which a folder is no model."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CARD):
            os.replace(made / name, output / name)
    except OSError as error:
        raise CannotRunError(f"The model folder '{output}' cannot be written: {error.strerror}.") from error


def _schedule(method: Training, size: int, record: dict) -> str:
    stages = [_stage(name, stage, size) for name, stage in method.stages().items()]
    began = initial(record)
    start = f"; started from {began['name']} {began['version']}" if began else ""
    return f"{'; '.join(stages)}{start}; {record['device']}"


def _stage(name: str, stage: StageConfig, size: int) -> str:
    words = f"{name}: {stage.iterations} iterations of {stage.batch} crops of {size} x {size}, "
    words += f"Adam {stage.learning_rate:g}"
    if stage.halved_at:
        words += f", halved after {', '.join(f'{100 * share:g}' for share in stage.halved_at)} %"
    if stage.cycle:
        words += f", up to {stage.cycle.highest:g} times that and back every {stage.cycle.iterations} iterations"
    if stage.plateau:
        words += f", times {stage.plateau.factor:g} where the loss stays"
    if stage.weight_decay:
        words += f", weight decay {stage.weight_decay:g}"
    return words + (f", weights averaged ({stage.average:g})" if stage.average else "")


def _stored(name: str, value: Tensor, halved: tuple[str, ...]) -> Tensor:
    convolution = value.ndim >= 4 and name.startswith(halved)
    return (value.half() if convolution else value).contiguous()
