"""Which patient is trained on, which one is validated and which one is tested on: decided once, then frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.files import write_whole

SPLITS = "splits.json"
PARTS = ("train", "validation", "test")
SHARES = (0.7, 0.1, 0.2)


def drawn_part(patient: str, seed: int) -> str:
    """The part that ``patient`` falls into. Depends on nothing but its name and the seed, so that others may come."""
    digest = hashlib.sha256(f"{seed}:{patient}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return PARTS[sum(place >= sum(SHARES[: index + 1]) for index in range(len(PARTS) - 1))]


class Splits:
    """``splits.json`` beside the stores: the seed, and each patient's part, one only, which it keeps."""

    def __init__(self, seed: int, patients: dict[str, str]) -> None:
        self.seed, self.patients = seed, patients

    @classmethod
    def of(cls, folder: Path, seed: int | None = None) -> Splits:
        """Those of ``folder``, or new ones with ``seed`` (0). Raises InputError for another seed than the folder's."""
        path = folder / SPLITS
        if not path.exists():
            return cls(seed or 0, {})
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            splits = cls(int(entries["seed"]), dict(entries["patients"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"'{path}' cannot be read: {error}.") from error
        wrong = sorted({*splits.patients.values()} - {*PARTS})
        if wrong:
            raise InputError(f"'{path}' knows no part '{wrong[0]}', only {', '.join(PARTS)}.")
        if seed not in (None, splits.seed):
            raise InputError(
                f"'{path}' was drawn with the seed {splits.seed}, which is frozen: leave the seed out, or choose "
                "another folder."
            )
        return splits

    def add(self, patient: str, part: str | None = None) -> str:
        """The part of ``patient``: its old one, else ``part``, else a drawn one."""
        return self.patients.setdefault(patient, part or drawn_part(patient, self.seed))

    def write(self, folder: Path) -> None:
        """Write ``splits.json``, whole or not at all. Raises CannotRunError."""
        entries = {"seed": self.seed, "patients": dict(sorted(self.patients.items()))}
        write_whole(folder / SPLITS, json.dumps(entries, indent=1) + "\n")


def stores_for(path: Path, part: str) -> list[Path]:
    """The Zarr store at ``path``, or those in the folder; of a folder with splits, those of its ``part``.

    Raises InputError where there is none, and where one store is asked for a part that it is not in.
    """
    if (path / "zarr.json").is_file():
        own = Splits.of(path.parent).patients.get(path.stem, part)
        if own != part:
            raise InputError(f"'{path.name}' is in the part '{own}', as {SPLITS} says: it cannot serve as '{part}'.")
        return [path]
    found = sorted(path.glob("*.zarr"))
    if not found:
        commands = "'ctharmonize-train simulate' or 'ctharmonize-train import'"
        raise InputError(f"There are no stores in '{path}': make them with {commands}.")
    if not (path / SPLITS).exists():
        if any(PatientStore.recognizes(store) for store in found):
            raise InputError(f"'{path}' holds measured pairs but no {SPLITS}: import them again, which writes it.")
        return found
    parts = Splits.of(path).patients
    chosen = [store for store in found if parts.get(store.stem) == part]
    if not chosen:
        raise InputError(f"None of the {len(found)} stores in '{path}' is in the part '{part}', as {SPLITS} says.")
    return chosen
