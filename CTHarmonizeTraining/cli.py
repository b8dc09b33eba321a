"""The command ``ctharmonize-train``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from CTHarmonizeLib.cli import sentence


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status (0 done, 2 bad input, 3 cannot run here, 130 cancelled)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        run(_named([argument for argument in arguments if argument != "--debug"]))
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        words, status = sentence(error)
        print(f"ctharmonize-train: {words}", file=sys.stderr)
        return status
    return 0


def run(arguments: list[str]) -> None:
    """Parse ``arguments`` and run their subcommand."""
    from jsonargparse import auto_cli

    auto_cli(
        _commands(),
        args=arguments,
        prog="ctharmonize-train",
        epilog="--debug, anywhere: show the traceback of an error",
    )


def _commands() -> dict[str, Callable]:
    from CTHarmonizeTraining.evaluation.calibration import calibrate
    from CTHarmonizeTraining.evaluation.comparison import compare
    from CTHarmonizeTraining.evaluation.pairs_table import evaluate
    from CTHarmonizeTraining.importing.command import import_collection
    from CTHarmonizeTraining.simulation.command import simulate
    from CTHarmonizeTraining.training.export import export
    from CTHarmonizeTraining.training.fit import fit

    return {
        "simulate": simulate,
        "import": import_collection,
        "fit": fit,
        "export": export,
        "calibrate": calibrate,
        "evaluate": evaluate,
        "compare": compare,
    }


def _named(arguments: list[str]) -> list[str]:
    """``arguments`` with the names of shipped configurations replaced by their files."""
    from CTHarmonizeTraining.training.settings import shipped

    result: list[str] = []
    for argument in arguments:
        option, sign, value = argument.partition("=")
        if result and result[-1] == "--config":
            argument = shipped(argument)
        elif option == "--config" and sign:
            argument = f"{option}={shipped(value)}"
        result.append(argument)
    return result
