"""``ctharmonize-train fit``: from a configuration and scene stores to trained checkpoints and a model folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import lightning as L
import torch
import yaml

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.training.base import Pairs, StageConfig, TrainingStage, run_stage
from CTHarmonizeTraining.training.ctflow import EncoderStage, FlowStage


@dataclass(frozen=True)
class FitConfig:
    """A training configuration, as its YAML file says it."""

    method: str
    intensity_window: tuple[float, float]
    network: CTFlowConfig
    data: dict
    encoder: StageConfig
    flow: StageConfig
    encoder_truth: str = "clean"
    freeze_encoder: bool = True
    anchor_mm: float | None = None
    extra: dict = field(default_factory=dict)

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
                }
            )
        except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"The configuration {path} is not usable: {error}") from error


def _stage(entries: dict) -> StageConfig:
    lists = {name: tuple(value) for name, value in entries.items() if isinstance(value, list)}
    return StageConfig(**{**entries, **lists})


def fit(
    config: str,
    stores: Sequence[Path],
    output: Path,
    validation: Sequence[Path] = (),
    weights: Sequence[float] | None = None,
    seed: int = 0,
    accelerator: str = "auto",
    precision: str = "auto",
    progress: bool = True,
) -> Path:
    """Train CTFlow's two stages; continues where an earlier run into the same folder stopped.

    Args:
        config: name of a shipped configuration, or a YAML file.
        stores: scene stores (Zarr folders) to train on.
        output: folder for checkpoints, logs and ``network.pt`` (the trained network's state).
        validation: scene stores that are only measured on.
        weights: how often each store is drawn, relative to the others.
        seed: of weights, data and dequantisation.
        accelerator: auto, cpu or gpu.
        precision: auto, 32-true, bf16-mixed.
        progress: show a progress bar.
    """
    settings = FitConfig.load(config)
    L.seed_everything(seed, workers=True)
    network = CTFlow(settings.network).to(memory_format=torch.channels_last)

    def stage(name: str, module: TrainingStage) -> None:
        size, planes, batch = settings.data["size"], settings.network.planes, module.stage.batch
        count = module.stage.iterations * batch
        training = PairDataset(stores, count, size, planes, _seed_of(seed, name), weights=weights)
        held_out = PairDataset(validation, 16 * batch, size, planes, 12345) if validation else None
        data = Pairs(training, held_out, batch, settings.data.get("workers", 1))
        run_stage(module, data, Path(output) / name, precision, accelerator=accelerator, progress=progress)

    window = settings.intensity_window
    stage("encoder", EncoderStage(network, settings.encoder, window, settings.encoder_truth))
    stage("flow", FlowStage(network, settings.flow, window, settings.freeze_encoder))
    weights_file = Path(output) / "network.pt"
    torch.save(network.state_dict(), weights_file)
    return weights_file


def _seed_of(seed: int, stage: str) -> int:
    return 2 * seed + (stage == "flow")
