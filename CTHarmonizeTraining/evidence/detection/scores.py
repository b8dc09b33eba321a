"""How well nodules are found: LUNA16's rules (Setio et al., Med. Image Anal. 42, 2017), and CTFlow's F1.

A *scan* is whatever false positives are counted per: of LUNA16 a whole chest, of this project's cases a slab.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which the competition performance metric (CPM) averages sensitivity."""

LEAST_DIAMETER = 3.0
"""mm; smaller nodules are neither asked for nor false, as in LUNA16."""

_NAN = float("nan")


@dataclass(frozen=True)
class Outcome:
    """What was found in one scan: the ``hits`` (nodules,) are the probabilities of the nodules, 0 of those that were
    missed; ``false`` (n,) those of the candidates that are none."""

    hits: np.ndarray
    false: np.ndarray


@dataclass(frozen=True)
class Points:
    """Places (n, 3) and diameters (n,), mm, in any one frame."""

    centres: np.ndarray
    diameters: np.ndarray

    @classmethod
    def of(cls, centres: Sequence[Sequence[float]] | np.ndarray, diameters: Sequence[float] | np.ndarray) -> Points:
        """From what is an array, or becomes one."""
        return cls(np.asarray(centres, np.float64).reshape(-1, 3), np.asarray(diameters, np.float64).reshape(-1))

    def holding(self, places: np.ndarray) -> np.ndarray:
        """Index of the one in whose radius each of ``places`` (m, 3) lies, relatively nearest; -1 where none."""
        if not len(self.diameters):
            return np.full(len(places), -1)
        distance = np.linalg.norm(places[:, None] - self.centres, axis=2) / (self.diameters / 2.0)
        nearest = distance.argmin(1)
        return np.where(distance.min(1) <= 1.0, nearest, -1)


NOTHING = Points.of([], [])


def match(
    candidates: np.ndarray, probabilities: np.ndarray, nodules: Points, excluded: Points = NOTHING
) -> tuple[Outcome, np.ndarray]:
    """The outcome of a scan, and for every candidate the nodule that it hits, -1 where it is false, -2 where it does
    not count.

    ``candidates`` (n, 3) mm in the frame of ``nodules``. A candidate within a nodule's radius hits it; of several the
    most probable counts, the others are neither hits nor false; so are those in ``excluded`` findings and in nodules
    smaller than :data:`LEAST_DIAMETER`, which are not asked for and so not among the outcome's.
    """
    candidates = np.asarray(candidates, np.float64).reshape(-1, 3)
    probabilities = np.asarray(probabilities, np.float64).reshape(-1)
    small = nodules.diameters < LEAST_DIAMETER
    hit, hits = nodules.holding(candidates), np.zeros(len(small))
    for number in range(len(small)):
        found = np.flatnonzero(hit == number)
        if len(found):
            best = found[probabilities[found].argmax()]
            hits[number] = probabilities[best]
            hit[found] = -2
            hit[best] = -2 if small[number] else number
    hit[(hit == -1) & (excluded.holding(candidates) >= 0)] = -2
    return Outcome(hits[~small], probabilities[hit == -1]), hit


@dataclass(frozen=True)
class Counts:
    """Hits, false candidates and missed nodules."""

    hits: int
    false: int
    missed: int

    @classmethod
    def of(cls, scans: Sequence[Outcome], threshold: float) -> Counts:
        """Of all ``scans`` together, of candidates of that probability or more."""
        hits, false = _pooled(scans)
        found = int(((hits > 0) & (hits >= threshold)).sum())
        return cls(found, int((false >= threshold).sum()), len(hits) - found)

    @property
    def precision(self) -> float:
        """Share of candidates that are nodules; NaN without candidates."""
        return _share(self.hits, self.hits + self.false)

    @property
    def recall(self) -> float:
        """Share of nodules that were found; NaN without nodules."""
        return _share(self.hits, self.hits + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of the two; NaN where there is nothing and nothing was found."""
        return _share(2 * self.hits, 2 * self.hits + self.false + self.missed)


def auc(scans: Sequence[Outcome]) -> float:
    """Probability that a hit is more probable than a false candidate (area under the ROC curve of the candidates, Mann
    and Whitney's U); what was missed does not count. NaN without either."""
    hits, false = _pooled(scans)
    hits = hits[hits > 0]
    if not len(hits) or not len(false):
        return _NAN
    ranks = stats.rankdata(np.concatenate((hits, false)))[: len(hits)].sum()
    return float((ranks - len(hits) * (len(hits) + 1) / 2) / (len(hits) * len(false)))


def froc(scans: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """False positives a scan and sensitivity at every threshold, falling from none found; without nodules NaN."""
    hits, false = _pooled(scans)
    threshold = np.unique(np.concatenate((hits[hits > 0], false)))[::-1]

    def above(values: np.ndarray) -> np.ndarray:
        return len(values) - np.searchsorted(np.sort(values), threshold)

    sensitivity = above(hits) / len(hits) if len(hits) else np.full(len(threshold), _NAN)
    start = 0.0 if len(hits) else _NAN
    return np.append(0.0, above(false) / max(len(scans), 1)), np.append(start, sensitivity)


def sensitivity_at(scans: Sequence[Outcome], rates: Sequence[float] | np.ndarray = RATES) -> np.ndarray:
    """Sensitivity at ``rates`` of false positives a scan, linear between the thresholds, as LUNA16 does; beyond the
    last threshold its."""
    false, sensitivity = froc(scans)
    return np.interp(rates, false, sensitivity)  # of several thresholds of one rate the highest sensitivity


def cpm(scans: Sequence[Outcome]) -> float:
    """Competition performance metric: mean sensitivity at :data:`RATES`."""
    return float(sensitivity_at(scans).mean())


def bootstrap(
    statistic: Callable[[Sequence[Outcome]], np.ndarray | float],
    scans: Sequence[Outcome],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of ``statistic``, a number or numbers: its value, and the mean and the limits of 95 % over resampled scans; where
    it is not known (NaN) a resample does not count."""
    if len(scans) < 2:  # one scan says nothing of others
        value = np.asarray(statistic(scans), np.float64)
        return value, value, *(np.full_like(value, _NAN) for _ in range(2))
    drawn = np.random.default_rng(seed).integers(0, len(scans), (resamples, len(scans)))
    values = np.array([statistic([scans[k] for k in chosen]) for chosen in drawn], np.float64)
    value = np.asarray(statistic(scans), np.float64)
    lost = np.isnan(values).all(0)
    values = np.where(lost, 0.0, values)
    found = (np.nanmean(values, 0), *np.nanpercentile(values, (2.5, 97.5), axis=0))
    return value, *(np.where(lost, _NAN, one) for one in found)


def best_threshold(scans: Sequence[Outcome]) -> float:
    """The probability from which on F1 over all ``scans`` is highest: half way down to the next candidate's, so that a
    little less certainty elsewhere changes nothing; 1 where nothing was found."""
    hits, false = _pooled(scans)
    found = np.unique(np.concatenate((hits[hits > 0], false)))
    if not len(found):
        return 1.0
    best = int(np.argmax([Counts.of(scans, threshold).f1 for threshold in found]))
    return float((found[best] + (found[best - 1] if best else 0.0)) / 2)


def average_precision(
    found: Sequence[np.ndarray], scores: Sequence[np.ndarray], true: Sequence[np.ndarray], overlap: float = 0.5
) -> float:
    """Area under precision over recall of boxes (n, 4: row, column from, row, column to), image by image.

    A box is right where its intersection over union with a true one that no better box has taken is ``overlap`` or
    more (Everingham et al., IJCV 2010, with all recalls, as CTFlow's AP@0.5). NaN without true boxes.
    """
    right, all_scores = [], []
    for boxes, score, truth in zip(found, scores, true, strict=True):
        order = np.argsort(-score, kind="stable")
        free = np.ones(len(truth), bool)
        for box in boxes[order]:
            shared = _overlaps(box, truth) * free if len(truth) else np.zeros(1)
            best = shared.argmax()
            right.append(shared[best] >= overlap)
            if right[-1]:
                free[best] = False
        all_scores.append(score[order])
    wanted = sum(len(truth) for truth in true)
    if not wanted:
        return _NAN
    order = np.argsort(-np.concatenate(all_scores), kind="stable")
    right = np.array(right, bool)[order]
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(envelope[right].sum() / wanted)


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with ``others`` (n, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(sides, 0.0, None).prod(1)
    return shared / (np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(1) - shared)


def _pooled(scans: Sequence[Outcome]) -> tuple[np.ndarray, np.ndarray]:
    """Hits and false candidates of all ``scans``."""
    return tuple(np.concatenate([np.zeros(0), *(getattr(s, name) for s in scans)]) for name in ("hits", "false"))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else _NAN
