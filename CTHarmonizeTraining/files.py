"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from CTHarmonizeLib.errors import CannotRunError


def write_whole(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, in place of what is there. Raises CannotRunError; then nothing has changed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise CannotRunError(f"'{path}' cannot be written: {error.strerror}.") from error
