"""ComBat beside the methods: it moves the untouched scans' measurements, and no image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from CTHarmonizeTraining.evaluation.combat import combat
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED

COMBAT = "ComBat"

ABOUT_COMBAT = (
    "ComBat moves the untouched scans' measurements, not their images; its batches are the sources, the reference "
    "acquisition is its reference batch. It is fitted to the very measurements by which it is judged, which no other "
    "method is."
)
"""What the reader of a table has to know of its line."""


def with_combat(rows: pd.DataFrame, measures: Sequence[str]) -> pd.DataFrame:
    """``rows`` of a study (columns as :meth:`Study.section` has them) with further lines of the method 'ComBat'.

    For each target, the ``measures`` of every case and item at every source are one sample; samples that lack a
    measure and sources with fewer than two samples are left out, and there are no further lines where the reference
    was not measured twice.
    """
    kept = rows[rows["measure"].isin(measures)]
    made = [_moved(of_target, target) for target, of_target in kept.groupby("target", sort=False)]
    return pd.concat([rows, *(lines for lines in made if len(lines))], ignore_index=True)


def _moved(rows: pd.DataFrame, target: str) -> pd.DataFrame:
    untouched = rows[(rows["method"] == UNTOUCHED) & (rows["source"] != target)]
    reference = rows[rows["method"] == REFERENCE]
    both = pd.concat([untouched, reference])
    samples = both.pivot_table(index=["source", "case", "item"], columns="measure", values="value", sort=False).dropna()
    batches = samples.index.get_level_values("source")
    enough = batches.isin([name for name, count in batches.value_counts().items() if count > 1])
    samples, batches = samples[enough], batches[enough]
    if target not in batches or not (batches != target).any():
        return untouched.iloc[:0]
    moved = pd.DataFrame(combat(samples.to_numpy(), list(batches), reference=target), samples.index, samples.columns)
    values = moved[batches != target].stack().rename("moved").reset_index()
    lines = untouched.merge(values, on=["source", "case", "item", "measure"])
    return lines.assign(method=COMBAT, value=lines["moved"], low=np.nan, high=np.nan).drop(columns="moved")
