"""One case before and after: measures on known tissue, and what cannot be measured."""

from __future__ import annotations

import json
from dataclasses import replace

import ct_images
import numpy as np
import pytest

from CTHarmonizeLib import cli, compare
from CTHarmonizeLib.comparison import Comparison, compare_volumes
from CTHarmonizeLib.ct.io import write_nrrd
from CTHarmonizeLib.ct.lungs import find_lungs, measure_densitometry
from CTHarmonizeLib.ct.mtf import Mtf
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError

SPACING = (0.9, 0.9, 3.0)
LUNG_HU, EMPHYSEMA_SHARE = -860.0, 0.1
SHARP, SMOOTH = Mtf.from_points(5.0), Mtf.from_points(3.0)


def scan(mtf: Mtf, sigma: float, lungs: bool = True, seed: int = 0, slices: int = 4) -> Volume:
    """A body of fat and muscle; in it two lungs, a tenth of them at -990 HU, and a round of bowel gas."""
    size = 320
    y, x = (np.mgrid[:size, :size] - (size - 1) / 2) * SPACING[0]
    plane = ct_images.body(mtf, size, SPACING[0]).copy()
    if lungs:
        for side in (-1, 1):
            lung = ((x - 45 * side) / 30) ** 2 + (y / 45) ** 2 < 1
            plane[lung] = LUNG_HU
            plane[lung & (y > np.quantile(y[lung], 1 - EMPHYSEMA_SHARE))] = -990.0
        plane[np.hypot(x, y + 45) < 19] = -1000.0
    noise = ct_images.noise(mtf, (slices, size, size), SPACING[0], sigma, seed)
    return Volume(np.rint(plane + noise).astype(np.int16), SPACING, (-30.0, 12.0, 5.0))


@pytest.fixture(scope="module")
def scans() -> dict[str, Volume]:
    return {"before": scan(SHARP, 40.0), "after": scan(SMOOTH, 12.0, seed=1), "reference": scan(SMOOTH, 10.0, seed=2)}


@pytest.fixture(scope="module")
def compared(scans) -> Comparison:
    return compare_volumes(**scans)


def row(comparison: Comparison, start: str):
    (found,) = [row for row in comparison.rows if row.measure.startswith(start)]
    return found


def test_noise_and_sharpness_are_each_volumes_own(compared):
    noise, sharpness, frequency = (row(compared, start) for start in ("Noise", "Sharpness", "Mean frequency"))
    assert (noise.before, noise.after, noise.reference) == pytest.approx((40.0, 12.0, 10.0), rel=0.15)
    assert (sharpness.before, sharpness.after) == pytest.approx((5.0, 3.0), rel=0.1)
    assert frequency.before > 1.3 * frequency.after


def test_tissue_has_its_hu(compared):
    air, fat, water = (row(compared, f"Mean of {name}") for name in ("air", "fat", "water-like"))
    for found, truth in ((air, ct_images.AIR), (fat, ct_images.FAT), (water, ct_images.MUSCLE)):
        assert (found.before, found.after, found.reference) == pytest.approx((truth,) * 3, abs=3.0)


def test_lungs_are_found_and_bowel_is_not(scans, compared):
    lungs = find_lungs(scans["before"].hu, SPACING)
    size = lungs.shape[1]
    assert not lungs[:, size // 2 - 60 : size // 2 - 40, size // 2].any()
    area = 2 * np.pi * 30 * 45 * 3.0 * len(lungs) / 1000
    volume, emphysema = row(compared, "Volume"), row(compared, "Emphysema")
    assert (volume.before, volume.after) == pytest.approx((area, area), rel=0.05) and volume.unit == "ml"
    assert emphysema.after == pytest.approx(100 * EMPHYSEMA_SHARE, abs=1.5)
    assert row(compared, "15th").after == pytest.approx(LUNG_HU, abs=20.0)


def test_emphysema_is_what_each_volume_shows_alone(scans, compared):
    for name, volume in scans.items():
        alone = measure_densitometry(volume.hu, find_lungs(volume.hu, SPACING), SPACING)
        assert getattr(row(compared, "Emphysema"), name) == alone.laa950
        assert getattr(row(compared, "15th"), name) == alone.perc15


def test_the_reference_has_no_difference_to_itself(compared):
    root, mean = row(compared, "Root mean square"), row(compared, "Mean absolute")
    assert root.reference is None and mean.reference is None
    assert root.before > 40.0 and root.after == pytest.approx(np.hypot(12.0, 10.0), rel=0.15)
    assert mean.after == pytest.approx(root.after * np.sqrt(2 / np.pi), rel=0.1)


def test_curves_are_shares(compared):
    lungs, noise = compared.curves
    assert set(lungs.y) == set(noise.y) == {"before", "after", "reference"}
    assert sum(lungs.y["after"]) == pytest.approx(100.0, abs=3.0)
    for values in noise.y.values():
        middle = np.add(values[1:], values[:-1]) / 2
        assert middle @ np.diff(noise.x) == pytest.approx(1.0) and max(values) < 1.0


def test_without_lungs_and_reference(scans):
    plain = scan(SMOOTH, 12.0, lungs=False)
    compared = compare_volumes(plain, plain)
    assert row(compared, "Volume").before is None and row(compared, "Emphysema").after is None
    assert [curve.title for curve in compared.curves] == ["Noise power spectrum"]
    assert not any("reference" in found.measure or found.reference is not None for found in compared.rows)


@pytest.mark.parametrize(
    "change",
    [
        lambda volume: replace(volume, hu=volume.hu[:3]),
        lambda volume: replace(volume, origin=(0.0, 0.0, 0.0)),
        lambda volume: replace(volume, spacing=(0.9, 0.9, 3.01)),
    ],
)
def test_volumes_on_other_grids_are_refused(scans, change):
    with pytest.raises(InputError, match="'before' .* and 'after' .* do not have the same voxels"):
        compare_volumes(scans["before"], change(scans["after"]))


def test_what_is_no_ct_is_refused(scans):
    rescaled = scans["after"].with_hu(scans["after"].hu.astype(np.float32) / 4000.0)
    with pytest.raises(InputError, match="rescaled"):
        compare(scans["before"], rescaled)


def test_the_command(scans, tmp_path, capsys):
    paths = [str(write_nrrd(volume, tmp_path / f"{name} é.nrrd")) for name, volume in scans.items()]
    assert cli.main(["compare", *paths[:2], "--reference", paths[2]]) == 0
    text = capsys.readouterr().out
    assert "Sharpness at the skin, f50, lp/cm" in text and text.splitlines()[-1].endswith(" -")
    assert cli.main(["compare", *paths[:2], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"][0]["reference"] is None and len(found["curves"]) == 2
    assert cli.main(["compare", paths[0], str(tmp_path / "none.nrrd")]) == 2
