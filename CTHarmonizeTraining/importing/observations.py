"""Pairs from raw low-dose measurements: ``lodopab-pairs``, our filtered back-projection beside the ground truth, and
the measurements themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib.ct.acquisition import REFERENCE_NOISE, parse_kernel
from CTHarmonizeLib.ct.describe import describe
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.patient import FBP, TRUTH, PatientStore, Reconstruction
from CTHarmonizeTraining.importing.anatomy import (
    lodopab_hu,
    lodopab_patients,
    observation_file,
    read_image,
)
from CTHarmonizeTraining.importing.patient import Patient
from CTHarmonizeTraining.simulation.measurements import RECORD
from CTHarmonizeTraining.simulation.projector import Modulation, filtered_back_projection
from CTHarmonizeTraining.simulation.rays import LODOPAB_THICKNESS, LODOPAB_WIDTH, MU_AIR, MU_MAX, MU_WATER, Rays

KERNEL = 0.5
"""f50 of our filtered back-projection, as a share of the detectors' Nyquist frequency, 7.0 lp/cm: a Hann window's."""

_SLICES = 4  # at once


def lodopab_pairs(root: Path) -> Iterator[Patient]:
    """Patients of LoDoPaB-CT as pairs: ``FBP``, reconstructed from the low-dose observations, and ``truth``; the store
    keeps the observations too.

    The layout is that of :func:`~CTHarmonizeTraining.importing.anatomy.lodopab`; its own parts are kept. Images
    without observations are left out.
    """
    yield from lodopab_patients(root, ".zarr", _write)


def reconstructed(observation: np.ndarray, side: int) -> np.ndarray:
    """HU, float32 (n, side, side), of LoDoPaB-CT observations (n, views, beams), as its ground truth lies.

    Line integrals over :data:`MU_MAX`, in metres, of rays x cos a + y sin a = s: x along the stored image's first axis,
    which are our columns, a at the middles of the views' equal parts of 180 degrees, s at the middles of the beams'
    equal parts of the image's diagonal. Their sources carry the uniform number that the ground truth was given beside
    its whole HU, half a HU in the mean; it is taken away, as :func:`lodopab_hu` does by rounding down.
    """
    rays = _rays(side, observation)
    return to_hu(back_projected(observation, rays, parse_kernel(_f50(rays), rays.grid.pixel)))


def back_projected(observation: np.ndarray, rays: Rays, mtf: Modulation) -> np.ndarray:
    """Filtered back-projection (n, side, side) of observations (n, views, beams), in shares of :data:`MU_MAX`, with the
    total MTF ``mtf``."""
    sinograms = torch.from_numpy(observation.astype(np.float32) * 1000.0).permute(1, 2, 0).contiguous()
    (image,) = filtered_back_projection(sinograms, rays.geometry, mtf, [rays.grid])
    return image.permute(2, 0, 1).numpy().astype(np.float64)


def to_hu(share: np.ndarray) -> np.ndarray:
    """HU, float32, of images in shares of :data:`MU_MAX`; half a HU less, as :func:`reconstructed` says."""
    return ((share * MU_MAX - MU_WATER) * 1000.0 / (MU_WATER - MU_AIR) - 0.5).astype(np.float32)


def _simulated(folder: Path, name: str) -> dict:
    """What 'measurements' noted of a patient; nothing of LoDoPaB-CT's own."""
    path = folder / RECORD
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["patients"][str(int(name.rpartition("-")[2]))]
    except (KeyError, OSError, TypeError, ValueError) as error:
        raise InputError(f"'{path}' is damaged: it does not say what patient {name} is.") from error


def _rays(side: int, observation: np.ndarray) -> Rays:
    """Those of observations (..., views, beams)."""
    try:
        return Rays(side, *observation.shape[-2:])
    except ValueError as error:
        raise InputError(f"These observations cannot be reconstructed. {error}") from error


def _f50(rays: Rays) -> float:
    return KERNEL * 10.0 * 0.5 / rays.geometry.pitch


def _write(name: str, places: Sequence[tuple[Path, int]], path: Path) -> list[str]:
    missing = sorted({file.name for file, _ in places if not observation_file(file).exists()})
    truths, observations = [], []
    for file, index in places:
        if file.name in missing:
            continue
        image = read_image(file, index)
        if image.any():  # a file's last places were left empty
            truths.append(lodopab_hu(image))
            observations.append((observation_file(file), index))
    if not truths:
        raise InputError("none of its images has observations.")
    side = len(truths[0])
    measured = np.stack([read_image(*place) for place in observations])
    images = [reconstructed(measured[start : start + _SLICES], side) for start in range(0, len(measured), _SLICES)]
    known = _simulated(places[0][0].parent, name)
    spacing = (LODOPAB_WIDTH / side, LODOPAB_WIDTH / side, known.get("slice_thickness", LODOPAB_THICKNESS))
    volumes = Volume(np.concatenate(images), spacing), Volume(np.stack(truths), spacing)
    kernel = _f50(_rays(side, measured))
    described = [describe(volumes[0], source_kernel=kernel), describe(volumes[1])]
    reconstructions = [
        Reconstruction(
            title,
            entry.acquisition,
            float(REFERENCE_NOISE.dose(entry.acquisition.f50, entry.acquisition.noise)),
            {"kernel": entry.kernel_name, "sources": entry.sources, "warnings": list(entry.warnings)},
        )
        for title, entry in zip((FBP, TRUTH), described, strict=True)
    ]
    PatientStore.write(path, name, "lodopab-pairs", [(reconstructions, volumes)], known.get("source"), measured)
    notes = [f"there is no '{observation_file(Path(file)).name}', so its images were left out." for file in missing]
    return notes + [f"'{entry.name}': {text}" for entry in reconstructions for text in entry.facts["warnings"]]
