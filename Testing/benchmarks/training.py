"""What an iteration of training costs, and what its time goes to.

``python Testing/benchmarks/training.py STORES [--config ctflow-compact] [--iterations 30] [--batch 16] [--workers 1]``:
each stage of the configuration on the device that ``fit`` would take, after ten iterations that warm up. Compare lines
of one run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

import torch  # noqa: E402

from CTHarmonizeTraining.evaluation.invariance import processor  # noqa: E402
from CTHarmonizeTraining.training import settings  # noqa: E402
from CTHarmonizeTraining.training.curves import read_log  # noqa: E402
from CTHarmonizeTraining.training.fit import fit  # noqa: E402

WARM_UP = 10
"""Iterations after which the training's log has its first times."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", type=Path)
    parser.add_argument("--config", default="ctflow-compact")
    parser.add_argument("--iterations", type=int, default=30)
    parser.add_argument("--batch", type=int, help="in place of the configuration's, for small machines")
    parser.add_argument("--workers", type=int)
    options = parser.parse_args()

    method, data = settings.load(options.config)
    if options.workers is not None:
        data = replace(data, workers=options.workers)
    for name, stage in method.stages().items():
        batch = options.batch or stage.batch
        setattr(method, name, replace(stage, iterations=WARM_UP + options.iterations, batch=batch))
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    print(f"{options.config} on {place}, {torch.get_num_threads()} threads, {data.workers} workers of the loader")
    print("| stage | batch | s an iteration | waiting for data | device busy | peak memory |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        fit(options.stores, Path(folder, "run"), method, data)
        for name, stage in method.stages().items():
            last = read_log(Path(folder, "run", name)).dropna(subset="seconds_per_iteration").iloc[-1]
            busy = f"{100 * last['busy']:.0f} %" if "busy" in last else "not told"
            print(
                f"| {name} | {stage.batch} x {data.size} x {data.size} | {last['seconds_per_iteration']:.2f} "
                f"| {100 * last['waiting_for_data']:.1f} % | {busy} | {last['memory_gib']:.1f} GiB |"
            )


if __name__ == "__main__":
    main()
