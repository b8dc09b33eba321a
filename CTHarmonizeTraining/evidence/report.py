"""The report of a suite of studies: one page to read and print, and its numbers for other programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from CTHarmonizeLib.report import NOTICE, as_json
from CTHarmonizeTraining.evidence.study import Picture, Section, Table
from CTHarmonizeTraining.files import write_whole
from CTHarmonizeTraining.page import image, image_format, page

_FACTS = "Data, models and settings"
_NUMBER = re.compile(r"[-\N{MINUS SIGN}+<>±≈]?\s*\d")
_BEFORE_DIGIT = re.compile(r"(?<![\w.])-(?=\.?\d)")
_NONE, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
_RIGHT = ' class="n"'
_PRINTED = (5.0, 9.0)  # smallest and largest type of a printed table, points
_PRINTED_CHARACTERS = 108  # of the largest type, across the page
_KEPT_WHOLE = 40  # lines of a table that is not cut between pages

_STYLE = """
body{font:16px/1.55 "Segoe UI","Helvetica Neue",Arial,"Liberation Sans",sans-serif;max-width:1100px;padding:0 1.5em}
h1{font-size:1.9em;line-height:1.2;margin:.4em 0 .3em}
h2{font-size:1.4em;border-bottom:2px solid #33566f;padding-bottom:.2em;margin:2.2em 0 .6em;color:#1d3b50}
h3{font-size:1.05em;margin:1.8em 0 .2em}
p{max-width:48em;margin:.5em 0}
.notice,.note{color:#4a4a4a}
.note{font-size:.92em}
.summary{background:#f3f6f8;border-left:4px solid #33566f;padding:.1em 1.4em 1em}
.summary h2{border:0;margin:.7em 0 .3em;padding:0}
nav ol{padding-left:1.6em}
nav ul{list-style:none;padding-left:.4em;font-size:.92em}
nav a{color:#1c5480;text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
.scroll{overflow-x:auto}
table{font-size:.92em;line-height:1.35;margin:.7em 0 1em}
td,th{padding:.32em .75em;vertical-align:top;border-bottom:1px solid #d5d9dc}
td:first-child,th:first-child{padding-left:.2em}
thead th{vertical-align:bottom;border-bottom:2px solid #555;font-weight:600}
tbody th{font-weight:400;white-space:nowrap}
tr.first>*{border-top:2px solid #8a9299}
td.n{white-space:nowrap}
figure{margin:.6em 0 1.2em}
figure img{display:block;height:auto}
code{font:.86em Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
@page{size:A4;margin:16mm 14mm 18mm;@bottom-right{content:counter(page);font:8pt sans-serif;color:#555}}
@media print{
body{font-size:10pt;max-width:none;margin:0;padding:0;color:#000}
p{max-width:none}
h1,h2,h3{break-after:avoid}
nav~section{break-before:page}
nav~section h2{margin-top:0}
p{orphans:3;widows:3}
.note{break-after:avoid}
nav,.summary{break-inside:avoid}
.scroll{overflow:visible}
table{font-size:var(--print,9pt)}
td,th{padding:.25em .5em}
tbody th{white-space:normal}
thead{display:table-header-group}
tr,figure,table.whole{break-inside:avoid}
figure img{max-height:225mm;max-width:100%;width:auto}
}
"""


def write_report(output: Path, title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> Path:
    """Leave ``report.html`` in ``output``, its tables in ``tables``, its pictures in ``pictures`` and all values in
    ``results.json``; returns the page's path.

    The page needs no other file and no network. The first section opens it as the summary. ``facts`` close it: plain
    values, lists, and groups (mappings) of either; a mapping of groups becomes a table with a line for each. Names of
    tables and of pictures differ (ValueError else). Raises CannotRunError where a file cannot be written.
    """
    parts = [part for section in sections for part in section.parts]
    tables = {part.name: part for part in parts if isinstance(part, Table)}
    pictures = {part.name: part for part in parts if isinstance(part, Picture)}
    if len(tables) + len(pictures) != len(parts):
        raise ValueError("two tables or two pictures of the report have the same name")
    for name, table in tables.items():
        write_whole(output / "tables" / f"{name}.csv", table.frame.to_csv(index=False, lineterminator="\n"))
    for name, picture in pictures.items():
        write_whole(output / "pictures" / f"{name}.{image_format(picture.content)}", picture.content)
    write_whole(output / "results.json", as_json(_results(title, facts, sections), indent=1))
    path = output / "report.html"
    write_whole(path, page(title, "\n".join(_body(title, facts, sections)), _STYLE))
    return path


def _results(title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> dict:
    tables = {
        part.name: {"section": section.title, "title": part.title, "note": part.note, "rows": _rows(part.frame)}
        for section in sections
        for part in section.parts
        if isinstance(part, Table)
    }
    return {"title": title, "notice": NOTICE, "facts": facts, "tables": tables}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    whole = frame.astype(object).where(frame.notna(), None)
    return whole.to_dict("records")


def _body(title: str, facts: Mapping[str, Any], sections: Sequence[Section]) -> Iterator[str]:
    """HTML of the whole page, piece by piece."""
    names = _numbered(sections)
    yield f'<main><header><h1>{escape(title)}</h1><p class="notice">{escape(NOTICE)}</p></header>'
    for number, section in enumerate(sections):
        kind = "" if number else ' class="summary"'
        yield f'<section id="s{number}"{kind}><h2>{escape(section.title)}</h2>'
        yield _paragraphs(section.text)
        for part in section.parts:
            yield f'<h3 id="{names[id(part)][0]}">{escape(names[id(part)][1])}. {escape(part.title)}</h3>'
            yield _paragraphs(part.note, "note")
            yield _table(part) if isinstance(part, Table) else _figure(part)
        yield "</section>"
        if number == 0:
            yield _contents(sections, names)
    yield f'<section id="facts"><h2>{_FACTS}</h2>{"".join(_facts(facts))}</section></main>'


def _numbered(sections: Sequence[Section]) -> dict[int, tuple[str, str]]:
    """(anchor, 'Table 2') of every part, by its identity."""
    count = {"Table": 0, "Figure": 0}
    names = {}
    for section in sections:
        for part in section.parts:
            kind = "Table" if isinstance(part, Table) else "Figure"
            count[kind] += 1
            names[id(part)] = (f"{kind.lower()}-{count[kind]}", f"{kind} {count[kind]}")
    return names


def _contents(sections: Sequence[Section], names: Mapping[int, tuple[str, str]]) -> str:
    lines = []
    for number, section in enumerate(sections):
        parts = "".join(
            f'<li><a href="#{names[id(part)][0]}">{names[id(part)][1]}. {escape(part.title)}</a></li>'
            for part in section.parts
        )
        inner = f"<ul>{parts}</ul>" if parts else ""
        lines.append(f'<li><a href="#s{number}">{escape(section.title)}</a>{inner}</li>')
    lines.append(f'<li><a href="#facts">{_FACTS}</a></li>')
    return f'<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ol>{"".join(lines)}</ol></nav>'


def _paragraphs(text: str, kind: str = "") -> str:
    """A blank line parts paragraphs."""
    start = f'<p class="{kind}">' if kind else "<p>"
    return "".join(f"{start}{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _figure(picture: Picture) -> str:
    return f"<figure>{image(picture.content, picture.title)}</figure>"


def _table(table: Table) -> str:
    """The first column names the lines; a rule parts them where it names several alike."""
    frame = table.frame
    texts = [
        [cell_text(value, table.digits_of(name)) for value in frame.iloc[:, place]]
        for place, name in enumerate(frame.columns)
    ]
    kinds = [place > 0 and _is_numeric(frame.iloc[:, place]) for place in range(frame.shape[1])]
    texts = [
        [_BEFORE_DIGIT.sub(_MINUS, text) for text in column] if number else column
        for column, number in zip(texts, kinds, strict=True)
    ]
    heads = "".join(
        f'<th scope="col"{_RIGHT if number else ""}>{escape(str(name))}</th>'
        for name, number in zip(frame.columns, kinds, strict=True)
    )
    lines, before = [], None
    grouped = bool(texts) and len(set(texts[0])) < len(texts[0])
    for cells in zip(*texts, strict=True):
        start = ' class="first"' if grouped and before not in (None, cells[0]) else ""
        before = cells[0]
        values = "".join(
            f"<td{_RIGHT if number else ''}>{escape(text)}</td>"
            for text, number in zip(cells[1:], kinds[1:], strict=True)
        )
        lines.append(f'<tr{start}><th scope="row">{escape(cells[0])}</th>{values}</tr>')
    whole = ' class="whole"' if len(lines) <= _KEPT_WHOLE else ""
    size = _printed_size(frame.columns, texts)
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(table.title)}">'
        f'<table{whole} style="--print:{size:.1f}pt"><thead><tr>{heads}</tr></thead><tbody>{"".join(lines)}</tbody>'
        "</table></div>"
    )


def cell_text(value: Any, digits: int) -> str:
    """A cell as it is read: numbers with fractions get so many ``digits``; a dash where there is no value."""
    if value is None or value is pd.NA or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return _NONE
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        text = f"{value:.{digits}f}"
        return text.lstrip("-") if float(text) == 0.0 else text  # no -0.00
    return str(value)


def _is_numeric(column: pd.Series) -> bool:
    """Whether all that is there are numbers, or text that begins with one, as intervals do."""
    values = [value for value in column if cell_text(value, 0) not in (_NONE, "-", "")]
    return bool(values) and all(not isinstance(value, str) or _NUMBER.match(value) for value in values)


def _printed_size(heads: Sequence, texts: Sequence[Sequence[str]]) -> float:
    """Size of type in points at which a table is no wider than an A4 page; heads break between words."""
    width = sum(
        2 + max((*map(len, column), *map(len, str(head).split())), default=0)
        for head, column in zip(heads, texts, strict=True)
    )
    low, high = _PRINTED
    return float(np.clip(high * _PRINTED_CHARACTERS / max(width, 1), low, high))


def _facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """Plain values first, in one table, then every group under its own title."""
    plain = {key: value for key, value in facts.items() if not isinstance(value, (Mapping, list, tuple))}
    if plain:
        yield _definitions(plain)
    for key, value in facts.items():
        if key in plain:
            continue
        title = _words(key)
        yield f"<h3>{escape(title[:1].upper() + title[1:])}</h3>"
        if not value:
            yield "<p>None.</p>"
        elif not isinstance(value, Mapping):
            yield f"<ul>{''.join(f'<li>{_value(item)}</li>' for item in value)}</ul>"
        elif all(isinstance(item, Mapping) for item in value.values()):
            yield _groups(value)
        else:
            yield _definitions(value)


def _definitions(values: Mapping[str, Any]) -> str:
    lines = (
        f'<tr><th scope="row">{escape(_words(key))}</th><td>{_value(value)}</td></tr>' for key, value in values.items()
    )
    return f'<div class="scroll"><table style="--print:8.5pt"><tbody>{"".join(lines)}</tbody></table></div>'


def _groups(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each group, a column for each key that one of them has."""
    keys = list(dict.fromkeys(key for group in groups.values() for key in group))
    head = "".join(f'<th scope="col">{escape(_words(key))}</th>' for key in ("", *keys))
    lines = (
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f"<td>{_value(group.get(key))}</td>" for key in keys)
        + "</tr>"
        for name, group in groups.items()
    )
    return (
        f'<div class="scroll"><table style="--print:8pt"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _value(value: Any) -> str:
    """HTML of a fact; checksums may break anywhere."""
    if isinstance(value, Mapping):
        return ", ".join(f"{escape(str(key))} {_value(inner)}" for key, inner in value.items()) or _NONE
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or _NONE
    if isinstance(value, (float, np.floating)) and not np.isnan(value):
        return f"{value:.6g}"
    text = cell_text(value, 0)
    return f"<code>{escape(text)}</code>" if re.fullmatch(r"[0-9a-f]{32,}", text) else escape(text)


def _words(key: object) -> str:
    return str(key).replace("_", " ")
