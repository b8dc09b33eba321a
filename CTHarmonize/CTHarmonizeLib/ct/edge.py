"""MTF of a CT image, measured at the body's own surface.

The boundary between air and skin is a step of about 1000 HU that every scan of a whole body has for free. Its
edge-spread function, oversampled because the boundary crosses the pixel grid at all angles, is compared with that
of the three-number family of :mod:`mtf`. The skin (one or two millimetres, brighter than the fat beneath) would
look like overshoot: it is part of the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage, sparse
from scipy.optimize import least_squares
from scipy.spatial import cKDTree

from CTHarmonizeLib.ct.mtf import HIGHEST_PEAK, Mtf, nyquist

_BOUNDARY_HU = -480.0
_SMOOTHING_MM = 1.2
_OUTSIDE_MM, _INSIDE_MM = 9.0, 7.0
_BIN_PIXELS = 0.1
_LINE_MM = 4.0
_PROFILE_MM = 6.0
_LARGEST_LEAN_MM = 0.35
_MINIMUM_POINTS = 300
_STEEP_SHARE = 0.87
_LONGEST_TAIL = 2.1  # f10 / f50; a Gaussian has 1.8
_MAXIMUM_SLICES = 16


@dataclass(frozen=True)
class MtfMeasurement:
    """``f50`` and ``f10`` in lp/cm, ``peak`` (1 without overshoot) of the total in-plane MTF; ``edges``: how many
    points of the body's surface were used, in ``slices`` slices; ``residual``: of the fitted edge, HU."""

    f50: float
    f10: float
    peak: float
    edges: int
    slices: int
    residual: float

    def mtf(self) -> Mtf:
        """The measured MTF."""
        return Mtf.from_points(self.f50, self.f10, min(self.peak, HIGHEST_PEAK))


@dataclass(frozen=True)
class _Surface:
    """Points of the air-skin boundary of one slice: (points, 2) place and outward normal in pixels (row, column),
    how steeply the HU fall there (share of the step per mm), and the noise of that."""

    place: np.ndarray
    normal: np.ndarray
    steepness: np.ndarray
    steepness_noise: float

    def part(self, chosen: np.ndarray) -> _Surface:
        return _Surface(self.place[chosen], self.normal[chosen], self.steepness[chosen], self.steepness_noise)


_NOTHING = _Surface(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0.0)


def measure_mtf(hu: np.ndarray, pixel_spacing: float) -> MtfMeasurement | None:
    """Total in-plane MTF of ``hu`` ((slices, rows, columns) or one slice, HU; square pixels of ``pixel_spacing`` mm).

    Neighbouring slices, where there are any, tell where the surface leans along the slice axis: such parts are
    blurred by the slice thickness and are left out. Returns None where the slices show no usable piece of skin
    with air before it (a clipped field of view, clothes, a table).
    """
    slices = hu[None] if hu.ndim == 2 else hu
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), _MAXIMUM_SLICES)).round().astype(int))
    surfaces = {
        index: _surface(slices[index].astype(np.float32), pixel_spacing, _neighbours(slices, index, pixel_spacing))
        for index in chosen
    }
    steepness = np.concatenate([surface.steepness for surface in surfaces.values()])
    if len(steepness) < _MINIMUM_POINTS:
        return None
    # clothes, a mattress, a leaning surface can only blur the edge: what is much less steep is not bare skin
    noise = float(np.median([surface.steepness_noise for surface in surfaces.values() if len(surface.place)]))
    enough = _STEEP_SHARE * (np.percentile(steepness, 90) - 1.28 * noise) - 1.5 * noise
    distances, values = [], []
    edges = used = 0
    for index, surface in surfaces.items():
        bare = surface.part(surface.steepness > enough)
        if len(bare.place) == 0:
            continue
        distance, value = _samples(slices[index].astype(np.float32), bare, pixel_spacing)
        distances.append(distance)
        values.append(value)
        edges += len(bare.place)
        used += 1
    if edges < _MINIMUM_POINTS:
        return None
    position, spread, error = _edge_spread(np.concatenate(distances), np.concatenate(values), pixel_spacing)
    fitted = _fit(position, spread, error, pixel_spacing)
    if fitted is None:
        return None
    mtf, residual = fitted
    return MtfMeasurement(mtf.f50, mtf.f10, mtf.peak, edges, used, residual)


def _smoothed(image: np.ndarray, pixel_spacing: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, _SMOOTHING_MM / pixel_spacing, mode="nearest")


def _neighbours(slices: np.ndarray, index: int, pixel_spacing: float) -> list[np.ndarray]:
    """The smoothed slices before and after, where they are there."""
    beside = [number for number in (index - 1, index + 1) if 0 <= number < len(slices)]
    return [_smoothed(slices[number].astype(np.float32), pixel_spacing) for number in beside]


def _surface(image: np.ndarray, pixel_spacing: float, neighbours: list[np.ndarray]) -> _Surface:
    """Usable points of the air-skin boundary."""
    smooth = _smoothed(image, pixel_spacing)
    body = body_mask(smooth)
    if body is None:
        return _NOTHING
    place = _crossings(smooth, body)
    gradient = np.stack(np.gradient(smooth), axis=-1)
    slope = _sampled(gradient, place)
    steep = np.linalg.norm(slope, axis=1)
    keep = steep > 100.0 * pixel_spacing
    place, slope, steep = place[keep], slope[keep], steep[keep]
    if len(place) < 3:
        return _NOTHING
    normal = -slope / steep[:, None]
    usable = _in_free_air(smooth, place, normal, pixel_spacing) & _in_even_tissue(smooth, place, normal, pixel_spacing)
    for other in neighbours:
        lean = np.abs(_sampled(other, place) - _BOUNDARY_HU) / steep * pixel_spacing
        usable &= lean < _LARGEST_LEAN_MM
    place, normal, straight = _straightened(place, normal, pixel_spacing)
    usable &= straight
    place, normal = place[usable], normal[usable]
    if len(place) < 3:
        return _NOTHING
    return _Surface(place, normal, *_steepness(image, place, normal, pixel_spacing))


def _steepness(
    image: np.ndarray, place: np.ndarray, normal: np.ndarray, pixel_spacing: float
) -> tuple[np.ndarray, float]:
    """Steepest fall of the HU along the normal, as share of the step per mm, and its noise, seen in the air.

    The profiles are averaged over the neighbouring boundary first.
    """
    steps = np.arange(-5.0, 8.01, 0.25)
    profile, _ = _along(image, place, normal, steps, pixel_spacing)
    tree = cKDTree(place)
    near = tree.sparse_distance_matrix(tree, _PROFILE_MM / pixel_spacing, output_type="coo_matrix")
    near = sparse.csr_matrix((np.ones(near.nnz), (near.row, near.col)), shape=near.shape) + sparse.eye(len(place))
    near.data[:] = 1.0
    profile = (near @ profile) / np.asarray(near.sum(1))
    fall = -ndimage.gaussian_filter1d(profile, 2.0, axis=1, order=1, mode="nearest") / 0.25
    middle = np.abs(steps) <= 3.0
    step = profile[:, (steps > -3.5) & (steps < -0.5)].max(1) - profile[:, steps > 4.0].mean(1)
    return fall[:, middle].max(1) / np.maximum(step, 100.0), float(fall[:, steps > 4.0].std() / np.median(step))


def body_mask(smooth: np.ndarray) -> np.ndarray | None:
    """Mask of the largest object in a low-passed slice (rows, columns; HU) with its holes filled; None where there is
    none to speak of."""
    labels, count = ndimage.label(smooth > _BOUNDARY_HU)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    body = labels == int(sizes.argmax())
    return ndimage.binary_fill_holes(body) if body.sum() > 400 else None


def _crossings(smooth: np.ndarray, body: np.ndarray) -> np.ndarray:
    """(points, 2) subpixel places (row, column) where the body's outline crosses the lines of the pixel grid."""
    places = []
    for axis in (0, 1):
        first = [slice(None)] * 2
        second = [slice(None)] * 2
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        first, second = tuple(first), tuple(second)
        cut = np.argwhere(body[first] != body[second])
        low = smooth[first][tuple(cut.T)]
        high = smooth[second][tuple(cut.T)]
        share = np.clip((_BOUNDARY_HU - low) / np.where(high == low, 1.0, high - low), 0.0, 1.0)
        place = cut.astype(np.float64)
        place[:, axis] += share
        places.append(place)
    return np.concatenate(places)


def _sampled(values: np.ndarray, place: np.ndarray, order: int = 1) -> np.ndarray:
    """``values`` at subpixel places; the outermost pixel repeats beyond the image."""
    if values.ndim == 3:
        return np.stack([_sampled(values[..., part], place, order) for part in range(values.shape[-1])], axis=-1)
    return ndimage.map_coordinates(values, np.moveaxis(place, -1, 0), order=order, mode="nearest")


def _along(smooth: np.ndarray, place: np.ndarray, normal: np.ndarray, steps_mm: np.ndarray, pixel_spacing: float):
    """(points, steps) of the smoothed image along the normals, and whether all steps lie inside the image."""
    where = place[:, None, :] + normal[:, None, :] * (steps_mm / pixel_spacing)[None, :, None]
    inside = ((where >= 1) & (where <= np.array(smooth.shape) - 2)).all((1, 2))
    return _sampled(smooth, where), inside


def _in_free_air(smooth: np.ndarray, place: np.ndarray, normal: np.ndarray, pixel_spacing: float) -> np.ndarray:
    # -870: hair, clothes and blankets lie above; -1150: below is padding beyond the scanner's field of view
    profile, inside = _along(smooth, place, normal, np.arange(3.5, _OUTSIDE_MM + 0.1, 0.75), pixel_spacing)
    return inside & (profile > -1150).all(1) & (profile < -870).all(1)


def _in_even_tissue(smooth: np.ndarray, place: np.ndarray, normal: np.ndarray, pixel_spacing: float) -> np.ndarray:
    profile, inside = _along(smooth, place, normal, -np.arange(3.5, _INSIDE_MM + 0.1, 0.75), pixel_spacing)
    level = profile.mean(1)
    return inside & (level > -170) & (level < 130) & (np.ptp(profile, axis=1) < 120)


def _straightened(
    place: np.ndarray, normal: np.ndarray, pixel_spacing: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places and normals averaged over the neighbouring points (noise and grid effects average out), and whether
    the boundary there is straight enough for that."""
    pairs = cKDTree(place).query_pairs(_LINE_MM / pixel_spacing, output_type="ndarray")
    first = np.concatenate([pairs[:, 0], pairs[:, 1], np.arange(len(place))])
    second = np.concatenate([pairs[:, 1], pairs[:, 0], np.arange(len(place))])
    same_side = (normal[first] * normal[second]).sum(1) > 0.5
    first, second = first[same_side], second[same_side]
    number = np.bincount(first, minlength=len(place))

    def mean(weights: np.ndarray) -> np.ndarray:
        return np.bincount(first, weights, minlength=len(place)) / number

    direction = np.stack([mean(normal[second, 0]), mean(normal[second, 1])], axis=1)
    coherence = np.linalg.norm(direction, axis=1)
    direction /= coherence[:, None]
    # the point stays where it is along the boundary, and moves across it to the local mean
    offset = ((place[second] - place[first]) * direction[first]).sum(1)
    shift = mean(offset)
    scatter = np.sqrt(np.maximum(mean(offset**2) - shift**2, 0.0)) * pixel_spacing
    straight = (coherence > 0.985) & (scatter < 0.25) & (number >= 6)
    return place + shift[:, None] * direction, direction, straight


def _samples(image: np.ndarray, surface: _Surface, pixel_spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance in mm (positive in air) and value of every pixel near the surface's points."""
    reach = (_OUTSIDE_MM - 1.0) / pixel_spacing
    low = np.maximum(np.floor(surface.place.min(0) - reach).astype(int), 0)
    high = np.minimum(np.ceil(surface.place.max(0) + reach).astype(int) + 1, image.shape)
    rows, columns = np.mgrid[low[0] : high[0], low[1] : high[1]]
    pixels = np.stack([rows.ravel(), columns.ravel()], axis=1).astype(np.float64)
    gap, nearest = cKDTree(surface.place).query(pixels, distance_upper_bound=reach)
    found = np.isfinite(gap)
    pixels, nearest = pixels[found], nearest[found]
    offset = pixels - surface.place[nearest]
    across = (offset * surface.normal[nearest]).sum(1)
    along = np.abs(offset[:, 0] * surface.normal[nearest, 1] - offset[:, 1] * surface.normal[nearest, 0])
    beside = along < 1.2  # pixels beyond a gap in the usable surface belong to no point of it
    pixels, across = pixels[beside].astype(int), across[beside]
    return across * pixel_spacing, image[pixels[:, 0], pixels[:, 1]].astype(np.float64)


def _edge_spread(distance: np.ndarray, value: np.ndarray, pixel_spacing: float):
    """Position (mm), mean and standard error (HU) of the edge-spread function in bins of 0.1 pixel, less outliers."""
    width = _BIN_PIXELS * pixel_spacing
    edges = np.arange(-_INSIDE_MM, _OUTSIDE_MM - 1.0, width)
    which = np.digitize(distance, edges) - 1
    keep = (which >= 0) & (which < len(edges) - 1)
    which, value = which[keep], value[keep]
    count = len(edges) - 1
    weights = np.ones(len(value))
    for _ in range(3):
        number = np.maximum(np.bincount(which, weights, minlength=count), 1e-9)
        mean = np.bincount(which, weights * value, minlength=count) / number
        variance = np.bincount(which, weights * (value - mean[which]) ** 2, minlength=count) / number
        variance = ndimage.uniform_filter1d(variance, 9, mode="nearest")
        weights = (np.abs(value - mean[which]) < 4.0 * np.sqrt(variance[which] + 1e-6)).astype(np.float64)
    filled = number > 3
    centres = 0.5 * (edges[1:] + edges[:-1])
    error = np.sqrt(variance / number + 0.25)
    return centres[filled], mean[filled], error[filled]


class _StepResponse:
    """Edge-spread function of an MTF: 1 inside the body, 0 in air; the Fourier sine integral of M(f) / (pi f)."""

    def __init__(self) -> None:
        self.place = np.arange(-14.0, 14.0, 0.02)
        self.frequency = (np.arange(360) + 0.5) * 0.0075  # cycles per mm; period 133 mm, up to 27 lp/cm
        self.sine = np.sin(2 * np.pi * np.outer(self.place, self.frequency)) / (np.pi * self.frequency) * 0.0075

    def __call__(self, mtf: Mtf) -> np.ndarray:
        return 0.5 - self.sine @ mtf(10.0 * self.frequency)


def _fit(position: np.ndarray, spread: np.ndarray, error: np.ndarray, pixel_spacing: float) -> tuple[Mtf, float] | None:
    """MTF whose edge, with a skin layer and the tissue's slow slope behind it, fits best, and the residual in HU.

    None where the edge is no CT system's: too small a step, or so long a tail that clothes or a mattress must lie
    on the skin.
    """
    step = _StepResponse()
    air = float(np.median(spread[position > 4.0])) if (position > 4.0).any() else -1000.0
    tissue = float(np.median(spread[position < -4.0])) if (position < -4.0).any() else -100.0
    if tissue - air < 500:
        return None
    inner = np.clip(-position, 0.0, None)
    # bins far inside say little of the MTF and much of the patient's fat
    weight = 1.0 / np.hypot(error, 1.0)

    def model(parameters: np.ndarray) -> np.ndarray:
        log_f50, order, overshoot, shift, skin_hu, skin_mm, level, slope, base = parameters
        response = step(Mtf(float(np.exp(log_f50)), float(order), float(overshoot)))
        surface = np.interp(position - shift, step.place, response)
        beneath = np.interp(position - shift + skin_mm, step.place, response)
        return base + (level + skin_hu - base) * surface - skin_hu * beneath + slope * inner * surface

    def residuals(parameters: np.ndarray) -> np.ndarray:
        # weak beliefs where the data say nothing: steepness near a Gaussian's, little overshoot, skin as in anatomy
        beliefs = [(parameters[1] - 2.2) / 1.0, parameters[2] / 1.0, (parameters[4] - 120.0) / 80.0,
                   (parameters[5] - 1.6) / 0.6]  # fmt: skip
        return np.concatenate([(model(parameters) - spread) * weight, 2.0 * np.array(beliefs)])

    highest = 1.6 * nyquist(pixel_spacing)
    lower = [np.log(0.8), 1.15, 0.0, -1.5, 0.0, 0.4, tissue - 200, -30.0, air - 60]
    upper = [np.log(highest), 8.0, 3.0, 1.5, 350.0, 4.0, tissue + 200, 30.0, air + 60]
    best = None
    for f50 in (3.0, 6.0):
        start = [np.log(min(f50, 0.9 * highest)), 2.2, 0.1, 0.0, 120.0, 1.6, tissue, 0.0, air]
        found = least_squares(residuals, start, bounds=(lower, upper), x_scale=[0.1, 0.3, 0.1, 0.1, 50, 0.3, 20, 3, 10],
                              loss="soft_l1", f_scale=3.0, max_nfev=80)  # fmt: skip
        if best is None or found.cost < best.cost:
            best = found
    mtf = Mtf(float(np.exp(best.x[0])), float(best.x[1]), float(best.x[2]))
    if mtf.f10 / mtf.f50 > _LONGEST_TAIL:
        return None
    residual = float(np.sqrt(np.mean((model(best.x) - spread) ** 2)))
    return mtf, residual
