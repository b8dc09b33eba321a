"""What the network does not decide: padding, voxels beyond the intensity window, and the local mean HU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.volume import PADDING_BELOW

AIR = -1000.0
AIR_WINDOW = -1100.0
"""The window reaches at least this far down: air noise must not be cut on one side, which would shift air."""

_RAMP = 50.0  # HU over which the weight goes from 0 to 1
_LEAST_SHARE = 0.05  # of a neighbourhood inside the window, below which the local mean is no longer restored in full
_SMOOTHING = 2.0  # pixels; white noise of the source falls to a seventh


def padding_mask(hu: np.ndarray) -> np.ndarray:
    """Voxels outside the scanner's field of view: (slices, rows, columns) -> bool.

    They are at or below PADDING_BELOW and connected to a solid 3 x 3 block of such voxels, so a noisy voxel of air
    is none.
    """
    low = hu <= PADDING_BELOW
    block = np.ones((3, 3), bool)
    for plane in low:
        if plane.any():
            solid = ndimage.binary_erosion(plane, block, border_value=1)
            plane[...] = ndimage.binary_propagation(solid, block, mask=plane)
    return low


def fill_padding(hu: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """``hu`` (slices, rows, columns) with the voxels of ``mask`` replaced by the image mirrored at the mask's edge.

    A constant would do in air, but a field of view that cuts through the body would get a false skin, and the
    blurring of that would darken the tissue beside it.
    """
    filled = hu.copy()
    for plane, outside in zip(filled, mask, strict=True):
        if outside.all():
            plane[...] = AIR
        elif outside.any():
            plane[outside] = plane.ravel()[_mirror_image(outside.tobytes(), outside.shape)]
    return filled


@lru_cache(maxsize=4)  # most slices of a scan have the same mask
def _mirror_image(mask: bytes, shape: tuple[int, int]) -> np.ndarray:
    """For each voxel of the mask, the flat index of its mirror image; the nearest voxel where that is no use."""
    outside = np.frombuffer(mask, bool).reshape(shape)
    nearest = ndimage.distance_transform_edt(outside, return_distances=False, return_indices=True)[:, outside]
    mirrored = 2 * nearest - np.argwhere(outside).T
    inside = ((mirrored >= 0) & (mirrored < np.array(shape)[:, None])).all(0)
    mirrored = np.where(inside, mirrored, nearest)
    mirrored = np.where(outside[tuple(mirrored)], nearest, mirrored)
    return np.ravel_multi_index(tuple(mirrored), shape)


def low_pass(images: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian of ``sigma`` pixels, cut at :func:`reach`, of (b, rows, columns); borders are replicated."""
    radius = reach(sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    weights = (weights / weights.sum()).to(images.device, images.dtype)
    x = images[:, None]
    x = F.conv2d(F.pad(x, (0, 0, radius, radius), mode="replicate"), weights.view(1, 1, -1, 1))
    x = F.conv2d(F.pad(x, (radius, radius, 0, 0), mode="replicate"), weights.view(1, 1, 1, -1))
    return x[:, 0]


def reach(sigma: float) -> int:
    """Pixels from which :func:`low_pass` gathers, on each side."""
    return math.ceil(3.0 * sigma)


@dataclass(frozen=True)
class SourceSlab:
    """Whole padded source slices, (b, rows, columns) float32 HU.

    ``raw``: as they are; ``clean``: padding outside the field of view replaced, for the network must not see its
    step; ``outside``: bool, that padding; ``weight``: 1 where the output counts, 0 where the source passes through,
    blended between. Of a slab that was :meth:`divided`, ``raw`` and ``clean`` are of the thin slices, the others of the
    thick ones, and ``own`` is these ones' ``clean``.
    """

    raw: Tensor
    clean: Tensor
    outside: Tensor
    weight: Tensor
    own: Tensor

    @classmethod
    def from_hu(
        cls, hu: np.ndarray, padded: tuple[int, int], window: tuple[float, float], device: torch.device
    ) -> SourceSlab:
        """From source slices (b, rows, columns) of any type.

        The weight is decided on a low-passed source, never voxel by voxel: else air noise below the window would
        stay while that above goes, and air would shift.
        """
        padding = ((0, 0), (0, padded[0] - hu.shape[1]), (0, padded[1] - hu.shape[2]))
        hu = np.pad(hu, padding, mode="edge")
        mask = padding_mask(hu)
        outside = torch.from_numpy(mask).to(device)
        raw = torch.from_numpy(hu.astype(np.float32)).to(device)
        clean = torch.from_numpy(fill_padding(hu, mask).astype(np.float32)).to(device) if mask.any() else raw
        smooth = low_pass(clean, _SMOOTHING)
        low, high = min(window[0], AIR_WINDOW), window[1]
        weight = _smooth_step((smooth - low) / _RAMP) * _smooth_step((high - smooth) / _RAMP)
        return cls(raw, clean, outside, torch.where(outside, 0.0, weight), clean)

    def divided(self, factor: int, context: int) -> SourceSlab:
        """The slab without its ``context`` first and last slices, as ``factor`` slices for each show it, between the
        same outer faces: the source interpolated linearly between the slices' centres. Between padding and image there
        are no values: padding takes no part, and stays in the slices into which its own is divided."""
        inner = slice(context, len(self.raw) - context)
        raw, clean, outside, weight, own = (part[inner] for part in self._parts())
        if factor > 1:
            raw, clean, padding = (part.repeat_interleave(factor, 0) for part in (raw, clean, outside))
            thin = slice(factor * inner.start, factor * inner.stop)
            between = interpolated(self.clean, factor)[thin]
            if self.outside.any():
                inside = (~self.outside).float()
                share = interpolated(inside, factor)[thin].clamp_min(0.1)  # of an image's voxel at least a half
                between = interpolated(inside * self.clean, factor)[thin] / share
            raw, clean = (torch.where(padding, part, between) for part in (raw, clean))
        return SourceSlab(raw, clean, outside, weight, own)

    def crop(self, region: tuple[slice, slice]) -> SourceSlab:
        """The part of each slice in ``region`` (rows, columns)."""
        index = (slice(None), *region)
        return SourceSlab(*(part[index] for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.raw, self.clean, self.outside, self.weight, self.own

    def finish(self, output: Tensor, anchor: float | None) -> Tensor:
        """An output (b, rows, columns) of a method, with its low-pass of ``anchor`` pixels (sigma) set to the
        source's, and the source where it passes through.

        Voxels that pass through take no part in the low-pass: the network has not seen metal as bright as it is, and
        the difference would be spread over the tissue around it. Of a divided slab it is the mean of the slices made
        of one that gets this slice's low-pass: a thick slice is the mean of thin ones, which differ among themselves.
        """
        factor = len(self.raw) // len(self.own)
        if anchor is not None:
            counted = low_pass(self.weight, anchor).clamp_min(_LEAST_SHARE)
            change = self.weight * (self.own - output.unflatten(0, (-1, factor)).mean(1))
            output = output + (low_pass(change, anchor) / counted).repeat_interleave(factor, 0)
        return self.raw + self.weight.repeat_interleave(factor, 0) * (output - self.raw)


def interpolated(slices: Tensor, factor: int) -> Tensor:
    """``factor`` slices for each of (b, rows, columns), linear between the slices' centres; the outer faces stay, and
    what lies beyond the last centre has the last slice's values."""
    return F.interpolate(slices[None, None], scale_factor=(factor, 1, 1), mode="trilinear")[0, 0]


def _smooth_step(x: Tensor) -> Tensor:
    x = x.clamp(0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)
