"""Networks that make one image: their published sizes, how they are told of acquisitions, and how the engine runs
them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folder import make_model_folder
from stochastic_method import ACQUISITION, chest
from torch import nn

from CTHarmonizeLib import engine
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import method_named
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.methods.conditioning import CONDITIONS
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.conditional import ImageNetwork
from CTHarmonizeLib.networks.srresnet import SRResNet, SRResNetConfig
from CTHarmonizeLib.networks.unet import UNet, UNetConfig
from CTHarmonizeLib.networks.wgan import WGANConfig, WGANGenerator

SMALL = {
    "srresnet": {
        "blocks": 2, "channels": 16, "outer": 3, "planes": 2, "conditions": CONDITIONS, "stride": 2, "gain": 4.0,
    },
    "unet": {"channels": 8, "depth": 2, "planes": 2, "conditions": CONDITIONS, "stride": 2, "gain": 4.0},
    "wgan-mse": {"layers": 4, "channels": 8, "planes": 2, "conditions": CONDITIONS},
}  # fmt: skip


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_srresnet_is_the_published_one() -> None:
    """16 blocks of 64, 9x9 at both ends (Ledig et al. 2017); without batch normalisation's weights."""
    block = 2 * (64 * 64 * 9 + 64) + 64
    ends = (81 * 64 + 64) + (81 * 64 + 1) + 64  # with the first PReLU
    assert count(SRResNet()) == 16 * block + ends + (64 * 64 * 9 + 64)


def test_unet_is_the_original() -> None:
    """31 million parameters (Ronneberger et al. 2015, of one grey image) and a convolution in float32 before it."""
    widths = [64, 128, 256, 512, 1024]
    down = sum(9 * (one + other) * other + 2 * other for one, other in zip([64, *widths], widths, strict=False))
    up = sum(4 * 2 * w * w + w + 9 * (2 * w + w) * w + 2 * w for w in widths[:-1])
    assert count(UNet()) == down + up + (9 * 64 + 64) + (64 + 1)
    assert round(count(UNet()) / 1e6) == 31
    assert UNetConfig().multiple == 16


def test_wgan_generator_is_the_published_one() -> None:
    assert count(WGANGenerator()) == (9 * 32 + 32) + 6 * (9 * 32 * 32 + 32) + (9 * 32 + 1)


@pytest.mark.parametrize("attention", ["none", "spatial", "scse"])
def test_unet_keeps_the_shape_and_starts_near_the_last_plane(attention: str) -> None:
    torch.manual_seed(0)
    network = UNet(UNetConfig(channels=8, depth=3, attention=attention, planes=2, conditions=5, stride=2))
    planes = torch.rand(2, 2, 32, 48)
    image = network(planes, torch.randn(2, 5))
    assert image.shape == (2, 1, 32, 48) and image.dtype == torch.float32
    assert float((image - planes[:, 1:]).abs().mean()) < 0.2
    assert network.whole_slices is (attention == "scse")


@pytest.mark.parametrize("name", SMALL)
def test_what_is_told_of_the_acquisition_changes_the_image(name: str) -> None:
    torch.manual_seed(0)
    network = stirred(name)
    planes, acquisition = torch.rand(1, 2, 16, 16), torch.zeros(1, CONDITIONS)
    one, other = network(planes, acquisition), network(planes, acquisition + 1.0)
    assert float((one - other).abs().max()) > 1e-4
    exact = stirred(name)
    exact.use_precision(torch.bfloat16)
    assert torch.equal(exact.first.weight, network.first.weight)  # not rounded on the way
    with torch.inference_mode():
        half = stirred(name).use_precision(torch.bfloat16)(planes, acquisition)
    assert half.dtype == torch.float32 and float((half - one).abs().max()) < 0.03


def stirred(name: str) -> ImageNetwork:
    """The small network of a method with random weights everywhere."""
    torch.manual_seed(1)
    network = method_named(name).build(SMALL[name])
    for parameter in network.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return network


def method_of(name: str, folder: Path, network: ImageNetwork, halo: int = 48) -> Method:
    make_model_folder(folder, network, method=name, halo=halo, anchor_mm=8.0)
    return method_named(name)(load_model(folder), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("name", SMALL)
def test_the_engine_runs_it_alike_in_tiles(name: str, tmp_path: Path) -> None:
    method = method_of(name, tmp_path, stirred(name))
    volume = chest(2, 160, 176)
    whole, tiled = (
        engine.run(volume, method, ACQUISITION, ACQUISITION, engine.Settings(tile=tile, slab=slab))
        for tile, slab in ((None, 2), (64, 1))
    )
    assert not np.array_equal(whole.mean, volume.hu)
    assert np.array_equal(whole.harmonized, whole.mean) and whole.deviation is None
    assert int(np.abs(whole.mean.astype(int) - tiled.mean).max()) <= 1


def test_what_needs_whole_slices_never_sees_tiles(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = UNet(UNetConfig.from_dict({**SMALL["unet"], "attention": "scse"}))
    network.last.weight.data.mul_(20.0)
    method = method_of("unet", tmp_path, network, halo=0)
    volume = chest(1, 160, 176)
    whole, tiled = (
        engine.run(volume, method, ACQUISITION, ACQUISITION, engine.Settings(tile=tile)) for tile in (None, 64)
    )
    assert np.abs(whole.mean - volume.hu).max() > 2
    assert int(np.abs(whole.mean.astype(int) - tiled.mean).max()) <= 1


def test_a_card_of_another_network_is_one_sentence(tmp_path: Path) -> None:
    make_model_folder(tmp_path, stirred("srresnet"), method="srresnet", network={**SMALL["srresnet"], "blocks": 3})
    with pytest.raises(InputError, match="does not fit the SRResNet network"):
        method_named("srresnet")(load_model(tmp_path), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("config", [SRResNetConfig, UNetConfig, WGANConfig])
def test_configurations_read_what_they_write(config: type) -> None:
    assert config.from_dict(json.loads(json.dumps(config().as_dict()))) == config()
    with pytest.raises(ValueError, match="Unknown network settings: depht"):
        config.from_dict({"depht": 3})
