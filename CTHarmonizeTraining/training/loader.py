"""Batches in an order that neither an interruption nor the number of devices changes."""

from __future__ import annotations

import time
from collections.abc import Iterator

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from CTHarmonizeLib.errors import InputError


class RankBatches(Sampler[list[int]]):
    """The items of each batch that fall to device ``rank`` of ``ranks``, from batch ``start`` on.

    Its length counts the batches before ``start`` too, as a trainer that resumes does.
    """

    def __init__(self, items: int, batch: int, start: int = 0, rank: int = 0, ranks: int = 1) -> None:
        if batch % ranks:
            raise InputError(f"A batch of {batch} cannot be shared evenly by {ranks} devices: choose another number.")
        self.batches, self.batch, self.start = items // batch, batch, start
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        for number in range(self.start, self.batches):
            yield list(range(number * self.batch + self.rank, (number + 1) * self.batch, self.ranks))


class TimedLoader(DataLoader):
    """Knows for how many seconds its batches were ``waited`` for."""

    waited = 0.0

    def __iter__(self) -> Iterator:
        batches = super().__iter__()
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


class Pairs(L.LightningDataModule):
    """Training and validation pairs; the training's come from the trainer's step on."""

    def __init__(self, training: Dataset, validation: Dataset | None, batch: int, workers: int = 1) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.batch, self.workers = batch, workers
        self.loader: TimedLoader | None = None

    def train_dataloader(self) -> DataLoader:
        batches = self._batches(self.training, self.trainer.global_step)
        self.loader = TimedLoader(
            self.training,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=6 if self.workers else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )
        return self.loader

    def val_dataloader(self) -> DataLoader | list:
        if self.validation is None:
            return []
        batches = self._batches(self.validation, 0)
        return DataLoader(
            self.validation, batch_sampler=batches, num_workers=self.workers, worker_init_fn=_one_thread
        )  # fmt: skip

    def _batches(self, dataset: Dataset, start: int) -> RankBatches:
        return RankBatches(len(dataset), self.batch, start, self.trainer.global_rank, self.trainer.world_size)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
