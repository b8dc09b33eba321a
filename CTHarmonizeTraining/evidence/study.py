"""What a study is: measures of an image, and the section of the report that they become.

A *case* is one scanned anatomy of known truth, an *image* what a method made of one of its scans. Studies measure
images one at a time and know of no other; the suite measures the reference scan the same way and joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Protocol

import numpy as np
import pandas as pd

from CTHarmonizeTraining.evidence.cases import Case, Scan

UNTOUCHED, REFERENCE = "untouched", "reference"
"""Names, among the methods, of the source scan as it is and of the scan at the target's acquisition."""


@dataclass(frozen=True)
class Image:
    """What ``method`` made of the scan ``source`` towards ``target``: ``hu`` int16 (slices, rows, columns) on the
    case's grid.

    Of a method that draws samples there are two images: its 'mean', which has the ``deviation`` (float32 HU) and the
    ``samples`` (n, slices, rows, columns; int16), and 'one image', which has neither.
    """

    method: str
    source: Scan
    target: Scan
    hu: np.ndarray
    deviation: np.ndarray | None = None
    samples: np.ndarray | None = None


@dataclass(frozen=True)
class Finding:
    """One measured ``value`` (NaN: could not be measured), of an ``item`` (a nodule, a plane; empty: the whole) with
    its known ``truth`` where there is one."""

    measure: str
    value: float
    truth: float = float("nan")
    item: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the report: ``name`` of its CSV file, ``title``, ``note`` on how to read it; cells of ``frame`` are
    text or numbers, which are shown with ``digits`` places (two where it has none for their column)."""

    name: str
    title: str
    frame: pd.DataFrame
    note: str = ""
    digits: int | Mapping[str, int] = 2

    def digits_of(self, column: str) -> int:
        """Places of the numbers in a column."""
        return self.digits if isinstance(self.digits, int) else self.digits.get(column, 2)


@dataclass(frozen=True)
class Picture:
    """A figure of the report: ``name`` of its file, ``title``, ``note``, and the encoded image (PNG or JPEG)."""

    name: str
    title: str
    content: bytes
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report: ``title``, what was done in ``text``, and its tables and pictures in order."""

    title: str
    text: str
    parts: Sequence[Table | Picture] = ()


def towards_first(rows: pd.DataFrame) -> pd.DataFrame:
    """Only those lines of :meth:`Study.section` that lead to the first target: what stands at two targets has no mean,
    and not every method reaches both."""
    return rows[rows["target"] == rows["target"].iloc[0]] if len(rows) else rows


class Study(Protocol):
    """Measures one image at a time; ``name`` is the study's in files, ``sampled`` whether each of a method's samples
    is measured too, which gives every value of its mean an interval; ``measured_by``: modules and files, beside its
    own, on which what it finds depends."""

    name: str
    sampled: bool
    measured_by: Sequence[ModuleType | Path]

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """All findings in ``image``; the same measures and items whatever the method."""

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A few columns for the report's summary, a line for each method (the index), of ``rows`` as in
        :meth:`section`, but only those that lead to the medium kernel."""

    def section(self, rows: pd.DataFrame) -> Section:
        """The report's part, from all findings of this study, a line each.

        Columns: ``case``, ``method``, ``source`` and ``target`` ('sharp 25 %'), ``item``, ``measure``, ``value``,
        ``truth``, ``reference`` (the same measured in the reference scan), ``low`` and ``high`` (limits of 95 % of
        the samples' values; NaN without samples). The reference scan's own lines have the method 'reference', their
        ``source`` equal to the ``target``.
        """
