"""Pairs from LoDoPaB-CT's observations: our reconstruction lies on the ground truth and has its HU; fit reads them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from test_cinn_training import APPENDIX, CPU, training
from test_import import write_lodopab

from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.data.measured import MeasuredPairs
from CTHarmonizeTraining.data.patient import PatientStore
from CTHarmonizeTraining.importing.anatomy import MU_MAX
from CTHarmonizeTraining.importing.command import import_collection
from CTHarmonizeTraining.importing.observations import reconstructed
from CTHarmonizeTraining.training.fit import fit
from CTHarmonizeTraining.training.settings import DataConfig, MeasuredOptions

VIEWS, BEAMS, SIDE, WIDTH = 240, 513, 362, 0.26
DISCS = ((0.0, 0.0, 0.11, 0.0), (0.05, 0.02, 0.03, 800.0), (-0.04, 0.06, 0.02, -900.0))
"""(x, y, radius) in metres along the stored image's axes, and HU beside those of the disc below; the first is water."""


def phantom() -> np.ndarray:
    """Stored ground truth in [0, 1], without the uniform numbers: (1, SIDE, SIDE), first axis x."""
    x = (np.arange(SIDE) - (SIDE - 1) / 2) * WIDTH / SIDE
    hu = np.full((SIDE, SIDE), -1000.0)
    for x0, y0, radius, value in DISCS:
        hu[np.hypot(x[:, None] - x0, x[None] - y0) < radius] = value
    return ((hu * (20 - 0.02) / 1000 + 20) / MU_MAX)[None]


def line_integrals() -> np.ndarray:
    """Closed-form observations (1, VIEWS, BEAMS): chords through the discs, over MU_MAX, in metres.

    Parallel beams as the collection's script defines them: angles at the middles of VIEWS parts of [0, pi], positions
    at the middles of BEAMS parts of the image's diagonal. Each disc adds to the water under it; so air's 0.02 per metre
    is left out here, and in what is expected.
    """
    angle = ((np.arange(VIEWS) + 0.5) * np.pi / VIEWS)[:, None]
    reach = WIDTH / np.sqrt(2)
    position = -reach + (np.arange(BEAMS) + 0.5) * 2 * reach / BEAMS
    total = np.zeros((VIEWS, BEAMS))
    for x0, y0, radius, hu in DISCS:
        offset = position - x0 * np.cos(angle) - y0 * np.sin(angle)
        chord = 2 * np.sqrt(np.clip(radius**2 - offset**2, 0, None))
        total += chord * (20.0 if hu == 0.0 else hu * (20 - 0.02) / 1000)
    return (total / MU_MAX)[None].astype(np.float32)


def means(hu: np.ndarray) -> list[float]:
    """Mean inside each disc, half a radius around its middle; the first apart from the others."""
    x = (np.arange(SIDE) - (SIDE - 1) / 2) * WIDTH / SIDE
    places = [(-0.05, -0.05, 0.015), *(disc[:3] for disc in DISCS[1:])]
    # rows are y, columns x
    return [float(hu[np.hypot(x[None] - x0, x[:, None] - y0) < 0.5 * radius].mean()) for x0, y0, radius in places]


def test_a_reconstruction_has_the_scanners_hu_in_their_place() -> None:
    (hu,) = reconstructed(line_integrals(), SIDE)
    assert hu.shape == (SIDE, SIDE) and hu.dtype == np.float32
    # half a HU less: the observations' ground truth has whole HU plus half a HU in the mean
    assert means(hu) == pytest.approx([-0.5, 799.5, -900.5], abs=0.35)
    x = (np.arange(SIDE) - (SIDE - 1) / 2) * WIDTH / SIDE
    bone = (hu > 400).nonzero()
    assert x[bone[1]].mean() == pytest.approx(0.05, abs=2e-4) and x[bone[0]].mean() == pytest.approx(0.02, abs=2e-4)


def write_collection(root: Path, count: int = 2, noise: float = 0.002) -> None:
    """The collection's files with few views: ground truth of discs, and noisy observations of them."""
    hu = np.round(phantom()[0].T * MU_MAX / (20 - 0.02) * 1000 - 20 * 1000 / (20 - 0.02))
    write_lodopab(root, "train", np.repeat(hu[None], count, 0), [5] * count, spare=1)
    clean, random = line_integrals(), np.random.default_rng(0)
    with h5py.File(root / "observation_train_000.hdf5", "w") as file:
        file["data"] = (clean + random.normal(0, noise / 10, (count + 1, VIEWS, BEAMS))).astype(np.float32)


def test_pairs_are_imported_and_trained_on(tmp_path: Path) -> None:
    """Through the real layout's files to stores that fit reads, with the dense form on whole images."""
    write_collection(tmp_path / "in")
    import_collection("lodopab-pairs", tmp_path / "in", tmp_path / "out")
    path = tmp_path / "out" / "LoDoPaB-train-0005.zarr"
    assert json.loads((tmp_path / "out" / "splits.json").read_text())["patients"] == {path.stem: "train"}
    store = PatientStore(path)
    (pair,) = store.sets
    assert [entry.name for entry in pair.reconstructions] == ["FBP", "truth"] and pair.hu.shape == (2, 2, SIDE, SIDE)
    assert pair.spacing == pytest.approx((260 / SIDE, 260 / SIDE, 2.0))
    source, truth = (np.asarray(pair.hu[number, 0]) for number in (0, 1))
    assert means(source) == pytest.approx(means(truth), abs=3.0)
    known = pair.reconstructions[0].acquisition
    assert known.f50 == pytest.approx(10 * 0.25 / (np.sqrt(2) * 260 / BEAMS), rel=0.01)
    assert known.noise > pair.reconstructions[1].acquisition.noise

    crop = MeasuredPairs([path], 4, 352, planes=1, series=("FBP", "truth"), body_share=0.0)[0]
    assert crop["planes"].shape == crop["target"].shape == (1, 352, 352)
    inside = crop["target"] > -500
    assert float((crop["planes"] - crop["target"])[inside].median()) == pytest.approx(0.0, abs=3.0)
    with pytest.raises(InputError, match="No pair"):  # the body fills too little of a whole image
        MeasuredPairs([path], 4, 352, planes=1)

    method = training(APPENDIX, truth="target", mean_weight=0.0)
    data = DataConfig(32, workers=0, measured=MeasuredOptions(("FBP", "truth"), body_share=0.0))
    fit(path, tmp_path / "run", method, data, machine=CPU)
    record = json.loads((tmp_path / "run" / "training.json").read_text())
    assert record["stores"][0]["layout"] == "lodopab-pairs" and record["stores"][0]["slices"] == 2
    assert (tmp_path / "run" / "network.safetensors").exists()


def test_images_without_observations_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_collection(tmp_path / "in", count=1)
    (tmp_path / "in" / "observation_train_000.hdf5").unlink()
    with pytest.raises(InputError, match="none of its images has observations"):
        import_collection("lodopab-pairs", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "LoDoPaB-train-0005.zarr").exists()


def test_views_that_cannot_be_reconstructed_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be reconstructed. Rays need a multiple of 4 views.*not 10 views"):
        reconstructed(np.zeros((1, 10, 513), np.float32), 64)


def test_noise_of_observations_becomes_noise_of_the_image() -> None:
    """The same image four times in a batch gives the same image four times; noise of half the size half the noise."""
    clean = line_integrals()
    noise = np.random.default_rng(1).normal(0, 2e-4, clean.shape).astype(np.float32)
    base, full, half = reconstructed(np.concatenate([clean, clean + noise, clean + noise / 2]), SIDE)
    assert float((full - base).std()) == pytest.approx(2 * float((half - base).std()), rel=1e-3)
    assert torch.from_numpy(full - base).abs().mean() > 1.0
