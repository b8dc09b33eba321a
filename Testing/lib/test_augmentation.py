"""Methods without samples: no deviation, unless their spread over turns and flips is asked for."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from stochastic_method import ACQUISITION, chest
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib import engine, harmonize
from CTHarmonizeLib.cli import main
from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.base import Method


class Leaning(Method):
    """Adds to each voxel its own difference from the voxel on the left, times a strength: a mistake that depends on how
    the slice lies."""

    name: ClassVar[str] = "leaning"
    needs_model: ClassVar[bool] = False
    halo = 2

    def __init__(self, strength: float = 0.1) -> None:
        super().__init__(None, torch.device("cpu"), torch.float32)
        self.strength, self.seen, self.prepared = strength, [], 0

    def prepare(self, slices: Tensor, source, target) -> Tensor:
        self.prepared += 1
        return super().prepare(slices, source, target)

    def encode(self, planes: Tensor, source, target) -> Tensor:
        self.seen.append(tuple(planes.shape))
        image = planes[:, 0]
        left = F.pad(image, (1, 0), mode="replicate")[..., :-1]
        return image + self.strength * (image - left)

    def estimate(self, state: Tensor) -> Tensor:
        return state


def run(method: Method, **settings: object) -> engine.Outcome:
    return engine.run(chest(2, 64, 96), method, ACQUISITION, ACQUISITION, engine.Settings(**settings))


def test_spread_is_that_of_the_eight_orientations() -> None:
    hu = chest(2, 64, 96).hu.astype(float)
    # turned and turned back, 'left' becomes each of the four neighbours, twice
    steps = [hu - np.roll(hu, shift, axis) for shift, axis in ((1, 2), (-1, 2), (1, 1), (-1, 1))]
    expected = 0.1 * np.std(steps, axis=0)
    outcome = run(Leaning(), augment=True)
    inner = (slice(None), slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(outcome.deviation[inner], expected[inner], rtol=1e-4, atol=1e-3)
    assert expected[inner].max() > 10.0
    plain = run(Leaning())
    assert plain.deviation is None
    np.testing.assert_array_equal(outcome.mean, plain.mean)  # the image is that of the slice as it lies
    np.testing.assert_array_equal(outcome.harmonized, plain.harmonized)


def test_spread_of_what_sees_all_orientations_alike_is_zero() -> None:
    outcome = run(Leaning(strength=0.0), augment=True)
    assert not outcome.deviation.any()


def test_spread_is_the_same_in_tiles_and_regions() -> None:
    method = Leaning()
    whole = run(method, augment=True)
    assert set(method.seen) == {(1, 1, 64, 96), (1, 1, 96, 64)}
    assert method.prepared == 2 * 8  # each slice in each orientation
    cut = Leaning()
    tiled = run(cut, augment=True, tile=32)
    assert cut.prepared == 2 * 8  # once for all six tiles
    np.testing.assert_allclose(tiled.deviation, whole.deviation, atol=1e-3)
    roi = Roi((11, 70), (5, 50), (1, 2))
    part = run(Leaning(), augment=True, roi=roi)
    np.testing.assert_allclose(part.deviation, whole.deviation[roi.index()], atol=1e-3)


def test_the_calibration_factor_is_for_samples_alone() -> None:
    plain, scaled = (run(Leaning(), augment=True, deviation_factor=factor) for factor in (1.0, 1.7))
    np.testing.assert_array_equal(plain.deviation, scaled.deviation)


def test_files_are_named_for_what_they_hold(tmp_path) -> None:
    volume = chest(2, 48, 48)
    request = {"kernel": "smooth", "method": "mtf-filter", "source_kernel": "sharp"}
    (tmp_path / "standard_deviation.nrrd").write_bytes(b"of another method")
    harmonize(volume, **request).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"harmonized.nrrd", "mean.nrrd", "result.json"}
    result = harmonize(volume, **request, augment=True)
    assert result.standard_deviation is None and result.report["standard_deviation"] is None
    assert result.report["augmentation_spread"]["largest"] < 0.01  # its filter is round
    result.save(tmp_path)
    spread = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "augmentation_spread.nrrd")))
    assert spread.shape == volume.shape and spread.dtype == np.float32
    harmonize(volume, **request).save(tmp_path)
    assert not (tmp_path / "augmentation_spread.nrrd").exists()


def test_methods_with_samples_refuse_it(tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="ctflow draws samples.*leave the augmentation out"):
        harmonize(chest(1, 48, 48), kernel="smooth", augment=True)
    image = tmp_path / "ct.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(chest(1, 48, 48).hu), str(image))
    assert main(["harmonize", str(image), "-o", str(tmp_path / "out"), "--kernel", "smooth", "--augment"]) == 2
    assert "draws samples" in capsys.readouterr().err
