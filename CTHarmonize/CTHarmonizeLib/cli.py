"""The command ``ctharmonize``: harmonize, describe, compare, models.

Exit status 0 done, 2 wrong use or bad input, 3 cannot run here, 130 cancelled. Anything wrong is one sentence on
standard error; ``--debug`` shows the traceback.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from typing import NoReturn

from CTHarmonizeLib.errors import Cancelled, CTHarmonizeError
from CTHarmonizeLib.version import __version__

CANNOT_RUN = 3


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        return 0
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if options.debug:
            traceback.print_exc()
        message, status = sentence(error)
        print(message, file=sys.stderr)
        return status


def sentence(error: BaseException) -> tuple[str, int]:
    """One sentence for the reader and the exit status, of anything that ended a run."""
    if isinstance(error, CTHarmonizeError):
        return " ".join(str(error).split()), error.exit_status
    if isinstance(error, KeyboardInterrupt):
        return str(Cancelled()), Cancelled.exit_status
    if isinstance(error, MemoryError):
        return "The memory does not suffice: close other programs, or harmonize a region of the volume.", CANNOT_RUN
    if isinstance(error, ModuleNotFoundError):
        return f"The Python package '{error.name}' is not installed here.", CANNOT_RUN
    if isinstance(error, BrokenPipeError):
        return "The output's reader went away.", CANNOT_RUN
    details = " ".join(str(error).split())[:300]
    return f"An unexpected error ended the run ({type(error).__name__}: {details}).", CANNOT_RUN


def _parser() -> _Parser:
    parser = _Parser(prog="ctharmonize", description="Harmonize CT volumes across kernels and doses.")
    parser.add_argument("--version", action="version", version=f"ctharmonize {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="harmonize | describe | compare | models")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("input", metavar="INPUT", help="DICOM folder or file, NRRD, NIfTI or MetaImage")
    source.add_argument("--source-kernel", metavar="K", help="the source's kernel, instead of what is detected")
    source.add_argument("--source-dose", type=float, metavar="D", help="the source's dose in percent, likewise")

    command = commands.add_parser("harmonize", parents=[source, common], help="make the harmonized volumes")
    command.set_defaults(run=_harmonize)
    command.add_argument("-o", "--output", required=True, metavar="FOLDER", help="folder for the results")
    command.add_argument(
        "--kernel",
        metavar="K",
        help="target kernel: smooth, medium, sharp, a vendor's such as siemens-b30f, or an f50 in lp/cm; or truth, for "
        "methods that make the noise-free truth (without it: the source's)",
    )
    command.add_argument("--dose", type=float, metavar="PERCENT", help="target dose (without it: the source's)")
    command.add_argument(
        "--thickness",
        type=float,
        metavar="MM",
        help="target slice thickness, for methods that can set it (without it: what the model makes of the source's)",
    )
    command.add_argument("--method", default="ctflow", help="default: %(default)s; see ctharmonize models")
    command.add_argument("--model", metavar="FOLDER", help="model folder, or the name of an installed model")
    command.add_argument("--samples", type=int, metavar="N", help="samples to draw (default: the model's)")
    command.add_argument("--temperature", type=float, metavar="T", help="deviation of the latents")
    command.add_argument("--seed", type=int, default=0, help="same seed, same images (default: 0)")
    command.add_argument(
        "--coherence",
        type=float,
        default=0.0,
        metavar="MM",
        help="length over which neighbouring slices' noise grain is alike (default: 0, independent)",
    )
    command.add_argument(
        "--augment",
        action="store_true",
        help="of a method without samples: its spread over the eight turns and flips of each slice, which is no "
        "uncertainty, as augmentation_spread.nrrd",
    )
    command.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        default="auto",
        help="where to compute (auto: a GPU if there is one)",
    )
    command.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the network (auto: bfloat16 where the device has it)",
    )
    command.add_argument("--roi", metavar="i0:i1,j0:j1,k0:k1", help="columns, rows, slices to harmonize")
    command.add_argument("--tile", type=int, metavar="PIXELS", help="side of a tile (default: by memory)")
    command.add_argument("--batch", type=int, metavar="SLICES", help="slices at once (default: by memory)")
    command.add_argument("--threads", type=int, metavar="N", help="processor cores to use")

    command = commands.add_parser("describe", parents=[source, common], help="acquisition of a scan")
    command.set_defaults(run=_describe)
    command = commands.add_parser("compare", parents=[common], help="measures of two volumes on one grid")
    command.set_defaults(run=_compare)
    command.add_argument("before", metavar="BEFORE", help="DICOM folder or file, NRRD, NIfTI or MetaImage")
    command.add_argument("after", metavar="AFTER", help="likewise, such as the harmonized volume")
    command.add_argument("--reference", metavar="FILE", help="likewise: what AFTER should be like")
    command = commands.add_parser("models", parents=[common], help="what is installed, and what it can reach")
    command.set_defaults(run=_models)
    return parser


def _harmonize(options: argparse.Namespace) -> None:
    from CTHarmonizeLib import report
    from CTHarmonizeLib.harmonization import check_input_kept, check_output_folder, harmonize
    from CTHarmonizeLib.models import unreadable_folders
    from CTHarmonizeLib.request import Request

    names = (
        "kernel dose thickness method model source_kernel source_dose samples temperature seed coherence device "
        "precision roi tile batch threads augment"
    )
    request = Request(
        **{name: getattr(options, name) for name in names.split()},
    )
    check_input_kept(options.input, check_output_folder(options.output))
    if hasattr(signal, "SIGTERM"):  # end as with Ctrl-C: nothing half-written stays
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    line = _ProgressLine()
    try:
        result = harmonize(options.input, request, line)
        files = result.save(options.output)
    finally:
        line.close()
    warnings = [*(folder.reason for folder in unreadable_folders()), *result.report["warnings"]]
    for kind, sentences in (("Note", result.report["notes"]), ("Warning", warnings)):
        for text in sentences:
            print(f"{kind}: {text}", file=sys.stderr)
    if options.json:
        print(report.as_json(result.report, indent=2))
    else:
        for path in files.values():
            print(path)


def _describe(options: argparse.Namespace) -> None:
    from CTHarmonizeLib import describe, report

    description = describe(options.input, options.source_kernel, options.source_dose)
    facts = description.as_dict()
    if options.json:
        print(report.as_json(facts, indent=2))
        return
    print(f"kernel: {description.kernel_name}")
    if description.exposure_mas is not None:
        print(f"exposure: {description.exposure_mas:g} mAs")
    for name, value in description.acquisition.as_dict().items():
        if value is not None:
            print(f"{name.replace('_', ' ')}: {value:.3g} {_UNITS.get(name, '')} ({_origin(description, name)})")
    for warning in description.warnings:
        print(f"Warning: {warning}", file=sys.stderr)


def _compare(options: argparse.Namespace) -> None:
    from CTHarmonizeLib import compare, report

    comparison = compare(options.before, options.after, options.reference)
    if options.json:
        print(report.as_json(comparison.as_dict(), indent=2))
        return
    names = ["before", "after"] + ["reference"] * (options.reference is not None)
    print(f"{'':52}" + "".join(f"{name:>12}" for name in names))
    for row in comparison.rows:
        values = (getattr(row, name) for name in names)
        cells = ("-" if value is None else f"{value:.{row.digits}f}" for value in values)
        print(f"{f'{row.measure}, {row.unit}':52}" + "".join(f"{cell:>12}" for cell in cells))


_UNITS = {
    "f50": "lp/cm",
    "f10": "lp/cm",
    "noise": "HU",
    "noise_frequency": "lp/cm",
    "pixel_spacing": "mm",
    "slice_thickness": "mm",
}


def _origin(description, name: str) -> str:
    return description.sources.get(name, description.sources.get("f50", "assumed"))


def _models(options: argparse.Namespace) -> None:
    from CTHarmonizeLib import report
    from CTHarmonizeLib.methods import available
    from CTHarmonizeLib.models import BrokenModel, installed_models

    found = installed_models()
    models = [model for model in found if not isinstance(model, BrokenModel)]
    broken = [model for model in found if isinstance(model, BrokenModel)]
    methods = available()
    if options.json:
        entries = {
            "methods": [
                {
                    "name": method.name,
                    "title": method.title,
                    "summary": method.summary,
                    "sets": sorted(method.target_fields),
                    "makes_truth": method.makes_truth,
                    "needs_model": method.needs_model,
                    "missing": method.missing_packages(),
                }
                for method in methods.values()
            ],
            "models": [{"folder": str(model.folder), "card": model.card} for model in models],
            "unusable": [{"folder": str(model.folder), "reason": model.reason} for model in broken],
        }
        print(report.as_json(entries, indent=2))
        return
    for method in methods.values():
        fields = f"Sets {' and '.join(sorted(method.target_fields, reverse=True))}."
        print(f"{method.name}: {method.summary} {'Makes the noise-free truth only.' if method.makes_truth else fields}")
        own = [model for model in models if model.method == method.name]
        for model in own:
            print(f"  {model.name} {model.card['version']}: {_reach(model.card)}  [{model.folder}]")
        if missing := method.missing_packages():
            print(f"  Cannot run here: {' and '.join(missing)} is not installed.")
        if method.needs_model and not own:
            print("  No model of it is installed: it has to be trained.")
    for model in broken:
        print(f"Warning: {model.reason}", file=sys.stderr)


def _reach(card: dict) -> str:
    from CTHarmonizeLib.request import doses

    low, high = card["target"]["f50"]
    dose = "without noise" if card["target"]["dose"] is None else doses(*card["target"]["dose"])
    reach = f"kernels with f50 {low:g} to {high:g} lp/cm, {dose}"
    thickness = card["target"]["thickness"]
    if thickness:
        source = card["slice_thickness"]
        reach += f"; of slices of {source[0]:g} to {source[1]:g} mm it makes slices of {thickness[0]:g} to "
        reach += f"{thickness[1]:g} mm"
    reach += "."
    if "calibration" not in card:
        return reach
    widest = max(card["calibration"]["coverage"], key=lambda entry: entry["nominal"])
    covered = f"{100 * widest['nominal']:.0f} % intervals held {100 * widest['after']['value']:.0f} % of the targets."
    return f"{reach} Deviation calibrated: {covered}"


class _ProgressLine:
    """Progress on standard error, on one line, when that is a terminal."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()
        self.last = 0.0
        self.width = 0

    def __call__(self, fraction: float, stage: str) -> None:
        if self.shown and time.monotonic() - self.last > 0.1:
            self.last = time.monotonic()
            text = f"{stage}: {100 * fraction:.0f} %"
            sys.stderr.write("\r" + text.ljust(self.width))
            sys.stderr.flush()
            self.width = len(text)

    def close(self) -> None:
        if self.width:
            sys.stderr.write("\r" + " " * self.width + "\r")


if __name__ == "__main__":
    sys.exit(main())
