"""Draws the icon: an axial chest, noisy on the left, harmonized on the right. Run by hand; needs numpy and Pillow."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIZE, SCALE = 128, 8
REPOSITORY = Path(__file__).resolve().parents[3]


def ellipse(x, y, centre, radii) -> np.ndarray:
    return ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1.0


def draw() -> Image.Image:
    n = SIZE * SCALE
    y, x = (np.mgrid[:n, :n] + 0.5) / n * 2.0 - 1.0
    chest = np.full((n, n), 0.0)
    chest[ellipse(x, y, (0, 0.03), (0.86, 0.70))] = 0.62
    for side in (-1, 1):
        chest[ellipse(x, y, (0.41 * side, -0.02), (0.29, 0.48))] = 0.14
        for right, down, radius in ((0.30, -0.12, 0.045), (0.42, 0.10, 0.055), (0.34, 0.24, 0.035), (0.50, -0.2, 0.03)):
            chest[ellipse(x, y, (right * side, down), (radius, radius))] = 0.6
    chest[ellipse(x, y, (0.02, -0.12), (0.16, 0.22))] = 0.72  # heart
    chest[ellipse(x, y, (0, 0.36), (0.115, 0.10))] = 0.98  # vertebra
    chest[ellipse(x, y, (0, 0.48), (0.05, 0.07))] = 0.9
    body = ellipse(x, y, (0, 0.03), (0.86, 0.70))
    smooth = np.asarray(Image.fromarray(np.uint8(255 * chest)).filter(ImageFilter.GaussianBlur(0.9 * SCALE))) / 255.0
    grain = np.random.default_rng(4).normal(0.0, 1.0, (SIZE // 2, SIZE // 2))
    grain = np.asarray(Image.fromarray(np.float32(grain)).resize((n, n), Image.Resampling.BICUBIC))
    grey = np.where((x < 0.0) & body, smooth + 0.11 * grain, smooth)
    ground, ink = np.array([16, 34, 58]), np.array([238, 244, 250])
    colour = ground + np.clip(grey, 0.0, 1.0)[..., None] * (ink - ground)
    line = (np.abs(x) < 0.016) & (np.abs(y) < 0.84)
    colour[line] = (64, 196, 180)
    corner = 0.22
    inside = np.hypot(np.maximum(np.abs(x) - (0.98 - corner), 0), np.maximum(np.abs(y) - (0.98 - corner), 0)) < corner
    image = np.dstack([colour, 255.0 * inside]).round().astype(np.uint8)
    return Image.fromarray(image, "RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    icon = draw()
    for path in (REPOSITORY / "CTHarmonize.png", Path(__file__).with_name("CTHarmonize.png")):
        icon.save(path, optimize=True)
        print(path, file=sys.stderr)
