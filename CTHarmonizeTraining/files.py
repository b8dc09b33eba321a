"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from CTHarmonizeLib.errors import CannotRunError


def write_whole(path: Path, content: str | bytes) -> None:
    """Write ``content`` to ``path``, in place of what is there. Raises CannotRunError; then nothing has changed."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):  # there is none where the folder itself cannot be
            partial.unlink()
        raise CannotRunError(f"'{path}' cannot be written: {error.strerror}.") from error
