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
import torch
from scipy import fft

from CTHarmonizeLib.ct.mtf import Mtf

LOWEST_F50 = 2.3
"""lp/cm of the smoothest kernel that is drawn."""


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


class Sampler:
    """Filters images and samples them on a grid, in one step.

    For images (rows, columns) of ``pixel`` mm whose first pixel lies at ``origin`` (x, y) mm. ``response`` maps
    frequencies in lp/cm to gains; where it has died out, coefficients are left out of the sums.
    """

    NEGLIGIBLE = 1e-4

    def __init__(
        self,
        shape: tuple[int, int],
        pixel: float,
        origin: tuple[float, float],
        grid: PixelGrid,
        response: Callable[[np.ndarray], np.ndarray],
    ) -> None:
        rows, columns = shape
        fy, fx = fft.fftfreq(rows, pixel), fft.rfftfreq(columns, pixel)
        along = np.linspace(0.0, 10.0 * np.hypot(np.abs(fy).max(), fx[-1]), 512)
        gains = response(along)
        alive = np.flatnonzero(np.abs(gains) > self.NEGLIGIBLE)
        reach = along[min(alive[-1] + 1, 511)] / 10.0
        self.rows, self.columns = np.flatnonzero(np.abs(fy) <= reach), int(np.searchsorted(fx, reach, "right"))
        fy, fx = fy[self.rows], fx[: self.columns]
        self.gain = np.interp(10.0 * np.hypot(fy[:, None], fx), along, gains).astype(np.float32)
        # A real image needs half the columns of its spectrum; the others count twice.
        weight = np.where((np.arange(self.columns) == 0) | (2 * np.arange(self.columns) == columns), 1.0, 2.0)
        y, x = grid.positions(1) - origin[1], grid.positions(0) - origin[0]
        self.left = torch.from_numpy(np.exp(2j * np.pi * np.outer(y, fy)).astype(np.complex64))
        right = weight[:, None] / (rows * columns) * np.exp(2j * np.pi * np.outer(fx, x))
        self.right = torch.from_numpy(right.astype(np.complex64))

    def __call__(self, spectrum: np.ndarray) -> np.ndarray:
        """(size, size) float32 from an image's ``rfft2``."""
        # Torch's threads are the loader's to limit; numpy's would fight the training for the processor.
        seen = torch.from_numpy((spectrum[self.rows, : self.columns] * self.gain).astype(np.complex64))
        return (self.left @ seen @ self.right).real.numpy().copy()


def seen_through(
    mtf: Callable[[np.ndarray], np.ndarray], base: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """Filter that turns a reconstruction with total MTF ``base`` into one with ``mtf``; 0 where the base has none."""

    def response(frequency: np.ndarray) -> np.ndarray:
        have = base(frequency)
        return np.where(have > 0.02, mtf(frequency) / np.maximum(have, 0.02), 0.0)

    return response


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

    def draw(self, rng: np.random.Generator, pixel: float, lowest: float = LOWEST_F50) -> Mtf:
        """A kernel for pixels of ``pixel`` mm."""
        if rng.random() < self.named_share:
            return self.named[rng.integers(len(self.named))].limited_to(pixel)
        highest = 4.0 / pixel
        f50 = float(np.exp(rng.uniform(np.log(lowest), np.log(highest))))
        sharpness = np.clip((f50 - 3.0) / 3.0, 0.0, 1.0)
        shapes = self.overshooting if rng.random() < 0.7 * sharpness else self.plain
        shape = shapes[rng.integers(len(shapes))]
        return Mtf(f50, shape.order, shape.overshoot)
