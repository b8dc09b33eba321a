"""How well a small lesion could be seen: noise, sharpness, and the detectability index of both (Zarei et al. 2024,
Eq. 9)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import j1

from CTHarmonizeLib.ct import measure as ct_measure
from CTHarmonizeLib.ct.acquisition import target_mtf
from CTHarmonizeLib.ct.measure import NoiseSpectrum, measure_noise
from CTHarmonizeTraining.evaluation import measures
from CTHarmonizeTraining.evaluation.measures import SystemMtf, system_mtf
from CTHarmonizeTraining.evidence.cases import Case
from CTHarmonizeTraining.evidence.cells import NOTHING, mean_deviation, methods_of
from CTHarmonizeTraining.evidence.plots import boxes
from CTHarmonizeTraining.evidence.study import REFERENCE, Finding, Image, Picture, Section, Table, towards_first

_POINTS = 2000
_SURE = 2.0  # standard errors from zero, from where on a modulation counts


@dataclass(frozen=True)
class Task:
    """A lesion to be told from its background: a disc (a sphere's middle slice) of ``diameter`` mm and ``contrast`` HU.
    Those of the paper are the default."""

    diameter: float = 4.0
    contrast: float = 100.0

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        """W, the disc's Fourier transform, HU mm^2 at ``frequency`` (cycles/mm): C R J1(2 pi R f) / f."""
        radius = self.diameter / 2.0
        f = np.maximum(np.asarray(frequency, np.float64), 1e-9)
        return self.contrast * radius * j1(2.0 * np.pi * radius * f) / f


@dataclass(frozen=True)
class Observer:
    """A reader ``distance`` mm from a monitor that shows the image ``zoom`` times as large as life, with internal noise
    ``alpha`` times the distance squared (HU^2 mm^2).

    The paper gives alpha (1e-8) but neither distance nor eye filter: here 500 mm at life size and the eye of Burgess
    (J Opt Soc Am A 1994), f^1.3 exp(-c f^2) with its peak of 1 at 4 cycles per degree.
    """

    distance: float = 500.0
    zoom: float = 1.0
    alpha: float = 1e-8

    def eye(self, frequency: np.ndarray) -> np.ndarray:
        """E at ``frequency`` (cycles/mm in the patient)."""
        peak = 4.0
        share = np.asarray(frequency, np.float64) / self.zoom * self.distance * np.pi / 180.0 / peak
        return share**1.3 * np.exp(0.65 * (1.0 - share**2))

    @property
    def internal_noise(self) -> float:
        """alpha D^2."""
        return self.alpha * self.distance**2


def detectability(
    mtf: Callable[[np.ndarray], np.ndarray],
    noise: NoiseSpectrum,
    task: Task | None = None,
    observer: Observer | None = None,
) -> float:
    """Detectability index d' of ``task`` for the Fisher ``observer`` with an eye filter, in an image of the ``mtf``
    (modulation at frequencies in lp/cm) and the ``noise``.

    d'^2 = integral of W^2 MTF^2 E^2 / (E^2 NPS + alpha D^2) over all frequencies up to the spectrum's last: the
    right side of the paper's Eq. 9, which prints d' for what in the works that it draws on (Richard and Siewerdsen,
    Med Phys 2008) is d'^2. White noise, a perfect MTF and no internal noise give the disc's energy over the noise.
    """
    task, observer = task or Task(), observer or Observer()
    spacing = np.diff(noise.frequency).min() if len(noise.frequency) > 1 else 0.0
    lp_cm = np.linspace(0.0, noise.frequency[-1] + spacing / 2.0, _POINTS + 1)
    lp_cm = (lp_cm[1:] + lp_cm[:-1]) / 2.0
    f = lp_cm / 10.0
    eye = observer.eye(f) ** 2
    power = np.interp(lp_cm, noise.frequency, noise.power)
    signal = (task(f) * mtf(lp_cm)) ** 2 * eye
    return float(np.sqrt((2.0 * np.pi * f * signal / (eye * power + observer.internal_noise)).sum() * (f[1] - f[0])))


def measured_modulation(found: SystemMtf) -> Callable[[np.ndarray], np.ndarray]:
    """A measured MTF as a function of frequency (lp/cm): as it is up to the first ring that is not surely above zero,
    nothing from there on, where dividing by little noise would make detail of what is none."""
    unsure = np.flatnonzero(~(found.modulation > _SURE * found.error))
    last = unsure[0] if len(unsure) else len(found.frequency)
    frequency, modulation = found.frequency[:last], found.modulation[:last]
    if not last:
        return np.zeros_like
    return lambda lp_cm: np.interp(lp_cm, frequency, modulation, right=0.0)


SIGMA, MEAN_FREQUENCY, PEAK_FREQUENCY, F50, INDEX = (
    "noise, HU",
    "mean frequency of the noise, lp/cm",
    "peak frequency of the noise, lp/cm",
    "f50, lp/cm",
    "d'",
)
"""Measures of :class:`DetectabilityStudy`."""

_DIGITS = {SIGMA: 1, MEAN_FREQUENCY: 2, PEAK_FREQUENCY: 2, F50: 2, INDEX: 1}


class DetectabilityStudy:
    """Noise in water-like tissue, the MTF against the case's noise-free image of the sharpest kernel, and the index of
    both, of the image as a whole."""

    name = "detectability"
    sampled = False
    measured_by = (ct_measure, measures)

    def measure(self, case: Case, image: Image) -> list[Finding]:
        """All measures; NaN where there is too little tissue or the MTF reaches beyond what the case can show."""
        pixel = case.spacing[0]
        measured = measure_noise(image.hu, pixel)
        noise = measured and measured.spectrum
        if case.clean:
            known = {name: target_mtf(name, pixel) for name in case.clean}
            sharpest = max(known, key=lambda name: known[name].f50)
            mtf = system_mtf(image.hu, case.clean[sharpest], known[sharpest], pixel)
        else:
            mtf = None
        nan = float("nan")
        values = {name: nan for name in _DIGITS}
        if noise is not None:
            values |= {SIGMA: noise.sigma, MEAN_FREQUENCY: noise.mean_frequency, PEAK_FREQUENCY: noise.peak_frequency}
        if mtf is not None:
            f50 = mtf.f50()
            values[F50] = nan if f50 is None else f50
        if noise is not None and mtf is not None:
            values[INDEX] = detectability(measured_modulation(mtf), noise)
        return [Finding(name, value) for name, value in values.items()]

    def headline(self, rows: pd.DataFrame) -> pd.DataFrame:
        """How far noise and f50 are from the reference's, on average."""
        off = (rows["value"] - rows["reference"]).abs().groupby([rows["measure"], rows["method"]]).mean()
        return pd.DataFrame({"noise off by, HU": off.get(SIGMA), "f50 off by, lp/cm": off.get(F50)})

    def section(self, rows: pd.DataFrame) -> Section:
        """All measures by method, the index by method and source, and their distributions."""
        rows = towards_first(rows)
        parts = [_by_method(rows), _by_source(rows), _picture(rows)]
        task, observer = Task(), Observer()
        text = (
            f"The detectability index d' of a disc of {task.diameter:g} mm and {task.contrast:g} HU for a Fisher "
            f"observer with an eye filter (peak at 4 cycles per degree, {observer.distance:g} mm from an image of "
            f"life size, α = {observer.alpha:g}), from the noise power spectrum in water-like tissue and the MTF "
            "against the known anatomy, in which edges of air and bone count most. It holds for linear systems: a "
            "linear filter hardly changes it, and a method that smooths uniform tissue but keeps strong edges scores "
            "high although a faint lesion may be smoothed away with the noise. So it is an upper bound for such "
            f"methods. Of all sources that lead to {rows['target'].iloc[0]}."
        )
        return Section("Noise, sharpness and detectability", text, parts)


def _by_method(rows: pd.DataFrame) -> Table:
    lines = []
    for method in [*methods_of(rows), *([REFERENCE] if (rows["method"] == REFERENCE).any() else [])]:
        of = rows[rows["method"] == method]
        cells = {
            measure: mean_deviation(of.loc[of["measure"] == measure, "value"], digits)
            for measure, digits in _DIGITS.items()
        }
        lines.append({"method": method, **cells})
    return Table(
        "detectability",
        "Noise, sharpness and detectability by method",
        pd.DataFrame(lines),
        "Mean ± SD over cases and sources.",
    )


def _by_source(rows: pd.DataFrame) -> Table:
    of_index = rows[(rows["measure"] == INDEX) & (rows["method"] != REFERENCE)]
    cells = of_index.groupby(["method", "source"], sort=False)["value"].agg(lambda values: mean_deviation(values, 1))
    sources = list(dict.fromkeys(of_index["source"]))
    lines = [
        {"method": method, **{source: cells.get((method, source), NOTHING) for source in sources}}
        for method in methods_of(rows)
    ]
    return Table("detectability-sources", "Detectability d' by source", pd.DataFrame(lines), "Mean ± SD over cases.")


def _picture(rows: pd.DataFrame) -> Picture:
    named = [*methods_of(rows), REFERENCE]
    panels = {
        measure: {
            method: rows.loc[(rows["method"] == method) & (rows["measure"] == measure), "value"] for method in named
        }
        for measure in (SIGMA, F50, INDEX)
    }
    return Picture(
        "detectability",
        "Noise, f50 and d' over cases and sources",
        boxes(panels, ""),
        "Quartiles, whiskers to the last value within 1.5 times their distance (Zarei et al., figure 7).",
    )
