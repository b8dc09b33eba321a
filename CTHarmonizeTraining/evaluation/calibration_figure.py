"""The figure of a calibration: score against temperature, reliability, deviation against error."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_BEFORE, _AFTER, _SAMPLES, _TRUE = "#d1495b", "#00798c", "#8d96a3", "#444444"


def draw(results: dict, path: Path) -> None:
    """Draw ``results``, as ``calibration.json`` holds them, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.0, 4.6), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _temperature(left, results)
    _reliability(middle, results)
    _spread(right, results)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.set_box_aspect(1)
    figure.savefig(path)


def _temperature(axes, results: dict) -> None:
    """Differences from the lowest: they are what decides, and the same crops make them more certain than the scores."""
    temperature = np.array([entry["temperature"] for entry in results["temperatures"]])
    value, low, high = (
        np.array([entry["above_lowest"][key] for entry in results["temperatures"]]) for key in ("value", "low", "high")
    )
    axes.errorbar(temperature, value, [value - low, high - value], color=_AFTER, marker="o", capsize=3)
    lowest = results["temperatures"][int(value.argmin())]["crps"]["value"]
    chosen = results["temperature"]
    axes.plot(chosen, value[temperature == chosen], "o", markersize=12, markerfacecolor="none", color=_TRUE)
    axes.set_title(f"Temperature: {chosen:g} chosen")
    axes.set_xlabel("temperature")
    axes.set_ylabel(f"CRPS, HU above the lowest ({lowest:.2f})")


def _reliability(axes, results: dict) -> None:
    percent = 100.0
    curve = results["reliability"]
    axes.plot([0, 100], [0, 100], color=_TRUE, linewidth=1, linestyle="--", label="true")
    factor = results["deviation_factor"]["value"]
    for name, colour, label in (
        ("samples", _SAMPLES, "quantiles of the samples"),
        ("before", _BEFORE, "deviation as drawn"),
        ("after", _AFTER, f"deviation × {factor:.2f}"),
    ):
        points = [(entry["nominal"], entry[name]) for entry in curve if entry[name] is not None]
        x = percent * np.array([nominal for nominal, _ in points])
        value, low, high = (percent * np.array([entry[key] for _, entry in points]) for key in ("value", "low", "high"))
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, value, color=colour, marker=".", label=label)
    axes.set_title("Reliability")
    axes.set_xlabel("interval, %")
    axes.set_ylabel("targets inside, %")
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.legend(frameon=False, loc="upper left")


def _spread(axes, results: dict) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    deviation, error = (np.array([entry[key] for entry in results["spread"]]) for key in ("deviation", "error"))
    factor = results["deviation_factor"]["value"]
    every = np.concatenate([deviation, factor * deviation, error])
    limits = [0.85 * every.min(), 1.15 * every.max()]
    axes.plot(limits, limits, color=_TRUE, linewidth=1, linestyle="--", label="true")
    axes.plot(deviation, error, color=_BEFORE, marker="o", label="as drawn")
    axes.plot(factor * deviation, error, color=_AFTER, marker="o", label=f"× {factor:.2f}")
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.set_title("Tenths of the pixels, by deviation")
    axes.set_xlabel("deviation, HU")
    axes.set_ylabel("error of the mean (root mean square), HU")
    axes.legend(frameon=False, loc="upper left")
