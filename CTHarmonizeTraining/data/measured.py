"""Training pairs: random crops of measured reconstructions of the same slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.conditioning import acquisition_vector, source_planes
from CTHarmonizeTraining.data.pairs import FILTER_MARGIN, Turn, item_key, weights_of
from CTHarmonizeTraining.data.patient import BLOCK, MatchedSet, PatientStore

BODY_SHARE = 0.8
"""Least share of body in a crop, as CTFlow was trained (Wei et al. 2023)."""

FULL_DOSE = 0.8
"""Share of a set's highest dose from which a reconstruction counts as full dose: noise tells dose only so well."""

LOWEST_HU = -1024.0
"""Padding outside the field of view counts as air."""


class MeasuredPairs(Dataset):
    """Endless pairs of measured crops; item ``i`` is always the same for the same seed and stores.

    An item has ``planes`` (p, size, size) and ``target`` (1, size, size) in HU, or of ``depth`` neighbouring slices, if
    more than one, (p, depth, size, size) and (1, depth, size, size); ``acquisition``, the conditions, and
    ``draw``, as :class:`~CTHarmonizeTraining.data.pairs.PairDataset` has. It has no ``clean``: nobody knows a patient
    without noise, so the configuration's ``truth`` is ``target``. Source and target are two reconstructions of one set;
    ``series`` (source, target), patterns such as ``("low*", "full*")``, limits them by name. ``full_dose_share`` of
    the pairs have a target at the set's full dose and a source at less, the others any dose. ``weights`` says by name
    how often a store is drawn; the others count the slices at which a crop that lies in the body begins.
    ``body_share``: least share of body in a crop, :data:`BODY_SHARE` where None.

    With ``observations`` an item has ``observation`` too, (1, views, beams), the measurements behind a whole slice; the
    crop is that slice.

    With ``averaged_slices`` above 1 the source's slices are thick, means of so many: ``planes`` are (p, depth, size,
    size) and ``target`` is (1, depth * averaged_slices, size, size).
    """

    def __init__(
        self,
        stores: Sequence[str | Path],
        length: int,
        size: int = 64,
        planes: int = 2,
        seed: int = 0,
        weights: Mapping[str, float] | None = None,
        series: tuple[str, str] = ("*", "*"),
        full_dose_share: float = 0.6,
        depth: int = 1,
        averaged_slices: int = 1,
        body_share: float | None = None,
        observations: bool = False,
    ) -> None:
        if depth < 1 or averaged_slices < 1:
            raise InputError(f"A crop needs a slice or more, not {min(depth, averaged_slices)}.")
        self.length, self.size, self.planes, self.seed = length, size, planes, seed
        self.observations = observations
        self.full_dose_share, self.depth, self.averaged = full_dose_share, depth, averaged_slices
        slices = depth * averaged_slices
        self.margin = FILTER_MARGIN if planes > 1 else 0
        share_of_body = BODY_SHARE if body_share is None else body_share
        self.sources: list[_Source] = []
        share: list[float] = []
        opened = [PatientStore(path) for path in stores]
        given = weights_of([store.path for store in opened], weights)
        for store in opened:
            found = [_Source(entry, size, slices, series, share_of_body, self.margin) for entry in store.sets]
            sources = [source for source in found if source.usable]
            counts = np.array([len(source.slices) for source in sources], dtype=float)
            weight = given.get(store.path.stem)
            share.extend(counts if weight is None else weight * counts / max(counts.sum(), 1.0))
            self.sources.extend(sources)
        if not sum(share):
            raise InputError(
                f"No pair of '{series[0]}' and '{series[1]}' with a crop of {slices} x {size} x {size} voxels inside "
                f"the body was found in {len(opened)} stores."
            )
        self.share = np.array(share) / sum(share)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        drawn = self.sources[rng.choice(len(self.sources), p=self.share)]
        pairs = drawn.upward if rng.random() < self.full_dose_share else drawn.pairs
        source, target = pairs[rng.integers(len(pairs))]
        number, row, column = drawn.place(rng)
        size, margin = self.size, self.margin
        inside = slice(row - margin, row + size + margin), slice(column - margin, column + size + margin)
        window = slice(number, number + self.depth * self.averaged), *inside
        # (slices, rows, columns), HU
        seen, wanted = (
            as_seen(drawn.set.hu[(which, *window)])
            for which in (source, target)
        )
        told = [drawn.set.reconstructions[which].acquisition for which in (source, target)]
        if self.averaged > 1:
            seen = seen.unflatten(0, (-1, self.averaged)).mean(1).round()
            told[0] = averaged(told[0], self.averaged)
        inner = (..., slice(margin, margin + size), slice(margin, margin + size))
        turned = Turn.drawn(rng)
        planes, target = source_planes(seen, *told, self.planes).transpose(0, 1), wanted[None]
        if len(wanted) == 1:
            planes, target = planes[:, 0], target[:, 0]
        item = {
            "planes": turned(planes[inner]),
            "target": turned(target[inner]),
            "acquisition": torch.tensor(acquisition_vector(*told)),
            "draw": item_key(self.seed, index),
        }
        if self.observations:
            item["observation"] = turned.lines(torch.from_numpy(drawn.set.observation[number])[None])
        return item


def as_seen(hu: np.ndarray) -> Tensor:
    """Stored HU as networks see them, float32: nothing below air."""
    return torch.from_numpy(np.maximum(hu, LOWEST_HU).astype(np.float32))


def averaged(acquisition: Acquisition, count: int) -> Acquisition:
    """Of slices that are means of ``count`` neighbouring ones: as many times as thick, with as many times the
    photons."""
    thickness, noise = count * acquisition.slice_thickness, acquisition.noise / count**0.5
    return replace(acquisition, slice_thickness=thickness, noise=noise)


class _Source:
    """A matched set, the (source, target) pairs that may be drawn from it, and its ``slices`` at which there is
    room for a crop."""

    def __init__(
        self, entry: MatchedSet, size: int, depth: int, series: tuple[str, str], body_share: float, margin: int
    ) -> None:
        self.set = entry
        names = [reconstruction.name for reconstruction in entry.reconstructions]
        dose = np.array([reconstruction.dose for reconstruction in entry.reconstructions])
        self.pairs = [
            (source, target)
            for source in range(len(names))
            for target in range(len(names))
            if source != target and fnmatch(names[source], series[0]) and fnmatch(names[target], series[1])
        ]
        full = dose >= FULL_DOSE * dose.max()
        self.upward = [pair for pair in self.pairs if full[pair[1]] and not full[pair[0]]] or self.pairs
        if (size, size) == entry.hu.shape[2:] and not body_share and not margin:  # whole slices, of any size
            self.windows = np.ones((entry.hu.shape[1] - depth + 1, 1, 1), bool)
        else:
            self.windows = entry.body_windows(size, body_share, margin, depth)
        self.slices = np.flatnonzero(self.windows.any((1, 2)))
        self.usable = bool(self.pairs) and len(self.slices) > 0

    def place(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """First slice, row and column of a crop."""
        number = int(rng.choice(self.slices))
        rows, columns = np.nonzero(self.windows[number])
        at = rng.integers(len(rows))
        return number, BLOCK * int(rows[at]), BLOCK * int(columns[at])
