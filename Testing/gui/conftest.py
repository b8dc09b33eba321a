"""The running host for every test in this folder; a test fails on what a slot raised."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MISSING = [name for name in ("PySide6", "slicer_core") if importlib.util.find_spec(name) is None]

if not MISSING:
    from SlicerHost import start

    _host = start()  # before a test module imports qt, ctk or slicer

    @pytest.fixture
    def host(monkeypatch):
        """A fresh Slicer: empty scene, no module loaded, no dialog shown. Errors left over fail the test."""
        # What a developer sets must not stand in for what the module hands to its worker.
        monkeypatch.delenv("PYTHONPATH", raising=False)
        _host.clear()
        _host.takeErrors()
        before = _ownModules()
        yield _host
        left = _host.takeErrors()
        _host.clear()
        left += _host.takeErrors()
        _undoReload(before)
        assert not left, "in the console:\n" + "\n".join(left)

    def _ownModules() -> dict:
        ours, kept = ("CTHarmonizeGui", "CTHarmonizeLib"), "CTHarmonizeGui.registry"  # which a reload keeps
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] in ours and name != kept}

    def _undoReload(before: dict) -> None:
        """A developers' reload makes classes anew, which later tests' imports do not know."""
        now = _ownModules()
        if any(now.get(name) is not module for name, module in before.items()):
            for name in now:
                del sys.modules[name]
            sys.modules.update(before)

    def pytest_unconfigure(config):
        _host.close()


class _NeedsHost(pytest.Module):
    """A test file that cannot be imported without the host: skipped, visibly."""

    def collect(self):
        pytest.skip(f"the panel's tests need {' and '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path, parent):
    if MISSING and re.search(r"\bhost\b", module_path.read_text(encoding="utf-8")):
        return _NeedsHost.from_parent(parent, path=module_path)
    return None
