"""Rendered pairs, the two stages, resume, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import fft

from CTHarmonizeLib.ct.measure import measure_noise
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import CONDITIONS
from CTHarmonizeLib.methods.ctflow import CTFlowMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.ctflow import CTFlow, CTFlowConfig
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.data.render import PixelGrid, Sampler, crop_window, seen_through
from CTHarmonizeTraining.data.scenes import SceneSampler
from CTHarmonizeTraining.simulation.projector import wide_band_mtf
from CTHarmonizeTraining.simulation.scan import SCENE_PIXEL, SCENE_ROWS, Scene
from CTHarmonizeTraining.simulation.scenes import SceneStore
from CTHarmonizeTraining.training.base import StageConfig
from CTHarmonizeTraining.training.ctflow import CTFlowTraining, FlowStage
from CTHarmonizeTraining.training.export import write_model
from CTHarmonizeTraining.training.facts import noise_table

TINY = CTFlowConfig(
    encoder_blocks=1, encoder_channels=8, encoder_growth=4, encoder_taps=(1,), encoder_stride=2, planes=2,
    conditions=CONDITIONS, steps=1, hidden=8, feature_channels=8, form="residual", gain=4.0, residual_gain=10.0,
    convolution="orthogonal",
)  # fmt: skip
WINDOW = (-1100.0, 3071.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Two slices of white noise of 20 HU (at 100 %) over a disk of tissue in air."""
    path = tmp_path_factory.mktemp("store") / "scenes.zarr"
    scenes = SceneStore.create(path, 3, source="disk", seed=0, slice_thickness=2.0, views=8, per_slice=1)
    rng = np.random.default_rng(0)
    axis = (np.arange(SCENE_ROWS) - SCENE_ROWS / 2) * SCENE_PIXEL
    disk = np.where(np.hypot(axis[:, None], axis) < 60, 40.0, -1000.0)
    dose = np.array([100.0, 25.0, 6.25], np.float32)
    for number in range(2):
        noise = rng.normal(0, 20 / np.sqrt(dose / 100)[:, None, None], (3, SCENE_ROWS, SCENE_ROWS))
        scenes.add(number, [Scene(disk.astype(np.float32), noise.astype(np.float32), dose, (0.0, 0.0), 2.5e5)])
    return path


def test_sampler_is_exact_for_a_plane_wave() -> None:
    """A wave of known frequency comes out with its kernel's modulation, at any pixel size and phase."""
    pixel, frequency, mtf = 0.4, 1.5, Mtf.from_points(3.0)  # lp/cm
    x = np.arange(200) * pixel
    cycles = round(frequency / 10 * 200 * pixel) / (200 * pixel)
    image = np.cos(2 * np.pi * cycles * x)[None, :] * np.ones((200, 1))
    grid = PixelGrid(31, 0.73, (37.3, 41.1))
    sampler = Sampler(image.shape, pixel, (0.0, 0.0), grid, seen_through(mtf, wide_band_mtf()))
    seen = sampler(fft.rfft2(image.astype(np.float32)))
    expected = mtf(np.array([10 * cycles]))[0] * np.cos(2 * np.pi * cycles * grid.positions(0))
    assert np.abs(seen - expected).max() < 2e-3


def test_a_window_of_the_scene_gives_the_scenes_values(store: Path) -> None:
    scenes = SceneSampler(store)
    grid = PixelGrid(40, 0.6, (60.0, 75.0))
    whole = (slice(0, scenes.size), slice(0, scenes.size))
    part = crop_window(grid, scenes.size, scenes.pixel, 10.0)
    images = [
        scenes.sampler(window, grid, NAMED_KERNELS["medium"])(scenes.spectrum(0, None, window))
        for window in (whole, part)
    ]
    assert np.abs(images[0] - images[1]).max() < 0.5  # of 1040 HU


def test_noise_level_is_the_noise_that_a_crop_shows(store: Path) -> None:
    scenes = SceneSampler(store)
    grid = PixelGrid(150, 0.8, (70.4, 70.4))
    window = crop_window(grid, scenes.size, scenes.pixel, 6.0)
    for kernel in NAMED_KERNELS.values():
        seen = scenes.sampler(window, grid, kernel)(scenes.spectrum(1, 1, window))
        assert scenes.noise_level(1, 1, kernel) == pytest.approx(seen.std(), rel=0.08)
    assert scenes.noise_level(0, 2, kernel) == pytest.approx(4 * scenes.noise_level(0, 0, kernel), rel=0.03)


def test_noise_is_told_as_it_is_measured_in_tissue(tmp_path: Path) -> None:
    """Three times the noise in tissue as elsewhere: the tissue's counts, as for who measures an image."""
    path = tmp_path / "scenes.zarr"
    scenes = SceneStore.create(path, 2, source="disk", seed=0, slice_thickness=2.0, views=8, per_slice=1)
    rng = np.random.default_rng(1)
    axis = (np.arange(SCENE_ROWS) - SCENE_ROWS / 2) * SCENE_PIXEL
    inside = np.hypot(axis[:, None], axis) < 45
    noise = rng.normal(0, [[[20.0]], [[80.0]]], (2, SCENE_ROWS, SCENE_ROWS)) * np.where(inside, 3.0, 1.0)
    disk = np.where(inside, 40.0, -1000.0)
    dose = np.array([100.0, 6.25], np.float32)
    scenes.add(0, [Scene(disk.astype(np.float32), noise.astype(np.float32), dose, (0.0, 0.0), 2.5e5)])
    sampler = SceneSampler(path)
    grid, window = PixelGrid(180, 0.7, (70.4, 70.4)), (slice(0, SCENE_ROWS), slice(0, SCENE_ROWS))
    kernel = NAMED_KERNELS["medium"]
    spectra = sampler.spectrum(0, None, window) + sampler.spectrum(0, 1, window)
    measured = measure_noise(sampler.sampler(window, grid, kernel)(spectra), grid.pixel)
    assert sampler.noise_level(0, 1, kernel) == pytest.approx(measured.sigma, rel=0.08)


def test_a_store_starved_of_photons_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "scenes.zarr"
    scenes = SceneStore.create(path, 1, source="disk", seed=0, slice_thickness=2.0, views=8, per_slice=1)
    noise = np.random.default_rng(0).normal(0, 2000, (1, SCENE_ROWS, SCENE_ROWS)).astype(np.float32)
    flat = np.full((SCENE_ROWS, SCENE_ROWS), 40.0, np.float32)
    scenes.add(0, [Scene(flat, noise, np.array([100.0], np.float32), (0.0, 0.0), 2.5e5)])
    with pytest.raises(InputError, match="starved of photons"):
        SceneSampler(path)


def test_pairs_are_reproducible_and_in_place(store: Path) -> None:
    pairs = PairDataset([store], 100, 32, seed=3)
    first, again, other = pairs[5], PairDataset([store], 100, 32, seed=3)[5], pairs[6]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["planes"], other["planes"])
    assert first["planes"].shape == (2, 32, 32) and first["target"].shape == first["clean"].shape == (1, 32, 32)
    assert first["acquisition"].shape == (CONDITIONS,)
    for number in range(12):  # source, filtered source, truth and target show the same place
        pair = pairs[number]
        if pair["clean"].std() > 200:
            for image in (pair["planes"][0], pair["planes"][1], pair["target"][0]):
                assert np.corrcoef(image.flatten(), pair["clean"][0].flatten())[0, 1] > 0.9


def test_an_empty_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no simulated scenes"):
        SceneSampler(tmp_path)


def stage_config(iterations: int) -> StageConfig:
    return StageConfig(iterations, 2e-3, batch=2, warmup=2)


def test_learning_rate_halves_where_the_paper_says() -> None:
    config = StageConfig(1000, 1e-4)
    assert [config.rate(step) for step in (0, 499, 500, 750, 900, 950)] == [1, 1, 0.5, 0.25, 0.125, 0.0625]


def test_the_flow_learns_the_noise_and_leaves_a_frozen_encoder_alone(store: Path) -> None:
    torch.manual_seed(0)
    network = CTFlow(TINY).train()
    module = FlowStage(network, stage_config(30), WINDOW)
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    pairs = PairDataset([store], 64, 32, seed=2)
    batch = torch.utils.data.default_collate([pairs[i] for i in range(8)])
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(30):
        loss = module.loss(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0] - 0.05, losses
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items())


@pytest.mark.parametrize("frozen", [True, False])
def test_the_samples_mean_is_drawn_towards_the_truth(store: Path, frozen: bool) -> None:
    """From a start where pair means are wrong, the mean term moves the flow, and the encoder only if it is let."""
    torch.manual_seed(0)
    network = CTFlow(TINY).train()
    module = FlowStage(network, stage_config(30), WINDOW, mean_weight=4.0, freeze_encoder=frozen)
    before = {name: value.clone() for name, value in network.encoder.state_dict().items()}
    pairs = PairDataset([store], 64, 32, seed=2)
    batch = torch.utils.data.default_collate([pairs[i] for i in range(8)])
    optimizer = module.configure_optimizers()["optimizer"]
    errors = []
    for _ in range(40):
        values = module.loss(batch)
        optimizer.zero_grad()
        values["loss"].backward()
        optimizer.step()
        errors.append(float(values["mse_hu2"]))
    assert errors[-1] < 0.9 * errors[0], errors
    assert errors[-1] < float(values["estimate_mse_hu2"]) or not frozen
    assert all(torch.equal(value, before[name]) for name, value in network.encoder.state_dict().items()) == frozen


def test_export_makes_a_model_folder_that_runs_the_same_network(store: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = CTFlow(TINY)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    method = CTFlowTraining(
        encoder=stage_config(1), flow=stage_config(1), network=TINY, intensity_window=WINDOW, anchor_mm=8.0
    )
    facts = dict(
        name="tiny", version="1", pixel_spacing=[0.45, 1.0], slice_thickness=[1, 3],
        source={"f50": [2.3, 9], "noise": [1, 200]}, target={"f50": [2.3, 9], "dose": [10, 100], "thickness": None},
        noise_at_full_dose=noise_table([SceneSampler(store)]), default_samples=4, default_temperature=0.8,
        deviation_factor=1.0, halo=32, training={"data": [], "patients": 0, "simulated": "disk"}, quality=[],
        licence="Apache-2.0",
    )  # fmt: skip
    folder = write_model(network.state_dict(), method, facts, tmp_path / "tiny")
    sigma = json.loads((folder / "card.json").read_text())["noise_at_full_dose"]["sigma"]
    assert np.all(np.diff(sigma) > 0) and 0 < sigma[0] < 20
    loaded = CTFlowMethod(load_model(folder), torch.device("cpu"), torch.float32).network
    planes, acquisition = torch.rand(1, 2, 16, 16), torch.rand(1, CONDITIONS)
    network.eval()
    with torch.inference_mode():
        one, other = network.encode(planes, acquisition), loaded.encode(planes, acquisition)
        assert (one.estimate - other.estimate).abs().max() < 2e-3  # half precision of the encoder's weights
        latents = [torch.randn(1, *shape) for shape in network.latent_shapes(16, 16)]
        assert (network.inverse(latents, one) - loaded.inverse(latents, other)).abs().max() < 1e-3
