"""Prints how far tiles, regions, batches and threads change a result, and what many samples cost over one.

python Testing/benchmarks/invariance.py CT [--model FOLDER] [--slices 10:13] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

from CTHarmonizeLib.ct.io import read_volume  # noqa: E402
from CTHarmonizeLib.ct.volume import Roi  # noqa: E402
from CTHarmonizeLib.errors import CTHarmonizeError  # noqa: E402
from CTHarmonizeLib.request import Request  # noqa: E402
from CTHarmonizeTraining.evaluation.invariance import IMAGES, cost_of_samples, differences  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("input", type=Path, help="CT volume: image file or DICOM folder")
    parser.add_argument("--method", default="ctflow")
    parser.add_argument("--model", help="model folder, or the name of an installed model")
    parser.add_argument("--kernel", default="medium")
    parser.add_argument("--dose", type=float, default=100.0)
    parser.add_argument("--source-kernel")
    parser.add_argument("--slices", help="half-open range a:b; the middle two where left out")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiles", type=int, nargs="*", default=[256, 128])
    parser.add_argument("--batches", type=int, nargs="*", default=[2])
    parser.add_argument("--threads", type=int, nargs="*", default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    given = parser.parse_args()
    try:
        volume = read_volume(given.input)
        rows, columns, count = *volume.shape[1:], volume.shape[0]
        first, _, last = (given.slices or f"{max(0, count // 2 - 1)}:{count // 2 + 1}").partition(":")
        volume = volume.crop(Roi((0, columns), (0, rows), (int(first), int(last))))
        request = Request(
            kernel=given.kernel,
            dose=None if given.method == "mtf-filter" else given.dose,
            method=given.method,
            model=given.model,
            source_kernel=given.source_kernel,
            samples=given.samples,
            seed=given.seed,
            device=given.device,
        )
        found = differences(volume, request, given.tiles, given.batches, given.threads)
        cost = cost_of_samples(volume, request, given.samples, given.repeats)
    except CTHarmonizeError as error:
        print(f"invariance: {error}", file=sys.stderr)
        return error.exit_status
    print(f"{volume.shape[0]} slices of {columns} x {rows}, {given.samples} samples; largest / RMS in HU (share)\n")
    print(f"| against untiled float32 | {' | '.join(image.replace('_', ' ') for image in IMAGES)} |")
    print("|---|" + "---|" * len(IMAGES))
    for one in found:
        cells = [f"{one.largest[i]:.3g} / {one.rms[i]:.2g} ({100 * one.share[i]:.2g} %)" for i in IMAGES]
        print(f"| {one.variant} | {' | '.join(cells)} |")
    print(
        f"\n{cost.samples} samples: {cost.many:.2f} s, one: {cost.one:.2f} s, ratio {cost.ratio:.2f} ({cost.machine})"
    )
    if given.json:
        content = {"differences": [asdict(one) for one in found], "cost": asdict(cost), "shape": volume.shape}
        given.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
