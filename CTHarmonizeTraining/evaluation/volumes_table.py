"""``ctharmonize-train evaluate --volumes``: a model that makes thin slices of thick ones, in the three planes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import zarr

from CTHarmonizeLib.device import choose_device, choose_precision
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.request import Request, choose
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.evaluation.about import about
from CTHarmonizeTraining.evaluation.candidates import towards
from CTHarmonizeTraining.evaluation.perception import available
from CTHarmonizeTraining.evaluation.scores import TARGET
from CTHarmonizeTraining.evaluation.tables import cell, machines, write_results
from CTHarmonizeTraining.evaluation.volumes import MODEL, PLANES, RIVALS, judge_volumes
from CTHarmonizeTraining.training.origin import check_test_stores

VOLUMES = "volumes"
"""Entry of results that are of volumes."""

_DIGITS = {"rmse": 1, "psnr": 1, "ssim": 3, "lpips": 3}


def evaluate_volumes(output: Path, stores: Sequence[Path], request: Request, lpips: Sequence[str]) -> dict:
    """Judge the model in ``request`` on ``stores`` of thin pairs: results.json, results.csv and table.md."""
    output = check_output_folder(output)
    choice = choose(towards(request, "medium", 100.0))
    for store in stores:
        PatientStore(store)  # before anything is computed
    if choice.model and "sources" in (trained := choice.model.card["training"]):
        check_test_stores(trained, stores)
    device = choose_device(request.device)
    distances = available(lpips, device)
    judged = []
    for number, store in enumerate(stores, start=1):
        judged += judge_volumes(request, store, distances)
        say(f"{number} of {len(stores)} stores")
    results = {
        **about(request, choice, device, choose_precision(device, request.precision), distances),
        VOLUMES: [_known_by(store) for store in stores],
        "thickness": [one["thickness"] for one in judged],
        "sets": judged,
    }
    frame = table([results])
    write_results(output, results, frame.to_csv(index=False), markdown(frame, [results]))
    return results


def _known_by(store: Path) -> dict:
    """What tells a store from another of the same name."""
    group = zarr.open_group(str(store), mode="r")
    values = [np.ascontiguousarray(group[f"{number}/hu"][:]) for number in range(group.attrs["sets"])]
    content = [hashlib.sha256(hu.tobytes()).hexdigest() for hu in values]
    return {"name": store.stem, "source": group.attrs.get("source"), "content": content}


def table(read: Sequence[dict]) -> pd.DataFrame:
    """A row for each image of each set: the rivals, which all evaluations have, and each evaluation's model."""
    lines = []
    for number, judged in enumerate(read[0]["sets"]):
        lines += [_line(judged, name, name) for name in RIVALS if name in judged["noise"]]
        lines += [_line(results["sets"][number], MODEL, _title(results, read)) for results in read]
    return pd.DataFrame(lines)


def _title(results: dict, read: Sequence[dict]) -> str:
    """The method, and its model where several of the method are compared."""
    name, model = results["method"], results["model"]
    alone = [other["method"] for other in read].count(name) == 1
    return name if alone else f"{name} ({model['name']} {model['version']})"


def _line(judged: dict, name: str, title: str) -> dict:
    truth = "clean" if judged["noise_free"] else "noisy"
    rmse = {side: values[name]["value"] for side, values in judged["rmse"].items()}
    rivals = [values["value"] for rival, values in judged["rmse"][truth].items() if rival != MODEL]
    line = {"data": judged["data"], "method": title, "rmse": rmse.get("clean"), "rmse_noisy": rmse["noisy"]}
    for plane in PLANES:
        found = judged["planes"][plane][name]
        line |= {f"{measure}_{plane}": found[measure] for measure in ("rmse", "psnr", "ssim")}
        line |= {f"lpips_{backbone}_{plane}": value for backbone, value in found["lpips"].items()}
    own, target = judged["noise"][name], judged["noise"][TARGET]
    if own and target:
        line["noise"] = own["sigma"] / target["sigma"]
        if own["mean_frequency"] is not None and target["mean_frequency"] is not None:
            line["frequency"] = own["mean_frequency"] - target["mean_frequency"]
    line["seconds"] = judged["seconds_a_slice"][name]
    line["beats"] = ("yes" if all(rmse[truth] < rival for rival in rivals) else "no") if name == MODEL else ""
    return line


def markdown(frame: pd.DataFrame, read: Sequence[dict]) -> str:
    """``frame`` for people, one table for each set."""
    lines = [
        "# Thin slices of thick ones",
        "",
        "Linear interpolation of the thick slices, as they are and through the classical methods, and the models. "
        "All is taken inside the body: the first two RMSE over all voxels, which are the same in every plane; the "
        "third, PSNR and SSIM are means over the images of a plane (axial / coronal / sagittal). "
        f"{read[0]['scores']}, or the noisy one where no other is known; so is the third RMSE. {machines(_all(read))}.",
        "",
        *(f"LPIPS ({backbone}): {words}." for backbone, words in _lpips(read).items()),
        *([""] if _lpips(read) else []),
    ]
    measures = {"rmse": "RMSE, HU", "psnr": "PSNR, dB", "ssim": "SSIM"}
    measures |= {f"lpips_{backbone}": f"LPIPS ({backbone})" for backbone in _lpips(read)}
    titles = ["RMSE, noise-free, HU", "RMSE, noisy, HU", *measures.values(), "noise / target's"]
    titles += ["noise frequency - target's, lp/cm", "s a slice made", "better than all classical"]
    for judged in read[0]["sets"]:
        thick, thin = judged["thickness"]
        source, target = judged["source"], judged["target"]
        lines += [
            f"{judged['data']}: {judged['slices']} slices of {thick:.3g} mm to {thin:.3g} mm, {source['dose']:g} % to "
            f"{target['dose']:g} % dose, f50 {source['f50']:.2f} to {target['f50']:.2f} lp/cm.",
            "",
            f"| | {' | '.join(titles)} |",
            "|" + "---|" * (len(titles) + 1),
        ]
        for _, row in frame[frame["data"] == judged["data"]].iterrows():
            cells = [cell(row.get("rmse"), 1), cell(row["rmse_noisy"], 1)]
            for measure in measures:
                digits = _DIGITS[measure.split("_")[0]]
                cells.append(" / ".join(cell(row.get(f"{measure}_{plane}"), digits) for plane in PLANES))
            cells += [cell(row.get("noise"), 2), cell(row.get("frequency"), 1), f"{row['seconds']:.2g}"]
            lines.append(f"| {row['method']} | {' | '.join([*cells, row['beats'] or '-'])} |")
        lines.append("")
    return "\n".join(lines)


def _all(read: Sequence[dict]) -> list[dict]:
    return [judged for results in read for judged in results["sets"]]


def _lpips(read: Sequence[dict]) -> dict[str, str]:
    return {backbone: words for results in read for backbone, words in results["lpips"].items()}
