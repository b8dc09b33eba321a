"""Modulation transfer functions of reconstructed CT images, as a three-number family.

A kernel is described by the **total** presampled in-plane MTF of the image it makes (detector aperture,
interpolation and filter together): the frequencies of 50 % and 10 % modulation and, where the kernel
overshoots, the highest modulation. The family

    M(f) = (1 + c u^2) exp(-u^n),   u = f / w

has exactly these degrees of freedom: ``n`` sets the steepness (f10 / f50), ``c`` the overshoot, ``w`` the
scale. It is 1 at zero frequency, so every kernel keeps the mean HU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from CTHarmonizeLib.errors import InputError

NYQUIST_SHARE = 0.8
"""Largest f50, as a share of the pixel grid's Nyquist frequency, that an image on that grid can show."""

HIGHEST_PEAK = 2.0
"""Highest modulation that the family is used for."""

_ORDER_RANGE = (1.1, 12.0)

_DEEPEST_DIP = 0.005
"""How far an overshooting kernel may fall below 1 before it rises: a dip at low frequencies shifts the HU of water, and
of air around the patient, by many times as much."""


def default_f10_ratio(peak: float) -> float:
    """f10 / f50 of a typical kernel: smooth ones fall off slowly, overshooting ones steeply."""
    return 1.65 if peak <= 1.0 else max(1.30, 1.65 - 1.25 * (peak - 1.0))


@dataclass(frozen=True)
class Mtf:
    """Total in-plane MTF of an image.

    Parameters: ``f50`` (lp/cm) frequency of 50 % modulation beyond the peak; ``order`` and ``overshoot``, the
    shape (n, c) of the family above. Make one from what is usually known with :meth:`from_points`.
    """

    f50: float
    order: float = 2.0
    overshoot: float = 0.0

    @classmethod
    def from_points(cls, f50: float, f10: float | None = None, peak: float | None = None) -> Mtf:
        """MTF with the given f50 and f10 (lp/cm) and highest modulation ``peak`` (1 where there is no overshoot).

        A missing ``f10`` is a typical one for the peak. Raises InputError where the numbers contradict each
        other. An f10 outside the family's reach becomes the nearest that it can show.
        """
        peak = 1.0 if peak is None else float(peak)
        if not (np.isfinite(f50) and f50 > 0):
            raise InputError(f"An MTF needs a positive f50 in lp/cm, not {f50}.")
        if f10 is None:
            f10 = f50 * default_f10_ratio(peak)
        if not f10 > f50:
            raise InputError(f"The MTF's f10 ({f10:.2f} lp/cm) must lie above its f50 ({f50:.2f} lp/cm).")
        if not 1.0 <= peak <= HIGHEST_PEAK:
            raise InputError(f"The MTF's peak must lie between 1 and {HIGHEST_PEAK:g}, not {peak}.")
        order, overshoot = _shape(round(float(f10 / f50), 4), round(peak, 4))
        return cls(float(f50), order, overshoot)

    def __call__(self, frequency: np.ndarray) -> np.ndarray:
        """Modulation at ``frequency`` (lp/cm, any shape)."""
        u = np.abs(np.asarray(frequency, dtype=np.float64)) * (_half_point(self.order, self.overshoot, 0.5) / self.f50)
        return _family(u, self.order, self.overshoot)

    @property
    def f10(self) -> float:
        """Frequency of 10 % modulation, lp/cm."""
        return self.f50 * _half_point(self.order, self.overshoot, 0.1) / _half_point(self.order, self.overshoot, 0.5)

    @property
    def peak(self) -> float:
        """Highest modulation, 1 where the kernel does not overshoot."""
        return _peak(self.order, self.overshoot)[1]

    def limited_to(self, pixel_spacing: float) -> Mtf:
        """The same shape, f50 held below :data:`NYQUIST_SHARE` of the Nyquist frequency of pixels of that size (mm)."""
        return Mtf(min(self.f50, NYQUIST_SHARE * nyquist(pixel_spacing)), self.order, self.overshoot)


def nyquist(pixel_spacing: float) -> float:
    """Nyquist frequency in lp/cm of a grid of ``pixel_spacing`` mm."""
    return 5.0 / pixel_spacing


def _family(u: np.ndarray, order: float, overshoot: float) -> np.ndarray:
    return (1.0 + overshoot * u**2) * np.exp(-(u**order))


@lru_cache(maxsize=4096)
def _peak(order: float, overshoot: float) -> tuple[float, float]:
    """(u, M) of the highest modulation."""
    if overshoot <= 0.0:
        return 0.0, 1.0
    u = np.linspace(0.0, 3.0, 301)
    start = u[np.argmax(_family(u, order, overshoot))]
    found = minimize_scalar(
        lambda x: -_family(x, order, overshoot), bounds=(max(0.0, start - 0.02), start + 0.02), method="bounded"
    )
    return (float(found.x), float(-found.fun)) if -found.fun > 1.0 else (0.0, 1.0)


@lru_cache(maxsize=4096)
def _half_point(order: float, overshoot: float, level: float) -> float:
    """u beyond the peak at which the modulation has fallen to ``level``."""
    start, _ = _peak(order, overshoot)
    stop = start + 1.0
    while _family(stop, order, overshoot) > level:
        stop *= 1.5
    return float(brentq(lambda u: _family(u, order, overshoot) - level, start, stop))


def _overshoot_for(order: float, peak: float) -> float:
    if peak <= 1.0:
        return 0.0
    return float(brentq(lambda c: _peak(order, c)[1] - peak, 0.0, 20.0, xtol=1e-6))


@lru_cache(maxsize=4096)
def _lowest_order(peak: float) -> float:
    """Lowest order whose overshoot to ``peak`` does not begin with a dip."""

    def excess(order: float) -> float:
        overshoot = _overshoot_for(order, peak)
        u = np.linspace(0.0, _peak(order, overshoot)[0], 64)
        return 1.0 - _DEEPEST_DIP - float(_family(u, order, overshoot).min())

    low = _ORDER_RANGE[0]
    return float(brentq(excess, low, 2.0, xtol=1e-4)) if peak > 1.0 and excess(low) > 0.0 else low


@lru_cache(maxsize=4096)
def _shape(ratio: float, peak: float) -> tuple[float, float]:
    """(order, overshoot) that give f10 / f50 = ``ratio`` and the highest modulation ``peak``."""

    def excess(order: float) -> float:
        c = _overshoot_for(order, peak)
        return _half_point(order, c, 0.1) / _half_point(order, c, 0.5) - ratio

    low, high = _lowest_order(peak), _ORDER_RANGE[1]
    if excess(low) <= 0.0:
        order = low
    elif excess(high) >= 0.0:
        order = high
    else:
        order = float(brentq(excess, low, high, xtol=1e-5))
    return order, _overshoot_for(order, peak)


NAMED_KERNELS: dict[str, Mtf] = {
    "smooth": Mtf.from_points(2.8, 2.8 * 1.75),
    "medium": Mtf.from_points(4.0, 4.0 * 1.65),
    "sharp": Mtf.from_points(6.0, 6.0 * 1.40, peak=1.15),
}
"""Total MTF of the named kernels. On a coarse grid use ``limited_to``: f50 stays below 0.8 of Nyquist."""
