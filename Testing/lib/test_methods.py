"""The registry, and the MTF filter on images whose MTF is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from stochastic_method import ACQUISITION, chest

from CTHarmonizeLib import engine, harmonize
from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.mtf import NAMED_KERNELS, Mtf
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import available, method_named
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.methods.mtf_filter import REGULARISATION, MtfFilter, apply_filter, wiener_ratio


def acquisition(mtf: Mtf, spacing: float = 0.7) -> Acquisition:
    return replace(ACQUISITION, f50=mtf.f50, f10=mtf.f10, mtf_peak=mtf.peak, pixel_spacing=spacing)


def disc(mtf: Mtf, size: int = 128, spacing: float = 0.7) -> np.ndarray:
    """A water disc in air, seen through ``mtf`` (edge softened, so that the pixel grid can show it)."""
    y, x = np.mgrid[:size, :size] - size / 2
    radius = np.hypot(y, x)
    image = -1000.0 + 1000.0 / (1.0 + np.exp((radius - size / 4) / 0.8))
    pitch = spacing / 10
    frequency = np.hypot(np.fft.fftfreq(size, pitch)[:, None], np.fft.rfftfreq(size, pitch)[None])
    return np.fft.irfft2(np.fft.rfft2(image) * mtf(frequency), s=image.shape)


def test_registry_finds_every_method_once():
    methods = available()
    assert methods["mtf-filter"] is MtfFilter
    assert "ctflow" in methods
    for name, method in methods.items():
        assert issubclass(method, Method) and method.name == name
        assert method.title and method.summary.endswith(".")
        assert method.target_fields <= {"kernel", "dose", "thickness"}


def test_unknown_method_is_one_sentence():
    with pytest.raises(InputError, match="no method 'ctflo': choose one of .*ctflow"):
        method_named("ctflo")


def test_a_method_that_needs_a_model_says_so():
    with pytest.raises(InputError, match="needs a model"):
        available()["ctflow"](None, torch.device("cpu"), torch.float32)


PAIRS = [(a, b) for a in NAMED_KERNELS for b in NAMED_KERNELS]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_ratio_is_one_at_zero_frequency_and_bounded(source, target):
    ratio = wiener_ratio(NAMED_KERNELS[source], NAMED_KERNELS[target], (96, 90), 0.6)
    assert ratio.shape == (96, 46)
    assert ratio[0, 0] == 1.0
    assert ratio.min() >= 0.0
    assert ratio.max() <= 1.0 + NAMED_KERNELS[target].peak / (2.0 * np.sqrt(REGULARISATION))
    if source == target:
        np.testing.assert_array_equal(ratio, 1.0)


def test_ratio_is_exact_where_the_source_has_signal():
    source, target = NAMED_KERNELS["medium"], NAMED_KERNELS["sharp"]
    frequency = np.arange(46) / (90 * 0.06)
    ratio = wiener_ratio(source, target, (96, 90), 0.6)[0]
    strong = source(frequency) > 0.7
    np.testing.assert_allclose(ratio[strong], (target(frequency) / source(frequency))[strong], rtol=0.02)
    back = wiener_ratio(target, source, (96, 90), 0.6)[0]
    strong = target(frequency) > 0.05
    np.testing.assert_allclose(back[strong], (source(frequency) / target(frequency))[strong], rtol=0.02, atol=0.002)


@pytest.mark.parametrize(("source", "target"), [("sharp", "smooth"), ("medium", "smooth"), ("smooth", "medium")])
def test_filter_makes_the_target_image(source, target):
    source, target = NAMED_KERNELS[source], NAMED_KERNELS[target]
    given, wanted = disc(source), disc(target)
    made = apply_filter(torch.from_numpy(given[None].astype(np.float32)), acquisition(source), acquisition(target))
    error = np.abs(made[0].numpy() - wanted)
    assert error.max() < 0.15 * np.abs(given - wanted).max()
    assert error.max() < 6.0
    assert abs(made.double().mean().item() - given.mean()) < 0.01


def test_filter_does_not_mix_opposite_borders():
    image = np.full((1, 64, 64), -1000.0, np.float32)
    image[:, :, :8] = 0.0
    smooth = acquisition(NAMED_KERNELS["smooth"])
    made = apply_filter(torch.from_numpy(image), acquisition(NAMED_KERNELS["sharp"]), smooth)
    assert (made[:, :, 40:] + 1000.0).abs().max() < 1.0


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (64, 19)])
def test_filter_on_small_slices(size):
    slices = torch.randn(2, *size) * 20 + 40
    made = apply_filter(slices, acquisition(NAMED_KERNELS["sharp"]), acquisition(NAMED_KERNELS["medium"]))
    assert made.shape == slices.shape
    assert made.isfinite().all()
    assert made.std() < slices.std()


def run(volume: Volume, **settings) -> engine.Outcome:
    method = MtfFilter(None, torch.device("cpu"), torch.float32)
    source, target = (acquisition(NAMED_KERNELS[name], 0.8) for name in ("sharp", "smooth"))
    return engine.run(volume, method, source, target, engine.Settings(**settings))


def test_filter_through_the_engine():
    volume = chest()
    whole = run(volume)
    np.testing.assert_array_equal(whole.harmonized, whole.mean)
    assert whole.deviation is None
    assert whole.redrawn == 0
    tissue = (slice(None), slice(30, 44), slice(48, 64))
    assert whole.mean[tissue].std() < 0.6 * volume.hu[tissue].std()
    assert whole.mean[tissue].mean() == pytest.approx(volume.hu[tissue].mean(), abs=1.0)
    air = (slice(None), slice(0, 72), slice(0, 5))
    assert whole.mean[air].mean() == pytest.approx(volume.hu[air].mean(), abs=1.0)


@pytest.mark.parametrize("settings", [{"tile": 32}, {"slab": 3}, {"roi": Roi((5, 60), (0, 31), (1, 3))}])
def test_filter_does_not_depend_on_the_division(settings):
    volume = chest()
    roi = settings.get("roi", Roi.whole(volume.shape))
    np.testing.assert_array_equal(run(volume, **settings).mean, run(volume).mean[roi.index()])


def test_metal_passes_the_filter():
    volume = chest(1)
    volume.hu[:, 20:30, 20:30] = 12000
    result = run(volume)
    assert result.mean.max() > 8000
    assert result.redrawn == 0


@pytest.mark.parametrize("name", ["sngan", "wgan-mse", "wgan-vgg", "physics-gan"])
def test_adversarial_methods_caution_the_reader(name):
    assert "may be invented" in method_named(name).caution


def test_a_methods_caution_stands_with_its_result(monkeypatch):
    def notes() -> list[str]:
        return harmonize(chest(), method="mtf-filter", kernel="smooth", device="cpu").report["notes"]

    assert notes() == []
    monkeypatch.setattr(method_named("mtf-filter"), "caution", "Judge with care.")
    assert notes() == ["Judge with care."]
