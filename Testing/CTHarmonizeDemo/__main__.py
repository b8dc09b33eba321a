"""Harmonizes scans through the module's panel and its background process; see ``make demo`` in the README."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT / "CTHarmonize", ROOT, ROOT / "Testing"):
    sys.path.insert(0, str(folder))

from CTHarmonizeDemo import cases, figure, measures  # noqa: E402
from CTHarmonizeLib.ct.io import write_nrrd  # noqa: E402
from CTHarmonizeLib.ct.volume import Volume  # noqa: E402
from CTHarmonizeLib.errors import CannotRunError, CTHarmonizeError  # noqa: E402

OUTPUTS = {
    "harmonized": "harmonizedVolume",
    "mean": "meanVolume",
    "standard_deviation": "standardDeviationVolume",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status."""
    options = _parser().parse_args(arguments)
    host = None
    try:
        start = _host_starter()
        todo = _cases(options)
        first = next(todo)  # a scan that cannot be read is told at once
        host = start()
        run(host, chain([first], todo), options)
    except CTHarmonizeError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("Cancelled.", file=sys.stderr)
        return 130
    finally:
        if host is not None:
            for problem in host.takeErrors():
                print(problem, file=sys.stderr)
            host.close()
    return 0


def run(host, todo: Iterable[cases.Case], options: argparse.Namespace) -> None:
    """Harmonize every case into its folder below ``options.output``."""
    from CTHarmonizeLib.models import BrokenModel, installed_models

    started = time.monotonic()
    models = [model for model in installed_models() if not isinstance(model, BrokenModel)]
    trained = any(model.method == "ctflow" for model in models)
    method = options.method or ("ctflow" if trained else "mtf-filter")
    if not trained and options.method is None:
        print("No trained model is installed: the classical MTF filter is shown, which cannot set the dose.")
    panel = host.loadModule(ROOT / "CTHarmonize" / "CTHarmonize.py")
    for number, case in enumerate(todo):
        harmonize(host, panel, case, method, options, first=number == 0)
    print(f"\nAll done in {time.monotonic() - started:.0f} s; everything is in {_shown(options.output)}/")


def harmonize(host, panel, case: cases.Case, method: str, options: argparse.Namespace, first: bool) -> None:
    """Load ``case`` into the scene, press Apply, wait, and write down what came back."""
    import slicer

    folder = options.output / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_nrrd(case.volume, folder / "input.nrrd", str(case.volume.hu.dtype))
    node = slicer.util.loadVolume(str(folder / "input.nrrd"), {"name": case.title})
    _hand_on_tags(node, case.volume)
    truth = None
    if case.truth is not None:
        truth = _volume_of(slicer.util.loadVolume(str(case.truth), {"name": f"{case.title}, noise-free"}))
    print(f"\n{case.title}: {' x '.join(map(str, case.volume.shape[::-1]))} voxels, {method}")

    parameters = panel.logic.getParameterNode()
    parameters.inputVolume = node
    parameters.method = method
    parameters.targetKernel, parameters.targetDose = case.kernel, case.dose
    if options.samples:
        parameters.samples = options.samples
    host.process(60, until=lambda: panel.ui.applyButton.enabled and "f50" in panel.ui.detectedLabel.text)
    if not panel.ui.applyButton.enabled:
        raise CannotRunError(f"The panel does not offer Apply: {panel.ui.applyButton.toolTip}")
    _picture(host, panel, options.output / "panel-ready.png")
    panel.ui.applyButton.click()
    job = panel.panel.job
    if job is None:
        raise CannotRunError(panel.ui.messageLabel.text)
    pictured = False
    while not host.process(0.5, until=lambda: job.finished):
        if not pictured and job.fraction > 0.3:
            _picture(host, panel, options.output / "panel-running.png")
            pictured = True
        _progress(job)
    _progress(None)
    if job.state != "done":
        raise CannotRunError(job.error)
    _picture(host, panel, options.output / "panel.png")
    shutil.copy(options.output / "panel.png", folder)
    for warning in dict.fromkeys([*case.volume.warnings, *job.report.get("warnings", job.warnings)]):
        print(f"Warning: {warning}")

    images = {"input": _volume_of(node)}
    write_nrrd(images["input"], folder / "input.nrrd", str(images["input"].hu.dtype))
    for name, attribute in OUTPUTS.items():
        node = getattr(job, attribute)
        if node is None:  # a method without samples has no deviation
            continue
        volume = _volume_of(node)
        images["deviation" if name == "standard_deviation" else name] = volume
        write_nrrd(volume, folder / f"{name}.nrrd", "float32" if name == "standard_deviation" else "int16")
    (folder / "result.json").write_text(json.dumps(job.report, indent=2, ensure_ascii=False), encoding="utf-8")
    where = measures.regions(images["input"])
    quiet = measures.quiet_tissue(images["mean"], where)
    names = ["input", "harmonized", *(["mean"] if job.report["samples"] > 1 else [])]
    columns = {name: measures.measure(images[name], where, quiet, truth) for name in names}
    wanted = job.report["target"]["acquisition"]
    noise = wanted["noise"] if "dose" in _sets(method) else None
    table = measures.table(columns, {"noise": noise, "f50": wanted["f50"]})
    print(table)
    (folder / "measured.txt").write_text(table + "\n", encoding="utf-8")
    figure.draw(folder / "figure.png", _figure_title(case, job), images, where)
    seconds = job.seconds
    print(f"{seconds:.1f} s, {seconds / case.volume.shape[0]:.1f} s a slice. Volumes and figure: {_shown(folder)}/")
    if first:
        print(f"The panel: {_shown(options.output / 'panel.png')}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--ct", type=Path, help="a scan of your own: DICOM folder or file, NRRD, NIfTI or MetaImage")
    parser.add_argument("--slices", type=int, help="of your own scan: so many slices from its middle (default: all)")
    parser.add_argument("--kernel", default="medium", help="target kernel for your own scan (default: %(default)s)")
    parser.add_argument("--dose", type=float, default=100.0, help="target dose for it (default: %(default)g %%)")
    parser.add_argument("--method", help="default: ctflow where a model is installed, else mtf-filter")
    parser.add_argument("--samples", type=int, help="samples to draw (default: the panel's)")
    parser.add_argument("--chest-slices", type=int, default=3, help="slices of the simulated chest")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="default: %(default)s")
    return parser


def _cases(options: argparse.Namespace) -> Iterator[cases.Case]:
    """One after the other, so that the first result is there before the second scan is simulated."""
    if options.ct:
        yield cases.own(options.ct, options.slices, options.kernel, options.dose)
        return
    yield cases.head()
    if options.chest_slices:
        print("\nSimulating a chest ...", flush=True)
        yield cases.chest(options.chest_slices, options.output / "chest-simulated")


def _host_starter() -> Callable:
    try:
        import PySide6  # noqa: F401
        import slicer_core  # noqa: F401
    except ImportError:
        raise CannotRunError(
            "The demo runs the Slicer panel, for which it needs slicer-core, published for Python 3.11: "
            "make clean, then make demo PYTHON=python3.11."
        ) from None
    from SlicerHost import start

    return start


def _volume_of(node) -> Volume:
    """The volume as the scene has it (Slicer turns slices round where a file's axes are left-handed)."""
    import numpy as np
    import slicer
    import vtk

    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ slicer.util.arrayFromVTKMatrix(matrix)
    direction = lps[:3, :3] / np.array(node.GetSpacing())
    origin = tuple(map(float, lps[:3, 3]))
    hu = slicer.util.arrayFromVolume(node).copy()
    return Volume(hu, tuple(node.GetSpacing()), origin, tuple(map(float, direction.ravel())))


def _hand_on_tags(node, volume: Volume) -> None:
    """What Slicer keeps of DICOM files in its database, kept with the volume here."""
    facts = volume.facts
    if facts is None:
        return
    tags = {
        "Manufacturer": facts.manufacturer,
        "ManufacturerModelName": facts.model,
        "ConvolutionKernel": facts.kernel,
        "KVP": facts.kvp,
        "Exposure": facts.exposure_mas,
        "SliceThickness": facts.slice_thickness,
    }
    for name, value in tags.items():
        if value:
            node.SetAttribute(name, str(value))


def _figure_title(case: cases.Case, job) -> str:
    report = job.report
    wanted = f"{case.kernel} kernel" + (f", {case.dose:g} % dose" if "dose" in _sets(report["method"]) else "")
    samples = report.get("samples") or 1
    how = report["method"] + (f", {samples} samples" if samples > 1 else "")
    return f"{case.title}, to {wanted} ({how})"


def _sets(method: str) -> frozenset[str]:
    from CTHarmonizeLib.methods import available

    return available()[method].target_fields


def _picture(host, panel, path: Path) -> None:
    figure.trim(host.screenshot(panel, path))


def _progress(job) -> None:
    """Progress on one line, where there is a terminal."""
    if not sys.stdout.isatty():
        return
    text = "" if job is None else f"{job.stage}: {100 * job.fraction:.0f} %"
    print("\r" + text.ljust(60) + ("\r" if job is None else ""), end="", flush=True)


def _shown(path: Path) -> str:
    """Relative to here where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


if __name__ == "__main__":
    sys.exit(main())
