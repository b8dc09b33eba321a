"""Projection and reconstruction against closed forms and against scikit-image."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeTraining.simulation.fan import FanBeam
from CTHarmonizeTraining.simulation.projector import (
    WATER_ATTENUATION,
    Geometry,
    Grid,
    attenuation,
    back_project,
    filter_projections,
    filtered_back_projection,
    forward_project,
    hounsfield,
    wide_band_mtf,
)
from CTHarmonizeTraining.simulation.scan import seeded_generator
from CTHarmonizeTraining.simulation.scanner import Scanner

PIXEL = 0.5
N = 128
GEOMETRY = Geometry.covering(N * PIXEL, views=240)


def ellipse_line_integrals(geometry: Geometry, centre, axes, value=WATER_ATTENUATION) -> torch.Tensor:
    """Chord lengths through an ellipse times ``value`` (Kak & Slaney, eq. 3.6), detectors without width."""
    t = geometry.positions - (centre[0] * geometry.angles.cos() + centre[1] * geometry.angles.sin())[:, None]
    a2 = ((axes[0] * geometry.angles.cos()) ** 2 + (axes[1] * geometry.angles.sin()) ** 2)[:, None]
    return 2 * value * axes[0] * axes[1] * (a2 - t**2).clamp_min(0).sqrt() / a2


def averaged_ellipse(geometry: Geometry, centre, axes, value=WATER_ATTENUATION, rays=16) -> torch.Tensor:
    """The same, averaged over the detector aperture."""
    fine = Geometry(geometry.views, geometry.detectors * rays, geometry.pitch / rays)
    chords = ellipse_line_integrals(fine, centre, axes, value)
    return chords.unflatten(1, (-1, rays)).mean(2).float()[..., None]


def gaussian_blob(centre, sigma: float) -> torch.Tensor:
    x, y = Grid(N, N, PIXEL).axes()
    return torch.exp(-((x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2) / (2 * sigma**2)).float()


def test_projection_of_a_smooth_object_is_its_line_integral():
    centre, sigma = (7.0, -4.0), 2.0
    sinogram = forward_project(gaussian_blob(centre, sigma)[None], PIXEL, GEOMETRY)[..., 0]
    t = GEOMETRY.positions - (centre[0] * GEOMETRY.angles.cos() + centre[1] * GEOMETRY.angles.sin())[:, None]
    expected = sigma * np.sqrt(2 * np.pi) * torch.exp(-(t**2) / (2 * sigma**2))
    assert (sinogram - expected).abs().max() < 0.002 * expected.max()  # the aperture costs 0.07 % at the top


def test_projection_of_an_ellipse_is_its_chord():
    centre, axes = (5.0, -8.0), (18.0, 11.0)
    fine = (torch.arange(N * 8) - (N * 8 - 1) / 2) * (PIXEL / 8)
    inside = ((fine - centre[0]) / axes[0]) ** 2 + ((fine[:, None] - centre[1]) / axes[1]) ** 2 < 1
    image = inside.float().view(N, 8, N, 8).mean((1, 3))
    sinogram = forward_project(image[None], PIXEL, GEOMETRY)[..., 0]
    expected = ellipse_line_integrals(GEOMETRY, centre, axes, 1.0)
    assert ((sinogram - expected).pow(2).mean().sqrt() / expected.max()) < 0.005


def test_views_of_a_batch_and_mass():
    generator = torch.Generator().manual_seed(1)
    texture = gaussian_filter(torch.rand(N, N, generator=generator).numpy(), 2)
    image = torch.from_numpy(texture) * gaussian_blob((0, 0), 8)
    batch = torch.stack((image, image.flip(0), 2 * image))
    sinograms = forward_project(batch, PIXEL, GEOMETRY)
    assert torch.allclose(sinograms[..., 2], 2 * sinograms[..., 0], atol=1e-5)
    # Turned upside down: y -> -y, that is angle a -> 180 degrees - a and t -> -t.
    assert torch.allclose(sinograms[..., 1], sinograms[..., 0].flip(0, 1), atol=1e-4)
    mass = sinograms[..., 0].sum(1) * GEOMETRY.pitch
    assert torch.allclose(mass, image.sum() * PIXEL**2, rtol=1e-3)


def test_projection_agrees_with_scikit_image():
    radon = pytest.importorskip("skimage.transform").radon
    x, y = Grid(129, 129, PIXEL).axes()
    image = torch.exp(-((x - 7) ** 2 / 18 + (y[:, None] + 4) ** 2 / 8)) * (torch.hypot(x, y[:, None]) < 30)
    geometry = Geometry(views=12, detectors=129, pitch=PIXEL, aperture=1e-6)
    ours = forward_project(image[None].float(), PIXEL, geometry)[..., 0].numpy()
    # scikit-image measures in pixels, and its angles turn the other way, for y points up.
    theirs = radon(image.numpy(), -np.rad2deg(geometry.angles.numpy()), circle=True).T * PIXEL
    assert np.abs(theirs - ours).max() < 0.01 * theirs.max()


def test_reconstruction_agrees_with_scikit_image():
    iradon = pytest.importorskip("skimage.transform").iradon
    geometry = Geometry(views=180, detectors=129, pitch=PIXEL, aperture=1e-6)
    sinogram = ellipse_line_integrals(geometry, (4.0, 6.0), (18.0, 11.0)).float()
    (ours,) = filtered_back_projection(sinogram[..., None], geometry, np.ones_like, [Grid(129, 129, PIXEL)])
    degrees = -np.rad2deg(geometry.angles.numpy())
    theirs = iradon(sinogram.numpy().T / PIXEL, degrees, filter_name="ramp", circle=True)
    difference = (hounsfield(ours[..., 0]) - hounsfield(torch.tensor(theirs))).numpy()
    difference = gaussian_filter(difference, 1.5)[20:-20, 20:-20]
    assert np.abs(difference).max() < 15.0  # of 1000 HU; theirs has linear interpolation's blur


def test_back_projection_is_the_adjoint_of_projection():
    """<A x, q> = <x, B q> for a smooth image and filtered projections, up to the constant steps."""
    image = gaussian_blob((5.0, 3.0), 2.5)
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(GEOMETRY.views, GEOMETRY.detectors, 1, generator=generator)
    q = torch.from_numpy(gaussian_filter(q.numpy(), (0, 6, 0)))
    point_like = Geometry(GEOMETRY.views, GEOMETRY.detectors, GEOMETRY.pitch, aperture=1e-6)
    left = (forward_project(image[None], PIXEL, point_like) * q).sum() * GEOMETRY.pitch
    right = (image * back_project(q, GEOMETRY, Grid(N, N, PIXEL))[..., 0]).sum() * PIXEL**2
    assert left.item() == pytest.approx(right.item(), rel=2e-3)


@pytest.mark.parametrize("kernel", [*NAMED_KERNELS.values(), wide_band_mtf(8.0, 9.9)])
def test_water_is_zero_and_air_minus_1000(kernel):
    sinogram = averaged_ellipse(GEOMETRY, (3.0, -2.0), (20.0, 20.0))
    (image,) = filtered_back_projection(sinogram, GEOMETRY, kernel, [Grid(N, N, PIXEL)])
    hu = hounsfield(image[..., 0])
    x, y = Grid(N, N, PIXEL).axes()
    distance = torch.hypot(x - 3.0, y[:, None] + 2.0)
    assert abs(hu[distance < 15].mean().item()) < 1.0
    assert abs(hu[(distance > 24) & (torch.hypot(x, y[:, None]) < 30)].mean().item() + 1000) < 1.0


def test_region_equals_the_crop_of_the_whole():
    sinograms = torch.randn(GEOMETRY.views, GEOMETRY.detectors, 2, generator=torch.Generator().manual_seed(3))
    region = Grid(20, 30, PIXEL, (PIXEL * 5, -PIXEL * 3))
    kernel = NAMED_KERNELS["sharp"]
    whole, part = filtered_back_projection(sinograms, GEOMETRY, kernel, [Grid(N, N, PIXEL), region])
    cut = whole[N // 2 - 13 : N // 2 + 7, N // 2 - 10 : N // 2 + 20]
    assert torch.allclose(part, cut, atol=1e-5 * cut.abs().max().item())
    filtered = filter_projections(sinograms, GEOMETRY, kernel)
    again = back_project(filtered, GEOMETRY.upsampled(), region)
    assert torch.allclose(part, again, atol=1e-5 * cut.abs().max().item())


def measured_modulation(image: np.ndarray, pixel: float, centre, frequencies) -> np.ndarray:
    """Radial MTF (lp/cm) of an image of a narrow wire, by the Hankel transform of its profile."""
    from scipy.special import j0

    x, y = (axis.numpy() for axis in Grid(*image.shape, pixel).axes())
    distance = np.hypot(x - centre[0], y[:, None] - centre[1])
    near = distance < 0.45 * image.shape[0] * pixel
    kernel = j0(2 * np.pi * np.asarray(frequencies)[:, None] / 10.0 * distance[near])
    sums = kernel @ image[near]
    return sums / image[near].sum()


@pytest.mark.parametrize(
    "kernel",
    [
        Mtf.from_points(2.8, 4.9),
        Mtf.from_points(4.0),
        Mtf.from_points(6.0, 8.4, 1.15),
        Mtf.from_points(9.0, 12.0, 1.3),
    ],
)
def test_a_wire_shows_the_requested_mtf(kernel):
    geometry = Geometry.covering(40.0, views=480)
    centre, radius = (4.1, -2.3), 0.1
    sinogram = averaged_ellipse(geometry, centre, (radius, radius), 1.0)
    grid = Grid(128, 128, 0.2, (4.0, -2.0))
    (image,) = filtered_back_projection(sinogram, geometry, kernel, [grid])
    frequencies = np.linspace(0.5, 13, 251)
    modulation = measured_modulation(image[..., 0].numpy(), 0.2, (0.1, -0.3), frequencies)
    beyond = frequencies > frequencies[np.argmax(modulation)]
    f50 = np.interp(-0.5, -modulation[beyond], frequencies[beyond])
    assert f50 == pytest.approx(kernel.f50, rel=0.02)
    assert modulation.max() == pytest.approx(max(kernel.peak, kernel(0.5)), abs=0.03)
    assert np.abs(modulation - kernel(frequencies)).max() < 0.04


def test_padding_is_air_and_outside_the_circle_nothing():
    hu = torch.full((1, N, N), -2048.0)
    assert attenuation(hu).abs().max() == 0
    hu[0, :4, :4] = 3000.0  # a corner, outside the field of view
    assert forward_project(attenuation(hu), PIXEL, GEOMETRY).abs().max() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("beam", ["parallel", "fan"])
def test_gpu_agrees_with_the_processor(beam):
    image = gaussian_blob((5.0, 3.0), 2.5)[None] * 2000.0 - 1000.0
    scanner = Scanner(GEOMETRY, FanBeam(GEOMETRY) if beam == "fan" else None, modulation=0.5)
    projections, images, currents = [], [], []
    for device in ("cpu", "cuda"):
        clean = scanner.project(image.to(device), PIXEL)
        noisy = scanner.measure(clean, [100.0, 25.0], seeded_generator(device, 1))
        assert clean.device.type == noisy.device.type == device
        assert torch.isfinite(noisy).all()
        projections.append(clean.cpu())
        currents.append(scanner.percent(clean, [100.0]).cpu())
        images.append(scanner.image(clean, NAMED_KERNELS["medium"], Grid(N, N, PIXEL)).cpu())
    assert torch.allclose(*projections, atol=1e-5 * float(projections[0].max()))
    assert torch.allclose(*currents, rtol=1e-4)
    assert (images[0] - images[1]).abs().max() < 0.1
