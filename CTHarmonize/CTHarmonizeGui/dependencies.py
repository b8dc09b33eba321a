"""The Python packages that the worker needs, installed after asking and never at import."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import slicer
from slicer.i18n import tr as _

from CTHarmonizeLib.errors import CannotRunError

TORCH_REQUIREMENT = ">=2.2"
SAFETENSORS_REQUIREMENT = "safetensors>=0.4"


class Installer(Protocol):
    """What changes Slicer's Python; tests inject a fake."""

    def has(self, package: str) -> bool: ...

    def installTorch(self) -> None:
        """Ask, then install. Raises CannotRunError with what to do where there is no way to."""

    def install(self, requirement: str, terms: str = "") -> None:
        """Ask, naming the ``terms`` of use where there are any, then install."""


class SlicerInstaller:
    """torch through the PyTorch extension, which finds the build for this computer's GPU; the rest from PyPI."""

    def has(self, package: str) -> bool:
        importlib.invalidate_caches()
        return importlib.util.find_spec(package) is not None

    def installTorch(self) -> None:
        try:
            import PyTorchUtils
        except ImportError:
            raise CannotRunError(
                _(
                    "PyTorch is missing: install the extension 'PyTorch' in the Extensions Manager, "
                    "restart Slicer and press Apply again."
                )
            ) from None
        PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT
        )

    def install(self, requirement: str, terms: str = "") -> None:
        question = _("CT Harmonize needs the Python package '{name}'. Download and install it now?")
        if terms:  # Slicer's own question has no place for them
            question = _("This method needs the Python package '{name}', {terms}. Download and install it now?")
        else:
            try:
                from slicer import packaging  # Slicer 5.12 and later; asks by itself

                packaging.pip_ensure(requirement, requester=_("CT Harmonize"))
                return
            except (ImportError, AttributeError):
                pass
        if slicer.util.confirmOkCancelDisplay(question.format(name=requirement, terms=terms)):
            slicer.util.pip_install(requirement)


def ensure(installer: Installer | None = None, packages: Sequence[Any] = ()) -> None:
    """See to it that torch and safetensors are there, and the ``packages`` (CTHarmonizeLib's) that a method needs.

    safetensors is installed by itself: torch, which it does not need, is never resolved by pip here.
    Raises CannotRunError with one sentence where a package is missing in the end (declined, no network).

    >>> dependencies.ensure()                                             # doctest: +SKIP
    """
    installer = installer or SlicerInstaller()
    needed = [
        ("torch", "torch", installer.installTorch),
        ("safetensors", "safetensors", partial(installer.install, SAFETENSORS_REQUIREMENT)),
        *((one.module, one.requirement, partial(installer.install, one.requirement, one.terms)) for one in packages),
    ]
    for package, name, install in needed:
        if installer.has(package):
            continue
        reason = ""
        try:
            install()
        except CannotRunError:
            raise
        except Exception as error:  # pip and light-the-torch raise what they like
            declined = "declined" in str(error)
            reason = "" if declined else f" ({_firstLine(error)})"
        if not installer.has(package):
            raise CannotRunError(
                _(
                    "The Python package '{name}' could not be installed{reason}: check the network or proxy "
                    "and press Apply again."
                ).format(name=name, reason=reason)
                if reason
                else _("The Python package '{name}' is needed and was not installed: press Apply to be asked again.")
                .format(name=name)
            )


def _firstLine(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
