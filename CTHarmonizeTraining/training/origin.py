"""What a model was trained on, with the model that it began with: for its card, and to keep test data apart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import zarr

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.patient import SIMULATED
from CTHarmonizeTraining.simulation.subject import phantom_seed


def origin(record: Mapping) -> dict:
    """A card's entries of ``training`` that say whom a model has seen, from what ``fit`` recorded.

    ``stores``: their names; ``sources``: what they show, names of files, ``phantom:SEED`` or imported patients;
    ``patients``: how many of these are people; ``unlisted``, where there are such: models that the training began with
    and whose cards do not list their sources. Raises InputError where this cannot be told.
    """
    began = initial(record)
    before = began["training"] if began else {}
    own = [_source(entry) for entry in record["stores"]]
    known = before.get("sources", [])
    unlisted = before.get("unlisted", [])
    if began and "sources" not in before:
        unlisted = [*unlisted, f"{began['name']} {began['version']}"]
    people = {source for source in own if phantom_seed(source) is None} - {*known}
    return {
        "stores": [*dict.fromkeys((*before.get("stores", []), *(entry["name"] for entry in record["stores"])))],
        "sources": [*dict.fromkeys((*known, *own))],
        "patients": before.get("patients", 0) + len(people),
        **({"unlisted": unlisted} if unlisted else {}),
    }


def initial(record: Mapping) -> Mapping | None:
    """The model that a training began with (``name``, ``version``, ``weights_sha256``, and ``training`` of its card),
    None for random weights. Raises InputError where the record does not say what it had been trained on."""
    began = record["initial"]
    if isinstance(began, str):
        raise InputError(
            f"The training began with the model '{began}', but its record does not say on what that one was trained: "
            "train again, so that the card can tell."
        )
    return began


def check_test_data(trained: Mapping, ct: Path | None, phantom: Sequence[int] | None) -> None:
    """Raise InputError where there is no test data, or where it is of what was ``trained`` on (:func:`origin`)."""
    if ct is None and not phantom:
        raise InputError("Give test data, a CT volume or seeds of phantoms: a card states measured quality.")
    seeds = {phantom_seed(source) for source in trained["sources"]}
    seen = [f"phantom:{seed}" for seed in phantom or () if seed in seeds]
    if ct is not None and {ct.name, ct.stem} & {*trained["sources"]}:
        seen.append(ct.name)
    if seen:
        raise InputError(f"'{seen[0]}' was trained on: judge the model on other data.")


def check_test_stores(trained: Mapping, stores: Sequence[Path] | None) -> None:
    """Raise InputError where there are no ``stores`` to judge a model of volumes on, or where one shows what was
    ``trained`` on."""
    if not stores:
        raise InputError("Give volumes, stores of pairs that were not trained on: a card states measured quality.")
    for path in stores:
        shown = zarr.open_group(os.fspath(path), mode="r").attrs.asdict()
        if _source({"name": path.stem, **shown}) in trained["sources"]:
            raise InputError(f"'{path.stem}' was trained on: judge the model on other data.")


def _source(entry: Mapping) -> str:
    """What the store of an entry of ``training.json`` shows."""
    source = entry.get("source") or (entry.get("patient") if entry.get("layout") != SIMULATED else None)
    if source is None:
        raise InputError(f"The store '{entry['name']}' does not say of what it was simulated: simulate it again.")
    return source
