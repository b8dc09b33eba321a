"""What each installed method costs: seconds a slice of 512 x 512, all in one run, as ratios to the MTF filter.

    python Testing/benchmarks/methods.py [--slices 4] [--device auto] [--repeats 3]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

from CTHarmonizeLib import methods  # noqa: E402
from CTHarmonizeLib.ct.volume import Volume  # noqa: E402
from CTHarmonizeLib.errors import CTHarmonizeError  # noqa: E402
from CTHarmonizeLib.harmonization import harmonize  # noqa: E402
from CTHarmonizeLib.request import Request  # noqa: E402
from CTHarmonizeTraining.evaluation.invariance import processor  # noqa: E402
from CTHarmonizeTraining.simulation.phantom import ChestPhantom  # noqa: E402

REFERENCE = "mtf-filter"


def volume(slices: int) -> Volume:
    """A noisy procedural chest of 512 x 512 pixels."""
    chest = ChestPhantom(9003)
    hu = np.stack([chest.slice(100.0 + 5.0 * number, 2.0)[::2, ::2] for number in range(slices)])
    side = 512
    hu = np.pad(hu, ((0, 0), *[(max(0, side - size) // 2, max(0, side - size + 1) // 2) for size in hu.shape[1:]]),
                constant_values=-1000.0)[:, :side, :side]  # fmt: skip
    noise = np.random.default_rng(0).normal(0.0, 30.0, hu.shape)
    return Volume(np.rint(hu + noise).astype(np.int16), (2 * chest.pixel, 2 * chest.pixel, 2.0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    scan, seconds, left_out = volume(options.slices), {}, {}
    requests = {}
    for name, method in methods.available().items():
        fields = method.target_fields
        requests[name] = Request(
            kernel="smooth" if "kernel" in fields and not method.makes_truth else None,
            dose=100.0 if "dose" in fields and not method.makes_truth else None,
            method=name, source_kernel="medium", device=options.device,
        )  # fmt: skip
        seconds[name] = []
    for repeat in range(options.repeats + 1):  # in turns; the first warms up
        for name, request in requests.items():
            if name in left_out:
                continue
            try:
                report = harmonize(scan, request).report
            except CTHarmonizeError as error:
                left_out[name] = str(error)
                continue
            if repeat:
                seconds[name].append(report["seconds"]["harmonize"] / options.slices)
    print(f"{processor()}, {torch.get_num_threads()} threads, device {options.device}; {options.slices} slices of "
          f"512 x 512, median of {options.repeats}")  # fmt: skip
    print("| method | s a slice | times the MTF filter's |\n|---|---|---|")
    reference = statistics.median(seconds[REFERENCE])
    for name, found in sorted(seconds.items(), key=lambda item: statistics.median(item[1] or [float("inf")])):
        if found:
            print(f"| {name} | {statistics.median(found):.2f} | {statistics.median(found) / reference:.0f} |")
    for name, why in left_out.items():
        print(f"{name}: {why}")


if __name__ == "__main__":
    main()
