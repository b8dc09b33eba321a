"""Which reconstructions of a patient show the same slices on the same grid, and why others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from CTHarmonizeLib.ct.volume import Roi, Volume

TOLERANCE_MM = 0.1
"""Largest distance of two pixels or slices that count as the same place: tags are often written with one decimal."""

LEAST_COMMON = 0.5
"""Share of the longer one's slices that both must have: else a short one would cost a set most of its slices."""


@dataclass(frozen=True)
class Series:
    """One reconstruction: its ``name`` within the patient, its ``volume``, the ``study`` (UID; empty: any) that it
    belongs to, and the ``dose`` in percent where the collection states it."""

    name: str
    volume: Volume
    study: str = ""
    dose: float | None = None

    @property
    def thickness(self) -> float | None:
        """Of a slice, mm, where the tags state it."""
        return self.volume.facts.slice_thickness if self.volume.facts else None


def match(series: Sequence[Series]) -> tuple[list[list[Series]], list[str]]:
    """Sets of two or more of ``series``, each cut to the slices that all of the set have, and why others are in none.

    The longest series begin a set; another one joins the first set that it fits. A reason is a sentence that begins
    with the series' name.
    """
    sets: list[list[Series]] = []
    refusals: dict[str, str] = {}
    for one in sorted(series, key=lambda entry: (-entry.volume.shape[0], entry.name)):
        for members in sets:
            reference = members[0]
            why = mismatch(reference, one)
            if not why:
                first, last = _common(reference.volume, one.volume)
                shift = _first_slice(reference.volume, one.volume)
                members[:] = [_cut(member, first, last) for member in members]
                members.append(_cut(one, first - shift, last - shift))
                break
            refusals.setdefault(one.name, f"differs from '{reference.name}': {why}")
        else:
            sets.append([one])
    alone = "is alone: a pair needs two" if len(series) == 1 else "has no partner"
    reasons = [f"'{one.name}' {refusals.get(one.name, alone)}." for one, *others in sets if not others]
    return [members for members in sets if len(members) > 1], reasons


def mismatch(reference: Series, other: Series) -> str:
    """Why ``other`` does not lie on the grid of ``reference``, in words; empty where it does."""
    one, two = reference.volume, other.volume
    if reference.study and other.study and reference.study != other.study:
        return "it belongs to another study"
    if one.shape[1:] != two.shape[1:]:
        return f"its slices have {two.shape[2]} x {two.shape[1]} pixels, not {one.shape[2]} x {one.shape[1]}"
    # over a whole slice or stack a difference must not grow beyond the tolerance
    if np.abs(np.subtract(one.spacing[:2], two.spacing[:2])).max() * max(one.shape[1:]) > TOLERANCE_MM:
        return f"its pixels are {two.spacing[0]:.4g} mm, not {one.spacing[0]:.4g} mm"
    if np.abs(np.subtract(one.direction, two.direction)).max() > 1e-3:
        return "its slices are turned"
    if reference.thickness and other.thickness and abs(reference.thickness - other.thickness) > 0.05:
        return f"its slices are {other.thickness:g} mm thick, not {reference.thickness:g} mm"
    if abs(one.spacing[2] - two.spacing[2]) * max(one.shape[0], two.shape[0]) > TOLERANCE_MM:
        return f"its slices lie {two.spacing[2]:.4g} mm apart, not {one.spacing[2]:.4g} mm"
    x, y, z = _offset(one, two)
    if max(abs(x), abs(y)) > TOLERANCE_MM:
        return f"its slices are shifted by {np.hypot(x, y):.2f} mm in their plane"
    between = z - one.spacing[2] * round(z / one.spacing[2])
    if abs(between) > TOLERANCE_MM:
        return f"its slices lie {abs(between):.2f} mm beside the other's"
    first, last = _common(one, two)
    longer = max(one.shape[0], two.shape[0])
    if last - first < LEAST_COMMON * longer:
        return f"only {max(0, last - first)} of {longer} slices lie at the same place"
    return ""


def _offset(one: Volume, two: Volume) -> np.ndarray:
    """(column, row, slice) distance of the first voxels, mm along the axes of ``one``."""
    return np.reshape(one.direction, (3, 3)).T @ np.subtract(two.origin, one.origin)


def _first_slice(one: Volume, two: Volume) -> int:
    """Slice of ``one`` at which ``two`` begins."""
    return round(float(_offset(one, two)[2]) / one.spacing[2])


def _common(one: Volume, two: Volume) -> tuple[int, int]:
    """Half-open range of slices of ``one`` that ``two`` has."""
    shift = _first_slice(one, two)
    return max(0, shift), min(one.shape[0], shift + two.shape[0])


def _cut(series: Series, first: int, last: int) -> Series:
    _, rows, columns = series.volume.shape
    volume = series.volume.crop(Roi((0, columns), (0, rows), (first, last)))
    return Series(series.name, volume, series.study, series.dose)
