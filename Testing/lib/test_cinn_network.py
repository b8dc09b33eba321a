"""The cINN's layers and networks: the appendix's sizes, inverse and log-determinant against autograd (float64)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from test_networks import autograd_log_determinant, random_image, stirred

from CTHarmonizeLib.networks.cinn import CINN, CINNConfig, CouplingNetwork, _convolution
from CTHarmonizeLib.networks.invertible import CrossCoupling, Haar, Permutation

SMALL = CINNConfig(hidden=(6, 5), opening_hidden=4, dense_hidden=6, dense_size=32, blocks=1)
WHOLE = replace(SMALL, dense_size=None, kept=(4, 8, 12), haar=(3,), conditions=11, planes=2)
COMPACT = CINNConfig(
    planes=2, conditions=11, kept=(4, 8, 16), haar=(3,), blocks=1, hidden=(6, 5), opening_hidden=4, dense_size=None,
    convolution="orthogonal", conditioning="encoder", encoder_blocks=1, encoder_channels=8, encoder_growth=4,
    encoder_taps=(1,), feature_channels=8, form="residual", gain=4.0, residual_gain=10.0,
)  # fmt: skip


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolution(inputs: int, outputs: int, kernel: int, normalised: bool = False) -> int:
    """Parameters of a convolution, with its batch normalisation."""
    return outputs * (inputs * kernel**2 + 1) + 2 * outputs * normalised


def subnetwork(inputs: int, outputs: int, kernel: int) -> int:
    """The appendix's CNN-subnetwork: c_in -> 64 -> 92 -> c_out."""
    return convolution(inputs, 64, kernel) + convolution(64, 92, kernel) + convolution(92, outputs, kernel)


def opening(channels: int) -> int:
    """Two 1x1 convolutions (L, U and diagonal: c^2 numbers) and couplings with two subnetworks c/2 -> 64 -> 64 -> c."""
    half = channels // 2
    network = convolution(half, 64, 1) + convolution(64, 64, 1) + convolution(64, channels, 1)
    return 2 * (learned_matrix(channels) + 2 * network)


def learned_matrix(channels: int) -> int:
    """Glow's factors as they are kept: two square matrices, of which a triangle each is used, and the diagonal."""
    return 2 * channels**2 + channels


def section(channels: int, condition: int) -> int:
    networks = sum(2 * subnetwork(channels // 2 + condition, channels, kernel) for kernel in (1, 3))
    return 3 * (networks + 2 * learned_matrix(channels))


def dense(numbers: int) -> int:
    layers = ((numbers // 2 + 256, 512), (512, 512), (512, numbers))
    return 4 * 2 * sum((inputs + 1) * outputs for inputs, outputs in layers)


APPENDIX_CONDITIONING = sum(
    convolution(*layer)
    for layer in (
        (1, 32, 3), (32, 64, 3), (64, 128, 3, True), (128, 64, 3, True), (64, 32, 3, True), (32, 4, 3, True),
        (4, 32, 3, True), (32, 32, 1), (32, 32, 3, True), (32, 8, 3, True),
        (8, 32, 1), (32, 64, 3), (64, 16, 3, True),
        (16, 64, 1), (64, 64, 3), (64, 32, 3, True),
        (32, 96, 1), (96, 128, 3), (128, 32, 1, True),
        (32, 64, 3), (64, 256, 3),
    )
) + 2 * 256  # fmt: skip


@pytest.mark.parametrize("size", [352, 64])
def test_the_appendix_is_built_as_printed(size: int) -> None:
    """Parameters of every part, counted by hand, and the sizes in the appendix's table, for 352 pixels and others."""
    config = CINNConfig(dense_size=size)
    torch.manual_seed(0)
    network = CINN(config)
    assert parameters(network.conditioning) == APPENDIX_CONDITIONING
    assert [parameters(part) for part in network.openings] == [opening(channels) for channels in (4, 16, 32, 64, 128)]
    levels = ((4, 4), (8, 8), (16, 16), (32, 32), (32, 32))
    assert [parameters(part) for part in network.sections] == [section(*level) for level in levels]
    numbers = 4 * (size // 32) ** 2
    assert parameters(network.dense) == dense(numbers)
    shapes = [(8, size // 4), (16, size // 8), (32, size // 16), (96, size // 32), (28, size // 32), (4, size // 32)]
    assert network.latent_shapes(size, size) == [(channels, side, side) for channels, side in shapes]
    assert config.multiple == size and (size != 352 or numbers == 484)
    network.eval()
    with torch.inference_mode():
        target = torch.rand(1, 1, size, size)
        encoding = network.encode(torch.rand(1, 1, size, size))
        latents, _ = network(target, encoding)
        assert [tuple(latent.shape[1:]) for latent in latents] == network.latent_shapes(size, size)
        assert (network.inverse(latents, encoding) - target).abs().max() < 1e-4
        with pytest.raises(ValueError, match=f"{size} x {size} pixels, not 32 x 32"):
            network.encode(torch.rand(1, 1, 32, 32))


def test_conditioning_sizes_are_the_appendixs() -> None:
    """4, 8, 16, 32, 32 channels at half to 1/32 of 352 pixels, and 256 numbers."""
    torch.manual_seed(0)
    with torch.inference_mode():
        features, dense = CINN().eval().conditioning(torch.rand(1, 1, 352, 352), None)
    assert [tuple(level.shape[1:]) for level in features] == [
        (4, 176, 176), (8, 88, 88), (16, 44, 44), (32, 22, 22), (32, 11, 11)
    ]  # fmt: skip
    assert dense.shape == (1, 256)


def layers():
    torch.manual_seed(0)
    coupling = stirred(CrossCoupling(5, partial(CouplingNetwork, _convolution(3), (6, 4), True), 1.2))
    alone = stirred(CrossCoupling(4, partial(CouplingNetwork, _convolution(1), (6, 4), False), 1.2))
    dense = stirred(CrossCoupling(6, partial(CouplingNetwork, torch.nn.Linear, (6, 4), True), 1.2))
    shares = random_image(1, 6, 4, 6), random_image(1, 6, 4, 6).flip(1)
    numbers = random_image(1, 6), random_image(1, 6).flip(1)
    image = random_image(1, 5, 4, 6)
    for module in (coupling, alone, dense):
        module.requires_grad_(False)
    return {
        "coupling": (lambda x: coupling(x, shares), lambda z: coupling.inverse(z, shares), image),
        "unconditional": (alone, alone.inverse, image[:, :4]),
        "dense": (lambda x: dense(x, numbers), lambda z: dense.inverse(z, numbers), random_image(1, 6)),
        "haar": (Haar(), Haar().inverse, image),
        "permutation": ((permutation := Permutation(5)), permutation.inverse, image),
    }


@pytest.mark.parametrize("name", ["coupling", "unconditional", "dense", "haar", "permutation"])
def test_layer_inverts_and_tells_its_volume(name: str) -> None:
    forward, inverse, x = layers()[name]
    z, determinant = forward(x)
    assert not torch.equal(z.flatten(), x.flatten())
    assert (inverse(z) - x).abs().max() < 1e-10
    truth = autograd_log_determinant(lambda value: forward(value)[0], x)
    assert float(determinant) == pytest.approx(float(truth), abs=1e-8)


def test_haar_is_mean_and_differences() -> None:
    x = torch.tensor([[1.0, 2.0], [5.0, 10.0]])[None, None]
    assert Haar()(x)[0].flatten().tolist() == [9.0, -3.0, -6.0, 2.0]


def test_both_halves_change() -> None:
    forward, _, x = layers()["coupling"]
    assert ((forward(x)[0] - x).abs().amax((2, 3)) > 1e-3).all()


def network_and_images(config: CINNConfig, size: int):
    torch.manual_seed(0)
    network = stirred(CINN(config), 0.05)
    planes = random_image(1, config.planes, size, size) * 0.1 + 0.3
    acquisition = random_image(1, config.conditions) if config.conditions else None
    return network, planes, acquisition, random_image(1, 1, size, size) * 0.1 + 0.3


@pytest.mark.parametrize(
    ("config", "size"),
    [(SMALL, 32), (WHOLE, 8), (COMPACT, 8), (replace(COMPACT, form="direct"), 8)],
    ids=["dense", "whole", "compact", "compact direct"],
)
def test_whole_network(config: CINNConfig, size: int) -> None:
    network, planes, acquisition, target = network_and_images(config, size)
    with torch.no_grad():
        encoding = network.encode(planes, acquisition)
        latents, determinant = network(target, encoding)
        assert [tuple(latent.shape[1:]) for latent in latents] == network.latent_shapes(size, size)
        assert sum(latent.numel() for latent in latents) == target.numel()
        assert (network.inverse(latents, encoding) - target).abs().max() < 1e-9
        found = float(network.log_likelihood(target, encoding))
    encoding.estimate = encoding.estimate.detach()
    truth = autograd_log_determinant(
        lambda value: torch.cat([latent.flatten() for latent in network(value, encoding)[0]]), target
    )
    assert float(determinant) == pytest.approx(float(truth), abs=1e-6)
    normal = sum(float(-0.5 * (latent**2).sum()) for latent in latents) - size**2 / 2 * math.log(2 * math.pi)
    assert found == pytest.approx(normal + float(truth), abs=1e-6)


@pytest.mark.parametrize("config", [WHOLE, COMPACT], ids=["appendix", "compact"])
def test_source_and_acquisition_change_the_samples(config: CINNConfig) -> None:
    network, planes, acquisition, _ = network_and_images(config, 16)
    latents = [random_image(1, *shape) for shape in network.latent_shapes(16, 16)]
    with torch.no_grad():
        first = network.inverse(latents, network.encode(planes, acquisition))
        for other in (network.encode(planes.flip(-1), acquisition), network.encode(planes, acquisition + 1.0)):
            assert (network.inverse(latents, other) - first).abs().max() > 1e-3


def test_any_size_that_the_levels_divide() -> None:
    network, *_ = network_and_images(WHOLE, 8)
    planes = random_image(1, 2, 24, 40)
    with torch.no_grad():
        encoding = network.encode(planes, random_image(1, 11))
        latents, _ = network(planes[:, :1], encoding)
        assert (network.inverse(latents, encoding) - planes[:, :1]).abs().max() < 1e-9


@pytest.mark.parametrize("config", [SMALL, WHOLE, COMPACT], ids=["dense", "whole", "compact"])
def test_bfloat16_keeps_the_flow_invertible(config: CINNConfig) -> None:
    torch.manual_seed(0)
    network = CINN(config).eval()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.use_precision(torch.bfloat16)
    kept = [name for name, value in network.state_dict().items() if torch.equal(value, before[name])]
    first = "conditioning.encoder.first.weight" if config is COMPACT else "conditioning.levels.0.0.weight"
    assert first in kept and all(name in kept for name in before if "running" in name)
    assert all(p.dtype == torch.float32 for name, p in network.named_parameters() if "lower" in name)
    assert any(p.dtype == torch.bfloat16 for p in network.sections.parameters())
    planes = torch.rand(1, config.planes, 32, 32)
    target = planes[:, -1:] + 0.02 * torch.randn(1, 1, 32, 32)
    with torch.inference_mode():
        encoding = network.encode(planes, torch.rand(1, 11) if config.conditions else None)
        latents, _ = network(target, encoding)
        assert (network.inverse(latents, encoding) - target).abs().max() < 1e-3


def test_what_cannot_be_built_is_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        CINNConfig.from_dict({"colour": 3})
    for changes, words in (
        ({"form": "residuall"}, "Unknown form"),
        ({"conditioning": "none"}, "Unknown conditioning"),
        ({"kept": (4, 18)}, "cannot be kept"),
        ({"dense_size": 100}, "no multiple of 32"),
        ({"dense_kept": 40}, "cannot keep 40 of 32"),
        ({"conditioning": "encoder"}, "needs the appendix"),
    ):
        with pytest.raises(ValueError, match=words):
            replace(CINNConfig(), **changes)
    assert CINNConfig.from_dict(COMPACT.as_dict()) == COMPACT
