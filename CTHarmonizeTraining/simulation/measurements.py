"""``ctharmonize-train measurements``: simulated low-dose measurements in the layout of LoDoPaB-CT."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Volume, check_ct
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.importing.anatomy import MU_AIR, MU_MAX, MU_WATER
from CTHarmonizeTraining.reconstruction.rays import Rays
from CTHarmonizeTraining.simulation.phantom import HEIGHT, ChestPhantom
from CTHarmonizeTraining.simulation.projector import forward_project
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.subject import check

FILE_IMAGES = 128
"""Images in one of the collection's files."""

FINE = 1000.0 / 362.0
"""Pixels that are projected for one of the ground truth's."""

LEAST_COUNT = 0.1
"""Photons that a detector without any is taken to have seen."""

_SHIFT_MM = 20.0  # of a slice's middle, so that not all images are centred alike
_PARTS = {"train": 0.75, "validation": 0.1, "test": 0.15}


def measurements(
    output: Path,
    phantoms: int = 40,
    first: int = 1,
    ct: list[Path] | None = None,
    slices: int = 16,
    side: int = 362,
    views: int = 1000,
    beams: int = 513,
    photons: float = 4096.0,
    seed: int = 0,
) -> None:
    """Simulate low-dose measurements of chests, in the layout of LoDoPaB-CT, for methods that reconstruct.

    Made as that collection was: parallel rays without width, Poisson noise, line integrals of the ground truth, which
    is interpolated to finer pixels first, so that no reconstruction knows how it was projected.
    'ctharmonize-train import lodopab-pairs' reads the folder, as it reads the collection.

    Args:
        output: folder for the files; it must not hold such files yet.
        phantoms: how many procedural chests, each a patient.
        first: seed of the first of them.
        ct: CT volumes beside the phantoms, each a patient.
        slices: of each patient, evenly spread.
        side: of the ground truth, pixels; 26 cm wide.
        views: over 180 degrees, a multiple of 4.
        beams: over the diagonal.
        photons: a ray, without a patient.
        seed: of noise, places and parts.
    """
    check("side", side, 64 <= side <= 1024, "64 to 1024 pixels")
    check("views", views, views >= 4 and views % 4 == 0, "a positive multiple of 4")
    check("beams", beams, 8 <= beams <= 4096, "8 to 4096")
    check("photons", photons, 1.0 <= photons <= 1e9, "1 to 1e9")
    check("slices", slices, slices >= 1, "1 or more")
    if min(phantoms, first, seed) < 0:
        raise InputError("Numbers of phantoms and seeds are 0 or more.")
    output = check_output_folder(output)
    if next(output.glob("*.hdf5"), None):
        raise InputError(f"'{output}' holds measurements already: choose another folder.")
    rays = Rays(side, views, beams)
    patients: list[Callable[[], Iterator[np.ndarray]]] = [
        *(_of_phantom(first + number, slices, rays) for number in range(phantoms)),
        *(_of_volume(Path(path), slices, rays) for path in ct or []),
    ]
    if len(patients) < len(_PARTS):
        raise InputError(f"{len(patients)} patients are too few for {', '.join(_PARTS)}: give {len(_PARTS)} or more.")
    order = np.random.default_rng(seed).permutation(len(patients))
    counts = {part: max(1, round(share * len(patients))) for part, share in _PARTS.items()}
    counts["train"] = len(patients) - counts["validation"] - counts["test"]
    start = 0
    for part, count in counts.items():
        _write_part(output, part, [(int(n), patients[n]) for n in order[start : start + count]], rays, photons, seed)
        start += count


def observed(truth: Tensor, rays: Rays, photons: float, generator: torch.Generator) -> Tensor:
    """Noisy line integrals (n, views, beams) over the largest attenuation, in metres, of images (n, side, side) in
    shares of it, as LoDoPaB-CT's authors made theirs (Leuschner et al., Sci Data 8:109, 2021)."""
    fine = round(rays.side * FINE)
    pixel = rays.width / fine
    margin = int(np.ceil(fine * (2.0**0.5 - 1.0) / 2.0))  # the projector sees an inscribed circle
    images = F.interpolate(truth[:, None], size=(fine, fine), mode="bilinear", align_corners=False)
    padded = F.pad(images[:, 0], (margin, margin, margin, margin))
    lines = forward_project(padded * (MU_MAX / 1000.0), pixel, rays.geometry)
    counts = torch.poisson(photons * torch.exp(-lines), generator).clamp_min_(LEAST_COUNT)
    return (-(counts / photons).log_() / MU_MAX).permute(2, 0, 1).contiguous()


def _write_part(
    output: Path,
    part: str,
    patients: list[tuple[int, Callable[[], Iterator[np.ndarray]]]],
    rays: Rays,
    photons: float,
    seed: int,
) -> None:
    """Files of up to :data:`FILE_IMAGES` images, and the patients' numbers."""
    numbers: list[int] = []
    truths: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    files = 0
    for number, images in patients:
        random = np.random.default_rng((seed, number))
        generator = seeded_generator("cpu", seed, number)
        for image in images():
            # as the collection's authors made their ground truth of whole HU
            hu = np.rint(image) + random.uniform(0.0, 1.0, image.shape)
            share = np.clip((hu * (MU_WATER - MU_AIR) / 1000.0 + MU_WATER) / MU_MAX, 0.0, 1.0).astype(np.float32)
            seen.append(observed(torch.from_numpy(share)[None], rays, photons, generator)[0].numpy())
            truths.append(share.T)  # first axis x, as theirs
            numbers.append(number)
            if len(truths) == FILE_IMAGES:
                _write_file(output, part, files, truths, seen)
                files, truths, seen = files + 1, [], []
        say(f"{part}: patient {number}, {len(numbers)} images")
    if truths:
        _write_file(output, part, files, truths, seen)
    write_whole(output / f"patient_ids_rand_{part}.csv", "".join(f"{number}\n" for number in numbers))


def _write_file(output: Path, part: str, number: int, truths: list[np.ndarray], seen: list[np.ndarray]) -> None:
    import h5py

    output.mkdir(parents=True, exist_ok=True)
    for kind, images in (("ground_truth", truths), ("observation", seen)):
        path = output / f"{kind}_{part}_{number:03d}.hdf5"
        partial = path.with_name(f".{path.name}")
        try:
            with h5py.File(partial, "w") as file:
                file["data"] = np.stack(images)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CannotRunError(f"'{path}' cannot be written: {error}.") from error


def _of_phantom(seed: int, slices: int, rays: Rays) -> Callable[[], Iterator[np.ndarray]]:
    """HU (side, side) of slices of a procedural chest, each pixel the mean of what it covers."""

    def images() -> Iterator[np.ndarray]:
        pixel = max(0.4, rays.grid.pixel / 2.5)
        chest = ChestPhantom(seed, pixel, 2 * round(200.0 / pixel))
        random = np.random.default_rng((seed, 7))
        for z in (np.arange(slices) + 0.5) * HEIGHT / slices:
            yield _cut(chest.slice(float(z), 2.0), pixel, rays, random)

    return images


def _of_volume(path: Path, slices: int, rays: Rays) -> Callable[[], Iterator[np.ndarray]]:
    volume: Volume = read_volume(path)
    check_ct(volume)

    def images() -> Iterator[np.ndarray]:
        random = np.random.default_rng(7)
        chosen = np.unique(np.linspace(0, len(volume.hu) - 1, slices).round().astype(int))
        for hu in volume.hu[chosen]:
            yield _cut(np.maximum(hu.astype(np.float32), -1000.0), volume.pixel_spacing, rays, random)

    return images


def _cut(hu: np.ndarray, pixel: float, rays: Rays, random: np.random.Generator) -> np.ndarray:
    """The middle of a slice, ``rays.width`` wide, near its centre, on the images' pixels."""
    wanted = round(rays.width / pixel)
    margin = max(0, -(-(wanted - min(hu.shape)) // 2)) + round(_SHIFT_MM / pixel)
    padded = np.pad(hu, margin, constant_values=-1000.0)
    shift = random.uniform(-_SHIFT_MM, _SHIFT_MM, 2) / pixel
    row, column = (
        int(np.clip(round((size - wanted) / 2 + by), 0, size - wanted))
        for size, by in zip(padded.shape, shift, strict=True)
    )
    part = torch.from_numpy(padded[row : row + wanted, column : column + wanted].astype(np.float32))
    return F.adaptive_avg_pool2d(part[None, None], rays.side)[0, 0].numpy()
