"""Training of methods that make thin slices of thick ones: what they read, how they learn, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_fit import CPU, Watcher
from torch.utils.data import default_collate

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.conditioning import acquisitions_of
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.sngan import VolumeGeneratorConfig
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.patient import SIMULATED, PatientStore, Reconstruction
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.adversarial import AdversarialStage, Game
from CTHarmonizeTraining.training.base import StageConfig, Training, TrainingStage
from CTHarmonizeTraining.training.cnn3d import CNN3DTraining
from CTHarmonizeTraining.training.export import write_model
from CTHarmonizeTraining.training.facts import data_facts
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.image import RegressionStage
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.origin import check_test_stores
from CTHarmonizeTraining.training.settings import DataConfig, MeasuredOptions
from CTHarmonizeTraining.training.sngan import SNGANTraining, VolumeCritic, VolumeCriticConfig
from CTHarmonizeTraining.training.trainer import run_stage
from CTHarmonizeTraining.training.unet import UNetTraining

SLICES, SIDE = 12, 96
THICK = MeasuredOptions(series=("source", "target"), averaged_slices=2)
DATA = DataConfig(size=16, depth=3, workers=0, full_dose_share=1.0, measured=THICK)
NETWORK = VolumeGeneratorConfig(blocks=1, channels=8, conditions=11, stride=2, gain=4.0, skip="linear", initial=0.3)
WINDOW = (-1100.0, 3071.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Tissue with a rod that moves from slice to slice; 40 HU of noise in the source, 10 in the target, 1 mm slices."""
    path = tmp_path_factory.mktemp("volumes") / "V.zarr"
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[:SLICES, :SIDE, :SIDE]
    body = np.where((np.abs(y - 48) < 44) & (np.abs(x - 48) < 44), 40.0, -1000.0)
    body = body + 200.0 * (np.hypot(y - 30 - 3 * z, x - 48) < 8)
    told = [Acquisition(4.0, 6.6, 1.0, noise, 0.7, 1.0) for noise in (40.0, 10.0)]
    images = [np.rint(body + rng.normal(0.0, one.noise, body.shape)).astype(np.int16) for one in told]
    facts = {"source": {"kernel": "medium", "dose": 6.25}, "target": {"kernel": "medium", "dose": 100.0}}
    facts |= {"inserted_noise": False, "beam": "parallel"}
    names = zip(("source", "target"), told, (6.25, 100.0), strict=True)
    entries = [Reconstruction(name, one, dose, facts) for name, one, dose in names]
    sets = [(entries, [Volume(hu, (0.7, 0.7, 1.0)) for hu in images])]
    PatientStore.write(path, "V", SIMULATED, sets, "phantom:1")
    return path


def pairs(store: Path, count: int, seed: int = 1) -> MeasuredPairs:
    return MeasuredPairs(
        [store], count, 16, planes=1, seed=seed, series=("source", "target"), depth=3, averaged_slices=2
    )


def stage_config(iterations: int = 6, rate: float = 2e-3) -> StageConfig:
    return StageConfig(iterations, rate, batch=2, warmup=2, average=0.9)


def cnn(iterations: int = 6, rate: float = 2e-3) -> CNN3DTraining:
    return CNN3DTraining(regression=stage_config(iterations, rate), network=NETWORK, intensity_window=WINDOW)


def gan(iterations: int = 6) -> SNGANTraining:
    critic = VolumeCriticConfig((4, 4, 8, 8), 8, told=True)
    game = Game(kind="hinge", adversarial=0.005, critic_rate=1e-3, critic_betas=(0.5, 0.999))
    return SNGANTraining(
        adversarial=stage_config(iterations), network=NETWORK, critic=critic, game=game, intensity_window=WINDOW
    )


def stage_of(method: Training, seed: int = 0) -> TrainingStage:
    torch.manual_seed(seed)
    (name,) = method.stages()
    return method.stage(name, method.build())


def test_thick_slices_are_means_of_two_where_the_target_lies(store: Path) -> None:
    (matched,) = PatientStore(store).sets
    source, target = (matched.hu[which].astype(np.float32) for which in (0, 1))
    thick = {first: source[first : first + 6].reshape(3, 2, SIDE, SIDE).mean(1).round() for first in range(7)}
    for index in range(4):
        item = pairs(store, 4)[index]
        planes, wanted = item["planes"].numpy()[0], item["target"].numpy()[0]
        assert planes.shape == (3, 16, 16) and wanted.shape == (6, 16, 16)
        assert any(
            np.array_equal(wanted, turned(target[first : first + 6, row : row + 16, column : column + 16], turn))
            and np.array_equal(planes, turned(thick[first][:, row : row + 16, column : column + 16], turn))
            for first in thick
            for row in range(0, SIDE - 15, 8)
            for column in range(0, SIDE - 15, 8)
            for turn in range(8)
        )


def turned(crop: np.ndarray, turn: int) -> np.ndarray:
    crop = np.rot90(crop, turn % 4, (-2, -1))
    return np.flip(crop, -1) if turn >= 4 else crop


def test_the_thick_slices_acquisition_is_told(store: Path) -> None:
    source, target = acquisitions_of(pairs(store, 1)[0]["acquisition"].tolist())
    assert source.slice_thickness == pytest.approx(2.0) and target.slice_thickness == pytest.approx(1.0)
    assert source.noise == pytest.approx(40.0 / 2**0.5) and target.noise == pytest.approx(10.0)


def test_the_published_critic() -> None:
    """Eight 3^3 convolutions from 64 to 512 filters, 4^3 voxels of them, dense layers of 512 and 1."""
    critic = VolumeCritic(VolumeCriticConfig(), 11)
    widths = [1, 64, 64, 128, 128, 256, 256, 512, 512]
    convolutions = sum(27 * one * other + other for one, other in zip(widths, widths[1:], strict=False))
    dense = 512 * 64 * 512 + 512 + 512 + 1
    assert sum(parameter.numel() for parameter in critic.parameters()) == convolutions + dense
    seen = []
    critic.convolutions[-1].register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape[1:])))
    with torch.no_grad():
        assert critic(torch.zeros(1, 1, 32, 64, 64), torch.zeros(0), torch.zeros(1, 11)).shape == (1,)
    assert seen == [(512, 4, 4, 4)]


def test_the_critics_layers_have_norm_one() -> None:
    torch.manual_seed(0)
    critic = VolumeCritic(VolumeCriticConfig((4, 8), 8), 0)
    image = torch.randn(1, 1, 8, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(50):
            verdict = critic(image, torch.zeros(0), torch.zeros(1, 11))
    assert verdict.isfinite().all()
    for layer in (*critic.convolutions, critic.dense, critic.last):
        norm = torch.linalg.matrix_norm(layer.eval().weight.detach().flatten(1), 2)
        assert float(norm) == pytest.approx(1.0, rel=0.02)


def test_regression_learns_to_beat_interpolation(store: Path, tmp_path: Path) -> None:
    """The network begins near the interpolated source: noise goes, and the rod gets its place in each thin slice."""
    stage = stage_of(cnn(120))
    assert type(stage) is RegressionStage
    batch = default_collate([pairs(store, 8, seed=2)[index] for index in range(8)])
    before = float(stage.loss(batch)["mse_hu2"])
    run_stage("test", stage, Pairs(pairs(store, 240), None, 2, workers=0), tmp_path, CPU)
    assert float(stage.loss(batch)["mse_hu2"]) < 0.9 * before
    images = stage.pictures(batch)
    assert set(images) == {"source", "estimate", "target"}
    assert {tuple(image.shape) for image in images.values()} == {(8, 16, 16)}
    assert torch.equal(images["target"], batch["target"][:, 0, 3])


@pytest.mark.parametrize("method", [cnn(), gan()], ids=["cnn3d", "sngan"])
def test_a_resumed_run_is_the_uninterrupted_one(method: Training, store: Path, tmp_path: Path) -> None:
    whole, resumed = stage_of(method), stage_of(method)
    watcher, again = Watcher(), Watcher()

    def data() -> Pairs:
        return Pairs(pairs(store, 12), None, 2, workers=0)

    machine = replace(CPU, checkpoint_every=1)
    run_stage("test", whole, data(), tmp_path / "whole", machine, [watcher])
    with pytest.raises(KeyboardInterrupt):
        run_stage("test", stage_of(method), data(), tmp_path / "parts", machine, [Watcher(3)])
    run_stage("test", resumed, data(), tmp_path / "parts", machine, [again])
    assert 0 < len(again.losses) < len(watcher.losses) == 6
    assert max(abs(again.losses[step] - watcher.losses[step]) for step in again.losses) < 1e-5
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name


def test_the_game_teaches_both(store: Path, tmp_path: Path) -> None:
    stage = stage_of(gan())
    assert type(stage) is AdversarialStage and stage.game.kind == "hinge"
    before = {name: value.clone() for name, value in stage.critic.named_parameters()}
    first = stage.network.trunk.weight.clone()
    run_stage("test", stage, Pairs(pairs(store, 12), pairs(store, 4, 3), 2, workers=0), tmp_path, CPU)
    changed = [name for name, value in stage.critic.named_parameters() if not torch.equal(value, before[name])]
    assert len(changed) >= len(before) - 1  # a constant tells nothing apart
    assert not torch.equal(first, stage.network.trunk.weight)


def test_fit_facts_and_model_folder(store: Path, tmp_path: Path) -> None:
    """Trained by 'fit' with a configuration's depth, kept as a model that the engine reads."""
    method = cnn(2)
    fit(store, tmp_path / "run", method=method, data=DATA, machine=CPU)
    kept, data = settings.load(tmp_path / "run" / settings.CONFIG)
    assert (data.depth, data.measured.averaged_slices, kept.ratio) == (3, 2, 2)
    facts = data_facts([store], DATA)
    assert facts["target"]["thickness"] == [0.95, 1.05] and facts["slice_thickness"] == [1.9, 2.1]
    assert facts["source"]["noise"] == pytest.approx([0.95 * 28.28, 1.05 * 28.28], abs=0.02)
    assert facts["noise_at_full_dose"]["slice_thickness"] == 1.0
    from safetensors.torch import load_file

    facts |= {"name": "Thin", "version": "1", "default_samples": 1, "default_temperature": 1.0, "halo": 0}
    facts |= {"deviation_factor": 1.0, "quality": [], "licence": "none"}
    facts["training"] = {"data": [], "patients": 0, "simulated": "all"}
    model = write_model(load_file(tmp_path / "run" / "network.safetensors"), method, facts, tmp_path / "model")
    loaded = method_named("cnn3d")(load_model(model), torch.device("cpu"), torch.float32)
    assert (loaded.factor, loaded.context, loaded.halo) == (2, 5, 13)


def test_one_networks_weights_start_the_others(store: Path, tmp_path: Path) -> None:
    method = cnn(2)
    fit(store, tmp_path / "cnn", method=method, data=DATA, machine=CPU)
    from safetensors.torch import load_file

    facts = data_facts([store], DATA) | {"name": "Thin", "version": "1", "default_samples": 1, "licence": "none"}
    facts |= {"default_temperature": 1.0, "deviation_factor": 1.0, "quality": [], "halo": 0}
    facts["training"] = {"data": [], "patients": 0, "simulated": "all"}
    model = write_model(load_file(tmp_path / "cnn" / "network.safetensors"), method, facts, tmp_path / "model")
    fit(store, tmp_path / "gan", method=gan(1), data=DATA, initial=str(model), machine=CPU)
    assert (tmp_path / "gan" / "network.safetensors").is_file()


@pytest.mark.parametrize(
    ("method", "data", "words"),
    [
        (cnn(), replace(DATA, measured=MeasuredOptions()), "makes 2 slices of each: .* not 1 and 3"),
        (cnn(), replace(DATA, depth=1), "not 2 and 1"),
        (UNetTraining(regression=stage_config()), replace(DATA, size=64), "works on single slices"),
    ],
)
def test_slices_that_do_not_fit_are_one_sentence(
    method: Training, data: DataConfig, words: str, store: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        fit(store, tmp_path / "run", method=method, data=data, machine=CPU)


def test_paper_configurations_are_the_papers() -> None:
    for name in ("sngan-paper", "cnn3d-paper"):
        method, data = settings.load(name)
        assert method.network == VolumeGeneratorConfig() and (data.size, data.depth) == (64, 16)
        (stage,) = method.stages().values()
        assert [stage.rate(step) for step in (100, 20000, 40001)] == [1.0, 0.5, 0.25]
        assert (stage.batch, stage.betas, stage.learning_rate) == (14, (0.5, 0.999), 1e-5)


def test_only_stores_that_were_not_trained_on_count(store: Path) -> None:
    with pytest.raises(InputError, match="'V' was trained on"):
        check_test_stores({"sources": ["phantom:1"]}, [store])
    check_test_stores({"sources": ["phantom:2"]}, [store])
    with pytest.raises(InputError, match="Give volumes"):
        check_test_stores({"sources": []}, None)
