"""The engine: what is computed must not depend on how the work is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation
from stochastic_method import ACQUISITION, NoisyConvolution, chest

from CTHarmonizeLib import engine
from CTHarmonizeLib.ct.volume import Roi
from CTHarmonizeLib.device import Load
from CTHarmonizeLib.engine import Settings
from CTHarmonizeLib.errors import Cancelled, CannotRunError
from CTHarmonizeLib.latents import Latents
from CTHarmonizeLib.passthrough import padding_mask


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(volume=None, method=None, progress=lambda fraction: None, cancelled=lambda: False, **settings):
    settings = {"samples": 6, "seed": 4, **settings}
    return engine.run(
        volume or chest(),
        method or NoisyConvolution(),
        ACQUISITION,
        ACQUISITION,
        Settings(**settings),
        progress,
        cancelled,
    )


def same(first, second, largest_deviation=2e-3):
    """Rounded images differ by a unit in the last place at most, and almost nowhere."""
    for name in ("harmonized", "mean"):
        change = np.abs(getattr(first, name).astype(int) - getattr(second, name))
        assert change.max() <= 1
        assert np.mean(change > 0) < 1e-3
    np.testing.assert_allclose(first.deviation, second.deviation, atol=largest_deviation)


@pytest.mark.parametrize("anchor", [None, 2.5])
@pytest.mark.parametrize(
    "division", [{"tile": 32}, {"tile": 24, "group": 1}, {"slab": 3}, {"slab": 2, "group": 5}, {"group": 2}]
)
def test_division_of_the_work_does_not_matter(division, anchor):
    same(run(method=NoisyConvolution(anchor_mm=anchor)), run(method=NoisyConvolution(anchor_mm=anchor), **division))


def test_tiles_are_really_used():
    method = NoisyConvolution()
    run(method=method, tile=32)
    assert len(method.encoded) == 3 * 9
    assert max(shape[-1] for shape in method.encoded) == 64


def test_threads_do_not_matter():
    first = run()
    torch.set_num_threads(2)
    same(first, run())


@pytest.mark.parametrize("roi", ["13:50,21:64,1:3", "0:90,0:72,0:1", "80:90,70:72,2:3"])
@pytest.mark.parametrize("anchor", [None, 2.5])
def test_region_has_the_values_of_the_whole(roi, anchor):
    roi = Roi.parse(roi)
    whole = run(method=NoisyConvolution(anchor_mm=anchor), coherence=4.0)
    part = run(method=NoisyConvolution(anchor_mm=anchor), coherence=4.0, roi=roi)
    assert part.mean.shape == roi.shape
    for name in ("harmonized", "mean", "deviation"):
        setattr(whole, name, getattr(whole, name)[roi.index()])
    same(whole, part)


def test_same_seed_same_result_other_seed_other_result():
    first, again, other = run(), run(), run(seed=5)
    np.testing.assert_array_equal(first.harmonized, again.harmonized)
    np.testing.assert_array_equal(first.deviation, again.deviation)
    assert np.mean(first.harmonized != other.harmonized) > 0.5


def brute_force(volume, method, samples, seed=4):
    """All samples (n, slices, rows, columns) at once, the plain way, without window or anchor."""
    hu = np.pad(volume.hu, ((0, 0), (0, 0), (0, 6)), mode="edge").astype(np.float32)
    state = method.encode(method.prepare(torch.from_numpy(hu), ACQUISITION, ACQUISITION), ACQUISITION, ACQUISITION)
    latents = Latents(seed, method.latent_shapes(72, 96), (72, 96), 1.0)
    drawn = [latents.draw(range(3), sample, (slice(0, 72), slice(0, 96))) for sample in range(samples)]
    latents = [torch.from_numpy(np.stack(level)) for level in zip(*drawn, strict=True)]
    return method.sample(state, latents)[..., :90].numpy().astype(np.float64)


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_mean_and_sample_zero_against_brute_force(samples):
    expected = brute_force(chest(), NoisyConvolution(), samples)
    result = run(samples=samples)
    assert np.abs(result.mean - expected.mean(0)).max() < 0.51
    assert np.abs(result.harmonized - expected[0]).max() < 0.51


def test_deviation_against_brute_force():
    expected = brute_force(chest(), NoisyConvolution(), 8)
    first, second = expected[0::2], expected[1::2]
    variance = np.mean((first - second) ** 2, 0) / 4 + np.var((first + second) / 2, axis=0, ddof=1)
    np.testing.assert_allclose(run(samples=8).deviation, np.sqrt(variance), rtol=1e-3, atol=1e-3)


def test_variance_is_unbiased_with_pairs():
    """Mean variance over many seeds of 4 samples equals the true one, of independent samples."""
    volume, method = chest(1), NoisyConvolution()
    true = np.var(np.concatenate([brute_force(chest(), method, 2, seed)[::2, 0] for seed in range(400)]), axis=0).mean()
    mine = np.mean([run(volume, method, samples=4, seed=1000 + seed).deviation ** 2 for seed in range(100)])
    assert mine == pytest.approx(true, rel=0.02)


def test_deviation_factor():
    np.testing.assert_allclose(run(deviation_factor=1.7).deviation, 1.7 * run().deviation, rtol=1e-5)


def test_window_passes_through_and_air_stays():
    volume = chest(2)
    volume.hu[:, 10:40, 50:80] = 3071  # metal, beyond the window
    volume.hu[0, 25, 65] = 3300
    result = run(volume)
    np.testing.assert_array_equal(result.mean[:, 17:33, 57:73], volume.hu[:, 17:33, 57:73])
    assert result.deviation[:, 17:33, 57:73].max() == 0.0
    assert result.deviation[:, 60:, 10:40].min() > 0.0


def test_noise_of_air_is_not_cut_at_the_window():
    """Voxels of air below the window are harmonized like those above: nothing is decided voxel by voxel."""
    random = np.random.default_rng(0)
    volume = chest(1, 128, 128)
    volume.hu[:] = np.rint(random.normal(-1000.0, 60.0, volume.hu.shape))
    result = run(volume, NoisyConvolution(amplitude=0.0), samples=1)
    below = volume.hu < -1100
    assert below.sum() > 500
    assert np.mean(result.mean[below] == volume.hu[below]) < 0.05
    assert result.mean.mean() == pytest.approx(volume.hu.mean(), abs=0.5)


def round_field_of_view(volume, padding, radius=46):
    """``volume`` with ``padding`` outside a circle, and the circle's outside."""
    rows, columns = volume.shape[1:]
    y, x = np.mgrid[:rows, :columns]
    outside = np.hypot(y - (rows - 1) / 2, x - (columns - 1) / 2) > radius
    return volume.with_hu(np.where(outside, np.int16(padding), volume.hu)), outside


def test_padding_stays_and_does_not_bleed():
    (first, outside), (second, _) = (round_field_of_view(chest(2, 96, 96), padding) for padding in (-2048, -3024))
    result, other = run(first), run(second)
    np.testing.assert_array_equal(result.mean[:, outside], -2048)
    np.testing.assert_array_equal(result.deviation[:, outside], 0.0)
    np.testing.assert_array_equal(result.mean[:, ~outside], other.mean[:, ~outside])


def test_a_field_of_view_that_cuts_the_body_gets_no_false_skin():
    volume = chest(2, 96, 96)
    volume.hu[:] = np.rint(np.random.default_rng(3).normal(40.0, 20.0, volume.hu.shape))
    whole = run(volume, NoisyConvolution(amplitude=0.0))
    cut, outside = round_field_of_view(volume, -2048)
    result = run(cut, NoisyConvolution(amplitude=0.0))
    bias = result.mean[:, ~outside].astype(float) - whole.mean[:, ~outside]
    assert abs(bias).max() < 100
    cut_at_edge = binary_dilation(outside, iterations=2) & ~outside
    change = result.mean[:, cut_at_edge].mean() - volume.hu[:, cut_at_edge].mean()
    reference = whole.mean[:, cut_at_edge].mean() - volume.hu[:, cut_at_edge].mean()
    assert change == pytest.approx(reference, abs=10.0)


def test_slices_of_padding_alone():
    volume = chest(3, 96, 96)
    volume.hu[1] = -2000
    result = run(volume)
    np.testing.assert_array_equal(result.mean[1], -2000)
    np.testing.assert_array_equal(result.mean[2], run(chest(3, 96, 96)).mean[2])


def test_a_single_noisy_voxel_is_no_padding():
    hu = np.full((1, 20, 20), -1000)
    hu[0, 5, 5] = -1700
    hu[0, 10:14, 10:14] = -2048
    hu[0, 13, 14] = -2048  # belongs to the block
    mask = padding_mask(hu)
    assert not mask[0, 5, 5]
    assert mask.sum() == 17


def test_anchor_keeps_the_local_mean():
    volume = chest(1, 96, 96)
    free, anchored = run(volume, NoisyConvolution(amplitude=40.0)), run(volume, NoisyConvolution(40.0, anchor_mm=2.0))
    disc = (slice(None), slice(34, 62), slice(44, 62))  # soft tissue, away from edges
    error = [abs(result.harmonized[disc].mean() - volume.hu[disc].mean()) for result in (free, anchored)]
    assert error[1] < 1.0
    assert error[1] < 0.3 * error[0]


def test_rounding_not_truncation():
    volume = chest(1)
    result = run(volume, NoisyConvolution(amplitude=0.0), samples=2)
    expected = brute_force(chest(), NoisyConvolution(amplitude=0.0), 1)[0, :1]
    assert abs(np.mean(result.mean - expected)) < 0.02


class Exploding(NoisyConvolution):
    """Some voxels of the first draws are impossible: large latents explode there, as in a flow's inverse."""

    limit = 4.0
    hopeless = False

    def sample(self, state, latents):
        samples = super().sample(state, latents)
        peak = torch.nn.functional.interpolate(latents[0][:, :, :1].flatten(0, 1), size=state.shape[-2:])
        peak = peak[:, 0].unflatten(0, samples.shape[:2])
        samples = torch.where(peak > self.limit, torch.inf, samples)
        samples = torch.where(peak < -self.limit, torch.nan, samples)
        if self.hopeless:
            samples[..., 30:32, 40:42] = torch.inf
        return samples


def test_implausible_voxels_are_drawn_again_and_counted():
    plain, method = run(samples=8), Exploding()
    method.limit = 3.0
    result = run(method=method, samples=8)
    assert 0 < result.redrawn < 0.02 * result.drawn
    assert result.replaced == 0
    assert result.drawn == 8 * 3 * 72 * 90
    assert abs(result.mean.astype(float) - plain.mean).mean() < 0.5
    assert result.deviation.max() < 1.2 * plain.deviation.max()


def test_redrawing_changes_only_implausible_voxels():
    method = Exploding()
    method.limit = 3.0
    plain, result = run(samples=1), run(method=method, samples=1)
    changed = plain.harmonized != result.harmonized
    assert 0 < changed.sum() <= result.redrawn


def test_redrawing_agrees_between_divisions():
    method = Exploding()
    method.limit = 3.0
    whole, divided = run(method=method), run(method=method, slab=2, group=4)
    same(whole, divided)
    assert whole.redrawn == divided.redrawn
    assert whole.redrawn == run(method=method, tile=32).redrawn


def test_hopeless_voxels_become_the_estimate():
    method = Exploding()
    method.hopeless = True
    result = run(method=method, samples=4)
    assert result.replaced == 4 * 3 * 4
    estimate = run(method=NoisyConvolution(amplitude=0.0), samples=1)
    np.testing.assert_array_equal(result.mean[:, 30:32, 40:42], estimate.mean[:, 30:32, 40:42])
    assert result.deviation[:, 30:32, 40:42].max() == 0.0


def test_coherent_slices():
    volume = chest(6)
    volume.hu[:] = volume.hu[:1]

    def change(coherence):
        result = run(volume, samples=2, coherence=coherence).harmonized.astype(float)
        return np.abs(np.diff(result, axis=0)).mean()

    assert change(10.0) < 0.5 * change(0.0)


def test_progress_rises_to_one():
    seen = []
    run(progress=seen.append, tile=48, group=2)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1.0)
    assert len(seen) > 20


def test_cancel_stops_between_groups():
    method, asked = NoisyConvolution(), []

    def cancelled():
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Cancelled):
        run(method=method, cancelled=cancelled, group=2)
    assert len(method.sampled) == 2


class Hungry(NoisyConvolution):
    """Fails for want of memory beyond a number of voxels."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def sample(self, state, latents):
        if latents[0].shape[0] * state.numel() > self.most:
            raise self.error
        return super().sample(state, latents)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_out_of_memory_takes_less_at_once(error):
    method = Hungry(72 * 96, error)
    result = run(method=method, slab=3, group=4)
    assert (result.load.slices, result.load.samples) == (1, 1)
    same(run(), result)
    assert result.drawn == run().drawn


def test_out_of_memory_ends_in_tiles_then_in_a_sentence():
    volume = chest(1, 288, 288)
    method = Hungry(200 * 200, MemoryError())
    result = run(volume, method, samples=2)
    assert result.load == Load(1, 1, 144)
    same(run(volume, samples=2), result)
    with pytest.raises(CannotRunError, match="memory"):
        run(volume, Hungry(10, MemoryError()), samples=2)


def test_other_errors_are_not_taken_for_want_of_memory():
    with pytest.raises(RuntimeError, match="broken"):
        run(method=Hungry(0, RuntimeError("broken")))


def test_plan_keeps_to_the_free_memory(monkeypatch):
    method = NoisyConvolution()
    monkeypatch.setattr("CTHarmonizeLib.device.free_memory", lambda device: int(1.8 * method.memory(1, 1, 72, 96)))
    assert run(method=method).load == Load(1, 1)
    monkeypatch.setattr("CTHarmonizeLib.device.free_memory", lambda device: 1 << 16)
    with pytest.raises(CannotRunError, match="GiB"):
        run(method=method)


def test_metal_does_not_shift_the_tissue_around_it():
    """The network is shown metal clipped; what is missing there must not be made up beside it."""

    class Clipping(NoisyConvolution):
        def encode(self, planes, source, target):
            return planes[:, 0].clamp(max=3488.0)

    volume = chest(1, 96, 96)
    hu = np.full((1, 96, 96), 40, np.int16)
    hu[:, 44:52, 44:52] = 12000
    result = run(volume.with_hu(hu), Clipping(0.0, anchor_mm=4.0), samples=2)
    assert (result.mean[0, 46:50, 46:50] == 12000).all()
    rows, columns = np.mgrid[:96, :96]
    away = np.hypot(rows - 47.5, columns - 47.5) > 14  # beyond the blend at the metal's border
    assert np.abs(result.mean[0][away] - 40).max() <= 1


@pytest.mark.parametrize("division", [{}, {"tile": 32, "group": 2}, {"roi": Roi.parse("13:50,21:64,1:3")}])
def test_samples_that_are_kept_are_those_of_the_mean(division):
    outcome = run(**division, keep_samples=True)
    assert outcome.samples.shape == (6, *outcome.mean.shape) and outcome.samples.dtype == np.int16
    np.testing.assert_array_equal(outcome.samples[0], outcome.harmonized)
    assert np.abs(outcome.samples.mean(0) - outcome.mean).max() <= 1.0
    assert outcome.samples.std(0).mean() > 1.0
    same(outcome, run(**{key: value for key, value in division.items() if key == "roi"}))


def test_samples_are_not_kept_unasked():
    assert run().samples is None
