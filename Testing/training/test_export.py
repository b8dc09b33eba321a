"""From a finished training to a model folder: the card is measured, and the engine runs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
import zarr
from safetensors.torch import load_file, save_file
from test_fit import tiny_training
from test_training import store as store  # a fixture

from CTHarmonizeLib import harmonize
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.methods.conditioning import CONDITIONS, to_hu
from CTHarmonizeLib.methods.ctflow import CTFlowMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.patient import SIMULATED, PatientStore, Reconstruction
from CTHarmonizeTraining.evaluation.pairs_table import evaluate
from CTHarmonizeTraining.simulation.subject import phantom_seed
from CTHarmonizeTraining.training import export as exporting
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.export import About, export, measured_halo, quality
from CTHarmonizeTraining.training.facts import data_facts, simulation
from CTHarmonizeTraining.training.origin import check_test_data, origin
from CTHarmonizeTraining.training.settings import DataConfig, MeasuredOptions, SimulatedOptions

ABOUT = {
    "name": "Tiny",
    "version": "0.1",
    "licence": "Apache-2.0",
    "limits": "Nothing but a disk.",
    "data": [{"stores": "scenes", "name": "A disk", "licence": "CC0"}],
}


SMALL = partial(evaluate, size=160, views=120)
"""The evaluation of 105 mm."""


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"), store, DataConfig(32))


def trained(folder: Path, store: Path, data: DataConfig) -> Path:
    """What ``fit`` leaves of a tiny training, with weights that are not the first."""
    method = tiny_training()
    settings.keep(folder, method, data)
    record = {
        "stores": [{"name": "scenes", "path": str(store), "source": "disk", "seed": 0}],
        "validation": [],
        "weights": {},
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
    """The model folder of ``run``, judged on a slice: a disk with a hole."""
    folder = tmp_path_factory.mktemp("exported")
    disk(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "evaluate", SMALL)
        export(run, folder / "model", about(folder), ct=folder / "test.nrrd", slices=1, samples=2, device="cpu")
    return folder


def disk(folder: Path) -> None:
    axis = np.arange(64) - 31.5
    radius = np.hypot(axis[:, None], axis)
    hu = np.where(radius < 24, 40.0, -1000.0) - 840.0 * (radius < 8)
    write_nrrd(Volume(np.stack([hu] * 3).astype(np.float32), (2.0, 2.0, 2.0)), folder / "test.nrrd")


def test_the_card_says_what_was_trained_and_measured(exported: Path, store: Path) -> None:
    card = load_model(exported / "model").card
    assert card["name"] == "Tiny" and card["pixel_spacing"] == [0.45, 1.0]
    assert card["slice_thickness"] == [1.9, 2.1]  # the store's 2 mm
    assert card["training"]["data"] == [
        {"name": "A disk", "licence": "CC0", "use": "scenes: projected; 2 regions of 2 slices"}
    ]
    training = card["training"]
    assert (training["stores"], training["sources"], training["patients"]) == (["scenes"], ["disk"], 1)
    assert "4 iterations of 2 crops of 32 x 32" in training["schedule"] and training["full_dose_share"] == 0.6
    assert "kernels drawn continuously from an f50 of 2.3 lp/cm" in training["simulated"]
    low, high = card["source"]["noise"]
    assert 2.0 < low < 20.0 < high  # 20 HU at 100 %, less through smooth kernels, more at lower dose
    assert len(card["quality"]) == 18 and all(entry["value"] > 0 for entry in card["quality"])
    results = json.loads((exported / "model-evaluation" / "ct" / "results.json").read_text())
    first = results["pairs"][0]
    assert card["quality"][0]["value"] == round(first["rmse"]["clean"]["mean"]["value"], 2)
    assert card["quality"][0]["untouched"] == round(first["rmse"]["clean"]["input"]["value"], 2)
    assert {path.name for path in exported.iterdir()} == {"model", "model-evaluation", "test.nrrd", "about.yaml"}
    assert {path.name for path in (exported / "model").iterdir()} == {"card.json", "weights.safetensors"}


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
        images = [
            to_hu(each.to_image(each.estimate(planes, acquisition)[0]), method.intensity_window)
            for each in (network.eval(), loaded)
        ]
    difference = (images[0] - images[1]).abs().max()
    # the encoder's weights have the 11 bits of half precision, its correction of the source some 1000 HU here
    assert 0.0 < difference < 1000.0 * 2.0**-11


def test_test_data_must_not_have_been_trained_on(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match="'disk' was trained on"):
        export(run, tmp_path / "model", about(tmp_path), ct=Path("other/disk"))
    stores = [{"name": "a", "source": "phantom 07"}, {"name": "b", "patient": "L067"}]
    seen = origin({"stores": stores, "initial": None})
    check_test_data(seen, Path("new.nrrd"), [8])
    for ct, phantom, name in ((None, [8, 7], "phantom:7"), (Path("a/L067.nrrd"), None, "L067.nrrd")):
        with pytest.raises(InputError, match=f"'{name}' was trained on"):
            check_test_data(seen, ct, phantom)
    with pytest.raises(InputError, match="Give test data"):
        export(run, tmp_path / "model", about(tmp_path))
    assert main(["export", str(tmp_path), str(tmp_path / "m"), str(tmp_path / "about.yaml"), "--phantom", "1"]) == 2
    assert "has no config.yaml: give the output folder of a finished" in capsys.readouterr().err


def test_licences_have_to_be_said(run: Path, tmp_path: Path) -> None:
    others = about(tmp_path, data=[{"stores": "phantom*", "name": "x", "licence": "y"}])
    with pytest.raises(InputError, match="Under which licence 'scenes' was used is not said"):
        export(run, tmp_path / "m", others, phantom=[1])
    with pytest.raises(InputError, match="stores, name and licence"):
        About.load(about(tmp_path, data=[{"stores": "scenes", "name": "x"}]))
    path = tmp_path / "half.yaml"
    path.write_text("name: x\nversion: 1\ndata: []\n")
    with pytest.raises(InputError, match=r"\(missing: licence, limits\)"):
        About.load(path)
    path.write_text("name: x\nversion: 1\ndata: []\nlicense: x\nlimit: y\n")
    with pytest.raises(InputError, match=r"\(missing: licence, limits; unknown: license, limit\)"):
        About.load(path)
    with pytest.raises(InputError, match="none.yaml' cannot be read: No such file or directory"):
        About.load(tmp_path / "none.yaml")


def test_a_terminated_export_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(folder: Path, device: str) -> int:
        assert (folder / "card.json").exists()
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the export went on")

    monkeypatch.setattr(exporting, "measured_halo", stopped)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        where = [str(tmp_path / "model"), str(about(tmp_path)), "--phantom", "1", "--device", "cpu"]
        assert main(["export", str(run), *where]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert [path.name for path in tmp_path.iterdir()] == ["about.yaml"]


def test_fixed_kernels_and_doses_are_the_cards(store: Path) -> None:
    data = DataConfig(32, full_dose_share=1.0, simulated=SimulatedOptions(("sharp", "medium"), (0.6, 0.6)))
    facts = data_facts([store], data)
    assert facts["source"]["f50"] == [5.7, 6.3] and facts["target"]["f50"] == [3.8, 4.2]
    coarse = DataConfig(32, simulated=SimulatedOptions(("sharp", "medium"), (0.45, 1.0)))
    assert data_facts([store], coarse)["source"]["f50"] == [3.8, 6.3]  # 4 lp/cm is all that 1 mm shows
    assert "kernels sharp (source) and medium (target); pixels of 0.45 to 1 mm" in simulation([store], coarse)
    assert "pixels of 0.6 mm; 100 % of the targets" in simulation([store], data)
    free = data_facts([store], DataConfig(32))
    assert free["source"]["f50"] == free["target"]["f50"] == [2.3, 8.89]
    assert 5 <= free["target"]["dose"][0] < 50 and free["target"]["dose"][1] == 100


LOW, FULL, SHARP = ("low", 4.0, 30.0, 25.0), ("full", 4.0, 15.0, 100.0), ("sharp", 6.0, 31.0, 100.0)


def series(*scans: tuple[str, float, float, float], facts: dict | None = None) -> tuple[list, list]:
    """A matched set: name, f50, noise and dose of each."""
    hu = np.random.default_rng(0).normal(40, 10, (4, 128, 128)).astype(np.float32)
    entries = [
        Reconstruction(name, Acquisition(f50, 1.6 * f50, 1.0, noise, 0.7, 1.0), dose, facts or {})
        for name, f50, noise, dose in scans
    ]
    return entries, [Volume(hu, (0.7, 0.7, 1.0))] * len(scans)


def test_measured_pairs_state_their_own_ranges(tmp_path: Path) -> None:
    PatientStore.write(tmp_path / "p.zarr", "p", "folders", [series(LOW, FULL, SHARP)])
    assert simulation([tmp_path / "p.zarr"], DataConfig()) == "No: measured pairs."
    data = DataConfig(32, full_dose_share=1.0, measured=MeasuredOptions(("low", "*")))
    facts = data_facts([tmp_path / "p.zarr"], data)
    assert facts["source"] == {"f50": [3.8, 4.2], "noise": [28.5, 31.5]}
    assert facts["target"] == {"f50": [3.8, 6.3], "dose": [100.0, 100.0], "thickness": None}
    assert facts["noise_at_full_dose"]["f50"] == [4.0, 6.0] and facts["noise_at_full_dose"]["sigma"] == [15.0, 31.0]
    less = data_facts([tmp_path / "p.zarr"], DataConfig(32, measured=MeasuredOptions(("*", "low"))))
    assert less["target"]["dose"] == [25.0, 25.0] and less["noise_at_full_dose"]["sigma"] == [15.0, 15.0]
    one = data_facts([tmp_path / "p.zarr"], DataConfig(32, 1, 1.0, measured=MeasuredOptions(("low", "full"))))
    assert one["noise_at_full_dose"]["sigma"] == [15.0, 15.0]  # flat where nothing else is known


def test_noise_at_full_dose_is_not_torn_by_scatter(tmp_path: Path) -> None:
    """Of one kernel in two patients; of a patient whose full dose is another's half; of no noise-free scan."""
    one = series(("low", 3.74, 30.0, 25.0), ("full", 3.74, 15.1, 100.0))
    two = series(("low", 3.76, 33.0, 12.0), ("full", 3.76, 18.2, 50.0), ("target_noise_free", 3.76, 1.0, 50.0))
    three = series(("low", 3.75, 33.0, 25.0), ("full", 6.0, 31.0, 100.0), ("more", 6.1, 33.0, 100.0))
    PatientStore.write(tmp_path / "p.zarr", "p", "folders", [one, two, three])
    table = data_facts([tmp_path / "p.zarr"], DataConfig(32, full_dose_share=1.0))["noise_at_full_dose"]
    assert table["f50"] == [3.75, 6.05] and table["sigma"] == [16.65, 32.0]


def test_simulated_pairs_are_no_patients(tmp_path: Path) -> None:
    side = {"kernel": "sharp", "dose": 25.0}
    facts = {"source": side, "target": side | {"dose": 100.0}, "beam": "fan", "inserted_noise": False}
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for path, source in zip(paths, ("phantom:7", "chest.nrrd"), strict=True):
        PatientStore.write(path, path.stem, SIMULATED, [series(LOW, FULL, facts=facts)], source)
    assert simulation(paths, DataConfig()) == "Whole scans of 2 stores: fan beam, sharp at 25 % and sharp at 100 %."
    told = [zarr.open_group(path, mode="r").attrs.asdict() for path in paths]
    stores = [{"name": path.stem, **attributes} for path, attributes in zip(paths, told, strict=True)]
    record = {"stores": stores, "initial": None}
    assert origin(record) == {"stores": ["a", "b"], "sources": ["phantom:7", "chest.nrrd"], "patients": 1}
    with pytest.raises(InputError, match="'chest.nrrd' was trained on"):
        check_test_data(origin(record), Path("chest.nrrd"), None)
    del record["stores"][0]["source"]
    with pytest.raises(InputError, match="'a' does not say of what it was simulated"):
        origin(record)
    assert [phantom_seed(name) for name in ("phantom:07", "phantom 7", "phantom_7.nrrd", "phantom:7x")] == [
        7, 7, None, None,
    ]  # fmt: skip


def test_the_model_to_start_from_counts_too(tmp_path: Path) -> None:
    stores = [{"name": "new", "source": "new.nrrd"}, {"name": "again", "source": "old.nrrd"}]
    before = {"data": [], "patients": 2, "stores": ["old"], "sources": ["old.nrrd", "phantom:3", "x"], "simulated": "y"}
    began = {"name": "First", "version": "2", "weights_sha256": "0", "training": before}
    seen = origin({"stores": stores, "initial": began})
    assert seen["stores"] == ["old", "new", "again"] and seen["patients"] == 3 and "unlisted" not in seen
    with pytest.raises(InputError, match="'phantom:3' was trained on"):
        check_test_data(seen, None, [3])
    bare = {"name": "First", "version": "2", "weights_sha256": "0", "training": {"data": [], "patients": 2}}
    seen = origin({"stores": stores, "initial": bare})
    assert seen["patients"] == 4 and seen["unlisted"] == ["First 2"]
    assert origin({"stores": [], "initial": {**bare, "training": seen}})["unlisted"] == ["First 2"]
    with pytest.raises(InputError, match="began with the model 'folder'"):
        origin({"stores": stores, "initial": "folder"})


def test_a_model_of_one_mapping_is_judged_on_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Its target is none of the named kernels, its pixels are small, and it began with another model."""
    monkeypatch.setattr(exporting, "measured_halo", lambda folder, device: 48)
    monkeypatch.setattr(exporting, "evaluate", SMALL)
    options = SimulatedOptions(("medium", "5.2"), (0.5, 0.6))
    run = trained(tmp_path, store, DataConfig(32, full_dose_share=1.0, simulated=options))
    record = json.loads((run / "training.json").read_text())
    entry = {"name": "Old", "licence": "CC0", "use": "x"}
    before = {"data": [entry], "patients": 1, "sources": ["old.nrrd"], "simulated": "All of it."}
    record["initial"] = {"name": "First", "version": "2", "weights_sha256": "0", "training": before}
    (run / "training.json").write_text(json.dumps(record))
    disk(tmp_path)
    options = {"ct": tmp_path / "test.nrrd", "slices": 1, "samples": 2, "device": "cpu"}
    model = tmp_path / "models" / "model"
    export(run, model, about(tmp_path), **options)
    said = capsys.readouterr().err
    assert "no smooth and no medium and no sharp target kernel: left out; its own, of 5.2 lp/cm" in said
    card = load_model(model).card
    assert card["halo"] == 48 and card["target"]["f50"] == [4.94, 5.46]
    assert [entry["measure"].split(", ")[1] for entry in card["quality"]] == [
        "medium 10 % to 5.2 100 %; mean of 2 samples at temperature 1; interval: 95 %",
        "medium 25 % to 5.2 100 %; mean of 2 samples at temperature 1; interval: 95 %",
    ]
    results = json.loads((tmp_path / "models" / "model-evaluation" / "ct" / "results.json").read_text())
    assert results["protocol"]["pixel_spacing"] == 0.6
    training = card["training"]
    assert training["data"][0] == entry and len(training["data"]) == 2 and training["patients"] == 2
    assert "started from First 2" in training["schedule"] and training["simulated"].endswith("Of First 2: All of it.")

    written = model / "card.json"
    written.write_text(json.dumps({**card, "name": "Older"}))
    export(run, model, about(tmp_path), **options)  # the same weights: what is said of them is replaced
    assert load_model(model).name == "Tiny"
    content = written.read_text()

    def fails(*given: object, **options: object) -> None:
        raise CannotRunError("no memory")

    monkeypatch.setattr(exporting, "evaluate", fails)
    for folder in (model, tmp_path / "models" / "other"):
        with pytest.raises(CannotRunError, match="no memory"):
            export(run, folder, about(tmp_path), **options)
    assert {path.name for path in model.parent.iterdir()} == {"model", "model-evaluation"}
    assert written.read_text() == content
    weights = load_file(run / "network.safetensors")
    save_file({name: value + 1.0 for name, value in weights.items()}, run / "network.safetensors")
    with pytest.raises(InputError, match="holds another model"):
        export(run, model, about(tmp_path), **options)


def test_stores_that_were_moved_are_missed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "training.json").read_text())
    record["stores"][0]["path"] = str(tmp_path / "moved.zarr")
    (tmp_path / "run" / "training.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"moved.zarr' that was trained on is no longer there"):
        export(tmp_path / "run", tmp_path / "model", about(tmp_path), phantom=[1])


def test_a_halo_that_is_too_small_is_found_out(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = load_model(exported / "model").card
    assert measured_halo(exported / "model", "cpu") == card["halo"]
    tried = []
    monkeypatch.setattr("CTHarmonizeTraining.training.export.HALOS", (0, 8, 16, 32, 64))
    monkeypatch.setattr("CTHarmonizeTraining.training.export.say", tried.append)
    assert measured_halo(exported / "model", "cpu") > 0
    assert tried[0].startswith("halo 0: tiles differ by")


def test_quality_of_a_deterministic_method_is_its_output() -> None:
    """And says what of the classical it is no better than."""
    rmse = {
        name: {"value": value, "low": value - 1.0, "high": value + 1.0}
        for name, value in (("input", 30.0), ("mtf-filter", 20.0), ("band-normalization", 9.0), ("encoder", 10.04))
    }
    pair = {"source": "sharp", "dose": 25.0, "target": "smooth", "target_dose": 100.0, "rmse": {"clean": rmse}}
    (entry,) = quality({"data": {"name": "x", "slices": [1]}, "pairs": [pair]})
    assert (entry["value"], entry["low"], entry["high"]) == (10.04, 9.04, 11.04)
    assert entry["untouched"] == 30.0 and entry["mtf_filter"] == 20.0 and "samples" not in entry
    assert entry["band_normalization"] == 9.0 and entry["not_better_than"] == ["band_normalization"]
    assert "sharp 25 % to smooth 100 %; output;" in entry["measure"]
    rmse["band-normalization"]["value"] = 11.0
    assert "not_better_than" not in quality({"data": {"name": "x", "slices": [1]}, "pairs": [pair]})[0]
