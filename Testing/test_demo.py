"""The demo, on a scan of one's own: volumes, figure and screenshot are there, and agree with what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from CTHarmonizeDemo import cases
from pydicom.data import get_testdata_file

from CTHarmonizeLib.ct.io import read_volume
from CTHarmonizeLib.ct.measure import measure_noise

pytest.importorskip("PySide6", reason="the demo needs PySide6-Essentials")
pytest.importorskip("slicer_core", reason="the demo needs slicer-core")
Image = pytest.importorskip("PIL.Image", reason="the demo needs matplotlib")

DEMO = Path(__file__).resolve().parent / "CTHarmonizeDemo"


def demo(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, DEMO, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8", timeout=300
    )


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """The demo's folder after a run on a slice of a head, by the method that needs no training; its text."""
    folder = tmp_path_factory.mktemp("demo")
    path = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    run = demo("--ct", path, "--method", "mtf-filter", "--output", folder)
    assert run.returncode == 0, run.stderr
    assert "rror" not in run.stderr, run.stderr
    return folder, run.stdout


def test_volumes_lie_where_the_input_lies(head):
    folder = next(path.parent for path in head[0].glob("*/input.nrrd"))
    source = read_volume(folder / "input.nrrd")
    harmonized = read_volume(folder / "harmonized.nrrd")
    assert np.allclose(harmonized.ijk_to_ras(), source.ijk_to_ras(), rtol=0.0, atol=1e-6)
    assert harmonized.hu.dtype == np.int16
    assert not np.array_equal(harmonized.hu, source.hu)
    assert not (folder / "standard_deviation.nrrd").exists()  # of a method without samples


def test_table_says_what_result_json_says(head):
    folder, text = head
    report = json.loads(next(folder.glob("*/result.json")).read_text(encoding="utf-8"))
    sharpness = next(line for line in text.splitlines() if line.startswith("sharpness"))
    before, after, wanted = map(float, sharpness.split()[-3:])
    assert wanted == pytest.approx(report["target"]["acquisition"]["f50"], abs=0.01)
    assert abs(after - wanted) < abs(before - wanted)
    assert "mean of air (HU)" in text and "mean of fat (HU)" in text
    assert next(folder.glob("*/measured.txt")).read_text(encoding="utf-8").strip() in text


def test_pictures_show_something(head):
    for name in ("panel.png", "panel-ready.png", "*/figure.png"):
        path = next(head[0].glob(name))
        pixels = np.asarray(Image.open(path).convert("L"), dtype=np.float32)
        assert pixels.shape[0] > 300 and pixels.shape[1] > 300
        assert pixels.std() > 5.0


def test_the_slice_that_comes_along_can_be_read():
    case = cases.head()
    assert case.volume.shape == (1, 512, 512)
    assert measure_noise(case.volume.hu, case.volume.pixel_spacing).sigma < 8.0  # the targets' are above


def test_a_missing_scan_is_one_sentence(tmp_path):
    run = demo("--ct", tmp_path / "nothing.nrrd", "--output", tmp_path / "out")
    assert run.returncode == 2
    assert run.stderr.strip().endswith(".") and "Traceback" not in run.stderr
    assert "nothing.nrrd" in run.stderr
