"""``ctharmonize-train import``: a collection's patients as stores, and a split of them that stays."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.splits import SPLITS, Splits
from CTHarmonizeTraining.importing.anatomy import lodopab, luna
from CTHarmonizeTraining.importing.dicom import folders, mayo
from CTHarmonizeTraining.importing.observations import lodopab_pairs
from CTHarmonizeTraining.importing.patient import Patient

LOOKED_FOR = {
    "mayo": "folders of full-dose and low-dose CT series below a folder for each patient, such as L067",
    "folders": "folders of CT series below a folder for each patient",
    "lodopab": "files ground_truth_*.hdf5",
    "lodopab-pairs": "files ground_truth_*.hdf5, with observations_*.hdf5 beside them",
    "luna": "files *.mhd",
}
LAYOUTS = {"mayo": mayo, "folders": folders, "lodopab": lodopab, "lodopab-pairs": lodopab_pairs, "luna": luna}


def import_collection(
    layout: Literal["mayo", "folders", "lodopab", "lodopab-pairs", "luna"],
    input: Path,
    output: Path,
    seed: int | None = None,
) -> None:
    """Write a collection's patients into a folder, one store each, and splits.json. Patients that it has are kept.

    Args:
        layout: mayo, folders and lodopab-pairs give pairs for fit (.zarr); lodopab and luna give anatomy for simulate
            (.nrrd).
        input: folder of the collection.
        output: folder for the stores and splits.json, which says who is trained, validated and tested on.
        seed: of the split; frozen once the folder has one (0 where left out).
    """
    root = Path(input).expanduser().resolve()
    if not root.is_dir():
        raise InputError(f"There is no folder '{input}'.")
    output = check_output_folder(output)
    splits = Splits.of(output, seed)
    there, reasons = 0, []
    for patient in LAYOUTS[layout](root):
        path = output / f"{patient.name}{patient.suffix}"
        if not path.exists():
            try:
                notes = _write(patient, path, splits)
            except InputError as error:
                reasons.append(f"Patient {patient.name} was left out: {error}")
                say(reasons[-1])
                continue
            say(f"Patient {patient.name}: {splits.add(patient.name)}.")
            for note in notes:
                say(f"Note on patient {patient.name}: {note}")
        else:  # splits.json may have been lost
            splits.add(patient.name, patient.part)
        there += 1
    if not there:
        why = reasons[0] if reasons else f"Looked for: {LOOKED_FOR[layout]}."
        raise InputError(f"Nothing in '{input}' could be imported as '{layout}'. {why}")
    splits.write(output)
    say(f"{there} patients in '{output}', {len(reasons)} left out; {SPLITS} says who is in which part.")


def _write(patient: Patient, path: Path, splits: Splits) -> list[str]:
    """Write a patient, whole or not at all, and its part of the split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    try:
        _remove(partial)
        notes = patient.write(partial)
        splits.add(patient.name, patient.part)
        splits.write(path.parent)
        os.replace(partial, path)
    finally:
        _remove(partial)
    return notes


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
