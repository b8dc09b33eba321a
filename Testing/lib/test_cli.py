"""The command line: results, geometry, exit statuses, and one sentence for everything that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_up_method
import numpy as np
import pytest
import SimpleITK
from model_folder import CALIBRATION, make_model_folder
from stochastic_method import chest

import CTHarmonizeLib
from CTHarmonizeLib import cli, harmonize
from CTHarmonizeLib.ct.io import read_volume, write_nrrd
from CTHarmonizeLib.errors import InputError
from CTHarmonizeLib.report import hu_statistics

RESULTS = {"harmonized.nrrd", "mean.nrrd", "result.json"}
"""Of a method without samples."""
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(CTHarmonizeLib.__file__).parent.parent), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Scan and model folder, with a name that needs UTF-8."""
    folder = tmp_path_factory.mktemp("Überprüfung 試験")
    write_nrrd(chest(3, 128, 136), folder / "scan.nrrd")
    make_model_folder(folder / "model")
    return folder


@pytest.fixture
def scan(shared):
    return str(shared / "scan.nrrd")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_mtf_filter(scan, tmp_path, capsys):
    assert (
        cli.main(["harmonize", scan, "-o", str(tmp_path / "out"), "--kernel", "smooth", "--method", "mtf-filter"]) == 0
    )
    assert names(tmp_path / "out") == RESULTS
    assert str(tmp_path / "out" / "mean.nrrd") in capsys.readouterr().out
    source = SimpleITK.ReadImage(scan)
    for name in ("harmonized", "mean"):
        image = SimpleITK.ReadImage(str(tmp_path / "out" / f"{name}.nrrd"))
        assert SimpleITK.GetArrayFromImage(image).dtype == np.int16
        np.testing.assert_allclose(image.GetOrigin(), source.GetOrigin(), atol=1e-6)
        np.testing.assert_allclose(image.GetSpacing(), source.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), source.GetDirection(), atol=1e-6)
    report = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert report["method"] == "mtf-filter" and report["model"] is None
    assert report["target"]["acquisition"]["f50"] == pytest.approx(2.8)
    assert report["request"]["kernel"] == "smooth"
    assert report["hu"]["mean"]["mean"] == pytest.approx(report["hu"]["input"]["mean"], abs=1.0)
    assert report["hu"]["mean"]["deviation"] < report["hu"]["input"]["deviation"]


def test_ctflow_with_json(shared, scan, tmp_path, capsys):
    command = ["harmonize", scan, "-o", str(tmp_path / "neu ü"), "--kernel", "4.5", "--dose", "50", "--json"]
    assert cli.main([*command, "--model", str(shared / "model"), "--device", "cpu", "--source-kernel", "sharp"]) == 0
    report = json.loads(capsys.readouterr().out)
    card = json.loads((shared / "model" / "card.json").read_text(encoding="utf-8"))
    assert report["model"]["weights_sha256"] == card["weights_sha256"]
    assert (report["samples"], report["temperature"], report["seed"]) == (4, 0.8, 0)
    assert report["target"]["dose"] == 50
    assert report["target"]["acquisition"]["f50"] == pytest.approx(4.5)
    assert report["source"]["acquisition"]["f50"] == pytest.approx(6.0, abs=1.1)
    assert report["resampled"]["share"] >= 0
    assert set(report["seconds"]) == {"read", "describe", "load", "harmonize"}
    assert {"ctharmonize", "python", "torch", "numpy"} == set(report["versions"])
    assert report == json.loads((tmp_path / "neu ü" / "result.json").read_text(encoding="utf-8"))
    assert report["standard_deviation"]["largest"] > 0


def test_region_of_interest_lies_in_its_place(shared, scan, tmp_path):
    options = dict(dose=50.0, model=shared / "model", device="cpu", precision="float32", samples=2)
    whole = harmonize(scan, "medium", **options)
    command = (
        f"harmonize {{}} -o {{}} --kernel medium --dose 50 --samples 2 --precision float32 --device cpu --roi {ROI}"
    )
    arguments = [part.format(scan if i == 1 else tmp_path) for i, part in enumerate(command.split(" "))]
    assert cli.main([*arguments, "--model", str(shared / "model")]) == 0
    part = read_volume(tmp_path / "mean.nrrd")
    expected = whole.mean.hu[1:3, 40:96, 16:80]
    assert part.shape == expected.shape
    assert np.abs(part.hu.astype(int) - expected).max() <= 1
    matrix = whole.mean.ijk_to_ras()
    np.testing.assert_allclose(part.ijk_to_ras()[:3, 3], (matrix @ [16, 40, 1, 1])[:3], atol=1e-6)
    np.testing.assert_allclose(part.ijk_to_ras()[:3, :3], matrix[:3, :3], atol=1e-6)


ROI = "16:80,40:96,1:3"


def test_the_cards_factor_multiplies_the_deviation_and_nothing_else(shared, scan, tmp_path):
    model = make_model_folder(tmp_path / "calibrated", deviation_factor=1.5)
    options = dict(dose=50.0, device="cpu", precision="float32", samples=2, roi=ROI)
    before, after = (harmonize(scan, "medium", model=folder, **options) for folder in (shared / "model", model))
    assert before.standard_deviation.hu.max() > 0
    np.testing.assert_allclose(after.standard_deviation.hu, 1.5 * before.standard_deviation.hu, rtol=1e-5)
    np.testing.assert_array_equal(after.mean.hu, before.mean.hu)
    assert after.report["deviation_factor"] == 1.5


def test_statistics_leave_padding_out():
    padded = np.where(np.arange(90) < 20, -2000, chest().hu).astype(np.int16)
    assert hu_statistics(padded) == hu_statistics(chest().hu[..., 20:])
    assert hu_statistics(np.full((1, 4, 4), -2000, np.int16))["maximum"] == -2000


def test_a_region_is_a_roi_or_its_text():
    with pytest.raises(InputError, match="i0:i1,j0:j1,k0:k1"):
        harmonize("scan.nrrd", "medium", method="mtf-filter", roi=((0, 20), (0, 20), (0, 1)))


def test_python_reports_progress(scan):
    seen = []
    result = harmonize(
        scan, "smooth", method="mtf-filter", progress=lambda fraction, stage: seen.append((fraction, stage))
    )
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] >= 0.99
    assert len({stage for _, stage in seen}) == 5
    assert result.harmonized.shape == (3, 128, 136)


BASE = ["--kernel", "smooth", "--method", "mtf-filter"]
WRONG = [
    ([], 2, "Nothing to do"),
    (["--method", "mtf-filter", "--dose", "100"], 2, "cannot set the dose"),
    ([*BASE, "--dose", "50"], 2, "cannot set the dose"),
    ([*BASE, "--thickness", "1"], 2, "cannot set the slice thickness"),
    (["--kernel", "truth", "--method", "mtf-filter"], 2, "cannot reach the noise-free truth"),
    (["--kernel", "40", "--method", "mtf-filter"], 2, "lp/cm"),
    (["--kernel", "smooth", "--method", "mtf-filter", "--source-kernel", "truth"], 2, "Kernel 'truth' is unknown"),
    (["--kernel", "smooth", "--method", "physics-gan"], 2, "makes the noise-free truth only, not the kernel 'smooth'"),
    (["--kernel", "4.5", "--method", "physics-gan"], 2, "makes the noise-free truth only, not the kernel '4.5'"),
    (["--method", "physics-gan", "--dose", "100"], 2, "which has no dose: leave the dose out"),
    (["--method", "physics-gan", "--thickness", "1"], 2, "cannot set the slice thickness"),
    (["--kernel", "smooth", "--method", "magic"], 2, "no method 'magic'"),
    ([*BASE, "--model", "nowhere"], 2, "needs no model"),
    (["--kernel", "smooth", "--model", "nowhere"], 2, "nowhere"),
    ([*BASE, "--samples", "0"], 2, "samples"),
    ([*BASE, "--samples", "1.5"], 2, "--samples"),
    ([*BASE, "--temperature", "nan"], 2, "temperature"),
    ([*BASE, "--seed", "-1"], 2, "seed"),
    ([*BASE, "--roi", "1:2"], 2, "region"),
    ([*BASE, "--roi", "0:500,0:10,0:1"], 2, "columns"),
    ([*BASE, "--device", "tpu"], 2, "--device"),
    ([*BASE, "--source-dose", "-3"], 2, "dose"),
]


@pytest.mark.parametrize(("arguments", "status", "text"), WRONG)
def test_wrong_use_is_one_sentence(scan, tmp_path, capsys, arguments, status, text):
    check_refused(["harmonize", scan, "-o", str(tmp_path / "out"), *arguments], status, text, tmp_path, capsys)


def check_refused(arguments, status, text, folder, capsys):
    try:
        found = cli.main(arguments)
    except SystemExit as error:  # argparse's own
        found = error.code
    captured = capsys.readouterr()
    assert found == status
    assert text in captured.err
    assert captured.err.count("\n") == 1 and "Traceback" not in captured.err
    assert captured.out == ""
    assert not names(folder / "out")


def test_targets_beyond_the_card(shared, scan, tmp_path, capsys):
    base = ["harmonize", scan, "-o", str(tmp_path / "out"), "--model", str(shared / "model"), "--device", "cpu"]
    check_refused([*base, "--kernel", "2.0"], 2, "f50 of 2.5 to 6.5 lp/cm, not 2.00", tmp_path, capsys)
    check_refused([*base, "--kernel", "4", "--dose", "200"], 2, "doses of 10 to 100 %, not 200 %", tmp_path, capsys)


def test_source_beyond_the_card_is_a_warning(shared, scan, tmp_path, capsys):
    base = ["harmonize", scan, "-o", str(tmp_path / "out"), "--model", str(shared / "model"), "--device", "cpu"]
    assert cli.main([*base, "--kernel", "medium", "--source-kernel", "1.5", "--dose", "100", "--samples", "2"]) == 0
    errors = capsys.readouterr().err
    assert "source's f50 of 1.5 lp/cm lies outside the 2 to 8 lp/cm" in errors
    assert "at least 4 samples" in errors


def test_bad_inputs(tmp_path, capsys):
    for name, content in (("text.nrrd", b"not a volume"), ("empty.nii.gz", b""), ("picture.dcm", b"GIF89a")):
        (tmp_path / name).write_bytes(content)
        check_refused(["harmonize", str(tmp_path / name), "-o", str(tmp_path / "out"), *BASE], 2, "", tmp_path, capsys)
        check_refused(["describe", str(tmp_path / name)], 2, "", tmp_path, capsys)
    check_refused(["describe", str(tmp_path / "nothing")], 2, "nothing", tmp_path, capsys)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda hu: (hu - hu.min()) / np.ptp(hu),
        lambda hu: (hu - hu.min()) / np.ptp(hu) * 255,
        lambda hu: np.where(hu == hu.max(), np.nan, hu),
    ],
    ids=["0 to 1", "8-bit", "NaN"],
)
def test_what_is_no_ct_is_not_described_either(scan, tmp_path, capsys, wrong):
    path = str(tmp_path / "wrong.nrrd")  # SimpleITK's own writer lets NaN through
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(wrong(read_volume(scan).hu.astype(np.float32))), path)
    assert cli.main(["harmonize", path, "-o", str(tmp_path / "out"), *BASE]) == 2
    check_refused(["describe", path], 2, capsys.readouterr().err, tmp_path, capsys)


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_a_device_that_is_not_there(scan, tmp_path, capsys):
    check_refused(
        ["harmonize", scan, "-o", str(tmp_path / "out"), *BASE, "--device", "cuda"], 3, "device cuda", tmp_path, capsys
    )


def test_output_that_is_a_file(scan, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    check_refused(["harmonize", scan, "-o", str(tmp_path / "file" / "x"), *BASE], 2, "is a file", tmp_path, capsys)
    assert (tmp_path / "file").read_text() == "mine"


def test_older_results_stay_when_writing_fails(scan, tmp_path, capsys, monkeypatch):
    out = tmp_path / "results"
    assert cli.main(["harmonize", scan, "-o", str(out), *BASE]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()

    def full(volume, path, *arguments):
        if "mean" in path.name:
            raise OSError(28, "No space left on device")
        return write_nrrd(volume, path, *arguments)

    monkeypatch.setattr("CTHarmonizeLib.harmonization.write_nrrd", full)
    check_refused(["harmonize", scan, "-o", str(out), "--kernel", "4", *BASE[2:]], 3, "No space left", tmp_path, capsys)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    check_refused(["harmonize", scan, "-o", str(tmp_path / "a" / "b"), *BASE], 3, "No space left", tmp_path, capsys)
    assert not (tmp_path / "a").exists()


def test_unexpected_errors_are_a_sentence_too(scan, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("CTHarmonizeLib.engine.run", lambda *arguments: 1 / 0)
    check_refused(["harmonize", scan, "-o", str(tmp_path / "out"), *BASE], 3, "ZeroDivisionError", tmp_path, capsys)
    assert cli.main(["harmonize", scan, "-o", str(tmp_path / "out"), *BASE, "--debug"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_describe(scan, capsys):
    assert cli.main(["describe", scan, "--source-kernel", "4.2", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["acquisition"]["f50"] == pytest.approx(4.2)
    assert facts["sources"]["f50"] == "given"
    assert cli.main(["describe", scan, "--source-kernel", "4.2"]) == 0
    assert "f50: 4.2 lp/cm (given)" in capsys.readouterr().out


def test_models(shared, capsys, monkeypatch):
    monkeypatch.setenv("CTHARMONIZE_MODELS", str(shared))
    assert cli.main(["models"]) == 0
    printed = capsys.readouterr().out
    assert "mtf-filter" in printed
    assert "Test model 1: kernels with f50 2.5 to 6.5 lp/cm, doses of 10 to 100 %" in printed
    assert "No model of it is installed" in printed
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"ctflow", "mtf-filter"} <= {method["name"] for method in listed["methods"]}
    assert "Test model" in [model["card"]["name"] for model in listed["models"]]
    assert listed["unusable"] == []


def test_a_folder_of_models_that_is_not_there_is_a_warning(scan, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CTHARMONIZE_MODELS", os.pathsep.join([str(tmp_path / "gone"), scan]))  # the other is a file
    for command in (["models"], ["harmonize", scan, "-o", str(tmp_path / "out"), *BASE]):
        assert cli.main(command) == 0
        errors = capsys.readouterr().err
        assert errors.count("Warning: The folder '") == 2, errors
        assert f"'{tmp_path / 'gone'}', which CTHARMONIZE_MODELS names, cannot be read: No such file" in errors
    assert cli.main(["models", "--json"]) == 0
    assert [Path(entry["folder"]).name for entry in json.loads(capsys.readouterr().out)["unusable"]] == [
        "gone",
        "scan.nrrd",
    ]
    monkeypatch.setenv("CTHARMONIZE_MODELS", str(tmp_path / "gone"))
    command = ["harmonize", scan, "-o", str(tmp_path / "out2"), "--kernel", "smooth", "--model", "My model"]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "no model of that name is installed" in error and "gone', which" in error and error.count("\n") == 1


def test_a_new_method_is_one_class_in_one_module(scan, tmp_path, capsys, monkeypatch):
    made_up_method.install(monkeypatch, packages="()")
    assert cli.main(["models"]) == 0
    assert "made-up: A method for tests, one class in one module. Sets dose." in capsys.readouterr().out
    out = tmp_path / "out"
    assert cli.main(["harmonize", scan, "-o", str(out), "--method", "made-up", "--dose", "100"]) == 0
    tissue = (slice(None), slice(60, 70), slice(60, 70))
    difference = read_volume(out / "mean.nrrd").hu[tissue].astype(int) - read_volume(scan).hu[tissue]
    assert (difference == 7).all()


def test_a_missing_package_is_one_sentence(scan, tmp_path, capsys, monkeypatch):
    made_up_method.install(monkeypatch)
    out = tmp_path / "out"
    assert cli.main(["harmonize", scan, "-o", str(out), "--method", "made-up", "--dose", "100"]) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "made-up-package (on made-up terms)" in error
    assert 'run pip install "made-up-package"' in error
    assert not out.exists()


def test_models_tells_whether_the_deviation_is_calibrated(tmp_path, capsys, monkeypatch):
    make_model_folder(tmp_path / "plain", name="Plain")
    make_model_folder(tmp_path / "calibrated", name="Calibrated", calibration=CALIBRATION)
    monkeypatch.setenv("CTHARMONIZE_MODELS", str(tmp_path))
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    plain, calibrated = (
        next(line for line in lines if f"  {name} 1" in line) for name in ("Plain", "Calibrated")
    )
    assert "alibrated" not in plain and "Deviation calibrated: 50 % intervals held 51 % of the targets." in calibrated


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupt_leaves_nothing(shared, scan, tmp_path):
    code = (
        "import sys\n"
        "from CTHarmonizeLib import cli, engine\n"
        "run = engine.run\n"
        "def announced(*arguments):\n"
        "    print('running', flush=True); return run(*arguments)\n"
        "engine.run = announced\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    numbers = (signal.SIGINT, signal.SIGTERM)
    arguments = ["--kernel", "medium", "--model", str(shared / "model"), "--samples", "1000", "--device", "cpu"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, "harmonize", scan, "-o", str(tmp_path / f"out{number}"), *arguments],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # A shell lets its background jobs, and so their children, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        for number in numbers
    ]
    for process, number in zip(processes, numbers, strict=True):
        assert process.stdout.readline() == "running\n"
        time.sleep(0.3)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        assert (process.returncode, errors, output) == (130, "Cancelled.\n", "")
        assert not (tmp_path / f"out{number}").exists()


def test_command_line_as_a_process(scan, tmp_path):
    command = [sys.executable, "-m", "CTHarmonizeLib", "harmonize", scan, "-o", str(tmp_path / "out"), *BASE]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "%" not in done.stderr  # progress is for terminals
    assert names(tmp_path / "out") == RESULTS
    shutil.rmtree(tmp_path / "out")


def test_results_never_replace_their_input(scan, tmp_path, capsys):
    folder = tmp_path / "results"
    assert cli.main(["harmonize", str(scan), "-o", str(folder), "--method", "mtf-filter", "--kernel", "smooth"]) == 0
    before = (folder / "mean.nrrd").read_bytes()
    again = ["harmonize", str(folder / "mean.nrrd"), "-o", str(folder), "--method", "mtf-filter", "--kernel", "smooth"]
    assert cli.main(again) == 2
    assert "would replace the input" in capsys.readouterr().err
    assert (folder / "mean.nrrd").read_bytes() == before


def test_models_tells_of_a_missing_package(capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = lines[next(number for number, line in enumerate(lines) if line.startswith("bm3d:")) + 1]
    assert "Cannot run here: bm3d" in told
