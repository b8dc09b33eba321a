"""The command ``ctharmonize-train``."""

from __future__ import annotations

import sys
import traceback
import warnings

from CTHarmonizeLib.cli import sentence


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status (0 done, 2 bad input, 3 cannot run here, 130 cancelled)."""
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        from jsonargparse import auto_cli

        from CTHarmonizeTraining.evaluation.calibration import calibrate
        from CTHarmonizeTraining.evaluation.pairs_table import evaluate
        from CTHarmonizeTraining.importing.command import import_collection
        from CTHarmonizeTraining.simulation.command import simulate
        from CTHarmonizeTraining.training.fit import fit

        auto_cli(
            {
                "simulate": simulate,
                "import": import_collection,
                "fit": fit,
                "calibrate": calibrate,
                "evaluate": evaluate,
            },
            args=[argument for argument in arguments if argument != "--debug"],
            prog="ctharmonize-train",
            epilog="--debug, anywhere: show the traceback of an error",
        )
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        words, status = sentence(error)
        print(f"ctharmonize-train: {words}", file=sys.stderr)
        return status
    return 0
