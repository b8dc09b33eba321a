"""Geometry of a volume, regions, and what is refused as CT."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK

from CTHarmonizeLib.ct.volume import Roi, Volume, check_ct
from CTHarmonizeLib.errors import InputError

OBLIQUE = (0.0, 0.6, 0.8, 1.0, 0.0, 0.0, 0.0, 0.8, -0.6)


def chest(shape=(3, 32, 40), **changes) -> Volume:
    hu = np.full(shape, -1000, dtype=np.int16)
    hu[:, 8:-8, 8:-8] = 40
    return Volume(hu, **{"spacing": (0.7, 0.7, 2.0), **changes})


def test_matrix_agrees_with_simpleitk():
    volume = chest(origin=(5.0, -6.0, 7.5), direction=OBLIQUE)
    image = SimpleITK.GetImageFromArray(volume.hu)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction)
    x, y, z = image.TransformIndexToPhysicalPoint((3, 4, 2))
    assert np.allclose(volume.ijk_to_ras() @ [3, 4, 2, 1], [-x, -y, z, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("across", "down", "sides"),
    [
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), ("R", "L")),
        ((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), ("L", "R")),
        ((0.96, 0.28, 0.0), (-0.28, 0.96, 0.0), ("R", "L")),
        ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0), ("A", "P")),
        ((0.0, 0.0, -1.0), (1.0, 0.0, 0.0), ("S", "I")),
    ],
)
def test_sides_of_the_patient(across, down, sides):
    matrix = np.stack([across, down, np.cross(across, down)], axis=1)
    assert chest(direction=tuple(matrix.ravel())).sides == sides


def test_crop_stays_in_place():
    volume = chest(origin=(5.0, -6.0, 7.5), direction=OBLIQUE)
    roi = Roi.parse("4:20,2:30,1:3")
    cropped = volume.crop(roi)
    assert cropped.shape == roi.shape == (2, 28, 16)
    assert np.array_equal(cropped.hu, volume.hu[1:3, 2:30, 4:20])
    assert np.allclose(cropped.ijk_to_ras() @ [0, 0, 0, 1], volume.ijk_to_ras() @ [4, 2, 1, 1], atol=1e-9)
    assert volume.crop(Roi.whole(volume.shape)).origin == volume.origin


@pytest.mark.parametrize("text", ["", "1:2", "1:2,3:4", "a:b,1:2,3:4", "5:5,0:1,0:1", "5:2,0:1,0:1", "-1:2,0:1,0:1"])
def test_bad_regions(text):
    with pytest.raises(InputError):
        Roi.parse(text)


def test_region_outside():
    with pytest.raises(InputError, match="columns 0:41"):
        chest().crop(Roi.parse("0:41,0:32,0:3"))


def test_oblong_pixels():
    assert chest(spacing=(0.7, 0.702, 2.0)).pixel_spacing == pytest.approx(0.701)
    with pytest.raises(InputError, match="square"):
        _ = chest(spacing=(0.7, 0.8, 2.0)).pixel_spacing


def changed(function, dtype=np.float32) -> np.ndarray:
    return function(chest().hu.astype(np.float32)).astype(dtype)


def counts(hu: np.ndarray) -> np.ndarray:
    """What a file without its rescale intercept holds, with a little noise."""
    return hu + 1024 + np.random.default_rng(0).normal(0, 15, hu.shape)


@pytest.mark.parametrize(
    ("hu", "words"),
    [
        (np.where(np.arange(40) == 3, np.nan, chest().hu).astype(np.float32), "not numbers"),
        (np.where(np.arange(40) == 3, np.inf, chest().hu).astype(np.float32), "not numbers"),
        (np.zeros((3, 32, 32), np.int16), "same value"),
        (changed(lambda hu: (hu + 1000) / 1040), "rescaled"),
        (changed(lambda hu: (hu + 1000) / 1040 * 255, np.uint8), "8-bit"),
        (changed(lambda hu: hu + 4000, np.int16), "rescale intercept"),
        (changed(counts), "1024 too high"),
        (np.where(np.arange(40) < 3, -2000, changed(counts, np.int16)), "1024 too high"),
        (changed(lambda hu: hu + 30000), "not CT numbers"),
        (np.where(np.arange(40) < 3, -1e6, chest().hu).astype(np.float32), "value of -3024"),
        (np.tile(chest().hu, (1, 1, 1))[:, :15, :], "at least 16"),
        (chest().hu[0], "3D"),
    ],
)
def test_not_ct(hu, words):
    with pytest.raises(InputError, match=words) as raised:
        check_ct(Volume(hu, (0.7, 0.7, 2.0)))
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_ct_is_taken():
    check_ct(chest())
    padded = chest().hu.copy()
    padded[:, :2] = -3024
    check_ct(Volume(padded, (0.7, 0.7, 2.0)))
    soft_tissue_only = np.random.default_rng(0).normal(40, 12, (1, 64, 64)).astype(np.float32)
    check_ct(Volume(soft_tissue_only, (0.5, 0.5, 5.0)))


def test_bone_without_air_is_no_raw_count():
    """Inside a skull, nothing is below -100 HU, most is near 0, and bone reaches 900 to 1200 as well."""
    random = np.random.default_rng(0)
    inside = random.normal(35, 5, (2, 64, 64))
    inside[:, :20] = random.uniform(100, 1700, (2, 20, 64))
    check_ct(Volume(inside.astype(np.int16), (0.5, 0.5, 5.0)))


def test_values_keep_their_place():
    volume = chest(origin=(1.0, 2.0, 3.0))
    other = volume.with_hu(volume.hu + 1)
    assert np.array_equal(other.ijk_to_ras(), volume.ijk_to_ras())
    with pytest.raises(ValueError):
        volume.with_hu(volume.hu[:1])
