"""``ctharmonize-train fit``: from a configuration and scene stores to trained checkpoints and a model folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import lightning as L
import torch
import yaml
from safetensors.torch import save_file

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.training.base import Pairs, StageConfig, TrainingStage, run_stage
from CTHarmonizeTraining.training.ctflow import EncoderStage, FlowStage

NETWORK = "network.safetensors"
STAGES = ("encoder", "flow", "joint")


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
        stores: scene store to train on, or a folder of them (*.zarr).
        output: folder for checkpoints, logs and network.safetensors, the trained network.
        validation: scene store or folder of them that is only measured on.
        weights: how often a store is drawn, by its name without .zarr; the others stay at their number of scenes.
        seed: of weights, data and dequantisation.
        accelerator: auto, cpu or gpu.
        precision: auto, 32-true, bf16-mixed.
        progress: show a progress bar.
    """
    settings = FitConfig.load(configuration)
    training_stores = found_stores(stores)
    held_out_stores = found_stores(validation) if validation else []
    L.seed_everything(seed, workers=True)
    network = CTFlow(settings.network).to(memory_format=torch.channels_last)

    def stage(name: str, module: TrainingStage) -> None:
        batch = module.stage.batch
        options = {"planes": settings.network.planes, **settings.data}
        workers = options.pop("workers", 1)
        count = module.stage.iterations * batch
        training = PairDataset(training_stores, count, seed=_seed_of(seed, name), weights=weights, **options)
        held_out = PairDataset(held_out_stores, 16 * batch, seed=12345, **options) if held_out_stores else None
        data = Pairs(training, held_out, batch, workers)
        run_stage(module, data, Path(output) / name, precision, accelerator=accelerator, progress=progress)

    window = settings.intensity_window
    stage("encoder", EncoderStage(network, settings.encoder, window, settings.truth))
    options = settings.truth, settings.mean_weight
    stage("flow", FlowStage(network, settings.flow, window, *options))
    if settings.joint:
        stage("joint", FlowStage(network, settings.joint, window, *options, freeze_encoder=False))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, output / NETWORK)


def found_stores(path: Path) -> list[Path]:
    """The store at ``path``, or those in it. Raises InputError where there is none."""
    found = [path] if (path / "zarr.json").is_file() else sorted(path.glob("*.zarr"))
    if not found:
        raise InputError(f"There are no scene stores in '{path}': make them with 'ctharmonize-train simulate'.")
    return found


def _seed_of(seed: int, stage: str) -> int:
    return len(STAGES) * seed + STAGES.index(stage)
