"""Errors that end a run. Each carries one plain sentence for the reader and the process exit status."""

from __future__ import annotations


class CTHarmonizeError(Exception):
    """Base class; ``str(error)`` is one plain sentence that says what is wrong and what to do."""

    exit_status = 2


class InputError(CTHarmonizeError):
    """The input, an option or a model folder is unusable (exit status 2)."""


class CannotRunError(CTHarmonizeError):
    """The request is sound but this machine cannot run it: memory, device, disk (exit status 3)."""

    exit_status = 3


class Cancelled(CTHarmonizeError):
    """The user stopped the run (exit status 130)."""

    exit_status = 130

    def __init__(self, message: str = "Cancelled.") -> None:
        super().__init__(message)
