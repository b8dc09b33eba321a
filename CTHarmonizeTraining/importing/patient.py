"""What every layout hands to the importer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from CTHarmonizeLib.errors import InputError


@dataclass(frozen=True)
class Patient:
    """A patient that a layout found. ``name``: of its store; ``suffix``: ``.zarr``, a store of pairs, or ``.nrrd``,
    anatomy for ``simulate``; ``write`` makes it at a path and returns notes for the reader, or raises InputError with
    the reason; ``part``: of the split, where the collection fixes it."""

    name: str
    suffix: str
    write: Callable[[Path], list[str]]
    part: str | None = None

    @classmethod
    def refused(cls, name: str, suffix: str, reason: str) -> Patient:
        """A patient that cannot be imported, for a ``reason`` that is known beforehand."""

        def write(path: Path) -> list[str]:
            raise InputError(reason)

        return cls(name, suffix, write)
