"""LPIPS: what the network is shown, the published formula, and what is said where the weights cannot be had.

All weights here are random: what is tested is the arithmetic and the road to the weights, never a ranking.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from CTHarmonizeLib.errors import CannotRunError, InputError
from CTHarmonizeTraining.evaluation import perception
from CTHarmonizeTraining.evaluation.perception import Lpips, available, load_lpips

CPU = torch.device("cpu")
ADDRESS = "https://example.org/models/"


def layers(backbone: str) -> nn.Sequential:
    """The convolutions of AlexNet (Krizhevsky 2014) and of VGG's configuration D, in torchvision's order."""
    if backbone == "alex":
        sizes = [(3, 64, 11, 4, 2), None, (64, 192, 5, 1, 2), None, (192, 384, 3, 1, 1), (384, 256, 3, 1, 1)]
        sizes += [(256, 256, 3, 1, 1), None]
        pool = nn.MaxPool2d(3, 2)
    else:
        sizes, incoming, pool = [], 3, nn.MaxPool2d(2)
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                sizes.append((incoming, width, 3, 1, 1))
                incoming = width
            sizes.append(None)
    made = []
    for size in sizes:
        made += [pool] if size is None else [nn.Conv2d(*size[:3], stride=size[3], padding=size[4]), nn.ReLU()]
    return nn.Sequential(*made)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights for each network."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    for backbone in perception.BACKBONES:
        torch.save(layers(backbone).state_dict(), folder / backbone)
    return folder


@pytest.fixture
def torchvision(drawn: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """A stand-in that has the two networks, and reads their weights from torch's folder of downloads."""
    if importlib.util.find_spec("lpips") is None:
        pytest.skip("the package lpips is not installed")
    models = types.ModuleType("torchvision.models")

    def built(backbone: str, entry: types.SimpleNamespace):
        def build(pretrained: bool) -> types.SimpleNamespace:
            assert pretrained
            with torch.device("meta"):  # drawing them again would take its time
                features = layers(backbone)
            place = Path(torch.hub.get_dir(), "checkpoints", entry.url.rsplit("/", 1)[-1])
            features.load_state_dict(torch.load(place, weights_only=True), assign=True)
            return types.SimpleNamespace(features=features)

        return build

    for backbone, name, function in (("alex", "AlexNet", "alexnet"), ("vgg", "VGG16", "vgg16")):
        digest = hashlib.sha256((drawn / backbone).read_bytes()).hexdigest()[:8]
        entry = types.SimpleNamespace(url=f"{ADDRESS}{function}-{digest}.pth")
        setattr(models, f"{name}_Weights", types.SimpleNamespace(IMAGENET1K_V1=entry))
        setattr(models, function, built(backbone, entry))
    package = types.ModuleType("torchvision")
    package.models = models
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        monkeypatch.delitem(sys.modules, name)  # it holds on to the torchvision that it was imported with
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return models


def kept(drawn: Path, tmp_path: Path, models: types.ModuleType, backbone: str) -> Path:
    """Weights where torch would put its download."""
    url = getattr(models, perception.BACKBONES[backbone][1]).IMAGENET1K_V1.url
    place = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1]
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(drawn / backbone, place)
    return place


def chest(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1000.0, 400.0, (2, side, side)).astype(np.float32)


def published(network: nn.Module, one: np.ndarray, other: np.ndarray) -> float:
    """Zhang et al. 2018, equation 1: unit-normed features, squared difference, weighted channels, mean over places."""
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def features(hu: np.ndarray) -> list[torch.Tensor]:
        seen = torch.from_numpy((hu + 1000.0) / 750.0 - 1.0).float().expand(1, 3, -1, -1)
        return [F.normalize(map_, dim=1, eps=1e-10) for map_ in network.net((seen - mean) / deviation)]

    total = 0.0
    for number, (a, b) in enumerate(zip(features(one), features(other), strict=True)):
        weights = getattr(network, f"lin{number}").model[1].weight
        total += float(((a - b) ** 2 * weights.view(1, -1, 1, 1)).sum(1).mean())
    return total


@pytest.mark.parametrize("backbone", ["alex", "vgg"])
def test_it_is_the_published_distance(
    backbone: str, drawn: Path, torchvision: types.ModuleType, tmp_path: Path
) -> None:
    place = kept(drawn, tmp_path, torchvision, backbone)
    found = load_lpips(backbone, CPU)
    assert place.name in found.about and "-1000..500" in found.about and "noisy target" in found.about
    one, other = chest(), chest(1)
    with torch.no_grad():
        expected = np.mean([published(found.network, *pair) for pair in zip(one, other, strict=True)])
    assert found(one, other) == pytest.approx(expected, rel=1e-4) and expected > 0.0
    assert found(one, one) == 0.0
    clipped = one + np.where(one > 390.0, 1000.0, 0.0)
    assert found(clipped, np.where(one > 390.0, 500.0, one)) == 0.0, "beyond the window nothing is seen"
    assert found(one[:, :60], other[:, :60]) is None


def test_only_the_named_weights_count(drawn: Path, torchvision: types.ModuleType, tmp_path: Path, capsys) -> None:
    with pytest.raises(CannotRunError, match=r"ImageNet weights cannot be had .*: download https://example.org/.* to "):
        load_lpips("alex", CPU)
    place = kept(drawn, tmp_path, torchvision, "alex")
    torch.manual_seed(9)
    torch.save(layers("alex").state_dict(), place)
    with pytest.raises(CannotRunError, match="does not hold AlexNet's ImageNet weights"):
        load_lpips("alex", CPU)
    kept(drawn, tmp_path, torchvision, "alex")
    assert list(available(["vgg", "alex", "alex"], CPU)) == ["alex"]
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith("LPIPS (vgg) is left out: VGG-16's ImageNet weights cannot be had")


def test_without_the_packages_it_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    assert available(["alex"], CPU) == {}
    assert "LPIPS (alex) is left out: it needs the packages lpips and torchvision" in capsys.readouterr().err
    with pytest.raises(InputError, match="no LPIPS with 'squeeze': choose from alex, vgg"):
        available(["squeeze"], CPU)
    assert available([], CPU) == {}


def test_a_stand_in_is_shown_grey_images() -> None:
    class Seen(nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            assert one.shape == (1, 3, 64, 64) and torch.equal(one[:, 0], one[:, 2])
            return (one - other).mean()

    hu = np.full((1, 64, 64), 500.0, np.float32)
    assert Lpips(Seen(), "", CPU)(hu, np.full_like(hu, -1000.0)) == pytest.approx(2.0)
