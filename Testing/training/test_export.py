"""From a finished training to a model folder: the card is measured, and the engine runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_fit import tiny_training
from test_training import store as store  # a fixture

from CTHarmonizeLib import harmonize
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.ctflow import CONDITIONS, CTFlowMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.patient import PatientStore, Reconstruction
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.export import About, export, measured_halo, quality
from CTHarmonizeTraining.training.facts import data_facts
from CTHarmonizeTraining.training.settings import DataConfig, MeasuredOptions, SimulatedOptions

ABOUT = {
    "name": "Tiny",
    "version": "0.1",
    "licence": "Apache-2.0",
    "limits": "Nothing but a disk.",
    "data": [{"stores": "scenes", "name": "A disk", "licence": "CC0"}],
}


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``fit`` leaves of a tiny training, with weights that are not the first."""
    folder = tmp_path_factory.mktemp("run")
    method = tiny_training()
    settings.keep(folder, method, DataConfig(32))
    record = {
        "stores": [{"name": "scenes", "path": str(store), "source": "disk", "seed": 0}],
        "validation": [],
        "initial": None,
        "device": "CPU",
    }
    (folder / "training.json").write_text(json.dumps(record))
    torch.manual_seed(0)
    network = method.build()
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "network.safetensors")
    return folder


def about(folder: Path, **changes: object) -> Path:
    path = folder / "about.yaml"
    path.write_text(yaml.safe_dump({**ABOUT, **changes}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model folder of ``run``, judged on two slices of 64 pixels: a disk with a hole."""
    folder = tmp_path_factory.mktemp("exported")
    axis = np.arange(64) - 31.5
    radius = np.hypot(axis[:, None], axis)
    hu = np.where(radius < 24, 40.0, -1000.0) - 840.0 * (radius < 8)
    write_nrrd(Volume(np.stack([hu] * 3).astype(np.float32), (2.0, 2.0, 2.0)), folder / "test.nrrd")
    export(run, folder / "model", about(folder), ct=folder / "test.nrrd", slices=1, samples=2, device="cpu")
    return folder


def test_the_card_says_what_was_trained_and_measured(exported: Path, store: Path) -> None:
    card = load_model(exported / "model").card
    assert card["name"] == "Tiny" and card["pixel_spacing"] == [0.45, 1.0]
    assert card["slice_thickness"] == [1.9, 2.1]  # the store's 2 mm
    assert card["training"]["data"] == [
        {"name": "A disk", "licence": "CC0", "use": "scenes: projected; 2 regions of 2 slices"}
    ]
    assert card["training"]["patients"] == 1 and "4 iterations of 2 crops of 32 x 32" in card["training"]["schedule"]
    low, high = card["source"]["noise"]
    assert 2.0 < low < 20.0 < high  # 20 HU at 100 %, less through smooth kernels, more at lower dose
    assert len(card["quality"]) == 18 and all(entry["value"] > 0 for entry in card["quality"])
    results = json.loads((exported / "model-evaluation" / "ct" / "results.json").read_text())
    first = results["pairs"][0]
    assert card["quality"][0]["value"] == round(first["rmse"]["clean"]["mean"]["value"], 2)
    assert card["quality"][0]["untouched"] == round(first["rmse"]["clean"]["input"]["value"], 2)


def test_harmonize_runs_the_exported_model(exported: Path, run: Path) -> None:
    volume = read_volume(exported / "test.nrrd")
    noisy = volume.hu + np.random.default_rng(0).normal(0, 20, volume.shape)
    scan = Volume(noisy.astype(np.float32), (0.8, 0.8, 2.0))
    result = harmonize(
        scan, kernel="smooth", dose=100, source_kernel="medium", model=str(exported / "model"), samples=2, device="cpu"
    )
    assert result.mean.hu.shape == volume.shape and np.isfinite(result.standard_deviation.hu).all()
    method, _ = settings.load(run / "config.yaml")
    network = method.build()
    network.load_state_dict(load_file(run / "network.safetensors"))
    loaded = CTFlowMethod(load_model(exported / "model"), torch.device("cpu"), torch.float32).network
    planes, acquisition = torch.rand(1, 2, 16, 16), torch.rand(1, CONDITIONS)
    with torch.inference_mode():
        one, other = network.eval().estimate(planes, acquisition)[0], loaded.estimate(planes, acquisition)[0]
    assert (one - other).abs().max() < 2e-3  # half precision of the encoder's weights


def test_test_data_must_not_have_been_trained_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    record = json.loads((run / "training.json").read_text())
    for source, options in (("phantom 7", {"phantom": [8, 7]}), ("chest.nrrd", {"ct": Path("other/chest.nrrd")})):
        other = tmp_path / source
        shutil.copytree(run, other)
        record["stores"][0]["source"] = source
        (other / "training.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match=f"'{source}' was trained on"):
            export(other, tmp_path / "model", about(tmp_path), **options)
    with pytest.raises(InputError, match="Give test data"):
        export(run, tmp_path / "model", about(tmp_path))
    assert main(["export", str(tmp_path), str(tmp_path / "m"), str(tmp_path / "about.yaml"), "--phantom", "[1]"]) == 2
    assert "has no config.yaml: give the output folder of a finished" in capsys.readouterr().err


def test_licences_have_to_be_said(run: Path, tmp_path: Path) -> None:
    others = about(tmp_path, data=[{"stores": "phantom*", "name": "x", "licence": "y"}])
    with pytest.raises(InputError, match="Under which licence 'scenes' was used is not said"):
        export(run, tmp_path / "m", others, phantom=[1])
    with pytest.raises(InputError, match="stores, name and licence"):
        About.load(about(tmp_path, data=[{"stores": "scenes", "name": "x"}]))
    path = tmp_path / "half.yaml"
    path.write_text("name: x\nversion: 1\ndata: []\n")
    with pytest.raises(InputError, match="does not say what a card needs"):
        About.load(path)


def test_fixed_kernels_and_doses_are_the_cards(store: Path) -> None:
    data = DataConfig(32, full_dose_share=1.0, simulated=SimulatedOptions(("sharp", "medium"), (0.6, 0.6)))
    facts = data_facts([store], data)
    assert facts["source"]["f50"] == [5.7, 6.3] and facts["target"]["f50"] == [3.8, 4.2]
    free = data_facts([store], DataConfig(32))
    assert free["source"]["f50"] == free["target"]["f50"] == [2.3, 8.89]
    assert 5 <= free["target"]["dose"][0] < 50 and free["target"]["dose"][1] == 100


def test_measured_pairs_state_their_own_ranges(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hu = rng.normal(40, 10, (4, 128, 128)).astype(np.float32)
    volume = Volume(hu, (0.7, 0.7, 1.0))
    scans = (("low", 4.0, 30.0, 25.0), ("full", 4.0, 15.0, 100.0), ("sharp", 6.0, 31.0, 100.0))
    series = [
        Reconstruction(name, Acquisition(f50, 1.6 * f50, 1.0, noise, 0.7, 1.0), dose, {})
        for name, f50, noise, dose in scans
    ]
    PatientStore.write(tmp_path / "p.zarr", "p", "folders", [(series, [volume] * 3)])
    data = DataConfig(32, full_dose_share=1.0, measured=MeasuredOptions(("low", "*")))
    facts = data_facts([tmp_path / "p.zarr"], data)
    assert facts["source"] == {"f50": [3.8, 4.2], "noise": [28.5, 31.5]}
    assert facts["target"] == {"f50": [3.8, 6.3], "dose": [100.0, 100.0], "thickness": None}
    assert facts["noise_at_full_dose"]["f50"] == [4.0, 6.0] and facts["noise_at_full_dose"]["sigma"] == [15.0, 31.0]
    one = data_facts([tmp_path / "p.zarr"], DataConfig(32, 1, 1.0, measured=MeasuredOptions(("low", "full"))))
    assert one["noise_at_full_dose"]["sigma"] == [15.0, 15.0]  # flat where nothing else is known


def test_a_halo_that_is_too_small_is_found_out(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_model(exported / "model").card
    assert measured_halo(exported / "model", "cpu") == card["halo"]
    tried = []
    monkeypatch.setattr("CTHarmonizeTraining.training.export.HALOS", (0, 8, 16, 32, 64))
    monkeypatch.setattr("CTHarmonizeTraining.training.export.say", tried.append)
    assert measured_halo(exported / "model", "cpu") > 0
    assert tried[0].startswith("halo 0: tiles differ by")


def test_quality_of_a_deterministic_method_is_its_output() -> None:
    rmse = {"input": {"value": 30.0}, "mtf-filter": {"value": 20.0}, "encoder": {"value": 10.04}}
    pair = {"source": "sharp", "dose": 25.0, "target": "smooth", "target_dose": 100.0, "rmse": {"clean": rmse}}
    (entry,) = quality({"data": {"name": "x", "slices": [1]}, "pairs": [pair]})
    assert entry["value"] == 10.04 and entry["untouched"] == 30.0 and entry["mtf_filter"] == 20.0
    assert "sharp 25 % to smooth 100 %" in entry["measure"]
