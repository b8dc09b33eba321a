"""A figure of one mapping, as a radiologist reads images: windows, a scale, what is compared side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from CTHarmonizeTraining.evaluation.candidates import FILTER, INPUT, MEAN, SAMPLE, Harmonized
from CTHarmonizeTraining.evaluation.measures import Regions
from CTHarmonizeTraining.evaluation.simulated import SimulatedScans
from CTHarmonizeTraining.evaluation.tables import target_dose

_DETAIL_MM = 110.0


@dataclass(frozen=True)
class View:
    """A row of the figure: part of the slice, window (level, width) in HU, length of the scale bar in mm."""

    title: str
    box: tuple[slice, slice]
    level: float
    width: float
    bar: int


def draw(
    path: Path,
    scans: SimulatedScans,
    regions: Regions,
    result: Harmonized,
    source: str,
    dose: float,
    target: str,
) -> None:
    """Write a PNG: the whole slice, a detail of the lung and one around bone, in soft-tissue and bone windows."""
    from matplotlib.figure import Figure

    spacing, number = scans.protocol.pixel_spacing, _telling_slice(regions)
    f50 = result.target.f50
    columns = [
        (f"Input\n{source}, {dose:g} % dose", result.images[INPUT]),
        (f"MTF filter\n{source} → {target}", result.images[FILTER]),
    ]
    if result.deviation is not None:
        columns += [
            ("Harmonized\none plausible image", result.images[SAMPLE]),
            ("Mean\nof all samples", result.images[MEAN]),
            ("Standard deviation\nof all samples", result.deviation),
        ]
    else:
        columns.append(("Harmonized", next(reversed(result.images.values()))))
    words = target_dose(target, scans.protocol.target_dose)
    columns.append((f"Target\n{target} ({f50:.1f} lp/cm), {words}", scans.targets[target]))
    views = _views(regions, number, spacing)
    largest = None if result.deviation is None else float(np.percentile(result.deviation[number], 99.5))
    figure = Figure(figsize=(2.6 * len(columns) + 1.6, 2.45 * len(views) + 0.7), dpi=130, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.0, hspace=0.02)
    grid = figure.subplots(len(views), len(columns), squeeze=False)
    for (title, _), axes in zip(columns, grid[0], strict=True):
        axes.set_title(title, fontsize=10)
    for view, row in zip(views, grid, strict=True):
        grey = colour = None
        for (_, image), axes in zip(columns, row, strict=True):
            part = image[number][view.box]
            if image is result.deviation:
                colour = axes.imshow(part, cmap="inferno", vmin=0, vmax=largest, interpolation="lanczos")
            else:
                low, high = view.level - view.width / 2, view.level + view.width / 2
                grey = axes.imshow(part, cmap="gray", vmin=low, vmax=high, interpolation="lanczos")
            scale_bar(axes, part.shape, view.bar, spacing)
            mark_sides(axes, scans.true.sides)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(f"{view.title}\nL {view.level:g}  W {view.width:g} HU", fontsize=9)
        for drawn, name in ((grey, "HU"), (colour, "deviation, HU")):
            if drawn is not None:
                bar = figure.colorbar(drawn, ax=list(row), shrink=0.92, pad=0.005, aspect=28, fraction=0.02)
                bar.set_label(name, fontsize=8)
                bar.ax.tick_params(labelsize=7)
    figure.suptitle(
        f"{scans.true.name}, slice {scans.true.indices[number]}: simulated, {spacing:g} mm pixels. Research use.",
        fontsize=9,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def mark_sides(axes, sides: tuple[str, str]) -> None:
    """Small letters at the left and right edge of an image: the patient's sides."""
    from matplotlib import patheffects

    outline = [patheffects.withStroke(linewidth=1.5, foreground="black")]  # legible on bright tissue too
    for letter, x, side in zip(sides, (0.015, 0.985), ("left", "right"), strict=True):
        axes.text(
            x, 0.5, letter, transform=axes.transAxes, color="white", fontsize=8, ha=side, va="center",
            path_effects=outline,
        )  # fmt: skip


def _telling_slice(regions: Regions) -> int:
    """The slice with most lung and bone."""
    lung, bone = (mask.sum((1, 2)) for mask in (regions.tissues["lung"], regions.bone_edges))
    return int(np.argmax(lung * np.sqrt(bone + 1.0) + bone))


def _views(regions: Regions, number: int, spacing: float) -> list[View]:
    body, lung, bone = regions.body[number], regions.tissues["lung"][number], regions.bone_edges[number]
    rows, columns = _around(body, spacing)
    views = [View("Whole slice", (rows, columns), 40.0, 400.0, 100)]
    if lung.any():
        labels, _ = ndimage.label(ndimage.binary_closing(lung, iterations=4))
        largest = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
        views.append(View("Lung", _square(densest(largest), body.shape, spacing), -600.0, 1500.0, 20))
    middle = densest(bone if bone.any() else body)
    detail = _square(middle, body.shape, spacing)
    views += [View("Soft tissue", detail, 50.0, 400.0, 20), View("Bone", detail, 400.0, 1800.0, 20)]
    return views


def densest(mask: np.ndarray) -> tuple[float, float]:
    """The place (row, column) in ``mask`` with most of it around."""
    dense = ndimage.gaussian_filter(mask.astype(np.float32), 24.0)
    return np.unravel_index(int(np.argmax(np.where(mask, dense, 0.0))), mask.shape)


def _square(middle: tuple[float, float], shape: tuple[int, int], spacing: float) -> tuple[slice, slice]:
    return square_at(middle, min(int(_DETAIL_MM / spacing), *shape), shape)


def square_at(middle: tuple[float, float], side: int, shape: tuple[int, int]) -> tuple[slice, slice]:
    """A square of ``side`` pixels around ``middle`` (row, column), as near as an image of ``shape`` allows."""
    starts = (int(np.clip(round(at - side / 2), 0, size - side)) for at, size in zip(middle, shape, strict=True))
    return tuple(slice(start, start + side) for start in starts)


def _around(mask: np.ndarray, spacing: float) -> tuple[slice, slice]:
    """A square around ``mask``."""
    places = np.argwhere(mask)
    low, high = places.min(0), places.max(0) + 1
    side = min(int((high - low).max() + 12.0 / spacing), *mask.shape)
    return square_at((low + high) / 2, side, mask.shape)


def scale_bar(axes, shape: tuple[int, int], length: int, spacing: float) -> None:
    """A bar of ``length`` mm in the lower left corner; shorter where the part is too small for it."""
    from matplotlib import patheffects

    while length > 1 and length / spacing > 0.6 * shape[1]:
        length //= 2
    outline = [patheffects.withStroke(linewidth=2.5, foreground="black")]
    x, y = 0.05 * shape[1], 0.94 * shape[0]
    axes.plot([x, x + length / spacing], [y, y], color="white", linewidth=1.8, path_effects=outline)
    axes.text(x, y - 0.02 * shape[0], f"{length} mm", color="white", fontsize=7, va="bottom", path_effects=outline)
