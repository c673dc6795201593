"""What names say is shown as it is, in text, Markdown, pages and pictures."""

from __future__ import annotations

import html.parser
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hostile import HOSTILE
from hypothesis import given
from hypothesis import strategies as st

from datadreamer_like.report import Mark, Table, TableColumn, figure, page, to_svg, tradeoff, write_png
from datadreamer_like.storage.shown import clean, markdown, one_line

COLUMNS = [TableColumn("model", "model", align="left"), TableColumn("size", "size", "kB", ",.1f")]


class Parsed(html.parser.HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)
        if tag in ("td", "h1"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def unescaped(cell: str) -> str:
    return re.sub(r"\\([\\`*_\[\]<>|#~$])", r"\1", cell.strip()).replace("&amp;", "&")


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_table_holds_a_name_in_every_form(name: str):
    table = Table(COLUMNS, [{"model": name, "size": 1.0}, {"model": "next", "size": 2.0}], title=name, notes=[name])
    text = table.to_text()
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", text)
    assert text.encode()
    lines = table.to_markdown().split("\n")
    assert len(lines) == 8
    cells = re.split(r"(?<!\\)\|", lines[4])
    assert unescaped(cells[1]) == one_line(name)
    assert lines[0] == f"**{markdown(name)}**"
    assert not re.search(r"(?<!\\)[<$`\[]", table.to_markdown())
    parsed = Parsed(table.to_html())
    assert parsed.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "table", "thead", "tbody", "tr"} | {
        "th", "td", "small", "p",
    }  # fmt: skip
    assert clean(name) in parsed.cells


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_picture_shows_a_name(name: str, tmp_path: Path):
    marks = [Mark(name, 1.0, [1.0, 2.0]), Mark("plain", 2.0, [2.0, 3.0])]
    plot = tradeoff(marks, ["size", "time"], "quality", title=name, caption=f"of {name}")
    svg = to_svg(plot)
    shown = ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]
    assert sum(" ".join(text.split()) == one_line(name, 40) for text in shown) >= 2
    write_png(plot, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert page(name, figure(svg, name)).encode()


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_of_markdown_that_can_be_written(text: str):
    shown = markdown(text)
    assert len(shown.splitlines()) <= 1
    assert shown.encode().decode() == shown
    assert unescaped(shown) == one_line(text)
    assert len(one_line(text, 20)) <= 20
