"""Training curves, from the logs that training leaves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from CTHarmonizeTraining.training.trainer import LOGS

CURVES = "curves"

_SMOOTHED = 20
"""Logged values in a running median: single batches differ much."""


def read_log(stage: Path) -> pd.DataFrame:
    """All that the stage's runs logged, by step: of what was done twice, the later."""
    runs = sorted((stage / LOGS).glob("version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    tables = [pd.read_csv(path) for path in runs]
    if not tables:
        return pd.DataFrame()
    merged = pd.concat(tables).groupby("step").last()
    return merged.drop(columns="epoch", errors="ignore")


def draw_curves(output: Path, stages: Sequence[str]) -> None:
    """Write ``curves.csv`` and ``curves.jpg`` of a finished training: loss, and error of validation in HU."""
    from matplotlib.figure import Figure

    logs = {name: log for name in stages if len(log := read_log(output / name))}
    if not logs:
        return
    pd.concat(logs, names=["stage"]).to_csv(output / f"{CURVES}.csv")
    figure = Figure(figsize=(4.2 * len(logs), 6.0), dpi=110, layout="constrained")
    grid = figure.subplots(2, len(logs), squeeze=False)
    for (upper, lower), (name, log) in zip(grid.T, logs.items(), strict=True):
        _draw(upper, log, {"train_loss": "training", "validation_loss": "validation"})
        _draw(lower, log[[name for name in _ERRORS if name in log]].clip(lower=0.0) ** 0.5, _ERRORS)
        upper.set_title(f"stage {name}")
        lower.set_xlabel("iterations")
    grid[0, 0].set_ylabel("loss")
    grid[1, 0].set_ylabel("RMSE, HU")
    figure.savefig(output / f"{CURVES}.jpg", pil_kwargs={"quality": 92})


_ERRORS = {
    "train_mse_hu2": "training",
    "validation_mse_hu2": "validation",
    "validation_estimate_mse_hu2": "validation, estimate",
}


def _draw(axes, log: pd.DataFrame, columns: dict[str, str]) -> None:
    for column, label in columns.items():
        if column not in log:
            continue
        values = log[column].dropna()
        marker = "o-" if column.startswith("validation") else "-"
        if column.startswith("train"):
            values = values.rolling(_SMOOTHED, min_periods=1).median()
        axes.plot(values.index, values, marker, markersize=3, linewidth=1.2, label=label)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
