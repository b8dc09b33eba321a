"""Training of the cINN: it learns, goes on where it stopped, leaves a model; the plateau that lowers its rate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_fit import BATCH, CPU, STEPS, Watcher
from test_training import WINDOW
from test_training import store as store  # a fixture

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.cinn import CINNMethod
from CTHarmonizeLib.methods.conditioning import CONDITIONS
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.cinn import CINN, CINNConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.scenes import SceneSampler
from CTHarmonizeTraining.training import settings
from CTHarmonizeTraining.training.base import Plateau, PlateauWatch, StageConfig
from CTHarmonizeTraining.training.cinn import CINNTraining
from CTHarmonizeTraining.training.export import write_model
from CTHarmonizeTraining.training.facts import noise_table
from CTHarmonizeTraining.training.likelihood import LikelihoodStage
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.trainer import run_stage

TINY = CINNConfig(
    planes=2, conditions=CONDITIONS, kept=(4, 8), haar=(2,), blocks=1, hidden=(8, 8), opening_hidden=4, dense_size=None,
    convolution="orthogonal", conditioning="encoder", encoder_blocks=1, encoder_channels=8, encoder_growth=4,
    encoder_taps=(1,), feature_channels=8, form="residual", gain=4.0, residual_gain=20.0,
)  # fmt: skip
APPENDIX = CINNConfig(
    planes=1, kept=(4, 8), haar=(2,), blocks=1, hidden=(8, 8), opening_hidden=4, dense_size=32, dense_blocks=1,
    dense_hidden=8,
)  # fmt: skip


def training(network: CINNConfig = TINY, plateau: Plateau | None = None, **changes: object) -> CINNTraining:
    stage = StageConfig(STEPS, 2e-3, batch=BATCH, halved_at=(), gradient_clip=1.0, weight_decay=1e-5, plateau=plateau)
    given = {"truth": "clean", "mean_weight": 4.0, "intensity_window": WINDOW, **changes}
    return CINNTraining(flow=stage, network=network, **given)


def stage_of(network: CINNConfig = TINY, **changes: object) -> LikelihoodStage:
    torch.manual_seed(0)
    method = training(network, **changes)
    return method.stage("flow", method.build())


def batch_of(store: Path, network: CINNConfig = TINY) -> dict[str, torch.Tensor]:
    pairs = PairDataset([store], 64, 32, seed=2, planes=network.planes)
    return torch.utils.data.default_collate([pairs[i] for i in range(8)])


@pytest.mark.parametrize(
    "network", [TINY, replace(TINY, form="direct"), APPENDIX], ids=["compact", "compact direct", "appendix"]
)
def test_likelihood_and_mean_are_learned(network: CINNConfig, store: Path) -> None:
    module, batch = stage_of(network), batch_of(store, network)
    module.train()
    optimizer = module.configure_optimizers()["optimizer"]
    values = []
    for _ in range(30):
        loss = module.loss(batch)
        optimizer.zero_grad()
        loss["loss"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        values.append({name: float(value.detach()) for name, value in loss.items()})
    assert values[-1]["likelihood_loss"] < values[0]["likelihood_loss"] - 0.05
    assert values[-1]["mse_hu2"] < 0.95 * values[0]["mse_hu2"]
    for name, parameter in module.network.named_parameters():  # or devices wait for gradients that never come
        assert parameter.grad is not None or not parameter.requires_grad, name


def test_noise_on_the_target_is_in_hu(store: Path) -> None:
    """Without a flow's help: at the start the latents are the target's rotation, so the likelihood tells its energy."""
    batch = batch_of(store, APPENDIX)
    losses = []
    for noise in (0.0, 400.0):
        module = stage_of(APPENDIX, mean_weight=0.0, target_noise=noise)
        with torch.no_grad():
            losses.append(float(module.eval().loss(batch)["loss"]))
    width = WINDOW[1] - WINDOW[0]
    assert losses[1] - losses[0] == pytest.approx(0.5 * (400.0 / width) ** 2, rel=0.25)


def run(module: LikelihoodStage, store: Path, folder: Path, stop: int | None = None) -> Watcher:
    planes = module.network.config.planes
    held_out = PairDataset([store], 2 * BATCH, 32, seed=2, planes=planes)
    data = Pairs(PairDataset([store], STEPS * BATCH, 32, seed=1, planes=planes), held_out, BATCH, workers=0)
    watcher = Watcher(stop)
    run_stage("test", module, data, folder, CPU, [watcher])
    return watcher


@pytest.mark.parametrize("network", [TINY, APPENDIX], ids=["compact", "appendix"])
def test_a_resumed_run_is_the_uninterrupted_one(network: CINNConfig, store: Path, tmp_path: Path) -> None:
    """With a plateau that falls before and after the interruption; batch normalisation's statistics come along."""
    plateau = Plateau(window=2, patience=1, factor=0.5, threshold=1e9)  # no loss falls by so much
    whole, resumed = (stage_of(network, plateau=plateau) for _ in range(2))
    curve = run(whole, store, tmp_path / "whole").losses
    with pytest.raises(KeyboardInterrupt):
        run(stage_of(network, plateau=plateau), store, tmp_path / "parts", stop=7)
    kept = torch.load(tmp_path / "parts" / "last.ckpt", weights_only=True)
    assert kept["global_step"] == 6 and kept["plateau"]["share"] == 0.25
    again = run(resumed, store, tmp_path / "parts").losses
    assert list(again) == [7, 8] and max(abs(again[step] - curve[step]) for step in again) < 1e-4
    assert whole._plateau.state == pytest.approx(resumed._plateau.state, rel=1e-4)
    rates = [module.optimizers().param_groups[0]["lr"] for module in (whole, resumed)]
    assert rates == pytest.approx([2e-3 * 0.125] * 2)
    for (name, one), other in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-5), name


def test_the_plateau_waits_for_its_patience() -> None:
    watch = PlateauWatch(Plateau(window=2, patience=2, factor=0.5, threshold=0.1))
    shares = []
    for loss in (3.0, 1.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 1.0, 0.5):
        watch.see(loss)
        shares.append(watch.state["share"])
    # windows: 2 (best), 2 (waits), 1 (best), 1, 0.95 (too little: falls), 0.75 (best)
    assert shares == [1.0] * 9 + [0.5] * 3 and watch.state["best"] == 0.75
    with pytest.raises(InputError, match="cannot lower a learning rate"):
        Plateau(factor=1.5)


def test_pictures_show_mean_and_deviation(store: Path) -> None:
    module = stage_of().eval()
    with torch.no_grad():
        images = module.pictures(batch_of(store))
    assert list(images) == ["source", "estimate", "mean", "sample", "deviation", "target", "noise-free target"]
    assert all(image.shape == (8, 32, 32) for image in images.values()) and float(images["deviation"].max()) > 0


def test_shipped_configurations_are_usable() -> None:
    (paper, data), (compact, _) = settings.load("cinn-paper"), settings.load("cinn-compact")
    assert paper.network == CINNConfig() and paper.mean_weight == 0.0 and data.size == paper.multiple == 352
    assert paper.flow.plateau.factor == 0.8 and paper.flow.weight_decay == 1e-5 and paper.flow.gradient_clip == 1.0
    low, high = paper.intensity_window
    assert paper.target_noise == pytest.approx(0.005 * (high - low))
    network = compact.build()
    assert compact.network.dense_size is None and compact.network.conditions == CONDITIONS
    halves = sum(parameter.numel() * (2 if parameter.ndim == 4 else 4) for parameter in network.state_dict().values())
    assert halves < 4e6


def test_export_makes_a_model_folder_that_runs_the_same_network(store: Path, tmp_path: Path) -> None:
    method = training()
    torch.manual_seed(0)
    network = method.build()
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    facts = dict(
        name="tiny", version="1", pixel_spacing=[0.45, 1.0], slice_thickness=[1, 3],
        source={"f50": [2.3, 9], "noise": [1, 200]}, target={"f50": [2.3, 9], "dose": [10, 100], "thickness": None},
        noise_at_full_dose=noise_table([SceneSampler(store)]), default_samples=4, default_temperature=1.0,
        deviation_factor=1.0, halo=32, training={"data": [], "patients": 0, "simulated": "disk"}, quality=[],
        licence="Apache-2.0",
    )  # fmt: skip
    folder = write_model(network.state_dict(), method, facts, tmp_path / "tiny")
    assert json.loads((folder / "card.json").read_text())["method"] == "cinn"
    loaded = CINNMethod(load_model(folder), torch.device("cpu"), torch.float32).network
    planes, acquisition = torch.rand(1, 2, 16, 16), torch.rand(1, CONDITIONS)
    network.eval()
    with torch.inference_mode():
        one, other = network.encode(planes, acquisition), loaded.encode(planes, acquisition)
        latents = [torch.randn(1, *shape) for shape in network.latent_shapes(16, 16)]
        assert (network.inverse(latents, one) - loaded.inverse(latents, other)).abs().max() < 2e-3
    dense = training(replace(APPENDIX, planes=2, conditions=CONDITIONS))
    with pytest.raises(InputError, match="fits only images of 32 x 32 pixels"):
        write_model(CINN(dense.network).state_dict(), dense, facts, tmp_path / "dense")
