"""The command ``ctharmonize-train``."""

from __future__ import annotations

import ast
import signal
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from CTHarmonizeLib.cli import sentence
from CTHarmonizeLib.errors import InputError

COMMANDS = {
    "simulate": "simulation.command:simulate",
    "measurements": "simulation.measurements:measurements",
    "import": "importing.command:import_collection",
    "fit": "training.fit:fit",
    "export": "training.export:export",
    "calibrate": "evaluation.calibration:calibrate",
    "evaluate": "evaluation.pairs_table:evaluate",
    "compare": "evaluation.comparison:compare",
    "report": "evidence.command:report",
    "reconstruct": "reconstruction.comparison:reconstruct",
    "detector": "evidence.detection.train:train_detector",
}
"""Module and function of each; only the one that is asked for is imported."""

SUITE = "evidence.command:evaluate_suite"
"""What 'evaluate' is with the option --suite: of many methods, with options of its own."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status (0 done, 2 bad input, 3 cannot run here, 130 cancelled)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as with Ctrl-C: nothing half-written stays
        run(_named([argument for argument in arguments if argument != "--debug"]))
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        words, status = sentence(error)
        print(f"ctharmonize-train: {words}", file=sys.stderr)
        return status
    finally:
        signal.signal(signal.SIGTERM, before)
    return 0


def run(arguments: list[str]) -> None:
    """Parse ``arguments`` and run their subcommand. Raises InputError for what is no command or option."""
    from CTHarmonizeTraining.options import near, run_command

    name, *options = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
        raise SystemExit(0)
    if name not in COMMANDS:
        raise InputError(f"There is no command '{name}'{near(name, COMMANDS)}: give one of {', '.join(COMMANDS)}.")
    place = COMMANDS[name]
    if name == "evaluate" and any(option.partition("=")[0] == "--suite" for option in options):
        place = SUITE
        if not options[0].startswith("-"):
            options.insert(0, "--output")
    module, _, function = place.partition(":")
    command = getattr(import_module(f"CTHarmonizeTraining.{module}"), function)
    run_command(command, options, f"ctharmonize-train {name}", _DEBUG)


def _help() -> str:
    """What the subcommands do, read from their docstrings without importing them."""
    lines = ["usage: ctharmonize-train COMMAND ...", "", "commands:"]
    for name, place in COMMANDS.items():
        module, _, function = place.partition(":")
        file = Path(find_spec("CTHarmonizeTraining").origin).parent.joinpath(*module.split(".")).with_suffix(".py")
        parts = ast.parse(file.read_text(encoding="utf-8")).body
        found = next(part for part in parts if isinstance(part, ast.FunctionDef) and part.name == function)
        lines.append(f"  {name:<12} {ast.get_docstring(found).splitlines()[0]}")
    suite = "ctharmonize-train evaluate --suite papers: all methods, what the papers measured, one report"
    return "\n".join([*lines, "", "ctharmonize-train COMMAND --help: its options", suite, _DEBUG])


_DEBUG = "--debug, anywhere: show the traceback of an error"


def _named(arguments: list[str]) -> list[str]:
    """``arguments`` with the names of shipped configurations replaced by their files."""
    result: list[str] = []
    for argument in arguments:
        option, sign, value = argument.partition("=")
        if result and result[-1] == "--config":
            argument = _shipped(argument)
        elif option == "--config" and sign:
            argument = f"{option}={_shipped(value)}"
        result.append(argument)
    return result


def _shipped(name: str) -> str:
    from CTHarmonizeTraining.training.settings import shipped

    return shipped(name)
