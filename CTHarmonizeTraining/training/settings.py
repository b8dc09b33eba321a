"""Training configurations: YAML files that name a method's training and its parameters, and the data's."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from CTHarmonizeLib.ct.acquisition import is_truth
from CTHarmonizeLib.errors import InputError
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.training.base import Training, plain

CONFIG = "config.yaml"
RECORD = "training.json"
NETWORK = "network.safetensors"
"""Of a run: its settings, what it read and where it ran, and the trained network."""

_NAMED = 3
"""Settings that a refusal names."""


@dataclass(frozen=True)
class SimulatedOptions:
    """Of pairs from simulated scenes: see :class:`~CTHarmonizeTraining.data.pairs.PairDataset`."""

    kernels: tuple[str | None, str] | None = None
    pixel_range: tuple[float, float] = (0.45, 1.0)
    measurement_error: float = 0.12


@dataclass(frozen=True)
class MeasuredOptions:
    """Of measured pairs: see :class:`~CTHarmonizeTraining.data.measured.MeasuredPairs`."""

    series: tuple[str, str] = ("*", "*")
    averaged_slices: int = 1
    body_share: float | None = None


@dataclass(frozen=True)
class DataConfig:
    """Crops of ``size`` pixels and, for methods of volumes, ``depth`` source slices, read by ``workers`` processes;
    ``full_dose_share`` of the pairs lead from less than full dose to full dose. What only one kind of store can choose
    stands under its name."""

    size: int = 64
    depth: int = 1
    workers: int = 1
    full_dose_share: float = 0.6
    simulated: SimulatedOptions = field(default_factory=SimulatedOptions)
    measured: MeasuredOptions = field(default_factory=MeasuredOptions)

    @property
    def towards_truth(self) -> bool:
        """Whether the targets of simulated pairs are the noise-free truth."""
        return self.simulated.kernels is not None and is_truth(self.simulated.kernels[1])


def shipped(name: str) -> str:
    """The path of the shipped configuration ``name``, or ``name`` where it is a file. Raises InputError."""
    folder = Path(str(resources.files("CTHarmonizeTraining").joinpath("configs")))
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return str(path)
    names = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise InputError(f"There is no configuration '{name}'; shipped ones: {names}.")


def load(config: str | Path) -> tuple[Training, DataConfig]:
    """Of a shipped configuration's name, or of a file; entries that are not about method and data are left aside.

    Raises InputError where it cannot be read or does not fit.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    path = Path(shipped(str(config)))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--method", type=Training, required=True)
    parser.add_argument("--data", type=DataConfig, default=DataConfig())
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        wanted = {key: entries[key] for key in ("method", "data") if key in entries}
        values = parser.instantiate(parser.parse_object(wanted))
    except (OSError, TypeError, ValueError, yaml.YAMLError, ArgumentError) as error:
        raise InputError(f"The configuration {path} is not usable: {' '.join(str(error).split())}") from error
    return values.method, values.data


def of_run(run: Path, name: str) -> Path:
    """The file ``name`` of a finished run. Raises InputError where it is not there."""
    if not (run / name).is_file():
        raise InputError(f"'{run}' has no {name}: give the output folder of a finished 'ctharmonize-train fit'.")
    return run / name


def record(run: Path) -> dict[str, Any]:
    """What the finished ``run`` read and where it ran. Raises InputError where that is not there."""
    return json.loads(of_run(run, RECORD).read_text(encoding="utf-8"))


def trained(run: Path) -> tuple[Training, nn.Module]:
    """The training in ``run``, and its network, fixed. Raises InputError where they cannot be read."""
    method, _ = load(of_run(run, CONFIG))
    network = method.build()
    try:
        network.load_state_dict(load_file(of_run(run, NETWORK)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The network in '{run}' cannot be read: {str(error).splitlines()[0]}") from error
    return method, network.eval().requires_grad_(False)


def keep(folder: Path, method: Training, data: DataConfig) -> None:
    """Write ``config.yaml`` into ``folder``, or see that the one there says the same.

    Raises InputError where it does not, CannotRunError where it cannot be written.
    """
    entries: dict[str, Any] = {"method": method.as_dict(), "data": plain(asdict(data))}
    path = folder / CONFIG
    if not path.exists():
        write_whole(path, yaml.safe_dump(entries, sort_keys=False))
        return
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from error
    different = sorted(_differences(before, entries) - {"data.workers"})
    if different:
        more = f" and {len(different) - _NAMED} more" if len(different) > _NAMED else ""
        raise InputError(
            f"'{folder}' holds a training with other settings ({', '.join(different[:_NAMED])}{more}): choose another "
            "folder."
        )


def _differences(one: Any, other: Any, place: str = "") -> set[str]:
    """Dotted names of the entries in which two nested dictionaries differ."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return set() if one == other else {place}
    names = [(name, f"{place}.{name}" if place else str(name)) for name in {*one, *other}]
    return set().union(*(_differences(one.get(name), other.get(name), path) for name, path in names))
