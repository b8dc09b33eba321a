"""Runs a stage on Lightning: devices, precision, checkpoints, logs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.training.base import TrainingStage
from CTHarmonizeTraining.training.callbacks import AveragedWeights, Pictures, Progress
from CTHarmonizeTraining.training.loader import Pairs, RankBatches

LOGS = "log"

_CHATTER = [
    f".*{text}.*"
    for text in (
        "does not have many workers", "than the logging interval", "is not empty", "LeafSpec", "across ranks is zero",
        "your dataloader is not resumable",
    )
]  # fmt: skip
"""Lightning's warnings that say nothing here."""


@dataclass(frozen=True)
class Machine:
    """Where and how training computes; what it computes is the configuration's to say.

    ``accelerator``: auto, cpu, cuda or mps; ``precision`` auto: bfloat16 where the device has it. ``devices`` and
    ``nodes``: a batch is shared between them (Lightning's or torchrun's processes). Checkpoints come every so many
    iterations, validation about as often, and at a stage's end.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    nodes: int = 1
    precision: str = "auto"
    checkpoint_every: int = 200
    validate_every: int = 500

    def chosen(self) -> tuple[torch.device, str]:
        """Device, and precision in Lightning's words. Raises CannotRunError where the device is not there."""
        device = choose_device("cuda" if self.accelerator == "gpu" else self.accelerator)
        native = choose_precision(device) is torch.bfloat16
        return device, ("bf16-mixed" if native else "32-true") if self.precision == "auto" else self.precision

    def check(self, batches: Sequence[int]) -> None:
        """Raise InputError where Lightning would refuse these settings, or where one of ``batches`` cannot be shared
        by the devices."""
        if self.devices == 0 or self.nodes < 1:
            raise InputError("Training needs a device: give --machine.devices and --machine.nodes 1 or more, or auto.")
        if self.checkpoint_every < 1 or self.validate_every < 1:
            raise InputError("Checkpoints and validation come every so many iterations: give 1 or more.")
        device, precision = self.chosen()
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        try:
            trainer = L.Trainer(
                precision=precision, accelerator=device.type, devices=self.devices, num_nodes=self.nodes, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
        except (MisconfigurationException, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"Training cannot run with these settings of --machine: {reason}") from error
        for batch in batches:
            RankBatches(batch, batch, ranks=trainer.world_size)


def run_stage(
    name: str,
    module: TrainingStage,
    data: Pairs,
    folder: Path,
    machine: Machine = Machine(),
    watchers: Sequence[Callback] = (),
) -> bool:
    """Train ``module`` to its stage's last iteration, from ``folder/last.ckpt`` if there is one; a finished stage is
    only loaded. Whether there was anything left to train.

    Raises CannotRunError where the gradient is not finite, KeyboardInterrupt where a person stops it.
    """
    last, stage = folder / "last.ckpt", module.stage
    if last.exists() and _step(last) >= stage.iterations:
        module.load_state_dict(torch.load(last, map_location="cpu", weights_only=True)["state_dict"])
        return False
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    device, precision = machine.chosen()
    checkpoint = ModelCheckpoint(
        folder, filename="step{step}", auto_insert_metric_name=False, save_last=True,
        every_n_train_steps=machine.checkpoint_every, save_on_train_epoch_end=False,
        enable_version_counter=False,  # in a folder that was moved, last.ckpt is last.ckpt still
    )  # fmt: skip
    averaging = [AveragedWeights(stage.average)] if stage.average else []
    # before the averaging, which takes the averaged weights away again
    watching = [Pictures(folder / "pictures")] if data.validation is not None else []
    trainer = L.Trainer(
        max_steps=stage.iterations,
        precision=precision,
        accelerator=device.type,
        devices=machine.devices,
        num_nodes=machine.nodes,
        use_distributed_sampler=False,  # the loader shares batches itself
        gradient_clip_val=stage.gradient_clip,
        callbacks=[checkpoint, Progress(name), *watching, *averaging, *watchers],
        logger=[CSVLogger(folder, name=LOGS), TensorBoardLogger(folder, name="tensorboard")],
        log_every_n_steps=20,
        val_check_interval=_divisor(stage.iterations, machine.validate_every),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with warnings.catch_warnings():
        for text in _CHATTER:
            warnings.filterwarnings("ignore", message=text)
        try:
            trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
        except (KeyboardInterrupt, SystemExit):  # Lightning's answer to Ctrl-C
            if trainer.is_global_zero:
                step = _step(last) if last.exists() else 0
                say(f"{name}: stopped; started again it goes on at iteration {step} of {stage.iterations}")
            raise KeyboardInterrupt from None
    trainer.save_checkpoint(last)
    return True


def _step(checkpoint: Path) -> int:
    try:
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["global_step"]
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, UnpicklingError) as error:
        reason = " ".join(str(error).split()[:12]) or type(error).__name__
        raise CannotRunError(
            f"The checkpoint {checkpoint} cannot be read ({reason}): put the other one of its "
            "folder in its place, or remove it to start the stage anew."
        ) from error


def _divisor(count: int, near: int) -> int:
    """The divisor of ``count`` that is nearest to ``near``."""
    return min((number for number in range(1, count + 1) if count % number == 0), key=lambda n: abs(n - near))
