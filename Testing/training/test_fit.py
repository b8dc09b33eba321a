"""Training runs: resume, averaged weights, several devices, what stops them, what they leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_training import TINY, WINDOW
from test_training import store as store  # a fixture

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeTraining.cli import main
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.simulation.scenes import SceneStore
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.base import StageConfig
from CTHarmonizeTraining.training.ctflow import CTFlowTraining, EncoderStage, FlowStage
from CTHarmonizeTraining.training.curves import read_log
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.image import ImageStage
from CTHarmonizeTraining.training.loader import Pairs, RankBatches
from CTHarmonizeTraining.training.settings import DataConfig
from CTHarmonizeTraining.training.trainer import Machine, run_stage

sys.path.insert(0, str(Path(__file__).parents[1] / "lib"))
from model_folder import CARD, make_model_folder  # noqa: E402

CPU = Machine("cpu", 1, precision="32-true", checkpoint_every=3, validate_every=4)
STEPS, BATCH = 8, 2


class Watcher(L.Callback):
    """Keeps every step's loss, and weights after it; stops the run after ``stop`` steps, as a person would."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop, self.losses, self.weights = stop, {}, []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.losses[trainer.global_step] = float(outputs["loss"])
        self.weights.append([parameter.detach().clone() for parameter in module.parameters()])
        if trainer.global_step == self.stop:
            raise KeyboardInterrupt


def stage_of(kind: str, average: float | None = 0.9) -> ImageStage:
    torch.manual_seed(0)
    config = StageConfig(STEPS, 2e-3, batch=BATCH, warmup=2, average=average)
    if kind == "encoder":
        return EncoderStage(CTFlow(TINY), config, WINDOW)
    return FlowStage(CTFlow(TINY), config, WINDOW, mean_weight=4.0)


def train(stage: ImageStage, store: Path, folder: Path, stop: int | None = None) -> Watcher:
    held_out = PairDataset([store], 2 * BATCH, 32, seed=2)  # validation in between, and a worker, change nothing
    data = Pairs(PairDataset([store], STEPS * BATCH, 32, seed=1), held_out, BATCH, workers=1)
    watcher = Watcher(stop)
    run_stage("test", stage, data, folder, CPU, [watcher])
    return watcher


@pytest.mark.parametrize("kind", ["encoder", "flow"])
def test_a_resumed_run_is_the_uninterrupted_one(
    kind: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    whole, resumed = stage_of(kind), stage_of(kind)
    curve = train(whole, store, tmp_path / "whole").losses
    with pytest.raises(KeyboardInterrupt):
        train(stage_of(kind), store, tmp_path / "parts", stop=4)
    assert "test: stopped; started again it goes on at iteration 3 of 8\n" in capsys.readouterr().err
    (tmp_path / "parts").rename(tmp_path / "moved")
    with pytest.raises(KeyboardInterrupt):
        train(stage_of(kind), store, tmp_path / "moved", stop=7)
    assert torch.load(tmp_path / "moved" / "last.ckpt", weights_only=True)["global_step"] == 6
    assert "test: goes on at 3 of 8 iterations on 1 x cpu" in capsys.readouterr().err
    again = train(resumed, store, tmp_path / "moved").losses
    assert list(again) == [7, 8] and resumed.global_step == whole.global_step == STEPS
    assert max(abs(again[step] - curve[step]) for step in again) < 1e-5
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6), name


def test_the_result_is_the_average_of_the_weights(store: Path, tmp_path: Path) -> None:
    stage = stage_of("encoder")
    weights = train(stage, store, tmp_path).weights
    average = weights[0]
    for count, current in enumerate(weights[1:], start=1):
        share = 1.0 - min(0.9, (1 + count) / (10 + count))
        average = [one + share * (other - one) for one, other in zip(average, current, strict=True)]
    for one, other in zip(stage.parameters(), average, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert not all(torch.allclose(one, other, atol=1e-6) for one, other in zip(average, weights[-1], strict=True))
    finished = stage_of("encoder")  # and a finished stage is loaded with it
    assert train(finished, store, tmp_path).losses == {}
    assert all(torch.equal(one, other) for one, other in zip(finished.parameters(), stage.parameters(), strict=True))


def test_two_devices_have_the_gradient_of_one(store: Path, tmp_path: Path) -> None:
    """The flow with its ActNorm initialised from the first batch, both halves of it, and all that is drawn."""
    script, here = Path(__file__).with_name("two_ranks.py"), Path(__file__).parent
    paths = [here, here.parents[1] / "CTHarmonize", here.parents[1]]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    steps = {}
    for devices in (1, 2):
        output = tmp_path / str(devices)
        output.mkdir()
        command = [sys.executable, str(script), str(store), str(output), str(devices)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        steps[devices] = torch.load(output / "gradients.pt", weights_only=True)
    assert len(steps[1]) == len(steps[2]) == 3
    for number, (alone, shared) in enumerate(zip(steps[1], steps[2], strict=True)):
        assert alone.keys() == shared.keys()
        # from the second step on Adam has turned the rounding of the smallest gradients into steps
        tolerance = 2e-5 if number == 0 else 2e-2
        for name, gradient in alone.items():
            scale = float(gradient.abs().max())
            assert float((gradient - shared[name]).abs().max()) <= tolerance * scale + 1e-7, name


def test_ranks_share_a_batch_and_go_on_from_a_step() -> None:
    ranks = [list(RankBatches(20, 4, 2, rank, 2)) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [[8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert len(RankBatches(20, 4, 2)) == 5
    with pytest.raises(InputError, match="batch of 4 cannot be shared evenly by 3"):
        RankBatches(20, 4, 0, 0, 3)


class Poisoned(PairDataset):
    """Its tenth item holds no number."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        item = super().__getitem__(index)
        return {**item, "clean": item["clean"] * torch.nan} if index == 9 else item


def test_what_is_not_finite_stops_before_it_reaches_the_weights(store: Path, tmp_path: Path) -> None:
    stage = stage_of("encoder")
    data = Pairs(Poisoned([store], STEPS * BATCH, 32, seed=1), None, BATCH, workers=0)
    with pytest.raises(CannotRunError, match="loss became nan at step 4.*last checkpoint"):
        run_stage("test", stage, data, tmp_path, CPU)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 3
    assert all(torch.isfinite(value).all() for value in kept["state_dict"].values())


def test_a_broken_checkpoint_is_one_sentence(store: Path, tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"half of a checkpoint")
    with pytest.raises(CannotRunError, match="last.ckpt cannot be read"):
        train(stage_of("encoder"), store, tmp_path)


def tiny_training(**changes: object) -> CTFlowTraining:
    stage = StageConfig(4, 1e-3, batch=BATCH, average=0.9)
    return CTFlowTraining(encoder=stage, flow=stage, network=TINY, intensity_window=WINDOW, truth="clean", **changes)


def configuration(path: Path, **changes: object) -> Path:
    entries = {"method": tiny_training(**changes).as_dict(), "data": {"size": 32, "workers": 0}}
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    return path


def test_settings_come_back_as_they_were_kept(tmp_path: Path) -> None:
    method, data = tiny_training(mean_weight=3.0), DataConfig(32, full_dose_share=0.25)
    settings.keep(tmp_path, method, data)
    again, data_again = settings.load(tmp_path / settings.CONFIG)
    assert again.as_dict() == method.as_dict() and data_again == data
    assert isinstance(again, CTFlowTraining) and again.network == TINY and again.mean_weight == 3.0
    settings.keep(tmp_path, method, DataConfig(32, workers=7, full_dose_share=0.25))  # changes no result
    with pytest.raises(InputError, match=r"other settings \(method.init_args.mean_weight\)"):
        settings.keep(tmp_path, tiny_training(), data)
    other, _ = settings.load("srresnet-compact")
    with pytest.raises(InputError, match=r"other settings \([^,]+, [^,]+, [^,]+ and \d+ more\)"):
        settings.keep(tmp_path, other, data)


def test_a_wrong_configuration_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = configuration(tmp_path / "wrong.yaml")
    entries = yaml.safe_load(path.read_text())
    entries["method"]["init_args"]["network"]["stepps"] = 3
    path.write_text(yaml.safe_dump(entries))
    with pytest.raises(InputError, match="wrong.yaml is not usable.*stepps"):
        settings.load(path)
    assert main(["fit", "--config", "nothing", "a", "b"]) == 2
    assert "There is no configuration 'nothing'; shipped ones: cinn-128, cinn-compact" in capsys.readouterr().err
    assert main(["fit", str(tmp_path), str(tmp_path)]) == 2
    assert "give a configuration" in capsys.readouterr().err


def test_fit_leaves_what_it_did(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, run = configuration(tmp_path / "tiny.yaml", mean_weight=4.0), tmp_path / "run"
    other = tmp_path / "other.zarr"
    shutil.copytree(store, other)
    machine = ["--machine.accelerator", "cpu", "--machine.validate_every", "2", "--machine.precision", "32-true"]
    command = ["fit", f"--config={config}", str(store), str(run), "--validation", str(other), *machine]
    command += ["--method.flow.iterations", "6"]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "encoder: 4 of 4, loss" in said.err and "of this stage left" in said.err
    assert f"network.safetensors; next: ctharmonize-train export {run} MODEL about.yaml" in said.err
    assert "was finished before" not in said.err
    record = json.loads((run / "training.json").read_text())
    assert record["stores"] == [{"name": "scenes", "path": str(store), "source": "disk", "seed": 0, "scenes": 2}]
    assert record["precision"] == "32-true" and record["device"].startswith("cpu")
    assert [entry["name"] for entry in record["validation"]] == ["other"]
    assert settings.load(run / "config.yaml")[0].flow.iterations == 6
    for stage, steps in (("encoder", (2, 4)), ("flow", (2, 4, 6))):
        assert [path.stem for path in sorted((run / stage / "pictures").iterdir())] == [f"step{n:06d}" for n in steps]
    log = read_log(run / "flow")
    assert log["validation_mse_hu2"].notna().sum() == 3
    assert (run / "curves.csv").stat().st_size > 100 and (run / "curves.jpg").stat().st_size > 5000
    network = load_file(run / "network.safetensors")
    CTFlow(TINY).load_state_dict(network)
    assert main(command) == 0
    assert "This training was finished before, and there is nothing left to do." in capsys.readouterr().err
    again = load_file(run / "network.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in network.items())
    assert main([*command, "--seed", "3"]) == 2
    assert "with other options (seed)" in capsys.readouterr().err


def test_a_run_starts_from_a_models_weights(store: Path, tmp_path: Path) -> None:
    folder, nothing = make_model_folder(tmp_path / "model"), StageConfig(0, 1e-3)
    network = CTFlowConfig.from_dict(CARD["network"])
    method = CTFlowTraining(encoder=nothing, flow=nothing, network=network, truth="clean")
    fit(store, tmp_path / "run", method, DataConfig(32), initial=str(folder), machine=CPU)
    left = load_file(tmp_path / "run" / "network.safetensors")
    assert all(torch.equal(value, left[name]) for name, value in load_file(folder / "weights.safetensors").items())
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["initial"]["name"] == "Test model" and record["initial"]["training"]["patients"] == 0
    other = CTFlowTraining(encoder=nothing, flow=nothing, network=replace(network, hidden=16))
    with pytest.raises(InputError, match="is of another network"):
        fit(store, tmp_path / "other", other, DataConfig(32), initial=str(folder), machine=CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": DataConfig(50)}, "Crops of 50 pixels do not do: give a multiple of 8"),
        ({"data": DataConfig(160)}, "A crop of 160 pixels of 1 mm is larger than the scenes of scenes.zarr, 141 mm"),
        ({"seed": -1}, "A seed of -1 is out of range"),
        ({"weights": {"scenes": 0.0}}, "leave no store to draw from"),
        ({"weights": {"none": 1.0}}, "no store called none"),
        ({"machine": replace(CPU, devices=0)}, "needs a device: give --machine.devices"),
        ({"machine": replace(CPU, devices=3)}, "batch of 2 cannot be shared evenly by 3"),
        ({"machine": replace(CPU, precision="7-bit")}, "cannot run with these settings of --machine: .*7-bit"),
        ({"machine": replace(CPU, validate_every=0)}, "every so many iterations"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(
    changes: dict, words: str, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        fit(store, tmp_path / "run", tiny_training(), **{"data": DataConfig(32), "machine": CPU, **changes})
    assert not (tmp_path / "run").exists()


def test_a_store_without_scenes_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    empty = tmp_path / "empty.zarr"
    SceneStore.create(empty, 2, source="phantom:1", seed=0, slice_thickness=2.0, views=64, per_slice=1)
    with pytest.raises(InputError, match="holds no simulated scenes yet: start simulate again, it goes on"):
        fit(empty, tmp_path / "run", tiny_training(), DataConfig(32), machine=CPU)
    assert not (tmp_path / "run").exists()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="batches of 0"):
        StageConfig(4, 1e-3, batch=0)
    with pytest.raises(InputError, match="conditions are 11, or 0"):
        CTFlowTraining(encoder=StageConfig(4, 1e-3), flow=StageConfig(4, 1e-3), network=replace(TINY, conditions=3))
    with pytest.raises(ValueError, match="Unknown form"):
        replace(TINY, form="residuall")


def test_no_store_is_trained_and_validated_on(store: Path, tmp_path: Path) -> None:
    link = tmp_path / "same.zarr"
    link.symlink_to(store)
    with pytest.raises(InputError, match="trained and validated on"):
        fit(store, tmp_path / "run", tiny_training(), DataConfig(32), validation=link)


def test_pictures_show_mean_and_deviation(store: Path) -> None:
    pairs = PairDataset([store], 4, 32, seed=1)
    batch = torch.utils.data.default_collate([pairs[index] for index in range(4)])
    with torch.no_grad():
        images, again = stage_of("flow").pictures(batch), stage_of("flow").pictures(batch)
    assert list(images) == ["source", "estimate", "mean", "sample", "deviation", "target", "noise-free target"]
    assert all(image.shape == (4, 32, 32) for image in images.values())
    assert float(images["deviation"].min()) >= 0 and float(images["deviation"].max()) > 0
    assert torch.equal(images["sample"], again["sample"])  # what is drawn belongs to the item


def test_shipped_configurations_are_usable() -> None:
    (paper, data), (compact, _) = settings.load("ctflow-paper"), settings.load("ctflow-compact")
    assert paper.network == CTFlowConfig() and paper.encoder.iterations == 60000 and paper.flow.iterations == 50000
    assert list(paper.stages()) == ["encoder", "flow"] and paper.truth == "target"  # the paper freezes the encoder
    assert data.size == 128 and data.simulated.kernels == ("medium", "medium") and paper.mean_weight == 0.0
    kernels, _ = settings.load("ctflow-paper-kernel")
    assert kernels.encoder.iterations == 300000 and kernels.flow.iterations == 100000
    assert compact.network.form == "residual" and compact.joint.iterations > 0 and compact.mean_weight > 0
    assert np.isclose(paper.flow.rate(int(0.96 * 50000)), 1 / 16)
