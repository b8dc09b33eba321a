"""What training reads: told noise, the key of an item, crops without whole stores."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.measured import BODY_SHARE, MeasuredPairs
from CTHarmonizeTraining.data.pairs import FILTER_MARGIN, PairDataset
from CTHarmonizeTraining.data.patient import BLOCK, CHUNK, PatientStore, Reconstruction
from CTHarmonizeTraining.data.scenes import MEASURED, STARVED_NOISE, SceneSampler
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
    clean = SceneStore(path, "a").group["clean"]
    clean[0] = np.full((SCENE_ROWS, SCENE_ROWS), -8000, np.int16)
    sampler = SceneSampler(path)
    assert np.array_equal(sampler.own[0], sampler.own[1]) and sampler.own[0].min() > 1.0
    clean[1] = np.full((SCENE_ROWS, SCENE_ROWS), -8000, np.int16)
    (path / MEASURED).unlink()
    assert not SceneSampler(path).own.any()


def test_an_item_has_a_key_of_its_own(tmp_path: Path) -> None:
    path = write_store(tmp_path / "scenes.zarr", 0.0)
    one, other = PairDataset([path], 10, 32, seed=1), PairDataset([path], 10, 32, seed=2)
    keys = [pairs[index]["draw"] for pairs in (one, other) for index in range(4)]
    assert len({int(key) for key in keys}) == 8 and all(key.dtype == torch.int64 and key >= 0 for key in keys)
    assert torch.equal(one[3]["draw"], keys[3]) and keys[0].shape == ()


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_noise_is_measured_once_and_again_when_scenes_are_added(tmp_path: Path, monkeypatch) -> None:
    path = write_store(tmp_path / "scenes.zarr", 60.0)
    link = tmp_path / "link.zarr"
    link.symlink_to(path)
    first = PairDataset([link], 4, 32)
    assert [entry.name for entry in path.glob("*.npz")] == [MEASURED] and not list(path.glob(".*"))
    with monkeypatch.context() as context:
        context.setattr(SceneSampler, "_measure_noise", None)  # whoever calls it fails
        assert all(same(first[index], PairDataset([path], 4, 32)[index]) for index in range(4))
    (path / MEASURED).write_bytes(b"not what it was")
    assert same(first[1], PairDataset([path], 4, 32)[1])
    write_store(path, 60.0, slices=3)  # two more
    assert len(SceneSampler(path)) == len(SceneSampler(path).power) == 5


def test_a_store_that_cannot_be_written_is_measured_every_time(tmp_path: Path, monkeypatch) -> None:
    path = write_store(tmp_path / "scenes.zarr", 60.0)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(np, "savez", refuse)
    assert SceneSampler(path).own.any() and not (path / MEASURED).exists()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read_what_one_process_reads(tmp_path: Path, context: str) -> None:
    pairs = PairDataset([write_store(tmp_path / "scenes.zarr", 0.0)], 4, 32)
    expected = [pairs[index] for index in range(4)]
    loader = DataLoader(pairs, None, num_workers=1, multiprocessing_context=context)
    assert all(same(one, other) for one, other in zip(expected, loader, strict=True))


def test_a_store_counts_by_its_usable_scenes(tmp_path: Path) -> None:
    paths = [write_store(tmp_path / f"{name}.zarr", 0.0) for name in ("one", "two")]
    noise = SceneStore(paths[1], "a").group["noise"]
    noise[0] = noise[0].astype(np.float32) * STARVED_NOISE
    assert np.allclose(PairDataset(paths, 1, 32).share, [2 / 3, 1 / 3])


SLICES, SIDE, MARKED = 12, 192, 500


@pytest.fixture(scope="module")
def patient(tmp_path_factory) -> Path:
    """Two reconstructions of a box of tissue that ends after 8 slices; each voxel of the second tells its place."""
    path = tmp_path_factory.mktemp("patient") / "P.zarr"
    z, y, x = np.ogrid[:SLICES, :SIDE, :SIDE]
    inside = (np.abs(y - SIDE / 2) < 80) & (np.abs(x - SIDE / 2) < 80) & (z < 8)
    first = np.where(inside, 40, -1000).astype(np.int16)
    second = np.where(inside, 1000 * z + (y + x) % MARKED, -1000).astype(np.int16)
    told = [Acquisition(3.0, 5.0, 1.0, noise, 1.0, 2.0) for noise in (10.0, 20.0)]
    entries = [Reconstruction(name, one, dose, {}) for name, one, dose in zip("ab", told, (100, 25), strict=True)]
    PatientStore.write(path, "P", "folders", [(entries, [Volume(hu, (1.0, 1.0, 2.0)) for hu in (first, second)])])
    return path


def test_a_crop_of_several_slices_is_the_volumes(patient: Path) -> None:
    pairs = MeasuredPairs([patient], 10, 48, series=("a", "b"), depth=4)
    (matched,) = PatientStore(patient).sets
    source, marked = (matched.hu[which].astype(np.float32) for which in (0, 1))
    firsts = set()
    for index in range(8):
        planes, target = pairs[index]["planes"].numpy(), pairs[index]["target"].numpy()
        assert planes.shape == (2, 4, 48, 48) and target.shape == (1, 4, 48, 48)
        assert (target > -500).mean() >= BODY_SHARE - 0.05
        first = int(target[0, 0].max()) // 1000
        places = [
            (row, column, turn)
            for row in range(FILTER_MARGIN, SIDE - 48 - FILTER_MARGIN + 1, BLOCK)
            for column in range(FILTER_MARGIN, SIDE - 48 - FILTER_MARGIN + 1, BLOCK)
            for turn, crop in enumerate(eight(marked[first : first + 4, row : row + 48, column : column + 48]))
            if np.array_equal(target[0], crop)
        ]
        assert places
        row, column, turn = places[0]
        assert np.array_equal(planes[0], eight(source[first : first + 4, row : row + 48, column : column + 48])[turn])
        firsts.add(first)
    assert len(firsts) > 2


def eight(crop: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(crop, turns, (-2, -1)) for turns in range(4)]
    return turned + [np.flip(image, -1) for image in turned]


def test_one_slice_is_the_2d_item(patient: Path) -> None:
    flat, one = (MeasuredPairs([patient], 10, 48, seed=3, **options) for options in ({}, {"depth": 1}))
    assert same(flat[4], one[4]) and flat[4]["target"].shape == (1, 48, 48)


def test_body_is_judged_over_the_whole_crop(patient: Path) -> None:
    (matched,) = PatientStore(patient).sets
    body = matched.body.astype(int)
    places = matched.body_windows(48, 0.8, 16, depth=4)
    assert places.shape == (SLICES - 3, *body.shape[1:])
    for first, row, column in np.argwhere(places)[::7]:
        assert body[first : first + 4, row : row + 6, column : column + 6].sum() >= 0.8 * 4 * 48 * 48
    assert places[4].any() and not places[5].any()  # three slices of four are too little
    assert not matched.body_windows(48, 0.8, 16, depth=SLICES + 1).size
    with pytest.raises(InputError, match="13 x 48 x 48"):
        MeasuredPairs([patient], 10, 48, depth=SLICES + 1)
    with pytest.raises(InputError, match="not 0"):
        MeasuredPairs([patient], 10, 48, depth=0)


def test_a_crop_reads_only_the_chunks_that_it_touches(patient: Path, tmp_path: Path) -> None:
    """Where a chunk is not whole, whoever reads it fails."""
    copy = tmp_path / "P.zarr"
    shutil.copytree(patient, copy)
    pairs = MeasuredPairs([copy], 40, 48, series=("a", "b"), depth=4)
    expected = [pairs[index]["target"] for index in range(40)]
    for file in (copy / "0" / "hu" / "c").glob("*/1/*/*"):  # slices 4 to 7
        file.write_bytes(b"damaged")
    firsts = {True: set(), False: set()}
    for index, target in enumerate(expected):
        try:
            read = torch.equal(pairs[index]["target"], target)
        except ValueError:
            read = False
        firsts[read].add(int(target[0, 0].max()) // 1000)
    assert CHUNK[1] == 4 and firsts == {True: {0}, False: {1, 2, 3, 4}}
