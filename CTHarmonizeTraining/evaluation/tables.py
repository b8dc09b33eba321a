"""Results as text: the tables for people (Markdown) and all numbers for programs (CSV)."""

from __future__ import annotations

import csv as csv_module
import io
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from CTHarmonizeLib.ct.acquisition import is_truth
from CTHarmonizeLib.report import as_json
from CTHarmonizeTraining.evaluation.candidates import BANDS, COLUMNS, ENCODER, FILTER, INPUT, MEAN, SAMPLE
from CTHarmonizeTraining.files import write_whole

_TITLES = {FILTER: "MTF filter", BANDS: "frequency bands", SAMPLE: "one sample"}
KERNEL_KEPT = "The method sets no kernel, so only mappings that keep it are judged."
_BIAS_GOAL = 1.0  # HU


def markdown(results: dict) -> str:
    """Tables of ``results``, as :func:`evaluate` makes them."""
    data, protocol = results["data"], results["protocol"]
    model = results["model"]
    columns = [name for name in COLUMNS if all(name in pair["rmse"]["clean"] for pair in results["pairs"])]
    best = MEAN if MEAN in columns else ENCODER
    who = f"{results['method']}" + (f", model {model['name']} {model['version']}" if model else "")
    lines = [
        f"# {who} on {data['name']}",
        "",
        f"{len(data['slices'])} slices of {data['thickness']:.3g} mm, {protocol['size']} x {protocol['size']} pixels "
        f"of {protocol['pixel_spacing']:g} mm, {protocol['views']} views, {protocol['photons']:.2g} photons at 100 %; "
        f"{results['samples']} samples at temperature {results['temperature']:g}, {results['precision']} on "
        f"{results['device']}. The target's kernel is told, and its noise as measured in it. Intervals: 95 %, "
        f"bootstrap over the slices.{'' if results['sets_kernel'] else f' {KERNEL_KEPT}'}",
        "",
        "## RMSE in HU inside the body, noisy target",
        "",
        *_rmse(results, columns, "noisy"),
        "## RMSE in HU inside the body, noise-free target",
        "",
        *_rmse(results, columns, "clean"),
        "## Difference in RMSE, HU, noise-free target (below 0: better)",
        "",
        *_difference(results, "clean"),
        _beaten(results, best),
        "",
        "## PSNR (dB) and SSIM",
        "",
        results["scores"] + ".",
        "",
        *_table(results, columns, lambda pair, name: f"{pair['psnr'][name]:.1f} / {pair['ssim'][name]:.3f}"),
        *_lpips(results, columns),
        "## Bias in HU against the noise-free target, input -> " + _title(results, best),
        "",
        *_bias(results, best),
        "## Noise (HU) and its mean frequency (lp/cm) in water-like tissue",
        "",
        *_table(results, [INPUT, *([SAMPLE] if SAMPLE in columns else []), best, "target"], _noise),
    ]
    if SAMPLE in columns:
        lines += ["## Deviation", "", *_deviation(results)]
    skin = ", at the skin in brackets" if data["true_detail"] else ""
    lines += [f"## Sharpness: f50 in lp/cm against the truth{skin}"]
    lines += ["", *_sharpness(results, columns), "## Bone edges: steepness relative to the noise-free target's", ""]
    lines += _table(results, [*columns, "target"], lambda pair, name: _number(pair["bone"][name]["value"]))
    lines += ["## Seconds a slice", "", f"{machines(results['pairs'])}.", ""]
    timed = [name for name in columns if name not in (INPUT, SAMPLE)]
    lines += _table(results, timed, lambda pair, name: f"{pair['seconds_a_slice'][name]:.2g}")
    return "\n".join(lines)


def machines(measured: Iterable[dict]) -> str:
    """Where the times of the ``measured`` were taken, for people."""
    found = [*dict.fromkeys(one["machine"] for one in measured)]
    if len(found) == 1:
        return f"Times: {found[0]}"
    return f"Times were taken on several machines, so they do not compare: {'; '.join(found)}"


def _title(results: dict, name: str) -> str:
    if name == ENCODER and not any(MEAN in pair["rmse"]["clean"] for pair in results["pairs"]):
        return results["method"]  # of a deterministic method its output
    return f"mean of {results['samples']}" if name == MEAN else _TITLES.get(name, name)


def write_results(output: Path, results: dict, lines: str, text: str) -> None:
    """Leave an evaluation in ``output``: results.json, ``lines`` as results.csv, and ``text`` as table.md; print it."""
    write_whole(output / "results.json", as_json(results, indent=1))
    write_whole(output / "results.csv", lines)
    write_whole(output / "table.md", text)
    print(text)


def cell(value: float | str | None, digits: int) -> str:
    """A number in a table; a dash where there is none."""
    if isinstance(value, str):
        return value or "-"
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def target_dose(kernel: str, dose: float) -> str:
    """Of a target with ``kernel``, in words: the truth has none, whatever the protocol says."""
    return "without noise" if is_truth(kernel) else f"{dose:g} %"


def _row(pair: dict) -> str:
    return f"{pair['source']} -> {pair['target']}"


def _by_dose(results: dict) -> Iterator[tuple[float, list[dict]]]:
    for dose in results["protocol"]["doses"]:
        yield dose, [pair for pair in results["pairs"] if pair["dose"] == dose]


def _table(results: dict, columns: list[str], cell: Callable[[dict, str], str]) -> list[str]:
    """One table a dose; ``cell`` is told the pair and the column."""
    titled = [_title(results, name) for name in columns]
    return _tables(results, titled, lambda pair: [cell(pair, name) for name in columns])


def _tables(results: dict, titles: list[str], cells: Callable[[dict], list[str]]) -> list[str]:
    lines = []
    for dose, pairs in _by_dose(results):
        target = target_dose(pairs[0]["target"], results["protocol"]["target_dose"])
        lines.append(f"| {dose:g} % -> {target} | {' | '.join(titles)} |")
        lines.append("|" + "---|" * (len(titles) + 1))
        lines += [f"| {_row(pair)} | {' | '.join(cells(pair))} |" for pair in pairs]
        lines.append("")
    return lines


def _interval(entry: dict, digits: int = 1) -> str:
    if entry["value"] is None:
        return "-"
    return f"{entry['value']:.{digits}f} ({entry['low']:.{digits}f} to {entry['high']:.{digits}f})"


def _rmse(results: dict, columns: list[str], truth: str) -> list[str]:
    return _table(results, columns, lambda pair, name: _interval(pair["rmse"][truth][name]))


def _lpips(results: dict, columns: list[str]) -> list[str]:
    lines = []
    for backbone, words in results["lpips"].items():
        lines += [f"## LPIPS ({backbone})", "", f"{words}. Below: more alike.", ""]
        lines += _table(results, columns, lambda pair, name, of=backbone: _number(pair["lpips"][of][name], 3))
    return lines


def _difference(results: dict, truth: str) -> list[str]:
    pairs = results["pairs"]
    names = [name for name in pairs[0]["difference"][truth] if all(name in pair["difference"][truth] for pair in pairs)]
    return _tables(results, names, lambda pair: [_interval(pair["difference"][truth][name], 2) for name in names])


def _beaten(results: dict, best: str) -> str:
    """In how many mappings the best column beat its rivals, in value and with the whole interval."""
    pairs, parts = results["pairs"], []
    for truth, words in (("noisy", "noisy"), ("clean", "noise-free")):
        entries = [list(pair["difference"][truth].values()) for pair in pairs]
        value = sum(all(entry["value"] < 0 for entry in row) for row in entries)
        sure = sum(all(entry["high"] < 0 for entry in row) for row in entries)
        parts.append(f"against the {words} target in {value} of {len(pairs)} mappings ({sure} with the whole interval)")
    return f"The {_title(results, best)} beats all the others {', '.join(parts)}."


def _bias(results: dict, best: str) -> list[str]:
    tissues = [name for name, entry in results["pairs"][0]["bias"].items() if entry["pixels"]]

    def cells(pair: dict) -> list[str]:
        entries = [pair["bias"][name] for name in tissues]
        return [f"{entry[INPUT]['value']:+.2f} -> {_interval(entry[best], 2)}" for entry in entries]

    summary = []
    for name in tissues:
        values = {
            _row(pair) + f" at {pair['dose']:g} %": pair["bias"][name][best]["value"] for pair in results["pairs"]
        }
        worst = max(values, key=lambda row: abs(values[row]))
        over = sum(abs(value) >= _BIAS_GOAL for value in values.values())
        summary.append(
            f"{name.capitalize()} ({results['regions'][name]} pixels): {_BIAS_GOAL:g} HU or more in {over} of "
            f"{len(values)} mappings; largest {values[worst]:+.2f}, {worst}."
        )
    return [*_tables(results, tissues, cells), *summary, ""]


def _noise(pair: dict, name: str) -> str:
    entry = pair["noise"][name]
    if entry is None:
        return "-"
    frequency = "-" if entry["mean_frequency"] is None else f"{entry['mean_frequency']:.1f}"
    return f"{entry['sigma']:.1f}, {frequency}"


def _deviation(results: dict) -> list[str]:
    def cells(pair: dict) -> list[str]:
        entry = pair["deviation"]
        share = _interval({key: 100 * value for key, value in entry["coverage"].items()})
        if entry["in_water"] is None:
            return [share, "-"]
        return [share, f"{entry['in_water']:.1f} / {entry['target_noise_in_water']:.1f}"]

    titles = ["noisy target within one deviation, % (68 is true)", "deviation / target's noise, water-like, HU"]
    return _tables(results, titles, cells)


def _sharpness(results: dict, columns: list[str]) -> list[str]:
    def cells(pair: dict) -> list[str]:
        sharpness = pair["sharpness"]
        row = [f"{sharpness['wanted_f50']:.2f}"]
        for name in (*columns, "target"):
            skin = sharpness.get("skin_f50", {}).get(name)
            row.append(_number(sharpness["f50"][name]) + (f" [{skin:.2f}]" if skin else ""))
        return row

    return _tables(results, ["wanted", *(_title(results, name) for name in columns), "target"], cells)


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def csv(results: dict) -> str:
    """One line a number: data, source, dose, target, measure, image, value, low, high."""
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(["data", "source", "dose", "target", "measure", "image", "value", "low", "high"])
    for pair in results["pairs"]:
        start = [results["data"]["name"], pair["source"], f"{pair['dose']:g}", pair["target"]]
        for measure, image, entry in _numbers(pair):
            low, high = (entry["low"], entry["high"]) if isinstance(entry, dict) else ("", "")
            writer.writerow([*start, measure, image, entry["value"] if isinstance(entry, dict) else entry, low, high])
    return text.getvalue()


def _numbers(pair: dict) -> Iterator[tuple[str, str, dict | float | None]]:
    """(measure, image, number or interval) of everything in a pair's scores."""
    for truth in ("noisy", "clean"):
        for measure in ("rmse", "difference"):
            yield from ((f"{measure}_{truth}", name, entry) for name, entry in pair[measure][truth].items())
    for measure in ("psnr", "ssim"):
        yield from ((measure, name, value) for name, value in pair[measure].items())
    for backbone, values in pair["lpips"].items():
        yield from ((f"lpips_{backbone}", name, value) for name, value in values.items())
    for tissue, entries in pair["bias"].items():
        yield from ((f"bias_{tissue}", name, entry) for name, entry in entries.items() if name != "pixels")
    yield from (("bone_edges", name, entry) for name, entry in pair["bone"].items())
    for name, entry in pair["noise"].items():
        yield from ((f"noise_{key}", name, value) for key, value in (entry or {}).items())
    for key in ("f50", "skin_f50"):
        yield from ((key, name, value) for name, value in pair["sharpness"].get(key, {}).items())
    yield from (("deviation", name, entry) for name, entry in pair.get("deviation", {}).items())
    yield from (("seconds_a_slice", name, value) for name, value in pair["seconds_a_slice"].items())
    yield "redrawn_share", MEAN, pair["redrawn_share"]
