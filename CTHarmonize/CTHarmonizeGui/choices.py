"""What the panel may offer: methods, their models, and the targets that each can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from slicer.i18n import tr as _

SETTING = "CTHarmonize/modelFolders"
"""Application setting: the reader's own model folders."""

PREFERRED = "ctflow"


@dataclass(frozen=True)
class MethodChoice:
    """One method; ``models`` are its usable CTHarmonizeLib models, ``packages`` the optional Python packages that it
    needs; ``onlyKernel`` is the one target that it has (the noise-free truth), empty where the reader chooses."""

    name: str
    title: str
    summary: str
    stochastic: bool
    needsModel: bool
    targetFields: frozenset[str]
    onlyKernel: str = ""
    models: tuple[Any, ...] = ()
    packages: tuple[Any, ...] = ()

    @property
    def usable(self) -> bool:
        return bool(self.models) or not self.needsModel

    def model(self, folder: str) -> Any | None:
        """The model in ``folder``, otherwise the first."""
        return next((m for m in self.models if str(m.folder) == folder), self.models[0] if self.models else None)


@dataclass(frozen=True)
class Choices:
    """All methods, usable ones first, and what is wrong with folders that are no models."""

    methods: tuple[MethodChoice, ...] = ()
    problems: tuple[str, ...] = field(default=())

    def method(self, name: str) -> MethodChoice | None:
        """The usable method called ``name``, otherwise the preferred or the first usable one."""
        usable = [method for method in self.methods if method.usable]
        ranked = sorted(usable, key=lambda m: (m.name != name, m.name != PREFERRED))
        return ranked[0] if ranked else None


def findChoices(modelFolders: Sequence[str]) -> Choices:
    """Look at what is installed; imports neither torch nor anything else that a method runs on."""
    from CTHarmonizeLib import methods
    from CTHarmonizeLib.ct.acquisition import TRUTH
    from CTHarmonizeLib.models import BrokenModel, installed_models

    models, problems = [], []
    for model in installed_models(modelFolders):
        problems.append(model.reason) if isinstance(model, BrokenModel) else models.append(model)
    found = [
        MethodChoice(
            name=name,
            title=method.title,
            summary=method.summary,
            stochastic=method.stochastic,
            needsModel=method.needs_model,
            targetFields=frozenset(method.target_fields),
            onlyKernel=TRUTH if method.makes_truth else "",
            models=tuple(model for model in models if model.method == name),
            packages=tuple(method.packages),
        )
        for name, method in methods.available().items()
    ]
    return Choices(tuple(sorted(found, key=lambda m: (not m.usable, m.name != PREFERRED, m.title))), tuple(problems))


def usualTarget(method: str) -> tuple[str | None, float | None]:
    """Kernel and dose that a method aims at where nobody says otherwise: medium at 100 %, as far as it can set them, or
    the noise-free truth where it makes nothing else. Raises InputError for an unknown method."""
    from CTHarmonizeLib.ct.acquisition import TRUTH
    from CTHarmonizeLib.methods import method_named

    known = method_named(method)
    if known.makes_truth:
        return TRUTH, None
    return "medium" if "kernel" in known.target_fields else None, 100.0 if "dose" in known.target_fields else None


def kernelRange(model: Any | None, pixelSpacing: float) -> tuple[float, float]:
    """Lowest and highest f50 (lp/cm) that the model, or without one the pixel grid, can reach."""
    from CTHarmonizeLib.ct.mtf import NYQUIST_SHARE, nyquist

    low, high = 0.5, NYQUIST_SHARE * nyquist(pixelSpacing)
    if model is not None:
        low, high = max(low, model.card["target"]["f50"][0]), min(high, model.card["target"]["f50"][1])
    return low, max(low, high)


def kernels(model: Any | None, pixelSpacing: float) -> dict[str, float]:
    """Named kernels that can be reached, with the f50 that they have on this grid."""
    from CTHarmonizeLib.ct.mtf import NAMED_KERNELS

    low, high = kernelRange(model, pixelSpacing)
    reach = {name: mtf.limited_to(pixelSpacing).f50 for name, mtf in NAMED_KERNELS.items()}
    return {name: f50 for name, f50 in reach.items() if low - 0.05 <= f50 <= high + 0.05}


def doseRange(model: Any | None) -> tuple[float, float]:
    """Lowest and highest dose in percent."""
    low, high = (model and model.card["target"]["dose"]) or (10.0, 100.0)
    return max(10.0, float(low)), min(100.0, float(high))


def thicknesses(method: MethodChoice | None, model: Any | None, thick: float) -> dict[float, str] | None:
    """Slice thicknesses (mm) that the model makes of slices of ``thick`` mm, in words; empty where it can make none of
    them, None where it leaves slices as they are."""
    from CTHarmonizeLib.methods import method_named

    count = method_named(method.name).slices_made(model.card) if method and model else 1
    if count == 1:
        return None
    made = thick / count
    low, high = model.card["target"]["thickness"] or (0.0, float("inf"))
    words = _("{made:.3g} mm, {count} of each of {thick:.3g} mm").format(made=made, count=count, thick=thick)
    return {made: words} if low - 1e-6 <= made <= high + 1e-6 else {}


def kernelTitle(name: str) -> str:
    titles = {"smooth": _("Smooth"), "medium": _("Medium"), "sharp": _("Sharp"), "truth": _("Truth (noise-free)")}
    return titles.get(name, name.capitalize())


@dataclass(frozen=True)
class Aim:
    """What the target stands for, ``f50 4.0 lp/cm, noise about 9 HU``, and what to know before Apply; both may be
    empty."""

    text: str = ""
    warning: str = ""


def aim(description: dict[str, Any], model: Any | None, kernel: str | None, dose: float | None) -> Aim:
    """What is aimed at; empty before the input is measured."""
    from CTHarmonizeLib.ct import acquisition
    from CTHarmonizeLib.errors import CTHarmonizeError

    known = description.get("acquisition") or {}
    if not known.get("f50") or not known.get("noise"):
        return Aim()
    table = acquisition.REFERENCE_NOISE
    if model is not None:
        table = acquisition.NoiseTable.from_card(model.card["noise_at_full_dose"])
    try:
        source = acquisition.Acquisition(**known)
        target = acquisition.target_acquisition(source, table, kernel, dose)
    except (CTHarmonizeError, TypeError, ValueError):
        return Aim()
    text = _("f50 {f50:.1f} lp/cm, noise about {noise:.0f} HU").format(f50=target.f50, noise=target.noise)
    if target.noise == 0.0:
        text = _("f50 {f50:.1f} lp/cm, no noise").format(f50=target.f50)
    return Aim(text, acquisition.added_noise(source, target, table))
