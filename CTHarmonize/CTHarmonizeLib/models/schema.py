"""Checks a model card against ``card.schema.json`` and against what a schema cannot say.

Slicer ships no JSON-schema library, so the few keywords that the schema uses are checked here; a test holds this
against the ``jsonschema`` package.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

SCHEMA_FILE = Path(__file__).with_name("card.schema.json")

_TYPES = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "null": type(None)}
_WORDS = {
    "object": "an object",
    "array": "a list",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "null": "null",
}


@lru_cache(maxsize=1)
def card_schema() -> dict:
    """The JSON schema of a card."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def card_problem(card: Any) -> str | None:
    """What is wrong with a card, as a clause such as ``'halo' must be a whole number``; None if nothing."""
    schema = card_schema()
    return _problem(card, schema, schema, "") or _contradiction(card)


def _problem(value: Any, rule: dict, schema: dict, place: str) -> str | None:
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].rsplit("/", 1)[-1]]
    name = f"'{place}'" if place else "the card"
    if "anyOf" in rule:
        problems = [_problem(value, option, schema, place) for option in rule["anyOf"]]
        return None if None in problems else problems[-1]
    kind = rule.get("type")
    if kind and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{name} must be {_WORDS[kind]}"
    if isinstance(value, dict):
        return _object_problem(value, rule, schema, place)
    if isinstance(value, list):
        low, high = rule.get("minItems", 0), rule.get("maxItems", math.inf)
        if not low <= len(value) <= high:
            return f"{name} must have {low if low == high else f'at least {low}'} entries"
        problems = (_problem(item, rule.get("items", {}), schema, f"{place}[{i}]") for i, item in enumerate(value))
        return next(filter(None, problems), None)
    if isinstance(value, str):
        if len(value) < rule.get("minLength", 0):
            return f"{name} must not be empty"
        if "pattern" in rule and not re.search(rule["pattern"], value):
            return f"{name} does not look right"
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            return f"{name} must be a finite number"
        if value < rule.get("minimum", -math.inf) or value <= rule.get("exclusiveMinimum", -math.inf):
            return f"{name} is too small"
        if value > rule.get("maximum", math.inf):
            return f"{name} is too large"
    return None


def _object_problem(value: dict, rule: dict, schema: dict, place: str) -> str | None:
    inner = (place + ".") if place else ""
    known = rule.get("properties", {})
    for key in rule.get("required", []):
        if key not in value:
            return f"'{inner}{key}' is missing"
    for key, item in value.items():
        if key in known:
            problem = _problem(item, known[key], schema, inner + key)
            if problem:
                return problem
        elif rule.get("additionalProperties") is False:
            return f"'{inner}{key}' is unknown"
    return None


def _contradiction(card: dict) -> str | None:
    intervals = {key: card[key] for key in ("intensity_window", "pixel_spacing", "slice_thickness")}
    intervals |= {f"source.{key}": value for key, value in card["source"].items()}
    intervals |= {f"target.{key}": value for key, value in card["target"].items() if value is not None}
    for name, (low, high) in intervals.items():
        if high < low or (name == "intensity_window" and high == low):
            return f"'{name}' runs from {low:g} down to {high:g}"
    table = card["noise_at_full_dose"]
    if len(table["f50"]) != len(table["sigma"]):
        return "'noise_at_full_dose' has unequal numbers of f50 and sigma"
    if any(second <= first for first, second in pairwise(table["f50"])):
        return "'noise_at_full_dose.f50' must rise"
    return None
