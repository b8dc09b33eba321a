"""The report of the evidence: a page that needs no other file, and the same numbers for programs."""

import base64
import csv
import io
import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from CTHarmonizeLib.errors import CannotRunError
from CTHarmonizeLib.report import NOTICE
from CTHarmonizeTraining.evidence.report import cell_text, write_report
from CTHarmonizeTraining.evidence.study import Picture, Section, Table

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = '<script>alert("x")</script> & \'"'


class Page(HTMLParser):
    """Elements of a page, in order; fails where one is not closed by its own end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements, self.texts, self._open = [], {}, []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes)
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self._open[-1] if self._open else "", []).append(data)

    def having(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def png() -> bytes:
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    Figure(figsize=(0.3, 0.2)).savefig(buffer, format="png")
    return buffer.getvalue()


FRAME = pd.DataFrame(
    {
        "method": ["untouched", "ctflow", EVIL],
        "bias, HU": [-0.001, -12.3456, np.nan],
        "nodules": [3, 4, 5],
        "LAA-950 (95 %)": ["1.2 (-0.9 to 1.5)", "2.0 (1.1 to 3.0)", "-"],
        "remark": ["one", "2 of 3", "none"],
    }
)
FACTS = {
    "seed": 7,
    "seconds": 12.5,
    "models": {"ctflow": {"version": "1.0", "weights_sha256": "ab" * 32}, "unet": {"version": "2", "name": EVIL}},
    "versions": {"torch": "2.2", "missing": None, "share": float("nan")},
    "warnings": [],
    "settings": ["one", EVIL],
}


@pytest.fixture
def made(tmp_path):
    sections = [
        Section("What was found", f"First {EVIL}.\n\nSecond."),
        Section(
            EVIL, "Text", (Table("bias", f"Bias {EVIL}", FRAME, EVIL, 1), Picture("view", f"View {EVIL}", png(), EVIL))
        ),
    ]
    folder = tmp_path / "Prüfung 肺"
    return folder, write_report(folder, f"Evidence {EVIL}", FACTS, sections)


def test_the_page_is_well_formed_and_needs_no_other_file(made):
    folder, path = made
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert path == folder / "report.html" and page.having("html") == [{"lang": "en"}]
    assert not page.having("script") and not page.having("link") and "http" not in text.replace("http-equiv", "")
    for picture in page.having("img"):
        assert picture["alt"].startswith("View")
        assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")) == png()
    assert len(page.having("img")) == 1
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = [link["href"] for link in page.having("a")]
    assert links and all(link.startswith("#") and link[1:] in anchors for link in links)
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels.count(1) == 1 and np.diff(levels).max() <= 1
    assert text.count(NOTICE) == 1 and text.index("What was found") < text.index("Contents")


def test_what_others_wrote_is_text(made):
    text = made[1].read_text(encoding="utf-8")
    assert "<script" not in text and "alert(&quot;" in text
    assert EVIL in "".join(Page(text).texts["h1"])


def test_numbers_are_shown_with_the_tables_digits(made):
    text = made[1].read_text(encoding="utf-8")
    assert '<td class="n">0.0</td><td class="n">3</td>' in text
    assert '<td class="n">\N{MINUS SIGN}12.3</td>' in text and '<td class="n">\N{EN DASH}</td>' in text
    assert '<td class="n">1.2 (\N{MINUS SIGN}0.9 to 1.5)</td>' in text and '<td class="n">-</td>' in text
    assert "<td>2 of 3</td>" in text


@pytest.mark.parametrize(
    "value, text",
    [(1.005, "1.00"), (-0.004, "0.00"), (3, "3"), (True, "yes"), (None, "\N{EN DASH}"), (pd.NA, "\N{EN DASH}"),
     (np.float32(2.5), "2.50"), ("a-b", "a-b"), (float("inf"), "inf")],
)  # fmt: skip
def test_a_cell(value, text):
    assert cell_text(value, 2) == text


def test_the_tables_are_kept_whole_for_programs(made):
    folder = made[0]
    lines = list(csv.reader(io.StringIO((folder / "tables" / "bias.csv").read_text(encoding="utf-8"))))
    assert lines[0] == list(FRAME.columns) and [line[0] for line in lines[1:]] == list(FRAME["method"])
    assert float(lines[2][1]) == -12.3456 and lines[3][1] == ""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    rows = results["tables"]["bias"]["rows"]
    assert [row["bias, HU"] for row in rows] == [-0.001, -12.3456, None] and rows[1]["nodules"] == 4
    assert results["facts"]["versions"] == {"torch": "2.2", "missing": None, "share": None}
    assert (folder / "pictures" / "view.png").read_bytes() == png()


def test_facts_close_the_page(made):
    text = made[1].read_text(encoding="utf-8")
    facts = text[text.index('<section id="facts">') :]
    assert f"<code>{'ab' * 32}</code>" in facts and "12.5" in facts and "None." in facts


def test_two_tables_of_one_name_are_refused(tmp_path):
    tables = [Table("same", "One", FRAME), Table("same", "Two", FRAME)]
    with pytest.raises(ValueError, match="same name"):
        write_report(tmp_path, "T", {}, [Section("S", "", tables)])


def test_an_empty_table(tmp_path):
    empty = Table("empty", "Nothing", pd.DataFrame({"method": [], "value": []}))
    Page(write_report(tmp_path, "T", {}, [Section("S", "", [empty])]).read_text(encoding="utf-8"))


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotRunError, match="cannot be written"):
        write_report(tmp_path / "file", "T", {}, [Section("S", "", [Table("a", "A", FRAME)])])
