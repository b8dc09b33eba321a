"""The engine: a volume, a method and two acquisitions in; harmonized image, mean and deviation out.

Slices go through in slabs. A slab is prepared as whole padded slices, cut into tiles (mostly one), encoded once a
tile, and sampled as often as wanted into running statistics: never are all samples of a volume in memory. Nothing
here depends on how the work is divided but rounding in the last place, so the load is chosen by memory alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from CTHarmonizeLib.ct.acquisition import Acquisition
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.device import Load, is_out_of_memory, plan_load
from CTHarmonizeLib.errors import Cancelled, CannotRunError
from CTHarmonizeLib.latents import Latents
from CTHarmonizeLib.methods.base import Method
from CTHarmonizeLib.passthrough import SourceSlab, reach
from CTHarmonizeLib.statistics import PairStatistics, Spread
from CTHarmonizeLib.tiling import Tile, padded_size, tiles

REDRAWS = 3
"""How often implausible voxels are drawn again, each time at half the temperature, before the estimate is taken."""

_REDRAW_RADIUS = 16  # pixels around an implausible voxel whose latents are replaced
_ENCODING_SHARE = 4  # of progress, in samples
_SLAB_IN_CONTEXTS = 4  # slices of a slab for each that is computed again for the next one: half as much again at most
ORIENTATIONS = tuple((turns, flip) for flip in (False, True) for turns in range(4))
"""The eight turns (by 90 degrees) and flips of a square; the first leaves it as it is."""

_DEFAULT_LOAD = {"cpu": Load(1, 4), "cuda": Load(4, 16), "mps": Load(1, 4)}

Progress = Callable[[float], None]
Prepared = Callable[[tuple[int, bool]], Tensor]
"""What a method prepares of a slab's whole slices turned to one of :data:`ORIENTATIONS`, turned back."""


@dataclass(frozen=True)
class Settings:
    """How to draw.

    ``samples`` (1 for a deterministic method), ``temperature``, ``seed``; ``coherence`` (mm) between slices, 0: off;
    ``deviation_factor``: the card's calibration; ``roi``: what to compute, None: all. ``slab``, ``group``, ``tile``:
    slices and samples at once and pixels of a tile's side; None: chosen by memory. ``augment``: a deterministic
    method's deviation over the turns and flips of a slice (:data:`ORIENTATIONS`). ``keep_samples``: all of them, which
    takes the memory of so many volumes.
    """

    samples: int = 16
    temperature: float = 1.0
    seed: int = 0
    coherence: float = 0.0
    deviation_factor: float = 1.0
    roi: Roi | None = None
    slab: int | None = None
    group: int | None = None
    tile: int | None = None
    augment: bool = False
    keep_samples: bool = False


@dataclass
class Outcome:
    """Arrays (slices, rows, columns) of the region: ``harmonized`` and ``mean`` int16 HU, ``deviation`` float32 HU
    (None where a deterministic method is not augmented). A method that makes several slices of each source slice has
    them one after another.

    ``samples``: (n, slices, rows, columns) int16 HU where they were to be kept, the first of them ``harmonized``.
    ``redrawn``: voxels of samples that were implausible at first; ``replaced``: those that stayed so and became the
    estimate; ``drawn``: all voxels of all samples. ``load``: what was computed at once in the end.
    """

    harmonized: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray | None
    samples: np.ndarray | None = None
    redrawn: int = 0
    replaced: int = 0
    drawn: int = 0
    load: Load = field(default_factory=lambda: Load(1, 1))


def run(
    volume: Volume,
    method: Method,
    source: Acquisition,
    target: Acquisition,
    settings: Settings,
    progress: Progress = lambda fraction: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Harmonize ``volume`` from ``source`` to ``target``.

    ``progress`` is told the fraction done; ``cancelled`` is asked between groups of samples. Raises Cancelled, and
    CannotRunError where the memory does not suffice for the smallest load.
    """
    return _Run(volume, method, source, target, settings, progress, cancelled).outcome()


class _Run:
    def __init__(
        self,
        volume: Volume,
        method: Method,
        source: Acquisition,
        target: Acquisition,
        settings: Settings,
        progress: Progress,
        cancelled: Callable[[], bool],
    ) -> None:
        self.volume, self.method, self.source, self.target = volume, method, source, target
        self.settings, self.progress, self.cancelled = settings, progress, cancelled
        self.orientations = ORIENTATIONS[: len(ORIENTATIONS) if settings.augment and not method.stochastic else 1]
        self.samples = settings.samples if method.stochastic else len(self.orientations)
        self.roi = settings.roi or Roi.whole(volume.shape)
        self.roi.check_inside(volume.shape)
        self.padded = padded_size(*volume.shape[1:], method.multiple)
        self.anchor = None if method.anchor_mm is None else method.anchor_mm / volume.pixel_spacing
        self.factor = method.factor
        self.context = max(method.context, int(method.factor > 1))  # to interpolate, the neighbours are needed anyway
        self.margin = method.halo + (0 if self.anchor is None else reach(self.anchor))
        self.latents = Latents(
            settings.seed,
            method.latent_shapes(*self.padded) if method.stochastic else [],
            self.padded,
            settings.temperature,
            settings.coherence,
            volume.spacing[2],
        )

    def outcome(self) -> Outcome:
        shape = self.roi.shape
        made = (self.factor * shape[0], *shape[1:])
        spread = np.empty(made, np.float32) if self.method.stochastic or self.settings.augment else None
        result = Outcome(np.empty(made, np.int16), np.empty(made, np.int16), spread)
        if self.settings.keep_samples and self.method.stochastic:
            result.samples = np.empty((self.samples, *made), np.int16)
        settings, usual = self.settings, _DEFAULT_LOAD[self.method.device.type]
        slices = max(usual.slices, _SLAB_IN_CONTEXTS * self.context)
        asked = Load(settings.slab or slices, settings.group or usual.samples, settings.tile)
        load = plan_load(self.method, (shape[0], *self.padded), self.samples, self.margin, asked)
        done = 0
        with torch.inference_mode():
            self.method.survey(self.volume, self.source, self.target)
        while done < shape[0]:
            slab = range(done, min(done + load.slices, shape[0]))
            try:
                with torch.inference_mode():
                    redrawn, replaced = self._slab(slab, load, result)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                load = self._less(load)
                continue
            result.redrawn += redrawn
            result.replaced += replaced
            done = slab.stop
        result.drawn = self.samples * result.mean.size
        result.load = load
        return result

    def _less(self, load: Load) -> Load:
        if self.method.device.type == "cuda":
            torch.cuda.empty_cache()
        less = load.smaller(max(self.padded))
        if less is None:
            raise CannotRunError(
                "The memory does not suffice even for small parts of one slice: close other programs, or choose "
                "another device."
            )
        return less

    def _slab(self, slab: range, load: Load, result: Outcome) -> tuple[int, int]:
        """Fill ``result`` for the source slices ``slab`` of the region; voxels redrawn and replaced."""
        first = self.roi.slices[0]
        index = slice(first + slab.start, first + slab.stop)
        around = np.arange(index.start - self.context, index.stop + self.context)
        around = around.clip(0, self.volume.shape[0] - 1)  # beyond the volume's ends its last slice again
        whole = SourceSlab.from_hu(self.volume.hu[around], self.padded, self.method.window, self.method.device)
        seen, whole = whole.clean, whole.divided(self.factor, self.context)

        @cache  # all tiles are cut from the same planes
        def prepared(orientation: tuple[int, bool]) -> Tensor:
            turned = self.method.prepare(_turned(seen, orientation), self.source, self.target)
            return _turned_back(turned, orientation)

        core = slice(*self.roi.rows), slice(*self.roi.columns)
        parts = tiles(core, load.tile, self.margin, self.method.multiple, self.padded)
        redrawn = replaced = 0
        for number, tile in enumerate(parts):
            with self._share_of_progress(slab, number / len(parts), 1 / len(parts)) as step:
                first_sample, source = None, whole.crop(tile.region)
                if self.method.stochastic:
                    statistics = PairStatistics(whole.raw[(slice(None), *tile.core)])
                    outputs = self._samples(tile, prepared, source, index, load, step)
                else:
                    statistics = Spread()
                    outputs = self._estimates(tile, prepared, source, step)
                place = (slice(self.factor * slab.start, self.factor * slab.stop), *_within(tile.core, core))
                for drawn, (sample, again, gave_up) in enumerate(outputs):
                    first_sample = sample if first_sample is None else first_sample
                    if result.deviation is not None:
                        statistics.add(sample)
                    if result.samples is not None:
                        result.samples[(drawn, *place)] = _whole_hu(sample)
                    redrawn += again
                    replaced += gave_up
            result.harmonized[place] = _whole_hu(first_sample)
            result.mean[place] = _whole_hu(statistics.mean() if self.method.stochastic else first_sample)
            if result.deviation is not None:
                factor = self.settings.deviation_factor if self.method.stochastic else 1.0
                result.deviation[place] = (factor * statistics.deviation()).cpu().numpy()
        return redrawn, replaced

    def _estimates(
        self, tile: Tile, prepared: Prepared, source: SourceSlab, step: Callable[[float], None]
    ) -> Iterator[tuple[Tensor, int, int]]:
        """As :meth:`_samples`, of a deterministic method: its estimate, then, augmented, those of the turned and
        flipped slices, turned back."""
        inner, beyond = (slice(None), *tile.inner), self.factor * self.context
        for orientation in self.orientations:
            self._stop_if_cancelled()
            region = _turned(prepared(orientation)[(..., *tile.region)], orientation)
            state = self.method.encode(region, self.source, self.target)
            estimate = self.method.estimate(state)
            bad = self.method.implausible(estimate[None], state)[0]
            estimate, bad = (
                _turned_back(made, orientation)[beyond : len(made) - beyond] for made in (estimate, bad)
            )
            finished = source.finish(torch.where(bad, source.clean, estimate), self.anchor)[inner]
            count = int(bad[inner].sum())
            yield finished, count, count
            step(_ENCODING_SHARE / self.samples + 1)

    def _samples(
        self,
        tile: Tile,
        prepared: Prepared,
        source: SourceSlab,
        index: slice,
        load: Load,
        step: Callable[[float], None],
    ) -> Iterator[tuple[Tensor, int, int]]:
        """Finished samples (b, rows, columns) of the tile's core in order, with their voxels redrawn, replaced."""
        inner = (slice(None), *tile.inner)
        self._stop_if_cancelled()
        planes = prepared(self.orientations[0])
        state = self.method.encode(planes[(..., *tile.region)], self.source, self.target)
        step(_ENCODING_SHARE)
        for start in range(0, self.samples, load.samples):
            self._stop_if_cancelled()
            numbers = range(start, min(start + load.samples, self.samples))
            group, bad, hopeless = self._group(state, numbers, range(index.start, index.stop), tile, source)
            for output, again, gave_up in zip(group, bad, hopeless, strict=True):
                finished = source.finish(output, self.anchor)[inner]
                yield finished, int(again[inner].sum()), int(gave_up[inner].sum())
            step(len(numbers))

    def _group(
        self, state: Any, numbers: range, slices: range, tile: Tile, source: SourceSlab
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Raw samples (n, b, h, w) of the tile's region, and which voxels were redrawn and which replaced."""
        def draw(samples: list[int], attempt: int) -> list[Tensor]:
            drawn = [self.latents.draw(slices, sample, tile.region, attempt) for sample in samples]
            return [torch.from_numpy(np.stack(level)).to(self.method.device) for level in zip(*drawn, strict=True)]

        latents = draw(list(numbers), 0)
        group = self.method.sample(state, latents)
        bad = redrawn = self.method.implausible(group, state)
        for attempt in range(1, REDRAWS + 1):
            which = bad.flatten(1).any(1).nonzero().flatten().tolist()
            if not which:
                break
            near = F.max_pool2d(bad[which].float(), 2 * _REDRAW_RADIUS + 1, 1, _REDRAW_RADIUS)
            mixed = [
                torch.where(_at_level(near, old), new, old[which])
                for old, new in zip(latents, draw([numbers[i] for i in which], attempt), strict=True)
            ]
            again = self.method.sample(state, mixed)
            settled = bad[which] & ~self.method.implausible(again, state)
            group[which] = torch.where(settled, again, group[which])
            bad = bad.clone()
            bad[which] &= ~settled
        if bad.any():
            estimate = self.method.estimate(state)
            fallback = torch.where(self.method.implausible(estimate[None], state)[0], source.clean, estimate)
            group = torch.where(bad, fallback, group)
        return group, redrawn, bad

    def _stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise Cancelled

    @contextmanager
    def _share_of_progress(self, slab: range, start: float, share: float) -> Iterator[Callable[[float], None]]:
        """A function to call with the work done, in samples; it reports the fraction of the whole run."""
        total, done = self.samples + _ENCODING_SHARE, 0.0

        def step(work: float) -> None:
            nonlocal done
            done += work
            self.progress((slab.start + len(slab) * (start + share * done / total)) / self.roi.shape[0])

        yield step


def _within(part: tuple[slice, slice], box: tuple[slice, slice]) -> tuple[slice, slice]:
    """``part`` of rows and columns, counted from the first ones of ``box``."""
    return tuple(slice(one.start - of.start, one.stop - of.start) for one, of in zip(part, box, strict=True))


def _turned(images: Tensor, orientation: tuple[int, bool]) -> Tensor:
    """``images`` (..., rows, columns) turned, then flipped."""
    turns, flip = orientation
    turned = torch.rot90(images, turns, (-2, -1))
    return turned.flip(-1) if flip else turned


def _turned_back(images: Tensor, orientation: tuple[int, bool]) -> Tensor:
    """The inverse of :func:`_turned`."""
    turns, flip = orientation
    return torch.rot90(images.flip(-1) if flip else images, -turns, (-2, -1))


def _at_level(near: Tensor, latent: Tensor) -> Tensor:
    """A mask (n, b, h, w) of 0 and 1 at a latent's resolution: bool (n, b, 1, rows, columns)."""
    return F.adaptive_max_pool2d(near, latent.shape[-2:])[:, :, None] > 0


def _whole_hu(hu: Tensor) -> np.ndarray:
    """Rounded int16."""
    return np.clip(np.rint(hu.cpu().numpy()), -32768, 32767).astype(np.int16)
