"""Prints, for every kernel that ``simulate`` knows by name, what a wire and a water cylinder show of it.

python Testing/benchmarks/presets.py [--beam fan --focal-spot 0.6] [--kernels smooth,ge-lung] [--draws 4]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "CTHarmonize"), str(ROOT)]

from CTHarmonizeLib.ct.acquisition import parse_kernel  # noqa: E402
from CTHarmonizeLib.ct.kernels import _NAMED, _SIEMENS_NEW, _SIEMENS_OLD  # noqa: E402
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf  # noqa: E402
from CTHarmonizeTraining.simulation.checks import WaterCylinder, wire_mtf  # noqa: E402
from CTHarmonizeTraining.simulation.fan import FanBeam  # noqa: E402
from CTHarmonizeTraining.simulation.projector import Geometry  # noqa: E402
from CTHarmonizeTraining.simulation.scanner import Scanner  # noqa: E402

PIXEL = 0.2
"""mm: fine enough for the sharpest kernel."""


def known_kernels() -> list[str]:
    """Every name, Siemens' (which go by rule) at the points of their two tables."""
    vendors = [f"{vendor}-{name}".lower() for vendor, table in _NAMED.items() for name in table]
    siemens = [*(f"siemens-b{index}f" for index in _SIEMENS_OLD), *(f"siemens-br{index}" for index in _SIEMENS_NEW)]
    return [*NAMED_KERNELS, *siemens, *vendors]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernels", default=",".join(known_kernels()))
    parser.add_argument("--beam", choices=("parallel", "fan"), default="parallel")
    parser.add_argument("--detector-width", type=float)
    parser.add_argument("--focal-spot", type=float, default=0.0)
    parser.add_argument("--views", type=int, default=1000)
    parser.add_argument("--dose", type=float, default=100.0)
    parser.add_argument("--draws", type=int, default=4)
    given = parser.parse_args()
    width = given.detector_width or (0.5 if given.beam == "fan" else None)
    geometry = Geometry.covering(240.0, given.views, aperture=width, focal_spot=given.focal_spot)
    scanner = Scanner(geometry, FanBeam(geometry) if given.beam == "fan" else None)
    cylinder = WaterCylinder(scanner)
    alike: dict[Mtf, list[str]] = {}
    for name in given.kernels.split(","):
        alike.setdefault(parse_kernel(name, PIXEL), []).append(name)
    print("| kernel | f50 asked | measured | | peak asked | measured | | noise of theory | measured | |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for mtf, names in alike.items():
        text = ", ".join(names)
        if mtf.f10 > geometry.usable_band():
            print(f"| {text} | {mtf.f50:.2f} | refused: too sharp for this detector |", flush=True)
            continue
        curve = wire_mtf(scanner, mtf)
        noise = float(cylinder.noise(mtf, [given.dose], given.draws)[0][0])
        theory = float(cylinder.expected_noise(mtf, [given.dose])[0])
        pairs = ((mtf.f50, curve.f50(), 2), (mtf.peak, max(1.0, float(curve.measured.max())), 3), (theory, noise, 2))
        cells = [f"{asked:.{d}f} | {got:.{d}f} | {_percent(got / asked)}" for asked, got, d in pairs]
        print(f"| {text} | {' | '.join(cells)} |", flush=True)


def _percent(ratio: float) -> str:
    return f"{round(100 * (ratio - 1), 1) + 0.0:+.1f} %"  # + 0.0: no minus before a zero


if __name__ == "__main__":
    main()
