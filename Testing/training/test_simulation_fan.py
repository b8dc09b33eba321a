"""Fan beams against closed-form line integrals, and back through rebinning; focal spot and tube current."""

import numpy as np
import pytest
import torch

from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeTraining.simulation.fan import FanBeam, project_fan, rebin
from CTHarmonizeTraining.simulation.noise import tube_current
from CTHarmonizeTraining.simulation.projector import (
    WATER_ATTENUATION,
    Geometry,
    Grid,
    filtered_back_projection,
    forward_project,
    hounsfield,
)
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.scanner import Scanner

PIXEL, N = 0.5, 128
FAN = FanBeam(Geometry.covering(N * PIXEL, views=240), 120.0, 220.0)  # a fan as wide as that of a body scanner


def rays(fan: FanBeam) -> tuple[np.ndarray, np.ndarray]:
    """Source and direction (views, detectors, 2) of every ray, from the picture of a scanner alone."""
    beta, gamma = fan.betas.numpy()[:, None], fan.gammas.numpy()
    source = np.stack((-np.sin(beta), np.cos(beta)), -1) * fan.source_distance
    towards = np.arctan2(-source[..., 1], -source[..., 0]) + gamma
    direction = np.stack((np.cos(towards), np.sin(towards)), -1)
    return np.broadcast_to(source, direction.shape), direction


def chords(fan: FanBeam, centre, axes) -> np.ndarray:
    """Lengths (views, detectors) of the rays' ways through an ellipse: the roots of a quadratic."""
    source, direction = rays(fan)
    s, d = (source - centre) / axes, direction / axes
    a, b, c = (d * d).sum(-1), (s * d).sum(-1), (s * s).sum(-1) - 1
    return 2 * np.sqrt(np.maximum(b * b - a * c, 0.0)) / a


def ellipse_image(centre, axes, over=4) -> torch.Tensor:
    fine = (torch.arange(N * over) - (N * over - 1) / 2) * (PIXEL / over)
    inside = ((fine - centre[0]) / axes[0]) ** 2 + ((fine[:, None] - centre[1]) / axes[1]) ** 2 < 1
    return inside.float().view(N, over, N, over).mean((1, 3))[None]


def test_fan_projection_of_an_ellipse_is_its_chord():
    centre, axes = np.array((5.0, -8.0)), np.array((18.0, 11.0))
    expected = chords(FAN, centre, axes)
    sinogram = project_fan(ellipse_image(centre, axes), PIXEL, FAN)[..., 0].numpy()
    assert sinogram.shape == (480, FAN.detectors)
    error = sinogram - expected
    assert np.sqrt((error**2).mean()) < 0.005 * expected.max()
    # at the ellipse's edge the pixels blur
    assert np.abs(error[expected > 0.5 * expected.max()]).max() < 0.015 * expected.max()


def test_fan_projection_of_a_smooth_object_is_exact():
    centre, sigma = np.array((7.0, -4.0)), 2.0
    x, y = Grid(N, N, PIXEL).axes()
    blob = torch.exp(-((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / (2 * sigma**2)).float()
    source, direction = rays(FAN)
    across = (source - centre)[..., 0] * direction[..., 1] - (source - centre)[..., 1] * direction[..., 0]
    expected = sigma * np.sqrt(2 * np.pi) * np.exp(-(across**2) / (2 * sigma**2))
    sinogram = project_fan(blob[None], PIXEL, FAN)[..., 0].numpy()
    assert np.abs(sinogram - expected).max() < 0.002 * expected.max()


def test_rebinning_gives_the_parallel_projections_back():
    image = ellipse_image((5.0, -8.0), (18.0, 11.0)) + ellipse_image((-12.0, 9.0), (3.0, 2.0))
    parallel = forward_project(image, PIXEL, FAN.geometry)
    error = rebin(project_fan(image, PIXEL, FAN), FAN) - parallel
    assert error.abs().max() < 0.003 * parallel.max()


def test_rebinning_keeps_the_noise():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(480, FAN.detectors, 4, generator=generator)
    rebinned = rebin(noise, FAN)
    assert rebinned.shape == (240, FAN.geometry.detectors, 4)
    assert rebinned.std().item() == pytest.approx(1.0, abs=0.02)
    neighbours = (rebinned[:, 1:] * rebinned[:, :-1]).mean() + (rebinned[1:] * rebinned[:-1]).mean()
    assert abs(neighbours.item()) < 0.03


def wire(fan: FanBeam, centre) -> torch.Tensor:
    """Fan projections of a wire without width: a box as wide as the detector, blurred with one of the focal spot."""
    theta = fan.betas[:, None] + fan.gammas
    t = fan.source_distance * fan.gammas.sin() - (centre[0] * theta.cos() + centre[1] * theta.sin())
    wide, narrow = fan.geometry.aperture, fan.geometry.focal_spot
    overlap = (t.neg() + narrow / 2).clamp(-wide / 2, wide / 2) - (t.neg() - narrow / 2).clamp(-wide / 2, wide / 2)
    return (overlap / (wide * narrow)).float()[..., None]


@pytest.mark.parametrize("place", [(4.1, -2.3), (50.3, 40.2)])
@pytest.mark.parametrize("kernel", [Mtf.from_points(2.8, 4.9), Mtf.from_points(6.0, 8.4, 1.15), Mtf.from_points(8.5)])
def test_a_wire_shows_the_requested_mtf_behind_detector_and_focal_spot(kernel, place):
    from scipy.special import j0

    geometry = Geometry.covering(160.0, views=600, aperture=0.5, focal_spot=0.6)
    fan = FanBeam(geometry, 200.0, 400.0)
    grid = Grid(112, 112, 0.2, (place[0] + 0.03, place[1] - 0.04))
    (image,) = filtered_back_projection(rebin(wire(fan, place), fan), geometry, kernel, [grid])
    x, y = (axis.numpy() for axis in grid.axes())
    distance = np.hypot(x - place[0], y[:, None] - place[1])
    near = distance < 10.0
    f = np.linspace(0.5, 12, 231)
    values = image[..., 0].numpy()[near]
    modulation = j0(2 * np.pi * f[:, None] / 10 * distance[near]) @ values / values.sum()
    beyond = f > f[np.argmax(modulation)]
    f50 = np.interp(-0.5, -modulation[beyond], f[beyond])
    assert f50 == pytest.approx(kernel.f50, rel=0.02)
    assert np.abs(modulation - kernel(f)).max() < 0.04


def test_water_is_zero_and_air_minus_1000():
    fan = FanBeam(FAN.geometry, 120.0, 220.0)
    sinogram = torch.from_numpy(chords(fan, np.array((3.0, -2.0)), np.array((20.0, 20.0))) * WATER_ATTENUATION)
    grid = Grid(N, N, PIXEL)
    parallel = rebin(sinogram.float()[..., None], fan)
    (image,) = filtered_back_projection(parallel, fan.geometry, NAMED_KERNELS["medium"], [grid])
    hu = hounsfield(image[..., 0])
    x, y = grid.axes()
    distance = torch.hypot(x - 3.0, y[:, None] + 2.0)
    assert abs(hu[distance < 15].mean().item()) < 1.0
    assert abs(hu[(distance > 24) & (torch.hypot(x, y[:, None]) < 30)].mean().item() + 1000) < 1.0


def test_a_fan_must_reach_the_field_of_view():
    with pytest.raises(ValueError, match="sees no field of view"):
        FanBeam(Geometry.covering(600.0), 300.0, 500.0)
    fan = FanBeam(Geometry.covering(500.0))
    assert fan.gammas.abs().max() >= np.arcsin(250.0 / 570.0)
    assert 0.5 < fan.element < 1.2 and 800 < fan.detectors < 1200  # as clinical scanners have it


def test_fan_projection_agrees_with_astra():
    astra = pytest.importorskip("astra", exc_type=ImportError)
    images = []
    for over in (1, 8):  # ASTRA's pixels are boxes: finer ones for it
        x, y = Grid(N * over, N * over, PIXEL / over).axes()
        images.append(torch.exp(-((x - 7) ** 2 / 32 + (y[:, None] + 4) ** 2 / 18)).float())
    ours = project_fan(images[0][None], PIXEL, FAN)[::12, ::6, 0].numpy()
    source, direction = (part[::12, ::6].reshape(-1, 2) for part in rays(FAN))
    across = np.stack((-direction[:, 1], direction[:, 0]), 1) * 1e-3
    # Every ray is a view of its own with one detector; ASTRA measures in pixels and its first row is the highest y.
    pixel = PIXEL / 8
    vectors = np.concatenate((source / pixel, (source + direction * FAN.detector_distance) / pixel, across), 1)
    volume = astra.create_vol_geom(8 * N, 8 * N)
    projector = astra.create_projector("line_fanflat", astra.create_proj_geom("fanflat_vec", 1, vectors), volume)
    number, theirs = astra.create_sino(images[1].numpy()[::-1].copy(), projector)
    astra.data2d.delete(number)
    astra.projector.delete(projector)
    theirs = theirs.reshape(ours.shape) * pixel
    assert np.abs(theirs - ours).max() < 0.005 * theirs.max()


def water(axes: tuple[float, float], n=96, pixel=0.8) -> torch.Tensor:
    x, y = Grid(n, n, pixel).axes()
    distance = (torch.hypot(x / axes[0], y[:, None] / axes[1]) - 1) * min(axes)
    return (0.5 - distance / pixel).clamp(0, 1).float()[None] * 1000.0 - 1000.0


def noise_of(scanner: Scanner, hu: torch.Tensor, draws: int = 48) -> float:
    """Deviation in the middle of ``hu``, HU, over independent scans at 100 %."""
    clean = scanner.project(hu, 0.8)
    noisy = scanner.measure(clean, [100.0] * draws, seeded_generator("cpu", 8))
    images = scanner.image(noisy, NAMED_KERNELS["medium"], Grid(8, 8, 1.3))
    return float((images - images.mean(0)).std()) * (draws / (draws - 1)) ** 0.5


def test_a_fan_has_the_noise_of_parallel_beams_at_the_same_dose():
    geometry = Geometry.covering(77.0, views=240, aperture=0.5)
    disk = water((28.0, 28.0))
    fan = noise_of(Scanner(geometry, FanBeam(geometry, 150.0, 280.0)), disk)
    assert fan == pytest.approx(noise_of(Scanner(geometry), disk), rel=0.06)


def test_tube_current_follows_the_root_of_the_attenuation():
    p = torch.tensor([[1.0, 6.0, 2.0], [0.0, 3.0, 1.0], [0.5, 4.0, 4.0]])[..., None]
    current = tube_current(p, 1.0)[:, 0, 0]
    assert current.mean().item() == pytest.approx(1.0)
    assert (current[0] / current[1]).item() == pytest.approx(np.exp(1.5))
    assert (tube_current(p, 0.5)[0] / tube_current(p, 0.5)[1]).item() == pytest.approx(np.exp(0.75))
    assert torch.equal(tube_current(p, 0.0), torch.ones(3, 1, 1))


def test_modulation_spares_noise_as_theory_says():
    """The variance in the middle is the mean over the views of exp(p) / current."""
    geometry = Geometry.covering(300.0, views=120, pitch=1.0)
    x, y = Grid(100, 100, 3.0).axes()
    body = (torch.hypot(x / 140.0, y[:, None] / 80.0) < 1).float()[None] * 1000.0 - 1000.0
    plain, modulated = Scanner(geometry), Scanner(geometry, modulation=1.0)
    clean = plain.project(body, 3.0)
    noise = []
    for scanner in (plain, modulated):
        noisy = scanner.measure(clean, [100.0] * 48, seeded_generator("cpu", 8))
        images = scanner.image(noisy, NAMED_KERNELS["smooth"], Grid(8, 8, 3.0))
        noise.append((images - images.mean(0)).std().item())
    middle = clean[:, geometry.detectors // 2]
    saved = (middle.exp() / tube_current(clean, 1.0)[:, 0]).mean() / middle.exp().mean()
    assert saved < 0.9
    assert noise[1] / noise[0] == pytest.approx(float(saved) ** 0.5, rel=0.06)
