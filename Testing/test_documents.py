"""What README and docs promise exists: commands and their options, files, pictures; and nothing names a machine."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LARGEST_PICTURE = 300_000
RUNS = re.compile(r"phantom|\bmodels\b|\$|--help|--suite")
"""Commands that need no file, or stand in a loop."""



def tracked() -> list[Path]:
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if git.returncode:
        pytest.skip("this is no git checkout")
    return [path for path in (ROOT / name for name in git.stdout.decode().split("\0") if name) if path.is_file()]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """Lines of all pages' plain blocks that run ``program``."""
    lines = [
        line.strip() for page in PAGES for language, text in blocks(page) if not language for line in text.splitlines()
    ]
    return [line for line in dict.fromkeys(lines) if line.split() and line.split()[0] == program]


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])(--?[A-Za-z](?:[\w.-]*\w)?)", text))


def main_of(program: str) -> Callable:
    if program == "ctharmonize":
        from CTHarmonizeLib.cli import main
    else:
        pytest.importorskip("jsonargparse")
        pytest.importorskip("lightning")
        from CTHarmonizeTraining.cli import main
    return main


def help_of(program: str, subcommand: str, capsys, *arguments: str) -> str:
    main = main_of(program)
    with pytest.raises(SystemExit) as end:
        main([subcommand, *arguments, "--help"])
    assert end.value.code == 0, f"{program} has no command {subcommand}"
    return capsys.readouterr().out


def settings_of_the_method() -> set[str]:
    """Dotted names of what a configuration says of its method: options that no help lists."""
    from CTHarmonizeTraining.training import settings

    def names(entries: dict, place: str = "") -> set[str]:
        inner = (names(value, f"{place}{key}.") for key, value in entries.items() if isinstance(value, dict))
        return {f"{place}{key}" for key in entries}.union(*inner)

    shipped = (settings.load(name)[0] for name in ("ctflow-compact", "wgan-vgg-compact"))
    return set().union(*(names(method.as_dict()["init_args"]) for method in shipped))


@pytest.mark.parametrize("line", commands("ctharmonize") + commands("ctharmonize-train"))
def test_command_exists_with_its_options(line, capsys):
    program, subcommand, *arguments = shlex.split(line.split("||")[0])
    suite = ("--suite", "papers") if "--suite" in arguments else ()  # with options of its own
    known = options(help_of(program, subcommand, capsys, *suite)) | {"--help"}
    if subcommand == "fit":
        known |= {f"--method.{name}" for name in settings_of_the_method()}
    asked = {argument.split("=")[0] for argument in arguments if re.match(r"--?[A-Za-z]", argument)}
    assert asked <= known


@pytest.mark.parametrize(
    "line", [line for line in commands("ctharmonize") + commands("ctharmonize-train") if not RUNS.search(line)]
)
def test_command_asks_for_its_files(line, tmp_path, monkeypatch, capsys):
    """In an empty folder the shown commands are understood, and end with one sentence about what is not there."""
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(line)
    assert main_of(program)(arguments) == (3 if lacks_a_package(arguments) else 2)
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].endswith("."), said


def lacks_a_package(arguments: list[str]) -> bool:
    """Whether the command's method needs an optional package that is not here: it is said before any file is read."""
    from CTHarmonizeLib.errors import CannotRunError
    from CTHarmonizeLib.methods import method_named

    if "--method" not in arguments:
        return False
    try:
        method_named(arguments[arguments.index("--method") + 1]).check_packages()
    except CannotRunError:
        return True
    return False


def test_pages_show_commands():
    assert len(commands("ctharmonize")) >= 6
    assert len(commands("ctharmonize-train")) >= 4


def test_every_option_of_harmonize_is_explained_and_real(capsys):
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    section = page.split("## ctharmonize harmonize")[1].split("\n## ")[0]
    in_table = options("\n".join(line.split("|")[1] for line in section.splitlines() if line.startswith("| `-")))
    assert in_table == options(help_of("ctharmonize", "harmonize", capsys)) - {"-h", "--help"}


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for line in commands("make"):
        assert shlex.split(line)[1] in targets, line
    assert {"demo", "test"} <= {shlex.split(line)[1] for line in commands("make")}


def test_guard_runs_what_the_readme_says():
    guard = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Tests")[1]
    command = re.search(r"```\n(.*?)\n```", section).group(1)
    assert command in guard


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'<img src="([^"]+)"', text)
    local = [link for link in links if not re.match(r"\w+:", link)]
    known = {path.resolve() for path in tracked()}
    for link in local:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target in known, f"{link} is not part of the repository"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_can_be_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        for link in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8")):
            target = (page.parent / link).resolve()
            if target not in reached and target.is_file():
                ahead.append(target)
    assert set(PAGES) <= reached


@pytest.mark.parametrize("name", NAMES)
def test_python_in_pages_is_python(name):
    for language, text in blocks(ROOT / name):
        if language == "python":
            compile(text, name, "exec")


def test_pictures_are_small_and_used():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    text += (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for picture in (path for path in tracked() if path.parent == ROOT / "docs" / "images"):
        assert picture.stat().st_size <= LARGEST_PICTURE, picture
        assert f"images/{picture.name}" in text, f"{picture.name} is on no page"


def test_no_tracked_file_names_a_machine():
    path = re.compile(r"(?<![\w.\-/])/" + r"(?:work|root|Users|home/[a-z]\w*)/[\w.]")
    found = []
    for file in tracked():
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {line.strip()[:120]}" for line in text.splitlines() if path.search(line)]
    assert not found, "\n".join(found)


def test_what_is_said_once_is_said_once():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("not a medical device") == 1
