"""``ctharmonize-train measurements``: simulated low-dose measurements in the layout of LoDoPaB-CT."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.volume import Volume, check_ct
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.simulation.phantom import HEIGHT, ChestPhantom
from CTHarmonizeTraining.simulation.projector import forward_project
from CTHarmonizeTraining.simulation.rays import LODOPAB_THICKNESS, MU_AIR, MU_MAX, MU_WATER, Rays
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.subject import check

RECORD = "measurements.json"
"""What was scanned and how: LoDoPaB-CT has no such file."""

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
        output: new or empty folder for the files; it appears when all is done.
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
    check("number of views", views, views >= 4 and views % 4 == 0, "a positive multiple of 4")
    check("number of beams", beams, 8 <= beams <= 4096, "8 to 4096")
    check("number of photons", photons, 1.0 <= photons <= 1e9, "1 to 1e9")
    check("number of slices", slices, slices >= 1, "1 or more")
    if min(phantoms, first, seed) < 0:
        raise InputError("Numbers of phantoms and seeds are 0 or more.")
    output = check_output_folder(output)
    if output.exists() and any(output.iterdir()):
        raise InputError(f"'{output}' is not empty: choose another folder.")
    rays = Rays(side, views, beams)
    patients = [
        *(_Phantom(first + number) for number in range(phantoms)),
        *(_Volume(Path(path)) for path in ct or []),
    ]
    if len(patients) < len(_PARTS):
        raise InputError(f"{len(patients)} patients are too few for {', '.join(_PARTS)}: give {len(_PARTS)} or more.")
    order = np.random.default_rng(seed).permutation(len(patients))
    counts = {part: max(1, round(share * len(patients))) for part, share in _PARTS.items()}
    counts["train"] = len(patients) - counts["validation"] - counts["test"]
    partial = output.with_name(f".{output.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        start, facts = 0, {}
        for part, count in counts.items():
            chosen = {int(number): patients[number] for number in order[start : start + count]}
            facts |= _write_part(partial, part, chosen, slices, rays, photons, seed)
            start += count
        told = {"version": __version__, **asdict(rays), "photons": photons, "slices": slices, "seed": seed}
        write_whole(partial / RECORD, json.dumps({**told, "patients": facts}, indent=1) + "\n")
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            output.rmdir()
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
    patients: Mapping[int, _Phantom | _Volume],
    slices: int,
    rays: Rays,
    photons: float,
    seed: int,
) -> dict[str, dict]:
    """Files of up to :data:`FILE_IMAGES` images, and the patients' numbers; returns what is known of each patient."""
    facts: dict[str, dict] = {}
    numbers: list[int] = []
    truths: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    files = 0
    for number, patient in patients.items():
        random = np.random.default_rng((seed, number))
        generator = seeded_generator("cpu", seed, number)
        hus, pixel, thickness = patient.slices(slices, rays)
        facts[str(number)] = {"source": patient.name, "slice_thickness": thickness}
        for image in (cut(hu, pixel, rays, random) for hu in hus):
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
    return facts


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


@dataclass(frozen=True)
class _Phantom:
    """A procedural chest."""

    seed: int

    @property
    def name(self) -> str:
        return f"phantom:{self.seed}"

    def slices(self, count: int, rays: Rays) -> tuple[Iterator[np.ndarray], float, float]:
        """``count`` slices in HU (n, n), their pixel size and their thickness in mm."""
        pixel = max(0.4, rays.grid.pixel / 2.5)
        chest = ChestPhantom(self.seed, pixel, 2 * round(200.0 / pixel))
        places = (np.arange(count) + 0.5) * HEIGHT / count
        return (chest.slice(float(z), LODOPAB_THICKNESS) for z in places), pixel, LODOPAB_THICKNESS


@dataclass(frozen=True)
class _Volume:
    """The CT volume at a path."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def slices(self, count: int, rays: Rays) -> tuple[Iterator[np.ndarray], float, float]:
        """As those of a :class:`_Phantom`; raises InputError where this is no CT volume."""
        volume: Volume = read_volume(self.path)
        check_ct(volume)
        chosen = np.unique(np.linspace(0, len(volume.hu) - 1, count).round().astype(int))
        images = (np.maximum(hu.astype(np.float32), -1000.0) for hu in volume.hu[chosen])
        return images, volume.pixel_spacing, volume.spacing[2]


def cut(hu: np.ndarray, pixel: float, rays: Rays, random: np.random.Generator) -> np.ndarray:
    """HU (side, side) of a slice (rows, columns) with pixels of ``pixel`` mm, ``rays.width`` wide, near its middle:
    each pixel the mean of what it covers, air where there is nothing."""
    middle = np.array(hu.shape) * pixel / 2.0 + random.uniform(-_SHIFT_MM, _SHIFT_MM, 2)
    edges = (np.linspace(-0.5, 0.5, rays.side + 1) * rays.width)[:, None] + middle
    rows, columns = (area_shares(edges[:, axis] / pixel, size) for axis, size in enumerate(hu.shape))
    return rows @ (hu.astype(np.float64) + 1000.0) @ columns.T - 1000.0


def area_shares(edges: np.ndarray, count: int) -> np.ndarray:
    """How much of each interval between ``edges`` lies in each of ``count`` unit cells: (intervals, count)."""
    cells = np.arange(count)
    covered = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return covered.clip(0.0) / (edges[1:] - edges[:-1])[:, None]
