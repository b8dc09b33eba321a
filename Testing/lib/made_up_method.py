"""A method that exists in one module alone, for tests that nothing else must know of a method."""

from __future__ import annotations

import pkgutil
import sys
import types

from CTHarmonizeLib import methods

SOURCE = """
from CTHarmonizeLib.methods.base import Method, Package


class MadeUp(Method):
    name = "made-up"
    title = "Made up"
    summary = "A method for tests, one class in one module."
    needs_model = False
    target_fields = frozenset({"dose"})
    packages = PACKAGES

    def encode(self, planes, source, target):
        return planes[:, 0]

    def estimate(self, state):
        return state + 7.0
"""


PACKAGES = "(Package('made-up-package', 'made_up_package', 'on made-up terms'),)"


def install(monkeypatch, packages: str = PACKAGES) -> None:
    """Make ``CTHarmonizeLib.methods.made_up`` exist until the test ends."""
    name = f"{methods.__name__}.made_up"
    module = types.ModuleType(name)
    exec(SOURCE.replace("PACKAGES", packages), vars(module))
    found = pkgutil.iter_modules

    def with_it(path=None, prefix=""):
        yield from found(path, prefix)
        if path is methods.__path__:
            yield pkgutil.ModuleInfo(None, prefix + "made_up", False)

    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(pkgutil, "iter_modules", with_it)
