"""A CT volume in HU with its place in the patient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from CTHarmonizeLib.errors import InputError

if TYPE_CHECKING:
    from CTHarmonizeLib.ct.dicom import DicomFacts

PADDING_BELOW = -1500
"""HU at or below which a voxel lies outside the scanner's field of view: padding, not a measurement."""

SMALLEST_SIDE = 16
LARGEST_VOXEL_COUNT = 4_000_000_000


@dataclass(frozen=True)
class Roi:
    """A box of voxels: half-open index ranges of columns, rows and slices."""

    columns: tuple[int, int]
    rows: tuple[int, int]
    slices: tuple[int, int]

    @classmethod
    def parse(cls, text: str) -> Roi:
        """Box from ``i0:i1,j0:j1,k0:k1`` (columns, rows, slices; the last index is not included)."""
        try:
            ranges = [tuple(int(number) for number in part.split(":")) for part in text.split(",")]
            (i0, i1), (j0, j1), (k0, k1) = ranges
        except ValueError:
            raise InputError(
                f"The region '{text}' is not of the form i0:i1,j0:j1,k0:k1 (columns, rows, slices)."
            ) from None
        roi = cls((i0, i1), (j0, j1), (k0, k1))
        if any(start < 0 or stop <= start for start, stop in (roi.columns, roi.rows, roi.slices)):
            raise InputError(f"The region '{text}' is empty or negative: each range must run from 0 or more upwards.")
        return roi

    @classmethod
    def whole(cls, shape: tuple[int, int, int]) -> Roi:
        """The box that covers an array of ``shape`` (slices, rows, columns)."""
        return cls((0, shape[2]), (0, shape[1]), (0, shape[0]))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return tuple(stop - start for start, stop in (self.slices, self.rows, self.columns))

    def index(self) -> tuple[slice, slice, slice]:
        """Index into an array of (slices, rows, columns)."""
        return slice(*self.slices), slice(*self.rows), slice(*self.columns)

    def check_inside(self, shape: tuple[int, int, int]) -> None:
        """Raise InputError where the box is empty or reaches out of an array of ``shape`` (slices, rows, columns)."""
        for name, (start, stop), size in zip(
            ("columns", "rows", "slices"), (self.columns, self.rows, self.slices), shape[::-1], strict=True
        ):
            if not 0 <= start < stop <= size:
                raise InputError(f"The region's {name} {start}:{stop} do not lie inside the volume's 0:{size}.")


@dataclass(frozen=True)
class Volume:
    """CT volume.

    ``hu``: (slices, rows, columns), int16 or float32, HU. ``spacing`` (mm), ``origin`` (mm, centre of voxel 0) and
    ``direction`` (row-major 3 x 3) as SimpleITK has them: column, row, slice order, LPS. ``facts``: what the
    file's tags said. ``warnings``: sentences for the reader.
    """

    hu: np.ndarray
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    facts: DicomFacts | None = None
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(slices, rows, columns)."""
        return self.hu.shape

    @property
    def pixel_spacing(self) -> float:
        """In-plane spacing in mm. Raises InputError where columns and rows differ by more than 1 %."""
        columns, rows = self.spacing[:2]
        mean = 0.5 * (columns + rows)
        if abs(columns - rows) > 0.01 * mean:
            raise InputError(
                f"The pixels are {columns:.4g} x {rows:.4g} mm: CTHarmonize needs square pixels (axial CT slices)."
            )
        return mean

    @property
    def sides(self) -> tuple[str, str]:
        """The patient's sides at the left and the right edge of a slice: R and L of an axial one as it is read. Of
        slices that lie otherwise A and P, or I and S."""
        across = np.reshape(self.direction, (3, 3))[:, 0]
        axis = int(np.argmax(np.abs(across)))
        low, high = ("RL", "AP", "IS")[axis]
        return (low, high) if across[axis] > 0 else (high, low)

    def ijk_to_ras(self) -> np.ndarray:
        """(4, 4) float64 matrix from (column, row, slice, 1) to RAS mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing)
        matrix[:3, 3] = self.origin
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ matrix

    def with_hu(self, hu: np.ndarray) -> Volume:
        """The same place with other values of the same shape."""
        if hu.shape != self.shape:
            raise ValueError(f"expected {self.shape}, got {hu.shape}")
        return replace(self, hu=hu)

    def divided(self, factor: int, hu: np.ndarray) -> Volume:
        """``factor`` slices for each, with values ``hu``, between the same outer faces."""
        count, *plane = self.shape
        if hu.shape != (factor * count, *plane):
            raise ValueError(f"expected {(factor * count, *plane)}, got {hu.shape}")
        columns, rows, slices = self.spacing
        step = np.reshape(self.direction, (3, 3))[:, 2] * slices
        origin = tuple(map(float, np.asarray(self.origin) - step * (1.0 - 1.0 / factor) / 2.0))
        facts = self.facts
        if facts is not None and facts.slice_thickness:
            facts = replace(facts, slice_thickness=facts.slice_thickness / factor)
        return replace(self, hu=hu, spacing=(columns, rows, slices / factor), origin=origin, facts=facts)

    def crop(self, roi: Roi) -> Volume:
        """The box ``roi`` (a view of the values), in its place. Raises InputError outside the volume."""
        roi.check_inside(self.shape)
        start = np.array([roi.columns[0], roi.rows[0], roi.slices[0]], dtype=np.float64)
        shift = np.reshape(self.direction, (3, 3)) @ (start * np.asarray(self.spacing))
        origin = tuple(float(value) for value in np.asarray(self.origin) + shift)
        return replace(self, hu=self.hu[roi.index()], origin=origin)


def check_ct(volume: Volume) -> None:
    """Raise InputError, in one sentence, where the values cannot be CT numbers in HU of a body."""
    hu = volume.hu
    if hu.ndim != 3:
        raise InputError(f"The volume has {hu.ndim} dimensions: CTHarmonize needs a 3D CT volume.")
    if hu.size > LARGEST_VOXEL_COUNT:
        raise InputError(f"The volume has {hu.size / 1e9:.1f} billion voxels: crop it to fewer than 4 billion.")
    if hu.size == 0 or min(hu.shape[1:]) < SMALLEST_SIDE:
        raise InputError(
            f"The slices have {hu.shape[2]} x {hu.shape[1]} pixels: at least {SMALLEST_SIDE} x {SMALLEST_SIDE} "
            "are needed."
        )
    if not all(np.isfinite(volume.spacing)) or min(volume.spacing) <= 0:
        raise InputError("The voxel spacing is not a positive number of millimetres.")
    volume.pixel_spacing  # noqa: B018  (raises for oblong pixels)
    if hu.dtype.kind == "f":
        bad = hu.size - int(np.count_nonzero(np.isfinite(hu)))
        if bad:
            raise InputError(f"{bad} of the {hu.size} voxels are not numbers (NaN or infinite): repair the file first.")
    low, high = float(hu.min()), float(hu.max())
    if low == high:
        raise InputError(f"All voxels have the same value ({low:g}): this is not a CT image.")
    if -1.0 <= low and high <= 1.0:
        raise InputError(
            f"The values run from {low:.3g} to {high:.3g}: they look rescaled; CTHarmonize needs HU, "
            "with air near -1000."
        )
    if low >= 0 and high <= 255:
        raise InputError(
            f"The values run from {low:g} to {high:g}: this looks like an 8-bit picture; CTHarmonize needs HU."
        )
    stored = np.iinfo(np.int16)
    if low < stored.min or high > stored.max:
        raise InputError(
            f"The values run from {low:.6g} to {high:.6g}: CT numbers are stored as {stored.min} to {stored.max}; give "
            "what lies beyond, such as padding, a value of -3024."
        )
    measured = hu[(hu > PADDING_BELOW) & (hu < 4000)]
    if measured.size == 0:
        raise InputError(f"No voxel lies between {PADDING_BELOW} and 4000 HU: the values are not CT numbers in HU.")
    if measured.min() >= 0 and np.median(measured) > 500:
        raise InputError(
            f"The values run from {measured.min():g} to {high:g}, none below 0: they look like stored values "
            "without their rescale intercept; CTHarmonize needs HU, with air near -1000 and water near 0."
        )
    if _is_air_at_zero(measured):
        raise InputError(
            "Much of the volume is near 0, its tissue near 1000, and nothing below -100: the values look like raw "
            "counts, 1024 too high; CTHarmonize needs HU, with air near -1000 and water near 0."
        )
    plausible = np.count_nonzero((measured >= -1100) & (measured <= 300)) / hu.size
    if plausible < 0.05:
        raise InputError(
            f"Only {100 * plausible:.1f} % of the voxels lie between -1100 and 300 HU (air, lung, fat, soft tissue): "
            "the values are not CT numbers in HU."
        )


def _is_air_at_zero(values: np.ndarray) -> bool:
    """Whether ``values`` have air, the gap above lung and soft tissue where stored counts without their intercept
    have them. Bone in true HU, which also reaches 900 to 1200, leaves no such gap."""
    values = values[:: max(1, values.size // 1_000_003)]  # enough, and quick on the largest volume

    def share(low: float, high: float) -> float:
        return np.count_nonzero((values >= low) & (values <= high)) / values.size

    tissue = share(900, 1200)
    return share(-np.inf, -100) < 0.001 and share(-100, 60) > 0.1 and tissue > max(0.05, 2 * share(300, 800))
