"""What each installed method costs: seconds a slice of 512 x 512, all in one run, as ratios to the MTF filter.

    python Testing/benchmarks/methods.py [FOLDER] [--models MODEL ...] [--slices 2] [--repeats 1] [--device auto]

FOLDER gets methods.json and methods.md. Models that are not installed, of methods that have none, are named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

from CTHarmonizeLib import methods  # noqa: E402
from CTHarmonizeLib.ct.volume import Volume  # noqa: E402
from CTHarmonizeLib.device import choose_device  # noqa: E402
from CTHarmonizeLib.errors import CTHarmonizeError  # noqa: E402
from CTHarmonizeLib.harmonization import harmonize  # noqa: E402
from CTHarmonizeLib.models import load_model  # noqa: E402
from CTHarmonizeLib.request import Request  # noqa: E402
from CTHarmonizeTraining.evaluation.candidates import towards  # noqa: E402
from CTHarmonizeTraining.evaluation.invariance import machine_name  # noqa: E402
from CTHarmonizeTraining.simulation.phantom import ChestPhantom  # noqa: E402

REFERENCE = "mtf-filter"


def volume(slices: int, thickness: float = 2.0) -> Volume:
    """A noisy procedural chest of 512 x 512 pixels. One slice, over and over: drawing it takes longer than most."""
    chest, side = ChestPhantom(9003), 512
    hu = chest.slice(120.0, thickness)[::2, ::2]
    margins = [(max(0, side - size) // 2, max(0, side - size + 1) // 2) for size in hu.shape]
    hu = np.pad(hu, margins, constant_values=-1000.0)[:side, :side]
    noise = np.random.default_rng(0).normal(0.0, 30.0, (slices, side, side))
    return Volume(np.rint(hu + noise).astype(np.int16), (2 * chest.pixel, 2 * chest.pixel, thickness))


def requests(models: list[Path], device: str) -> dict[str, Request]:
    """One for each method: the model of ``models`` where one is its own, else the one that is installed."""
    own = {model.method: str(model.folder) for model in map(load_model, models)}
    return {
        name: towards(
            Request(method=name, model=own.get(name), source_kernel="medium", device=device), "medium", 100.0
        )
        for name in methods.available()
    }


def seconds_a_slice(scan: Volume, request: Request) -> tuple[float, int]:
    """Of the engine's work alone (no reading, describing, loading), for each slice that is made; and the samples."""
    result = harmonize(scan, request)
    return result.report["seconds"]["harmonize"] / len(result.mean.hu), result.report["samples"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--models", nargs="*", type=Path, default=[])
    parser.add_argument("--slices", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    scan, warm = volume(options.slices), volume(1)
    found: dict[str, dict] = {}
    left_out: dict[str, str] = {}
    start = time.perf_counter()
    asked = requests(options.models, options.device)
    for repeat in range(options.repeats + 1):  # in turns, as other work on the machine comes and goes
        for name, request in asked.items():
            if name in left_out:
                continue
            try:
                seconds, samples = seconds_a_slice(scan if repeat else warm, request)
            except CTHarmonizeError as error:
                left_out[name] = str(error)
                continue
            if repeat:  # the first warms up
                found.setdefault(name, {"samples": samples, "seconds": []})["seconds"].append(seconds)
            print(f"{time.perf_counter() - start:.0f} s: {name} {seconds:.2f}", file=sys.stderr, flush=True)
    machine = machine_name(choose_device(options.device))
    results = {
        "machine": machine, "slices": options.slices, "repeats": options.repeats, "methods": found,
        "left_out": left_out,
    }  # fmt: skip
    text = markdown(results)
    print(text)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "methods.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (options.folder / "methods.md").write_text(text, encoding="utf-8")


def markdown(results: dict) -> str:
    """The table for people, fastest first."""
    median = {name: statistics.median(entry["seconds"]) for name, entry in results["methods"].items()}
    lines = [
        f"{results['machine']}; {results['slices']} slices of 512 x 512, median of {results['repeats']}, after one to "
        "warm up.",
        "",
        "| method | samples | s a slice made | times the MTF filter's |",
        "|---|---|---|---|",
    ]
    for name in sorted(median, key=median.get):
        samples = results["methods"][name]["samples"]
        ratio = _number(median[name] / median[REFERENCE]) if REFERENCE in median else "-"
        lines.append(f"| {name} | {samples} | {_number(median[name])} | {ratio} |")
    lines += ["", *(f"Not here: {name}. {why}" for name, why in results["left_out"].items())]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """With two digits at least."""
    return f"{value:.0f}" if value >= 10.0 else f"{value:.2g}"


if __name__ == "__main__":
    main()
