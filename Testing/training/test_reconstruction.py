"""Rays, classical and learned reconstruction from measurements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.networks.cinn import CINNConfig
from CTHarmonizeLib.networks.unet import UNetConfig
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.pairs import Turn
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.importing.command import import_collection
from CTHarmonizeTraining.reconstruction import classical
from CTHarmonizeTraining.reconstruction.comparison import reconstruct, score
from CTHarmonizeTraining.reconstruction.networks import (
    IRadonMap,
    IRadonMapConfig,
    LearnedGradientDescent,
    LearnedGradientDescentConfig,
    LearnedPrimalDual,
    LearnedPrimalDualConfig,
)
from CTHarmonizeTraining.reconstruction.training import WINDOW, LearnedPrimalDualTraining
from CTHarmonizeTraining.simulation.measurements import cut, measurements, observed
from CTHarmonizeTraining.simulation.projector import forward_project
from CTHarmonizeTraining.simulation.rays import Rays, RayTransform
from CTHarmonizeTraining.training.base import StageConfig
from CTHarmonizeTraining.training.cinn import CINNTraining
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.settings import DataConfig, MeasuredOptions
from CTHarmonizeTraining.training.trainer import Machine
from CTHarmonizeTraining.training.unet import UNetTraining

SMALL = Rays(side=24, views=24, beams=35)


def blobs(rays: Rays, count: int = 1) -> torch.Tensor:
    """Smooth images (count, 1, side, side) in the middle of the field."""
    x, y = (axis.numpy() / rays.width for axis in rays.grid.axes())
    random = np.random.default_rng(3)
    images = []
    for _ in range(count):
        places = random.uniform(-0.15, 0.15, (4, 2))
        image = sum(np.exp(-((x - a) ** 2 + (y[:, None] - b) ** 2) / 0.008) for a, b in places)
        images.append(0.3 * image)
    return torch.tensor(np.stack(images), dtype=torch.float32)[:, None]


def test_line_integrals_of_a_disc_are_its_chords() -> None:
    rays = Rays(side=256, views=12, beams=181)
    x, y = rays.grid.axes()
    disc = ((x - 20.0) ** 2 + (y[:, None] + 10.0) ** 2 < 60.0**2).float()[None, None]
    transform = RayTransform(rays)
    lines = transform(disc)[0, 0] * transform.unit  # metres
    angle, position = rays.geometry.angles[:, None], rays.geometry.positions
    offset = position - (20.0 * angle.cos() - 10.0 * angle.sin())
    chords = 2e-3 * (60.0**2 - offset**2).clamp_min(0).sqrt()
    inside = offset.abs() < 57.0
    assert (lines - chords)[inside].abs().max() < 0.0025  # chords of 120 mm at pixels of 1 mm
    assert (lines - chords)[inside].abs().mean() < 4e-4
    assert lines[offset.abs() > 62.0].abs().max() == 0.0


def test_line_integrals_agree_with_the_simulators_projector() -> None:
    rays = Rays(side=128, views=20, beams=91)
    image = blobs(rays)
    transform = RayTransform(rays)
    exact = forward_project(image[:, 0] / 1000.0, rays.grid.pixel, rays.geometry)[..., 0]
    assert (transform(image)[0, 0] * transform.unit - exact).abs().max() < 2e-3 * exact.max()


def test_the_adjoint_is_one_and_gradients_pass_through_both() -> None:
    transform = RayTransform(SMALL)
    x = torch.rand(2, 1, 24, 24, requires_grad=True)
    y = torch.rand(2, 1, 24, 35, requires_grad=True)
    product = (transform(x) * y).sum()
    assert product.item() == pytest.approx((x * transform.adjoint(y)).sum().item(), rel=1e-5)
    (by_x,) = torch.autograd.grad(product, x)
    assert torch.allclose(by_x, transform.adjoint(y), atol=1e-5)
    (by_y,) = torch.autograd.grad((transform.adjoint(y) * x).sum(), y)
    assert torch.allclose(by_y, transform(x), atol=1e-5)


def test_the_norm_is_near_one_at_any_size() -> None:
    for rays in (SMALL, Rays(64, 40, 93), Rays(128, 180, 183)):
        assert RayTransform(rays).norm == pytest.approx(1.0, abs=0.15)


def test_the_largest_singular_value_is_bounded_by_the_estimate() -> None:
    transform = RayTransform(SMALL)
    largest = float(torch.linalg.matrix_norm(transform.matrix.to_dense(), 2))
    assert largest <= transform.norm <= 1.03 * largest


def test_turned_images_have_turned_measurements() -> None:
    rays = Rays(side=64, views=16, beams=91)
    image = blobs(rays)
    transform = RayTransform(rays)
    lines = transform(image)
    for turns in range(4):
        for flip in (False, True):
            turn = Turn(turns, flip)
            assert torch.allclose(transform(turn(image)), turn.lines(lines), atol=1e-5)


def test_total_variation_finds_the_minimum() -> None:
    rays = Rays(side=8, views=12, beams=13)
    transform = RayTransform(rays)
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 3:7] = 0.5
    lines = transform(image) + 0.02 * torch.randn(1, 1, 12, 13, generator=torch.Generator().manual_seed(1))
    weight = 0.01

    def cost(x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (transform(x) - lines).square().sum() + weight * classical.variation(x).sum()

    found = classical.total_variation(lines * transform.unit, transform, weight, 4000)

    def with_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(values.reshape(1, 1, 8, 8), dtype=torch.float32, requires_grad=True)
        value = cost(x)
        (slope,) = torch.autograd.grad(value, x)
        return value.item(), slope.numpy().ravel().astype(np.float64)

    other = minimize(with_gradient, np.full(64, 0.2), jac=True, bounds=[(0, None)] * 64, options={"maxiter": 5000})
    assert float(cost(found)) <= other.fun * 1.002
    assert found.min() >= 0.0


def test_divergence_is_minus_the_adjoint_of_the_gradient() -> None:
    image, slopes = torch.rand(2, 1, 9, 7), torch.rand(2, 2, 1, 9, 7)
    assert float((classical.gradient(image) * slopes).sum()) == pytest.approx(
        -float((image * classical.divergence(slopes)).sum()), rel=1e-5
    )


def test_a_deep_image_prior_fits_the_measurements_and_draws_the_same_again() -> None:
    rays = Rays(side=32, views=32, beams=45)
    transform = RayTransform(rays)
    image = blobs(rays)
    observation = transform(image) * transform.unit
    start = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    found = classical.deep_image_prior(observation, start, transform, 1e-4, 150)
    assert found.shape == image.shape
    assert (found - image).square().mean() < 0.2 * (start - image).square().mean()
    assert torch.equal(found, classical.deep_image_prior(observation, start, transform, 1e-4, 150))


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_learned_primal_dual_is_the_papers() -> None:
    network = LearnedPrimalDual(LearnedPrimalDualConfig(rays=SMALL))
    assert parameters(network) == pytest.approx(2.4e5, rel=0.06)  # "2.4 * 10^5"; their dual sees no memory of its image
    assert len(network.primal) == len(network.dual) == 10
    first = network.dual[0][0], network.primal[0][0]
    assert [tuple(layer.weight.shape) for layer in first] == [(32, 7, 3, 3), (32, 6, 3, 3)]
    assert network(torch.rand(2, 1, 24, 35), torch.rand(2, 1, 24, 24)).shape == (2, 1, 24, 24)


def test_learned_gradient_descent_is_the_papers_and_starts_near_the_back_projection() -> None:
    network = LearnedGradientDescent(LearnedGradientDescentConfig(rays=SMALL))
    assert [tuple(layer.weight.shape) for layer in network.step[::2]] == [(32, 8, 3, 3), (32, 32, 3, 3), (6, 32, 3, 3)]
    image = blobs(SMALL)
    lines = network.transform(image) * network.transform.unit
    with torch.no_grad():
        assert (network(lines, image) - image).abs().max() < 0.15 * image.max()


def test_iradonmap_starts_as_a_filtered_back_projection() -> None:
    rays = Rays(side=64, views=96, beams=91)
    network = IRadonMap(IRadonMapConfig(rays=rays)).eval()
    assert network.weights.shape == (96, 64**2) and network.filter.weight.shape == (91, 91)
    image = blobs(rays)
    transform = RayTransform(rays)
    with torch.no_grad():
        found = network(transform(image) * transform.unit, torch.zeros(1, 1, 64, 64))
    assert (found - image).abs().max() < 0.03 * image.max()


@pytest.mark.parametrize(
    "network",
    [
        LearnedPrimalDual(LearnedPrimalDualConfig(rays=SMALL, iterations=3)),
        LearnedGradientDescent(LearnedGradientDescentConfig(rays=SMALL, iterations=3)),
        IRadonMap(IRadonMapConfig(rays=SMALL, channels=8)),
    ],
)
def test_each_network_learns(network: torch.nn.Module) -> None:
    torch.manual_seed(0)
    image = blobs(SMALL, 4)
    transform = RayTransform(SMALL)
    lines = (transform(image) + 0.02 * torch.randn(4, 1, 24, 35)) * transform.unit
    start = image + 0.1 * torch.randn_like(image)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    losses = []
    for _ in range(40):
        loss = (network(lines, start) - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_measurements_have_the_collections_layout_and_noise(tmp_path) -> None:
    measurements(tmp_path / "in", phantoms=3, slices=2, side=64, views=32, beams=91, photons=4096.0)
    with h5py.File(tmp_path / "in" / "ground_truth_train_000.hdf5") as file:
        truth = file["data"][:]
    with h5py.File(tmp_path / "in" / "observation_train_000.hdf5") as file:
        observation = file["data"][:]
    assert truth.shape == (2, 64, 64) and observation.shape == (2, 32, 91)
    assert truth.dtype == observation.dtype == np.float32 and 0.0 <= truth.min() and truth.max() <= 1.0
    assert (tmp_path / "in" / "patient_ids_rand_train.csv").read_text().split() in (["0"] * 2, ["1"] * 2, ["2"] * 2)
    with pytest.raises(InputError, match="not empty"):
        measurements(tmp_path / "in", phantoms=3, slices=1, side=64, views=32, beams=91)

    import_collection("lodopab-pairs", tmp_path / "in", tmp_path / "stores")
    store = next((tmp_path / "stores").glob("*train*.zarr"))
    matched = PatientStore(store).sets[0]
    assert np.array_equal(matched.observation[:], observation)
    fbp, true = (matched.hu[which].astype(float) for which in (0, 1))
    assert abs((fbp - true).mean()) < 6.0 and np.corrcoef(fbp.ravel(), true.ravel())[0, 1] > 0.9
    record = json.loads((tmp_path / "in" / "measurements.json").read_text())
    (number,) = {*(tmp_path / "in" / "patient_ids_rand_train.csv").read_text().split()}
    assert PatientStore(store).source == record["patients"][number]["source"] == f"phantom:{int(number) + 1}"

    pairs = MeasuredPairs([store], 4, 64, 1, series=("FBP", "truth"), body_share=0.0, observations=True)
    item = pairs[0]
    assert item["observation"].shape == (1, 32, 91) and item["target"].shape == (1, 64, 64)
    transform = RayTransform(Rays(64, 32, 91))
    share = (item["target"][None] + 1001.0) / 4072.0
    lines = transform(share) * transform.unit
    assert torch.corrcoef(torch.stack((lines.flatten(), item["observation"].flatten())))[0, 1] > 0.995


def test_each_pixel_is_the_mean_of_what_it_covers() -> None:
    rays = Rays(64, 32, 91)
    shift = np.random.default_rng(1).uniform(-20.0, 20.0, 2)
    rows, columns = np.indices((300, 320)) + 0.5
    image = cut(2.0 * rows - 3.0 * columns, 1.0, rays, np.random.default_rng(1))  # a plane's mean is its middle's value
    places = (np.arange(64) + 0.5) * 260.0 / 64 - 130.0
    wanted = 2.0 * (150.0 + shift[0] + places[:, None]) - 3.0 * (160.0 + shift[1] + places)
    assert image.shape == (64, 64) and np.abs(image - wanted).max() < 0.2  # the slice itself is made of pixels
    bright = np.full((300, 320), -1000.0)
    bright[150, 160] = 1000.0
    spread = cut(bright, 1.0, rays, np.random.default_rng(1)) + 1000.0
    assert spread.sum() * (260.0 / 64) ** 2 == pytest.approx(2000.0)  # nothing is counted twice or lost
    assert cut(np.full((100, 100), 40.0), 1.0, rays, np.random.default_rng(1))[0, 0] == -1000.0


def test_observations_are_as_noisy_as_their_photons_say() -> None:
    rays = Rays(32, 8, 45)
    truth = torch.full((1, 32, 32), 0.2)
    generator = torch.Generator().manual_seed(0)
    seen = torch.cat([observed(truth, rays, 4096.0, generator) for _ in range(200)])
    quiet = observed(truth, rays, 1e9, generator)[0]
    middle = (slice(None), slice(18, 27))
    p = quiet[middle] * 81.35858
    told = torch.sqrt(torch.exp(p) / 4096.0) / 81.35858  # of -log of a Poisson number
    assert float((seen.std(0)[middle] / told).mean()) == pytest.approx(1.0, abs=0.06)
    assert float((seen.mean(0) - quiet)[middle].abs().max()) < 0.3 * float(told.max())


TINY = StageConfig(iterations=3, learning_rate=1e-3, batch=2)
RAYS = Rays(64, 32, 91)
DATA = DataConfig(
    size=64, workers=0, full_dose_share=0.0, measured=MeasuredOptions(series=("FBP", "truth"), body_share=0.0)
)
CPU = Machine(accelerator="cpu", devices=1)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    measurements(folder / "in", phantoms=3, slices=2, side=64, views=32, beams=91)
    import_collection("lodopab-pairs", folder / "in", folder / "stores")
    return folder / "stores"


def test_all_methods_are_compared_on_the_same_images(stores, tmp_path) -> None:
    lpd = LearnedPrimalDualTraining(regression=TINY, network=LearnedPrimalDualConfig(rays=RAYS, iterations=2))
    unet = UNetTraining(
        regression=TINY, network=UNetConfig(channels=4, depth=1), intensity_window=WINDOW, truth="target"
    )
    small = CINNConfig(dense_size=64, kept=(4, 8), haar=(2,), blocks=1, hidden=(8, 8), dense_blocks=1, dense_hidden=8)
    cinn = CINNTraining(flow=replace(TINY, learning_rate=1e-4), network=small, intensity_window=WINDOW)
    runs = []
    for name, method in (("lpd", lpd), ("unet", unet), ("cinn", cinn)):
        fit(stores, tmp_path / name, method, DATA, machine=CPU)
        runs.append(tmp_path / name)
    reconstruct(
        stores, tmp_path / "out", runs, images=2, samples=4, prior_images=1, prior_iterations=10, device="cpu"
    )
    told = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert [entry["method"] for entry in told["methods"]] == ["FBP", "TV", "DIP + TV", "lpd", "unet", "cinn"]
    assert told["samples"]["cinn"]["samples"] == [1, 2, 4]
    by_name = {entry["method"]: entry for entry in told["methods"]}
    assert by_name["TV"]["psnr"]["value"] > by_name["FBP"]["psnr"]["value"] > 10.0
    assert by_name["DIP + TV"]["images"] == 1 and "(1 images)" in (tmp_path / "out" / "table.md").read_text()
    assert all((tmp_path / "out" / name).is_file() for name in ("reconstructions.png", "samples.png"))
    assert by_name["cinn"]["psnr"]["value"] == pytest.approx(told["samples"]["cinn"]["psnr"][-1])


def test_psnr_and_ssim_take_the_truths_own_range() -> None:
    truth = np.zeros((32, 32))
    truth[8:24, 8:24] = 0.4
    psnr, ssim = score(truth + 0.04, truth)
    assert psnr == pytest.approx(20.0) and 0.5 < ssim < 1.0
    assert score(10.0 * truth + 0.4, 10.0 * truth) == pytest.approx((psnr, ssim))


def test_what_does_not_fit_is_refused_in_one_sentence(stores, tmp_path) -> None:
    other = LearnedPrimalDualTraining(regression=TINY, network=LearnedPrimalDualConfig(rays=Rays(64, 32, 93)))
    with pytest.raises(InputError, match="91 beams"):
        fit(stores, tmp_path / "a", other, DATA, machine=CPU)
    with pytest.raises(InputError, match="data.size of 64"):
        fit(stores, tmp_path / "a", replace(other, network=LearnedPrimalDualConfig(rays=RAYS)),
            replace(DATA, size=32), machine=CPU)  # fmt: skip
    with pytest.raises(InputError, match="series"):
        fit(stores, tmp_path / "a", replace(other, network=LearnedPrimalDualConfig(rays=RAYS)),
            replace(DATA, measured=MeasuredOptions(body_share=0.0)), machine=CPU)  # fmt: skip
    fit(stores, tmp_path / "seen", replace(other, network=LearnedPrimalDualConfig(rays=RAYS)), DATA, machine=CPU)
    record = tmp_path / "seen" / "training.json"
    told = json.loads(record.read_text())
    (tested,) = stores.glob("*-test-*.zarr")
    told["stores"][0]["source"] = PatientStore(tested).source
    record.write_text(json.dumps(told))
    with pytest.raises(InputError, match="was trained on"):
        reconstruct(stores, tmp_path / "out", [tmp_path / "seen"], prior_images=0)
    with pytest.raises(InputError, match="no training.json"):
        reconstruct(stores, tmp_path / "out", [tmp_path / "none"], prior_images=0)
    assert not (tmp_path / "a").exists()
