"""Pictures of the report: what methods made of one scan, as a radiologist compares images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from CTHarmonizeTraining.evaluation.figure import densest, mark_sides, scale_bar, square_at
from CTHarmonizeTraining.evidence.cases import Case, KnownNodule
from CTHarmonizeTraining.evidence.study import REFERENCE, UNTOUCHED, Image, Picture

LUNG, SOFT_TISSUE = (-600.0, 1500.0), (50.0, 400.0)
"""Windows: level and width, HU."""

MOST_BYTES = 600_000
"""Of a picture in the report."""

_ZOOM_MM = 45.0
_AIR_MM = 6.0  # around the body
_WIDTH = 2.1  # of a column, inches
_DPI = 200
_QUALITIES = (90, 84, 78, 70, 60, 50, 40)


class _Row(NamedTuple):
    """``planes``: one for each column, or None for an empty cell; ``limits`` of the colours ``cmap``, HU."""

    title: str
    planes: Sequence[np.ndarray | None]
    limits: tuple[float, float]
    cmap: str
    label: str
    bar: int


def example_figure(
    case: Case,
    images: Sequence[Image],
    reference: np.ndarray,
    slice_index: int,
    nodule: KnownNodule | None = None,
    name: str = "example",
    sides: tuple[str, str] = ("R", "L"),
) -> Picture:
    """One scan in a column for each of ``images``, which have one source and one target, and the ``reference`` scan
    ((slices, rows, columns), HU, on the case's grid).

    The rows: slice ``slice_index`` in two windows, its difference to the reference and, where an image has one, its
    deviation; and ``nodule`` (that nearest to the slice where None, the lung where there is none) in its own slice.
    ``sides``: what the left and the right edge of a slice are of the patient.
    """
    spacing = float(np.mean(case.spacing[:2]))
    box = _around_body(case.truth[slice_index], spacing)
    volumes = [*(image.hu for image in images), reference]
    planes = [volume[slice_index][box] for volume in volumes]
    rows = [
        _windowed("Lung", planes, LUNG, 50),
        _windowed("Soft tissue", planes, SOFT_TISSUE, 50),
    ]
    zoom_index, place, words = _detail(case, slice_index, nodule)
    zoom = square_at(place, min(int(_ZOOM_MM / spacing), *reference.shape[1:]), reference.shape[1:])
    rows.append(_windowed(words, [volume[zoom_index][zoom] for volume in volumes], LUNG, 10))
    rows.append(_differences(planes))
    deviations = [None if image.deviation is None else image.deviation[slice_index][box] for image in images]
    if any(plane is not None for plane in deviations):
        rows.append(_deviations([*deviations, None]))
    titles = [_title(image) for image in images] + [f"{REFERENCE}\n{images[0].target}"]
    content = _drawn(titles, rows, spacing, sides)
    where = f"Slice {slice_index + 1} of {len(reference)}"
    if zoom_index != slice_index:
        where += f", the detail from slice {zoom_index + 1}"
    return Picture(
        name,
        f"{case.name}, {images[0].source} to {images[0].target}",
        content,
        f"{where}; {case.spacing[2]:g} mm slices. {sides[0]} and {sides[1]}: the patient's sides. Difference: the "
        "image less the reference scan, which has noise of its own; red is too dense, blue not dense enough."
        + (" Deviation: of a method's samples, in each voxel." if len(rows) > 4 else ""),
    )


def _title(image: Image) -> str:
    return f"{image.method}\n{image.source}" if image.method == UNTOUCHED else image.method.replace(", ", "\n", 1)


def _windowed(title: str, planes: Sequence[np.ndarray], window: tuple[float, float], bar: int) -> _Row:
    level, width = window
    low, high = level - width / 2, level + width / 2
    title = f"{title}\nL {level:g}  W {width:g}".replace("-", "\N{MINUS SIGN}")
    return _Row(title, planes, (low, high), "gray", "HU", bar)


def _differences(planes: Sequence[np.ndarray]) -> _Row:
    """To the last plane, in colours that hold nearly all of the first one's."""
    reference = planes[-1].astype(np.float32)
    differences = [plane - reference for plane in planes[:-1]]
    limit = _round_up(float(np.percentile(np.abs(differences[0]), 98.0)))
    return _Row("Difference to\nthe reference", [*differences, None], (-limit, limit), "RdBu_r", "difference, HU", 50)


def _deviations(planes: Sequence[np.ndarray | None]) -> _Row:
    largest = max(float(np.percentile(plane, 99.5)) for plane in planes if plane is not None)
    return _Row("Deviation", planes, (0.0, _round_up(largest)), "inferno", "deviation, HU", 50)


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 5, 7 times a power of ten; at least 1."""
    value = max(value, 1.0)
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0) if step * power >= value * (1 - 1e-9))


def _around_body(truth: np.ndarray, spacing: float) -> tuple[slice, slice]:
    """The box of a slice's largest object, with a little air; the whole slice where there is none."""
    labels, count = ndimage.label(truth > -400.0)
    if count == 0:
        return slice(None), slice(None)
    body = ndimage.find_objects(labels)[int(np.argmax(np.bincount(labels.ravel())[1:]))]
    air = round(_AIR_MM / spacing)
    return tuple(slice(max(part.start - air, 0), part.stop + air) for part in body)


def _detail(case: Case, index: int, nodule: KnownNodule | None) -> tuple[int, tuple[float, float], str]:
    """Slice and place (row, column) of the detail, and what it is."""
    if nodule is None and case.nodules:
        nodule = min(case.nodules, key=lambda known: abs(known.centre[0] - index))
    if nodule is None:
        return index, densest(case.lung[index]), "Lung"
    kind = "Solid" if nodule.solid else "Subsolid"
    return round(nodule.centre[0]), nodule.centre[1:], f"{kind} nodule, {nodule.diameter:.1f} mm"


def _drawn(titles: Sequence[str], rows: Sequence[_Row], spacing: float, sides: tuple[str, str]) -> bytes:
    """A JPEG of no more than :data:`MOST_BYTES`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image as Pixels

    shapes = [next(plane.shape for plane in row.planes if plane is not None) for row in rows]
    heights = [_WIDTH * shape[0] / shape[1] for shape in shapes]
    figure = Figure(figsize=(_WIDTH * len(titles) + 1.3, sum(heights) + 0.7), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.015, h_pad=0.015, wspace=0.0, hspace=0.0)
    grid = figure.subplots(
        len(rows), len(titles) + 1, squeeze=False,
        gridspec_kw={"height_ratios": heights, "width_ratios": [*[1.0] * len(titles), 0.05]},
    )  # fmt: skip
    for title, axes in zip(titles, grid[0], strict=False):
        axes.set_title(title, fontsize=11)
    for row, cells in zip(rows, grid, strict=True):
        for plane, axes in zip(row.planes, cells, strict=False):
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if plane is None:
                continue
            drawn = axes.imshow(
                plane, cmap=row.cmap, vmin=row.limits[0], vmax=row.limits[1], interpolation="lanczos", aspect="auto"
            )
            scale_bar(axes, plane.shape, row.bar, spacing)
            mark_sides(axes, sides)
        cells[0].set_ylabel(row.title, fontsize=11)
        bar = figure.colorbar(drawn, cax=cells[-1])
        bar.set_label(row.label, fontsize=10)
        bar.ax.tick_params(labelsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Pixels.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    for quality in _QUALITIES:
        buffer = io.BytesIO()
        pixels.save(buffer, "JPEG", quality=quality, optimize=True, dpi=(_DPI, _DPI))
        if buffer.tell() <= MOST_BYTES:
            break
    return buffer.getvalue()
