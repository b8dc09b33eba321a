"""What took long to compute, kept on disk under a name that tells what it depends on."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from CTHarmonizeLib.errors import CannotRunError


def fingerprint(*sources: ModuleType | Path | str) -> str:
    """SHA-256 of the code of modules and files."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(Path(source.__file__ if isinstance(source, ModuleType) else source).read_bytes())
    return digest.hexdigest()


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays in the file ``path``, or those that ``make`` returns, which are then written there.

    Raises CannotRunError where they cannot be written.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # not there, or cut short
    made = make()
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.savez(file, **made)
        aside.replace(path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotRunError(f"'{path}' cannot be written: {error.strerror}.") from error
        raise
    return made
