"""HTML as Markdown, with tables whose cells stay cells."""

from __future__ import annotations

import re

from bs4 import BeautifulSoup, Tag
from bs4.dammit import EncodingDetector
from markdownify import MarkdownConverter

from datadreamer_like.errors import DataError

# Names that Python does not know, or takes for other encodings than browsers do
_ALIASES = {
    "x-sjis": "cp932", "shift_jis": "cp932", "windows-31j": "cp932", "macintosh": "mac-roman", "gb2312": "gb18030",
    "gbk": "gb18030", "utf8mb4": "utf-8", "windows-874": "cp874", "ks_c_5601-1987": "cp949", "euc-kr": "cp949",
}  # fmt: skip
_LATIN = ("iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii")
_MOST_COLUMNS = 1000  # of one cell, as in browsers


def html_as_markdown(content: Tag) -> str:
    """Converts a part of a document, which is changed.

    A table becomes one of Markdown: lines in a cell are separated by `<br>`, a cell over several rows is repeated in
    each, and one over several columns is followed by empty cells. Of a table of one cell, or with tables inside, which
    only arranges texts, the cells follow one another.
    """
    tables = [(table, _is_layout(table)) for table in content.find_all("table")]
    for table, layout in tables:
        rows = _rows(table)
        for cell in [cell for row in rows for cell in _cells(row)]:
            cell["header"] = "yes" if cell.name == "th" else ""
            cell.name = "div" if layout else "cell"
            if not layout:
                _simplify(cell)
        for row in rows:
            row["header"] = "yes" if row.parent is not None and row.parent.name == "thead" else ""
            row.name = "div" if layout else "row"
        for caption in table.find_all("caption", recursive=False):
            caption.name = "p"
        table.name = "div" if layout else "grid"
    return str(_Converter().convert_soup(content))


def _is_layout(table: Tag) -> bool:
    cells = [cell for row in _rows(table) for cell in _cells(row)]
    return len(cells) == 1 or table.get("role") == "presentation" or table.find("table") is not None


def _simplify(cell: Tag) -> None:
    """Leaves line breaks only where the document shows them, and no headings and quotations, which need a line."""
    for part in cell.find_all([*(f"h{level}" for level in range(1, 7)), "blockquote"]):
        part.name = "div"
    for block in cell.find_all("pre"):
        lines = block.get_text().splitlines()
        block.name = "div"
        block.clear()
        for line in filter(None, map(str.strip, lines)):
            code = Tag(name="code")
            code.string = line
            block.extend([code, Tag(name="br")])
    for text in cell.find_all(string=re.compile("[\\r\\n]")):
        text.replace_with(re.sub(r"[ \t\r\n\f]+", " ", text))


def _rows(table: Tag) -> list[Tag]:
    parts = [table, *table.find_all(("thead", "tbody", "tfoot"), recursive=False)]
    return [row for part in parts for row in part.find_all(("tr", "row"), recursive=False)]


def _cells(row: Tag) -> list[Tag]:
    return row.find_all(("td", "th", "cell"), recursive=False)


def _span(cell: Tag, name: str, most: int) -> int:
    found = str(cell.get(name, "1")).strip()
    number = int(found) if re.fullmatch("[0-9]{1,9}", found) else 1
    return min(most, number or (most if name == "rowspan" else 1))


class _Converter(MarkdownConverter):
    """Converts what is named `grid`, `row` and `cell` as a table; markdownify's own has pipes of texts as borders."""

    def __init__(self) -> None:
        super().__init__(
            heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False, escape_misc=False
        )
        self._texts: dict[int, str] = {}

    def convert_cell(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        lines = [line.strip() for line in text.split("\n")]
        self._texts[id(el)] = "<br>".join(line for line in lines if line).replace("|", r"\|")
        return ""

    def convert_grid(self, el: Tag, text: str, parent_tags: set[str]) -> str:
        rows = _rows(el)
        grid: list[dict[int, str]] = [{} for _ in rows]
        taken: list[set[int]] = [set() for _ in rows]
        for place, row in enumerate(rows):
            column = 0
            for cell in _cells(row):
                while column in taken[place]:
                    column += 1
                width = _span(cell, "colspan", _MOST_COLUMNS)
                for below in range(place, place + _span(cell, "rowspan", len(rows) - place)):
                    grid[below][column] = self._texts[id(cell)]
                    taken[below].update(range(column, column + width))
                column += width
        columns = max((column + 1 for row in grid for column, found in row.items() if found), default=0)
        lines = ["".join(["|", *(f" {row.get(column, '')} |" for column in range(columns))]) for row in grid]
        if not columns:
            return f"\n\n{text.strip()}\n\n"
        headed = bool(rows[0]["header"] or all(cell["header"] for cell in _cells(rows[0])))
        lines[headed:headed] = ["|" + " --- |" * columns]
        lines = lines if headed else ["|" + "  |" * columns, *lines]
        return "\n\n".join(["", text.strip(), "\n".join(lines), ""])


def parsed(content: bytes, encoding: str) -> BeautifulSoup:
    """Parses a document; its encoding is that of its own declaration, or `encoding` if it has none.

    Raises:
        DataError: It is not in that encoding, which is not guessed: few bytes fit many.
    """
    body, declared = EncodingDetector.strip_byte_order_mark(content)
    declared = declared or EncodingDetector.find_declared_encoding(body, is_html=True)
    names = [declared] if declared else [encoding]
    if declared and declared.lower().startswith("utf-16") and b"\0" not in body:
        names = ["utf-8"]  # it was converted after it was written
    elif declared and declared.lower() in _LATIN:
        names = ["cp1252", declared]  # what browsers take it for
    for name in names:
        try:
            return BeautifulSoup(body.decode(_ALIASES.get(name.lower(), name)), "html.parser")
        except (UnicodeError, LookupError):
            continue
    said = f"is not {declared}, which it declares" if declared else f"declares no encoding, and is not {encoding}"
    raise DataError(f"it {said}. " + ("Convert it to UTF-8." if declared else 'Set its own, as in encoding="cp1252".'))
