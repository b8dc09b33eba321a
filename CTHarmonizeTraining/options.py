"""A command's options from its function's signature; what is wrong with them as one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, auto_cli

from CTHarmonizeLib.errors import InputError

_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list such as '[1, 2]'",
    "tuple": "a list such as '[1, 2]'",
    "dict": "pairs such as '{name: 1}'",
}

_PART = re.compile(
    r"Parser key \"([^\"]+)\":.*?Problem with given class_path '([^']+)':\n"
    r"(.*?)(?=\n\s*- Expected|\n\s*Given value|\Z)",
    re.DOTALL,
)
"""An entry, its class, and what is wrong with that class's own entries."""


class _Wrong(Exception):
    def __init__(self, message: str, parser: ArgumentParser) -> None:
        super().__init__(message)
        self.parser = parser


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # of a part of the options: the whole's parser tells
            super().error(message, ex)
        raise _Wrong(message, self)


def run_command(command: Callable, arguments: Sequence[str], program: str, epilog: str = "") -> None:
    """Call ``command`` with what ``arguments`` say. Raises InputError with one sentence where they are wrong."""
    try:
        auto_cli(command, args=list(arguments), prog=program, epilog=epilog, parser_class=_Parser)
    except _Wrong as wrong:
        raise InputError(_sentence(str(wrong), wrong.parser, arguments)) from wrong


def near(name: str, known: Iterable[str]) -> str:
    """``(did you mean ...?)`` where one of ``known`` resembles ``name``."""
    close = get_close_matches(name, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def _sentence(message: str, parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """What jsonargparse says in many lines, for the one who typed ``arguments``."""
    options = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    positional = [action.dest for action in parser._actions if not action.option_strings]
    prefix = ""
    while inner := _PART.match(message):
        prefix, message = f"{prefix}{inner[1]}.", inner[3].strip()
        options += [f"--{prefix}{name}" for name in _settings(inner[2])]

    if found := re.match(r"unrecognized arguments: (.*)", message):
        wrong = [f"--{prefix}{text[2:]}" if text.startswith("--") else text for text in found[1].split()]
        wrong = next((text.partition("=")[0] for text in wrong if text.startswith("-")), None)
        return f"There is no option {wrong}{near(wrong, options)}." if wrong else f"'{found[1]}' is too much."
    if found := re.match(r"(?:Group '(?P<group>.+)' does not accept o|O)ption '(?P<name>[^']+)'", message):
        wrong = "--" + prefix + (f"{found['group']}." if found["group"] else "") + found["name"]
        return f"There is no setting {wrong[2:]}{near(wrong, options).replace('--', '')}."
    if found := re.match(r"the following arguments are required: (.*)", message):
        return f"{_named(found[1].split(', '), positional, prefix)} missing: see {parser.prog} --help."
    if found := re.match(r"argument (\S+): expected one argument", message):
        return f"{found[1]} needs a value."
    if message.startswith("Problems parsing config:"):
        reason = re.sub(r'in "<[^>]*>", ', "", message.partition(":")[2])
        return f"'{_config(arguments)}' is no YAML that can be read: {_joined(reason)}."
    key = re.match(r"Parser key \"([^\"]+)\":", message)
    if key is None:
        return f"{prefix and f'--{prefix[:-1]}: '}{_joined(message)}"
    name = key[1] if key[1] in positional else f"--{prefix}{key[1]}"
    if "dot import path" in message:
        return f"{name} has to be the import path of a class; mostly a configuration gives it (--config)."
    kinds = [
        _TYPES.get(kind, kind) if kind else f"one of {choices.replace(chr(39), '')}"
        for kind, choices in re.findall(r"Expected (?:a )?(?:<class '(\w+)'>|typing\.Literal\[([^\]]*)\])", message)
        if kind != "NoneType"
    ]
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if kinds and value:
        return f"{name} has to be {' or '.join(dict.fromkeys(kinds))}, not '{value[1]}'."
    if value := re.search(r"Unable to load config ['\"](.*?)['\"]", message):
        return f"{name} is a group of settings: give one of them, such as {_first(options, name)}, not '{value[1]}'."
    return f"{name}: {_joined(message[key.end() :])}"


def _named(missing: Sequence[str], positional: Sequence[str], prefix: str) -> str:
    names = [name if name in positional else f"--{prefix}{name}" for name in missing]
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _settings(place: str) -> Iterator[str]:
    """Dotted names of what the class at an import path can be told."""
    module, _, name = place.rpartition(".")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        return
    yield from _fields(kind)


def _fields(kind: Any) -> Iterator[str]:
    hints = get_type_hints(kind)
    for name in signature(kind).parameters:
        yield name
        for part in (hints.get(name), *get_args(hints.get(name))):
            if is_dataclass(part):
                yield from (f"{name}.{deeper}" for deeper in _fields(part))


def _config(arguments: Sequence[str]) -> str:
    """The configuration's file."""
    for number, text in enumerate(arguments):
        if text.startswith("--config"):
            return text.partition("=")[2] or arguments[number + 1]
    return "the configuration"


def _first(options: Sequence[str], group: str) -> str:
    return next((name for name in options if name.startswith(f"{group}.")), f"{group}.NAME")


def _joined(text: str) -> str:
    return " ".join(text.split()).removeprefix("- ")[:300]
