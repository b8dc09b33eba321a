"""Lungs found in a CT image, and emphysema by numbers: LAA-950, Perc15, lung mass and volume."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from CTHarmonizeLib.ct.edge import body_mask
from CTHarmonizeLib.ct.volume import PADDING_BELOW
from CTHarmonizeLib.errors import InputError

AERATED_HU = -500.0
EMPHYSEMA_HU = -950.0
"""Lung below this counts as emphysema (LAA-950)."""

SMOOTHING_MM = 1.2
"""Sigma of the low-pass in the plane before which no voxel counts as aerated."""

_FREE_AIR_HU = -940.0
_LEAST_LUMEN_MM2 = 20.0
_WALL_MM = (2.5, 5.0)  # from the contour of the smoothed free air, which lies that far inside the lumen
_WALLED = 0.5
_LUMEN_EDGE_MM = 4.0  # from the same contour, with noise to spare
_ROOM_HU = -800.0  # a wall, however thin, lies above; lung mostly below
_ROOM_OF_LUMEN, _ROOM_MM2 = 4.0, 100.0  # what lies around a lumen within its wall; more is lung that it opens into
_LARGEST_AIRWAY_MM2 = 1500.0
_GAS_HU = -970.0  # what holds gas alone lies below: bowel, stomach
_LEAST_SHARE = 0.02
_LEAST_SECTION_MM2 = 1000.0
_CLOSING_MM = 6.0
_LARGEST_HOLE_MM2 = 800.0  # a nodule of 32 mm; the dome of the liver is larger
_BESIDE_GAS = 0.25  # share of a piece: the blurred end of a bubble has more, lung far less
_COUNTED_HU = (-32768, 32767)


@dataclass(frozen=True)
class Densitometry:
    """``laa950``: percent of the voxels below -950 HU; ``perc15``: 15th percentile, HU; ``mass``, g; ``volume``, ml."""

    laa950: float
    perc15: float
    mass: float
    volume: float


def find_lungs(hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Where ``hu`` (slices, rows, columns; a slab or a whole chest) with voxels of ``spacing`` (columns, rows, slices)
    mm is aerated lung: a mask of its shape, empty where it shows none.

    Aerated is what lies below -500 HU after smoothing in the plane, within the body, in pieces of 2 % of all of it or
    more, with a cross-section of at least 10 square centimetres, that are neither gas alone nor the end of a bubble.
    The trachea, main bronchi and gas in the gullet, stomach or bowel are free air with a wall of soft tissue around it,
    which is told in every slice by itself: so there is no seed to find and no leak to stop. Airways within the lungs,
    whose surroundings are lung, stay lung, as does emphysema, which has no wall towards the lung. A slice in which the
    lungs reach the image's sides has none. Raises InputError for other than three dimensions.
    """
    if hu.ndim != 3:
        raise InputError(f"Lungs are found in volumes (slices, rows, columns), not in an array of shape {hu.shape}.")
    light, gas = np.zeros(hu.shape, bool), np.zeros(hu.shape, bool)
    for plane, found, airways in zip(hu, light, gas, strict=True):
        smooth = _smoothed(plane, spacing)
        body = body_mask(smooth)
        if body is not None:
            found[:] = body & (smooth < AERATED_HU)
            airways[:] = _airways(found, smooth, spacing[:2])
            found &= ~airways
    return _lungs_among(light, gas, hu, spacing)


def filled_lungs(lungs: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The aerated ``lungs`` (slices, rows, columns) with the vessels and nodules that they hold."""
    return np.stack([_filled(plane, spacing[:2]) for plane in lungs])


def aerated(hu: np.ndarray, lung: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The part of known lungs ``lung`` (bool, all that they hold) that is aerated by the rule of :func:`find_lungs`:
    so vessels and nodules count on neither side."""
    return np.stack([inside & (_smoothed(plane, spacing) < AERATED_HU) for plane, inside in zip(hu, lung, strict=True)])


def measure_densitometry(hu: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> Densitometry:
    """Densitometry of ``hu`` within ``mask`` (bool, of its shape), values rounded to whole HU; NaN in an empty one.

    The 15th percentile is interpolated, each whole HU spread evenly over half a HU to either side. The mass is
    (HU + 1024) / 1024 g/ml (Zarei et al. 2024, II-D), which gives air 0.02 g/ml and water 1.
    """
    lowest, highest = _COUNTED_HU
    counts = np.zeros(highest - lowest + 1, np.int64)
    for plane, inside in zip(np.atleast_2d(hu), np.atleast_2d(mask), strict=True):
        values = np.clip(np.rint(plane[inside]), lowest, highest).astype(np.int32)
        counts += np.bincount(values - lowest, minlength=len(counts))
    voxels, voxel = int(counts.sum()), float(np.prod(spacing)) / 1000.0
    if not voxels:
        return Densitometry(float("nan"), float("nan"), 0.0, 0.0)
    known = np.flatnonzero(counts)
    counts, scale = counts[known[0] : known[-1] + 1], lowest + np.arange(known[0], known[-1] + 1)
    below = np.concatenate([[0], np.cumsum(counts)]) / voxels
    perc15 = np.interp(0.15, below, scale[0] - 0.5 + np.arange(len(below)))
    emphysema = int(counts[scale < EMPHYSEMA_HU].sum())
    mass = float(counts @ (scale + 1024.0)) / 1024.0 * voxel
    return Densitometry(100.0 * emphysema / voxels, float(perc15), mass, voxels * voxel)


def _smoothed(plane: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    sigma = (SMOOTHING_MM / spacing[1], SMOOTHING_MM / spacing[0])
    return ndimage.gaussian_filter(np.maximum(plane, PADDING_BELOW).astype(np.float32), sigma, truncate=3.0)


def _airways(air: np.ndarray, smooth: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Free air within walls, in the ``air`` (rows, columns) of a slice of smoothed HU."""
    airways, lumen = np.zeros_like(air), _closed_lumens(air, smooth, pixel)
    if not lumen.any():
        return airways
    box = _box(lumen, int(np.ceil(_WALL_MM[1] / min(pixel))) + 1)
    lumen, near = lumen[box], air[box]
    distance, nearest = ndimage.distance_transform_edt(lumen == 0, sampling=pixel[::-1], return_indices=True)
    owner, count = lumen[tuple(nearest)], int(lumen.max()) + 1
    around = (distance > _WALL_MM[0]) & (distance <= _WALL_MM[1])
    soft = np.bincount(owner[around & ~near], minlength=count)
    walled = soft > _WALLED * np.bincount(owner[around], minlength=count)
    airways[box] = walled[owner] & (distance <= _LUMEN_EDGE_MM) & near
    return airways


def _closed_lumens(air: np.ndarray, smooth: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """Numbered pieces of free air in ``air`` that do not open into lung, 0 elsewhere."""
    area = pixel[0] * pixel[1]
    labels, count = ndimage.label((smooth < _FREE_AIR_HU) & air)
    if not count:
        return labels
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    rooms, room_count = ndimage.label((smooth < _ROOM_HU) & air)
    room = np.zeros(count + 1, np.intp)
    room[labels] = rooms  # all of a piece lies in one room
    room[0] = 0
    free, whole = (np.bincount(where, kind, room_count + 1) for where, kind in ((room, sizes), (rooms.ravel(), None)))
    level = np.bincount(rooms.ravel(), np.where(labels > 0, smooth, 0.0).ravel(), room_count + 1) / np.maximum(free, 1)
    closed = whole * area <= _ROOM_OF_LUMEN * free * area + _ROOM_MM2
    # emphysema may be the whole of a lung's section, and no airway is that large: there, only gas counts
    closed &= (whole * area <= _LARGEST_AIRWAY_MM2) | (level < _GAS_HU)
    kept = closed[room] & (sizes * area >= _LEAST_LUMEN_MM2)
    kept[0] = False
    return np.where(kept[labels], labels, 0)


def _lungs_among(light: np.ndarray, gas: np.ndarray, hu: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """The pieces of ``light`` that are lungs, not what is left around ``gas``; ``light`` is changed."""
    if not light.any():
        return light
    box = _box(light, 0)
    inner, values, gas = light[box], hu[box], gas[:, box[1], box[2]]
    labels, count = ndimage.label(inner)
    sizes, sections, beside = (np.zeros(count + 1, np.int64) for _ in range(3))
    for number, plane in enumerate(labels, start=box[0].start):  # a count of the whole would copy it as 64-bit integers
        here = np.bincount(plane.ravel(), minlength=count + 1)
        sizes += here
        np.maximum(sections, here, out=sections)
        next_to = gas[max(0, number - 1) : number + 2].any(0)
        beside += np.bincount(plane[next_to], minlength=count + 1)
    lung = (sizes >= _LEAST_SHARE * sizes[1:].sum()) & (sections * spacing[0] * spacing[1] >= _LEAST_SECTION_MM2)
    lung &= beside <= _BESIDE_GAS * sizes
    lung[0] = False
    for number in np.flatnonzero(lung):
        lung[number] = np.median(values[labels == number]) > _GAS_HU
    for plane, pieces in zip(inner, labels, strict=True):
        plane &= lung[pieces]
    return light


def _box(mask: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The box around ``mask``, with a ``margin`` of voxels as far as there are some."""
    axes = range(mask.ndim)
    seen = (np.flatnonzero(mask.any(tuple(other for other in axes if other != axis))) for axis in axes)
    return tuple(slice(max(0, where[0] - margin), where[-1] + margin + 1) for where in seen)


def _filled(plane: np.ndarray, pixel: tuple[float, float]) -> np.ndarray:
    """A slice of the lungs closed by a disc, small holes filled."""
    if not plane.any():
        return plane.copy()
    sampling = pixel[::-1]
    margin = int(np.ceil(_CLOSING_MM / min(pixel))) + 1
    whole, box = np.zeros_like(plane), _box(plane, 0)
    inner = plane[box]
    wide = ndimage.distance_transform_edt(~np.pad(inner, margin), sampling=sampling) <= _CLOSING_MM
    closed = ndimage.distance_transform_edt(wide, sampling=sampling) > _CLOSING_MM
    closed = closed[margin:-margin, margin:-margin] | inner
    holes, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~closed)
    small = np.bincount(holes.ravel(), minlength=count + 1) * pixel[0] * pixel[1] <= _LARGEST_HOLE_MM2
    whole[box] = closed | (small[holes] & (holes > 0))
    return whole
