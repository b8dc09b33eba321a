"""One table of several evaluations: its numbers are those of the evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.evaluation.comparison import compare

BASE = {"input": 30.0, "mtf-filter": 20.0}
MACHINE = "a processor, 2 threads"


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
        "machine": MACHINE, "lpips": {"alex": {name: value / 1000.0 for name, value in errors.items()}},
    }  # fmt: skip


CHANGED, KEPT = [("sharp", "smooth"), ("smooth", "sharp")], [("smooth", "smooth"), ("sharp", "sharp")]


def evaluation(
    folder: Path, method: str, own: list[dict[str, float]], kernels: list = CHANGED, **changes: object
) -> Path:
    results = {
        "data": {"name": "chest", "slices": [1, 2]},
        "protocol": {"doses": [10.0], "target_dose": 100.0},
        "method": method, "model": None, "scores": "PSNR and SSIM: as agreed", "device": "cpu",
        "lpips": {"alex": "AlexNet, as agreed"}, "sets_kernel": True,
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
    assert "| unet | 13.5 | 18.5 | 46.5 | 0.865 | 0.014 | 1.35 | -1.0 | -0.50 | 1.7 | 0.50 | 2 of 2 |" in text
    assert "| 10 %, kernel changed (2) |" in text and "kernel kept" not in text
    assert text.count(MACHINE) == 1 and text.count("LPIPS (alex): AlexNet, as agreed.") == 1
    assert pd.read_csv(tmp_path / "out" / "comparison.csv").shape == (6, 14)


def test_methods_of_dose_alone_stand_where_the_kernel_is_kept(tmp_path: Path) -> None:
    """Means over other mappings would not compare: here the kept ones are easier by 10 HU."""
    bands = {"band-normalization": 11.0}
    own = [{"encoder": 17.0} | bands, {"encoder": 10.0} | bands, {"encoder": 7.0} | bands, {"encoder": 5.0} | bands]
    evaluation(tmp_path / "in" / "a-nlm", "nlm", [{"encoder": 12.0}, {"encoder": 8.0}], KEPT, sets_kernel=False)
    evaluation(tmp_path / "in" / "b-unet", "unet", own, CHANGED + KEPT)
    evaluation(tmp_path / "in" / "c-wgan", "wgan-mse", [{"encoder": 12.0}] * 3, CHANGED + KEPT[:1])
    table = compare(tmp_path / "out", tmp_path / "in").set_index(["mappings", "method"])
    rivals = ["input", "mtf-filter", "band-normalization"]
    assert list(table.loc["kernel changed"].index) == [*rivals, "unet", "wgan-mse"]
    assert list(table.loc["kernel kept"].index) == [*rivals, "nlm", "unet", "wgan-mse (only 1 of 2 mappings)"]
    assert table.loc[("kernel kept", "nlm"), "rmse"] == 10.0 and table.loc[("kernel kept", "unet"), "rmse"] == 6.0
    assert table.loc[("kernel changed", "unet"), "rmse"] == 13.5
    assert table.loc[("kernel kept", "nlm"), "beats"] == "1 of 2"  # 12 HU is no better than the bands' 11
    assert table.loc[("kernel changed", "unet"), "beats"] == "1 of 2"
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert text.index("kernel changed (2)") < text.index("kernel kept (2)")
    assert "Methods that set no kernel stand only where the kernel is kept." in text


def test_lpips_and_times_that_do_not_compare_are_told(tmp_path: Path) -> None:
    evaluation(tmp_path / "in" / "a", "unet", [{"encoder": 17.0}] * 2)
    plain = [pair(*names, {"encoder": 9.0}) | {"lpips": {}, "machine": "another"} for names in CHANGED]
    evaluation(tmp_path / "in" / "b", "srresnet", [{"encoder": 9.0}] * 2, lpips={}, pairs=plain)
    table = compare(tmp_path / "out", tmp_path / "in").set_index("method")
    assert pd.isna(table.loc["srresnet", "lpips_alex"]) and table.loc["unet", "lpips_alex"] == pytest.approx(0.017)
    text = (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    assert f"several machines, so they do not compare: {MACHINE}; another" in text
    evaluation(tmp_path / "in" / "c", "wgan-mse", [{"encoder": 9.0}] * 2, lpips={"alex": "other weights"})
    with pytest.raises(InputError, match=r"another LPIPS \(alex\)"):
        compare(tmp_path / "out", tmp_path / "in")


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
    old = json.loads((tmp_path / "in" / "a" / "results.json").read_text(encoding="utf-8"))
    del old["lpips"]
    (other / "results.json").write_text(json.dumps(old), encoding="utf-8")
    with pytest.raises(InputError, match="older version of CTHarmonize: evaluate again"):
        compare(tmp_path / "out", tmp_path / "in")
