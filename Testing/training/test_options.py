"""What is wrong with a command's options is one sentence that names the option; a command imports only itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from CTHarmonizeTraining.cli import COMMANDS, main

CTFLOW = "CTHarmonizeTraining.training.ctflow.CTFlowTraining"
COMPACT = ["fit", "--config", "ctflow-compact"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulat", "a", "b"], "There is no command 'simulat' (did you mean simulate?)"),
        (["simulate"], "input and output are missing: see ctharmonize-train simulate --help."),
        (["simulate", "a"], "output is missing"),
        (["simulate", "a", "b", "--source-kernel", "3"], "no option --source-kernel (did you mean --source_kernel?)"),
        (["simulate", "a", "b", "--views", "x"], "--views has to be a whole number, not 'x'."),
        (["simulate", "a", "b", "--views"], "--views needs a value."),
        (["simulate", "a", "b", "--report", "maybe"], "--report has to be true or false, not 'maybe'."),
        (["simulate", "a", "b", "c"], "'c' is too much."),
        (["import", "mayoo", "a", "b"], "layout has to be one of mayo, folders, lodopab"),
        (["evaluate", "x", "--slices", "q"], "--slices has to be a whole number or a list such as '[1, 2]', not 'q'."),
        ([*COMPACT, "a", "b", "--data.sise", "3"], "no option --data.sise (did you mean --data.size?)"),
        ([*COMPACT, "a", "b", "--data", "3"], "--data is a group of settings: give one of them, such as --data.size"),
        (
            [*COMPACT, "a", "b", "--method.flow.iteratons", "3"],
            "no option --method.flow.iteratons (did you mean --method.flow.iterations?)",
        ),
        ([*COMPACT, "a", "b", "--method.flow.iterations", "x"], "--method.flow.iterations has to be a whole number"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_one_sentence(arguments: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\n", "own.yaml' is no YAML that can be read: "),
        ("data: {sizze: 3}\n", "There is no setting data.sizze (did you mean data.size?)."),
        ("data: {size: many}\n", "--data.size has to be a whole number, not 'many'."),
        ("method: {class_path: nope.Nope}\n", "--method: No module named 'nope'"),
        (
            f"method:\n  class_path: {CTFLOW}\n  init_args: {{flow: {{iteratons: 3}}}}\n",
            "There is no setting method.flow.iteratons (did you mean method.flow.iterations?).",
        ),
    ],
)
def test_a_wrong_configuration_is_one_sentence(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "own.yaml").write_text(text)
    assert main(["fit", "--config", str(tmp_path / "own.yaml"), "a", "b"]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


def test_one_seed_of_a_phantom_needs_no_brackets(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It is read: what is refused is that the shipped model was trained on it."""
    assert main(["evaluate", str(tmp_path / "out"), "--phantom", "101", "--device", "cpu"]) == 2
    assert "'phantom:101' was trained on: judge the model on other data." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_names_all_commands_and_imports_none() -> None:
    code = "import sys; from CTHarmonizeTraining.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'lightning', 'zarr') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    *told, imported = done.stdout.splitlines()
    assert imported == "[]", done.stderr
    assert {line.split()[0] for line in told if line.startswith("  ")} == {*COMMANDS}
    assert all(len(line.split()) > 5 for line in told if line.startswith("  ")) and "--debug" in done.stdout
