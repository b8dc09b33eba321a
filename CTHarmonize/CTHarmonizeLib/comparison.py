"""One case before and after: the same measures of two or three volumes, on the same tissue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy import ndimage

from CTHarmonizeLib.ct.edge import body_mask
from CTHarmonizeLib.ct.lungs import Densitometry, find_lungs, measure_densitometry
from CTHarmonizeLib.ct.measure import NoiseMeasurement, measure_mtf, measure_noise
from CTHarmonizeLib.ct.volume import PADDING_BELOW, Volume, check_ct
from CTHarmonizeLib.errors import InputError

_TISSUES = {"fat": (-130.0, -60.0), "water-like tissue": (0.0, 80.0)}  # local average, HU
_AIR_HU = (-1050.0, -900.0)
_REGION_MM = 2.0  # sigma of the average that says which tissue it is
_EDGE_MM = 1.5  # tissue ends this far from other tissue
_AIR_MM = 5.0  # air begins this far from the body
_LEAST_VOXELS = 500
_MOST_SLICES = 48  # in which fat, water-like tissue and air are looked for
_HISTOGRAM = np.arange(-1100.0, -499.0, 10.0)
_SPECTRUM_BINS = 2.0  # sigma, well below what patches of that size can resolve
_SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class Row:
    """A ``measure`` in its ``unit``; None where it cannot be measured. ``digits``: decimal places worth showing."""

    measure: str
    unit: str
    digits: int
    before: float | None
    after: float | None
    reference: float | None = None


@dataclass(frozen=True)
class Curves:
    """A plot: titles, ``x``, and the values there of each volume by name."""

    title: str
    x_title: str
    y_title: str
    x: list[float]
    y: dict[str, list[float]]


@dataclass(frozen=True)
class Comparison:
    """``rows`` in a fixed order; ``curves``: the histogram of the lungs and the noise power spectrum, as far as they
    can be measured."""

    rows: tuple[Row, ...]
    curves: tuple[Curves, ...]

    def as_dict(self) -> dict:
        """Plain data for JSON."""
        return asdict(self)


def compare_volumes(before: Volume, after: Volume, reference: Volume | None = None) -> Comparison:
    """Measures of two volumes of one patient and, where there is one, of what the second should be like.

    Tissue is chosen once, in low-passed slices of ``before``, so that the values compare; noise, sharpness and the
    lungs (:func:`find_lungs`) are each volume's own, as a reader would have them from it alone. Raises InputError where
    a volume is no CT, or where they do not lie on one grid.
    """
    volumes = {"before": before, "after": after}
    if reference is not None:
        volumes["reference"] = reference
    for volume in volumes.values():
        check_ct(volume)
    _check_one_grid(volumes)
    names, spacing = list(volumes), before.pixel_spacing
    images = [volume.hu for volume in volumes.values()]
    regions = _Regions(before)
    noise = [measure_noise(hu, spacing) for hu in images]
    edges = [measure_mtf(hu, spacing) for hu in images]
    lungs = [_Lungs.of(volume) for volume in volumes.values()]
    rows = [
        _row("Noise in water-like tissue", "HU", 1, (found and found.sigma for found in noise)),
        _row("Mean frequency of the noise", "lp/cm", 2, (found and found.mean_frequency for found in noise)),
        _row("Sharpness at the skin, f50", "lp/cm", 2, (found and found.f50 for found in edges)),
        *(_row(f"Mean of {name}", "HU", 1, values) for name, values in regions.means(images).items()),
        _row("Mean of the lungs", "HU", 1, (found and found.mean for found in lungs)),
        _row("Emphysema, LAA-950", "%", 2, (found and found.measured.laa950 for found in lungs)),
        _row("15th percentile of the lungs", "HU", 1, (found and found.measured.perc15 for found in lungs)),
        _row("Volume of the lungs", "ml", 0, (found and found.measured.volume for found in lungs)),
    ]
    if reference is not None:
        rows += regions.differences(images)
    curves = (_histogram(names, lungs), _noise_power(names, noise))
    return Comparison(tuple(rows), tuple(found for found in curves if found is not None))


@dataclass(frozen=True)
class _Lungs:
    """What a volume's own lungs hold; ``mean`` in HU, ``histogram``: their share, %, in each bin."""

    measured: Densitometry
    mean: float
    histogram: np.ndarray

    @classmethod
    def of(cls, volume: Volume) -> _Lungs | None:
        """None where there are none to speak of."""
        mask = find_lungs(volume.hu, volume.spacing)
        values = volume.hu[mask]
        if len(values) < _LEAST_VOXELS:
            return None
        shares = 100.0 * np.histogram(values, _HISTOGRAM)[0] / len(values)
        return cls(measure_densitometry(volume.hu, mask, volume.spacing), values.mean(dtype=np.float64), shares)


class _Regions:
    """Where a volume shows what: ``body``, a mask (slices, rows, columns); tissues in some slices."""

    def __init__(self, volume: Volume) -> None:
        spacing, count = volume.pixel_spacing, volume.shape[0]
        chosen = set(np.linspace(0, count - 1, min(count, _MOST_SLICES)).round().astype(int).tolist())
        self.body = np.zeros(volume.shape, bool)
        self._tissues: dict[str, dict[int, np.ndarray]] = {name: {} for name in ("air", *_TISSUES)}
        for number, smooth, body in _low_passed(volume):
            self.body[number] = body
            if number not in chosen:
                continue
            self._tissues["air"][number] = _eroded(~body & _between(smooth, _AIR_HU), _AIR_MM / spacing)
            for name, limits in _TISSUES.items():
                self._tissues[name][number] = _eroded(body & _between(smooth, limits), _EDGE_MM / spacing)

    def means(self, images: Sequence[np.ndarray]) -> dict[str, list[float | None]]:
        """The mean HU of each image, by tissue."""
        found = {}
        for name, masks in self._tissues.items():
            values = (np.concatenate([hu[number][mask] for number, mask in masks.items()]) for hu in images)
            found[name] = [_mean(part) for part in values]
        return found

    def differences(self, images: Sequence[np.ndarray]) -> list[Row]:
        """How far the images lie from the last one within the body."""
        root, mean = [], []
        count = max(1, int(np.count_nonzero(self.body)))
        for hu in images[:-1]:
            squares = sizes = 0.0
            for plane, truth, body in zip(hu, images[-1], self.body, strict=True):
                difference = plane[body].astype(np.float64) - truth[body]
                squares += float(difference @ difference)
                sizes += float(np.abs(difference).sum())
            root.append(float(np.sqrt(squares / count)))
            mean.append(sizes / count)
        return [
            _row("Root mean square difference to the reference", "HU", 1, root),
            _row("Mean absolute difference to the reference", "HU", 1, mean),
        ]


def _check_one_grid(volumes: dict[str, Volume]) -> None:
    (first, own), *others = volumes.items()
    corners = np.array([[0, 0, 0, 1], *([*axis, 1] for axis in np.diag(own.shape[::-1]))])
    for name, volume in others:
        gap = np.abs((volume.ijk_to_ras() - own.ijk_to_ras()) @ corners.T).max()
        if volume.shape != own.shape or gap > _SAME_PLACE_MM:
            raise InputError(
                f"The volumes '{first}' ({_grid(own)}) and '{name}' ({_grid(volume)}) do not have the same voxels in "
                "the same place: choose others, or resample one of them first."
            )


def _grid(volume: Volume) -> str:
    size, spacing = " x ".join(map(str, volume.shape[::-1])), " x ".join(f"{mm:.3g}" for mm in volume.spacing)
    return f"{size} voxels of {spacing} mm"


def _low_passed(volume: Volume) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Of every slice its number, its local average and the body's mask."""
    sigma = _REGION_MM / volume.pixel_spacing
    for number, plane in enumerate(volume.hu):
        smooth = ndimage.gaussian_filter(np.maximum(plane, PADDING_BELOW).astype(np.float32), sigma, mode="nearest")
        body = body_mask(smooth)
        yield number, smooth, np.zeros(plane.shape, bool) if body is None else body


def _between(smooth: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    return (smooth > limits[0]) & (smooth < limits[1])


def _eroded(mask: np.ndarray, pixels: float) -> np.ndarray:
    return ndimage.binary_erosion(mask, iterations=max(1, round(pixels)))


def _row(measure: str, unit: str, digits: int, values: Iterable[float | None]) -> Row:
    return Row(measure, unit, digits, *(None if value is None else float(value) for value in values))


def _mean(values: np.ndarray) -> float | None:
    return values.mean(dtype=np.float64) if len(values) >= _LEAST_VOXELS else None


def _histogram(names: Sequence[str], lungs: Sequence[_Lungs | None]) -> Curves | None:
    shares = {name: found.histogram.tolist() for name, found in zip(names, lungs, strict=True) if found}
    if not shares:
        return None
    middles = (0.5 * (_HISTOGRAM[1:] + _HISTOGRAM[:-1])).tolist()
    return Curves("HU of the lungs", "HU", "share of the lungs, %", middles, shares)


def _noise_power(names: Sequence[str], noise: Sequence[NoiseMeasurement | None]) -> Curves | None:
    """Each spectrum over its own area, as grain is to be compared: how strong the noise is stands in the rows."""
    known = [(name, found.spectrum) for name, found in zip(names, noise, strict=True) if found and found.spectrum]
    shares = {}
    for name, found in known:
        power = ndimage.gaussian_filter1d(found.power, _SPECTRUM_BINS, mode="nearest")
        area = float((0.5 * (power[1:] + power[:-1]) * np.diff(found.frequency)).sum())
        if area > 0:
            shares[name] = (power / area).tolist()
    if not shares:
        return None
    x = known[0][1].frequency.tolist()  # the same for all: it follows from the size of the pixels
    return Curves("Noise power spectrum", "spatial frequency, lp/cm", "share of the noise power, cm", x, shares)
