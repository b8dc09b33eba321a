"""``ctharmonize-train detector``: the nodule detector, trained on simulated chests."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.harmonization import check_output_folder
from CTHarmonizeLib.report import as_json
from CTHarmonizeLib.version import __version__
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.evidence.detection.detect import (
    CARD,
    WEIGHTS,
    Candidates2D,
    Detector,
    joined,
    new_network,
    windowed,
)
from CTHarmonizeTraining.evidence.detection.patches import (
    CHANNEL_STEP,
    CHANNELS,
    DIAMETERS,
    DOSE,
    KERNEL,
    PIXEL,
    Anatomy,
    Slab,
    anatomy,
    kept,
    patch,
    slab,
)
from CTHarmonizeTraining.evidence.detection.scores import (
    RATES,
    Counts,
    Outcome,
    Points,
    auc,
    average_precision,
    best_threshold,
    bootstrap,
    cpm,
    match,
    sensitivity_at,
)
from CTHarmonizeTraining.files import write_whole

WINDOW = (-1000.0, 300.0)
"""HU that the network sees as 0 and 1."""

TRAINING_SEEDS, VALIDATION_SEEDS = 8001, 8101
"""The first of the phantoms; what is tested on begins at 9000."""

_SIDE = 128  # pixels of a patch
_WARMING = 0.05  # share of the iterations in which the learning rate rises
_KEPT_EVERY = 200  # iterations


def train_detector(
    output: Path,
    iterations: int = 1400,
    batch: int = 12,
    phantoms: int = 20,
    validation_phantoms: int = 6,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> None:
    """Train the nodule detector on simulated chests: a folder for 'evaluate', with what it finds in others.

    Half an hour on one processor core with the defaults. Given the same output again, it goes on where it ended.

    Args:
        output: folder for detector.json and detector.safetensors, and in 'kept' what need not be made again.
        iterations: of the optimizer (Adam; the learning rate rises, then falls as a cosine).
        batch: patches in an iteration, drawn anew each time.
        phantoms: chests to learn from, with the seeds 8001 and on.
        validation_phantoms: chests that the detector is judged on, with the seeds 8101 and on.
        learning_rate: the highest.
        seed: of weights and patches.
    """
    if iterations < 1 or batch < 1 or not (1 <= phantoms <= 100 and 1 <= validation_phantoms <= 100):
        raise InputError("Give one iteration, one patch and one to a hundred phantoms of each kind or more.")
    output = check_output_folder(output)
    new_network(CHANNELS)  # before chests are drawn for minutes: can it be?
    anatomies = []
    for number in range(phantoms):
        say(f"drawing chest {number + 1} of {phantoms}")
        one = TRAINING_SEEDS + number
        anatomies.append(kept(Anatomy, output / "kept" / f"anatomy-{one}.npz", lambda one=one: anatomy(one)))
    network, course = fitted(anatomies, iterations, batch, learning_rate, seed, output / "kept" / "training.pt")
    weights = save({name: _half(tensor).contiguous() for name, tensor in network.network.state_dict().items()})
    card = {
        "name": "nodule-retinanet",
        "version": __version__,
        "about": "2D RetinaNet for lung nodules, trained on simulated chests alone: to judge harmonization by, "
        "research use only",
        "licence": "Apache-2.0",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "channels": CHANNELS,
        "channel_step": CHANNEL_STEP,
        "pixel_spacing": PIXEL,
        "window": WINDOW,
        "training": {
            "phantoms": [TRAINING_SEEDS, TRAINING_SEEDS + phantoms - 1],
            "kernel": KERNEL,
            "dose": DOSE,
            "noise": "of simulated scans, times 0.8 to 1.25",
            "nodules_mm": DIAMETERS,
            "patch": _SIDE,
            "batch": batch,
            "iterations": iterations,
            "learning_rate": learning_rate,
            "seed": seed,
            "loss": course,
        },
        "threshold": 0.5,
    }
    write_whole(output / CARD, as_json(card, indent=1))
    write_whole(output / WEIGHTS, weights)
    slabs = []
    for number in range(validation_phantoms):
        say(f"scanning slab {number + 1} of {validation_phantoms}")
        one = VALIDATION_SEEDS + number
        slabs.append(kept(Slab, output / "kept" / f"slab-{one}.npz", lambda one=one: slab(one)))
    found = judged(Detector.load(output), slabs)
    card["validation"] = {"phantoms": [VALIDATION_SEEDS, VALIDATION_SEEDS + validation_phantoms - 1], **found}
    card["threshold"] = found["threshold"]
    write_whole(output / CARD, as_json(card, indent=1))
    say(json.dumps(found, indent=1))
    say(f"The detector is in '{output}'.")


def fitted(
    anatomies: Sequence[Anatomy], iterations: int, batch: int, learning_rate: float, seed: int, checkpoint: Path | None
) -> tuple[torch.nn.Module, list[float]]:
    """The trained detector, and its mean loss over every twentieth of the iterations.

    Patches and sampling depend on ``seed`` and the iteration alone, so that a training that goes on from
    ``checkpoint`` becomes what it would have been. Raises CannotRunError without MONAI.
    """
    torch.manual_seed(seed)
    detector = new_network(CHANNELS).train()
    from CTHarmonizeTraining.evidence.detection.network import losses

    optimizer = torch.optim.Adam(detector.parameters(), learning_rate)
    plan = [iterations, batch, len(anatomies), learning_rate, seed]
    course = _resumed(checkpoint, plan, detector, optimizer)
    for iteration in range(len(course), iterations):
        rng = np.random.default_rng((seed, iteration))
        torch.manual_seed(int(rng.integers(2**62)))
        drawn = [patch(anatomies[rng.integers(len(anatomies))], _SIDE, rng) for _ in range(batch)]
        images = windowed(torch.from_numpy(np.stack([image for image, _ in drawn])), WINDOW)
        loss = losses(detector, images, [torch.from_numpy(boxes) for _, boxes in drawn])
        optimizer.param_groups[0]["lr"] = learning_rate * _share(iteration / iterations)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        course.append(loss.item())
        if len(course) % _KEPT_EVERY == 0:
            say(f"iteration {len(course)} of {iterations}: loss {np.mean(course[-_KEPT_EVERY:]):.3f}")
            if checkpoint is not None:
                state = {"detector": detector.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                aside = checkpoint.with_name(f".{checkpoint.name}")
                torch.save({"plan": plan, "course": course, **state}, aside)
                aside.replace(checkpoint)
    parts = np.array_split(course, min(20, iterations))
    return detector.eval(), [round(float(part.mean()), 4) for part in parts]


def judged(detector: Detector, slabs: Sequence[Slab]) -> dict:
    """What ``detector`` finds in ``slabs``, as plain values: AP@0.5 of its boxes; of its candidates the threshold of
    the best F1, scores there, AUC, sensitivity against false positives a slab, and CPM."""
    seen = [detector.boxes(one.hu, one.spacing, one.lung) for one in slabs]
    scans = [outcome(boxes, one) for boxes, one in zip(seen, slabs, strict=True)]
    threshold = best_threshold(scans)
    counts = Counts.of(scans, threshold)
    value, mean, low, high = bootstrap(cpm, scans)
    flat = [one for boxes in seen for one in boxes]
    return {
        "slabs": len(slabs),
        "slab_mm": len(slabs[0].hu) * slabs[0].spacing[2],
        "nodules": int(sum(len(one.nodules) for one in slabs)),
        "boxes_ap50": average_precision(
            [one.boxes for one in flat], [one.scores for one in flat], [one for whole in slabs for one in whole.boxes()]
        ),
        "threshold": threshold,
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "auc": auc(scans),
        "false_positives_a_slab": RATES,
        "sensitivity": sensitivity_at(scans).tolist(),
        "cpm": {"value": float(value), "mean": float(mean), "low": float(low), "high": float(high)},
    }


def outcome(boxes: list[Candidates2D], scanned: Slab) -> Outcome:
    """What the ``boxes`` of each slice make of a slab's nodules."""
    table = joined(boxes, scanned.spacing, scanned.lung)
    mm = np.array(scanned.spacing[::-1])
    nodules = Points.of(scanned.nodules[:, :3] * mm, scanned.nodules[:, 3])
    return match(table[["slice", "row", "column"]].to_numpy() * mm, table["probability"].to_numpy(), nodules)[0]


def _share(progress: float) -> float:
    """Of the highest learning rate."""
    if progress < _WARMING:
        return (progress + 0.1 * _WARMING) / (1.1 * _WARMING)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - _WARMING) / (1.0 - _WARMING)))


def _resumed(
    checkpoint: Path | None, plan: list, detector: torch.nn.Module, optimizer: torch.optim.Adam
) -> list[float]:
    """Losses of the iterations that ``checkpoint`` has behind it, whose state is taken; none for another plan's."""
    if checkpoint is None or not checkpoint.exists():
        return []
    state = torch.load(checkpoint, weights_only=True)
    if state["plan"] != plan:
        return []
    detector.load_state_dict(state["detector"])
    optimizer.load_state_dict(state["optimizer"])
    return state["course"]


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor
