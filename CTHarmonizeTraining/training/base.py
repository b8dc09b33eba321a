"""What every method's training shares: optimiser, schedule, data order, checkpoints, resume."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from CTHarmonizeLib.errors import CannotRunError


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: ``iterations`` of ``batch`` crops, Adam with ``betas``; the learning rate is halved at
    the given shares of the iterations and rises linearly over the first ``warmup`` ones."""

    iterations: int
    learning_rate: float
    batch: int = 16
    betas: tuple[float, float] = (0.9, 0.99)
    halved_at: tuple[float, ...] = (0.5, 0.75, 0.9, 0.95)
    warmup: int = 0
    gradient_clip: float | None = None

    def rate(self, step: int) -> float:
        """Learning rate at ``step``, as a share of ``learning_rate``."""
        halvings = sum(step >= share * self.iterations for share in self.halved_at)
        return 0.5**halvings * min(1.0, (step + 1) / (self.warmup + 1))


class TrainingStage(L.LightningModule):
    """Trains ``network`` by :meth:`loss`; the only thing that differs between methods and stages."""

    def __init__(self, network: torch.nn.Module, stage: StageConfig) -> None:
        super().__init__()
        self.network = network
        self.stage = stage

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values to log; ``loss`` is what is minimised."""

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        values = self.loss(batch)
        if not torch.isfinite(values["loss"]):
            raise CannotRunError(
                f"The loss became {float(values['loss'])} at step {self.global_step}: the last checkpoint before it is "
                "kept; lower the learning rate or clip the gradient, then run again."
            )
        self.log_dict({f"train_{name}": value for name, value in values.items()}, prog_bar=False)
        return values["loss"]

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        values = self.loss(batch)
        self.log_dict({f"validation_{name}": value for name, value in values.items()}, batch_size=len(batch["target"]))

    def configure_optimizers(self) -> dict:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=self.stage.learning_rate, betas=self.stage.betas)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.stage.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class FromStep(Sampler[int]):
    """Items in order, from the trainer's current step on, so that a resumed run sees what it would have seen."""

    def __init__(self, length: int, start: int) -> None:
        self.length, self.start = length, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.length))


class Pairs(L.LightningDataModule):
    """Training and validation pairs. Batches come in a fixed order, which a resumed run continues."""

    def __init__(self, training: Dataset, validation: Dataset | None, batch: int, workers: int = 1) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.batch, self.workers = batch, workers

    def train_dataloader(self) -> DataLoader:
        start = self.trainer.global_step * self.batch
        return DataLoader(
            self.training,
            self.batch,
            sampler=FromStep(len(self.training), start),
            drop_last=True,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=6 if self.workers else None,
            worker_init_fn=_one_thread,
        )

    def val_dataloader(self) -> DataLoader | list:
        return [] if self.validation is None else DataLoader(self.validation, self.batch)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def run_stage(
    module: TrainingStage,
    data: Pairs,
    folder: Path,
    precision: str = "auto",
    validate_every: int = 500,
    checkpoint_every: int = 200,
    accelerator: str = "auto",
    devices: int | str = "auto",
    progress: bool = True,
    stop_after: int | None = None,
) -> Path:
    """Train to the stage's last iteration, from ``folder/last.ckpt`` if there is one; returns that checkpoint.

    ``precision`` auto: bfloat16 where the device has it. ``stop_after`` ends this run, not the stage, there.
    """
    last = folder / "last.ckpt"
    if last.exists():
        state = torch.load(last, map_location="cpu", weights_only=True)
        if state["global_step"] >= module.stage.iterations:
            module.load_state_dict(state["state_dict"])
            return last
    if precision == "auto":
        precision = "bf16-mixed" if _has_bfloat16(accelerator) else "32-true"
    checkpoint = ModelCheckpoint(
        folder, filename="step{step}", auto_insert_metric_name=False, save_last=True,
        every_n_train_steps=checkpoint_every, save_on_train_epoch_end=False,
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=min(module.stage.iterations, stop_after or module.stage.iterations),
        precision=precision,
        accelerator=accelerator,
        devices=devices,
        gradient_clip_val=module.stage.gradient_clip,
        callbacks=[checkpoint],
        logger=CSVLogger(folder, name="log"),
        log_every_n_steps=20,
        val_check_interval=min(validate_every, math.inf),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        default_root_dir=folder,
    )
    trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None)
    trainer.save_checkpoint(last)
    return last


def _has_bfloat16(accelerator: str) -> bool:
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
