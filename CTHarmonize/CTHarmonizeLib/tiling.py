"""Tiles of a padded slice. A region of interest is a tile as well, so both give the values of the whole run."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[slice, slice]
"""(rows, columns)."""


@dataclass(frozen=True)
class Tile:
    """``core`` is what the tile gives, ``region`` what is computed for it: the core, its margin, snapped to the
    method's multiple. Both in pixels of the padded slice."""

    core: Box
    region: Box

    @property
    def inner(self) -> Box:
        """The core within the region."""
        rows, columns = (
            slice(core.start - region.start, core.stop - region.start)
            for core, region in zip(self.core, self.region, strict=True)
        )
        return rows, columns

    @property
    def size(self) -> tuple[int, int]:
        """(rows, columns) of the region."""
        rows, columns = self.region
        return rows.stop - rows.start, columns.stop - columns.start


def padded_size(rows: int, columns: int, multiple: int) -> tuple[int, int]:
    """Sides rounded up to ``multiple``: padding is added on the right and bottom only, so pixels keep their place."""
    return -(-rows // multiple) * multiple, -(-columns // multiple) * multiple


def tiles(core: Box, side: int | None, margin: int, multiple: int, padded: tuple[int, int]) -> list[Tile]:
    """Tiles that cover ``core``, none larger than ``side`` pixels (None: one tile), each with ``margin`` around it."""
    parts = [_parts(box, side, margin, multiple, limit) for box, limit in zip(core, padded, strict=True)]
    return [Tile((rows, columns), (tall, wide)) for rows, tall in parts[0] for columns, wide in parts[1]]


def _parts(box: slice, side: int | None, margin: int, multiple: int, limit: int) -> list[tuple[slice, slice]]:
    step = side or box.stop - box.start
    parts = []
    for start in range(box.start, box.stop, step):
        stop = min(start + step, box.stop)
        low = max(0, start - margin) // multiple * multiple
        high = min(limit, -(-(stop + margin) // multiple) * multiple)
        parts.append((slice(start, stop), slice(low, high)))
    return parts
