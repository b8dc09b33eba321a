"""One table of several evaluations: its numbers are those of the evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evaluation.comparison import compare

BASE = {"input": 30.0, "mtf-filter": 20.0}


def pair(source: str, target: str, own: dict[str, float], dose: float = 10.0) -> dict:
    errors = {**BASE, **own}
    bias = {name: {"value": -0.1 * value, "low": 0.0, "high": 0.0} for name, value in errors.items()}
    return {
        "source": source, "target": target, "dose": dose,
        "rmse": {
            "clean": {name: {"value": value} for name, value in errors.items()},
            "noisy": {name: {"value": value + 5.0} for name, value in errors.items()},
        },
        "psnr": {name: 60.0 - value for name, value in errors.items()},
        "ssim": {name: 1.0 - value / 100.0 for name, value in errors.items()},
        "bias": {"water-like": {"pixels": 10, **bias}, "fat": {"pixels": 0}, "bone": {"input": {"value": 99.0}}},
        "noise": {
            **{name: {"sigma": value, "mean_frequency": 2.0} for name, value in errors.items()},
            "input": None, "target": {"sigma": 10.0, "mean_frequency": 3.0},
        },
        "sharpness": {"wanted_f50": 4.0, "f50": {**dict.fromkeys(errors, 3.5), "input": None}},
        "seconds_a_slice": {"mtf-filter": 0.1, "encoder": 0.5, "mean": 2.0},
    }  # fmt: skip


def evaluation(folder: Path, method: str, own: list[dict[str, float]], **changes: object) -> Path:
    kernels = [("sharp", "smooth"), ("smooth", "sharp")]
    results = {
        "data": {"name": "chest", "slices": [1, 2]},
        "protocol": {"doses": [10.0], "target_dose": 100.0},
        "method": method, "model": None, "scores": "PSNR and SSIM: as agreed", "device": "cpu",
        "pairs": [pair(*names, errors) for names, errors in zip(kernels, own, strict=True)],
        **changes,
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def test_rows_and_values_are_those_of_the_evaluations(tmp_path: Path) -> None:
    samples = [{"encoder": 11.0, "sample": 14.0, "mean": 10.0}, {"encoder": 13.0, "sample": 16.0, "mean": 12.0}]
    evaluation(tmp_path / "in" / "a", "ctflow", samples)
    evaluation(tmp_path / "in" / "b", "band-normalization", [{"encoder": 18.0}, {"encoder": 11.0}])
    evaluation(tmp_path / "in" / "c", "unet", [{"encoder": 17.0}, {"encoder": 10.0}])
    table = compare(tmp_path / "out", tmp_path / "in").set_index("method")
    assert list(table.index) == [
        "input", "mtf-filter", "ctflow, one sample", "ctflow, mean", "band-normalization", "unet",
    ]  # fmt: skip
    mean = table.loc["ctflow, mean"]
    assert mean["rmse"] == 11.0 and mean["rmse_noisy"] == 16.0 and mean["psnr"] == 49.0
    assert mean["noise"] == pytest.approx(1.1) and mean["frequency"] == -1.0 and mean["f50"] == -0.5
    assert mean["bias"] == pytest.approx(1.2) and mean["seconds"] == 2.0
    assert table.loc["unet", "seconds"] == 0.5
    assert table.loc["ctflow, mean", "beats"] == "1 of 2"  # band normalization has 11 in the second mapping
    assert table.loc["unet", "beats"] == "2 of 2" and table.loc["band-normalization", "beats"] == ""
    assert table.loc["input", "bias"] == pytest.approx(3.0)  # bone's is blur
    assert pd.isna(table.loc["input", "f50"]) and pd.isna(table.loc["input", "noise"])
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert "| unet | 13.5 | 18.5 | 46.5 | 0.865 | 1.35 | -1.0 | -0.50 | 1.7 | 0.50 | 2 of 2 |" in text
    assert pd.read_csv(tmp_path / "out" / "comparison.csv").shape == (6, 12)


def test_several_models_of_a_method_are_told_apart(tmp_path: Path) -> None:
    for name in ("small", "large"):
        evaluation(tmp_path / "in" / name, "unet", [{"encoder": 17.0}] * 2, model={"name": name, "version": "1"})
    assert "unet (small 1)" in list(compare(tmp_path / "out", tmp_path / "in")["method"])


def test_other_scans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no folders"):
        compare(tmp_path / "out", tmp_path / "in")
    evaluation(tmp_path / "in" / "a", "unet", [{"encoder": 17.0}] * 2)
    other = evaluation(tmp_path / "in" / "b", "srresnet", [{"encoder": 17.0}] * 2, data={"name": "head", "slices": [1]})
    with pytest.raises(InputError, match=r"other scans than .*\(data\)"):
        compare(tmp_path / "out", tmp_path / "in")
    for text, words in (("{", "cannot be read"), ("[]", "holds no results")):
        (other / "results.json").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            compare(tmp_path / "out", tmp_path / "in")
