"""What the library measures in a simulated scan is what the simulator was asked for."""

from __future__ import annotations

import pytest
import torch

from CTHarmonizeLib.ct.measure import measure_mtf, measure_noise
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeTraining.simulation.noise import add_noise
from CTHarmonizeTraining.simulation.phantom import chest_phantom
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project
from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator


@pytest.fixture(scope="module")
def projections() -> tuple[torch.Tensor, Geometry]:
    slices = torch.from_numpy(chest_phantom(3, [215.0], pixel=0.5, size=800))
    geometry = Geometry.covering(400.0, views=800)
    clean = forward_project(attenuation(slices), 0.5, geometry)
    return add_noise(clean, 25.0, geometry.pitch, seeded_generator("cpu", 1)), geometry


@pytest.mark.parametrize(
    "mtf",
    [NAMED_KERNELS["smooth"], NAMED_KERNELS["medium"], Mtf.from_points(5.5, peak=1.15)],
    ids=lambda m: f"{m.f50:g}",
)
def test_quarter_dose_scan(projections, mtf):
    sinograms, geometry = projections
    image = reconstruct(sinograms, geometry, mtf, Grid(568, 568, 0.7))[0].numpy()
    measured = measure_mtf(image, 0.7)
    assert measured.f50 == pytest.approx(mtf.f50, rel=0.05)
    assert measured.f10 == pytest.approx(mtf.f10, rel=0.08)
    assert measured.peak == pytest.approx(mtf.peak, abs=0.04)
    assert measure_noise(image, 0.7).sigma > 10
