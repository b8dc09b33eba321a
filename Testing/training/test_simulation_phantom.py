"""The procedural chest."""

import numpy as np
import pytest

from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.phantom import ChestPhantom, chest_phantom
from CTHarmonizeTraining.simulation.trees import draw_segments, grow_tree, polyline


@pytest.fixture(scope="module")
def phantom() -> ChestPhantom:
    return ChestPhantom(4, pixel=1.6, size=250, emphysema=0.15, nodules=[])


def test_the_same_seed_is_the_same_chest():
    one = chest_phantom(5, [130.0], pixel=3.2, size=125)
    assert np.array_equal(one, chest_phantom(5, [130.0], pixel=3.2, size=125))
    assert np.abs(one - chest_phantom(6, [130.0], pixel=3.2, size=125)).mean() > 10


@pytest.mark.parametrize("lobulation", [0.0, 0.15])
def test_a_nodule_has_the_stated_volume(lobulation):
    nodule = Nodule((3.2, -4.1, 50.0), 9.0, 1.0, lobulation, 0, 7)
    axis = (np.arange(80) - 39.5) * 0.4
    volume = 0.0
    for z in np.arange(42, 58, 0.25):
        tissue = np.zeros((80, 80), np.float32)
        paint_nodule(tissue, nodule, axis, float(z))
        volume += tissue.sum() * 0.4**2 * 0.25
    assert volume == pytest.approx(nodule.volume, rel=0.03)


def test_emphysema_has_the_stated_extent(phantom):
    healthy = ChestPhantom(4, pixel=1.6, size=250, emphysema=0.0, nodules=[])
    share = []
    for z in (95.0, 107.0, 119.0, 131.0, 143.0, 155.0):
        without = healthy.plane(z)
        lung = phantom._lung(phantom.axis[None, :], phantom.axis[:, None], z) < -6
        lung &= without < -750  # neither vessel nor bronchus
        share.append(((phantom.plane(z) - without)[lung] / (-972.0 - without[lung])).mean())
    assert np.mean(share) == pytest.approx(0.15, abs=0.03)


def test_tissues_have_their_numbers(phantom):
    plane = phantom.plane(150.0)
    assert plane[0].max() == -1000
    assert -1050 < plane.min() and 600 < plane.max() < 1900
    body = plane > -300
    assert 0.2 < body.mean() < 0.75
    assert 0.05 < ((plane > -130) & (plane < -70)).mean() < 0.35  # fat
    lung = phantom._lung(phantom.axis[None, :], phantom.axis[:, None], 150.0) < -6
    assert -960 < np.median(plane[lung]) < -780


def test_slices_are_coherent_and_average_their_thickness(phantom):
    near = np.abs(phantom.plane(150.0) - phantom.plane(150.2)).mean()
    far = np.abs(phantom.plane(150.0) - phantom.plane(170.0)).mean()
    assert near < 0.35 * far
    planes = [phantom.plane(z) for z in (149.0, 150.0, 151.0)]
    np.testing.assert_allclose(phantom.slice(150.0, 3.0, 3), np.mean(planes, 0), atol=0.01)


def test_a_drawn_tube_has_its_cross_section():
    axis = np.arange(-10, 10, 0.25)
    cover = draw_segments(polyline([(1, -1, -20), (1, -1, 20)], 2.0), axis, axis, 3.0)
    assert cover.sum() * 0.25**2 == pytest.approx(np.pi * 4, rel=0.02)


def test_a_tree_reaches_every_target_and_thins():
    rng = np.random.default_rng(0)
    targets = rng.uniform(-30, 30, (200, 3))
    tree = grow_tree(np.zeros(3), targets, 0.3, rng)
    gap = np.linalg.norm(tree.stop[None] - targets[:, None], axis=2).min(1)
    assert gap.max() < 1e-9
    assert tree.first.max() == pytest.approx(0.3 * 200 ** (1 / 3))
    assert tree.last.min() == pytest.approx(0.3)
