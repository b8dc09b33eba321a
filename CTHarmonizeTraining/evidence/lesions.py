"""Small faint lesions in the lungs: how much of their contrast is kept, which are lost, and which are made up.

Every lesion is a sphere that adds a known contrast to a known place. An image's response there is the amplitude, in
HU, of the best fit of what the target's kernel makes of that sphere, over a constant. What vessels and the lung's own
texture add to it is known from the image without noise, and is taken off: left is the lesion's contrast, as far as the
image has kept it, noise, and what the image changed of the surroundings. Places where these add much are left out, and
the mean of vacant places, in which changes of the surroundings are alone, is taken off the contrast kept.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pandas as pd

from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeTraining.evidence.cases import Case, Place
from CTHarmonizeTraining.evidence.cells import mean_deviation
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Section, Table
from CTHarmonizeTraining.evidence.uncertainty import auroc

THRESHOLD = 25.0
"""HU of response from which on a place counts as a lesion: half the faintest contrast, midway between one and none."""

_LARGEST_BACKGROUND = 25.0  # HU that a place's surroundings may add to the response
_AROUND_MM = 3.0  # beyond the lesion, over which the constant is fitted
_FINE = 8  # parts of a voxel along each axis in which a sphere is counted
_WINDOW = 64  # pixels of the image in which the kernel acts on a sphere


class LesionStudy:
    """Responses at the lesions and at the vacant places of a case."""

    name = "lesions"
    sampled = False
    measured_by = ()

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """Items ``3 mm, 100 HU, 1``, with the contrast as truth, and ``3 mm, vacant, 1``, with 0."""
        found, count = [], {}
        kernel = image.target.kernel
        clean = case.clean[kernel]
        difference = image.hu - clean
        for place in (*case.lesions, *case.vacant):
            kind = f"{place.diameter:g} mm, " + (f"{place.contrast:g} HU" if place.contrast else "vacant")
            count[kind] = count.get(kind, 0) + 1
            around = case.once(
                f"{self.name} {kernel} {place}",
                lambda place=place: response(clean, place, kernel, case.spacing) - place.contrast,
            )
            if not abs(around) <= _LARGEST_BACKGROUND:
                continue
            value = place.contrast + response(difference, place, kernel, case.spacing)
            found.append(Finding("response", value, place.contrast, f"{kind}, {count[kind]}"))
        return found

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Lesions lost and made up, percent."""
        judged = _judged(rows)
        lesions, vacant = judged[judged.contrast > 0], judged[judged.contrast == 0]
        return 100.0 * pd.DataFrame(
            {
                "lesions lost, %": 1.0 - lesions.groupby("method").seen.mean(),
                "lesions made up, %": vacant.groupby("method").seen.mean(),
            }
        )

    def section(self, rows: pd.DataFrame) -> Section:
        """Contrast kept, lesions lost and made up, by method and source."""
        text = (
            "Spheres of 2, 3 and 4 mm that add 50, 100 or 200 HU to the lung, in places without larger vessels, and "
            "such places without one. The response is the amplitude of the best fit of the sphere as the target's "
            "kernel shows it, less what its surroundings add to it in the image without noise: the contrast that a "
            f"reader who knows the place would measure. Places whose surroundings add more than "
            f"{_LARGEST_BACKGROUND:g} HU are left out. A place counts as a lesion from {THRESHOLD:g} HU on, half the "
            "faintest contrast: lesions below are lost, vacant places above are made up, be it by noise, by invention, "
            "or because something dark was smoothed away there."
        )
        return Section("Small lesions", text, [_summary(rows), _by_kind(rows), _lost(rows)])


def response(hu: np.ndarray, place: Place, kernel: str, spacing: tuple[float, float, float]) -> float:
    """Amplitude in HU of the sphere of ``place`` (without its contrast) in ``hu`` (slices, rows, columns), as the
    ``kernel`` shows it; NaN where it reaches out of the image."""
    phase = tuple(round((value - round(value)) * 4) / 4 for value in place.centre)
    signal, weight = _template(place.diameter, phase, kernel, spacing)
    corner = [round(value) - size // 2 for value, size in zip(place.centre, signal.shape, strict=True)]
    if any(first < 0 or first + n > size for first, n, size in zip(corner, signal.shape, hu.shape, strict=True)):
        return float("nan")
    seen = hu[tuple(slice(first, first + n) for first, n in zip(corner, signal.shape, strict=True))]
    return float((weight * seen).sum() / (weight * signal).sum())


@lru_cache(maxsize=512)
def _template(
    diameter: float, phase: tuple[float, float, float], kernel: str, spacing: tuple[float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of a sphere of 1 HU, its centre ``phase`` voxels beside the box's middle voxel; and the
    weights of the fit: the same less its mean, 0 beyond the surroundings."""
    columns, rows, slices = spacing
    deep = int(np.ceil(diameter / 2 / slices)) + 1
    steps = (np.arange(_FINE) + 0.5) / _FINE - 0.5
    z, y, x = (
        (np.arange(-half, half + n)[:, None] + steps - shift).ravel() * size
        for half, n, shift, size in (
            (deep, 1, phase[0], slices),
            (_WINDOW // 2, 0, phase[1], rows),
            (_WINDOW // 2, 0, phase[2], columns),
        )
    )
    inside = (z[:, None, None] ** 2 + y[None, :, None] ** 2 + x[None, None] ** 2) <= (diameter / 2) ** 2
    shape = [len(z) // _FINE, _FINE, _WINDOW, _FINE, _WINDOW, _FINE]
    cover = inside.reshape(shape).mean((1, 3, 5))
    # The voxels' own share of the blur is part of the total MTF already.
    frequency = [np.fft.fftfreq(_WINDOW, size / 10.0) for size in (rows, columns)]
    pixel = np.sinc(frequency[0] * rows / 10.0)[:, None] * np.sinc(frequency[1] * columns / 10.0)
    gain = target_mtf(kernel, columns)(np.hypot(frequency[0][:, None], frequency[1])) / pixel
    seen = np.fft.ifft2(np.fft.fft2(cover) * gain).real
    half = int(np.ceil((diameter / 2 + _AROUND_MM) / min(rows, columns)))
    middle = slice(_WINDOW // 2 - half, _WINDOW // 2 + half + 1)
    signal = seen[:, middle, middle]
    far = np.hypot(
        *np.meshgrid(
            (np.arange(-half, half + 1) - phase[1]) * rows,
            (np.arange(-half, half + 1) - phase[2]) * columns,
            indexing="ij",
        )
    )
    near = np.broadcast_to(far <= diameter / 2 + _AROUND_MM, signal.shape)
    return signal, np.where(near, signal - signal[near].mean(), 0.0)


def _judged(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with their ``contrast``, ``kind`` (3 mm, 50 HU), and whether they count as ``seen``."""
    rows = rows[rows.value.notna()]
    kind = rows["item"].str.replace(r", \d+$", "", regex=True)
    return rows.assign(contrast=rows.truth, kind=kind, seen=rows.value >= THRESHOLD)


def _summary(rows: pd.DataFrame) -> Table:
    lines = []
    for (source, target, method), part in _judged(rows).groupby(["source", "target", "method"], sort=False):
        lesions, vacant = part[part.contrast > 0], part[part.contrast == 0]
        faint = part[part.contrast <= lesions.contrast.min()]
        lines.append(
            {
                "source": source,
                "target": target,
                "method": method,
                "contrast kept (%)": _kept(lesions, vacant),
                "response where vacant (HU)": mean_deviation(vacant.value, 1),
                "lost (%)": 100.0 * (1.0 - lesions.seen.mean()),
                "made up (%)": 100.0 * vacant.seen.mean(),
                "AUC, faintest": 100.0 * auroc(faint.value.to_numpy(), faint.contrast.to_numpy() > 0),
            }
        )
    judged = _judged(rows[rows.method == REFERENCE]).groupby("target").contrast
    first = judged.get_group(next(iter(judged.groups)))
    note = (
        f"{int((first > 0).sum())} lesions and {int((first == 0).sum())} vacant places (towards the medium kernel). "
        "Contrast kept: mean response less that of vacant places, over the contrast; below 100 %, lesions have faded. "
        "Vacant places: mean ± SD. AUC (%): how well the response tells the faintest lesions from vacant places, "
        "whatever the threshold."
    )
    return Table("lesions", "Contrast kept, lesions lost and made up", pd.DataFrame(lines), note, digits=1)


def _kept(lesions: pd.DataFrame, vacant: pd.DataFrame) -> float:
    """Contrast kept, percent."""
    return float(100.0 * ((lesions.value - vacant.value.mean()) / lesions.contrast).mean())


def _hardest(rows: pd.DataFrame) -> pd.DataFrame:
    """What :func:`_judged` says of the hardest source and, beside it, of the reference."""
    judged = _judged(rows[rows.target == "medium 100 %"])
    return judged[(judged.source == _HARDEST) | (judged.method == REFERENCE)]


def _by_kind(rows: pd.DataFrame) -> Table:
    """Contrast kept of each size and contrast."""
    judged, lines = _hardest(rows), []
    for method, part in judged.groupby("method", sort=False):
        vacant = part[part.contrast == 0]
        kinds = part[part.contrast > 0].groupby("kind", sort=False)
        lines.append({"method": method, **{kind: _kept(of, vacant) for kind, of in kinds}})
    title = f"Contrast kept (%), by size and contrast, from {_HARDEST}"
    return Table("lesions-kept", title, _in_order(pd.DataFrame(lines)), digits=0)


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Columns of sizes and contrasts by their numbers."""
    first, *kinds = frame.columns
    return frame[[first, *sorted(kinds, key=lambda kind: [float(part.split()[0]) for part in kind.split(", ")])]]


def _lost(rows: pd.DataFrame) -> Table:
    judged = _hardest(rows)
    judged = judged[judged.contrast > 0].assign(lost=100.0 * (1.0 - judged.seen))
    frame = judged.pivot_table(index="method", columns="kind", values="lost", sort=False).reset_index()
    title = f"Lesions lost (%), by size and contrast, from {_HARDEST}"
    return Table("lesions-lost", title, _in_order(frame), digits=0)


_HARDEST = "sharp 10 %"
