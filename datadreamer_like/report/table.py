"""Tables with units, as text, Markdown, HTML or pandas."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from datadreamer_like.storage.shown import clean, markdown, one_line

from .pages import page

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
_GAP = 2
_NARROWEST_TEXT = 12


@dataclass(frozen=True)
class Interval:
    """A value with an interval, shown as `value [low, high]`."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def scaled(self, factor: float) -> Interval:
        """Returns the interval in another unit."""
        return Interval(self.value * factor, self.low * factor, self.high * factor)


@dataclass(frozen=True)
class TableColumn:
    """The heading and the format of a column: its `key` in each row, and the `unit` under its `header`.

    `format` is a Python format specification, such as ",.1f"; values are shown times `factor`: 1e-6 shows bytes as MB.
    """

    key: str
    header: str
    unit: str = ""
    format: str = ""
    factor: float = 1.0
    align: Literal["left", "right"] = "right"

    def show(self, value: Any) -> str:
        """Returns a value as text; None becomes a dash."""
        if value is None:
            return MISSING
        if self.factor != 1.0:
            value = value.scaled(self.factor) if isinstance(value, Interval) else value * self.factor
        text = format(value, self.format) if self.format else str(value)
        return text.replace("-", "−") if isinstance(value, int | float | Interval) else clean(text)


@dataclass(frozen=True)
class Table:
    """Columns, of which the first names the row, and rows of plain values by column key, with notes under them.

    Missing values and None are shown as a dash.

    Example:
        >>> columns = [TableColumn("model", "model", align="left"), TableColumn("bytes", "size", "MB", ",.1f", 1e-6)]
        >>> rows = [{"model": "teacher", "bytes": 90_900_000}, {"model": "student", "bytes": 5_100_000}]
        >>> table = Table(columns, rows)
        >>> print(table)
        model    size
                   MB
        ───────  ────
        teacher  90.9
        student   5.1
    """

    columns: Sequence[TableColumn]
    rows: Sequence[Mapping[str, Any]]
    title: str = ""
    notes: Sequence[str] = ()

    def cells(self) -> list[list[str]]:
        """Returns the shown texts, row by row."""
        return [[column.show(row.get(column.key)) for column in self.columns] for row in self.rows]

    def to_text(self, width: int = 120) -> str:
        """Returns the table for a terminal, at most `width` characters wide if single values are not wider.

        Texts are wrapped first. Columns that still do not fit go to further blocks, which repeat the first column.
        """
        widths = self._widths(width)
        blocks = [[0]]
        for index in range(1, len(self.columns)):
            used = sum(widths[shown] + _GAP for shown in blocks[-1])
            if len(blocks[-1]) > 1 and used + widths[index] > width:
                blocks.append([0])
            blocks[-1].append(index)
        text = "\n\n".join(self._block(block, widths) for block in blocks)
        title = f"{one_line(self.title)}\n\n" if self.title else ""
        notes = "".join("\n" + textwrap.fill(clean(note), width) for note in self.notes)
        return title + text + ("\n" + notes if notes else "")

    def to_markdown(self) -> str:
        """Returns the table in GitHub's Markdown."""
        heads = [column.header + (f" ({column.unit})" if column.unit else "") for column in self.columns]
        rules = ["---" if column.align == "left" else "---:" for column in self.columns]
        lines = [_markdown_line(map(markdown, heads)), _markdown_line(rules)]
        for row, cells in zip(self.rows, self.cells(), strict=True):
            texts = [isinstance(row.get(column.key), str) for column in self.columns]
            lines.append(_markdown_line(markdown(c) if text else c for c, text in zip(cells, texts, strict=True)))
        notes = "".join(f"\n\n{markdown(note)}" for note in self.notes)
        return (f"**{markdown(self.title)}**\n\n" if self.title else "") + "\n".join(lines) + notes

    def to_html(self) -> str:
        """Returns a self-contained page with the table."""
        return page(self.title, self.to_fragment())

    def to_fragment(self) -> str:
        """Returns the table as an HTML fragment."""
        units = [f"<small>{html.escape(column.unit)}</small>" if column.unit else "" for column in self.columns]
        heads = [html.escape(column.header) + unit for column, unit in zip(self.columns, units, strict=True)]
        head = self._html_row("th", heads)
        body = "\n".join(self._html_row("td", map(html.escape, cells)) for cells in self.cells())
        notes = "".join(f'\n<p class="note">{html.escape(clean(note))}</p>' for note in self.notes)
        return f"<table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>{notes}"

    def to_pandas(self) -> pd.DataFrame:
        """Returns the values in base units; an interval becomes three columns."""
        keys = [column.key for column in self.columns]
        return frame([{key: row.get(key) for key in keys} for row in self.rows])

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        return self.to_fragment()

    def _html_row(self, tag: str, cells: Iterable[str]) -> str:
        pairs = zip(self.columns, cells, strict=True)
        return "<tr>" + "".join(f'<{tag} class="{column.align}">{cell}</{tag}>' for column, cell in pairs) + "</tr>"

    def _widths(self, width: int) -> list[int]:
        """Returns the widths of the columns in characters; texts are narrowed if the line is too long."""
        cells = self.cells()
        widths = [
            max(map(len, [column.header, column.unit, *(row[index] for row in cells)]))
            for index, column in enumerate(self.columns)
        ]
        texts = [index for index, column in enumerate(self.columns) if column.align == "left"]
        while texts and sum(widths) + _GAP * (len(widths) - 1) > width:
            widest = max(texts, key=lambda index: widths[index])
            if widths[widest] <= _NARROWEST_TEXT:
                break
            widths[widest] -= 1
        return widths

    def _block(self, indices: Sequence[int], widths: Sequence[int]) -> str:
        columns = [self.columns[index] for index in indices]
        lines = [[column.header for column in columns]]
        if any(column.unit for column in self.columns):
            lines.append([column.unit for column in columns])
        rows = [[cells[index] for index in indices] for cells in self.cells()]
        sizes = [widths[index] for index in indices]
        out = [line for texts in lines for line in _lines(texts, columns, sizes)]
        out.append((" " * _GAP).join("─" * size for size in sizes))
        out += [line for cells in rows for line in _lines(cells, columns, sizes)]
        return "\n".join(line.rstrip() for line in out)


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Returns rows as a pandas DataFrame; an interval becomes three columns: `x`, `x_low` and `x_high`."""
    import pandas as pd

    flat: list[dict[str, Any]] = [{} for _ in rows]
    for values, row in zip(flat, rows, strict=True):
        for key, value in row.items():
            values[key] = value.value if isinstance(value, Interval) else value
            if isinstance(value, Interval):
                values |= {f"{key}_low": value.low, f"{key}_high": value.high}
    return pd.DataFrame(flat)


def _lines(texts: Sequence[str], columns: Sequence[TableColumn], sizes: Sequence[int]) -> list[str]:
    """Returns a row as one or more lines of text."""
    wrapped = [textwrap.wrap(text, size) or [""] for text, size in zip(texts, sizes, strict=True)]
    lines = []
    for parts in zip_longest(*wrapped, fillvalue=""):
        cells = zip(parts, columns, sizes, strict=True)
        padded = [part.ljust(size) if column.align == "left" else part.rjust(size) for part, column, size in cells]
        lines.append((" " * _GAP).join(padded))
    return lines


def _markdown_line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
