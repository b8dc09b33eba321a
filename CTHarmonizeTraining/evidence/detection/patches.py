"""What the detector learns from: patches of simulated chests with nodules, and whole slabs to judge it by.

Chests are drawn without nodules, once. Nodules are painted into them for every patch anew, as
:class:`ChestPhantom` would (they are what it paints last), the patch goes through the kernel's MTF, which is what a
scan without noise is, and noise of a simulated scan of the same chest is added. Slabs are scanned whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import fft, ndimage

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeTraining.evidence.kept import kept as arrays
from CTHarmonizeTraining.simulation.nodules import Nodule, paint_nodule
from CTHarmonizeTraining.simulation.noise import Exposure, add_noise
from CTHarmonizeTraining.simulation.phantom import HEIGHT, ChestPhantom
from CTHarmonizeTraining.simulation.projector import Geometry, Grid, attenuation, forward_project
from CTHarmonizeTraining.simulation.scan import reconstruct, seeded_generator

PIXEL = 0.7
"""mm, of patches and slabs and of what the network sees."""

CHANNELS = 5
CHANNEL_STEP = 2.0
"""The network sees so many slices at once, so many mm apart, the judged one in the middle: a vessel goes on, a nodule
ends."""

KERNEL, DOSE = "medium", 100.0
"""The acquisition that the detector knows."""

DIAMETERS = (4.0, 20.0)
"""mm, of nodules."""

_SIDE = 528  # pixels of a slice
_MARGIN = 12  # pixels around a patch, for the kernel's tails
_VIEWS, _PHOTONS = 320, 6.25e5  # together the photons of 800 views of 2.5e5
_NOISE_DRAWS = 10
_NOISE_SCALE = (0.8, 1.25)
_SHOWN = 0.5  # of its largest radius: a cross-section from which on a nodule has a box
_CLEAR = 2.0  # mm between a nodule and the lung's edge


@dataclass(frozen=True)
class Anatomy:
    """Slices of a chest without nodules: ``hu`` int16 (slices, rows, columns), CHANNEL_STEP apart; ``depth`` uint8:
    mm to the lung's edge in the slice, 0 outside; ``noise`` int16 (draws, rows, columns), HU."""

    hu: np.ndarray
    depth: np.ndarray
    noise: np.ndarray


@dataclass(frozen=True)
class Slab:
    """A scanned slab of slices of 1 mm: ``hu`` int16 and ``lung`` bool (slices, rows, columns); ``nodules`` float32
    (n, 4): slice, row, column (fractions of voxels) and diameter (mm)."""

    hu: np.ndarray
    lung: np.ndarray
    nodules: np.ndarray

    spacing = (PIXEL, PIXEL, 1.0)

    def boxes(self) -> list[np.ndarray]:
        """True boxes of each slice (n, 4): rows and columns from, to; edges of pixels count from 0."""
        return [
            np.array([_box(row, column, radius) for row, column, radius in _sections(self.nodules, index, 1.0)])
            for index in range(len(self.hu))
        ]


def anatomy(seed: int, slices: int = 12) -> Anatomy:
    """The chest of ``seed``, around a height that the seed draws; takes a second or so a slice."""
    chest, rng = _chest(seed)
    planes, depth = _drawn(chest, _heights(slices, CHANNEL_STEP, rng))
    noisy = _scanned(planes[len(planes) // 2][None], seed, _NOISE_DRAWS)
    return Anatomy(np.rint(planes).astype(np.int16), depth, noisy[:-1] - noisy[-1:])


def slab(seed: int, slices: int = 24, nodules: int = 10) -> Slab:
    """A scan of the chest of ``seed`` with up to so many nodules, fewer where there is no room."""
    chest, rng = _chest(seed)
    planes, depth = _drawn(chest, _heights(slices, 1.0, rng))
    placed: list[Nodule] = []
    for _ in range(nodules):
        nodule = _nodule(rng)
        radius = nodule.diameter / 2
        z = rng.uniform(radius + 1.0, max(radius + 1.0, slices - 2.0 - radius))
        _place(placed, nodule, depth[int(np.clip(round(z), 0, slices - 1))], z, rng)
    axis = np.arange(_SIDE) * PIXEL
    for index, plane in enumerate(planes):
        for nodule in placed:
            paint_nodule(plane, nodule, axis, float(index))
    hu = np.concatenate([_scanned(plane[None], seed + index * 10_000, 1)[:1] for index, plane in enumerate(planes)])
    return Slab(hu, depth > 0, _known(placed, 1.0).astype(np.float32))


def patch(source: Anatomy, side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Channels (CHANNELS, side, side) float32 HU somewhere in the lungs, and the boxes (n, 4) of the middle one's
    nodules, as :meth:`Slab.boxes` has them."""
    count, whole = len(source.hu), side + 2 * _MARGIN
    middle = int(rng.integers(count))
    at = rng.choice(np.argwhere(source.depth[middle][::4, ::4] > 0)) * 4 + rng.integers(-16, 17, 2)
    top, left = np.clip(at - whole // 2, 0, source.hu.shape[1] - whole)
    here = np.s_[top : top + whole, left : left + whole]
    inner = np.s_[_MARGIN : whole - _MARGIN, _MARGIN : whole - _MARGIN]
    placed = _patch_nodules(source.depth[middle][here], inner, middle * CHANNEL_STEP, rng)

    wanted = np.clip(middle + np.arange(CHANNELS) - CHANNELS // 2, 0, count - 1)
    used, channel = np.unique(wanted, return_inverse=True)
    planes = source.hu[used][(slice(None), *here)].astype(np.float32)
    axis = np.arange(whole) * PIXEL
    for plane, index in zip(planes, used, strict=True):
        for nodule in placed:
            paint_nodule(plane, nodule, axis, index * CHANNEL_STEP)
    image = fft.irfft2(fft.rfft2(planes) * _response(whole), planes.shape[1:])
    draws = rng.choice(len(source.noise), len(used), replace=False)
    strength = np.float32(rng.uniform(*_NOISE_SCALE) * rng.choice([-1.0, 1.0]))
    image = (image + strength * source.noise[draws][(slice(None), *here)])[(channel, *inner)].astype(np.float32)

    sections = _sections(_known(placed, CHANNEL_STEP) - (0, _MARGIN, _MARGIN, 0), middle, CHANNEL_STEP)
    boxes = np.array([_box(*section) for section in sections], np.float32).reshape(-1, 4).clip(0, side)
    if rng.random() < 0.5:
        image, boxes = image[:, ::-1], np.stack([side - boxes[:, 2], boxes[:, 1], side - boxes[:, 0], boxes[:, 3]], 1)
    if rng.random() < 0.5:
        image, boxes = image[..., ::-1], np.stack([boxes[:, 0], side - boxes[:, 3], boxes[:, 2], side - boxes[:, 1]], 1)
    return np.ascontiguousarray(image), boxes


def kept(kind: type[Anatomy] | type[Slab], path: Path, make: Callable[[], Anatomy | Slab]) -> Anatomy | Slab:
    """What ``path`` (.npz) holds, made and written there first where it is missing or cut short."""
    return kind(**arrays(path, lambda: vars(make())))


def _chest(seed: int) -> tuple[ChestPhantom, np.random.Generator]:
    return ChestPhantom(seed, PIXEL, _SIDE, nodules=0), np.random.default_rng((seed, 5))


def _heights(slices: int, step: float, rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.3, 0.7) * HEIGHT + (np.arange(slices) - (slices - 1) / 2) * step


def _drawn(chest: ChestPhantom, heights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Planes float32 HU, and how deep in the lung their pixels lie (mm, uint8)."""
    depth = [ndimage.distance_transform_edt(chest.lung(float(z))) * PIXEL for z in heights]
    planes = np.stack([chest.plane(float(z)) for z in heights])
    return planes, np.ceil(np.minimum(depth, 255.0)).astype(np.uint8)


def _scanned(plane: np.ndarray, seed: int, draws: int) -> np.ndarray:
    """Images int16 (draws + 1, rows, columns) of a plane (1, n, n), the last without noise."""
    geometry = Geometry.covering(_SIDE * PIXEL, _VIEWS, 0.5)
    clean = forward_project(attenuation(torch.from_numpy(plane)), PIXEL, geometry)
    generator = seeded_generator("cpu", seed)
    noisy = add_noise(clean.expand(-1, -1, draws), DOSE, geometry.pitch, generator, Exposure(_PHOTONS))
    grid = Grid(_SIDE, _SIDE, PIXEL)
    images = reconstruct(torch.cat((noisy, clean), 2), geometry, target_mtf(KERNEL, PIXEL), grid)
    return np.rint(images.numpy()).clip(-32768, 32767).astype(np.int16)


def _response(side: int) -> np.ndarray:
    """Gains of the kernel, for the real spectrum of a patch."""
    per_cm = PIXEL / 10.0
    frequency = np.hypot(fft.fftfreq(side, per_cm)[:, None], fft.rfftfreq(side, per_cm)[None])
    return target_mtf(KERNEL, PIXEL)(frequency).astype(np.float32)


def _nodule(rng: np.random.Generator) -> Nodule:
    """A nodule of the kinds that phantoms have, at no place yet."""
    diameter = float(np.exp(rng.uniform(*np.log(DIAMETERS))))
    solid = rng.random() < 0.7
    hu = rng.uniform(10, 90) if solid else rng.uniform(-680, -450)
    lobulation = float(rng.choice([0.0, rng.uniform(0.05, 0.2)]))
    spicules = int(rng.choice([0, rng.integers(8, 20)])) if solid and diameter > 7 else 0
    return Nodule((0.0, 0.0, 0.0), diameter, float(hu), lobulation, spicules, int(rng.integers(2**31)))


def _patch_nodules(depth: np.ndarray, inner: tuple[slice, slice], z: float, rng: np.random.Generator) -> list[Nodule]:
    """None to three nodules that the plane ``z`` meets, or just misses."""
    room = np.zeros_like(depth)
    room[inner] = depth[inner]
    placed: list[Nodule] = []
    for _ in range(rng.integers(0, 4)):
        nodule = _nodule(rng)
        _place(placed, nodule, room, z + float(rng.uniform(-0.6, 0.6)) * nodule.diameter, rng)
    return placed


def _place(placed: list[Nodule], nodule: Nodule, depth: np.ndarray, z: float, rng: np.random.Generator) -> None:
    """Adds ``nodule`` to ``placed`` where there is room in the plane of that ``depth``, at height ``z`` (mm)."""
    radius = nodule.diameter / 2
    room = np.argwhere(depth > radius + _CLEAR)
    for row, column in room[rng.integers(len(room), size=20)] if len(room) else ():
        x, y = (np.array([column, row]) + rng.uniform(-0.5, 0.5, 2)) * PIXEL
        distance = [np.linalg.norm(np.subtract(other.centre, (x, y, z))) for other in placed]
        if all(d > 0.75 * (n.diameter + nodule.diameter) + 4.0 for d, n in zip(distance, placed, strict=True)):
            placed.append(replace(nodule, centre=(float(x), float(y), float(z))))
            return


def _known(nodules: Sequence[Nodule], step: float) -> np.ndarray:
    """Slice, row, column and diameter (mm), (n, 4), of nodules at ``step`` mm a slice."""
    places = [(n.centre[2] / step, n.centre[1] / PIXEL, n.centre[0] / PIXEL, n.diameter) for n in nodules]
    return np.array(places, np.float64).reshape(-1, 4)


def _sections(nodules: np.ndarray, index: int, step: float) -> list[tuple[float, float, float]]:
    """Row, column and radius (pixels) of the circles in which the slice ``index`` cuts ``nodules`` well."""
    found = []
    for slice_, row, column, diameter in nodules:
        radius = diameter / 2
        section = np.sqrt(max(radius**2 - ((index - slice_) * step) ** 2, 0.0))
        if section >= _SHOWN * radius:
            found.append((float(row), float(column), float(section / PIXEL)))
    return found


def _box(row: float, column: float, radius: float) -> tuple[float, float, float, float]:
    return row + 0.5 - radius, column + 0.5 - radius, row + 0.5 + radius, column + 0.5 + radius
