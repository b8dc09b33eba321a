"""What the demo harmonizes: a CT slice that pydicom brings along, a simulated chest, or the reader's own scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.errors import InputError

PIXEL, SIZE, THICKNESS = 0.7, 512, 2.0
"""Grid of the simulated chest: mm, pixels, mm."""


@dataclass(frozen=True)
class Case:
    """One scan and what is asked for. ``truth``: the noise-free image with the target kernel, where it is known."""

    name: str
    title: str
    volume: Volume
    kernel: str
    dose: float = 100.0
    truth: Volume | None = None


def head() -> Case:
    """A real slice of a head, 512 x 512, from the files inside pydicom; where it cannot be decoded, a spine."""
    from pydicom.data import get_testdata_file

    for name, title in (("J2K_pixelrep_mismatch.dcm", "Head"), ("CT_small.dcm", "Spine")):
        path = get_testdata_file(name, download=False)
        try:
            return Case(title.lower(), f"{title}, a real slice", read_volume(path), "medium")
        except (InputError, TypeError):  # no decoder for JPEG 2000 here, or no such file in this pydicom
            continue
    raise InputError("The installed pydicom has no CT slice that can be read: give a scan of your own with CT=path.")


def chest(slices: int, seed: int = 1) -> Case:
    """A simulated scan of a made-up chest: sharp kernel at 25 % dose, to become medium at 100 %."""
    import torch

    from CTHarmonizeTraining.simulation.noise import add_noise
    from CTHarmonizeTraining.simulation.phantom import chest_phantom
    from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project
    from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator

    fine = 0.4
    middle = 120.0 + THICKNESS * (np.arange(slices) - slices // 2)
    anatomy = torch.from_numpy(chest_phantom(seed, list(middle), THICKNESS, fine))
    geometry = Geometry.covering(anatomy.shape[-1] * fine)
    grid = Grid(SIZE, SIZE, PIXEL)
    clean = forward_project(attenuation(anatomy), fine, geometry)
    noisy = add_noise(clean, 25.0, geometry.pitch, seeded_generator("cpu", seed))
    spacing = (PIXEL, PIXEL, THICKNESS)
    corner = -PIXEL * (SIZE - 1) / 2
    source = reconstruct(noisy, geometry, NAMED_KERNELS["sharp"].limited_to(PIXEL), grid).numpy()
    volume = Volume(np.rint(source).astype(np.int16), spacing, (corner, corner, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    truth = reconstruct(clean, geometry, NAMED_KERNELS["medium"].limited_to(PIXEL), grid).numpy()
    return Case("chest", "Simulated chest", volume, "medium", truth=volume.with_hu(truth))


def own(path: str | Path, slices: int | None, kernel: str, dose: float) -> Case:
    """The reader's scan; ``slices``: only as many, from its middle."""
    volume = read_volume(path)
    if slices is not None and slices < volume.shape[0]:
        first = (volume.shape[0] - slices) // 2
        rows, columns = volume.shape[1:]
        volume = volume.crop(Roi((0, columns), (0, rows), (first, first + slices)))
    name = Path(path).expanduser().resolve().name.split(".")[0] or "scan"
    return Case(name, name, volume, kernel, dose)
