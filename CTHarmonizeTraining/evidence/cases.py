"""What is scanned: slabs of procedural chests whose emphysema, nodules and small lesions are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from CTHarmonizeLib.ct.volume import Roi, Volume


class Scan(NamedTuple):
    """An acquisition of a case: ``kernel`` by name, ``dose`` in percent."""

    kernel: str
    dose: float

    def __str__(self) -> str:
        return f"{self.kernel} {self.dose:g} %"


@dataclass(frozen=True)
class KnownNodule:
    """A nodule of a case: ``number`` from 1 in :attr:`Case.labels`, ``centre`` (slice, row, column) as fractions of
    voxels, ``diameter`` (mm) of the sphere of its volume, ``volume`` (mm^3), ``hu``, and whether it is ``solid``."""

    number: int
    centre: tuple[float, float, float]
    diameter: float
    volume: float
    hu: float
    solid: bool


@dataclass(frozen=True)
class Place:
    """``centre`` (slice, row, column) as fractions of voxels, of a sphere of ``diameter`` mm that adds ``contrast`` HU
    to what is there; 0 where none was put, though one might have been."""

    centre: tuple[float, float, float]
    diameter: float
    contrast: float


@dataclass(frozen=True)
class Case:
    """One anatomy. All volumes are (slices, rows, columns) of ``spacing`` (columns, rows, slices) mm.

    ``scans``, and ``references``, whose noise is their own: int16 HU, whole slices. All else covers the ``region``
    around the lungs: ``clean``, by kernel, float32 HU, without noise; ``truth``: the anatomy itself, averaged over
    each voxel, float32 HU; ``body`` and ``lung`` (both lungs with all that they hold, without trachea and main
    bronchi): bool; ``tissues``: masks by name; ``labels``: int16, the number of the nodule that fills most of a voxel,
    0 elsewhere. ``lesions`` are small and faint, and no nodules; ``vacant`` are places without one. Centres count from
    the region's first voxel.
    """

    name: str
    spacing: tuple[float, float, float]
    scans: Mapping[Scan, np.ndarray]
    references: Mapping[Scan, np.ndarray]
    region: Roi
    clean: Mapping[str, np.ndarray]
    truth: np.ndarray
    body: np.ndarray
    lung: np.ndarray
    tissues: Mapping[str, np.ndarray]
    labels: np.ndarray
    emphysema_percent: float
    nodules: tuple[KnownNodule, ...] = field(default=())
    lesions: tuple[Place, ...] = field(default=())
    vacant: tuple[Place, ...] = field(default=())
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make`` returns, computed once for the case: what studies measure in the anatomy itself."""
        if name not in self._known:
            self._known[name] = make()
        return self._known[name]

    def volume(self, scan: Scan) -> Volume:
        """A scan as a user has it: whole slices."""
        return Volume(self.scans[scan], self.spacing)

    def seen(self, hu: np.ndarray) -> np.ndarray:
        """The region's part of whole slices."""
        return np.ascontiguousarray(hu[self.region.index()])
