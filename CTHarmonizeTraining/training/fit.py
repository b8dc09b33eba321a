"""``ctharmonize-train fit``: from a configuration and stores to trained checkpoints and a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import lightning as L
import torch
import yaml
from safetensors.torch import save_file

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.data.splits import Splits, stores_for
from CTHarmonizeTraining.training.base import Pairs, StageConfig, TrainingStage, run_stage
from CTHarmonizeTraining.training.ctflow import EncoderStage, FlowStage

NETWORK = "network.safetensors"
STAGES = ("encoder", "flow", "joint")
SIMULATED_ONLY = ("kernels", "pixel_range", "measurement_error")
"""Entries of a configuration's ``data`` that choose what to simulate; measured pairs are as they were measured."""


@dataclass(frozen=True)
class FitConfig:
    """A training configuration, as its YAML file says it."""

    method: str
    intensity_window: tuple[float, float]
    network: CTFlowConfig
    data: dict
    encoder: StageConfig
    flow: StageConfig
    truth: str = "clean"
    mean_weight: float = 0.0
    joint: StageConfig | None = None
    anchor_mm: float | None = None

    @classmethod
    def load(cls, config: str | Path) -> FitConfig:
        """Configuration from a file, or the shipped one of that name."""
        path = Path(config)
        if not path.suffix:
            path = Path(str(resources.files("CTHarmonizeTraining.configs").joinpath(f"{config}.yaml")))
        if not path.is_file():
            names = sorted(entry.stem for entry in path.parent.glob("*.yaml"))
            raise InputError(f"There is no configuration '{config}'; shipped ones: {', '.join(names) or 'none'}.")
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(
                **{
                    **entries,
                    "intensity_window": tuple(map(float, entries["intensity_window"])),
                    "network": CTFlowConfig.from_dict(entries["network"]),
                    "encoder": _stage(entries["encoder"]),
                    "flow": _stage(entries["flow"]),
                    "joint": _stage(entries["joint"]) if "joint" in entries else None,
                }
            )
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"The configuration {path} is not usable: {error}") from error


def _stage(entries: dict) -> StageConfig:
    lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
    return StageConfig(**{**entries, **lists})


def fit(
    configuration: str,
    stores: Path,
    output: Path,
    validation: Path | None = None,
    weights: dict[str, float] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> None:
    """Train CTFlow stage by stage; continues where an earlier run into the same folder stopped.

    Args:
        configuration: name of a shipped configuration, or a YAML file.
        stores: store of scenes or of measured pairs to train on, or a folder of one kind (*.zarr); of a folder with
            splits.json its part train.
        output: folder for checkpoints, logs and network.safetensors, the trained network.
        validation: store or folder of them that is only measured on, of a folder with splits.json its part
            validation; where left out, that part of the folder of stores, if it has one.
        weights: how often a store is drawn, by its name without .zarr; the others stay at their scenes or slices.
        seed: of weights, data and dequantisation.
        accelerator: auto, cpu or gpu.
        precision: auto, 32-true, bf16-mixed.
        progress: show a progress bar.
    """
    settings = FitConfig.load(configuration)
    training_stores = stores_for(stores, "train")
    held_out_stores = _held_out(stores, validation)
    dataset = _dataset([*training_stores, *held_out_stores], settings.truth)
    L.seed_everything(seed, workers=True)
    network = CTFlow(settings.network).to(memory_format=torch.channels_last)

    def stage(name: str, module: TrainingStage) -> None:
        batch = module.stage.batch
        options = {"planes": settings.network.planes, **settings.data}
        workers = options.pop("workers", 1)
        if dataset is MeasuredPairs:
            options = {key: value for key, value in options.items() if key not in SIMULATED_ONLY}
        count = module.stage.iterations * batch
        training = dataset(training_stores, count, seed=_seed_of(seed, name), weights=weights, **options)
        held_out = dataset(held_out_stores, 16 * batch, seed=12345, **options) if held_out_stores else None
        data = Pairs(training, held_out, batch, workers)
        run_stage(module, data, Path(output) / name, precision, accelerator=accelerator, progress=progress)

    window = settings.intensity_window
    stage("encoder", EncoderStage(network, settings.encoder, window, settings.truth))
    options = settings.truth, settings.mean_weight
    stage("flow", FlowStage(network, settings.flow, window, *options))
    if settings.joint:
        stage("joint", FlowStage(network, settings.joint, window, *options, freeze_encoder=False))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, output / NETWORK)


def _held_out(stores: Path, validation: Path | None) -> list[Path]:
    if validation is not None:
        return stores_for(validation, "validation")
    parts = Splits.of(stores).patients
    return [path for path in sorted(stores.glob("*.zarr")) if parts.get(path.stem) == "validation"]


def _dataset(stores: Sequence[Path], truth: str) -> type[PairDataset] | type[MeasuredPairs]:
    """What reads ``stores``. Raises InputError where they are of two kinds, or cannot give the ``truth``."""
    measured = {PatientStore.recognizes(path) for path in stores}
    if len(measured) == 2:
        raise InputError("Simulated scenes and measured pairs cannot be mixed: train on one kind of store.")
    if measured == {False}:
        return PairDataset
    if truth != "target":
        raise InputError(
            f"Measured pairs have no noise-free image: the configuration's truth has to be target, not {truth}."
        )
    return MeasuredPairs


def _seed_of(seed: int, stage: str) -> int:
    return len(STAGES) * seed + STAGES.index(stage)
