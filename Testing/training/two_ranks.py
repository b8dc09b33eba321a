"""Trains a tiny flow on the processor with so many devices; the first one leaves its gradients and losses.

``python two_ranks.py STORE OUTPUT DEVICES``: a script of its own, since Lightning starts it once for each device.
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from test_training import TINY, WINDOW

from CTHarmonizeLib.networks.ctflow import CTFlow
from CTHarmonizeTraining.data.pairs import PairDataset
from CTHarmonizeTraining.training.base import StageConfig
from CTHarmonizeTraining.training.ctflow import FlowStage
from CTHarmonizeTraining.training.loader import Pairs
from CTHarmonizeTraining.training.trainer import Machine, run_stage

STEPS, BATCH = 3, 4


class Gradients(L.Callback):
    """Keeps every step's gradient, after the devices have shared it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
        named = module.network.named_parameters()
        self.steps.append({name: p.grad.clone() for name, p in named if p.grad is not None})


def main(store: str, output: str, devices: int) -> None:
    torch.manual_seed(0)
    network = CTFlow(TINY)
    module = FlowStage(network, StageConfig(STEPS, 1e-3, batch=BATCH), WINDOW, mean_weight=4.0, freeze_encoder=False)
    data = Pairs(PairDataset([store], STEPS * BATCH, 32, seed=1), None, BATCH, workers=0)
    watcher = Gradients()
    machine = Machine(accelerator="cpu", devices=devices, precision="32-true")
    run_stage("flow", module, data, Path(output) / "run", machine, [watcher])
    if module.global_rank == 0:
        torch.save(watcher.steps, Path(output) / "gradients.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
