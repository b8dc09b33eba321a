"""What a card says of a model's quality: beside its error that of what it has to beat, and where it does not."""

from __future__ import annotations

from collections.abc import Mapping

from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evaluation.volumes import MODEL


def volume_quality(judged: Mapping) -> list[dict]:
    """A card's ``quality`` from the scores of a set: an entry for each target, beside it what the rivals have."""
    entries = []
    (thick, thin), doses = judged["thickness"], f"{judged['source']['dose']:g} % to {judged['target']['dose']:g} % dose"
    for side, words in (("noisy", "noisy"), ("clean", "noise-free")):
        if side not in judged["rmse"]:
            continue
        rmse = dict(judged["rmse"][side])
        own = rmse.pop(MODEL)
        words = (
            f"RMSE in HU inside the body against the {words} target, {doses}, {judged['slices']} slices of {thick:g} "
            f"mm to {thin:g} mm; interval: 95 %, bootstrap over slices"
        )
        entry = {
            "data": f"{judged['data']}, simulated scans",
            "measure": words,
            **{key: round(own[key], 2) for key in ("value", "low", "high")},
            **{name.replace("-", "_"): round(of["value"], 2) for name, of in rmse.items()},
        }
        entry |= not_better(own["value"], {name: of["value"] for name, of in rmse.items()})
        entries.append(entry)
        say(f"{judged['data']}: {words}: {entry['value']}, interpolated {entry['interpolated']}")
    return entries


def not_better(own: float, rivals: Mapping[str, float]) -> dict[str, list[str]]:
    """Which of the ``rivals`` a model's error does not lie below, for its card; nothing where there is none."""
    found = [name.replace("-", "_") for name, value in rivals.items() if own >= value]
    return {"not_better_than": found} if found else {}
