"""DICOM collections with several reconstructions of each patient: ``mayo`` and ``folders``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from CTHarmonizeLib.ct.acquisition import REFERENCE_NOISE
from CTHarmonizeLib.ct.describe import describe
from CTHarmonizeLib.ct.dicom import text_value
from CTHarmonizeLib.ct.series import read_series
from CTHarmonizeLib.ct.volume import check_ct
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import PatientStore, Reconstruction
from CTHarmonizeTraining.importing.matching import Series, match
from CTHarmonizeTraining.importing.patient import Patient

_MAYO_PATIENT = re.compile(r"[CLN]\d{3}", re.IGNORECASE)
_FULL = re.compile(r"(?<![a-z])(full|fd(?![a-z]))", re.IGNORECASE)
_LOW = re.compile(r"(?<![a-z])(low|quarter|qd(?![a-z]))", re.IGNORECASE)
_TCIA_DESCRIPTION = re.compile(r"(full|low) dose images", re.IGNORECASE)
_MAYO_LOW_DOSE = {"C": 10.0, "L": 25.0, "N": 25.0}
_FILES_TRIED = 20


@dataclass(frozen=True)
class _Folder:
    """A folder with DICOM files: its ``parts`` below the input, and what the first CT file's tags say."""

    path: Path
    parts: tuple[str, ...]
    study: str
    description: str
    person: str

    @property
    def words(self) -> str:
        """Its path below the input."""
        return "/".join(self.parts[1:]) or self.parts[0]


@dataclass(frozen=True)
class _Found:
    """A folder and what its reconstruction is called; the kernel is added where ``with_kernel``."""

    folder: _Folder
    name: str
    dose: float | None = None
    with_kernel: bool = False


def mayo(root: Path) -> Iterator[Patient]:
    """Patients of the AAPM-Mayo low-dose CT collections: a full-dose and a low-dose series each.

    Two layouts are read, at any depth. TCIA's LDCT-and-Projection-data (doi 10.7937/9npb-2637; Moen et al., Med Phys
    48:902, 2021): ``C002/<study>/1.000000-Full Dose Images-*`` and ``*-Low Dose Images-*``, or folders named by UID,
    told by their series description; low dose is 25 % for heads (N) and abdomens (L), 10 % for chests (C);
    ``Full dose projections`` are passed over. The 2016 Grand Challenge's: ``L067/full_1mm/*.IMA`` and
    ``L067/quarter_1mm``, also below ``1mm B30`` and the like. Series are called by dose and kernel, as ``low B30f``.
    """
    found: dict[str, list[_Found]] = {}
    for folder in _folders(root, skip="projection"):
        patient = next((part for part in reversed(folder.parts) if _MAYO_PATIENT.fullmatch(part)), None)
        dose = _mayo_dose(folder)
        if patient is None or dose is None:
            missing = "no patient such as L067" if patient is None else "neither full nor low dose"
            say(f"Note: '{folder.words}' was left out: its name and description tell {missing}.")
            continue
        percent = 100.0 if dose == "full" else _MAYO_LOW_DOSE[patient[0].upper()]
        found.setdefault(patient.upper(), []).append(_Found(folder, dose, percent, with_kernel=True))
    # Its series need not share a study: the place of the slices tells enough.
    yield from _patients(found, "mayo", same_study=False)


def folders(root: Path) -> Iterator[Patient]:
    """Patients of a folder each, with a folder for each dose and kernel: ``P001/dose10_B45f/*.dcm``.

    So repeated reconstructions of one raw scan are laid out, as UCLA's with noise added to the raw data (Young et al.,
    Med Phys 44:e264, 2017), on which CTFlow was trained (Wei et al. 2023). Names are free, and may be nested
    (``P001/10/B45f``): a series is called by its path below the patient. Series match within a study
    (StudyInstanceUID) by the place of their slices. Dose is told by the noise. A folder of two persons (PatientID)
    is refused.
    """
    found: dict[str, list[_Found]] = {}
    for folder in _folders(root):
        _, patient, *name = folder.parts if len(folder.parts) > 1 else (*folder.parts, root.name)
        found.setdefault(patient, []).append(_Found(folder, "/".join(name) or patient))
    mixed = {}
    for patient, entries in found.items():
        whose = {entry.folder.person: f"'{entry.folder.words}' is of '{entry.folder.person}'" for entry in entries}
        if len(several := [words for person, words in sorted(whose.items()) if person]) > 1:
            mixed[patient] = f"it holds several persons, {' and '.join(several)}: give each a folder."
    for patient, reason in sorted(mixed.items()):
        del found[patient]
        yield Patient.refused(patient, ".zarr", reason)
    yield from _patients(found, "folders", same_study=True)


def _mayo_dose(folder: _Folder) -> str | None:
    """``full`` or ``low``, as TCIA's series description or else the nearest folder's name says; None without either."""
    if described := _TCIA_DESCRIPTION.fullmatch(folder.description):
        return described[1].lower()
    for part in reversed(folder.parts[1:]):
        full, low = bool(_FULL.search(part)), bool(_LOW.search(part))
        if full != low:
            return "full" if full else "low"
    return None


def _folders(root: Path, skip: str | None = None) -> Iterator[_Folder]:
    """Folders below ``root``, and itself, that hold CT files; without those whose name or description has ``skip``.
    Says which others hold none."""
    for path, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith(".") and not (skip and skip in name.lower()))
        files = [Path(path, name) for name in sorted(files) if not name.startswith(".") and name != "DICOMDIR"]
        parts = (root.name, *Path(path).relative_to(root).parts)
        tags = _tags(files)
        if isinstance(tags, str):
            if Path(path) != root and (files or not below):  # a folder of folders need hold no files
                say(f"Note: '{'/'.join(parts[1:])}' was left out: it holds {tags}.")
        elif not (skip and skip in tags[1].lower()):
            yield _Folder(Path(path), parts, *tags)


def _tags(files: Sequence[Path]) -> tuple[str, str, str] | str:
    """Study, series description and PatientID of the first CT file among ``files``; in words what they are instead
    where there is none."""
    import pydicom

    wanted = ["Modality", "StudyInstanceUID", "SeriesDescription", "PatientID"]
    others = set()
    for file in islice(files, _FILES_TRIED):
        try:
            tags = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
        except Exception:  # noqa: BLE001  (not DICOM, or damaged: another file will tell)
            continue
        if text_value(tags, "Modality") == "CT":
            study, description, person = (text_value(tags, name) for name in wanted[1:])
            return study, description, person
        others.add(text_value(tags, "Modality"))
    kinds = ", ".join(sorted(others - {""}))
    return f"no CT but {kinds}" if kinds else "no CT files" if files else "nothing"


def _patients(found: dict[str, list[_Found]], layout: str, same_study: bool) -> Iterator[Patient]:
    owner: dict[str, str] = {}
    for name, entries in sorted(found.items()):
        # One person under two names would end up in two parts of the split.
        twice = sorted({owner.setdefault(entry.folder.study, name) for entry in entries if entry.folder.study} - {name})
        if twice:
            reason = f"it holds the same study as the patient {twice[0]}: put both into one folder."
            yield Patient.refused(name, ".zarr", reason)
        else:
            yield Patient(name, ".zarr", partial(_write, name, entries, layout, same_study))


def _write(patient: str, entries: Sequence[_Found], layout: str, same_study: bool, path: Path) -> list[str]:
    """Write the store of ``patient``; returns what was left out. Raises InputError where nothing matches."""
    series, notes = [], []
    for entry in entries:
        try:
            volume = read_series(entry.folder.path)
            check_ct(volume)
        except InputError as error:
            notes.append(f"'{entry.folder.words}' cannot be used: {error}")
            continue
        kernel = volume.facts.kernel.replace("\\", " ") if volume.facts and entry.with_kernel else ""
        name = " ".join(filter(None, (entry.name, kernel)))
        notes.extend(f"'{name}': {warning}" for warning in volume.warnings if warning.startswith("The folder holds"))
        series.append(Series(name, volume, entry.folder.study if same_study else "", entry.dose))
    sets, reasons = match(series)
    notes.extend(reasons)
    if not sets:
        raise InputError(" ".join(notes) or "it holds no series.")
    described = [([_described(member) for member in members], [m.volume for m in members]) for members in sets]
    entries = [entry for reconstructions, _ in described for entry in reconstructions]
    notes.extend(f"'{entry.name}': {warning}" for entry in entries for warning in entry.facts["warnings"])
    PatientStore.write(path, patient, layout, described)
    return notes


def _described(series: Series) -> Reconstruction:
    description = describe(series.volume)
    acquisition = description.acquisition
    stated = series.dose is not None
    dose = series.dose if stated else REFERENCE_NOISE.dose(acquisition.f50, acquisition.noise)
    facts = {
        "kernel": description.kernel_name,
        "sources": {**description.sources, "dose": "stated" if stated else description.sources["noise"]},
        "exposure_mas": description.exposure_mas,
        "warnings": list(description.warnings),
    }
    return Reconstruction(series.name, acquisition, float(dose), facts)
