"""What is asked for, checked and completed: a request and a volume become a plan that the engine can run."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING

from CTHarmonizeLib.ct.acquisition import (
    REFERENCE_NOISE,
    TRUTH,
    Acquisition,
    NoiseTable,
    added_noise,
    is_truth,
    target_acquisition,
)
from CTHarmonizeLib.ct.volume import Roi, Volume
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods import Method, method_named
from CTHarmonizeLib.models import Model, model_for

if TYPE_CHECKING:
    from CTHarmonizeLib.ct.describe import Description

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
MOST_SAMPLES = 1000
DOSES = (1.0, 400.0)
"""Percent that may be asked for; a model's card may allow less."""

_SAME_THICKNESS = 0.02
"""Share by which two thicknesses may differ and count as one: headers round."""

_NOISE_DISAGREES = 1.5
"""Factor between the noise that was measured and that which a stated dose means, from which the reader is told."""

_FIELD_WORDS = {"kernel": "the kernel", "dose": "the dose", "thickness": "the slice thickness"}


@dataclass(frozen=True)
class Request:
    """What the user asks for. None: the source's own (kernel, dose, thickness), what was detected (source_kernel,
    source_dose), the model's default (samples, temperature), or the engine's choice (tile, batch, threads).

    ``kernel``: a name, ``truth``, or an f50 in lp/cm; ``dose`` in percent; ``thickness`` and ``coherence`` (between
    slices, 0: off) in mm; ``model``: a folder or the name of an installed model; ``roi``: a box, or text that Roi.parse
    reads; ``batch``: slices at once; ``augment``: a deterministic method's spread over the turns and flips of its
    slices.
    """

    kernel: str | float | None = None
    dose: float | None = None
    thickness: float | None = None
    method: str = "ctflow"
    model: str | os.PathLike | None = None
    source_kernel: str | float | None = None
    source_dose: float | None = None
    samples: int | None = None
    temperature: float | None = None
    seed: int = 0
    coherence: float = 0.0
    device: str = "auto"
    precision: str = "auto"
    roi: Roi | str | None = None
    tile: int | None = None
    batch: int | None = None
    threads: int | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.roi, str):
            object.__setattr__(self, "roi", Roi.parse(self.roi))
        elif self.roi is not None and not isinstance(self.roi, Roi):
            raise InputError("The region must be a Roi or text of the form i0:i1,j0:j1,k0:k1 (columns, rows, slices).")

    def as_dict(self) -> dict:
        """Plain values, for JSON."""
        values = asdict(self)
        values["model"] = None if self.model is None else str(self.model)
        return values


@dataclass(frozen=True)
class Choice:
    """What can be settled without the volume: method, model, how many samples at which temperature."""

    method: type[Method]
    model: Model | None
    table: NoiseTable
    samples: int
    temperature: float

    @property
    def factor(self) -> int:
        """Slices that are made of each source slice."""
        return self.method.slices_made(None if self.model is None else self.model.card)


@dataclass(frozen=True)
class Plan:
    """Source and target acquisition; ``dose`` is the target's in percent, infinite without noise; ``warnings`` and
    ``notes``, which warn of nothing, are for the reader."""

    description: Description
    source: Acquisition
    target: Acquisition
    dose: float
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose(request: Request) -> Choice:
    """Check a request and find its method and model. Raises InputError with the reason, or CannotRunError where a
    package that the method needs is missing."""
    method = method_named(request.method)
    _check_target_fields(request, method)
    if request.device not in DEVICES:
        raise InputError(f"There is no device '{request.device}': choose one of {', '.join(DEVICES)}.")
    if request.precision not in PRECISIONS:
        raise InputError(f"There is no precision '{request.precision}': choose one of {', '.join(PRECISIONS)}.")
    for name, value, low, high in (
        ("number of samples", request.samples, 1, MOST_SAMPLES),
        ("temperature", request.temperature, 0.0, 2.0),
        ("seed", request.seed, 0, 2**63 - 1),
        ("slice coherence", request.coherence, 0.0, 50.0),
        ("tile", request.tile, 16, 8192),
        ("batch", request.batch, 1, 1024),
        ("number of threads", request.threads, 1, 1024),
    ):
        _check_number(name, value, low, high)
    for name, value in (("target dose", request.dose), ("source dose", request.source_dose)):
        _check_number(name + " (percent)", value, *DOSES)
    _check_number("target slice thickness (mm)", request.thickness, 0.05, 50.0)
    if request.augment and method.stochastic:
        raise InputError(
            f"The method {method.name} draws samples, whose deviation it gives: leave the augmentation out, which is "
            "for methods without samples."
        )
    method.check_packages()
    if not method.needs_model:
        if request.model is not None:
            raise InputError(f"The method {method.name} needs no model: leave the model out.")
        return Choice(method, None, REFERENCE_NOISE, 1, 1.0)
    model = model_for(method.name, request.model)
    samples = int(request.samples or model.card["default_samples"])
    temperature = model.card["default_temperature"] if request.temperature is None else request.temperature
    table = NoiseTable.from_card(model.card["noise_at_full_dose"])
    return Choice(method, model, table, samples if method.stochastic else 1, temperature)


def plan(request: Request, choice: Choice, volume: Volume) -> Plan:
    """Describe the volume and settle source and target. Raises InputError where the target cannot be reached."""
    from CTHarmonizeLib.ct.describe import describe

    if request.roi is not None:
        request.roi.check_inside(volume.shape)
    # Percent means the chosen model's own full dose, hence its table.
    description = describe(volume, request.source_kernel, request.source_dose, choice.table)
    source = description.acquisition
    notes = _thickness_notes(request, choice, source, volume.spacing[2])
    notes += [choice.method.caution] if choice.method.caution else []
    thin = _as_thin(source, choice.factor)
    kernel = TRUTH if choice.method.makes_truth else request.kernel
    target = target_acquisition(thin, choice.table, kernel, request.dose)
    dose = request.dose
    if dose is None:
        dose = math.inf if is_truth(kernel) else choice.table.dose(thin.f50, thin.noise)
    warnings = list(dict.fromkeys((*volume.warnings, *description.warnings)))
    warnings += _dose_warnings(request, choice, description)
    if choice.model is not None:
        target, dose = _within_reach(request, choice, target, dose, warnings)
        warnings += _source_warnings(choice.model, source)
    if choice.method.stochastic and (sentence := added_noise(thin, target, choice.table)):
        warnings.append(sentence)
    if choice.method.stochastic and choice.samples < 4:
        warnings.append("The standard deviation needs at least 4 samples to be trusted.")
    return Plan(description, source, target, dose, warnings, notes)


def _as_thin(source: Acquisition, factor: int) -> Acquisition:
    """What the same scan would be in slices ``factor`` times as thin: so many times less photons each."""
    if factor == 1:
        return source
    return replace(source, slice_thickness=source.slice_thickness / factor, noise=source.noise * math.sqrt(factor))


def _thickness_notes(request: Request, choice: Choice, source: Acquisition, spacing: float) -> list[str]:
    """What becomes of the slices, for the reader. Raises InputError where the model cannot make those asked for."""
    if choice.factor == 1:
        if request.thickness is not None:
            raise InputError(f"The model '{choice.model.name}' leaves the slices as thick as they are.")
        return []
    name, factor, thick = choice.model.name, choice.factor, source.slice_thickness
    made = thick / factor
    if abs(spacing - thick) > _SAME_THICKNESS * thick:
        raise InputError(
            f"The slices are {thick:.3g} mm thick but lie {spacing:.3g} mm apart: the model '{name}' needs slices that "
            "touch and do not overlap."
        )
    if request.thickness is not None and abs(request.thickness - made) > _SAME_THICKNESS * made:
        raise InputError(
            f"Slices of {thick:.3g} mm cannot become slices of {request.thickness:.3g} mm: the model '{name}' makes "
            f"{factor} of each, which gives {made:.3g} mm."
        )
    low, high = choice.model.card["target"]["thickness"] or (0.0, math.inf)
    if not low - 1e-6 <= made <= high + 1e-6:
        raise InputError(
            f"The model '{name}' makes slices of {low:.3g} to {high:.3g} mm, {factor} of each: the source's of "
            f"{thick:.3g} mm would become {made:.3g} mm."
        )
    return [f"The slices become {made:.3g} mm thick, {factor} for each of the source's of {thick:.3g} mm."]


def _check_number(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise InputError(f"The {name} must be a number, not {value!r}.")
    if isinstance(low, int) and value != int(value):
        raise InputError(f"The {name} must be a whole number, not {value:g}.")
    if not low <= value <= high:
        raise InputError(f"The {name} must lie between {low:g} and {high:g}, not {value:g}.")


def _check_target_fields(request: Request, method: type[Method]) -> None:
    asked = {"kernel": request.kernel, "dose": request.dose, "thickness": request.thickness}
    if method.makes_truth:
        _check_truth(request, method)
    elif all(value is None for value in asked.values()) and "thickness" not in method.target_fields:
        raise InputError("Nothing to do: give a target kernel or a target dose.")
    elif is_truth(request.kernel):
        raise InputError(
            f"The method {method.name} cannot reach the noise-free truth (kernel 'truth'): give smooth, medium, sharp "
            "or an f50 in lp/cm."
        )
    for name, value in asked.items():
        if value is not None and name not in method.target_fields:
            can = " and ".join(_FIELD_WORDS[known] for known in sorted(method.target_fields, reverse=True))
            raise InputError(
                f"The method {method.name} cannot set {_FIELD_WORDS[name]}, only {can}: leave {_FIELD_WORDS[name]} "
                "out or choose another method."
            )


def _check_truth(request: Request, method: type[Method]) -> None:
    if request.kernel is not None and not is_truth(request.kernel):
        raise InputError(
            f"The method {method.name} makes the noise-free truth only, not the kernel '{request.kernel}': give "
            f"{TRUTH}, leave the kernel out, or choose another method."
        )
    if request.dose is not None:
        raise InputError(f"The method {method.name} makes the noise-free truth, which has no dose: leave the dose out.")


def _within_reach(
    request: Request, choice: Choice, target: Acquisition, dose: float, warnings: list[str]
) -> tuple[Acquisition, float]:
    card = choice.model.card
    low, high = card["target"]["f50"]
    if not low - 1e-6 <= target.f50 <= high + 1e-6:
        whose = "" if request.kernel is not None else " (the source's own: give a target kernel)"
        if choice.method.makes_truth:
            whose = f" (the truth that pixels of {target.pixel_spacing:.3g} mm show)"
        raise InputError(
            f"The model '{choice.model.name}' reaches kernels with an f50 of {low:g} to {high:g} lp/cm, "
            f"not {target.f50:.2f}{whose}."
        )
    if choice.method.makes_truth:
        return target, dose
    low, high = card["target"]["dose"]
    if low <= dose <= high:
        return target, dose
    if request.dose is not None:
        raise InputError(f"The model '{choice.model.name}' reaches {doses(low, high)}, not {dose:g} %.")
    nearest = min(max(dose, low), high)
    warnings.append(
        f"The source's noise stands for a dose of {dose:.0f} %, and the model reaches {doses(low, high)}: the target "
        f"dose is {nearest:g} %."
    )
    return replace(target, noise=choice.table.noise(target.f50, nearest)), nearest


def doses(low: float, high: float) -> str:
    """Target doses that a model reaches, in words."""
    return f"doses of {low:g} to {high:g} %" if low < high else f"a dose of {low:g} % only"


def _dose_warnings(request: Request, choice: Choice, description: Description) -> list[str]:
    measured, noise = description.measured_noise, description.acquisition.noise
    if request.source_dose is None or measured is None:
        return []
    if max(measured / noise, noise / measured) <= _NOISE_DISAGREES:
        return []
    whose = "this method" if choice.model is None else f"the model '{choice.model.name}', whose own full dose is 100 %"
    return [
        f"A noise of {measured:.1f} HU was measured in the source, but its stated dose of {request.source_dose:g} % "
        f"means {noise:.1f} HU for {whose}: leave the source dose out to go by the measurement."
    ]


def _source_warnings(model: Model, source: Acquisition) -> list[str]:
    card = model.card
    checks = (
        ("f50", source.f50, card["source"]["f50"], "lp/cm"),
        ("noise", source.noise, card["source"]["noise"], "HU"),
        ("pixel spacing", source.pixel_spacing, card["pixel_spacing"], "mm"),
        ("slice thickness", source.slice_thickness, card["slice_thickness"], "mm"),
    )
    return [
        f"The source's {name} of {value:.3g} {unit} lies outside the {low:g} to {high:g} {unit} that the model "
        f"'{model.name}' was trained for: judge the result with care."
        for name, value, (low, high), unit in checks
        if not low - 1e-6 <= value <= high + 1e-6
    ]
