"""A simulated pair as a store of reconstructions, such as ``import`` makes of measured ones."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from CTHarmonizeLib.ct.describe import describe
from CTHarmonizeLib.ct.volume import Volume
from CTHarmonizeTraining.console import say
from CTHarmonizeTraining.data.patient import SIMULATED, PatientStore, Reconstruction
from CTHarmonizeTraining.data.splits import Splits
from CTHarmonizeTraining.simulation.pair import Side


def write_store(
    path: Path, volumes: Mapping[str, Volume], sides: Mapping[str, Side], facts: Mapping[str, Any], source: str
) -> None:
    """Write ``volumes`` (source, target and, where there is one, target_noise_free) as one set, whole or not at all.

    Sharpness is that of the kernel asked for, noise is measured. ``facts``: of the simulation, kept with each
    reconstruction; ``source``: the subject's name. The store's part is drawn as for imported patients, into
    ``splits.json`` beside it.
    """
    reconstructions = []
    for name, volume in volumes.items():
        side = sides["source" if name == "source" else "target"]
        acquisition = describe(volume, source_kernel=side.kernel).acquisition
        reconstructions.append(Reconstruction(name, acquisition, side.dose, dict(facts)))
    partial = path.with_name(f".{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        sets = [(reconstructions, list(volumes.values()))]
        PatientStore.write(partial, path.stem, SIMULATED, sets, source)
        splits = Splits.of(path.parent)
        part = splits.add(path.stem)
        splits.write(path.parent)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    say(f"{path.name}: {part}.")
