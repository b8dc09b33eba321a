"""Prints how many training items one worker makes a second, and what share of its time training waits for them.

python Testing/benchmarks/loader.py STORE [STORE ...] [--size 64] [--depth 1] [--workers 1] [--steps 20]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from CTHarmonizeLib.errors import CTHarmonizeError  # noqa: E402
from CTHarmonizeLib.networks.ctflow import CTFlow  # noqa: E402
from CTHarmonizeTraining.data.measured import MeasuredPairs  # noqa: E402
from CTHarmonizeTraining.data.pairs import PairDataset  # noqa: E402
from CTHarmonizeTraining.data.patient import PatientStore  # noqa: E402
from CTHarmonizeTraining.training.ctflow import EncoderStage  # noqa: E402
from CTHarmonizeTraining.training.fit import FitConfig  # noqa: E402

Batch = dict[str, torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stores", type=Path, nargs="+", help="stores of scenes or of measured pairs, of one kind")
    parser.add_argument("--size", type=int, default=64, help="pixels a side of a crop")
    parser.add_argument("--depth", type=int, default=1, help="slices of a crop of measured pairs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1, help="that serve the training")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--configuration", default="ctflow-compact", help="whose encoder is trained")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    try:
        start = time.perf_counter()
        measured = PatientStore.recognizes(given.stores[0])
        options = {"depth": given.depth} if measured else {}
        dataset = (MeasuredPairs if measured else PairDataset)(given.stores, 10**9, given.size, **options)
        print(f"opened in {time.perf_counter() - start:.1f} s")
        rate = items_a_second(dataset, given.batch, given.steps)
        print(f"{rate:.1f} items/s of one worker, {1000 / rate:.1f} ms each")
        if given.depth == 1:
            wait, step = waiting_share(dataset, given, "target" if measured else "clean")
            print(
                f"{given.configuration}'s encoder, float32 on {given.device}: {1000 * step:.0f} ms a step of "
                f"{given.batch} items, {100 * wait:.0f} % of it waiting for {given.workers} workers"
            )
    except CTHarmonizeError as error:
        print(f"loader: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def batches(dataset: Dataset, batch: int, workers: int) -> Iterator[Batch]:
    """Endless batches, the workers started and the first ones dropped."""
    loader = DataLoader(dataset, batch, num_workers=workers, prefetch_factor=2, worker_init_fn=_one_thread)
    endless = iter(loader)
    for _ in range(2 * workers + 1):
        next(endless)
    return endless


def items_a_second(dataset: Dataset, batch: int, steps: int) -> float:
    """Items that one worker makes a second while nothing else is to be done."""
    source = batches(dataset, batch, 1)
    start = time.perf_counter()
    for _ in range(steps):
        next(source)
    return batch * steps / (time.perf_counter() - start)


def waiting_share(dataset: Dataset, given: argparse.Namespace, truth: str) -> tuple[float, float]:
    """Share of the time that training the encoder waits for its batches, and seconds a step."""
    settings = FitConfig.load(given.configuration)
    network = CTFlow(settings.network).to(given.device, memory_format=torch.channels_last)
    module = EncoderStage(network, settings.encoder, settings.intensity_window, truth)
    source = batches(dataset, given.batch, given.workers)
    waited, start = 0.0, time.perf_counter()
    for _ in range(given.steps):
        asked = time.perf_counter()
        batch = {name: value.to(given.device) for name, value in next(source).items()}
        waited += time.perf_counter() - asked
        module.loss(batch)["loss"].backward()
        if given.device == "cuda":
            torch.cuda.synchronize()
        network.zero_grad()
    whole = time.perf_counter() - start
    return waited / whole, whole / given.steps


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
