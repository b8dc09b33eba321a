"""The private folder of a job."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

# the temporary folder may be shared by several hosts, whose process ids say nothing here
_PREFIX = f"ctharmonize-{re.sub(r'[^A-Za-z0-9-]', '_', platform.node())}-"
_STALE_SECONDS = 7 * 24 * 3600


class JobFolder:
    """A new folder that only this user can read, in ``parent``; :meth:`remove` may be called any number of times."""

    def __init__(self, parent: str | os.PathLike | None = None) -> None:
        parent = Path(parent or tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))  # mkdtemp: mode 0700

    def remove(self) -> None:
        for _attempt in range(5):
            shutil.rmtree(self.path, ignore_errors=True)
            if not self.path.exists():
                return
            time.sleep(0.05)  # Windows frees an ended process's files a moment later


def sweep(parent: Path) -> None:
    """Remove the folders that a Slicer which crashed on this host left in ``parent``."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        owner = re.fullmatch(rf"{re.escape(_PREFIX)}(\d+)-\w+", folder.name)
        if owner and folder.is_dir() and not _inUse(folder, int(owner.group(1))):
            shutil.rmtree(folder, ignore_errors=True)


def _inUse(folder: Path, pid: int) -> bool:
    try:
        if sys.platform == "win32":  # os.kill(pid, 0) would send Ctrl-C there
            return time.time() - folder.stat().st_mtime < _STALE_SECONDS
        if folder.stat().st_uid != os.getuid():
            return True
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
