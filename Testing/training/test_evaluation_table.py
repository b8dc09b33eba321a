"""The evaluation from end to end on tiny scans with an untrained model: what is kept, resumed and written."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image as plt
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from CTHarmonizeLib import engine
from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import harmonize
from CTHarmonizeLib.request import Request
from CTHarmonizeTraining.evaluation import candidates, pairs_table, perception, simulated
from CTHarmonizeTraining.evaluation.candidates import Candidates
from CTHarmonizeTraining.evaluation.invariance import _difference, cost_of_samples, differences
from CTHarmonizeTraining.evaluation.pairs_table import evaluate
from CTHarmonizeTraining.evaluation.simulated import Protocol, TrueSlices, simulated_scans, slices_of_ct

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from model_folder import CARD, make_model_folder  # noqa: E402

SMALL = {"pixel_spacing": 1.0, "size": 64, "doses": (10.0,), "views": 60, "samples": 2}
PROTOCOL = Protocol(1.0, 64, (10.0,), 100.0, 60)


def body(slices: int = 3, side: int = 96) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    radius = np.hypot((y - side / 2) / 0.8, x - side / 2)
    hu = np.where(radius < 30, 45.0, -1000.0)
    hu[(radius < 30) & (radius > 24)] = -95.0
    hu[np.hypot(y - 40, x - 38) < 8] = -850.0
    hu[np.hypot(y - 56, x - 54) < 5] = 600.0
    return np.stack([hu + index for index in range(slices)]).astype(np.float32)


@pytest.fixture(autouse=True)
def one_thread():
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model"), pixel_spacing=[0.4, 1.5])


@pytest.fixture(scope="module")
def ct(tmp_path_factory) -> Path:
    image = sitk.GetImageFromArray(body(3)[:, 4:-4].astype(np.int16))  # not square
    image.SetSpacing((1.0, 1.0, 2.5))
    path = tmp_path_factory.mktemp("ct") / "body.nrrd"
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def scans(ct, tmp_path_factory):
    return simulated_scans(slices_of_ct(ct, 2), PROTOCOL, tmp_path_factory.mktemp("scans"))


def test_scans_are_what_the_protocol_says(scans):
    clean, source, target = scans.clean["medium"], scans.sources["medium", 10.0], scans.targets["medium"]
    assert scans.true.indices == (0, 2) and scans.true.thickness == 2.5
    assert clean.shape == source.shape == (2, 64, 64) and source.dtype == target.dtype == np.int16
    water = (slice(0, 2), slice(24, 30), slice(34, 42))
    assert clean[water].mean() == pytest.approx(46.0, abs=4.0)  # the two slices are 45 and 47 HU
    low, full = (source - clean)[water].std(), (target - clean)[water].std()
    assert low / full == pytest.approx(np.sqrt(10), rel=0.35)
    noise = [(image - clean)[:, 12:52, 12:52].ravel() for image in (source, target)]
    assert abs(np.corrcoef(noise)[0, 1]) < 0.1  # independent, or a method could learn the target's own noise


def test_scans_are_read_again_and_only_the_missing_are_made(ct, tmp_path, monkeypatch):
    made = []
    scan = simulated._scan
    monkeypatch.setattr(simulated, "_scan", lambda true, number, how: made.append(number) or scan(true, number, how))
    first = simulated_scans(slices_of_ct(ct, 2), PROTOCOL, tmp_path)
    assert made == [0, 1]
    again = simulated_scans(slices_of_ct(ct, 2), PROTOCOL, tmp_path)
    assert made == [0, 1]
    np.testing.assert_array_equal(first.sources["sharp", 10.0], again.sources["sharp", 10.0])
    files = sorted(tmp_path.glob("*.npz"))
    files[1].write_bytes(files[1].read_bytes()[:5000])  # a stopped run of another program
    files[0].unlink()
    whole = simulated_scans(slices_of_ct(ct, 3), PROTOCOL, tmp_path)
    assert made == [0, 1, 0, 1, 2]
    np.testing.assert_array_equal(whole.sources["sharp", 10.0][[0, 2]], first.sources["sharp", 10.0])
    simulated_scans(slices_of_ct(ct, [1]), Protocol(1.0, 64, (10.0,), 100.0, 60, seed=5), tmp_path)
    assert made == [0, 1, 0, 1, 2, 0]
    assert not list(tmp_path.glob("*.part"))


def test_columns_are_the_engines_own(scans, model):
    """Sample and mean equal what a user gets; the encoder alone is anchored as the engine anchors samples."""
    model = make_model_folder(model, pixel_spacing=[0.4, 1.5], anchor_mm=4.0)
    volume = scans.volume(scans.sources["sharp", 10.0])
    asked = Request(method="ctflow", model=str(model), samples=2, seed=3)
    found = Candidates(asked).harmonize(volume, "sharp", "smooth", 100.0)
    users = harmonize(volume, Request(
        kernel="smooth", dose=100.0, model=str(model), samples=2, seed=3, source_kernel="sharp"))  # fmt: skip
    np.testing.assert_array_equal(found.images["sample"], users.harmonized.hu)
    np.testing.assert_array_equal(found.images["mean"], users.mean.hu)
    np.testing.assert_array_equal(found.deviation, users.standard_deviation.hu)
    linear = harmonize(volume, Request(kernel="smooth", method="mtf-filter", source_kernel="sharp"))
    np.testing.assert_array_equal(found.images["mtf-filter"], linear.mean.hu)
    still = harmonize(volume, Request(
        kernel="smooth", dose=100.0, model=str(model), samples=1, source_kernel="sharp", temperature=0.0))  # fmt: skip
    # An untrained flow adds nothing at temperature zero but the split priors' means, which start at zero.
    np.testing.assert_allclose(found.images["encoder"], still.mean.hu, atol=1.0)
    assert found.source.f50 == pytest.approx(4.0)  # the sharp kernel, held below the limit of 1 mm pixels
    assert found.target.f50 == pytest.approx(2.8)


def test_frequency_bands_are_those_of_the_whole_volume(scans):
    """They need more tissue than two of these slices show; and are told the target's noise like every method."""
    volume = scans.volume(np.tile(scans.sources["sharp", 10.0], (2, 1, 1)))
    asked = Request(kernel="smooth", dose=50.0, method="band-normalization", source_kernel="sharp")
    found = Candidates(Request(method="mtf-filter")).harmonize(volume, "sharp", "smooth", 50.0)
    np.testing.assert_array_equal(found.images["band-normalization"], harmonize(volume, asked).mean.hu)
    assert found.seconds["band-normalization"] > 0.0
    less = Candidates(Request(method="mtf-filter")).harmonize(scans.volume(volume.hu[:1]), "sharp", "smooth", 50.0)
    assert "band-normalization" not in less.images and "band-normalization" not in less.seconds
    assert less.warnings[-1].startswith("band-normalization is left out: The volume shows too little")


def test_the_targets_noise_is_told_as_measured_in_it(scans, model):
    model = make_model_folder(model, pixel_spacing=[0.4, 1.5])
    volume = scans.volume(scans.sources["sharp", 10.0])
    rng = np.random.default_rng(0)
    for sigma, told in ((12.0, 12.0), (1.0, 8.9), (300.0, 28.3)):  # the card's 100 and 10 % bound it
        reference = rng.normal(40.0, sigma, volume.shape)
        found = Candidates(Request(method="ctflow", model=str(model), samples=2)).harmonize(
            volume, "sharp", "smooth", 100.0, reference
        )
        assert found.target.noise == pytest.approx(told, rel=0.06)


def test_a_slice_is_encoded_once(scans, model, monkeypatch):
    subject = Candidates(Request(method="ctflow", model=str(model), samples=2))
    calls = []
    encode = subject.method.encode.encode
    subject.method.encode.encode = lambda *given: calls.append(1) or encode(*given)
    runs = []
    run = engine.run
    monkeypatch.setattr(candidates.engine, "run", lambda *given: runs.append(1) or run(*given))
    subject.harmonize(scans.volume(scans.sources["smooth", 10.0]), "smooth", "medium", 100.0)
    assert len(calls) == 2 and len(runs) == 6  # filter and bands at once; encoder and samples of two slices


def test_evaluate_writes_all_and_resumes(ct, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pairs_table, "FIGURES", (("sharp", "medium"),))
    evaluate(tmp_path, ct=ct, slices=2, model=str(model), **SMALL)
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["pairs"]) == 9 and results["data"]["slices"] == [0, 2]
    assert results["model"]["weights_sha256"] == json.loads((model / "card.json").read_text())["weights_sha256"]
    pair = next(p for p in results["pairs"] if (p["source"], p["target"]) == ("sharp", "smooth"))
    scans = simulated_scans(slices_of_ct(ct, 2), PROTOCOL, tmp_path / "simulated")
    body_of = pairs_table.Regions.of(scans.clean["smooth"], 1.0).body
    error = scans.sources["sharp", 10.0].astype(float) - scans.clean["smooth"]
    assert pair["rmse"]["clean"]["input"]["value"] == pytest.approx(np.sqrt(np.mean(error[body_of] ** 2)), rel=1e-4)
    difference = pair["difference"]["clean"]["mean - input"]["value"]
    assert difference == pytest.approx(
        pair["rmse"]["clean"]["mean"]["value"] - pair["rmse"]["clean"]["input"]["value"], rel=1e-6
    )
    assert pair["rmse"]["clean"]["mtf-filter"]["value"] < pair["rmse"]["clean"]["input"]["value"]
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out and table.count("| sharp -> smooth |") >= 7
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    (row,) = (
        row for row in rows
        if (row["source"], row["target"], row["measure"], row["image"]) == ("sharp", "smooth", "psnr", "mean")
    )  # fmt: skip
    assert float(row["value"]) == pair["psnr"]["mean"]
    assert [path.name for path in tmp_path.glob("*.png")] == ["sharp_10_to_medium.png"]
    assert plt.imread(tmp_path / "sharp_10_to_medium.png").std() > 0.1

    evaluated = []
    harmonized = Candidates.harmonize
    monkeypatch.setattr(
        Candidates, "harmonize", lambda self, *given: evaluated.append(given[1:3]) or harmonized(self, *given)
    )
    next((tmp_path / "mappings").glob("medium_10_to_sharp-*.json")).write_text("{cut")
    evaluate(tmp_path, ct=ct, slices=2, model=str(model), **SMALL)
    assert evaluated == [("medium", "sharp")]
    again = json.loads((tmp_path / "results.json").read_text())
    changing = {"seconds_a_slice"}
    assert [{k: v for k, v in p.items() if k not in changing} for p in again["pairs"]] == [
        {k: v for k, v in p.items() if k not in changing} for p in results["pairs"]
    ]


def test_a_method_without_samples_has_its_own_columns(ct, tmp_path):
    evaluate(tmp_path, ct=ct, slices=1, method="mtf-filter", figures=False, **{**SMALL, "samples": 4})
    results = json.loads((tmp_path / "results.json").read_text())
    pair = results["pairs"][2]
    assert set(pair["rmse"]["clean"]) == {"input", "mtf-filter", "encoder"} and "deviation" not in pair
    assert any(words.startswith("band-normalization is left out: The volume shows") for words in pair["warnings"])
    assert pair["rmse"]["clean"]["encoder"] == pair["rmse"]["clean"]["mtf-filter"]


def test_a_method_of_dose_alone_keeps_the_kernel(ct, tmp_path, monkeypatch):
    """Its scores, LPIPS against the noisy target among them, and the machine that timed it."""
    lpips = perception.Lpips(Mean(), "a stand-in", torch.device("cpu"))
    monkeypatch.setattr(pairs_table, "available", lambda names, device: dict.fromkeys(names, lpips))
    options = {"slices": 3, "method": "tv", "figures": False, "lpips": ["alex"]}
    results = evaluate(tmp_path, ct=ct, **options, **SMALL)
    assert [(pair["source"], pair["target"]) for pair in results["pairs"]] == [
        ("smooth", "smooth"), ("medium", "medium"), ("sharp", "sharp"),
    ]  # fmt: skip
    assert results["lpips"] == {"alex": "a stand-in"} and not results["sets_kernel"]
    pair = results["pairs"][2]
    assert set(pair["rmse"]["clean"]) == {"input", "mtf-filter", "band-normalization", "encoder"}
    assert "encoder - band-normalization" in pair["difference"]["clean"]
    scans = simulated_scans(slices_of_ct(ct, 3), PROTOCOL, tmp_path / "simulated")
    shown = [np.clip(scan, -1000.0, 500.0) for scan in (scans.sources["sharp", 10.0], scans.targets["sharp"])]
    expected = np.mean(np.abs((shown[0] - shown[1]).mean((1, 2)))) / 750.0
    assert pair["lpips"]["alex"]["input"] == pytest.approx(expected, rel=1e-4)
    assert set(pair["seconds_a_slice"]) == {"mtf-filter", "band-normalization", "encoder"}
    assert pair["machine"].endswith("1 thread")
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "so only mappings that keep it are judged" in table and table.count(pair["machine"]) == 1
    assert "## LPIPS (alex)\n\na stand-in." in table


class Mean(torch.nn.Module):
    """In place of LPIPS: how far the means lie apart."""

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one.mean() - other.mean()).abs()


def test_wrong_use_is_one_sentence(ct, model, tmp_path):
    with pytest.raises(InputError, match="either a CT volume, seeds"):
        evaluate(tmp_path, model=str(model))
    with pytest.raises(InputError, match="between 0 and 2"):
        evaluate(tmp_path, ct=ct, slices=[7], model=str(model), **SMALL)
    with pytest.raises(InputError, match="two samples"):
        evaluate(tmp_path, ct=ct, model=str(model), **{**SMALL, "samples": 1})


def test_phantoms_are_true_slices_and_drawn_once(monkeypatch, tmp_path):
    from CTHarmonizeTraining.simulation import phantom

    drawn = []

    class Small(phantom.ChestPhantom):
        def __init__(self, seed: int) -> None:
            self.seed, self.pixel = seed, 1.0

        def slice(self, z: float, thickness: float) -> np.ndarray:
            drawn.append((self.seed, z))
            return np.full((8, 8), self.seed + z / 1000.0, np.float32)

    monkeypatch.setattr(phantom, "ChestPhantom", Small)
    simulated.slices_of_phantoms([4], [20], tmp_path)
    true = simulated.slices_of_phantoms([4, 7], [20, 150], tmp_path)
    assert drawn == [(4, 20), (4, 150), (7, 20), (7, 150)]
    assert true.indices == (4020, 4150, 7020, 7150) and true.fine and true.pixel == 1.0
    assert true.hu[:, 0, 0] == pytest.approx([4.02, 4.15, 7.02, 7.15])


def test_division_of_the_work_and_its_cost(scans, model):
    volume = scans.volume(scans.sources["medium", 10.0])
    assert CARD["halo"] == 32
    request = Request(kernel="smooth", dose=100.0, model=str(model), samples=2, source_kernel="medium", seed=1)
    found = {one.variant: one for one in differences(volume, request, tiles=(32,), roi=Roi((9, 40), (11, 50), (1, 2)))}
    assert set(found) >= {"tile 32", "2 slices at once", "1 thread", "region", "region, tile 32"}
    for name in ("tile 32", "2 slices at once", "1 thread", "region", "region, tile 32"):
        assert max(found[name].largest.values()) <= 1 and max(found[name].rms.values()) < 0.05
    other = differences(volume, Request(**{**request.as_dict(), "precision": "auto"}), tiles=(), threads=(), batches=())
    assert [one.variant for one in other][0] == "region"
    cost = cost_of_samples(volume, request, samples=4, repeats=1)
    assert cost.ratio == pytest.approx(cost.many / cost.one) and "thread" in cost.machine


def test_a_difference_is_seen(scans, model):
    volume = scans.volume(scans.sources["medium", 10.0])
    request = Request(kernel="smooth", dose=100.0, model=str(model), samples=2, source_kernel="medium")
    one = harmonize(volume, request)
    hu = one.mean.hu.copy()
    hu[1, 20, 30] += 4
    roi = Roi((30, 32), (20, 22), (1, 2))
    changed = replace(one, mean=one.mean.with_hu(hu).crop(roi), harmonized=one.harmonized.crop(roi),
                      standard_deviation=one.standard_deviation.crop(roi))  # fmt: skip
    found = _difference("x", one, changed, roi)
    assert found.largest == {"harmonized": 0.0, "mean": 4.0, "standard_deviation": 0.0}
    assert found.rms["mean"] == 2.0 and found.share["mean"] == 0.25


def test_true_slices_are_square_and_spread(ct):
    true = slices_of_ct(ct, 3)
    assert isinstance(true, TrueSlices) and true.hu.shape == (3, 96, 96)
    assert (true.hu[:, :4] == -1000).all() and (true.hu[:, -4:] == -1000).all()
    np.testing.assert_array_equal(true.hu[:, 4:-4], np.rint(body(3)[:, 4:-4]))
