"""``ctharmonize-train compare``: what 'evaluate' found for several methods, side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeTraining.evaluation import volumes_table
from CTHarmonizeTraining.evaluation.candidates import ENCODER, MEAN, RIVALS, SAMPLE
from CTHarmonizeTraining.evaluation.tables import cell, machines, target_dose
from CTHarmonizeTraining.evaluation.volumes_table import VOLUMES
from CTHarmonizeTraining.files import write_whole

TARGET = "target"

KEPT, CHANGED = "kernel kept", "kernel changed"
"""Kinds of mappings. They have tables of their own: methods that set the dose alone do the first only, and what keeps
the kernel is the easier task, so that means over other mappings would not compare."""

_BLURRED = "bone"
"""The tissue whose mean HU are a matter of sharpness: it is too thin for a bias to be told from blur."""

_DIGITS = {"rmse": 1, "rmse_noisy": 1, "psnr": 1, "ssim": 3, "noise": 2, "frequency": 1, "f50": 2, "bias": 1}

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

    def pairs(self, dose: float, kind: str) -> dict[tuple[str, str], dict]:
        """Scores of the mappings from ``dose`` of that ``kind`` that show this image, by source and target kernel."""
        return {
            (pair["source"], pair["target"]): pair
            for pair in self.results["pairs"]
            if pair["dose"] == dose and kind_of(pair) == kind and self.column in pair["rmse"]["clean"]
        }

    def rmse(self, dose: float, kind: str) -> dict[tuple[str, str], float]:
        """Against the noise-free target, by mapping."""
        return {key: pair["rmse"]["clean"][self.column]["value"] for key, pair in self.pairs(dose, kind).items()}

    def values(self, dose: float, kind: str) -> dict[str, float]:
        """By column of the table: means over the mappings, NaN where none has it."""
        name, pairs = self.column, self.pairs(dose, kind).values()

        def mean(of: Callable[[dict], float | None]) -> float:
            found = [value for pair in pairs if (value := of(pair)) is not None]
            return float(np.mean(found)) if found else float("nan")

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
            for pair in pairs
            for tissue, entry in pair["bias"].items()
            if name in entry and tissue != _BLURRED
        ]
        return {
            "rmse": mean(lambda pair: pair["rmse"]["clean"][name]["value"]),
            "rmse_noisy": mean(lambda pair: pair["rmse"]["noisy"][name]["value"]),
            "psnr": mean(lambda pair: pair["psnr"][name]),
            "ssim": mean(lambda pair: pair["ssim"][name]),
            **{
                f"lpips_{backbone}": mean(lambda pair, of=backbone: pair["lpips"][of][name])
                for backbone in self.results["lpips"]
            },
            "noise": mean(noise("sigma", lambda own, target: own / target)),
            "frequency": mean(noise("mean_frequency", lambda own, target: own - target)),
            "f50": mean(f50),
            "bias": max(biases, default=float("nan")),
            "seconds": mean(lambda pair: pair["seconds_a_slice"].get(timed)),
        }


def kind_of(pair: dict) -> str:
    return KEPT if pair["source"] == pair["target"] else CHANGED


def compare(output: Path, results: Path) -> pd.DataFrame:
    """One table of several evaluations on the same scans: comparison.md and comparison.csv; returns it.

    Every value is a mean over the mappings from one dose that keep the kernel, or that change it, but for the bias,
    which is the largest over mappings and tissues without bone. 'beats' counts the mappings in which the error against
    the noise-free target is below that of the untouched image, of the MTF filter and of band normalization.
    Evaluations on volumes get tables of their own, in volumes.csv.

    Args:
        output: folder for the table.
        results: a folder whose folders 'evaluate' wrote.
    """
    paths = sorted(results.glob("*/results.json"))
    if not paths:
        raise InputError(f"'{results}' holds no folders that 'ctharmonize-train evaluate' wrote.")
    read = {path.parent: _read(path) for path in paths}
    slices = {folder: one for folder, one in read.items() if VOLUMES not in one}
    volumes = {folder: one for folder, one in read.items() if VOLUMES in one}
    _check_same(slices, ("data", "protocol"))
    _check_same(volumes, (VOLUMES, "thickness"))
    output = check_output_folder(output)
    frame, texts = pd.DataFrame(), []
    if volumes:
        frame = volumes_table.table([*volumes.values()])
        write_whole(output / "volumes.csv", frame.to_csv(index=False))
        texts = [volumes_table.markdown(frame, [*volumes.values()])]
    if slices:
        frame = _table([*slices.values()])
        write_whole(output / "comparison.csv", frame.to_csv(index=False))
        texts = [markdown(frame, [*slices.values()]), *texts]
    text = "\n".join(texts)
    write_whole(output / "comparison.md", text)
    print(text)
    return frame


def _check_same(read: Mapping[Path, dict], keys: Sequence[str]) -> None:
    """Raise InputError where evaluations differ in what they were made on, or in an LPIPS that several have."""
    if not read:
        return
    (first, one), *others = read.items()
    for folder, other in others:
        if different := [key for key in keys if other[key] != one[key]]:
            raise InputError(
                f"'{folder}' was evaluated on other scans than '{first}' ({', '.join(different)}): evaluate all on the "
                "same."
            )
    known: dict[str, str] = {}
    for folder, other in read.items():
        for backbone, words in other["lpips"].items():
            if known.setdefault(backbone, words) != words:
                raise InputError(f"'{folder}' has another LPIPS ({backbone}) than others: evaluate all with the same.")


def _table(read: Sequence[dict]) -> pd.DataFrame:
    """A row for each image of the evaluations, dose and kind of mappings."""
    rows, lines = _rows(read), []
    for dose in read[0]["protocol"]["doses"]:
        for kind in (CHANGED, KEPT):
            judged = [row for row in rows if row.pairs(dose, kind)]
            rivals = [row.rmse(dose, kind) for row in judged if row.title in RIVALS]
            most = max((len(row.pairs(dose, kind)) for row in judged), default=0)
            for row in judged:
                own = row.rmse(dose, kind)
                common = [mapping for mapping in own if all(mapping in rival for rival in rivals)]
                beaten = sum(all(own[mapping] < rival[mapping] for rival in rivals) for mapping in common)
                beats = "" if row.title in RIVALS else f"{beaten} of {len(common)}"
                title = row.title if len(own) == most else f"{row.title} (only {len(own)} of {most} mappings)"
                line = {"dose": dose, "mappings": kind, "method": title}
                lines.append({**line, **row.values(dose, kind), "beats": beats})
    return pd.DataFrame(lines)


def markdown(table: pd.DataFrame, read: Sequence[dict]) -> str:
    """``table`` for people; ``read``: the evaluations that it is of."""
    results = max(read, key=lambda one: len(one["pairs"]))
    data, protocol = results["data"], results["protocol"]
    lpips = {backbone: words for one in read for backbone, words in one["lpips"].items()}
    measured = [pair for one in read for pair in one["pairs"]]
    words = target_dose(results["pairs"][0]["target"], protocol["target_dose"])
    lines = [
        f"# Methods on {data['name']}",
        "",
        f"{len(data['slices'])} slices, simulated scans, target {words}. {results['scores']}. "
        "Largest bias: over mappings, and over air, lung, fat and water-like tissue. Seconds: of the method alone, "
        f"without reading and describing. {machines(measured)}.",
        "",
    ]
    if any(not one["sets_kernel"] for one in read):
        lines += ["Methods that set no kernel stand only where the kernel is kept.", ""]
    for backbone, words in lpips.items():
        lines += [f"LPIPS ({backbone}): {words}.", ""]
    titles = dict(_COLUMNS)
    if lpips:
        after = [*titles].index("ssim") + 1
        shown = [(f"lpips_{backbone}", f"LPIPS ({backbone})") for backbone in lpips]
        titles = dict([*list(titles.items())[:after], *shown, *list(titles.items())[after:]])
    for (dose, kind), part in table.groupby(["dose", "mappings"], sort=False):
        count = sum(pair["dose"] == dose and kind_of(pair) == kind for pair in results["pairs"])
        lines.append(f"| {dose:g} %, {kind} ({count}) | {' | '.join(titles.values())} |")
        lines.append("|" + "---|" * (len(titles) + 1))
        for _, row in part.iterrows():
            cells = [cell(row[name], _DIGITS.get(name, 3 if name.startswith("lpips") else 2)) for name in titles]
            lines.append(f"| {row['method']} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _rows(read: Sequence[dict]) -> list[_Row]:
    """The rivals, which every evaluation has, from the one with most mappings; then each method's images."""
    most = max(read, key=lambda results: (len(results["pairs"]), len(results["lpips"])))
    rows = [_Row(name, most, name) for name in RIVALS if any(name in pair["rmse"]["clean"] for pair in most["pairs"])]
    shown = {row.title for row in rows}
    names = [results["method"] for results in read]
    for results in read:
        name = results["method"]
        if name in shown:
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
    whole = isinstance(results, dict) and (results.get("sets") or (results.get("pairs") and "protocol" in results))
    if not whole:
        raise InputError(f"'{path}' holds no results of 'ctharmonize-train evaluate'.")
    if "lpips" not in results:
        raise InputError(f"'{path}' was written by an older version of CTHarmonize: evaluate again.")
    return results
