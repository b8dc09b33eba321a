"""The methods, discovered from the modules of this package: a new one is a new file, and no list to edit."""

from __future__ import annotations

import importlib
import pkgutil

from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.methods.base import Method


def available() -> dict[str, type[Method]]:
    """All method classes by name. Imports their modules, which do not import torch."""
    found: dict[str, type[Method]] = {}
    for entry in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{entry.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__:
                if "name" in vars(value):  # what has none of its own is shared between methods
                    found[value.name] = value
    return dict(sorted(found.items()))


def method_named(name: str) -> type[Method]:
    """The method class called ``name``; InputError for an unknown one."""
    methods = available()
    if name not in methods:
        raise InputError(f"There is no method '{name}': choose one of {', '.join(methods)}.")
    return methods[name]
