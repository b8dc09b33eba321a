"""What the studies' figures share."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np

PALETTE = ("#8d96a3", "#edae49", "#00798c", "#d1495b", "#66a182", "#2e4057", "#9c6bb0", "#b08d57", "#5fa8d3", "#444444")
"""Colours of the methods (or sources) in their order, the first again after the last."""


def colour(number: int) -> str:
    """Colour of the method of that place in the order."""
    return PALETTE[number % len(PALETTE)]


def png(figure) -> bytes:
    """A matplotlib figure, encoded."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def boxes(
    panels: Mapping[str, Mapping[str, Sequence[float]]], label: str, columns: int = 3, zero: bool = False
) -> bytes:
    """A PNG of box plots: a panel by its title, in it a box a method of its values (what is not finite left out).

    ``label``: the values' axis; ``zero``: a line at zero, for signed values. Boxes span the quartiles, whiskers reach
    the last value within 1.5 times their distance, and what lies beyond is not drawn.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for of in panels.values() for name in of))
    height = 0.9 + 0.24 * len(names)
    figure = Figure(figsize=(1.2 + 3.1 * columns, 0.4 + lines * height), dpi=120, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axes, (title, of) in zip(grid.flat, panels.items(), strict=False):
        values = [np.asarray(of.get(name, ()), np.float64) for name in names]
        drawn = axes.boxplot(
            [value[np.isfinite(value)] for value in values],
            orientation="horizontal",
            manage_ticks=False,
            patch_artist=True,
            showfliers=False,
            widths=0.65,
            medianprops={"color": "black"},
        )
        for number, box in enumerate(drawn["boxes"]):
            box.set(facecolor=colour(number), linewidth=0.6)
        if zero:
            axes.axvline(0.0, color="#444444", linewidth=0.8, zorder=0)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    # shared by all panels; the first method on top
    grid[0, 0].set(yticks=range(1, len(names) + 1), yticklabels=names, ylim=(len(names) + 0.6, 0.4))
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(label, fontsize=9)
    return png(figure)
