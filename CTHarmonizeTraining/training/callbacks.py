"""What happens beside the training: averaged weights, a line about the progress, pictures."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import lightning as L
import psutil
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.training.base import TrainingStage

GIB = 2**30

SHOWN = 4
"""Pairs in a picture."""


class AveragedWeights(WeightAveraging):
    """Exponential moving average of the weights, with which is validated and which the stage leaves.

    The average reaches ``decay`` only as it grows old, so that the first weights are forgotten.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Iterable[Tensor], current: Iterable[Tensor], count: Tensor | int) -> None:
            share = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
            for one, other in zip(averaged, current, strict=True):
                one.lerp_(other, share)

        super().__init__(use_buffers=False, multi_avg_fn=average)


class Progress(Callback):
    """Says every ``every`` seconds how far a stage is; logs what the time goes to.

    Logged: ``seconds_per_iteration`` (without validation), ``waiting_for_data`` (share of that time), ``busy`` (share
    of the processors that this process uses, or of the GPU where its driver tells), ``memory_gib`` (the GPU's peak,
    else what this process has now).
    """

    def __init__(self, stage: str, every: float = 60.0) -> None:
        self.stage, self.every = stage, every

    def on_train_start(self, trainer: L.Trainer, module: TrainingStage) -> None:
        self._first = self._step = trainer.global_step
        self._start = self._since = time.perf_counter()
        self._waited = 0.0
        self._process = psutil.Process()
        self._process.cpu_percent()
        if module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(module.device)
        if trainer.is_global_zero:
            where = f"{trainer.world_size} x {module.device.type}"
            what = f"goes on at {self._first} of {trainer.max_steps}" if self._first else trainer.max_steps
            say(f"{self.stage}: {what} iterations on {where}, {trainer.precision}")

    def on_train_batch_end(
        self, trainer: L.Trainer, module: TrainingStage, outputs: dict, batch: dict, index: int
    ) -> None:
        now, step = time.perf_counter(), trainer.global_step
        early = self._step == self._first and step == self._first + 10  # a first word soon
        if early or now - self._since >= self.every or step == trainer.max_steps:
            self._tell(trainer, module, float(outputs["loss"]), now)

    def on_validation_start(self, trainer: L.Trainer, module: TrainingStage) -> None:
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: TrainingStage) -> None:
        pause = time.perf_counter() - self._paused
        self._start, self._since = self._start + pause, self._since + pause

    def _tell(self, trainer: L.Trainer, module: TrainingStage, loss: float, now: float) -> None:
        step, elapsed = trainer.global_step, now - self._since
        each, waited = elapsed / max(1, step - self._step), trainer.datamodule.loader.waited
        facts = {
            "seconds_per_iteration": each,
            "waiting_for_data": (waited - self._waited) / elapsed,
            "busy": _busy(module.device, self._process),
            "memory_gib": _memory(module.device, self._process),
        }
        trainer.logger.log_metrics({name: value for name, value in facts.items() if value is not None}, step)
        overall = (now - self._start) / (step - self._first)
        if trainer.is_global_zero:
            say(
                f"{self.stage}: {step} of {trainer.max_steps}, loss {loss:.4f}, {each:.2f} s an iteration "
                f"({100 * facts['waiting_for_data']:.0f} % waiting for data), "
                f"{_spoken(overall * (trainer.max_steps - step))} of this stage left"
            )
        self._step, self._since, self._waited = step, now, waited


class Pictures(Callback):
    """After each validation, the same few pairs as the network shows them: ``step000500.jpg`` in ``folder``, and in
    TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_epoch_end(self, trainer: L.Trainer, module: TrainingStage) -> None:
        data = trainer.datamodule.validation
        if not trainer.is_global_zero:
            return
        items = [data[index] for index in range(min(SHOWN, len(data)))]
        batch = torch.utils.data.default_collate(items)
        batch = {name: value.to(module.device) for name, value in batch.items()}
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            images = {name: image.float().cpu() for name, image in module.pictures(batch).items()}
        if not images:
            return
        figure = _figure(images)
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"step{trainer.global_step:06d}.jpg", pil_kwargs={"quality": 90})
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("validation pairs", figure, trainer.global_step)


def _figure(images: dict[str, Tensor]):
    from matplotlib.figure import Figure

    count = len(next(iter(images.values())))
    figure = Figure(figsize=(1.8 * len(images), 1.8 * count + 0.3), dpi=110, layout="constrained")
    grid = figure.subplots(count, len(images), squeeze=False)
    lung = [float(image.median()) < -300.0 for image in images["source"]]
    for column, (name, image) in zip(grid.T, images.items(), strict=True):
        column[0].set_title("deviation, 0 to 60 HU" if name == "deviation" else name, fontsize=8)
        for row, axes in enumerate(column):
            # the same window for all images of a pair: lung or soft tissue, whichever it shows
            level, width = (-600.0, 1500.0) if lung[row] else (40.0, 400.0)
            low, high = (0.0, 60.0) if name == "deviation" else (level - width / 2, level + width / 2)
            axes.imshow(image[row], cmap="gray", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            if name == "source":
                axes.set_ylabel(f"L {level:g}  W {width:g} HU", fontsize=7)
    return figure


def _busy(device: torch.device, process: psutil.Process) -> float | None:
    if device.type == "cuda":
        try:
            return torch.cuda.utilization(device) / 100.0
        except Exception:  # of many kinds: no package for the driver's library, a shared GPU that does not tell
            return None
    return process.cpu_percent() / 100.0 / psutil.cpu_count()


def _memory(device: torch.device, process: psutil.Process) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return process.memory_info().rss / GIB


def _spoken(seconds: float) -> str:
    minutes = round(seconds / 60.0)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
