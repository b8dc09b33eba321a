"""Crops of a scene as any kernel and pixel size would show it.

A *scene* is a small region of a slice, reconstructed once on a fine grid with a wide-band kernel. In parallel-beam
geometry a kernel (an apodisation of the ramp) is a radial filter of the image (Fourier slice theorem), so any other
kernel is one multiplication of the scene's spectrum; evaluating that spectrum at the wanted pixel centres (two small
matrix products) samples it exactly, at any pixel size and phase.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft

from CTHarmonizeLib.ct.mtf import Mtf


@dataclass(frozen=True)
class PixelGrid:
    """Pixel centres of a square crop: ``size`` pixels of ``pixel`` mm around ``centre`` (x, y) in mm from the
    scene's first pixel centre."""

    size: int
    pixel: float
    centre: tuple[float, float]

    def positions(self, axis: int) -> np.ndarray:
        """Pixel centres along x (0) or y (1), mm."""
        return self.centre[axis] + (np.arange(self.size) - (self.size - 1) / 2.0) * self.pixel


def crop_window(grid: PixelGrid, scene_size: int, scene_pixel: float, margin: float) -> tuple[slice, slice]:
    """Rows and columns of the scene that ``grid`` needs, with ``margin`` mm around for the kernel's tails."""
    windows = []
    for axis in (1, 0):
        at = grid.positions(axis)
        start = int(np.floor((at[0] - margin) / scene_pixel))
        stop = int(np.ceil((at[-1] + margin) / scene_pixel)) + 1
        length = fft.next_fast_len(stop - start, real=True)
        start = max(0, min(start, scene_size - length))
        windows.append(slice(start, min(scene_size, start + length)))
    return windows[0], windows[1]


class Spectrum:
    """Spectrum of part of a scene, to be seen through kernels and sampled on grids.

    ``image`` (rows, columns) is the windowed part, its first pixel at ``origin`` (x, y) mm.
    """

    def __init__(self, image: np.ndarray, pixel: float, origin: tuple[float, float]) -> None:
        rows, columns = image.shape
        self.values = fft.rfft2(image.astype(np.float32))
        self.origin = origin
        self.fy = fft.fftfreq(rows, pixel).astype(np.float32)
        self.fx = fft.rfftfreq(columns, pixel).astype(np.float32)
        self.radius = 10.0 * np.hypot(self.fy[:, None], self.fx[None])  # lp/cm
        # A real image needs half the columns of its spectrum; the others count twice.
        weight = np.full(len(self.fx), 2.0, dtype=np.float32)
        weight[0] = 1.0
        if columns % 2 == 0:
            weight[-1] = 1.0
        self.weight = weight / (rows * columns)

    def phases(self, grid: PixelGrid) -> tuple[np.ndarray, np.ndarray]:
        """Fourier matrices (size, rows) and (columns, size) of the grid's pixel centres."""
        y, x = grid.positions(1) - self.origin[1], grid.positions(0) - self.origin[0]
        return (
            np.exp(2j * np.pi * np.outer(y, self.fy)).astype(np.complex64),
            (self.weight[:, None] * np.exp(2j * np.pi * np.outer(self.fx, x))).astype(np.complex64),
        )

    def sample(self, response: np.ndarray, phases: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """(size, size) float32: the image filtered by ``response`` (as ``radius``) at the grid's pixels."""
        left, right = phases
        return (left @ (self.values * response) @ right).real.astype(np.float32)


def radial_response(
    mtf: Callable[[np.ndarray], np.ndarray], base: Callable[[np.ndarray], np.ndarray], radius: np.ndarray
) -> np.ndarray:
    """Filter that turns a reconstruction with total MTF ``base`` into one with ``mtf``; 0 where the base has none.

    The curve is tabulated along the radius, which is far cheaper than evaluating it at each coefficient.
    """
    table = np.linspace(0.0, float(radius.max()) + 1e-3, 512)
    base_values = base(table)
    ratio = np.where(base_values > 0.02, mtf(table) / np.maximum(base_values, 0.02), 0.0)
    return np.interp(radius, table, ratio).astype(np.float32)


class KernelSampler:
    """Random kernels: continuous f50 within the grid's limit, steepness and overshoot as real kernels have.

    The shapes are solved once, since each costs milliseconds; f50 is drawn freely.
    """

    def __init__(self, seed: int, shapes: int = 96, named: Sequence[Mtf] = (), named_share: float = 0.25) -> None:
        rng = np.random.default_rng(seed)
        self.plain = [Mtf.from_points(1.0, rng.uniform(1.35, 1.95)) for _ in range(shapes)]
        self.overshooting = [
            Mtf.from_points(1.0, rng.uniform(1.25, 1.5), peak=rng.uniform(1.02, 1.3)) for _ in range(shapes)
        ]
        self.named, self.named_share = list(named), named_share if named else 0.0

    def draw(self, rng: np.random.Generator, pixel: float, lowest: float = 2.3) -> Mtf:
        """A kernel for pixels of ``pixel`` mm."""
        if rng.random() < self.named_share:
            return self.named[rng.integers(len(self.named))].limited_to(pixel)
        highest = 4.0 / pixel
        f50 = float(np.exp(rng.uniform(np.log(lowest), np.log(highest))))
        sharpness = np.clip((f50 - 3.0) / 3.0, 0.0, 1.0)
        shapes = self.overshooting if rng.random() < 0.7 * sharpness else self.plain
        shape = shapes[rng.integers(len(shapes))]
        return Mtf(f50, shape.order, shape.overshoot)
