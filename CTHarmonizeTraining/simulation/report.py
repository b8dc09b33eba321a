"""``report.html`` of a simulated pair: example slices, and whether the scanner shows what was asked of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch

from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.page import image, page
from CTHarmonizeTraining.simulation.checks import CYLINDER_MM, Curve, WaterCylinder, wire_mtf
from CTHarmonizeTraining.simulation.pair import Side
from CTHarmonizeTraining.simulation.scanner import Scanner

DOSES = (0.5, 1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 400.0)
"""Percent, of the curve of noise against dose."""

_COLOURS = {"source": "#c2571a", "target": "#1f6fb4"}
_WINDOWS = (("Lung", -600.0, 1500.0), ("Soft tissue", 40.0, 400.0))


@dataclass(frozen=True)
class Measured:
    """What one side's kernel and dose show: ``mtf`` of a wire, ``nps`` of the water cylinder, its ``noise`` at
    :data:`DOSES` and ``own_noise`` at the side's dose (each measured and of theory, HU), and its ``hu`` (water, air)
    without noise, at the side's dose and at the lowest of the doses."""

    mtf: Curve
    nps: Curve
    noise: tuple[np.ndarray, np.ndarray]
    own_noise: tuple[float, float]
    hu: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]

    def slope(self) -> float:
        """Of log noise over log dose, at the three highest doses."""
        return float(np.polyfit(np.log(DOSES[-3:]), np.log(self.noise[0][-3:]), 1)[0])


def measure_sides(
    scanner: Scanner, sides: Mapping[str, Side], seed: int = 0, device: torch.device | str = "cpu", draws: int = 6
) -> dict[str, Measured]:
    """Each side's kernel and dose measured in ``scanner``, with ``draws`` noisy scans of the cylinder a dose."""
    cylinder = WaterCylinder(scanner, seed, device)
    result = {}
    for name, side in sides.items():
        doses = [*DOSES, side.dose]
        noise, means = cylinder.noise(side.mtf, doses, draws)
        theory = cylinder.expected_noise(side.mtf, doses)
        result[name] = Measured(
            mtf=wire_mtf(scanner, side.mtf, device),
            nps=cylinder.noise_power(side.mtf, side.dose, 3 * draws),
            noise=(noise[:-1], theory[:-1]),
            own_noise=(float(noise[-1]), float(theory[-1])),
            hu=(cylinder.noise_free(side.mtf), tuple(means[-1]), tuple(means[0])),
        )
    return result


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, object],
    volumes: Mapping[str, Volume],
    sides: Mapping[str, Side],
    measured: Mapping[str, Measured],
) -> None:
    """A page that needs no other file. ``facts`` are listed at its end. Raises CannotRunError where it cannot be
    written."""
    parts = [
        f"<h1>{escape(title)}</h1><p>Simulated images, for research use.</p>",
        "<h2>Example slices</h2>",
        _image(_slices(volumes, sides), "source and target in two windows"),
        "<h2>Sharpness and noise</h2>",
        "<p>Left: modulation of a wire near the isocentre, measured (line) and asked for (dots). Right: noise power "
        f"in the middle of a {CYLINDER_MM:g} mm water cylinder, measured (line) and of theory (dots): "
        "f M(f)<sup>2</sup>, detector and focal spot divided out.</p>",
        _image(_curves(sides, measured), "MTF and noise power spectrum"),
        _table(
            ("", "kernel", "f50 asked, lp/cm", "f50 measured", "peak asked", "peak measured"),
            [
                (name, side.kernel, side.mtf.f50, at.mtf.f50(), side.mtf.peak, float(at.mtf.measured.max()))
                for (name, side), at in zip(sides.items(), measured.values(), strict=True)
            ],
            3,
        ),
        "<h2>Noise against dose</h2>",
        "<p>With many photons the noise falls as dose<sup>-1/2</sup> (dotted, through the highest dose). With few, "
        "electronic noise raises it above that line, until readings of less than one count are cut off. Theory (line) "
        "is the noise power spectrum over all frequencies, 1 / N + electronic<sup>2</sup> / N<sup>2</sup> for N counts "
        "in each reading.</p>",
        _image(_noise(sides, measured), "noise against dose"),
        _table(
            ("", "dose, %", "noise measured, HU", "of theory, HU", "slope at 100 to 400 %"),
            [(name, f"{sides[name].dose:g}", *at.own_noise, at.slope()) for name, at in measured.items()],
            3,
        ),
        "<h2>HU of water and air</h2>",
        _table(
            ("", "", "water", "air"),
            [
                (name, label, *values)
                for name, at in measured.items()
                for label, values in zip(
                    ("without noise", f"at {sides[name].dose:g} %", f"at {DOSES[0]:g} %"), at.hu, strict=True
                )
            ],
            1,
        ),
        "<h2>Settings</h2>",
        _table(("", ""), [(key, _plain(value)) for key, value in facts.items()], 3),
    ]
    write_whole(path, page(title, "".join(parts)))


def _slices(volumes: Mapping[str, Volume], sides: Mapping[str, Side]):
    """Figure of the middle slice of every volume, a row for each window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(volumes) + 0.8, 7.6), dpi=110, layout="constrained")
    grid = figure.subplots(len(_WINDOWS), len(volumes), squeeze=False)
    for row, (window, level, width) in zip(grid, _WINDOWS, strict=True):
        for axes, (name, volume) in zip(row, volumes.items(), strict=True):
            middle = volume.hu[volume.shape[0] // 2]
            drawn = axes.imshow(middle, cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
            axes.set(xticks=[], yticks=[])
            side = sides.get(name)
            text = f"{name.replace('_', ' ')}"
            if side is not None:
                text += f"\n{side.kernel}, {side.dose:g} %, {volume.spacing[2]:g} mm"
            axes.set_title(text if window == _WINDOWS[0][0] else "", fontsize=10)
        row[0].set_ylabel(f"{window}: L {level:g}  W {width:g} HU")
        figure.colorbar(drawn, ax=list(row), shrink=0.85, pad=0.01, label="HU")
    return figure


def _curves(sides: Mapping[str, Side], measured: Mapping[str, Measured]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, at in measured.items():
        label = f"{name}: {sides[name].kernel}"
        for axes, curve, text in ((left, at.mtf, label), (right, at.nps, f"{label}, {sides[name].dose:g} %")):
            colour = _COLOURS[name]
            axes.plot(curve.frequency, curve.measured, color=colour, label=text)
            some = slice(None, None, max(1, len(curve.frequency) // 30))
            axes.plot(curve.frequency[some], curve.expected[some], ".", color=colour, markersize=5)
    left.axhline(0.5, color="#999", linewidth=0.7)
    edge = min(20.0, max(10.0, *(1.2 * side.mtf.f10 for side in sides.values())))
    left.set(xlabel="lp/cm", ylabel="modulation", ylim=(0, None), xlim=(0, edge))
    right.set(xlabel="lp/cm", ylabel="noise power, HU² mm²", ylim=(0, None), xlim=(0, edge))
    for axes in (left, right):
        axes.legend(frameon=False, loc="upper right")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _noise(sides: Mapping[str, Side], measured: Mapping[str, Measured]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    doses = np.array(DOSES)
    for name, at in measured.items():
        colour = _COLOURS[name]
        noise, theory = at.noise
        axes.loglog(doses, noise, "o", color=colour, markersize=4, label=f"{name}: {sides[name].kernel}")
        axes.loglog(doses, theory, color=colour)
        axes.loglog(doses, theory[-1] * (doses / doses[-1]) ** -0.5, ":", color=colour)
    axes.set(xlabel="dose, %", ylabel="noise in the middle, HU")
    axes.legend(frameon=False)
    axes.grid(True, which="both", alpha=0.25)
    return figure


def _image(figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return image(buffer.getvalue(), text)


def _table(head: tuple[str, ...], rows: list[tuple], digits: int) -> str:
    """``head`` is HTML, the cells are not; numbers get so many significant or decimal ``digits``."""
    body = "".join("<tr>" + "".join(_cell(value, digits) for value in row) + "</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{text}</th>' for text in head)}</tr>{body}</table>"


def _cell(value: object, digits: int) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.{digits}f}</td>' if np.isfinite(value) else '<td class="n">not reached</td>'
    return f"<td>{escape(str(value))}</td>"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return f"{value:.6g}" if isinstance(value, float) else str(value)
