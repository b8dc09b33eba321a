"""Parallel-beam projection and filtered back-projection of batches of slices, on CPU and GPU.

The batch (slices, noise realisations) is the last, contiguous axis everywhere, so that phases and
interpolation weights, which depend on the geometry alone, are computed once for all of it.

*Projection* is exact for the band-limited image that the pixels sample (the continuous limit of up-sampling
it before ray tracing, which avoids the inverse crime): by the Fourier slice theorem the spectrum of a
projection is a line through the image's spectrum, and along x-frequencies of the discrete image such a line
is a sum over rows, a matrix product (the pseudo-polar grid of Averbuch et al., SIAM J. Sci. Comput., 2008).

*Reconstruction* multiplies the projections by the band-limited ramp (Kak & Slaney, chapter 3) and by whatever
makes the **total** MTF of the image the requested one: the blur of detector and focal spot and the linear
interpolation of the back-projection are divided out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor

WATER_ATTENUATION = 0.0192
"""Linear attenuation coefficient of water, 1/mm (about 70 keV)."""

UPSAMPLING = 2
"""Filtered projections are up-sampled (by zero padding of the spectrum) before linear interpolation."""

LEAST_MODULATION = 0.05
"""Where detector and focal spot leave less than this the image shows nothing: it would be noise alone."""

WIDE_BAND_EDGE = 12.0
"""Highest frequency (lp/cm) of a base image to which kernels are applied later."""

Array = TypeVar("Array", Tensor, np.ndarray)

Modulation = Callable[[np.ndarray], np.ndarray]
"""Total MTF of an image: modulation at frequencies in lp/cm."""


@dataclass(frozen=True)
class Geometry:
    """Parallel beams over 180 degrees.

    ``views``: a multiple of 4, at angles (i + 1/2) pi / views; ``detectors`` samples of ``pitch`` mm at the
    isocentre, centred on it; ``aperture`` (mm): width over which a detector averages, the pitch where None;
    ``focal_spot`` (mm): width over which the focal spot blurs. Both widths are those at the isocentre, and taken
    to be the same all along a ray.
    """

    views: int = 1000
    detectors: int = 1840
    pitch: float = 0.25
    aperture: float | None = None
    focal_spot: float = 0.0

    def __post_init__(self) -> None:
        if self.views % 4:
            raise ValueError(f"views must be a multiple of 4, not {self.views}")

    @classmethod
    def covering(
        cls,
        width: float,
        views: int = 1000,
        pitch: float = 0.25,
        aperture: float | None = None,
        focal_spot: float = 0.0,
    ) -> Geometry:
        """Geometry whose detectors cover a field of view of diameter ``width`` mm."""
        return cls(views, 2 * int(np.ceil(width / pitch / 2)) + 16, pitch, aperture, focal_spot)

    @cached_property
    def angles(self) -> Tensor:
        """Angles of the views, radians: (views,) float64. A ray obeys x cos + y sin = t."""
        return (torch.arange(self.views, dtype=torch.float64) + 0.5) * (np.pi / self.views)

    @cached_property
    def positions(self) -> Tensor:
        """Position t of the detectors, mm: (detectors,) float64."""
        return _middled(self.detectors) * self.pitch

    def blur(self, frequency: Array) -> Array:
        """MTF of detector and focal spot at ``frequency`` (cycles per mm), float64, a tensor or an array."""
        sinc = torch.sinc if isinstance(frequency, Tensor) else np.sinc
        detector = sinc(frequency * (self.aperture or self.pitch))
        return detector * sinc(frequency * self.focal_spot) if self.focal_spot else detector

    def usable_band(self) -> float:
        """Frequency (lp/cm) up to which detector and focal spot leave enough modulation to be divided out."""
        frequency = np.linspace(0.0, 0.5 / self.pitch, 4096)
        return 10.0 * float(frequency[_usable(self.blur(frequency))].max())

    def upsampled(self) -> Geometry:
        """Sampling of the filtered projections."""
        return replace(self, detectors=self.detectors * UPSAMPLING, pitch=self.pitch / UPSAMPLING)


@dataclass(frozen=True)
class Grid:
    """``rows`` x ``columns`` pixels of ``pixel`` mm around ``centre`` (x, y) mm; y points down."""

    rows: int
    columns: int
    pixel: float
    centre: tuple[float, float] = (0.0, 0.0)

    def axes(self) -> tuple[Tensor, Tensor]:
        """x of the columns and y of the rows, mm, float64."""
        x, y = (_middled(count) * self.pixel for count in (self.columns, self.rows))
        return x + self.centre[0], y + self.centre[1]


def attenuation(hu: Tensor) -> Tensor:
    """Attenuation in 1/mm of ``hu``; HU below -1000 (padding) count as air."""
    return (hu.clamp_min(-1000.0) / 1000.0 + 1.0) * WATER_ATTENUATION


def hounsfield(mu: Tensor) -> Tensor:
    """HU of an attenuation in 1/mm."""
    return (mu / WATER_ATTENUATION - 1.0) * 1000.0


def forward_project(images: Tensor, pixel: float, geometry: Geometry, positions: Tensor | None = None) -> Tensor:
    """Line integrals of ``images`` (batch, n, n) around the isocentre, pixels of ``pixel`` mm.

    Returns (views, rays, batch) float32, blurred by detector and focal spot, at the ``positions`` (rays,) mm,
    float64, or those of the geometry's detectors. What lies outside the inscribed circle, the scanner's field of
    view, is left out.
    """
    batch, n, columns = images.shape
    if n != columns:
        raise ValueError(f"forward_project needs square images, not {n} x {columns}")
    device = images.device
    reach = max(n * pixel, (geometry.detectors + 1) * geometry.pitch)
    if positions is None:
        positions = geometry.positions
    else:
        reach = max(reach, 2 * float(positions.abs().max()))
    period = next_fast_len(int(np.ceil(np.sqrt(0.5) * (reach / pixel + n))))
    middle = _middled(n)
    disk = (middle**2 + middle[:, None] ** 2 <= (n / 2) ** 2).to(device)
    image = images.float().where(disk, 0.0)
    # Views at 90-a, 90+a and 180-a see the transposed, turned and mirrored image as views at a see the image.
    sectors = torch.cat((image, image.mT, image.mT.flip(1), image.flip(2)))
    spectra = torch.fft.rfft(sectors, period, dim=2).permute(2, 1, 0)  # x-frequency, row, 4 * batch
    k = torch.arange(spectra.shape[0], dtype=torch.float64)
    spectra = (spectra * _turn(k * ((n - 1) / 2 / period)).to(device)[:, None, None]).contiguous()
    count = len(k)

    quarter = geometry.views // 4
    angles = geometry.angles[:quarter]
    scale = pixel / period / angles.cos() * torch.where((k > 0) & (2 * k < period), 2.0, 1.0)[:, None]
    frequency = 1.0 / (period * pixel * angles.cos())
    scale = (scale * geometry.blur(k[:, None] * frequency)).float().to(device)

    result = torch.empty(4, quarter, len(positions), batch, device=device)
    step = max(1, int((2e6 if device.type == "cpu" else 1e8) / (count * max(n, len(positions)))))
    for i in range(0, quarter, step):
        part = slice(i, i + step)
        shifts = _powers(-angles[part, None].tan() * middle / period, count, device)
        lines = (shifts @ spectra) * scale[:, part, None]  # x-frequency, view, 4 * batch
        waves = _powers(frequency[part, None] * positions, count, device)
        values = (waves.permute(1, 2, 0) @ lines.transpose(0, 1)).real  # view, detector, 4 * batch
        result[:, part] = values.unflatten(2, (4, batch)).permute(2, 0, 1, 3)
    return torch.cat((result[0], result[1].flip(0), result[2], result[3].flip(0)))


def filtered_back_projection(
    sinograms: Tensor, geometry: Geometry, mtf: Modulation, grids: Sequence[Grid], views_at_once: int = 16
) -> list[Tensor]:
    """Attenuation in 1/mm on each grid, (rows, columns, batch), from ``sinograms`` (views, detectors, batch).

    The image's total in-plane MTF is ``mtf``, up to the detectors' Nyquist frequency and zero beyond it.
    """
    images = [sinograms.new_zeros(g.rows, g.columns, sinograms.shape[2]) for g in grids]
    response = _response(geometry, mtf).to(sinograms.device)
    for i in range(0, geometry.views, views_at_once):
        part = slice(i, min(i + views_at_once, geometry.views))
        filtered = _filter(sinograms[part], geometry, response)
        for image, grid in zip(images, grids, strict=True):
            _accumulate(image, filtered, geometry.upsampled(), geometry.angles[part], grid)
    return images


def filter_projections(sinograms: Tensor, geometry: Geometry, mtf: Modulation) -> Tensor:
    """Filtered projections (views, UPSAMPLING * detectors, batch), sampled as ``geometry.upsampled()``."""
    return _filter(sinograms, geometry, _response(geometry, mtf).to(sinograms.device))


def back_project(filtered: Tensor, geometry: Geometry, grid: Grid) -> Tensor:
    """Sum over the views of ``filtered`` (views, detectors, batch) times pi / views: (rows, columns, batch).

    ``geometry`` is the sampling of ``filtered``. Its cost is that of the grid alone.
    """
    image = filtered.new_zeros(grid.rows, grid.columns, filtered.shape[2])
    _accumulate(image, filtered, geometry, geometry.angles, grid)
    return image


def wide_band_mtf(flat: float = 10.0, edge: float = WIDE_BAND_EDGE) -> Modulation:
    """MTF of a base image: 1 up to ``flat``, then a cosine down to 0 at ``edge`` lp/cm."""

    def modulation(frequency: np.ndarray) -> np.ndarray:
        share = np.clip((np.abs(frequency) - flat) / (edge - flat), 0.0, 1.0)
        return 0.5 * (1.0 + np.cos(np.pi * share))

    return modulation


def _middled(count: int) -> Tensor:
    """Positions of ``count`` samples, in samples, from their middle."""
    return torch.arange(count, dtype=torch.float64) - (count - 1) / 2


def _turn(turns: Tensor) -> Tensor:
    """exp(2 pi i turns), complex64."""
    phase = (turns.frac() * (2 * np.pi)).float()
    return torch.polar(torch.ones_like(phase), phase)


def _powers(turns: Tensor, count: int, device: torch.device) -> Tensor:
    """exp(2 pi i k turns), k = 0 .. count - 1 in the first axis; products of two short tables, for speed."""
    step = 32
    fine = torch.arange(step, dtype=torch.float64)[:, None, None] * turns
    coarse = torch.arange(0, count, step, dtype=torch.float64)[:, None, None] * turns
    fine, coarse = _turn(fine).to(device), _turn(coarse).to(device)
    return (coarse[:, None] * fine).flatten(0, 1)[:count]


def _usable(blur: np.ndarray) -> np.ndarray:
    """Where ``blur``, at rising frequencies, has not yet fallen to :data:`LEAST_MODULATION`."""
    return np.logical_and.accumulate(blur > LEAST_MODULATION)


def _response(geometry: Geometry, mtf: Modulation) -> Tensor:
    """Spectrum of the filter, with ramp, compensations, the shift to the up-sampled grid and pi / views."""
    n = next_fast_len(2 * geometry.detectors, real=True)
    n += n % 2
    index = np.fft.fftfreq(n, 1 / n)
    odd = index % 2 == 1
    ramp = np.zeros(n)
    ramp[odd] = -1.0 / (np.pi * index[odd] * geometry.pitch) ** 2
    ramp[0] = 0.25 / geometry.pitch**2
    frequency = np.fft.rfftfreq(n, geometry.pitch)
    interpolation = np.sinc(frequency * geometry.pitch / UPSAMPLING) ** 2
    blur = geometry.blur(frequency)
    gain = np.fft.rfft(ramp).real * geometry.pitch * np.asarray(mtf(10.0 * frequency)) / interpolation
    usable = _usable(blur)
    gain = np.where(usable, gain / np.where(usable, blur, 1.0), 0.0)
    gain *= UPSAMPLING * np.pi / geometry.views
    gain[-1] = 0.0
    shift = (geometry.pitch - geometry.pitch / UPSAMPLING) / 2
    return torch.from_numpy(gain * np.exp(-2j * np.pi * frequency * shift)).to(torch.complex64)


def _filter(sinograms: Tensor, geometry: Geometry, response: Tensor) -> Tensor:
    n = 2 * (len(response) - 1)
    rows = sinograms.transpose(1, 2).contiguous()
    spectra = torch.fft.rfft(rows, n) * response
    fine = torch.fft.irfft(spectra, n * UPSAMPLING)[..., : geometry.detectors * UPSAMPLING]
    return fine.transpose(1, 2).contiguous()


def _accumulate(image: Tensor, filtered: Tensor, geometry: Geometry, angles: Tensor, grid: Grid) -> None:
    """Adds the back-projection of ``filtered`` to ``image``, in blocks that stay in the processor's cache."""
    views, detectors, batch = filtered.shape
    device = filtered.device
    x, y = grid.axes()
    cosines, sines = angles.cos() / geometry.pitch, angles.sin() / geometry.pitch
    along_x = (x[:, None] * cosines + (detectors - 1) / 2).float().to(device)
    along_y = (y[:, None] * sines).float().to(device)
    start = torch.arange(views, dtype=torch.int32, device=device) * detectors
    table = filtered.reshape(views * detectors, batch)
    step = max(1, int((2**17 if device.type == "cpu" else 2**24) / (views * grid.columns)))
    for i in range(0, grid.rows, step):
        position = (along_y[i : i + step, None] + along_x).clamp_(0, detectors - 1.001)
        lower = position.int()
        upper = position.sub_(lower)
        lower += start
        bags = torch.stack((lower, lower + 1), -1).view(-1, 2 * views)
        weights = torch.stack((1 - upper, upper), -1).view(-1, 2 * views)
        sums = torch.nn.functional.embedding_bag(bags, table, per_sample_weights=weights, mode="sum")
        image[i : i + step] += sums.view(-1, grid.columns, batch)
