"""Frequency-band normalization (Gallardo-Estrella et al., European Radiology 2016; 26: 478-486). No training.

Hierarchical unsharp masking splits the image into bands by Gaussians of doubling sigma. The energy of each band, its
standard deviation within the lungs, is brought to a reference; the lowest band stays. Here the reference follows from
the target's f50 and noise by a table, bands are in mm, and one filter serves the whole volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import fft, ndimage

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.formula import FormulaMethod
from CTHarmonizeLib.methods.mtf_filter import filter_slices

if TYPE_CHECKING:
    from torch import Tensor

    from CTHarmonizeLib.ct.volume import Volume

SIGMAS_MM = (0.4, 0.8, 1.6, 3.2, 6.4)
"""Gaussians between the bands. The first band holds what is finer than the first, what is coarser than the last stays.
The paper's are 1 to 16 pixels; beyond 6 mm no kernel differs, and below 0.7 mm sharp ones do."""

LARGEST_GAIN = 4.0
"""No frequency, and so no noise, is raised more than this."""

_SLICES = 16  # of the volume that are looked at, evenly spread
_LEAST_LUNG = 0.05  # of the body, from which on lungs are measured; else soft tissue
_LEAST_PIXELS = 2000
_MARGIN = 48  # pixels of mirrored border around a slice that is looked at
_TURNS, _SETTLED, _STEP = 500, 1e-4, 0.5  # of the iteration; half steps, for neighbouring bands overlap


@dataclass(frozen=True)
class Reference:
    """What a tissue's energies are at the f50 of :data:`F50`: rows by f50, columns by band.

    ``signal``: HU, without noise; ``noise``: HU per HU of noise in water-like tissue.
    """

    signal: tuple[tuple[float, ...], ...]
    noise: tuple[tuple[float, ...], ...]

    def signals(self, acquisition: Acquisition) -> np.ndarray:
        """Energy of each band without noise, HU; linear in f50 between the rows, constant beyond."""
        return _at(self.signal, acquisition.f50)

    def energies(self, acquisition: Acquisition) -> np.ndarray:
        """Energy of each band with the acquisition's noise, HU."""
        return np.hypot(self.signals(acquisition), _at(self.noise, acquisition.f50) * acquisition.noise)


def _at(table: tuple[tuple[float, ...], ...], f50: float) -> np.ndarray:
    return np.array([np.interp(f50, F50, column) for column in zip(*table, strict=True)])


F50 = (2.2, 3.0, 4.0, 5.5, 8.0)
"""lp/cm."""

LUNG = Reference(
    signal=(
        (4.84, 10.9, 23.6, 42, 65.4),
        (8.64, 16.4, 27.7, 43.2, 65.8),
        (13.8, 21.9, 30.5, 43.8, 66.1),
        (23.6, 32.5, 36.9, 44.9, 66),
        (36.2, 37.9, 36.9, 44.5, 66),
    ),
    noise=(
        (0.104, 0.2, 0.28, 0.183, 0.0757),
        (0.177, 0.258, 0.252, 0.129, 0.049),
        (0.264, 0.273, 0.194, 0.0855, 0.0311),
        (0.335, 0.282, 0.16, 0.057, 0.0189),
        (0.494, 0.231, 0.0937, 0.0311, 0.0104),
    ),
)
"""From Testing/benchmarks/band_energies.py: four procedural chests, slices of 1.5 mm."""

SOFT_TISSUE = Reference(
    signal=(
        (1.46, 3.52, 8.53, 19, 46.6),
        (2.24, 4.72, 9.68, 19.2, 46.8),
        (3.26, 5.81, 10.4, 19.3, 46.9),
        (5.4, 8.08, 12, 19.4, 46.7),
        (9.41, 9.06, 11.9, 19.4, 46.7),
    ),
    noise=(
        (0.135, 0.258, 0.356, 0.23, 0.0954),
        (0.229, 0.334, 0.322, 0.162, 0.0618),
        (0.34, 0.353, 0.25, 0.107, 0.0392),
        (0.429, 0.364, 0.206, 0.0716, 0.0238),
        (0.632, 0.297, 0.121, 0.0391, 0.0132),
    ),
)
"""Likewise, outside of the lungs and the bones."""


def bands(shape: tuple[int, int], spacing: float) -> np.ndarray:
    """Response of each band and, last, of what stays, for the half spectrum of ``numpy.fft.rfft2``.

    ``shape`` (rows, columns) of the image, ``spacing`` in mm; float64 (bands + 1, rows, columns // 2 + 1). They sum
    to 1.
    """
    square = np.fft.fftfreq(shape[0], spacing)[:, None] ** 2 + np.fft.rfftfreq(shape[1], spacing)[None, :] ** 2
    passed = [np.ones_like(square), *(np.exp(-2.0 * (np.pi * sigma) ** 2 * square) for sigma in SIGMAS_MM)]
    return np.stack([*(fine - coarse for fine, coarse in zip(passed, passed[1:], strict=False)), passed[-1]])


def masks(image: np.ndarray, spacing: float) -> tuple[np.ndarray, np.ndarray]:
    """Where a slice (rows, columns; HU) shows lung, and where soft tissue, away from their edges.

    The body is the largest object denser than -400 HU after a low-pass, with its holes filled; lung is what is less
    dense in it, in pieces of at least 5 cm^2 (the trachea, where it stands alone, and bowel gas mostly have less).
    """
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 1.5 / spacing)
    dense = ndimage.binary_opening(smooth > -400.0, iterations=max(1, round(3.0 / spacing)))
    body = ndimage.binary_fill_holes(_largest(dense))
    lung = _pieces(body & (smooth < -400.0), 500.0 / spacing**2)
    soft = body & (smooth > -150.0) & (smooth < 200.0)
    return tuple(ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] > 3.0 / spacing for mask in (lung, soft))


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask)
    return labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1 if count else mask


def _pieces(mask: np.ndarray, least: float) -> np.ndarray:
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= least)[labels]


class Moments:
    """What energies of an image whose bands are multiplied by any gains follow from, summed over slices.

    The bands of a filtered image are linear in the gains, so their covariances tell the energies after any number of
    turns of the paper's iteration, without another look at the image.
    """

    def __init__(self) -> None:
        self.count = 0
        size = len(SIGMAS_MM) + 1
        self.sums = np.zeros((size - 1, size))
        self.products = np.zeros((size - 1, size, size))

    def add(self, image: np.ndarray, mask: np.ndarray, spacing: float) -> None:
        """Take in a slice (rows, columns; HU), as far as ``mask`` says, with pixels of ``spacing`` mm."""
        if not mask.any():
            return
        margins = [min(_MARGIN, side - 1) for side in image.shape]
        padded = np.pad(image.astype(np.float32), [(margin, margin) for margin in margins], mode="reflect")
        responses = bands(padded.shape, spacing).astype(np.float32)
        inner = tuple(slice(margin, margin + side) for margin, side in zip(margins, image.shape, strict=True))
        spectrum = fft.rfft2(padded)
        parts: dict[tuple[int, int], np.ndarray] = {}
        for band in range(len(SIGMAS_MM)):
            for other in range(band, len(responses)):
                part = fft.irfft2(spectrum * (responses[band] * responses[other]), s=padded.shape)
                parts[band, other] = parts[other, band] = part[inner][mask].astype(np.float64)
            values = np.stack([parts[band, other] for other in range(len(responses))])
            self.sums[band] += values.sum(1)
            self.products[band] += values @ values.T
        self.count += int(mask.sum())

    def energies(self, gains: np.ndarray) -> np.ndarray:
        """Energy of each band, HU, once the bands are multiplied by ``gains`` (bands,)."""
        every = np.append(gains, 1.0)
        mean = self.sums @ every / self.count
        return np.sqrt(np.maximum((self.products @ every) @ every / self.count - mean**2, 0.0))


def limits(reference: Reference, source: Acquisition, target: Acquisition) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest gain of each band.

    Patients differ from the table by more than kernels do in the coarse bands. So a band is raised no further than the
    kernel alone raises signal, nor above :data:`LARGEST_GAIN` (a filter cannot add the noise of a lower dose, only make
    edges ring), and it is lowered no further than the square of what the table says.
    """
    energy = reference.energies(target) / reference.energies(source)
    signal = reference.signals(target) / reference.signals(source)
    return np.minimum(energy, 1.0) ** 2, np.clip(signal, 1.0, LARGEST_GAIN)


def gains_for(moments: Moments, wanted: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Gain of each band (bands,), between ``low`` and ``high``, that brings the energies to those ``wanted`` (HU)."""
    gains = np.ones(len(SIGMAS_MM))
    for _ in range(_TURNS):
        have = np.maximum(moments.energies(gains), 1e-6)
        better = np.clip(gains * (wanted / have) ** _STEP, low, high)
        settled = np.abs(better / gains - 1.0).max() < _SETTLED
        gains = better
        if settled:
            break
    return gains


class BandNormalization(FormulaMethod):
    """Bands brought to the target's energies by one filter for the whole volume."""

    name: ClassVar[str] = "band-normalization"
    title: ClassVar[str] = "Frequency bands (classical)"
    summary: ClassVar[str] = (
        "Brings the strength of fine and coarse detail and noise in the lungs to the target's. Needs no model."
    )
    target_fields: ClassVar[frozenset[str]] = frozenset({"kernel", "dose"})

    gains: np.ndarray | None = None

    def survey(self, volume: Volume, source: Acquisition, target: Acquisition) -> None:
        """Find the gains, from up to 16 slices of the whole volume."""
        from CTHarmonizeLib.passthrough import fill_padding, padding_mask

        count = len(volume.hu)
        index = np.unique(((np.arange(min(count, _SLICES)) + 0.5) * count / min(count, _SLICES)).astype(int))
        slices = volume.hu[index]
        slices = fill_padding(slices, padding_mask(slices)).astype(np.float32)
        lung, soft = (
            np.stack(found)
            for found in zip(*(masks(image, volume.pixel_spacing) for image in slices), strict=True)
        )
        chest = lung.sum() >= max(_LEAST_LUNG * (lung.sum() + soft.sum()), _LEAST_PIXELS)
        inside, reference = (lung, LUNG) if chest else (soft, SOFT_TISSUE)
        if inside.sum() < _LEAST_PIXELS:
            raise InputError(
                "The volume shows too little lung or soft tissue to measure the strength of its detail: choose "
                "another method."
            )
        moments = Moments()
        for image, mask in zip(slices, inside, strict=True):
            moments.add(image, mask, volume.pixel_spacing)
        self.gains = gains_for(moments, reference.energies(target), *limits(reference, source, target))

    def filtered(self, slices: Tensor, source: Acquisition, target: Acquisition) -> Tensor:
        weights = np.append(self.gains, 1.0)

        def gain(shape: tuple[int, int]) -> np.ndarray:
            return np.tensordot(weights, bands(shape, source.pixel_spacing), 1)

        return filter_slices(slices, gain)

    def memory(self, slices: int, samples: int, rows: int, columns: int) -> int:
        return 4 * rows * columns * (24 * slices + 96)
