"""The engine is plain Python: nothing of Slicer or Qt, and no torch until a model runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import CTHarmonizeLib
from CTHarmonizeLib.methods import available

PACKAGE = Path(CTHarmonizeLib.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SLICER = {"slicer", "qt", "ctk", "vtk", "PythonQt", "PySide6", "qSlicer", "MRMLCorePython", "CTHarmonizeGui"}
ALLOWED = {"torch", "numpy", "scipy", "SimpleITK", "pydicom", "safetensors", "psutil", "CTHarmonizeLib"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_those_that_slicer_has(path):
    names = imported(path)
    assert not names & SLICER
    assert names <= ALLOWED | optional(path) | set(sys.stdlib_module_names)


def optional(path: Path) -> set[str]:
    """Packages that the methods in the file declare."""
    return {
        package.module
        for method in available().values()
        if Path(sys.modules[method.__module__].__file__) == path
        for package in method.packages
    }


def loaded_after(code: str) -> set[str]:
    script = f"import sys, warnings\n{code}\nprint(' '.join(sys.modules), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_the_package_itself_imports_no_library():
    loaded = loaded_after("from CTHarmonizeLib import harmonize, describe, installedModels")
    assert not loaded & {"torch", "numpy", "SimpleITK", "pydicom", "scipy"}


@pytest.mark.parametrize(
    "code",
    [
        "from CTHarmonizeLib.cli import main; main(['models'])",
        "from CTHarmonizeLib.cli import main; main(['models', '--json'])",
        "import CTHarmonizeLib.worker",
        "from CTHarmonizeLib.methods import available; available()",
        "from CTHarmonizeLib import installedModels; installedModels()",
        "from CTHarmonizeLib.request import Request, choose; choose(Request(kernel='smooth', method='mtf-filter'))",
    ],
)
def test_no_torch_until_a_model_runs(code):
    packages = {package.module for method in available().values() for package in method.packages}
    assert "skimage" in packages
    assert not loaded_after(code) & {"torch", *packages}


def test_describe_imports_no_torch(tmp_path):
    from stochastic_method import chest

    from CTHarmonizeLib.ct.io import write_nrrd

    write_nrrd(chest(3, 128, 128), tmp_path / "a.nrrd")
    path = str(tmp_path / "a.nrrd")
    assert "torch" not in loaded_after(f"from CTHarmonizeLib.cli import main; assert main(['describe', {path!r}]) == 0")
