"""The running host for every test in this folder; a test fails on what a slot raised."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

pytest.importorskip("PySide6", reason="the panel's tests need PySide6-Essentials")
pytest.importorskip("slicer_core", reason="the panel's tests need slicer-core")

from SlicerHost import start  # noqa: E402

_host = start()  # before a test module imports qt, ctk or slicer


@pytest.fixture
def host():
    """A fresh Slicer: empty scene, no module loaded, no dialog shown. Errors that are left over fail the test."""
    _host.clear()
    _host.takeErrors()
    yield _host
    left = _host.takeErrors()
    _host.clear()
    left += _host.takeErrors()
    assert not left, "in the console:\n" + "\n".join(left)


def pytest_unconfigure(config):
    _host.close()
