"""Scans: true slices in, reconstructed images in HU out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from CTHarmonizeTraining.simulation.noise import DEFAULT_EXPOSURE, Exposure, add_noise
from CTHarmonizeTraining.simulation.projector import (
    Geometry,
    Grid,
    Modulation,
    attenuation,
    filtered_back_projection,
    forward_project,
    hounsfield,
    wide_band_mtf,
)

SCENE_ROWS = 352
SCENE_PIXEL = 0.4
"""Side (pixels) and pixel size (mm) of a scene."""


@dataclass(frozen=True)
class Scan:
    """Images in HU, (batch, rows, columns) float32, with and without the scan's noise."""

    noisy: Tensor
    clean: Tensor


@dataclass(frozen=True)
class Scene:
    """A region of a slice as seen by a wide-band reconstruction, to which kernels are applied later.

    ``clean`` (rows, columns) and ``noise`` (realisations, rows, columns), HU float32: noisy minus clean;
    ``dose`` (realisations,) percent; ``centre`` (x, y) mm from the isocentre; ``photons`` at 100 % dose.
    """

    clean: np.ndarray
    noise: np.ndarray
    dose: np.ndarray
    centre: tuple[float, float]
    photons: float


def seeded_generator(device: torch.device | str, *key: int) -> torch.Generator:
    """Generator of its own for every ``key``, such as (seed, slice)."""
    state = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator(device).manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


def reconstruct(sinograms: Tensor, geometry: Geometry, mtf: Modulation, grid: Grid) -> Tensor:
    """Images in HU (batch, rows, columns) of ``sinograms`` (views, detectors, batch)."""
    (image,) = filtered_back_projection(sinograms, geometry, mtf, [grid])
    return hounsfield(image).permute(2, 0, 1).contiguous()


def simulate(
    slices: Tensor,
    pixel: float,
    kernel: Modulation,
    dose: float | Sequence[float],
    grid: Grid,
    geometry: Geometry | None = None,
    exposure: Exposure = DEFAULT_EXPOSURE,
    seed: int = 0,
) -> Scan:
    """Scans ``slices`` (batch, n, n) HU, pixels of ``pixel`` mm, at ``dose`` percent; images on ``grid``.

    Padding (below -1000 HU) and what lies outside the inscribed circle count as air; the table is kept. The
    default geometry covers the slices. One ``dose`` for all slices or one each.
    """
    geometry = geometry or Geometry.covering(slices.shape[-1] * pixel)
    clean = forward_project(attenuation(slices), pixel, geometry)
    noisy = add_noise(clean, dose, geometry.pitch, seeded_generator(slices.device, seed), exposure)
    images = reconstruct(torch.cat((noisy, clean), 2), geometry, kernel, grid)
    return Scan(*images.split(len(slices)))


def base_scenes(
    slices: Tensor,
    pixel: float,
    keys: Sequence[tuple[int, ...]],
    per_slice: int = 3,
    realisations: int = 5,
    views: int = 1000,
    photons: tuple[float, float] = (1.25e5, 6.25e5),
    dose: tuple[float, float] = (5.0, 100.0),
) -> list[list[Scene]]:
    """Scenes in the body of each of ``slices`` (batch, n, n) HU, pixels of ``pixel`` mm: up to ``per_slice``.

    Every slice draws its scenes' places, its photons (log-uniform) and its doses (percent, log-uniform;
    the first realisation is at 100 %) from its own ``keys`` entry alone. Its noise has its own seed too, but
    other slices in the batch may change it through rounding. A slice without a body has no scenes.
    """
    geometry = Geometry.covering(slices.shape[-1] * pixel, views)
    sinograms = forward_project(attenuation(slices), pixel, geometry)
    result = []
    for index, key in enumerate(keys):
        rng = np.random.default_rng(key)
        exposure = Exposure(float(np.exp(rng.uniform(*np.log(photons)))))
        percent = np.exp(rng.uniform(*np.log(dose), realisations)).astype(np.float32)
        percent[0] = 100.0
        body = body_mask(slices[index].cpu().numpy(), pixel)
        centres = _scene_centres(body, pixel, per_slice, rng)
        if not centres:
            result.append([])
            continue
        clean = sinograms[..., index, None]
        generator = seeded_generator(slices.device, *key)
        noisy = add_noise(clean.expand(-1, -1, realisations), percent, geometry.pitch, generator, exposure)
        grids = [Grid(SCENE_ROWS, SCENE_ROWS, SCENE_PIXEL, centre) for centre in centres]
        both = torch.cat((clean, noisy.sub_(clean)), 2)
        images = filtered_back_projection(both, geometry, wide_band_mtf(), grids)
        images = [image.permute(2, 0, 1).cpu() for image in images]
        result.append(
            [
                Scene(
                    hounsfield(image[0]).numpy(),
                    (hounsfield(image[1:]) + 1000.0).numpy(),
                    percent,
                    grid.centre,
                    exposure.photons,
                )
                for image, grid in zip(images, grids, strict=True)
            ]
        )
    return result


def body_mask(hu: np.ndarray, pixel: float) -> np.ndarray:
    """The patient in a slice (rows, columns): the largest object without the table, lungs filled in."""
    opened = ndimage.binary_opening(hu > -300.0, iterations=max(1, round(4.0 / pixel)))
    labels, count = ndimage.label(opened)
    if count == 0:
        return np.zeros(hu.shape, bool)
    largest = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
    return ndimage.binary_fill_holes(ndimage.binary_closing(largest, iterations=max(1, round(4.0 / pixel))))


def _scene_centres(body: np.ndarray, pixel: float, count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Up to ``count`` places in the body, apart from each other, whose scenes lie in the field of view."""
    n = len(body)
    half, apart = SCENE_ROWS * SCENE_PIXEL / 2, SCENE_ROWS * SCENE_PIXEL * 0.4
    rows, columns = np.nonzero(body)
    places = (np.stack((columns, rows), 1) - (n - 1) / 2) * pixel
    places = places[np.hypot(*(np.abs(places) + half).T) <= n * pixel / 2]
    chosen: list[tuple[float, float]] = []
    for place in rng.permutation(places):
        if len(chosen) == count:
            break
        if all(np.hypot(*(place - other)) >= apart for other in chosen):
            chosen.append((float(place[0]), float(place[1])))
    return chosen
