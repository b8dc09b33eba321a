"""``ctharmonize-train fit``: from a configuration and stores to a trained network."""

from __future__ import annotations

import copy
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import lightning as L
import torch
import zarr
from lightning.pytorch.utilities import rank_zero_only
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.models import Model, find_model
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.pairs import PairDataset, weights_of
from CTHarmonizeTraining.data.patient import FBP, TRUTH, PatientStore
from CTHarmonizeTraining.data.splits import Splits, stores_for
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.simulation.rays import Rays
from CTHarmonizeTraining.simulation.scenes import SceneStore
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.base import Training
from CTHarmonizeTraining.training.curves import draw_curves
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.settings import NETWORK, RECORD, DataConfig
from CTHarmonizeTraining.training.trainer import Machine, run_stage


def fit(
    stores: Path,
    output: Path,
    method: Training | None = None,
    data: DataConfig = DataConfig(),
    validation: Path | None = None,
    weights: dict[str, float] | None = None,
    initial: str | None = None,
    seed: int = 0,
    machine: Machine = Machine(),
) -> None:
    """Train a method stage by stage; continues where an earlier run into the same folder stopped.

    Give a configuration, one of those shipped by its name or a YAML file (--config ctflow-compact); what stands
    after it on the command line replaces what it says (--method.flow.iterations 100).

    Args:
        stores: store of scenes or of measured pairs to train on, or a folder of one kind (*.zarr); of a folder with
            splits.json its part train.
        output: folder for checkpoints, logs, pictures and network.safetensors, the trained network.
        method: what is trained, and how.
        data: of the crops.
        validation: store or folder of them that is only measured on, of a folder with splits.json its part
            validation; where left out, that part of the folder of stores, if it has one.
        weights: how often a store is drawn, by its name without .zarr; the others stay at their scenes or slices.
        initial: model to start from, a folder or an installed model's name, of the same network; else random weights.
        seed: of weights, data and all that is drawn.
        machine: where and how to compute.
    """
    if method is None:
        raise InputError("Say what is to be trained: give a configuration, such as --config ctflow-compact.")
    if data.size % method.multiple:
        raise InputError(f"Crops of {data.size} pixels do not do: give a multiple of {method.multiple}.")
    if seed < 0:
        raise InputError(f"A seed of {seed} is out of range: give 0 or more.")
    output = check_output_folder(output)
    machine.check([stage.batch for stage in method.stages().values()])
    training_stores = stores_for(stores, "train")
    held_out_stores = _held_out(stores, validation)
    if shared := {*map(_identity, training_stores)} & {*map(_identity, held_out_stores)}:
        raise InputError(f"The store '{min(shared)}' would be trained and validated on: take one of them away.")
    weights_of(training_stores, weights)
    _check_target(method, data)
    dataset = _dataset([*training_stores, *held_out_stores], method)
    _check_slices(method, data, dataset)
    if method.rays is not None:
        _check_rays(method.rays, data, [*training_stores, *held_out_stores])
    kind = data.measured if dataset is MeasuredPairs else data.simulated
    options = {"size": data.size, "planes": method.planes, "full_dose_share": data.full_dose_share, **asdict(kind)}
    if dataset is MeasuredPairs:
        options |= {"depth": data.depth, "observations": method.rays is not None}
    L.seed_everything(seed, workers=True, verbose=False)
    network = method.build()
    start = None if initial is None else _start_from(network, find_model(initial))
    with torch.random.fork_rng(devices=[]):  # to see whether they can be had; the real ones change the network
        for name in method.stages():
            method.stage(name, copy.deepcopy(network))
    loaders = []
    for number, stage in enumerate(method.stages().values()):
        count = stage.iterations * stage.batch
        pairs: Dataset = dataset(training_stores, count, seed=100 * seed + number, weights=weights, **options)
        held_out = dataset(held_out_stores, 16 * stage.batch, seed=12345, **options) if held_out_stores else None
        loaders.append(Pairs(pairs, held_out, stage.batch, data.workers))
    record = {
        "stores": [_described(path) for path in training_stores],
        "validation": [_described(path) for path in held_out_stores],
        "weights": weights or {},
        "initial": start,
        "seed": seed,
        "precision": machine.chosen()[1],
    }
    _keep(output, method, data, record, _words(machine))  # the first thing that is written: nothing is refused later
    trained = False
    for name, loader in zip(method.stages(), loaders, strict=True):
        trained |= run_stage(name, method.stage(name, network), loader, output / name, machine)
    if rank_zero_only.rank == 0:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, output / NETWORK)
        draw_curves(output, list(method.stages()))
        done = "" if trained else "This training was finished before, and there is nothing left to do. "
        say(f"{done}The trained network is {output / NETWORK}; next: {method.next_step(output)}")


def _held_out(stores: Path, validation: Path | None) -> list[Path]:
    if validation is not None:
        return stores_for(validation, "validation")
    parts = Splits.of(stores).patients
    return [path for path in sorted(stores.glob("*.zarr")) if parts.get(path.stem) == "validation"]


def _identity(store: Path) -> str:
    return str(store.resolve())


def _check_target(method: Training, data: DataConfig) -> None:
    """Raise InputError where the data's targets are not what the method says that it makes."""
    if method.towards_truth != data.towards_truth:
        raise InputError(
            "The method makes the noise-free truth: the configuration's data.simulated.kernels has to be [null, truth]."
            if method.towards_truth
            else "Only a method that makes the noise-free truth, such as physics-gan, can be trained towards it."
        )


def _dataset(stores: Sequence[Path], method: Training) -> type[PairDataset] | type[MeasuredPairs]:
    """What reads ``stores``. Raises InputError where they are of two kinds, or cannot give the method's truth."""
    measured = {PatientStore.recognizes(path) for path in stores}
    if len(measured) == 2:
        raise InputError("Simulated scenes and measured pairs cannot be mixed: train on one kind of store.")
    if measured == {False}:
        if method.rays is not None:
            raise InputError("This method reads measurements: give stores of them (import lodopab-pairs), not scenes.")
        return PairDataset
    if method.towards_truth:
        raise InputError("Measured pairs have no noise-free truth: train this method on scenes of procedural phantoms.")
    if method.truth != "target":
        raise InputError(
            f"Measured pairs have no noise-free image: the configuration's truth has to be target, not {method.truth}."
        )
    return MeasuredPairs


def _check_slices(method: Training, data: DataConfig, dataset: type[Dataset]) -> None:
    """Raise InputError where the crops' slices are not those that the method reads and makes."""
    averaged = data.measured.averaged_slices
    if method.ratio is None:
        if data.depth > 1 or averaged > 1:
            raise InputError("This method works on single slices: leave data.depth and averaged_slices at 1.")
    elif dataset is not MeasuredPairs:
        raise InputError("This method needs volumes: give stores of pairs (simulate STORE.zarr, import), not scenes.")
    elif averaged != method.ratio or data.depth < 2:
        raise InputError(
            f"The network makes {method.ratio} slices of each: give data.measured.averaged_slices {method.ratio}, and "
            f"a data.depth of 2 or more, not {averaged} and {data.depth}."
        )


def _check_rays(rays: Rays, data: DataConfig, stores: Sequence[Path]) -> None:
    """Raise InputError where the network's rays are not those of the measurements in ``stores``."""
    if data.size != rays.side:
        raise InputError(f"Measurements belong to whole images: give a data.size of {rays.side}, not {data.size}.")
    if tuple(data.measured.series) != (FBP, TRUTH):
        raise InputError(f"Measurements lead to the ground truth: give data.measured.series [{FBP}, {TRUTH}].")
    for path in stores:
        for entry in PatientStore(path).sets:
            if entry.rays is None:
                raise InputError(f"The store '{path.name}' holds no measurements, only images.")
            if entry.rays != rays:
                raise InputError(
                    f"The measurements in '{path.name}' are {_rays_words(entry.rays)}; the network's, "
                    f"method.network.rays, {_rays_words(rays)}."
                )


def _rays_words(rays: Rays) -> str:
    return f"{rays.views} views of {rays.beams} beams for images of {rays.side} pixels, {rays.width:g} mm"


def _start_from(network: nn.Module, model: Model) -> dict:
    """Load the model's weights; what a record, and the next card, say of it."""
    try:
        network.load_state_dict(model.weights())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"The model in {model.folder} is of another network: {reason}") from error
    return {name: model.card[name] for name in ("name", "version", "weights_sha256", "training")}


@rank_zero_only
def _keep(output: Path, method: Training, data: DataConfig, record: dict, device: str) -> None:
    """Write configuration and record, or see that those of the run that is gone on with say the same.

    Raises InputError where they do not.
    """
    settings.keep(output, method, data)
    path = output / RECORD
    if not path.exists():
        versions = {name: version(name) for name in ("torch", "lightning", "zarr")}
        versions = {"ctharmonize": __version__, "python": platform.python_version(), **versions}
        begun = time.strftime("%Y-%m-%d %H:%M:%S %z")
        record = {**record, "versions": versions, "begun": begun, "device": device}
        write_whole(path, json.dumps(record, indent=1) + "\n")
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error
    different = [name for name, value in record.items() if before.get(name) != value]
    if different:
        raise InputError(
            f"'{output}' holds a training on other data or with other options ({', '.join(different)}): choose another "
            "folder."
        )


def _described(store: Path) -> dict:
    """Name, place and size of a store, and what it says of itself."""
    facts = zarr.open_group(os.fspath(store), mode="r").attrs
    known = {key: facts[key] for key in ("source", "seed", "patient", "layout") if key in facts}
    if PatientStore.recognizes(store):
        size = {"slices": sum(len(entry.body) for entry in PatientStore(store).sets)}
    else:
        size = {"scenes": len(SceneStore(store))}
    return {"name": store.stem, "path": str(store.absolute()), **known, **size}


def _words(machine: Machine) -> str:
    """Where is computed, for the reader of a card."""
    device, precision = machine.chosen()
    count = machine.devices
    if device.type == "cuda":
        count = torch.cuda.device_count() if count in ("auto", -1) else count
        return f"{machine.nodes} x {count} {torch.cuda.get_device_name()}, {precision}"
    return f"{device.type}, {torch.get_num_threads()} threads, {precision}"
