"""A chest of plain shapes: two lungs with vessels, a trachea that forks, stomach gas, a table."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

SPACING = (1.0, 1.0, 2.5)
LUNG_HU = -860.0


def chest(slices: int = 12, middle: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Anatomy (HU) and lungs: a body with two ellipsoid lungs, vessels, a trachea that forks into them, stomach gas.

    ``middle``: z (mm) of the slab's middle; the lungs reach from -90 to 90, the carina lies at 0.
    """
    shape = (slices, 200, 260)
    z, y, x = (axis.astype(np.float32) for axis in np.indices(shape))
    z, y, x = (z - (slices - 1) / 2) * SPACING[2] + middle, y - 99.5, x - 129.5
    hu = np.full(shape, -1000.0, np.float32)
    hu[(x / 120) ** 2 + (y / 85) ** 2 < 1] = 40.0
    hu[(np.abs(x) < 60) & (np.abs(y - 96) < 2)] = 100.0  # the table
    lung = ((np.abs(x) - 62) / 40) ** 2 + (y / 60) ** 2 + (z / 90) ** 2 < 1
    hu[lung] = LUNG_HU
    tubes = np.random.default_rng(seed).uniform([25, -55], [95, 55], (40, 2))
    for px, py in tubes:
        hu[lung & (np.hypot(np.abs(x) - px, y - py) < 2.0)] = 40.0
    for wall, value in ((2.5, 40.0), (0.0, -995.0)):
        hu[(np.hypot(x, y - 5) < 8.0 + wall) & (z < 0)] = value
        hu[(np.hypot(np.abs(x) - np.clip(z + 12, 0, 26), y - 5) < 7.0 + wall) & (z > -12) & (z < 14)] = value
    hu[((x - 20) / 20) ** 2 + ((y + 45) / 14) ** 2 + ((z - 80) / 25) ** 2 < 1] = -990.0
    return hu, lung


def scanned(hu: np.ndarray, noise: float, blur: float = 0.8, seed: int = 1) -> np.ndarray:
    white = np.random.default_rng(seed).normal(size=hu.shape)
    grain = ndimage.gaussian_filter(white, (0, 0.6, 0.6))
    image = ndimage.gaussian_filter(hu, (0.3, blur, blur)) + noise * grain / grain.std()
    return np.clip(np.rint(image), -1024, 3071).astype(np.int16)
