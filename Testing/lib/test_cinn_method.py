"""The cINN through the engine: tiles, regions, seeds, temperature, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from model_folder import make_model_folder
from stochastic_method import ACQUISITION, chest
from test_cinn_network import COMPACT, SMALL, WHOLE

from CTHarmonizeLib import engine
from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.cinn import CINNMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.cinn import CINN, CINNConfig

CONFIGS = {"appendix": WHOLE, "compact": COMPACT}


def method_of(folder: Path, config: CINNConfig, halo: int = 64) -> CINNMethod:
    """A network whose every weight has moved off its start."""
    torch.manual_seed(0)
    network = CINN(config)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    make_model_folder(folder, network, method="cinn", halo=halo, anchor_mm=8.0)
    return CINNMethod(load_model(folder), torch.device("cpu"), torch.float32)


def run(method: CINNMethod, **settings: object) -> engine.Outcome:
    return engine.run(
        chest(2, 160, 176), method, ACQUISITION, ACQUISITION, engine.Settings(**{"samples": 4, "seed": 4, **settings})
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_tiles_and_regions_agree_with_the_whole(name: str, tmp_path: Path) -> None:
    method = method_of(tmp_path, CONFIGS[name])
    whole, roi = run(method), Roi((20, 90), (50, 141), (1, 2))
    assert whole.deviation.mean() > 1.0 and np.abs(whole.mean - chest(2, 160, 176).hu).mean() > 1.0
    for part, place in ((run(method, tile=48, group=3, slab=1), ...), (run(method, roi=roi), roi.index())):
        for image in ("harmonized", "mean", "deviation"):
            change = getattr(whole, image)[place].astype(float) - getattr(part, image)
            assert np.abs(change).max() <= 1.0 and np.sqrt(np.mean(change**2)) < 0.05, image


def test_without_its_halo_tiles_would_differ(tmp_path: Path) -> None:
    method = method_of(tmp_path, COMPACT, halo=0)
    method.anchor_mm = None
    assert np.abs(run(method).mean.astype(int) - run(method, tile=48).mean).max() > 1


def test_seed_and_temperature(tmp_path: Path) -> None:
    method = method_of(tmp_path, COMPACT)
    first, again, other = run(method), run(method), run(method, seed=5)
    np.testing.assert_array_equal(first.harmonized, again.harmonized)
    assert np.mean(first.harmonized != other.harmonized) > 0.3
    cool, cold = run(method, temperature=0.5), run(method, temperature=0.0)
    assert 0.3 < cool.deviation.mean() / first.deviation.mean() < 0.7
    assert cold.deviation.max() < 1e-3


def test_its_estimate_is_the_image_of_zero_latents(tmp_path: Path) -> None:
    method = method_of(tmp_path, COMPACT)
    slices = torch.from_numpy(chest(2, 64, 64).hu.astype(np.float32))
    with torch.inference_mode():
        state = method.encode(method.prepare(slices, ACQUISITION, ACQUISITION), ACQUISITION, ACQUISITION)
        zeros = [torch.zeros(1, 2, *shape) for shape in method.latent_shapes(64, 64)]
        assert torch.equal(method.sample(state, zeros)[0], method.estimate(state))
        far = method.estimate(state) + 1500.0
        assert method.implausible(far[None], state).all()
        assert not method.implausible(method.sample(state, zeros), state).any()
        assert method.implausible(torch.full_like(far, torch.nan)[None], state).all()


def test_the_dense_form_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fits only images of 32 x 32 pixels: choose a fully convolutional one"):
        method_of(tmp_path, SMALL)


def test_a_card_of_another_network_is_one_sentence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    make_model_folder(tmp_path, CINN(COMPACT), method="cinn", network={**COMPACT.as_dict(), "blocks": 2})
    with pytest.raises(InputError, match="does not fit the cINN network"):
        CINNMethod(load_model(tmp_path), torch.device("cpu"), torch.float32)
