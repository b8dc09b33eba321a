"""What the card of the shipped CTFlow promises of its network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.methods.ctflow import CTFlowMethod
from CTHarmonizeLib.models import model_for

SOURCE = Acquisition(6.0, 8.5, 1.15, 60.0, 0.7, 2.0)
TARGET = replace(SOURCE, f50=4.0, f10=6.5, mtf_peak=1.0, noise=15.0)


@pytest.fixture(scope="module")
def method() -> CTFlowMethod:
    return CTFlowMethod(model_for("ctflow", None), torch.device("cpu"), torch.float32)


def noisy_slice(size: int) -> torch.Tensor:
    """Blobs of tissue in air under noise, HU: (1, size, size)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] * 0.1
    tissue = np.where(np.sin(x) + np.cos(0.7 * y) > 0, 40.0, -900.0) + 500.0 * (np.sin(0.31 * x * y) > 0.97)
    return torch.from_numpy((tissue + rng.normal(0, 60, (size, size))).astype(np.float32))[None]


def sample(method: CTFlowMethod, planes: torch.Tensor, latents: list[torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return method.sample(method.encode(planes, SOURCE, TARGET), latents)[0, 0]


def largest_difference(method: CTFlowMethod, halo: int) -> float:
    """HU, between the middle of a slice computed whole and computed with ``halo`` pixels around it."""
    size, core = 320, slice(144, 176)
    planes = method.prepare(noisy_slice(size), SOURCE, TARGET)
    generator = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 1, *shape, generator=generator) for shape in method.latent_shapes(size, size)]
    whole = sample(method, planes, latents)[core, core]
    low, high = core.start - halo, core.stop + halo
    cut = [
        latent[..., low >> level : high >> level, low >> level : high >> level]
        for level, latent in enumerate(latents, start=1)
    ]
    part = sample(method, planes[..., low:high, low:high], cut)[halo:-halo, halo:-halo]
    return float((part - whole).abs().max())


def test_the_cards_halo_hides_the_tiles(method: CTFlowMethod) -> None:
    assert largest_difference(method, method.halo) < 0.05
    assert largest_difference(method, 8) > 1.0  # or the line above would prove nothing


def test_bfloat16_keeps_the_estimate(method: CTFlowMethod) -> None:
    """Soft tissue is not rounded to the steps that bfloat16 has there (8 HU) before the network sees it."""
    flat = torch.full((1, 64, 64), 47.0)
    coarse = CTFlowMethod(method.model, torch.device("cpu"), torch.bfloat16)
    moved = []
    for planes in (method.prepare(flat, SOURCE, TARGET), method.prepare(flat + 3.0, SOURCE, TARGET)):
        estimates = [one.estimate(one.encode(planes, SOURCE, TARGET)) for one in (method, coarse)]
        moved.append([float(estimate[0, 24:40, 24:40].mean()) for estimate in estimates])
    assert moved[1][1] - moved[0][1] == pytest.approx(moved[1][0] - moved[0][0], abs=1.0)
    assert np.allclose([one[1] for one in moved], [one[0] for one in moved], atol=1.0)
