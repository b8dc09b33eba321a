"""slicer.packaging without an installer: what would be installed is recorded, nothing is fetched."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import slicer


def _names(requirements) -> list[str]:
    return requirements.split() if isinstance(requirements, str) else [str(r) for r in requirements]


def pip_check(requirements) -> bool:
    """Whether all requirements are there (their versions are not compared)."""
    for requirement in _names(requirements):
        try:
            metadata.version(re.split(r"[<>=!~;\[ ]", requirement, maxsplit=1)[0])
        except metadata.PackageNotFoundError:
            return False
    return True


def pip_install(requirements, **options) -> None:
    slicer.app.installRequests.append(("pip_install", _names(requirements), options))


def pip_ensure(requirements, **options) -> bool:
    """Asks to install what is missing; in the host the request is recorded and not fulfilled."""
    missing = [name for name in _names(requirements) if not pip_check([name])]
    if missing:
        slicer.app.installRequests.append(("pip_ensure", missing, options))
    return not missing


def pip_uninstall(requirements, **options) -> None:
    slicer.app.installRequests.append(("pip_uninstall", _names(requirements), options))


def load_requirements(path) -> list[str]:
    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]
