"""The procedural chest."""

from dataclasses import replace

import numpy as np
import pytest

from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.phantom import EMPHYSEMA_BELOW, HEIGHT, ChestPhantom, chest_phantom
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


def test_a_nodule_in_the_chest_has_the_stated_volume():
    """Whatever vessels and airways cross it."""
    drawn = ChestPhantom(9001, pixel=1.0, size=230)
    nodules = [replace(nodule, spicules=0) for nodule in drawn.nodules]
    chest, without = (ChestPhantom(9001, pixel=1.0, size=230, nodules=some) for some in (nodules, []))
    nodule = max(nodules, key=lambda nodule: nodule.diameter)
    stated = next(entry for entry in chest.truth()["nodules"] if entry["diameter"] == nodule.diameter)
    assert stated["volume"] == pytest.approx(np.pi / 6 * nodule.diameter**3)
    around = [np.abs(chest.axis - place) < 0.8 * nodule.diameter for place in nodule.centre[:2]]
    volume = 0.0
    for z in np.arange(nodule.centre[2] - 12.0, nodule.centre[2] + 12.5, 1.0):
        with_it, background = (one.plane(z)[np.ix_(around[1], around[0])] for one in (chest, without))
        room = nodule.hu - background
        volume += ((with_it - background) / np.where(np.abs(room) < 10.0, np.inf, room)).sum()
    assert volume == pytest.approx(stated["volume"], rel=0.03)


def test_drawn_nodules_are_apart():
    nodules = ChestPhantom(5, pixel=4.0, size=100, nodules=12).nodules
    for i, one in enumerate(nodules):
        for other in nodules[:i]:
            assert np.linalg.norm(np.subtract(one.centre, other.centre)) > one.diameter + other.diameter


def test_emphysema_has_the_stated_extent():
    chest, healthy = (ChestPhantom(4, pixel=0.8, size=420, emphysema=share, nodules=[]) for share in (0.2, 0.0))
    low = all_of_it = 0
    for z in (95.0, 119.0, 143.0, 167.0):
        without = healthy.plane(z)
        parenchyma = chest.lung(z) & (without < -750) & (without > -980)  # neither vessel, fissure nor bronchus
        low += (chest.plane(z)[parenchyma] < EMPHYSEMA_BELOW).sum()
        all_of_it += parenchyma.sum()
    truth = chest.truth()
    assert 100 * low / all_of_it == pytest.approx(truth["emphysema_percent"], rel=0.04)
    assert healthy.truth()["emphysema_percent"] == 0.0


def test_the_lungs_have_the_stated_volume(phantom):
    step = 5.0
    inside = sum(phantom.lung(z).sum() for z in np.arange(step / 2, HEIGHT, step))
    assert inside * phantom.pixel**2 * step / 1000 == pytest.approx(phantom.truth()["lung_ml"], rel=0.01)


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
