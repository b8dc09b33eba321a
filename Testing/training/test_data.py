"""What training reads: told noise, the key of an item, crops without whole stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeTraining.data.pairs import PairDataset, SceneSampler
from CTHarmonizeTraining.simulation.scan import SCENE_PIXEL, SCENE_ROWS, Scene
from CTHarmonizeTraining.simulation.scenes import SceneStore


def write_store(path: Path, own: float, source: str = "chest.nrrd", slices: int = 2) -> Path:
    """A disk of tissue in air with simulated white noise of 60 HU, whose anatomy has white noise of ``own`` HU."""
    scenes = SceneStore.create(path, 3, source=source, seed=0, slice_thickness=2.0, views=8, per_slice=1)
    rng = np.random.default_rng(0)
    axis = (np.arange(SCENE_ROWS) - SCENE_ROWS / 2) * SCENE_PIXEL
    disk = np.where(np.hypot(axis[:, None], axis) < 60, 40.0, -1000.0)
    dose = np.array([100.0, 25.0, 6.25], np.float32)
    for number in range(slices):
        noise = rng.normal(0, 60 / np.sqrt(dose / 100)[:, None, None], (3, SCENE_ROWS, SCENE_ROWS))
        clean = disk + own * rng.normal(0, 1, disk.shape)
        scenes.add(number, [Scene(clean.astype(np.float32), noise.astype(np.float32), dose, (0.0, 0.0), 2.5e5)])
    return path


def told(pair: dict) -> tuple[float, float]:
    """Noise of source and target in HU, out of an item's acquisition."""
    return tuple(20.0 * np.exp(float(pair["acquisition"][index])) for index in (3, 8))


def test_the_anatomys_own_noise_is_told_with_the_simulated(tmp_path: Path) -> None:
    """As strong as the simulated noise at full dose, it is told as that, on top of what is simulated."""
    noisy, quiet = write_store(tmp_path / "noisy.zarr", 60.0), write_store(tmp_path / "quiet.zarr", 0.0)
    sampler, silent = SceneSampler(noisy), SceneSampler(quiet)
    for kernel in NAMED_KERNELS.values():
        assert sampler.own_noise(1, kernel) == pytest.approx(sampler.noise_level(1, 0, kernel), rel=0.1)
        assert silent.own_noise(1, kernel) < 1.0
        assert sampler.noise_level(1, 0, kernel) == pytest.approx(silent.noise_level(1, 0, kernel), rel=0.02)
    options = dict(kernels=("medium", "smooth"), measurement_error=0.0, seed=2)
    with_own, without = (PairDataset([path], 10, 32, **options) for path in (noisy, quiet))
    for index in range(10):
        for kernel, one, other in zip(("medium", "smooth"), told(with_own[index]), told(without[index]), strict=True):
            own = sampler.own_noise(0, NAMED_KERNELS[kernel])
            assert one == pytest.approx(np.hypot(other, own), rel=0.1)


def test_anatomy_of_a_phantom_is_no_noise(tmp_path: Path) -> None:
    """What looks like noise there is texture."""
    sampler = SceneSampler(write_store(tmp_path / "phantom.zarr", 60.0, "phantom 1"))
    assert sampler.own_noise(0, NAMED_KERNELS["sharp"]) == 0.0


def test_where_own_noise_cannot_be_measured_the_stores_median_counts(tmp_path: Path) -> None:
    path = write_store(tmp_path / "scenes.zarr", 60.0)
    store = SceneStore(path, "a")
    store.group["clean"][0] = np.full((SCENE_ROWS, SCENE_ROWS), -8000, np.int16)
    sampler = SceneSampler(path)
    assert np.array_equal(sampler.own[0], sampler.own[1]) and sampler.own[0].min() > 1.0
    store.group["clean"][1] = np.full((SCENE_ROWS, SCENE_ROWS), -8000, np.int16)
    assert not SceneSampler(path).own.any()


def test_an_item_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = write_store(tmp_path / "scenes.zarr", 0.0)
    one, other = PairDataset([path], 10, 32, seed=1), PairDataset([path], 10, 32, seed=2)
    keys = [pairs[index]["draw"] for pairs in (one, other) for index in range(4)]
    assert len({int(key) for key in keys}) == 8 and all(key.dtype == torch.int64 and key >= 0 for key in keys)
    assert torch.equal(one[3]["draw"], keys[3]) and keys[0].shape == ()
