"""Regression and adversarial training of image networks, and the features that judge them."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit import BATCH, CPU, STEPS, Watcher
from test_training import WINDOW
from test_training import store as store  # a fixture
from torch import Tensor, nn
from torch.nn import functional as F

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.conditioning import CONDITIONS
from CTHarmonizeLib.networks.unet import UNetConfig
from CTHarmonizeLib.networks.wgan import WGANConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.training import perceptual, settings, wgan
from CTHarmonizeTraining.training.adversarial import AdversarialStage, Game
from CTHarmonizeTraining.training.base import StageConfig
from CTHarmonizeTraining.training.curves import read_log
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.image import UNIT_HU, NetworkTraining, RegressionStage, penalized
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.perceptual import (
    AcquisitionFeatures,
    FeatureConfig,
    FeaturesTraining,
    VGGFeatures,
    load_features,
)
from CTHarmonizeTraining.training.settings import DataConfig
from CTHarmonizeTraining.training.trainer import run_stage
from CTHarmonizeTraining.training.unet import UNetTraining
from CTHarmonizeTraining.training.wgan import (
    CriticConfig,
    PatchCritic,
    PerceptualStage,
    WGANMSETraining,
    WGANVGGTraining,
)

SMALL_UNET = UNetConfig(channels=8, depth=1, planes=2, conditions=CONDITIONS, stride=2, gain=4.0)
SMALL_WGAN = WGANConfig(layers=3, channels=8, planes=2, conditions=CONDITIONS)
SMALL_CRITIC = CriticConfig((4, 4, 8), 16, sees_source=True)


def stage_config(iterations: int = STEPS) -> StageConfig:
    return StageConfig(iterations, 2e-3, batch=BATCH, warmup=2, average=0.9)


def data(store: Path, count: int = STEPS, validated: bool = True) -> Pairs:
    held_out = PairDataset([store], 2 * BATCH, 32, seed=2) if validated else None
    return Pairs(PairDataset([store], count * BATCH, 32, seed=1), held_out, BATCH, workers=0)


def adversarial_stage(kind: str = "wasserstein") -> AdversarialStage:
    torch.manual_seed(0)
    game = Game(kind=kind, adversarial=0.01, critic_rate=1e-3, critic_steps=2)
    method = WGANMSETraining(
        adversarial=stage_config(), network=SMALL_WGAN, critic=SMALL_CRITIC, game=game, intensity_window=WINDOW
    )
    stage = method.stage("adversarial", method.build())
    assert type(stage) is AdversarialStage
    return stage


def test_penalties_are_those_of_their_names() -> None:
    error = torch.tensor([UNIT_HU, -3 * UNIT_HU])
    assert float(penalized(error, "l1")) == pytest.approx(2.0)
    assert float(penalized(error, "mse")) == pytest.approx(5.0)


def test_regression_learns(store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = UNetTraining(regression=stage_config(40), network=SMALL_UNET, intensity_window=WINDOW, truth="clean")
    stage = method.stage("regression", method.build())
    assert type(stage) is RegressionStage
    held_out = PairDataset([store], 8, 32, seed=2)
    batch = torch.utils.data.default_collate([held_out[index] for index in range(8)])
    before = float(stage.loss(batch)["loss"])
    run_stage("test", stage, data(store, 40, validated=False), tmp_path, CPU)
    assert float(stage.loss(batch)["loss"]) < 0.75 * before
    assert set(stage.pictures(batch)) == {"source", "estimate", "target", "noise-free target"}


@pytest.mark.parametrize("kind", ["wasserstein", "hinge"])
def test_a_resumed_game_is_the_uninterrupted_one(kind: str, store: Path, tmp_path: Path) -> None:
    whole, resumed = adversarial_stage(kind), adversarial_stage(kind)
    watcher = Watcher()
    run_stage("test", whole, data(store), tmp_path / "whole", CPU, [watcher])
    with pytest.raises(KeyboardInterrupt):
        run_stage("test", adversarial_stage(kind), data(store), tmp_path / "parts", CPU, [Watcher(4)])
    again = Watcher()
    run_stage("test", resumed, data(store), tmp_path / "parts", CPU, [again])
    assert list(again.losses) == [4, 5, 6, 7, 8]
    assert max(abs(again.losses[step] - watcher.losses[step]) for step in again.losses) < 1e-5
    for one, other in ((whole, resumed), (whole.critic, resumed.critic)):
        for name, value in one.state_dict().items():
            assert torch.allclose(value, other.state_dict()[name], atol=1e-6), name


def test_the_critic_learns_and_is_none_of_the_networks_weights(store: Path, tmp_path: Path) -> None:
    stage = adversarial_stage()
    before = {name: value.clone() for name, value in stage.critic.state_dict().items()}
    assert all(name.startswith("network.") for name in stage.state_dict())
    run_stage("test", stage, data(store), tmp_path, CPU)
    unchanged = {name for name, value in stage.critic.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged <= {"dense.bias", "last.bias"}  # a constant tells nothing apart
    assert {"validation_verdict", "validation_mse_hu2"} <= set(read_log(tmp_path).columns)


def test_gradient_penalty_of_a_critic_whose_slope_is_known() -> None:
    """A critic that sums its input times 3 / sqrt(pixels) has a gradient of norm 3 everywhere."""
    side = 8

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(3.0 / side))

        def forward(self, image: Tensor, planes: Tensor, acquisition: Tensor) -> Tensor:
            return self.slope * image.flatten(1).sum(1)

    stage = adversarial_stage()
    stage._opponent = (Slope(), None)
    target = torch.full((2, 1, side, side), 50.0)
    batch = {"target": target, "planes": target, "acquisition": torch.zeros(2, 11), "draw": torch.tensor([1, 2])}
    made = torch.zeros_like(target)
    values = stage.critic_loss(made, batch, 0)
    distance = 3.0 / side * side**2 * 50.0 / UNIT_HU
    assert float(values["gradient_norm"]) == pytest.approx(3.0, rel=1e-5)
    assert float(values["distance"]) == pytest.approx(distance, rel=1e-5)
    assert float(values["loss"]) == pytest.approx(10.0 * (3.0 - 1.0) ** 2 - distance, rel=1e-5)
    stage.game = replace(stage.game, kind="hinge")
    hinge = max(0.0, 1.0 - distance) + 1.0
    assert float(stage.critic_loss(made, batch, 0)["loss"]) == pytest.approx(hinge, rel=1e-5)


def test_what_is_not_finite_stops_the_critic_too(store: Path, tmp_path: Path) -> None:
    stage = adversarial_stage()
    next(stage.critic.parameters()).data.fill_(torch.nan)
    with pytest.raises(CannotRunError, match="critic's loss became nan at step 0"):
        run_stage("test", stage, data(store, validated=False), tmp_path, CPU)


def test_the_published_critic() -> None:
    """Figure 2 of Yang et al. (2018): 64, 64, 128, 128, 256, 256 filters, 1024 and 1 units, for 64 x 64 pixels."""
    critic = PatchCritic(CriticConfig(), planes=2, conditions=0)
    widths = [1, 64, 64, 128, 128, 256, 256]
    convolutions = sum(9 * one * other + other for one, other in zip(widths, widths[1:], strict=False))
    dense = 256 * 8 * 8 * 1024 + 1024 + 1024 + 1
    assert sum(parameter.numel() for parameter in critic.parameters()) == convolutions + dense
    seen = []
    critic.convolutions[-1].register_forward_hook(lambda module, given, made: seen.append(made.shape))
    assert critic(torch.zeros(3, 1, 64, 64), torch.zeros(3, 2, 64, 64), torch.zeros(3, 11)).shape == (3,)
    assert seen == [(3, 256, 8, 8)]


def test_features_are_trained_and_then_judge(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FeaturesTraining(reading=stage_config(4), network=FeatureConfig((4, 8)))
    fit(store, tmp_path / "features", method=method, data=DataConfig(size=32, workers=0), machine=CPU)
    features = load_features(str(tmp_path / "features"))
    one, other = torch.randn(2, 1, 32, 32) * 100.0, torch.randn(2, 1, 32, 32) * 100.0
    assert float(features.distance(one, one)) == 0.0 < float(features.distance(one, other))
    assert float(features.texture(one, one)) == 0.0 < float(features.texture(one, 3.0 * other))
    assert [tuple(made.shape) for made in features.maps(one)] == [(2, 4, 32, 32), (2, 8, 16, 16)]
    game = WGANVGGTraining(
        adversarial=stage_config(2), network=SMALL_WGAN, critic=SMALL_CRITIC, intensity_window=WINDOW,
        features=str(tmp_path / "features"),
    )  # fmt: skip
    read = []
    monkeypatch.setattr(wgan, "load_features", lambda name: read.append(name) or load_features(name))
    fit(store, tmp_path / "run", method=game, data=DataConfig(size=32, workers=0), machine=CPU)
    assert (tmp_path / "run" / "network.safetensors").is_file()
    assert read == [str(tmp_path / "features")]  # once, however often its stage is made
    with pytest.raises(InputError, match="Features are no method"):
        method.card()
    with pytest.raises(InputError, match="training of something else"):
        load_features(str(tmp_path / "run"))
    with pytest.raises(InputError, match="holds no features: give vgg19"):
        load_features(str(tmp_path))


def test_distance_of_features_pulls_the_generator(store: Path) -> None:
    method = WGANVGGTraining(adversarial=stage_config(), network=SMALL_WGAN, critic=SMALL_CRITIC)
    network = method.build()
    settings = method.adversarial, method.intensity_window, method.truth, method.new_critic(), method.game
    stage = PerceptualStage(network, *settings, features=AcquisitionFeatures())
    batch = torch.utils.data.default_collate([data(store).training[index] for index in range(2)])
    stage.content(stage.image(batch), batch).backward()
    assert float(network.last.weight.grad.abs().max()) > 0.0
    assert not any("features" in name for name in stage.state_dict())


def fake_torchvision(monkeypatch: pytest.MonkeyPatch, vgg19) -> None:
    """A stand-in for torchvision, whose VGG-19 is asked for by its weights' name."""
    models = types.ModuleType("torchvision.models")
    entry = types.SimpleNamespace(url="https://example.org/vgg19-0.pth")
    models.VGG19_Weights, models.vgg19 = types.SimpleNamespace(IMAGENET1K_V1=entry), vgg19
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def vgg19_layers() -> nn.Sequential:
    """VGG's configuration E (Simonyan & Zisserman 2014, table 1)."""
    layers, incoming = [], 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            layers += [nn.Conv2d(incoming, width, 3, padding=1), nn.ReLU()]
            incoming = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def test_vgg_features_lie_where_the_papers_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights: where they come from is torchvision's."""
    fake_torchvision(monkeypatch, lambda weights: types.SimpleNamespace(features=vgg19_layers()))
    features = load_features("vgg19")
    assert isinstance(features, VGGFeatures)
    assert [type(features.network[index]) for index in features.POOLS] == 5 * [nn.MaxPool2d]
    convolutions = [index for index, layer in enumerate(features.network) if isinstance(layer, nn.Conv2d)]
    assert convolutions.index(features.DEEPEST) == 15  # the 16th
    hu = torch.full((1, 1, 32, 32), -250.0)  # the middle of the window
    x = features.network[0]((torch.full((1, 3, 32, 32), 0.5) - features.mean) / features.deviation)
    assert torch.allclose(features._at(hu, (0,))[0], x)
    assert [made.shape[-1] for made in features.maps(hu)] == [16, 8, 4, 2, 1]
    assert float(features.distance(hu, hu)) == 0.0 < float(features.distance(hu, hu + 100 * torch.rand_like(hu)))


def test_texture_is_the_difference_of_normed_gram_matrices() -> None:
    class Known(perceptual.Features):
        def maps(self, hu: Tensor) -> list[Tensor]:
            return [hu]

        def distance(self, one: Tensor, other: Tensor) -> Tensor:
            return F.mse_loss(one, other)

    one = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # Gram matrix: identity, of norm sqrt(2)
    other = torch.tensor([[[[1.0, 1.0]], [[1.0, 1.0]]]])  # twos, of norm 4
    expected = ((torch.eye(2) / 2**0.5 - torch.full((2, 2), 0.5)) ** 2).mean()
    assert float(Known().texture(one, other)) == pytest.approx(float(expected), rel=1e-6)


def test_missing_vgg_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(CannotRunError, match="needs the package torchvision"):
        load_features("vgg19")

    def offline(weights: object) -> None:
        raise OSError("no network")

    fake_torchvision(monkeypatch, offline)
    with pytest.raises(CannotRunError, match=r"no network.*vgg19-0\.pth to .*checkpoints"):
        load_features("vgg19")


CONFIGURATIONS = sorted(path.stem for path in Path(settings.shipped("ctflow-paper")).parent.glob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_shipped_configuration_can_be_built(name: str) -> None:
    method, data = settings.load(name)
    assert data.size % method.multiple == 0
    stages = method.stages()
    assert stages and all(stage.iterations > 0 for stage in stages.values())
    if isinstance(method, NetworkTraining):
        assert method.card()["network"] == method.network.as_dict()
        assert method_named(method.method).name == method.method
