"""The shipped detector, or one that ``ctharmonize-train detector`` made: volume in, candidates out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import ndimage
from torch.nn import functional as F

from CTHarmonizeLib.errors import CannotRunError, InputError

CARD, WEIGHTS = "detector.json", "detector.safetensors"

SHIPPED = Path(__file__).parent / "embedded"

COLUMNS = ["slice", "row", "column", "diameter_mm", "probability"]

_TOLERANCE = 0.02  # of the pixel size: a grid so near is taken as it is
_AROUND = 16  # pixels around the lungs that the network sees
_LUNG_EDGE = 2.0  # mm that a candidate may lie outside the lungs
_REACH = 2.0  # mm: slices so near belong together at least
_ROUNDS = 6  # in which a ball finds its place


@dataclass(frozen=True)
class Candidates2D:
    """Boxes of one slice: ``boxes`` (n, 4), row and column from, row and column to, pixels' edges counted from 0;
    their ``scores`` (n,)."""

    boxes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Detector:
    """A trained network and its ``card``: what it was trained on, and the ``threshold`` of its best F1 there."""

    network: torch.nn.Module
    card: dict

    @classmethod
    def load(cls, folder: Path | None = None) -> Detector:
        """The detector in ``folder``, the shipped one where None. Raises InputError for a folder that is none, and
        CannotRunError without MONAI."""
        folder = Path(folder or SHIPPED)
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            content = (folder / WEIGHTS).read_bytes()
            digest, channels = card["weights_sha256"], card["channels"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"There is no detector in '{folder}': it needs {CARD} and {WEIGHTS}.") from error
        if hashlib.sha256(content).hexdigest() != digest:
            raise InputError(f"The weights in '{folder}' do not match their {CARD}: copy the folder again.")
        network = _network(channels)
        from safetensors.torch import load

        try:
            network.network.load_state_dict({name: tensor.float() for name, tensor in load(content).items()})
        except RuntimeError as error:
            raise InputError(f"The weights in '{folder}' are not those of this version's detector.") from error
        return cls(network.eval(), card)

    @property
    def threshold(self) -> float:
        """Probability from which on a candidate counts as found, in slices of about 1 mm (in thicker ones fewer agree
        on a candidate, so more that are none come so far)."""
        return float(self.card["threshold"])

    def detect(
        self, hu: np.ndarray, spacing: tuple[float, float, float], lung: np.ndarray | None = None
    ) -> pd.DataFrame:
        """Candidates in ``hu`` (slices, rows, columns), whose voxels have ``spacing`` (columns, rows, slices) mm.

        Columns: ``slice``, ``row``, ``column`` (fractions of voxels), ``diameter_mm``, ``probability``; most probable
        first. The network is surer than it is right, so probabilities rank, and mean what the ``threshold`` says of
        them. ``lung`` (same shape, bool): candidates elsewhere are left out.
        """
        if hu.ndim != 3 or (lung is not None and lung.shape != hu.shape):
            raise InputError("A detector needs a volume of slices, rows and columns, and a lung mask of its shape.")
        return joined(self.boxes(hu, spacing, lung), spacing, lung)

    @torch.inference_mode()
    def boxes(
        self, hu: np.ndarray, spacing: tuple[float, float, float], lung: np.ndarray | None = None
    ) -> list[Candidates2D]:
        """Boxes in every slice, in the volume's own pixels; arguments as :meth:`detect`'s."""
        box = _around(lung, hu.shape[1:])
        seen = torch.from_numpy(np.ascontiguousarray(hu[(slice(None), *box)], np.float32))
        pixel = self.card["pixel_spacing"]
        size = [
            count if abs(own / pixel - 1.0) < _TOLERANCE else max(1, round(count * own / pixel))
            for count, own in zip(seen.shape[1:], (spacing[1], spacing[0]), strict=True)
        ]
        scale = np.tile([count / new for count, new in zip(seen.shape[1:], size, strict=True)], 2)
        if list(seen.shape[1:]) != size:
            seen = F.interpolate(seen[:, None], size, mode="bilinear", antialias=True)[:, 0]
        unit = windowed(seen, self.card["window"])
        found, origin = [], np.array([box[0].start, box[1].start] * 2)
        for index in range(len(hu)):
            near = self.channels(index, len(hu), spacing[2])
            (one,) = self.network(unit[near][None])
            boxes = one["boxes"].numpy().astype(np.float64).reshape(-1, 4) * scale + origin
            found.append(Candidates2D(boxes, one["labels_scores"].numpy().astype(np.float64)))
        return found

    def channels(self, index: int, slices: int, thickness: float) -> np.ndarray:
        """Which slices the network sees for the slice ``index``: the nearest, the first and last again beyond."""
        count, step = self.card["channels"], self.card["channel_step"]
        away = np.rint((np.arange(count) - count // 2) * step / thickness).astype(int)
        return np.clip(index + away, 0, slices - 1)


def windowed(hu: torch.Tensor, window: tuple[float, float]) -> torch.Tensor:
    """``hu`` with the ``window`` (from, to) HU as 0 to 1, held there."""
    low, high = window
    return ((hu - low) / (high - low)).clamp(0.0, 1.0)


def joined(
    slices: list[Candidates2D], spacing: tuple[float, float, float], lung: np.ndarray | None = None
) -> pd.DataFrame:
    """Candidates, as :meth:`Detector.detect` gives them, from the boxes of each slice.

    The best box takes the boxes whose middle lies in a ball of its size, the ball moves to their middle, weighted with
    their scores, and grows with the largest of the well-scored ones, until it holds the same; and so on with what is
    left. The probability is the mean of the best scores over half the slices of the ball, so that what shows in one
    slice alone is less than a ball.
    """
    dx, dy, dz = spacing
    index = np.repeat(np.arange(len(slices)), [len(one.scores) for one in slices])
    boxes = np.concatenate([np.zeros((0, 4)), *(one.boxes for one in slices)])
    scores = np.concatenate([np.zeros(0), *(one.scores for one in slices)])
    middle = np.stack([index * dz, (boxes[:, 0] + boxes[:, 2]) / 2 * dy, (boxes[:, 1] + boxes[:, 3]) / 2 * dx], 1)
    width = np.sqrt((boxes[:, 2] - boxes[:, 0]) * dy * (boxes[:, 3] - boxes[:, 1]) * dx)
    near = _near_lung(lung, spacing)
    free, rows = np.ones(len(scores), bool), []
    for best in np.argsort(-scores, kind="stable"):
        if not free[best]:
            continue
        at, wide, own = middle[best], width[best], np.zeros(0)
        for _ in range(_ROUNDS):
            away, before = np.abs(middle - at), own
            own = free & (away[:, 0] <= max(wide / 2, _REACH, dz)) & (np.hypot(away[:, 1], away[:, 2]) <= wide / 2)
            own[best] = True
            if np.array_equal(own, before):
                break
            at = np.average(middle[own], axis=0, weights=scores[own])
            wide = width[own][scores[own] >= 0.5 * scores[best]].max()
        free &= ~own
        at = at / (dz, dy, dx) - (0.0, 0.5, 0.5)
        if near is not None and not near[tuple(np.clip(np.rint(at).astype(int), 0, np.array(near.shape) - 1))]:
            continue
        wanted = max(1, round(wide / dz / 2))
        shown = sorted((scores[own & (index == k)].max() for k in np.unique(index[own])), reverse=True)
        rows.append((*at, wide, sum(shown[:wanted]) / wanted))
    table = pd.DataFrame(np.array(rows, np.float64).reshape(-1, len(COLUMNS)), columns=COLUMNS)
    return table.sort_values("probability", ascending=False, kind="stable", ignore_index=True)


def _network(channels: int) -> torch.nn.Module:
    try:
        from CTHarmonizeTraining.evidence.detection.network import NoduleDetector
    except ImportError as error:
        raise CannotRunError("Nodule detection needs MONAI: pip install 'ctharmonize[evidence]'.") from error
    return NoduleDetector(channels)


def _around(lung: np.ndarray | None, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns that hold the lungs, all without a mask."""
    if lung is None or not lung.any():
        return slice(0, shape[0]), slice(0, shape[1])
    sides = []
    for axis, size in ((1, shape[0]), (2, shape[1])):
        seen = np.flatnonzero(lung.any(tuple({0, 1, 2} - {axis})))
        sides.append(slice(max(0, int(seen[0]) - _AROUND), min(size, int(seen[-1]) + 1 + _AROUND)))
    return sides[0], sides[1]


def _near_lung(lung: np.ndarray | None, spacing: tuple[float, float, float]) -> np.ndarray | None:
    if lung is None:
        return None
    reach = [ndimage.distance_transform_edt(~one, sampling=spacing[1::-1]) <= _LUNG_EDGE for one in lung]
    return np.stack([near if one.any() else one for near, one in zip(reach, lung, strict=True)])
