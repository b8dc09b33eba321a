"""Latent fields: reproducible, independent where they should be, alike where coherence says so."""

from __future__ import annotations

import numpy as np
import pytest

from CTHarmonizeLib.latents import Latents, coherence_weights, normal_field

FROZEN = [-1.028152, 0.6013332, -1.426046, 1.163093]
SHAPES = [(2, 64, 64), (4, 32, 32), (16, 16, 16)]
WHOLE = (slice(0, 128), slice(0, 128))


def latents(**options) -> Latents:
    return Latents(**{"seed": 3, "shapes": SHAPES, "size": (128, 128), "temperature": 1.0, **options})


def test_field_is_standard_normal():
    field = normal_field(0, 5, 2, 1, 0, (8, 128, 128))
    assert field.dtype == np.float32
    assert abs(field.mean()) < 4 / np.sqrt(field.size)
    assert field.std() == pytest.approx(1.0, abs=0.01)


def test_field_never_changes():
    # Results in the literature and in users' files hang on these numbers.
    field = normal_field(7, 11, 4, 2, 1, (1, 1, 4))
    np.testing.assert_array_equal(field, normal_field(7, 11, 4, 2, 1, (1, 1, 4)))
    np.testing.assert_allclose(field.ravel(), FROZEN, rtol=1e-6)


@pytest.mark.parametrize("changed", range(5))
def test_every_part_of_the_key_gives_other_numbers(changed):
    key = [1, 2, 4, 1, 0]
    first = normal_field(*key, (4, 64, 64)).ravel()
    key[changed] += 2
    other = normal_field(*key, (4, 64, 64)).ravel()
    assert abs(np.corrcoef(first, other)[0, 1]) < 4 / np.sqrt(first.size)
    assert not np.isin(other[:100], first).any()


def test_negative_slices_and_large_seeds_are_keys_too():
    assert not np.array_equal(normal_field(0, -1, 0, 0, 0, (1, 4, 4)), normal_field(0, 1, 0, 0, 0, (1, 4, 4)))
    assert np.isfinite(normal_field(2**63 - 1, -300, 999, 3, 3, (1, 4, 4))).all()


def test_crop_equals_whole():
    region = (slice(16, 80), slice(40, 128))
    for whole, part, stride in zip(
        latents(coherence=6.0).draw(range(4, 6), 3, WHOLE),
        latents(coherence=6.0).draw(range(4, 6), 3, region),
        (2, 4, 8),
        strict=True,
    ):
        rows, columns = (slice(box.start // stride, box.stop // stride) for box in region)
        np.testing.assert_array_equal(part, whole[:, :, rows, columns])


def test_slab_equals_single_slices():
    slab = latents(coherence=3.0).draw(range(10, 13), 1, WHOLE)
    for offset in range(3):
        single = latents(coherence=3.0).draw(range(10 + offset, 11 + offset), 1, WHOLE)
        for level in range(3):
            np.testing.assert_array_equal(slab[level][offset], single[level][0])


def test_pairs_are_antithetic_and_scaled():
    draw = latents(temperature=0.8)
    even, odd, other = (draw.draw(range(1), sample, WHOLE)[0] for sample in (4, 5, 6))
    np.testing.assert_array_equal(even, -odd)
    assert not np.array_equal(even, other)
    assert even.std() == pytest.approx(0.8, abs=0.03)


def test_each_attempt_is_fresh_at_half_the_temperature():
    first, second = (latents().draw(range(1), 0, WHOLE, attempt)[0] for attempt in (0, 1))
    assert second.std() == pytest.approx(0.5 * first.std(), rel=0.05)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.06


@pytest.mark.parametrize(("coherence", "step"), [(0.0, 1.0), (2.0, 1.0), (5.0, 0.7), (10.0, 3.0)])
def test_coherence_keeps_the_variance(coherence, step):
    weights = coherence_weights(coherence, step)
    assert np.sum(weights**2) == pytest.approx(1.0)
    assert len(weights) % 2 == 1


def test_coherence_is_the_distance_where_correlation_is_1_over_e():
    fields = latents(coherence=4.0, slice_step=1.0).draw(range(0, 9), 0, WHOLE)[0]
    correlation = [np.corrcoef(fields[0].ravel(), fields[k].ravel())[0, 1] for k in range(9)]
    assert correlation[4] == pytest.approx(np.exp(-1), abs=0.05)
    assert correlation[1] > 0.9
    assert abs(correlation[8]) < 0.08
    independent = latents().draw(range(2), 0, WHOLE)[0]
    assert abs(np.corrcoef(independent[0].ravel(), independent[1].ravel())[0, 1]) < 0.05
