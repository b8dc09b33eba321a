"""Collections without pairs, whose images serve as anatomy for ``simulate``: ``lodopab`` and ``luna``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.volume import Volume, check_ct
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.importing.patient import Patient
from CTHarmonizeTraining.simulation.rays import LODOPAB_THICKNESS, LODOPAB_WIDTH, MU_AIR, MU_MAX, MU_WATER

LODOPAB_PIXEL = LODOPAB_WIDTH / 362.0
"""mm: all images are taken to be 26 cm wide."""

_GROUND_TRUTH = re.compile(r"ground_truth_(train|validation|test)_(\d{3})\.hdf5")
_LIDC_PATIENT = re.compile(r"LIDC-IDRI-\d{4}", re.IGNORECASE)


def lodopab_hu(image: np.ndarray) -> np.ndarray:
    """HU, int16, (rows, columns) of a LoDoPaB-CT ground truth in [0, 1].

    It was made of whole HU plus a uniform random number in [0, 1), as attenuation over :data:`MU_MAX`, transposed and
    clipped below -1001 HU: rounding down gives the scanner's values back, but for 1 HU in few pixels.
    """
    exact = (image.astype(np.float64).T * MU_MAX - MU_WATER) * 1000.0 / (MU_WATER - MU_AIR)
    return np.floor(exact).astype(np.int16)


def lodopab(root: Path) -> Iterator[Patient]:
    """Patients of LoDoPaB-CT (doi 10.5281/zenodo.3384092; Leuschner et al., Sci Data 8:109, 2021), unpacked.

    ``ground_truth_PART_NNN.hdf5`` and ``observation_PART_NNN.hdf5`` hold 128 images each in the data set ``data``:
    (n, 362, 362) in [0, 1] and (n, 1000, 513), the measured line integrals over MU_MAX. ``patient_ids_rand_PART.csv``
    has a patient's number for each image; without it a file counts as a patient. The collection's own parts (train,
    validation, test) are kept. How values were made is told by the script that the authors published with it.

    A patient's images become the slices of an anatomy; they are no neighbours, so simulate them slice by slice.
    """
    yield from lodopab_patients(root, ".nrrd", _write_lodopab)


def lodopab_patients(
    root: Path, suffix: str, write: Callable[[str, Sequence[tuple[Path, int]], Path], list[str]]
) -> Iterator[Patient]:
    """Patients of LoDoPaB-CT, each written by ``write(name, places, path)``; a place is a file of ground truth and the
    number of an image in it."""
    files = {}
    for path in sorted(root.rglob("ground_truth_*.hdf5")):
        if named := _GROUND_TRUTH.fullmatch(path.name):
            files[named[1], int(named[2])] = path
    for part in sorted({part for part, _ in files}):
        images: dict[int, list[tuple[Path, int]]] = {}
        table = next(iter(sorted(root.rglob(f"patient_ids_rand_{part}.csv"))), None)
        patients = None if table is None else _patient_ids(table)
        for number in sorted(number for of, number in files if of == part):
            path = files[part, number]
            try:
                count = _count(path)
            except InputError as error:
                yield Patient.refused(path.stem, suffix, str(error))
                continue
            for index in range(count):
                place = 128 * number + index
                if patients is None:
                    images.setdefault(number, []).append((path, index))
                elif place < len(patients):
                    images.setdefault(patients[place], []).append((path, index))
        for patient, places in sorted(images.items()):
            name = f"LoDoPaB-{part}-{patient:04d}"
            yield Patient(name, suffix, partial(write, name, places), part)


def luna(root: Path) -> Iterator[Patient]:
    """Patients of LUNA16 (luna16.grand-challenge.org), a choice of LIDC-IDRI: ``subset0/<SeriesInstanceUID>.mhd``.

    Values are HU. A file counts as a patient and is called by its UID, or, in a folder ``LIDC-IDRI-NNNN``, by that. Of
    LIDC's 1010 patients 8 have two scans, which only such folders keep together. Lung masks (``seg-lungs-LUNA16``)
    are passed over.
    """
    scans: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("*.mhd")):
        parts = path.relative_to(root).parts
        if any(part.lower().startswith("seg-") for part in parts):
            continue
        patient = next((part.upper() for part in parts[:-1] if _LIDC_PATIENT.fullmatch(part)), path.stem)
        scans.setdefault(patient, []).append(path)
    for patient, paths in sorted(scans.items()):
        yield Patient(patient, ".nrrd", partial(_write_luna, paths))


def _write_luna(paths: Sequence[Path], path: Path) -> list[str]:
    volume = read_volume(paths[0])
    check_ct(volume)
    write_nrrd(volume, path)
    return [f"'{other.name}' is a further scan of the patient and was left out." for other in paths[1:]]


def _write_lodopab(name: str, places: Sequence[tuple[Path, int]], path: Path) -> list[str]:
    slices = [hu for place in places if (hu := _image(*place)) is not None]
    if not slices:
        raise InputError("all its images are empty.")
    spacing = (LODOPAB_PIXEL, LODOPAB_PIXEL, LODOPAB_THICKNESS)
    write_nrrd(Volume(np.stack(slices), spacing), path)
    return []


def _patient_ids(table: Path) -> list[int]:
    try:
        return [int(line) for line in table.read_text(encoding="utf-8").split()]
    except ValueError as error:
        raise InputError(f"'{table.name}' is no list of patients' numbers: {error}.") from error


def _count(path: Path) -> int:
    import h5py

    try:
        with h5py.File(path, "r") as data:
            return len(data["data"])
    except (OSError, KeyError) as error:
        raise InputError(f"'{path.name}' cannot be read: it is damaged, or holds no data set 'data'.") from error


def observation_file(truth: Path) -> Path:
    """The file of the observations of a file of ground truth, whether or not it exists."""
    beside = truth.with_name(truth.name.replace("ground_truth", "observation"))
    if beside.exists():
        return beside
    # archives unpacked side by side give each kind its own folder
    return Path(str(truth.parent).replace("ground_truth", "observation"), beside.name)


def read_image(path: Path, index: int) -> np.ndarray:
    """Image, or observation, ``index`` of a file as it is stored. Raises InputError."""
    import h5py

    try:
        with h5py.File(path, "r") as data:
            return data["data"][index]
    except (OSError, KeyError, IndexError) as error:
        raise InputError(f"'{path.name}' is damaged or too short: its image {index} cannot be read.") from error


def _image(path: Path, index: int) -> np.ndarray | None:
    """HU of an image; None where the file's last places were left empty."""
    image = read_image(path, index)
    return lodopab_hu(image) if image.any() else None
