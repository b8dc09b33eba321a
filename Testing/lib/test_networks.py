"""Invertible layers and CTFlow: inverse, log-determinant against autograd (float64), size, conditions."""

from __future__ import annotations

import math

import pytest
import torch

from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeLib.networks.invertible import (
    ActNorm,
    FlowStep,
    InvertibleConvolution,
    Split,
    Squeeze,
    TransitionStep,
    soft_clamp,
)

SMALL = CTFlowConfig(
    encoder_blocks=2, encoder_channels=8, encoder_growth=4, encoder_taps=(1, 2), steps=2, hidden=8
)  # fmt: skip
CONDITIONED = CTFlowConfig(
    encoder_blocks=1, encoder_channels=8, encoder_growth=4, encoder_taps=(1,), encoder_stride=2, planes=2,
    conditions=11, steps=2, hidden=8, feature_channels=8, form="residual", gain=4.0, residual_gain=10.0,
    convolution="orthogonal",
)  # fmt: skip


def stirred(module: torch.nn.Module, amount: float = 0.1) -> torch.nn.Module:
    """The module in float64 with every parameter moved off its start, where zero weights would hide errors."""
    module = module.double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data += amount * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return module


def autograd_log_determinant(function, x: torch.Tensor) -> torch.Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda flat: function(flat.view(x.shape)).flatten(), x.flatten())
    return torch.linalg.slogdet(jacobian)[1]


def random_image(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def layers():
    torch.manual_seed(0)
    features = random_image(1, 6, 3, 5)
    step = stirred(FlowStep(4, 6, 1.2, "plu"))
    even = stirred(TransitionStep(4, 1.2, "orthogonal"))
    norm = stirred(ActNorm(4))
    mixing = stirred(InvertibleConvolution(4, "plu"))
    return {
        "step": (lambda x, s: step(x, s), step.inverse, step.condition(features, features.flip(1))),
        "transition": (lambda x, s: even(x, s), even.inverse, even.condition()),
        "norm": (lambda x, s: norm(x), lambda z, s: norm.inverse(z), None),
        "plu": (lambda x, s: mixing(x), mixing.inverse, mixing.condition()),
    }


@pytest.mark.parametrize("kind", ["plu", "orthogonal"])
def test_mixed_precision_does_not_round_what_inverts(kind: str) -> None:
    mixing = stirred(InvertibleConvolution(8, kind)).float()
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        z, _ = mixing(x)
        again = mixing.inverse(z, mixing.condition())
    assert torch.allclose(again, x, atol=1e-5)



@pytest.mark.parametrize("name", ["step", "transition", "norm", "plu"])
def test_layer_inverts_and_tells_its_volume(name: str) -> None:
    forward, inverse, state = layers()[name]
    x = random_image(1, 4, 3, 5)
    z, determinant = forward(x, state)
    assert not torch.allclose(z, x, atol=0.05)
    assert (inverse(z, state) - x).abs().max() < 1e-10
    truth = autograd_log_determinant(lambda value: forward(value, state)[0], x)
    assert float(determinant) == pytest.approx(float(truth), abs=1e-8)


def test_squeeze_only_moves_pixels() -> None:
    x = random_image(2, 3, 4, 6)
    z, determinant = Squeeze()(x)
    assert z.shape == (2, 12, 2, 3) and (determinant == 0).all()
    assert torch.equal(Squeeze().inverse(z), x)


def test_split_standardises_what_leaves() -> None:
    split = stirred(Split(4, 1.2))
    x = random_image(1, 4, 3, 5)
    kept, latent, determinant = split(x)
    assert (split.inverse(kept, latent) - x).abs().max() < 1e-12
    truth = autograd_log_determinant(lambda value: torch.cat(split(value)[:2], 1), x)
    assert float(determinant) == pytest.approx(float(truth), abs=1e-10)


def test_log_scales_are_bounded_both_ways() -> None:
    x = torch.tensor([-1e9, -1.0, 0.0, 1e-4, 1e9], dtype=torch.float64)
    y = soft_clamp(x, 1.5)
    assert y.abs().max() <= 1.5 and torch.equal(y, -soft_clamp(-x, 1.5))
    assert float(y[3]) == pytest.approx(1e-4, rel=1e-6)


def test_actnorm_starts_at_zero_mean_unit_variance_once() -> None:
    norm = ActNorm(3).train()
    x = 5.0 + 3.0 * torch.randn(4, 3, 8, 8)
    z, _ = norm(x)
    assert z.mean((0, 2, 3)).abs().max() < 1e-5 and (z.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    again, _ = norm(2 * x)
    assert again.std() > 1.5, "a second batch must not initialise it again"


def image_and_network(config: CTFlowConfig, size: int = 8):
    torch.manual_seed(0)
    network = stirred(CTFlow(config))
    planes = random_image(1, config.planes, size, size) * 0.1 + 0.3
    acquisition = random_image(1, config.conditions) if config.conditions else None
    return network, planes, acquisition, random_image(1, 1, size, size) * 0.1 + 0.3


@pytest.mark.parametrize("config", [SMALL, CONDITIONED], ids=["paper form", "conditioned residual"])
def test_whole_network(config: CTFlowConfig) -> None:
    network, planes, acquisition, target = image_and_network(config)
    encoding = network.encode(planes, acquisition)
    latents, determinant = network(target, encoding)
    assert [tuple(latent.shape[1:]) for latent in latents] == network.latent_shapes(8, 8)
    assert sum(latent.numel() for latent in latents) == target.numel()
    assert (network.inverse(latents, encoding) - target).abs().max() < 1e-9
    truth = autograd_log_determinant(
        lambda value: torch.cat([latent.flatten() for latent in network(value, encoding)[0]]), target
    )
    assert float(determinant) == pytest.approx(float(truth), abs=1e-6)
    normal = sum(float(-0.5 * (latent**2).sum()) for latent in latents) - 32 * math.log(2 * math.pi)
    assert float(network.log_likelihood(target, encoding)) == pytest.approx(normal + float(truth), abs=1e-6)


def test_paper_size() -> None:
    """About 10 M encoder and 19 M flow parameters; 320 feature channels; 16 x H/8 x W/8 last latent."""
    network = CTFlow()
    encoder = sum(parameter.numel() for parameter in network.encoder.parameters())
    flow = sum(parameter.numel() for parameter in network.levels.parameters())
    assert encoder == pytest.approx(10.1e6, rel=0.02) and flow == pytest.approx(19e6, rel=0.02)
    assert network.embedding is None and network.encoder.feature_channels == 320
    assert network.latent_shapes(512, 512) == [(2, 256, 256), (4, 128, 128), (16, 64, 64)]
    assert [len(level.opening) + len(level.steps) for level in network.levels] == [18, 18, 18]


def test_conditions_change_the_estimate_and_the_samples() -> None:
    network, planes, acquisition, target = image_and_network(CONDITIONED)
    other = acquisition + 1.0
    first, second = network.encode(planes, acquisition), network.encode(planes, other)
    assert not torch.allclose(first.estimate, second.estimate)
    latents = [random_image(1, *shape) for shape in network.latent_shapes(8, 8)]
    residuals = [network.inverse(latents, code) * 4.0 - code.estimate for code in (first, second)]
    assert not torch.allclose(*residuals)


def test_any_size_that_the_levels_divide() -> None:
    network, *_ = image_and_network(SMALL)
    planes = random_image(1, 1, 24, 40)
    encoding = network.encode(planes)
    latents, _ = network(planes, encoding)
    assert (network.inverse(latents, encoding) - planes).abs().max() < 1e-9


def test_bfloat16_keeps_the_flow_invertible() -> None:
    """Subnetworks in bfloat16 see the same input both ways, so the inverse is as exact as float32 is."""
    torch.manual_seed(0)
    network = CTFlow(CONDITIONED).eval()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    network.use_precision(torch.bfloat16)
    planes, target = torch.rand(1, 2, 16, 16), torch.rand(1, 1, 16, 16)
    with torch.inference_mode():
        encoding = network.encode(planes, torch.rand(1, 11))
        latents, _ = network(target, encoding)
        assert (network.inverse(latents, encoding) - target).abs().max() < 1e-3


def test_unknown_settings_are_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        CTFlowConfig.from_dict({"colour": 3})
    assert CTFlowConfig.from_dict(CONDITIONED.as_dict()).as_dict() == CONDITIONED.as_dict()
