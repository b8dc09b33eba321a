"""The physics-informed generator: its size, what its filter can be, and the noise-free truth as a target."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folder import make_model_folder
from stochastic_method import ACQUISITION, chest
from torch.nn import functional as F

from CTHarmonizeLib import engine, harmonize
from CTHarmonizeLib.ct.acquisition import TRUTH, Acquisition, NoiseTable, target_acquisition, truth_mtf
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, NYQUIST_SHARE, nyquist
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import CONDITIONS, MTF_SAMPLES, mtf_map
from CTHarmonizeLib.methods.physics_gan import PhysicsGANMethod
from CTHarmonizeLib.models import load_model
from CTHarmonizeLib.networks.fourier import MARGIN, reflected
from CTHarmonizeLib.networks.physics import PhysicsConfig, PhysicsGenerator, at_half_spectrum
from CTHarmonizeLib.networks.unet import UNet
from CTHarmonizeLib.report import as_json

SMALL = {"channels": 4, "depth": 1, "images": 2, "hidden": 4, "stride": 2, "gain": 4.0, "conditions": CONDITIONS}
TARGET = {"f50": [3.0, 9.0], "dose": None, "thickness": None}


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def stirred(**changes: object) -> PhysicsGenerator:
    """The small generator with random weights everywhere."""
    torch.manual_seed(1)
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, **changes}))
    for parameter in network.parameters():
        parameter.data += 0.03 * torch.randn_like(parameter)
    return network


def told(acquisition: Acquisition, items: int = 1) -> torch.Tensor:
    return torch.from_numpy(mtf_map(acquisition)).expand(items, 1, -1, -1)


def at(kernel: str, spacing: float = 0.7) -> Acquisition:
    mtf = NAMED_KERNELS[kernel].limited_to(spacing)
    return replace(ACQUISITION, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, pixel_spacing=spacing)


def test_the_defaults_have_the_published_number_of_parameters() -> None:
    """26.5 million (Zarei et al. 2024, II-D); U-Net, Omega, Lambda and O add up."""
    config = PhysicsConfig()
    network = PhysicsGenerator(config)
    images, hidden = config.images, config.hidden
    assert count(network.omega) == 16 * hidden + hidden + 16 * hidden * images + images
    assert count(network.filter) == 2 * images * images * 27
    assert count(network.output) == 9 * images * hidden + hidden + 9 * hidden + 1 + 9 * (images + 1) + 1
    assert count(network.gamma) == count(UNet(config.unet)) + (images - 1) * (config.channels + 1)
    assert config.unet.attention == "scse" and round(count(network) / 1e6, 1) == 26.5


@pytest.mark.parametrize("frequencies", [1, 3])
def test_it_keeps_the_shape_and_starts_near_the_input(frequencies: int) -> None:
    torch.manual_seed(0)
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, "depth": 2, "frequencies": frequencies}))
    planes = torch.rand(2, 1, 40, 48)
    image = network(planes, torch.randn(2, CONDITIONS), told(ACQUISITION, 2)).detach()
    assert image.shape == (2, 1, 40, 48) and image.dtype == torch.float32
    assert float((image - planes).abs().mean()) < 0.05
    assert network.whole_slices and network.config.multiple == 8


def test_the_ablation_is_the_u_net() -> None:
    network = stirred(spectral=False)
    planes, acquisition = torch.rand(1, 1, 16, 16), torch.randn(1, CONDITIONS)
    assert torch.equal(network(planes, acquisition, told(ACQUISITION)), network.gamma(planes, acquisition))
    assert count(network) == count(network.gamma)


@pytest.mark.parametrize("frequencies", [1, 3])
def test_equation_2_is_among_its_weights(frequencies: int) -> None:
    """With a U-Net and an output that pass images on, and Omega giving the ratio of two MTFs less 1, what comes out is
    the image filtered by that ratio."""
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, "frequencies": frequencies}))
    for layer in (network.gamma.last, network.output.two):
        torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(network.output.attention.weight)
    torch.nn.init.constant_(network.output.attention.bias, -40.0)  # never the input

    class Ratio(torch.nn.Module):
        """Of MTFs without a peak, for which Omega's bilinear grid is fine enough."""

        def forward(self, mtf: torch.Tensor) -> torch.Tensor:
            return (mtf**0.7 - 1.0).expand(-1, SMALL["images"], -1, -1)

    network.omega = Ratio()
    torch.manual_seed(0)
    source = at("smooth")
    planes = torch.rand(1, 1, 48, 64)
    made = network(planes, torch.zeros(1, CONDITIONS), told(source)).detach()
    padded, inner = reflected(planes)
    rows, columns = padded.shape[-2:]
    frequency = np.hypot(np.fft.fftfreq(rows)[:, None], np.fft.rfftfreq(columns)) * 10.0 / source.pixel_spacing
    gain = torch.from_numpy(source.mtf()(frequency) ** 0.7)
    filtered = torch.fft.irfft2(torch.fft.rfft2(padded.double()) * gain, s=(rows, columns))[inner]
    change = float((filtered - planes).square().mean().sqrt())
    assert float((made - filtered).square().mean().sqrt()) < 0.01 * change


def test_omega_learns_to_divide_by_the_mtf() -> None:
    """Wiener's inverse of each of two MTFs is within its reach: it is trained to them in a moment."""
    torch.manual_seed(0)
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, "hidden": 16}))
    given = torch.cat([told(at(name)) for name in ("smooth", "medium")])
    inverse = given / (given**2 + 0.05) - 1.0
    wanted = F.interpolate(inverse, scale_factor=4, mode="bilinear").expand(-1, SMALL["images"], -1, -1)
    optimizer = torch.optim.Adam(network.omega.parameters(), 0.01)
    for _ in range(100):
        loss = F.mse_loss(network.omega(given), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * float(wanted.square().mean())


TABLE = NoiseTable("none", 0.7, 2.0, (2.0, 8.0), (8.0, 40.0))


def test_a_kernel_of_one_frequency_filters_everywhere_alike() -> None:
    """Shifted content gives the shifted image, and a larger image the same pixels."""
    torch.manual_seed(0)
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, "frequencies": 1}))
    torch.nn.init.normal_(network.omega.two.weight, std=0.3)
    torch.nn.init.normal_(network.filter.convolution.weight, std=0.3)
    mtf = told(at("medium"))
    image = torch.zeros(1, 2, 64, 64)
    image[:, :, 28:36, 28:36] = torch.rand(1, 2, 8, 8)
    shifted = image.roll((5, -7), (-2, -1))
    larger = F.pad(image, (20, 12, 0, 30))
    with torch.inference_mode():
        gains = network.omega(mtf)
        made, moved, grown = (network.filter(each, gains) for each in (image, shifted, larger))
    inner = (..., slice(12, 52), slice(12, 52))
    assert float((made.roll((5, -7), (-2, -1)) - moved)[inner].abs().max()) < 0.03 * float(made.abs().max())
    assert float((grown[..., :64, 20:84] - made)[inner].abs().max()) < 0.03 * float(made.abs().max())


def test_opposite_borders_do_not_mix() -> None:
    network = PhysicsGenerator(PhysicsConfig(**{**SMALL, "frequencies": 1}))
    torch.nn.init.constant_(network.omega.two.bias, 0.5)
    image = torch.zeros(1, 2, 64, 96)
    image[..., :8] = 1.0
    smooth = 0.5 * (told(at("smooth")) - 1.0).expand(-1, 2, -1, -1)
    made = network.filter(image, smooth)
    assert float(made[..., 60:].abs().max()) < 1e-3 < float((made - image)[..., :16].abs().max())


@pytest.mark.parametrize("size", [(16, 16), (18, 40), (512, 512)])
def test_borders_for_the_fourier_transform(size: tuple[int, int]) -> None:
    images = torch.rand(2, 3, *size)
    padded, inner = reflected(images)
    assert torch.equal(padded[inner], images)
    assert all(wide >= side + min(MARGIN, side - 1) for wide, side in zip(padded.shape[-2:], size, strict=True))
    top = inner[1].start
    assert torch.equal(padded[:, :, top - 3, inner[2]], images[:, :, 3])


@pytest.mark.parametrize("kernel", NAMED_KERNELS)
@pytest.mark.parametrize("spacing", [0.5, 0.9])
def test_the_map_of_a_known_acquisition(kernel: str, spacing: float) -> None:
    """In cycles per pixel, whatever the pixel: half modulation lies at f50 times the spacing."""
    acquisition = at(kernel, spacing)
    made = mtf_map(acquisition)
    assert made.shape == (MTF_SAMPLES, MTF_SAMPLES) and made.dtype == np.float32
    assert np.array_equal(made, made.T) and np.array_equal(made, made[::-1])
    per_pixel = (31.5 - np.arange(MTF_SAMPLES)) / MTF_SAMPLES
    along = acquisition.mtf()(np.hypot(per_pixel, 0.5 / MTF_SAMPLES) * 10.0 / spacing)
    assert made[32] == pytest.approx(along, abs=1e-6)
    right = made[32, 32:]
    crossing = 0.5 * (np.flatnonzero(right < 0.5)[0] - 0.5 + 0.5) / 32  # between two cells
    assert crossing == pytest.approx(acquisition.f50 * spacing / 10.0, abs=1.0 / MTF_SAMPLES)


def test_gains_land_on_their_frequencies() -> None:
    """A gain that is its own frequency comes out as the frequencies of the half spectrum, of even and odd sizes."""
    cells = (torch.arange(256) + 0.5) / 256 - 0.5
    gains = torch.stack(torch.meshgrid(cells, cells, indexing="ij"))[None]
    for rows, columns in ((96, 120), (75, 81)):
        found = at_half_spectrum(gains, rows, columns)[0]
        assert found.shape == (2, rows, columns // 2 + 1)
        vertical, horizontal = torch.fft.fftfreq(rows), torch.fft.rfftfreq(columns)
        inside = vertical.abs() < 0.495  # beyond the last cell's middle its value stays
        assert torch.allclose(found[0][inside], vertical[inside, None].expand(-1, columns // 2 + 1), atol=1e-5)
        inside = horizontal < 0.495
        assert torch.allclose(found[1][:, inside], horizontal[inside].expand(rows, -1), atol=1e-5)


@pytest.mark.parametrize("frequencies", [1, 3])
def test_the_mtf_changes_the_image_and_precision_hardly_does(frequencies: int) -> None:
    planes, acquisition = torch.rand(1, 1, 32, 32), torch.zeros(1, CONDITIONS)
    one, other = (
        stirred(frequencies=frequencies)(planes, acquisition, told(at(kernel))) for kernel in ("smooth", "sharp")
    )
    assert float((one - other).abs().max()) > 1e-4
    with torch.inference_mode():
        network = stirred(frequencies=frequencies).use_precision(torch.bfloat16)
        half = network(planes, acquisition, told(at("smooth")))
    assert half.dtype == torch.float32 and network.filter.convolution.weight.dtype == torch.float32
    assert float((half - one).abs().max()) < 0.03


def test_its_configuration_refuses_what_it_cannot_be() -> None:
    assert PhysicsConfig.from_dict(json.loads(json.dumps(PhysicsConfig().as_dict()))) == PhysicsConfig()
    with pytest.raises(ValueError, match="side of 1 or 3, not 2"):
        PhysicsConfig(frequencies=2)
    with pytest.raises(ValueError, match="reads the source alone"):
        PhysicsConfig(planes=2)


def test_it_never_sees_tiles(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path, stirred(), method="physics-gan", target=TARGET, halo=0, anchor_mm=8.0)
    method = PhysicsGANMethod(load_model(folder), torch.device("cpu"), torch.float32)
    volume = chest(2, 96, 110)
    target = target_acquisition(ACQUISITION, TABLE, TRUTH)
    whole, tiled = (
        engine.run(volume, method, ACQUISITION, target, engine.Settings(tile=tile, slab=slab))
        for tile, slab in ((None, 2), (64, 1))
    )
    assert np.abs(whole.mean - volume.hu).max() > 2
    assert int(np.abs(whole.mean.astype(int) - tiled.mean).max()) <= 1


def test_the_truth_is_the_sharpest_that_pixels_hold_and_has_no_noise() -> None:
    target = target_acquisition(ACQUISITION, TABLE, " Truth ")
    assert target.f50 == pytest.approx(NYQUIST_SHARE * nyquist(0.8)) and target.mtf_peak == 1.0
    assert target.noise == 0.0 and target.noise_frequency is None and target.slice_thickness == 2.0
    assert TABLE.dose(4.0, 0.0) == np.inf
    with pytest.raises(InputError, match="truth has no dose"):
        target_acquisition(ACQUISITION, TABLE, TRUTH, 100.0)


def test_the_truth_rings_little() -> None:
    """At a sharp edge its kernel overshoots by 1.3 %."""
    pixel, count = 0.05, 4096
    edge = np.where(np.abs(np.arange(count) - count / 2) < count / 4, 1.0, 0.0)
    seen = np.fft.irfft(np.fft.rfft(edge) * truth_mtf(0.7)(np.fft.rfftfreq(count, pixel / 10)), count)
    assert seen.max() - 1.0 == pytest.approx(0.013, abs=0.001)


@pytest.fixture(scope="module")
def truthful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return make_model_folder(folder, stirred(), method="physics-gan", target=TARGET)


def test_nothing_need_be_asked_for(truthful: Path) -> None:
    told = {"method": "physics-gan", "model": str(truthful), "source_kernel": "medium", "source_dose": 50}
    result, named = (harmonize(chest(1), kernel, device="cpu", **told) for kernel in (None, "truth"))
    report = result.report
    assert report["target"]["acquisition"]["noise"] == 0.0
    assert report["target"]["acquisition"]["f50"] == pytest.approx(NYQUIST_SHARE * nyquist(0.8))
    assert json.loads(as_json(report))["target"]["dose"] is None
    assert not any("target" in warning for warning in report["warnings"])
    assert np.array_equal(result.mean.hu, named.mean.hu) and result.standard_deviation is None


def test_pixels_that_it_was_not_trained_for_are_refused(truthful: Path, tmp_path: Path) -> None:
    folder = make_model_folder(
        tmp_path, stirred(), method="physics-gan", target={"f50": [6.0, 7.0], "dose": None, "thickness": None}
    )
    with pytest.raises(InputError, match=r"not 5\.00 \(the truth that pixels of 0\.8 mm show\)"):
        harmonize(chest(1), method="physics-gan", model=str(folder), source_kernel="medium", device="cpu")
