"""Calibration: the score, the intervals, the factor, and the command from a model folder to a calibrated one."""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save
from scipy.stats import norm
from test_import import PIXEL, phantom
from test_training import store as store  # a fixture

from CTHarmonizeLib import engine
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import acquisition_vector, acquisitions_of
from CTHarmonizeLib.methods.ctflow import CTFlowMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.patient import PatientStore, Reconstruction
from CTHarmonizeTraining.evaluation import calibration, reliability
from CTHarmonizeTraining.evaluation.calibration import calibrate, chosen_temperature
from CTHarmonizeTraining.evaluation.ensembles import Pairs, Sampler
from CTHarmonizeTraining.evaluation.measures import Estimate
from CTHarmonizeTraining.evaluation.reliability import LEVELS, Crop

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from model_folder import make_model_folder  # noqa: E402


def gaussian_crops(count: int = 20, pixels: int = 4000, samples: int = 64, ensemble: int = 16, too_small: float = 1.0):
    """Crops of normal truths of several deviations, and ensembles whose deviation is ``too_small`` times that."""
    random = np.random.default_rng(1)
    crops = []
    for number in range(count):
        sigma = np.exp(random.uniform(1.0, 4.0, pixels))
        truth = random.normal(0.0, sigma)
        drawn = random.normal(0.0, too_small * sigma, (samples, pixels))
        mean, deviation = drawn[:ensemble].mean(0), drawn[:ensemble].std(0, ddof=1)
        store, noise = ("one", "two")[number % 2], 10.0 + number
        crops.append(Crop(store, noise, samples, (drawn < truth).sum(0), truth - mean, deviation))
    return crops


def shares(crops, factor: float = 1.0, of: str = "after") -> list[float]:
    return [entry[of].value for entry in reliability.coverage(crops, LEVELS, factor)]


@pytest.mark.parametrize("samples", [2, 5, 64])
def test_crps_of_normal_samples_is_the_closed_form_whatever_their_number(samples: int) -> None:
    random = np.random.default_rng(0)
    truth, mean, sigma = 1.5, 0.4, 2.0
    pixels = 2_000_000 // samples
    drawn = random.normal(mean, sigma, (samples, pixels))
    z = (truth - mean) / sigma
    closed = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    assert reliability.crps(drawn, np.full(pixels, truth)).mean() == pytest.approx(closed, abs=0.01)


def test_crps_is_the_double_sum() -> None:
    random = np.random.default_rng(0)
    drawn, truth = random.normal(size=(7, 3)), random.normal(size=3)
    pairs = np.abs(drawn[:, None] - drawn[None]).sum((0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(reliability.crps(drawn, truth), np.abs(drawn - truth).mean(0) - pairs, rtol=1e-12)


@pytest.mark.parametrize("samples", [39, 40, 64])
def test_quantiles_of_true_samples_cover_what_they_say(samples: int) -> None:
    crops = gaussian_crops(samples=samples)
    curve = reliability.coverage(crops, reliability.CURVE[:-1], 1.0)
    assert [entry["samples"].value for entry in curve] == pytest.approx(reliability.CURVE[:-1], abs=0.006)


def test_quantiles_beyond_the_outermost_samples_are_not_known() -> None:
    (entry,) = reliability.coverage(gaussian_crops(2, 100), [0.99], 1.0)
    assert entry["samples"] is None and entry["before"].value > 0.9


def test_ranks_are_counted_in_the_intervals_that_hold_them() -> None:
    """Three samples: between the outer ones lie 2 of 4 places; the truth is there for the ranks 1 and 2."""
    crop = Crop("", 1.0, 3, np.array([0, 1, 2, 3, 2]), np.zeros(5), np.ones(5))
    assert reliability.rank_hits(crop, [0.25, 0.5]) == pytest.approx([1.5, 3.0])


def test_a_deviation_that_is_too_small_is_found_and_mended() -> None:
    crops = gaussian_crops(too_small=0.7, samples=400, ensemble=400)
    factor = reliability.deviation_factor(crops)
    assert factor.value == pytest.approx(1 / 0.7, rel=0.02)
    assert factor.low <= factor.value <= factor.high < 1.05 * factor.low
    assert shares(crops, factor.value, "before") == pytest.approx([0.363, 0.630, 0.830], abs=0.01)
    assert shares(crops, factor.value) == pytest.approx(LEVELS, abs=0.01)


def test_the_factor_makes_up_for_few_samples() -> None:
    """The mean of 16 errs too, and their deviation varies: a normal quantile of it covers too little."""
    crops = gaussian_crops(ensemble=16)
    assert shares(crops)[2] < 0.94
    factor = reliability.deviation_factor(crops).value
    assert 1.04 < factor < 1.10
    assert shares(crops, factor) == pytest.approx(LEVELS, abs=0.012)


def test_pixels_without_deviation_do_not_decide() -> None:
    crops = gaussian_crops(4, ensemble=64)
    usual = reliability.deviation_factor(crops).value
    for crop in crops:
        crop.deviation[:20] = 0.0
    assert reliability.deviation_factor(crops).value == pytest.approx(usual, rel=0.03)


def test_spread_and_error_agree_where_the_deviation_is_true() -> None:
    spread = reliability.spread_skill(gaussian_crops(samples=400, ensemble=400))
    assert len(spread) == 10 and spread[-1]["deviation"] > 5 * spread[0]["deviation"]
    assert all(entry["error"] == pytest.approx(entry["deviation"], rel=0.05) for entry in spread)


def test_groups_show_where_the_deviation_is_wrong() -> None:
    crops = gaussian_crops(6)
    for crop in crops[3:]:
        crop.deviation[:] *= 0.5
    groups = reliability.groups(crops)
    assert list(groups)[:2] == ["store one", "store two"] and len(groups) == 5
    assert [len(members) for members in groups.values()] == [3, 3, 2, 2, 2]
    assert shares(groups["source noise 10 to 11 HU"])[1] > 0.75 > 0.6 > shares(groups["source noise 14 to 15 HU"])[1]


def test_acquisitions_come_back_out_of_their_vector() -> None:
    source, target = Acquisition(4.1, 6.6, 1.0, 31.0, 0.62, 1.5), Acquisition(6.0, 9.0, 1.2, 12.0, 0.62, 1.5)
    for found, expected in zip(acquisitions_of(acquisition_vector(source, target)), (source, target), strict=True):
        for key, value in expected.as_dict().items():
            assert found.as_dict()[key] == (None if value is None else pytest.approx(value)), key


def curve_of(*scores: float) -> list[dict]:
    return calibration._curve([0.8, 0.9, 1.0], np.array([scores]), np.array([1]))


def test_temperatures_that_the_crops_cannot_tell_apart_stay_near_1() -> None:
    def curve(*lows: float) -> list[dict]:
        tried = (0.9, 1.0, 1.05, 1.1)
        above = [Estimate(max(low, 0.0) + 0.1, low, 1.0) for low in lows]
        return [{"temperature": t, "above_lowest": entry} for t, entry in zip(tried, above, strict=True)]

    assert chosen_temperature(curve(0.3, -0.1, 0.0, 0.4)) == 1.0
    assert chosen_temperature(curve(0.3, 0.2, 0.0, -0.1)) == 1.05
    assert chosen_temperature(curve(0.0, 0.1, 0.2, 0.4)) == 0.9


def test_the_parabola_says_where_between_the_temperatures() -> None:
    assert calibration._vertex(curve_of(*((t - 0.92) ** 2 for t in (0.8, 0.9, 1.0)))) == pytest.approx(0.92)
    assert calibration._vertex(curve_of(1.0, 2.0, 3.0)) is None
    assert [entry["above_lowest"].value for entry in curve_of(3.0, 2.0, 2.5)] == [1.0, 0.0, 0.5]


def test_measured_pairs_are_limited_by_name_and_stores_taken_in_turn(store: Path, tmp_path: Path) -> None:
    entries = [
        Reconstruction(name, Acquisition(2.0, 3.0, 1.0, noise, PIXEL, 2.0), dose, {})
        for name, noise, dose in (("low", 20.0, 25.0), ("full", 10.0, 100.0))
    ]
    volumes = [Volume(phantom(3, entry.acquisition.noise), (PIXEL, PIXEL, 2.0)) for entry in entries]
    PatientStore.write(tmp_path / "anna.zarr", "anna", "folders", [(entries, volumes)])
    pairs = list(Pairs([tmp_path / "anna.zarr"], 3, 40, 0, (1.0, 1.0), ("low*", "full*")))
    assert [(pair.store, round(pair.acquisitions[0].noise), round(pair.acquisitions[1].noise)) for pair in pairs] == [
        ("anna", 20, 10)
    ] * 3
    assert (pairs[0].source != pairs[0].target).any() and pairs[0].mask.shape == (8, 8)
    mixed = list(Pairs([tmp_path / "anna.zarr", store], 40, 48, 0, (0.5, 0.5)))
    assert {pair.store for pair in mixed if pair.number % 2 == 0} == {"anna"}
    assert {pair.store for pair in mixed if pair.number % 2} == {"scenes"}
    assert [pair.number for pair in mixed] == sorted({pair.number for pair in mixed})
    inner = [(pair.target[16:-16, 16:-16], pair.mask) for pair in mixed if pair.store == "scenes"]
    inside, outside = (np.concatenate([hu[mask == here] for hu, mask in inner]) for here in (True, False))
    assert len(outside) > 100 and outside.mean() < -950 < 0 < np.median(inside)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "tiny", anchor_mm=8.0)


def test_the_sampler_draws_what_the_engine_draws(model: Path, store: Path) -> None:
    """Mean and deviation of a pair, by the sampler and by the engine at the pair's slice and acquisitions."""
    method = CTFlowMethod(load_model(model), torch.device("cpu"), torch.float32)
    pair = next(iter(Pairs([store], 4, 64, 3, (0.6, 0.8))))
    crop = Sampler(method, 64, 7).crop(pair, 0.8, 39, 4)
    spacing = pair.acquisitions[0].pixel_spacing
    volume = Volume(np.repeat(np.rint(pair.source).astype(np.int16)[None], pair.number + 1, 0), (spacing, spacing, 2.0))
    outcome = engine.run(volume, method, *pair.acquisitions, engine.Settings(4, 0.8, 7))
    inner = (pair.number, slice(16, -16), slice(16, -16))
    assert outcome.deviation[inner].max() > 0.5
    np.testing.assert_allclose(crop.deviation, outcome.deviation[inner][pair.mask], rtol=1e-3, atol=1e-3)
    mean = pair.target[16:-16, 16:-16][pair.mask] - crop.error
    np.testing.assert_allclose(mean, outcome.mean[inner][pair.mask], atol=0.51)  # whole HU
    assert crop.rank.max() <= 39 and len(crop.rank) == pair.mask.sum() > 0


def run(model: Path, store: Path, output: Path, **changes) -> dict:
    options = {"crops": 3, "size": 48, "samples": 39, "temperatures": (0.5, 1.0), **changes}
    calibrate(str(model), store, output, **options)
    return json.loads((output / "calibration.json").read_text())


def test_the_command_makes_a_calibrated_model(model: Path, store: Path, tmp_path: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    output = tmp_path / "calibrated"
    arguments = [str(model), str(store), str(output), "--crops", "3", "--size", "48", "--samples", "39"]
    assert main(["calibrate", *arguments, "--temperatures", "[0.5,1.0]"]) == 0, capsys.readouterr().err
    results = json.loads((output / "calibration.json").read_text())
    card = load_model(output).card
    scores = {entry["temperature"]: entry["crps"]["value"] for entry in results["temperatures"]}
    alike = [entry["temperature"] for entry in results["temperatures"] if entry["above_lowest"]["low"] <= 0]
    assert min(scores, key=scores.get) in alike
    assert card["default_temperature"] == results["temperature"] == max(alike)  # of those up to 1
    assert card["deviation_factor"] == results["deviation_factor"]["value"] != 1.0
    assert card["calibration"]["coverage"] == results["coverage"] and card["calibration"]["stores"] == ["scenes"]
    assert card["calibration"]["pixels"] == results["pixels"] <= 3 * 16**2
    rows = list(csv.DictReader((output / "calibration.csv").open()))
    assert {row["table"] for row in rows} == {"temperature", "reliability", "spread", "coverage", "factor"}
    assert (output / "calibration.png").read_bytes()[:4] == b"\x89PNG"
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    assert run(model, store, tmp_path / "again") == results
    assert run(model, store, tmp_path / "other", seed=1) != results


def test_quality_at_another_temperature_leaves_the_card(
    model: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(model, store, tmp_path / "same", temperatures=(0.8,))
    assert load_model(tmp_path / "same").card["quality"] == load_model(model).card["quality"] != []
    run(model, store, tmp_path / "other", temperatures=(0.5,))
    assert load_model(tmp_path / "other").card["quality"] == []
    assert "quality was measured at temperature 0.8, so its 1 entries are left out" in capsys.readouterr().err


def test_calibration_draws_doses_as_training_did() -> None:
    card = {"target": {"dose": [10.0, 100.0]}, "training": {}}
    assert calibration._full_dose_share(card, False) == 0.6
    assert calibration._full_dose_share(card, True) == 1.0  # the kernels of a model of one mapping
    assert calibration._full_dose_share({**card, "target": {"dose": [90.0, 100.0]}}, False) == 1.0
    assert calibration._full_dose_share({**card, "training": {"full_dose_share": 0.0}}, True) == 0.0


def test_what_cannot_be_calibrated_is_refused_in_a_sentence(model: Path, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model itself"):
        run(model, store, model / ".." / model.name)
    for changes, reason in (
        ({"samples": 38}, "39 samples"),
        ({"crops": 0}, "one crop"),
        ({"temperatures": ()}, "temperature"),
        ({"temperatures": (0.0, 1.0)}, "temperature"),
        ({"size": 50}, "multiple of 8"),
        ({"size": 32}, "more than 32"),
    ):
        with pytest.raises(InputError, match=reason):
            run(model, store, tmp_path / "out", **changes)
    training = {"data": [], "patients": 0, "simulated": "", "stores": ["scenes"]}
    seen = make_model_folder(tmp_path / "seen", training=training)
    with pytest.raises(InputError, match="trained on a store called 'scenes'"):
        run(seen, store, tmp_path / "out")
    for changes, reason in (({"method": "mtf-filter"}, "draws no samples"), ({"default_samples": 1}, "one sample")):
        with pytest.raises(InputError, match=reason):
            run(make_model_folder(tmp_path / reason, **changes), store, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_model_is_not_overwritten(model: Path, store: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "other")
    weights = save({name: 2.0 * value for name, value in load_model(other).weights().items()})
    card = json.loads((other / "card.json").read_text())
    (other / "weights.safetensors").write_bytes(weights)
    (other / "card.json").write_text(json.dumps({**card, "weights_sha256": hashlib.sha256(weights).hexdigest()}))
    with pytest.raises(InputError, match="another model"):
        run(model, store, other)
    assert (other / "weights.safetensors").read_bytes() == weights
