"""What the extension ships: CMake's lists against the tree, the index entry, the icon, and what is imported when."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "CTHarmonize"
THIRD_PARTY = {"numpy", "scipy", "torch", "SimpleITK", "pydicom", "safetensors", "matplotlib", "PIL", "jsonschema"}


def listed(name: str) -> list[str]:
    text = (MODULE / "CMakeLists.txt").read_text()
    block = re.search(rf"set\({name}\n(.*?)\n\s*\)", text, re.DOTALL).group(1)
    return sorted(line.strip().strip('"').replace("${MODULE_NAME}", "CTHarmonize") for line in block.splitlines())


def shipped() -> tuple[list[str], list[str]]:
    scripts, resources = ["CTHarmonize.py"], []
    for folder in ("CTHarmonizeGui", "CTHarmonizeLib", "Resources"):
        for path in (MODULE / folder).rglob("*"):
            name = path.relative_to(MODULE).as_posix()
            if path.is_dir() or "__pycache__" in name or path.name == "drawIcon.py" or path.name.startswith("."):
                continue
            (scripts if path.suffix == ".py" else resources).append(name)
    return sorted(scripts), sorted(resources)


@pytest.mark.parametrize("index, name", [(0, "MODULE_PYTHON_SCRIPTS"), (1, "MODULE_PYTHON_RESOURCES")])
def test_cmake_lists_every_file(index, name):
    wanted = shipped()[index]
    assert listed(name) == wanted, f"{name} should be:\n  " + "\n  ".join(wanted)


def test_nothing_third_party_is_imported_at_file_scope_where_slicer_starts():
    early = [MODULE / "CTHarmonize.py", MODULE / "CTHarmonizeLib/__init__.py", MODULE / "CTHarmonizeLib/errors.py"]
    for path in [*early, *(MODULE / "CTHarmonizeGui").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not {name.split(".")[0] for name in names} & THIRD_PARTY, path.name


def test_files_stay_small():
    for path in [MODULE / "CTHarmonize.py", *(MODULE / "CTHarmonizeGui").glob("*.py")]:
        assert len(path.read_text().splitlines()) < 400, path.name


def test_extensions_index_entry():
    entry = json.loads((REPOSITORY / "CTHarmonize.json").read_text())
    assert {"$schema", "category", "scm_url"} <= set(entry)
    allowed = {"$schema", "category", "scm_url", "scm_revision", "scm_type", "build_dependencies", "build_subdirectory"}
    assert set(entry) <= allowed | {"enabled", "tier", "dicom_support_rule"}
    assert 1 <= entry["tier"] <= 5 and isinstance(entry["build_dependencies"], list)
    cmake = (REPOSITORY / "CMakeLists.txt").read_text()
    assert f'EXTENSION_CATEGORY "{entry["category"]}"' in cmake
    assert 'EXTENSION_DEPENDS "PyTorch"' in cmake and entry["build_dependencies"] == ["PyTorch"]
    description = (REPOSITORY / "CTHarmonize.s4ext").read_text()
    assert f"category {entry['category']}" in description and f"scmurl {entry['scm_url']}" in description


def test_icons():
    Image = pytest.importorskip("PIL.Image")
    for path in (REPOSITORY / "CTHarmonize.png", MODULE / "Resources/Icons/CTHarmonize.png"):
        assert Image.open(path).size == (128, 128)


def test_research_use_is_said_once():
    assert (MODULE / "CTHarmonize.py").read_text().count("not a medical device") == 1
    assert "not a medical device" not in (MODULE / "Resources/UI/CTHarmonize.ui").read_text()
