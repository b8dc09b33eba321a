"""One picture of a harmonization: input, harmonized, mean, and how sure it is, in two windows and close up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from CTHarmonizeDemo.measures import has_lung
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeTraining.evaluation.figure import mark_sides
from CTHarmonizeTraining.evaluation.measures import Regions

WINDOWS = {"lung": (-600.0, 1500.0), "bone": (500.0, 2000.0), "soft tissue": (40.0, 400.0)}
"""Level and width in HU."""

_TITLES = {"input": "Input", "harmonized": "Harmonized", "mean": "Mean", "deviation": "Standard deviation"}
_MARGIN_MM = 8.0
_DETAIL_SHARE = 0.25
_INCH = 3.0  # width of an image


def draw(path: Path, title: str, images: Mapping[str, Volume], where: Regions) -> None:
    """Picture of the middle slice of ``images`` (input, harmonized, mean, and deviation if there is one) as PNG at
    ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    volume = images["input"]
    index, spacing = volume.shape[0] // 2, volume.pixel_spacing
    body = where.body[index]
    box = _box(body, round(_MARGIN_MM / spacing))
    planes = {name: image.hu[index][box].astype(np.float32) for name, image in images.items()}
    body = body[box]
    first = "lung" if has_lung(volume, where) else "bone"
    detail = _detail(planes["input"], where.body[index][box] & _of_interest(planes["input"], first), spacing)
    change = planes["mean"] - planes["input"]
    if "deviation" in planes:
        most = max(5.0, float(np.ceil(np.percentile(planes["deviation"][body], 99) / 5.0) * 5.0))
    largest = max(10.0, float(np.ceil(np.percentile(np.abs(change[body]), 98) / 10.0) * 10.0))

    ratio = body.shape[0] / body.shape[1]
    gap, left, right, over, under = 0.08, 0.4, 0.62, 0.75, 0.1  # inches
    between = 0.3  # room for the title within the last column
    tall = _INCH * ratio
    size = (left + 4 * _INCH + 3 * gap + right, over + 3 * tall + gap + between + under)
    figure = Figure(figsize=size, dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    title = f"{title}; slice {index + 1} of {volume.shape[0]}"
    figure.text(0.5, 1.0 - 0.12 / size[1], title, fontsize=13, ha="center", va="top")

    def place(row: int, column: int):
        x = left + column * (_INCH + gap)
        y = size[1] - over - (row + 1) * tall - (0.0, between, between + gap)[row]
        axis = figure.add_axes((x / size[0], y / size[1], _INCH / size[0], tall / size[1]))
        axis.set_axis_off()
        return axis

    for row, window in enumerate((first, "soft tissue", first)):
        crop = detail if row == 2 else (slice(None), slice(None))
        level, width = WINDOWS[window]
        for column, name in enumerate(_TITLES):
            axis = place(row, column)
            if name != "deviation":
                axis.imshow(planes[name][crop], cmap="gray", vmin=level - width / 2, vmax=level + width / 2)
            elif row == 1:
                _colour_bar(axis, axis.imshow(change, cmap="gray", vmin=-largest, vmax=largest))
                axis.set_title("Mean minus input", fontsize=11, pad=4)
            elif name not in planes:
                axis.text(0.5, 0.5, "No deviation:\nthe method draws no samples", ha="center", va="center", fontsize=11)
                continue
            else:
                _colour_bar(axis, axis.imshow(planes[name][crop], cmap="inferno", vmin=0.0, vmax=most))
            mark_sides(axis, volume.sides)
            if row == 0:
                none = name == "deviation" and not planes[name].any()
                axis.set_title("No deviation: one sample" if none else _TITLES[name], fontsize=11, pad=4)
            if column == 0:
                words = f"Detail, {window} window" if row == 2 else f"{window.capitalize()} window"
                style = {"rotation": 90, "ha": "right", "va": "center", "fontsize": 11}
                axis.text(-0.03, 0.5, words, transform=axis.transAxes, **style)
                if row != 1:
                    _scale_bar(axis, planes[name][crop].shape, spacing)
    figure.savefig(path)


def trim(path: Path) -> None:
    """Cut the empty lower part off a screenshot."""
    from PIL import Image

    image = Image.open(path)
    pixels = np.asarray(image.convert("RGB"))
    lines = np.flatnonzero((pixels != pixels[-1]).any((1, 2)))
    if len(lines):
        image.crop((0, 0, image.width, min(image.height, lines[-1] + 16))).save(path)


def _box(body: np.ndarray, margin: int) -> tuple[slice, slice]:
    """Rows and columns around the body; everything where there is none."""
    if not body.any():
        return slice(None), slice(None)
    found = []
    for axis, size in ((1, body.shape[0]), (0, body.shape[1])):
        present = np.flatnonzero(body.any(axis))
        found.append(slice(max(0, present[0] - margin), min(size, present[-1] + 1 + margin)))
    return found[0], found[1]


def _of_interest(image: np.ndarray, window: str) -> np.ndarray:
    return image < -500.0 if window == "lung" else image > 250.0


def _detail(image: np.ndarray, mask: np.ndarray, spacing: float) -> tuple[slice, slice]:
    """A crop of the same shape as the image where there is most fine structure within ``mask``."""
    rows, columns = (max(8, round(side * _DETAIL_SHARE)) for side in image.shape)
    band = ndimage.gaussian_filter(image, 1.0 / spacing) - ndimage.gaussian_filter(image, 3.0 / spacing)
    inner = ndimage.binary_erosion(mask, iterations=max(1, round(2.0 / spacing)))
    wealth = ndimage.uniform_filter(np.where(inner, np.abs(band), 0.0), (rows, columns), mode="constant")
    row, column = np.unravel_index(np.argmax(wealth), wealth.shape)
    top = int(np.clip(row - rows // 2, 0, image.shape[0] - rows))
    left = int(np.clip(column - columns // 2, 0, image.shape[1] - columns))
    return slice(top, top + rows), slice(left, left + columns)


def _colour_bar(axis, shown) -> None:
    bar = axis.figure.colorbar(shown, cax=axis.inset_axes((1.025, 0.0, 0.04, 0.93)))
    bar.ax.set_title("HU", fontsize=9, pad=3)
    bar.ax.tick_params(labelsize=8, length=2)
    bar.outline.set_visible(False)


def _scale_bar(axis, shape: tuple[int, int], spacing: float) -> None:
    """A bar with its length in mm."""
    from matplotlib.patheffects import withStroke

    height, width = shape
    length = next(mm for mm in (50, 20, 10, 5) if mm / spacing < 0.4 * width or mm == 5)
    left, low = 0.04 * width, 0.95 * height
    edge = [withStroke(linewidth=2.5, foreground="black")]  # legible on bright tissue too
    ends = [left, left + length / spacing]
    axis.plot(ends, [low, low], color="white", linewidth=3, solid_capstyle="butt")
    axis.text(left, low - 0.02 * height, f"{length} mm", color="white", fontsize=10, va="bottom", path_effects=edge)
