"""Stores of measured CT: one patient, several reconstructions of the same slices.

A store is a Zarr group (version 3) with a group for each set of reconstructions that share a grid. Values lie in small
uncompressed chunks, so that a crop of 128 x 128 pixels, or of 16 slices of 64 x 64, is read without the volume.
``ctharmonize-train import`` makes them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.simulation.rays import Rays
from CTHarmonizeTraining.simulation.scan import body_mask

FBP, TRUTH = "FBP", "truth"
"""Names of the reconstructions of a pair that has its measurements."""

KIND = "measured"
SIMULATED = "simulated"
"""Layout of a store whose reconstructions were simulated."""

CHUNK = (1, 4, 128, 128)
"""Reconstruction, slices, rows, columns."""

BLOCK = 8
"""Pixels a side of the blocks for which a store says how much body they hold."""


@dataclass(frozen=True)
class Reconstruction:
    """One reconstruction of a set: its ``name``, ``acquisition``, and ``dose`` in percent, as the collection states it
    or as its noise tells; ``facts``: where the numbers come from, for the reader."""

    name: str
    acquisition: Acquisition
    dose: float
    facts: dict[str, Any]


class MatchedSet:
    """Reconstructions of the same slices on the same grid, in a store.

    ``hu``: Zarr array (reconstruction, slice, row, column), int16 HU. ``body``: (slice, row block, column block)
    uint8, pixels of the body in each block of :data:`BLOCK` x :data:`BLOCK`. ``spacing``, ``origin`` and
    ``direction`` as :class:`Volume` has them. ``observation``: Zarr array (slice, view, beam), float32, the
    measurements that the slices were reconstructed from, as LoDoPaB-CT stores them; None where there are none.
    """

    def __init__(self, group: zarr.Group) -> None:
        facts = group.attrs
        self.hu: zarr.Array = group["hu"]
        self.body: np.ndarray = np.asarray(group["body"])
        self.observation: zarr.Array | None = group.get("observation")
        self.spacing, self.origin, self.direction = (tuple(facts[key]) for key in ("spacing", "origin", "direction"))
        self.reconstructions = tuple(
            Reconstruction(entry["name"], Acquisition(**entry["acquisition"]), entry["dose"], entry["facts"])
            for entry in facts["reconstructions"]
        )

    @property
    def rays(self) -> Rays | None:
        """Those of the :attr:`observation`; images are square and lie around the isocentre."""
        if self.observation is None:
            return None
        side = self.hu.shape[-1]
        return Rays(side, *self.observation.shape[1:], round(self.spacing[0] * side, 3))

    def volume(self, index: int) -> Volume:
        """Reconstruction ``index`` as a volume, in its place."""
        return Volume(self.hu[index], self.spacing, self.origin, self.direction)

    def body_windows(self, size: int, share: float, margin: int = 0, depth: int = 1) -> np.ndarray:
        """Where a crop of ``depth`` slices and ``size`` pixels a side lies in the body: (first slice, row block,
        column block), bool.

        True where the crop that starts at that block holds at least ``share`` of body and leaves ``margin`` pixels of
        the slice on all sides. Raises InputError for a size that is not a multiple of :data:`BLOCK`.
        """
        if size % BLOCK:
            raise InputError(f"Crops of {size} pixels cannot be cut: give a multiple of {BLOCK}.")
        side, edge = size // BLOCK, -(-margin // BLOCK)
        slices, rows, columns = self.body.shape
        places = np.zeros((max(0, slices - depth + 1), rows, columns), bool)
        last_row, last_column = rows - side - edge + 1, columns - side - edge + 1
        if not len(places) or last_row <= edge or last_column <= edge:
            return places
        total = np.zeros((slices + 1, rows + 1, columns + 1), np.int64)
        total[1:, 1:, 1:] = self.body.cumsum(0, dtype=np.int64).cumsum(1).cumsum(2)
        total = total[depth:] - total[:-depth]
        held = total[:, side:, side:] - total[:, :-side, side:] - total[:, side:, :-side] + total[:, :-side, :-side]
        inside = held >= share * depth * size * size
        places[:, edge:last_row, edge:last_column] = inside[:, edge:last_row, edge:last_column]
        return places


class PatientStore:
    """The matched sets of one patient: ``patient`` and ``sets``; ``layout`` says what they were made from, ``source``
    what was scanned, where the scans were simulated."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        try:
            group = zarr.open_group(os.fspath(path), mode="r")
            self.patient, self.layout = group.attrs["patient"], group.attrs["layout"]
            self.source = group.attrs.get("source")
            self.sets = [MatchedSet(group[str(number)]) for number in range(group.attrs["sets"])]
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise InputError(f"'{path}' holds no measured reconstructions: {error}") from error

    @staticmethod
    def recognizes(path: str | os.PathLike) -> bool:
        """Whether the store at ``path`` is of this kind."""
        try:
            return zarr.open_group(os.fspath(path), mode="r").attrs.get("kind") == KIND
        except (OSError, ValueError):
            return False

    @classmethod
    def write(
        cls,
        path: Path,
        patient: str,
        layout: str,
        sets: Sequence[tuple[Sequence[Reconstruction], Sequence[Volume]]],
        source: str | None = None,
        observations: np.ndarray | None = None,
    ) -> None:
        """Write ``sets``: for each the reconstructions and their volumes, which share a grid.

        ``source``: the name of what was scanned, where the scans were simulated. ``observations``: of the first set's
        slices, (slices, views, beams).
        """
        group = zarr.open_group(os.fspath(path), mode="w")
        for number, (reconstructions, volumes) in enumerate(sets):
            _write_set(group.create_group(str(number)), reconstructions, volumes)
        if observations is not None:
            chunks = (1, *observations.shape[1:])
            group["0"].create_array(
                "observation", shape=observations.shape, chunks=chunks, dtype="float32"
            )[:] = observations  # fmt: skip
        # last: without it the store does not count as whole
        known = {} if source is None else {"source": source}
        group.attrs.update({"kind": KIND, "patient": patient, "layout": layout, **known, "sets": len(sets)})


def _write_set(group: zarr.Group, reconstructions: Sequence[Reconstruction], volumes: Sequence[Volume]) -> None:
    place = volumes[0]
    shape = (len(volumes), *place.shape)
    hu = group.create_array("hu", shape=shape, chunks=CHUNK, dtype="int16", compressors=None)
    limits = np.iinfo(np.int16)
    for number, volume in enumerate(volumes):
        hu[number] = np.clip(np.rint(volume.hu), limits.min, limits.max).astype(np.int16)
    quietest = volumes[int(np.argmin([entry.acquisition.noise for entry in reconstructions]))]
    body = np.stack([_blocks(body_mask(image, place.pixel_spacing)) for image in quietest.hu])
    group.create_array("body", shape=body.shape, chunks=(64, *body.shape[1:]), dtype="uint8")[:] = body
    group.attrs.update(
        {
            "spacing": list(place.spacing),
            "origin": list(place.origin),
            "direction": list(place.direction),
            "reconstructions": [
                {
                    "name": entry.name,
                    "acquisition": entry.acquisition.as_dict(),
                    "dose": entry.dose,
                    "facts": entry.facts,
                }
                for entry in reconstructions
            ],
        }
    )


def _blocks(mask: np.ndarray) -> np.ndarray:
    """Pixels of ``mask`` (rows, columns) in each whole block, uint8."""
    rows, columns = (count // BLOCK for count in mask.shape)
    whole = mask[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return whole.sum((1, 3)).astype(np.uint8)
