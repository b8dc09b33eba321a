"""``ctharmonize-train compare``: what 'evaluate' found for several methods, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeTraining.evaluation.candidates import ENCODER, FILTER, INPUT, MEAN, SAMPLE
from CTHarmonizeTraining.evaluation.tables import target_dose
from CTHarmonizeTraining.files import write_whole

TARGET = "target"

_RIVALS = (INPUT, FILTER, "band-normalization")
"""Rows that a learned method has to beat."""

_BLURRED = "bone"
"""The tissue whose mean HU are a matter of sharpness: it is too thin for a bias to be told from blur."""

_COLUMNS = {
    "rmse": "RMSE, noise-free, HU",
    "rmse_noisy": "RMSE, noisy, HU",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "noise": "noise / target's",
    "frequency": "noise frequency - target's, lp/cm",
    "f50": "f50 - wanted, lp/cm",
    "bias": "largest bias but bone's, HU",
    "seconds": "s a slice",
    "beats": "mappings better than all classical",
}


@dataclass(frozen=True)
class _Row:
    """An image of an evaluation: ``column`` of ``results`` under the ``title`` of its method."""

    title: str
    results: dict
    column: str

    def mean(self, of: Callable[[dict], float | None], doses: float) -> float:
        """Over the mappings from ``doses``; NaN where none has it."""
        found = [value for pair in self._pairs(doses) if (value := of(pair)) is not None]
        return float(np.mean(found)) if found else float("nan")

    def _pairs(self, dose: float) -> list[dict]:
        return [pair for pair in self.results["pairs"] if pair["dose"] == dose]

    def rmse(self, dose: float) -> dict[tuple[str, str], float]:
        """Against the noise-free target, by mapping."""
        return {
            (pair["source"], pair["target"]): pair["rmse"]["clean"][self.column]["value"] for pair in self._pairs(dose)
        }

    def values(self, dose: float) -> dict[str, float]:
        name = self.column

        def noise(key: str, relative: Callable[[float, float], float]) -> Callable[[dict], float | None]:
            def of(pair: dict) -> float | None:
                own, target = pair["noise"][name], pair["noise"][TARGET]
                if own is None or target is None or own[key] is None or target[key] is None:
                    return None
                return relative(own[key], target[key])

            return of

        def f50(pair: dict) -> float | None:
            found = pair["sharpness"]["f50"][name]
            return None if found is None else found - pair["sharpness"]["wanted_f50"]

        timed = MEAN if name == SAMPLE else name
        biases = [
            abs(entry[name]["value"])
            for pair in self._pairs(dose)
            for tissue, entry in pair["bias"].items()
            if name in entry and tissue != _BLURRED
        ]
        return {
            "rmse": self.mean(lambda pair: pair["rmse"]["clean"][name]["value"], dose),
            "rmse_noisy": self.mean(lambda pair: pair["rmse"]["noisy"][name]["value"], dose),
            "psnr": self.mean(lambda pair: pair["psnr"][name], dose),
            "ssim": self.mean(lambda pair: pair["ssim"][name], dose),
            "noise": self.mean(noise("sigma", lambda own, target: own / target), dose),
            "frequency": self.mean(noise("mean_frequency", lambda own, target: own - target), dose),
            "f50": self.mean(f50, dose),
            "bias": max(biases, default=float("nan")),
            "seconds": self.mean(lambda pair: pair["seconds_a_slice"].get(timed), dose),
        }


def compare(output: Path, results: Path) -> pd.DataFrame:
    """One table of several evaluations on the same scans: comparison.md and comparison.csv; returns it.

    Every value is a mean over the mappings from one dose, but for the bias, which is the largest over mappings and
    tissues without bone. 'beats' counts the mappings in which the error against the noise-free target is below that
    of the untouched image, of the MTF filter and of band normalization, where that was evaluated too.

    Args:
        output: folder for the table.
        results: a folder whose folders 'evaluate' wrote.
    """
    paths = sorted(results.glob("*/results.json"))
    if not paths:
        raise InputError(f"'{results}' holds no folders that 'ctharmonize-train evaluate' wrote.")
    read = [_read(path) for path in paths]
    first = read[0]
    for path, other in zip(paths, read, strict=True):
        different = [key for key in ("data", "protocol") if other[key] != first[key]]
        if different:
            raise InputError(
                f"'{path.parent}' was evaluated on other scans than '{paths[0].parent}' ({', '.join(different)}): "
                "evaluate all on the same."
            )
    output = check_output_folder(output)
    rows = _rows(read)
    lines = []
    for dose in first["protocol"]["doses"]:
        rivals = [row.rmse(dose) for row in rows if row.title in _RIVALS]
        for row in rows:
            own = row.rmse(dose)
            common = [mapping for mapping in own if all(mapping in rival for rival in rivals)]
            beaten = sum(all(own[mapping] < rival[mapping] for rival in rivals) for mapping in common)
            beats = "" if row.title in _RIVALS else f"{beaten} of {len(common)}"
            lines.append({"dose": dose, "method": row.title, **row.values(dose), "beats": beats})
    table = pd.DataFrame(lines)
    write_whole(output / "comparison.csv", table.to_csv(index=False))
    text = markdown(table, first)
    write_whole(output / "comparison.md", text)
    print(text)
    return table


def markdown(table: pd.DataFrame, results: dict) -> str:
    """``table`` for people; ``results``: one of the evaluations, for what all have in common."""
    data, protocol = results["data"], results["protocol"]
    words = target_dose(results["pairs"][0]["target"], protocol["target_dose"])
    lines = [
        f"# Methods on {data['name']}",
        "",
        f"{len(data['slices'])} slices, simulated scans; mean over {len(results['pairs']) // len(protocol['doses'])} "
        f"kernel mappings for each dose, target {words}. {results['scores']}. Largest bias: over "
        f"mappings, and over air, lung, fat and water-like tissue. Computed on {results['device']}.",
        "",
    ]
    digits = {"rmse": 1, "rmse_noisy": 1, "psnr": 1, "ssim": 3, "noise": 2, "frequency": 1, "f50": 2, "bias": 1}
    for dose, part in table.groupby("dose"):
        lines.append(f"| {dose:g} % | {' | '.join(_COLUMNS.values())} |")
        lines.append("|" + "---|" * (len(_COLUMNS) + 1))
        for _, row in part.iterrows():
            cells = [_cell(row[name], digits.get(name, 2)) for name in _COLUMNS]
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(value: float | str, digits: int) -> str:
    if isinstance(value, str):
        return value or "-"
    return "-" if not np.isfinite(value) else f"{value:.{digits}f}"


def _rows(read: Sequence[dict]) -> list[_Row]:
    """Untouched input and MTF filter, which every evaluation has, from the first; then each method's images."""
    rows = [_Row(INPUT, read[0], INPUT), _Row(FILTER, read[0], FILTER)]
    names = [results["method"] for results in read]
    for results in read:
        name = results["method"]
        if name == FILTER:
            continue
        if names.count(name) > 1:  # several models of one method
            name = f"{name} ({results['model']['name']} {results['model']['version']})" if results["model"] else name
        if MEAN in results["pairs"][0]["rmse"]["clean"]:
            rows += [_Row(f"{name}, one sample", results, SAMPLE), _Row(f"{name}, mean", results, MEAN)]
        else:
            rows.append(_Row(name, results, ENCODER))
    return rows


def _read(path: Path) -> dict:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read: {error}.") from error
    if not isinstance(results, dict) or not results.get("pairs") or "protocol" not in results:
        raise InputError(f"'{path}' holds no results of 'ctharmonize-train evaluate'.")
    return results
