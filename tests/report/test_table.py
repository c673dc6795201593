"""Tables show the same values everywhere, and nothing that a value says breaks out of its cell."""

import sys
from html.parser import HTMLParser

import pytest

from datadreamer_like.report import Interval, Table, TableColumn, page

COLUMNS = [
    TableColumn("model", "model", align="left"),
    TableColumn("bytes", "on disk", "MB", ",.1f", 1e-6),
    TableColumn("gain", "difference", "points", "+.1f", 100),
]
ROWS = [
    {"model": "teacher", "bytes": 90_900_000, "gain": None},
    {"model": "a student whose name is long", "bytes": 5_123_456_789, "gain": Interval(-0.012, -0.03, 0.0049)},
]


class _Cells(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "td" and self.cells:
            self.cells[-1] += data.strip()


def test_every_form_shows_the_same_values_in_the_columns_units():
    table = Table(COLUMNS, ROWS)
    shown = [["teacher", "90.9", "–"], ["a student whose name is long", "5,123.5", "−1.2 [−3.0, +0.5]"]]
    assert table.cells() == shown
    for line, cells in zip(table.to_text().splitlines()[-2:], shown, strict=True):
        assert all(cell in line for cell in cells)
    assert table.to_markdown().splitlines()[-1] == "| a student whose name is long | 5,123.5 | −1.2 [−3.0, +0.5] |"
    parser = _Cells()
    parser.feed(table.to_html())
    assert parser.cells == [cell for row in shown for cell in row]


def test_text_columns_stand_under_each_other():
    lines = Table(COLUMNS, ROWS).to_text().splitlines()
    rule = next(line for line in lines if line.startswith("─"))
    assert len({len(line) for line in lines[-2:]} | {len(rule)}) == 1
    assert all(line.index("MB") + 2 == rule.rindex("  ") for line in lines if "MB" in line)


@pytest.mark.parametrize("width", [30, 45, 80, 120])
def test_text_fits_the_width_and_loses_no_value(width: int):
    columns = [
        TableColumn("model", "model", align="left"),
        *(TableColumn(f"c{i}", f"column {i}", "x") for i in range(12)),
    ]
    rows = [{"model": "a name of quite a few words", **{f"c{i}": 1000 + i for i in range(12)}}]
    text = Table(columns, rows).to_text(width)
    assert max(map(len, text.splitlines())) <= width
    assert all(str(1000 + i) in text for i in range(12))
    assert all(word in text for word in ["a", "name", "of", "quite", "a", "few", "words"])


def test_values_cannot_break_out_of_their_cells():
    rows = [{"model": "<script>alert(1)</script> | ** \\ \n x"}]
    table = Table(COLUMNS[:1], rows, title="<b>", notes=["<i>"])
    assert not {"script", "b", "i"} & set(_tags(table.to_html()))
    line = table.to_markdown().splitlines()[-3]
    assert line.count("|") - line.count("\\|") == 2


def test_page_needs_no_other_file_and_no_network():
    parser = _Cells()
    text = page("Title", Table(COLUMNS, ROWS).to_fragment())
    parser.feed(text)
    assert parser.links == []
    assert "@import" not in text
    assert "url(" not in text


def test_pandas_gets_bare_values_and_the_ends_of_intervals():
    frame = Table(COLUMNS, ROWS).to_pandas()
    assert frame["bytes"].tolist() == [90_900_000, 5_123_456_789]
    assert frame.loc[1, ["gain", "gain_low", "gain_high"]].tolist() == [-0.012, -0.03, 0.0049]


def test_empty_table_has_its_heads():
    table = Table(COLUMNS, [])
    assert "model" in table.to_text()
    assert len(table.to_markdown().splitlines()) == 2
    assert table.to_pandas().empty


def test_tables_need_no_plotting_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "teacher" in Table(COLUMNS, ROWS).to_html()


def _tags(text: str) -> list[str]:
    parser = _Cells()
    parser.feed(text)
    return parser.tags
