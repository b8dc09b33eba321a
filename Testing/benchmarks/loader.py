"""Prints how many training items one worker of the loader makes a second.

python Testing/benchmarks/loader.py STORE [STORE ...] [--size 64] [--depth 1] [--steps 20]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

import torch  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from CTHarmonizeLib.errors import CTHarmonizeError  # noqa: E402
from CTHarmonizeTraining.data.measured import MeasuredPairs  # noqa: E402
from CTHarmonizeTraining.data.pairs import PairDataset  # noqa: E402
from CTHarmonizeTraining.data.patient import PatientStore  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("stores", type=Path, nargs="+", help="stores of scenes or of measured pairs, of one kind")
    parser.add_argument("--size", type=int, default=64, help="pixels a side of a crop")
    parser.add_argument("--depth", type=int, default=1, help="slices of a crop of measured pairs")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    try:
        start = time.perf_counter()
        measured = PatientStore.recognizes(given.stores[0])
        options = {"depth": given.depth} if measured else {}
        dataset = (MeasuredPairs if measured else PairDataset)(given.stores, 10**9, given.size, **options)
        print(f"opened in {time.perf_counter() - start:.1f} s")
        rate = items_a_second(dataset, given.batch, given.steps)
        print(f"{rate:.1f} items/s of one worker, {1000 / rate:.1f} ms each")
    except CTHarmonizeError as error:
        print(f"loader: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def items_a_second(dataset: Dataset, batch: int, steps: int) -> float:
    """Items that one worker makes a second while nothing else is to be done."""
    source = iter(DataLoader(dataset, batch, num_workers=1, prefetch_factor=2, worker_init_fn=_one_thread))
    for _ in range(3):  # the worker is started, and what it had fetched is used up
        next(source)
    start = time.perf_counter()
    for _ in range(steps):
        next(source)
    return batch * steps / (time.perf_counter() - start)


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
