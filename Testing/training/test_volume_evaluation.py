"""Thin slices made of thick ones: each measure against an independent truth, and the table of several models."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.networks.sngan import VolumeGeneratorConfig
from CTHarmonizeLib.request import Request
from CTHarmonizeTraining.data.patient import SIMULATED, PatientStore, Reconstruction
from CTHarmonizeTraining.evaluation.comparison import compare
from CTHarmonizeTraining.evaluation.pairs_table import evaluate
from CTHarmonizeTraining.evaluation.quality import not_better, volume_quality
from CTHarmonizeTraining.evaluation.volumes import ThinPair, in_plane, judge_volumes, thin_pairs

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from model_folder import CARD, make_model_folder  # noqa: E402

SLICES, SIDE = 12, 96
NETWORK = VolumeGeneratorConfig(blocks=1, channels=8, conditions=11, stride=2, gain=4.0, skip="linear", initial=0.3)
CARD_LIMITS = {
    "target": {"f50": [3.5, 4.5], "dose": [10.0, 100.0], "thickness": [0.95, 1.05]},
    "slice_thickness": [1.9, 2.1],
    "pixel_spacing": [0.6, 0.8],
    "training": {**CARD["training"], "sources": ["phantom:2"]},
}


def body() -> np.ndarray:
    """Tissue with a lung and a rod that moves from slice to slice, HU."""
    z, y, x = np.ogrid[:SLICES, :SIDE, :SIDE]
    hu = np.where((np.abs(y - 48) < 44) & (np.abs(x - 48) < 44) & (z >= 0), 40.0, -1000.0)
    hu = hu - 890.0 * (np.hypot(y - 48, x - 26) < 16)
    return hu + 200.0 * (np.hypot(y - 30 - 3 * z, x - 66) < 8)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """1 mm slices: 40 HU of noise in the source, 10 in the target, none in the truth."""
    path = tmp_path_factory.mktemp("volumes") / "V.zarr"
    rng, facts = np.random.default_rng(0), {"kernel": "medium"}
    entries, volumes = [], []
    for name, noise, dose in (("source", 40.0, 6.25), ("target", 10.0, 100.0), ("target_noise_free", 0.0, 100.0)):
        entries.append(Reconstruction(name, Acquisition(4.0, 6.6, 1.0, noise, 0.7, 1.0), dose, facts))
        hu = np.rint(body() + rng.normal(0.0, noise, (SLICES, SIDE, SIDE))).astype(np.int16)
        volumes.append(Volume(hu, (0.7, 0.7, 1.0)))
    PatientStore.write(path, "V", SIMULATED, [(entries, volumes)], "phantom:1")
    return path


def model(folder: Path, drawn: float = 0.0, **changes: object) -> Path:
    """A network that adds nothing to the interpolated source; with ``drawn`` one that adds what chance makes of it."""
    network = method_named("cnn3d").build(NETWORK.as_dict())
    network.last.weight.data.normal_(0.0, drawn) if drawn else network.last.weight.data.zero_()
    return make_model_folder(folder, network, method="cnn3d", **CARD_LIMITS, **changes)


def test_planes_are_cut_across_the_three_axes() -> None:
    """An error of e HU in all of column x is e in the sagittal image x, and the mean square of all in the others."""
    truth = np.zeros((14, 16, 20), np.int16)
    error = np.arange(20)[None, None] * np.ones((14, 16, 1))
    inside = np.ones(truth.shape, bool)
    inside[:, :, 15:] = False
    pair = ThinPair("x", None, {"target": truth}, inside, (1.0, 1.0, 1.0), None, None)
    found = {axis: in_plane(axis, error, pair, {}) for axis in range(3)}
    assert [found[axis]["images"] for axis in range(3)] == [14, 16, 15]
    together = np.sqrt(np.mean(np.arange(15.0) ** 2))
    assert [found[axis]["rmse"] for axis in range(3)] == pytest.approx([together, together, 7.0])
    steady = in_plane(2, truth + 20.0, pair, {"alex": lambda one, other: float((one - other).mean())})
    assert steady["psnr"] == pytest.approx(40.0)  # 20 log10(2000 / 20)
    assert steady["lpips"]["alex"] == 20.0
    luminance = (2.0 * 20.0 * 0.0 + 400.0) / (20.0**2 + 400.0)  # of Wang's formula: (0.01 * 2000)^2 = 400
    assert steady["ssim"] == pytest.approx(luminance, rel=1e-3)
    thin = replace(pair, truth={"target": truth[:8]}, body=inside[:8])
    assert in_plane(1, error[:8], thin, {})["ssim"] is None, "too few slices for SSIM's window"
    assert in_plane(0, error[:8], thin, {})["ssim"] < 1.0


def test_thin_slices_are_judged_beside_what_needs_no_model(store: Path, tmp_path: Path) -> None:
    """A network that adds nothing is as good as interpolation, which is known by hand."""
    asked = Request(method="cnn3d", model=str(model(tmp_path / "model")))
    (judged,) = judge_volumes(asked, store, {})
    (pair,) = thin_pairs(store, 2)
    source = PatientStore(store).sets[0].volume(0).hu.astype(float)
    thick = np.rint(source.reshape(6, 2, SIDE, SIDE).mean(1))
    places = (np.arange(12) + 0.5) / 2 - 0.5
    low = np.clip(np.floor(places).astype(int), 0, 4)
    share = np.clip(places - low, 0.0, 1.0)[:, None, None]
    by_hand = (1.0 - share) * thick[low] + share * thick[low + 1]
    for side, truth in (("clean", body()), ("noisy", pair.truth["target"])):
        expected = np.sqrt(np.mean((by_hand - truth)[pair.body] ** 2))
        assert judged["rmse"][side]["interpolated"]["value"] == pytest.approx(expected, rel=1e-5)
        assert judged["rmse"][side]["model"]["value"] == pytest.approx(expected, abs=0.2)
    # The kernel stays, so the MTF filter does nothing; the bands lower the noise.
    rmse = {name: found["value"] for name, found in judged["rmse"]["clean"].items()}
    assert rmse["mtf-filter"] == pytest.approx(rmse["interpolated"], abs=0.05)
    assert rmse["band-normalization"] < rmse["interpolated"]
    assert judged["noise"]["target"]["sigma"] == pytest.approx(10.0, rel=0.2)
    assert set(judged["seconds_a_slice"]) == set(rmse) and all(judged["seconds_a_slice"].values())

    noisy, clean = volume_quality(judged)
    assert "against the noisy target, 6.25 % to 100 % dose, 6 slices of 2 mm to 1 mm" in noisy["measure"]
    assert clean["value"] == round(rmse["model"], 2) and clean["interpolated"] == round(rmse["interpolated"], 2)
    assert "band_normalization" in clean["not_better_than"]


def test_the_card_names_what_it_does_not_beat() -> None:
    assert not_better(9.0, {"interpolated": 10.0, "mtf-filter": 9.0, "band-normalization": 8.0}) == {
        "not_better_than": ["mtf_filter", "band_normalization"]
    }
    assert not_better(7.0, {"interpolated": 10.0}) == {}


def test_evaluate_and_compare_take_volumes(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    results, out = tmp_path / "in", tmp_path / "out"
    evaluate(results / "a", volumes=[store], method="cnn3d", model=str(model(tmp_path / "a", name="Nothing")))
    assert (results / "a" / "table.md").read_text(encoding="utf-8") in capsys.readouterr().out
    kept = json.loads((results / "a" / "results.json").read_text(encoding="utf-8"))
    (told,) = kept["volumes"]
    assert kept["model"]["name"] == "Nothing" and (told["name"], told["source"]) == ("V", "phantom:1")
    values = PatientStore(store).sets[0].hu[:]
    assert told["content"] == [hashlib.sha256(values.tobytes()).hexdigest()]
    other = model(tmp_path / "b", 0.05, name="Chance")
    evaluate(results / "b", volumes=[store], method="cnn3d", model=str(other))
    frame = compare(out, results).set_index("method")
    rivals = ["interpolated", "mtf-filter", "band-normalization"]
    assert list(frame.index) == [*rivals, "cnn3d (Nothing 1)", "cnn3d (Chance 1)"]
    judged = kept["sets"][0]
    assert frame.loc["cnn3d (Nothing 1)", "ssim_sagittal"] == judged["planes"]["sagittal"]["model"]["ssim"]
    assert frame.loc["interpolated", "rmse"] == judged["rmse"]["clean"]["interpolated"]["value"]
    assert list(frame["beats"]) == ["", "", "", "no", "no"]
    text = (out / "comparison.md").read_text(encoding="utf-8")
    shown = " / ".join(f"{judged['planes'][plane]['model']['psnr']:.1f}" for plane in ("axial", "coronal", "sagittal"))
    assert shown in text and "V: 6 slices of 2 mm to 1 mm, 6.25 % to 100 % dose" in text
    assert pd.read_csv(out / "volumes.csv").shape == (5, len(frame.columns) + 1)

    kept["volumes"][0]["source"] = "phantom:9"
    (results / "b" / "results.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(InputError, match=r"other scans than .*\(volumes\)"):
        compare(out, results)


def test_wrong_use_is_one_sentence(store: Path, tmp_path: Path) -> None:
    thin = str(model(tmp_path / "thin"))
    with pytest.raises(InputError, match="makes thin slices of thick ones: give volumes"):
        evaluate(tmp_path / "x", phantom=1, method="cnn3d", model=thin)
    with pytest.raises(InputError, match="mtf-filter leaves slices as thick as they are"):
        evaluate(tmp_path / "x", volumes=[store], method="mtf-filter")
    with pytest.raises(InputError, match="either a CT volume, seeds of phantoms, or volumes"):
        evaluate(tmp_path / "x", volumes=[store], phantom=1, method="cnn3d", model=thin)
    with pytest.raises(InputError, match="holds no measured reconstructions"):
        evaluate(tmp_path / "x", volumes=[tmp_path / "none.zarr"], method="cnn3d", model=thin)
    trained = {**CARD_LIMITS, "training": {**CARD["training"], "sources": ["phantom:1"]}}
    network = method_named("cnn3d").build(NETWORK.as_dict())
    seen = make_model_folder(tmp_path / "seen", network, method="cnn3d", **trained)
    with pytest.raises(InputError, match="'V' was trained on"):
        evaluate(tmp_path / "x", volumes=[store], method="cnn3d", model=str(seen))
