"""What the commands tell while they work."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """A line on standard error, at once: standard output is for results."""
    print(text, file=sys.stderr, flush=True)
