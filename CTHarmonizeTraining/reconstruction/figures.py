"""Pictures of reconstructions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from CTHarmonizeTraining.reconstruction.training import WINDOW

_LEVEL, _WIDTH = -300.0, 1400.0
_ERROR = 150.0
_COLUMNS = 4


def draw_images(
    images: Mapping[str, np.ndarray],
    scores: Mapping[str, Mapping[str, float]],
    path: Path,
    deviations: Mapping[str, np.ndarray],
) -> None:
    """``images`` (side, side) in shares of the largest attenuation, by name, each with its error against ``truth``
    below it; then the ``deviations`` of samples."""
    from matplotlib.figure import Figure

    names = [name for name in images if name != "truth"]
    rows = -(-(len(names) + 1 + len(deviations)) // _COLUMNS)
    figure = Figure(figsize=(3.0 * _COLUMNS, 6.4 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(2 * rows, _COLUMNS, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    truth = _hu(images["truth"])
    grey = {"cmap": "gray", "vmin": _LEVEL - _WIDTH / 2, "vmax": _LEVEL + _WIDTH / 2}
    places = [[axes[2 * (n // _COLUMNS) + k, n % _COLUMNS] for k in (0, 1)] for n in range(rows * _COLUMNS)]
    for (upper, _), (name, deviation) in zip(places[len(names) + 1 :], deviations.items(), strict=False):
        spread = upper.imshow(deviation * (WINDOW[1] - WINDOW[0]), cmap="inferno", vmin=0.0)
        upper.set_title(f"{name}, deviation", fontsize=9)
        figure.colorbar(spread, ax=upper, shrink=0.7, label="HU", location="bottom")
    for (upper, lower), name in zip(places, ["truth", *names], strict=False):
        upper.imshow(_hu(images[name]), **grey)
        told = scores.get(name)
        upper.set_title(name + (f"\n{told['psnr']:.1f} dB, SSIM {told['ssim']:.2f}" if told else "\n "), fontsize=9)
        if name != "truth":
            error = lower.imshow(_hu(images[name]) - truth, cmap="RdBu_r", vmin=-_ERROR, vmax=_ERROR)
    figure.colorbar(error, ax=axes, shrink=0.4, label="reconstruction - truth, HU", pad=0.01)
    figure.suptitle(f"Simulated measurements, window {_LEVEL:g} / {_WIDTH:g} HU. Research use.", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def draw_samples(curves: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """PSNR and SSIM of the mean against the number of samples (the cINN paper's figure 4)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.6), dpi=130, layout="constrained")
    left = figure.subplots()
    right = left.twinx()
    for (name, curve), style in zip(curves.items(), ("-", "--", ":", "-.") * len(curves), strict=False):
        for axis, key, colour in ((left, "psnr", "tab:red"), (right, "ssim", "tab:blue")):
            axis.plot(curve["samples"], curve[key], style, marker=".", color=colour, label=f"{name}: {key.upper()}")
    left.set_xscale("log", base=2)
    left.set_xlabel("samples in the mean")
    left.set_ylabel("PSNR, dB", color="tab:red")
    right.set_ylabel("SSIM", color="tab:blue")
    left.grid(alpha=0.3)
    handles = [*left.get_lines(), *right.get_lines()]
    left.legend(handles, [line.get_label() for line in handles], fontsize=7, loc="lower right")
    figure.savefig(path)


def _hu(share: np.ndarray) -> np.ndarray:
    return share * (WINDOW[1] - WINDOW[0]) + WINDOW[0]
