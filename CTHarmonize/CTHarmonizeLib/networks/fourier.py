"""What Fourier filters of images share: a border, so that opposite sides do not mix."""

from __future__ import annotations

from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional as F

MARGIN = 48
"""Pixels of reflected border; filters between kernels have died out by then."""


def reflected(images: Tensor) -> tuple[Tensor, tuple]:
    """``images`` (..., rows, columns) with a reflected border to a size that is fast to transform, and the index of the
    images within. The border is :data:`MARGIN` pixels wide, or as wide as a small image allows."""
    sides = images.shape[-2:]
    before = [min(MARGIN, side - 1) for side in sides]
    after = [
        min(next_fast_len(side + 2 * margin, real=True) - side - margin, side - 1)
        for side, margin in zip(sides, before, strict=True)
    ]
    planes = images.reshape(-1, 1, *sides)
    padded = F.pad(planes, (before[1], after[1], before[0], after[0]), mode="reflect")
    inner = tuple(slice(margin, margin + side) for margin, side in zip(before, sides, strict=True))
    return padded.reshape(*images.shape[:-2], *padded.shape[-2:]), (..., *inner)
