"""What the phantom is made of: signed distances (mm, negative inside) to simple shapes, and random textures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from CTHarmonizeTraining.simulation.trees import Segments


def ellipse(x: np.ndarray, y: np.ndarray, centre: tuple, axes: tuple | np.ndarray, power: float) -> np.ndarray:
    """Distance to a superellipse, to first order (value over gradient)."""
    px, py = np.abs(x - centre[0]) / axes[0], np.abs(y - centre[1]) / axes[1]
    r = np.maximum((px**power + py**power) ** (1 / power), 1e-3)
    slope = np.hypot((px / r) ** (power - 1) / axes[0], (py / r) ** (power - 1) / axes[1])
    return (r - 1.0) / np.maximum(slope, 1e-6)


def bar(x: np.ndarray, y: np.ndarray, start: tuple, stop: tuple, radius: float) -> np.ndarray:
    """Distance to a bar with round ends."""
    dx, dy = stop[0] - start[0], stop[1] - start[1]
    share = np.clip(((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.hypot(x - start[0] - share * dx, y - start[1] - share * dy) - radius


def tube_distance(tube: Segments, x: np.ndarray, y: np.ndarray, z: np.ndarray | float) -> np.ndarray:
    """Distance to the surface of a tube; far away in z it is not exact but large."""
    result = np.full(np.broadcast_shapes(np.shape(x), np.shape(y), np.shape(z)), 1e3, np.float32)
    for start, stop, first, last in zip(tube.start, tube.stop, tube.first, tube.last, strict=True):
        reach = max(first, last) + 8.0
        if np.max(z) < min(start[2], stop[2]) - reach or np.min(z) > max(start[2], stop[2]) + reach:
            continue
        along = stop - start
        dx, dy, dz = x - start[0], y - start[1], z - start[2]
        share = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / (along @ along), 0, 1)
        r2 = (dx - share * along[0]) ** 2 + (dy - share * along[1]) ** 2 + (dz - share * along[2]) ** 2
        np.minimum(result, np.sqrt(r2) - (first + share * (last - first)), out=result, casting="unsafe")
    return result


def texture(seed: int, name: str, size: int, scale: float, stretch: float, level: float) -> np.ndarray:
    """Gaussian random field (0, 1) of correlation length ``scale`` pixels, coherent along z."""
    knot = int(np.floor(level))
    share = (level - knot) * np.pi / 2
    key = (seed, name, size, round(scale, 4), stretch)
    return np.cos(share) * _field(*key, knot) + np.sin(share) * _field(*key, knot + 1)


@lru_cache(maxsize=64)
def _field(seed: int, name: str, size: int, scale: float, stretch: float, knot: int) -> np.ndarray:
    rng = np.random.default_rng((seed, knot + 2**20, *name.encode(), int(scale * 100)))
    # A coarse field is drawn coarsely and enlarged: the same to the eye and much faster.
    step = max(1, int(scale / 4))
    small = rng.standard_normal((-(-size // step) + 8,) * 2, dtype=np.float32)
    field = gaussian_filter(small, (0.5 * scale / step, 0.5 * scale * stretch / step), mode="wrap")
    if step > 1:
        field = zoom(field, step, order=1)
    field = field[:size, :size]
    return field / field.std()
