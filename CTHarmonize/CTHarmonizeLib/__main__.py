"""``python -m CTHarmonizeLib`` is the command ``ctharmonize``."""

from __future__ import annotations

import sys

from CTHarmonizeLib.cli import main

if __name__ == "__main__":
    sys.exit(main())
