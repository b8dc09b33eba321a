"""Noise, scans and the store of scenes."""

import numpy as np
import pytest
import torch

from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.simulation import scan
from CTHarmonizeTraining.simulation.noise import Exposure, add_noise, extra_noise
from CTHarmonizeTraining.simulation.projector import Geometry, Grid
from CTHarmonizeTraining.simulation.scan import base_scenes, body_mask, seeded_generator, simulate
from CTHarmonizeTraining.simulation.scenes import SceneStore, simulate_scenes


def water_disk(n: int = 96, pixel: float = 1.0, radius: float = 36.0) -> torch.Tensor:
    x, y = Grid(n, n, pixel).axes()
    distance = torch.hypot(x, y[:, None])
    return ((radius - distance) / pixel + 0.5).clamp(0, 1).float()[None] * 1000.0 - 1000.0


def test_noise_has_the_variance_of_photons_and_electronics():
    p = torch.tensor([0.0, 2.0, 4.0]).repeat(200_000, 1)
    exposure = Exposure(2.5e5, 5.0)
    for dose in (100.0, 10.0):
        noise = add_noise(p, dose, 0.25, seeded_generator("cpu", 1), exposure) - p
        counts = dose / 100 * exposure.photons / 3 * torch.exp(-p[0])
        expected = (1 / counts + exposure.electronic**2 / 3 / counts**2).sqrt()
        assert torch.allclose(noise.std(0), expected, rtol=0.02)
        assert (noise.mean(0).abs() < 4 * expected / len(p) ** 0.5 + 5e-4).all()


def test_few_photons_bias_the_logarithm_little():
    p = torch.full((400_000, 1), 5.0)
    exposure = Exposure(20 * 3 * float(np.exp(5.0)), 5.0)  # 20 counts a detector
    noisy = add_noise(p, 100.0, 0.25, seeded_generator("cpu", 1), exposure)
    assert torch.isfinite(noisy).all()
    assert abs((noisy - p).mean().item()) < 0.01


def test_one_dose_for_each_entry():
    p = torch.ones(100_000, 2)
    noise = add_noise(p, [100.0, 25.0], 0.25, seeded_generator("cpu", 5)) - p
    assert (noise[:, 1].std() / noise[:, 0].std()).item() == pytest.approx(2.0, rel=0.02)


def test_extra_noise_makes_up_the_difference_between_two_doses():
    p = torch.tensor([0.0, 3.0, 6.0]).repeat(200_000, 1)  # the last has 20 counts at 10 %
    full = add_noise(p, 100.0, 0.25, seeded_generator("cpu", 1)) - p
    low = add_noise(p, 10.0, 0.25, seeded_generator("cpu", 2)) - p
    extra = extra_noise(p, 100.0, 10.0, 0.25, seeded_generator("cpu", 3))
    assert torch.allclose(full.var(0) + extra.var(0), low.var(0), rtol=0.03)
    assert extra_noise(p, 50.0, 50.0, 0.25, seeded_generator("cpu", 3)).abs().max() == 0


def test_exposure_of_several_slices_is_that_of_the_sum_of_their_readings():
    p = torch.full((200_000, 1), 5.0)
    thin = [add_noise(p, 10.0, 0.25, seeded_generator("cpu", k)).neg().exp() for k in (1, 2, 3, 4)]
    mean = torch.stack(thin).mean(0).log().neg()
    thick = add_noise(p, 10.0, 0.25, seeded_generator("cpu", 5), Exposure().of_slices(4))
    assert thick.std().item() == pytest.approx(mean.std().item(), rel=0.02)


def test_a_scan_is_right_in_the_mean_and_noisier_with_less_dose():
    disk = water_disk()
    grid = Grid(64, 64, 0.8)
    geometry = Geometry.covering(96.0, views=240)
    full = simulate(disk, 1.0, NAMED_KERNELS["medium"], 100.0, grid, geometry, seed=4)
    again = simulate(disk, 1.0, NAMED_KERNELS["medium"], 100.0, grid, geometry, seed=4)
    other = simulate(disk, 1.0, NAMED_KERNELS["medium"], 100.0, grid, geometry, seed=5)
    quarter = simulate(disk, 1.0, NAMED_KERNELS["medium"], 25.0, grid, geometry, seed=4)
    assert torch.equal(full.noisy, again.noisy)
    assert not torch.equal(full.noisy, other.noisy)
    assert full.clean[0, 10:-10, 10:-10].mean().abs() < 1.0
    noise, more = full.noisy - full.clean, quarter.noisy - quarter.clean
    assert (more.std() / noise.std()).item() == pytest.approx(2.0, rel=0.05)
    assert abs(noise.mean().item()) < 0.5


def test_noise_of_a_disk_centre_is_that_of_theory():
    """Kak & Slaney eq. 5.3: variance at the centre from that of the projections' filtered noise."""
    disk, kernel = water_disk(64, 1.0, 20.0), NAMED_KERNELS["medium"]
    geometry = Geometry.covering(64.0, views=240)
    grid = Grid(6, 6, 1.6)
    draws = [simulate(disk, 1.0, kernel, 100.0, grid, geometry, seed=seed) for seed in range(40)]
    measured = torch.stack([draw.noisy - draw.clean for draw in draws]).std().item()
    counts = 2.5e5 / 3 * np.exp(-40 * 0.0192)
    f = np.linspace(0, 2.0, 20001)  # lp/mm
    gain = f * kernel(10 * f) / np.sinc(f * geometry.pitch)
    spectrum = 2 * np.trapezoid(gain**2, f) * geometry.pitch / counts
    expected = np.sqrt(np.pi**2 / geometry.views * spectrum) / 0.0192 * 1000
    assert measured == pytest.approx(expected, rel=0.08)


def test_body_mask_leaves_the_table_out_and_the_lungs_in():
    hu = np.full((128, 128), -1000.0)
    y, x = np.mgrid[:128, :128]
    hu[np.hypot(x - 64, y - 56) < 40] = 40.0
    hu[np.hypot(x - 64, y - 56) < 15] = -850.0
    hu[104:108, 10:118] = 200.0
    mask = body_mask(hu, 2.0)
    assert mask[56, 64] and mask[30, 64]
    assert not mask[105].any()


@pytest.fixture
def small_scenes(monkeypatch):
    monkeypatch.setattr(scan, "SCENE_ROWS", 32)
    monkeypatch.setattr("CTHarmonizeTraining.simulation.scenes.SCENE_ROWS", 32)


def test_scenes_depend_on_their_key_alone(small_scenes):
    slices = torch.cat((water_disk(), water_disk() + 20.0))
    both = base_scenes(slices, 1.0, [(7, 0), (7, 1)], per_slice=2, realisations=3, views=120)
    alone = base_scenes(slices[1:], 1.0, [(7, 1)], per_slice=2, realisations=3, views=120)
    for one, other in zip(both[1], alone[0], strict=True):
        assert one.centre == other.centre
        np.testing.assert_array_equal(one.dose, other.dose)
        np.testing.assert_allclose(one.clean, other.clean, atol=0.1)
        np.testing.assert_allclose(one.noise.std((1, 2)), other.noise.std((1, 2)), rtol=0.15)
    scene = both[0][0]
    assert scene.clean.shape == (32, 32) and scene.noise.shape == (3, 32, 32)
    assert scene.dose[0] == 100.0 and (scene.dose[1:] >= 5).all() and (scene.dose[1:] <= 100).all()
    assert both[0][0].photons != both[1][0].photons
    expected = scene.noise[0].std() * np.sqrt(100.0 / scene.dose)
    np.testing.assert_allclose(scene.noise.std((1, 2)), expected, rtol=0.15)


def test_the_store_resumes_and_keeps_the_values(small_scenes, tmp_path):
    slices = np.concatenate((water_disk().numpy(), np.full((1, 96, 96), -1000.0), water_disk().numpy()))

    def slice_of(index: int) -> np.ndarray:
        return slices[index - 4]

    settings = dict(source="disk", slice_thickness=3.0, seed=9, per_slice=2, realisations=3, views=120)
    part = simulate_scenes(slice_of, 1.0, [4, 5], tmp_path / "a.zarr", **settings)
    assert len(part) == 2 and part.finished() == {4, 5}
    resumed = simulate_scenes(slice_of, 1.0, [4, 5, 6], tmp_path / "a.zarr", batch=1, **settings)
    whole = simulate_scenes(slice_of, 1.0, [4, 5, 6], tmp_path / "b.zarr", batch=3, **settings)
    assert len(resumed) == len(whole) == 4
    for index in range(4):
        np.testing.assert_allclose(resumed[index].clean, whole[index].clean, atol=0.25)
        np.testing.assert_array_equal(resumed[index].dose, whole[index].dose)
    again = simulate_scenes(slice_of, 1.0, [4, 5, 6], tmp_path / "c.zarr", batch=3, **settings)
    np.testing.assert_array_equal(again[3].noise, whole[3].noise)
    scene = base_scenes(torch.from_numpy(slices).float(), 1.0, [(9, 4), (9, 5), (9, 6)], 2, 3, 120)[0][0]
    np.testing.assert_allclose(whole[0].clean, scene.clean, atol=0.07)
    np.testing.assert_allclose(whole[0].noise, scene.noise, rtol=2e-3, atol=0.05)
    assert SceneStore(tmp_path / "a.zarr").group.attrs["pixel_mm"] == 0.4
    with pytest.raises(InputError, match="other settings"):
        simulate_scenes(slice_of, 1.0, [4], tmp_path / "a.zarr", **{**settings, "seed": 1})
