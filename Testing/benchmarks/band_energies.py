"""The reference energies of the method band-normalization, from simulated scans of procedural chests.

    python Testing/benchmarks/band_energies.py CACHE [SEED ...]

prints the table of CTHarmonizeLib/methods/band_normalization.py, after some minutes. CACHE keeps the drawn chests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / part) for part in ("CTHarmonize", ".")]

from CTHarmonizeLib.ct.acquisition import parse_kernel  # noqa: E402
from CTHarmonizeLib.ct.measure import measure_noise  # noqa: E402
from CTHarmonizeLib.methods import band_normalization as method  # noqa: E402
from CTHarmonizeTraining.evaluation.simulated import slices_of_phantoms  # noqa: E402
from CTHarmonizeTraining.simulation.noise import add_noise  # noqa: E402
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project  # noqa: E402
from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator  # noqa: E402

DOSE = 25.0  # percent: enough noise to measure its share, far from photon starvation
GRID = Grid(640, 640, 0.5)  # rows, columns, mm: fine enough for the sharpest kernel
VIEWS = 500  # half of the usual, which halves the dose too; the shares of the noise stay
SEEDS, HEIGHTS = (1, 2, 3, 4), (150,)  # phantoms, and z in mm


def scan(hu: np.ndarray, pixel: float, index: int) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Clean and noisy image (HU) of a slice by f50, lp/cm."""
    geometry = Geometry.covering(hu.shape[-1] * pixel, VIEWS)
    clean = forward_project(attenuation(torch.from_numpy(hu[None].astype(np.float32))), pixel, geometry)
    noisy = add_noise(clean, DOSE, geometry.pitch, seeded_generator("cpu", 0, index))
    both = torch.cat((clean, noisy), 2)
    kernels = {f50: parse_kernel(f50, GRID.pixel) for f50 in method.F50}
    return {f50: tuple(reconstruct(both, geometry, mtf, GRID).numpy()) for f50, mtf in kernels.items()}


def main(cache: Path, seeds: list[int]) -> None:
    """Print per tissue and f50: signal (HU) and noise (HU per HU of noise in water-like tissue) of each band."""
    true = slices_of_phantoms(seeds, HEIGHTS, cache, progress=print)
    moments = {(tissue, f50, part): method.Moments() for tissue in (0, 1) for f50 in method.F50 for part in (0, 1)}
    variance: dict[float, list[float]] = {f50: [] for f50 in method.F50}
    for hu, index in zip(true.hu, true.indices, strict=True):
        images = scan(hu, true.pixel, index)
        inside = method.masks(images[min(images)][0], GRID.pixel)
        for f50, (clean, noisy) in images.items():
            variance[f50].append(measure_noise(noisy, GRID.pixel).sigma ** 2)
            for tissue, mask in enumerate(inside):
                moments[tissue, f50, 0].add(clean, mask, GRID.pixel)
                moments[tissue, f50, 1].add(noisy - clean, mask, GRID.pixel)
        print(f"slice {index}: {inside[0].sum()} pixels of lung, {inside[1].sum()} of soft tissue", flush=True)
    ones = np.ones(len(method.SIGMAS_MM))
    for tissue, name in enumerate(("LUNG", "SOFT_TISSUE")):
        print(f"{name} = Reference(")
        for part, word in enumerate(("signal", "noise")):
            print(f"    {word}=(")
            for f50 in method.F50:
                energies = moments[tissue, f50, part].energies(ones)
                energies = energies / np.sqrt(np.mean(variance[f50])) if part else energies
                print("        (" + ", ".join(f"{value:.3g}" for value in energies) + "),")
            print("    ),")
        print(")")


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or list(SEEDS))
