"""A review file: what a person writes comes back to the row it was written for, and nothing else does."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError
from datadreamer_like.steps import DataSource, ReviewFile

HOSTILE = [
    "plain", "plain", "", None, ' "quoted", with; signs\t', "two\nlines\r\nand a \r third", "=1+1", "+49 30", "@cmd",
    "-2", "'=x", "ünï \U0001f600 \x00 \x07", "a" * 40_000, "12e5", "id,review",
]  # fmt: skip


def review(file: Path, texts: list[Any], notes: list[Any] | None = None, **args: Any) -> ReviewFile:
    rows = DataSource("Rows", {"text": texts, "note": notes or [f"n{row}" for row in range(len(texts))]})
    return ReviewFile("By hand", inputs={"inputs": rows.output["text"]}, args={"file": file, **args})


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")))


def write(file: Path, rows: list[dict[str, str]], encoding: str = "utf-8", **options: Any) -> None:
    with file.open("w", encoding=encoding, newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), **options)
        writer.writeheader()
        writer.writerows(rows)


def test_reviews_of_hostile_texts_come_back_to_their_rows_after_sorting(tmp_path: Path):
    file = tmp_path / "review.csv"
    with DataDreamer(tmp_path / "out", verbose=False):
        step = review(file, HOSTILE)
        assert list(step.output["review"]) == [None] * len(HOSTILE)
        assert step.num_unreviewed == len(HOSTILE)
    rows = read(file)
    assert [row["text"] for row in rows[:6]] == ["plain", "plain", "", "", HOSTILE[4], HOSTILE[5]]
    assert [row["text"][0] for row in rows[6:10]] == ["'"] * 4  # no spreadsheet runs them
    assert len(rows[12]["text"]) < 32_767
    for row, number in zip(rows, range(len(rows)), strict=True):
        row["review"] = f"said {number}"
    write(file, sorted(rows[1:], key=lambda row: row["id"]), "utf-8-sig", delimiter=";")
    with DataDreamer(tmp_path / "out", verbose=False):
        step = review(file, HOSTILE)
        assert list(step.output["review"]) == [None, *(f"said {number}" for number in range(1, len(HOSTILE)))]
        assert list(step.output["text"]) == HOSTILE
        assert step.num_unreviewed == 1
        assert step.card.facts["Reviewed"] == f"{len(HOSTILE) - 1} of {len(HOSTILE)} rows"
        assert step.trace(3).parents[0].index == 3


def test_a_rerun_does_no_work_until_a_review_changes_and_the_file_is_written_again_if_it_is_gone(tmp_path: Path):
    file = tmp_path / "folder" / "review.csv"

    def run(name: str = "review.csv") -> tuple[list[Any], bool]:
        with DataDreamer(tmp_path / "out", verbose=False):
            step = review(file.with_name(name), ["a", "b"], labels=[1, 2], show=["note"])
            return list(step.output["review"]), step.usage.rows > 0

    assert run() == ([None, None], True)
    before = file.read_bytes()
    assert run() == ([None, None], False)
    assert file.read_bytes() == before
    rows = read(file)
    assert list(rows[0]) == ["id", "review", "text", "note"]
    rows[1]["review"] = " 2 "
    write(file, [{**row, "comment": "mine"} for row in reversed(rows)])
    assert run() == ([None, 2], True)
    assert run() == ([None, 2], False)
    file.rename(file.with_name("moved.csv"))
    assert run("moved.csv") == ([None, 2], False)  # the path does not count
    assert run() == ([None, None], False)
    assert read(file) == [{**row, "review": ""} for row in read(file)]


def test_new_rows_are_added_at_the_end_and_reviews_and_columns_of_the_person_stay(tmp_path: Path):
    file = tmp_path / "review.csv"
    with DataDreamer(tmp_path / "out", verbose=False):
        review(file, ["a", "b"])
    rows = [{**row, "review": f"of {row['text']}", "comment": "mine, all"} for row in read(file)]
    write(file, rows)
    with DataDreamer(tmp_path / "out", verbose=False):
        step = review(file, ["new", "b", "b"])
        assert list(step.output["review"]) == [None, "of b", None]
        assert step.card.facts["Reviewed"] == ("1 of 3 rows; 1 reviews are of rows that are not among the inputs")
    assert read(file)[:2] == rows
    assert [(row["text"], row["review"], row["comment"]) for row in read(file)[2:]] == [("new", "", ""), ("b", "", "")]


def test_edits_outside_the_column_review_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "review.csv"
    with DataDreamer(tmp_path / "out", verbose=False):
        review(file, ["a", "=b", "c  d\n"])
    write(file, [{**row, "text": row["text"].removeprefix("'").rstrip()} for row in read(file)])
    for text, said in ((" a", False), ("corrected", True)):
        write(file, [{**read(file)[0], "text": text}, *read(file)[1:]])
        caplog.clear()
        with DataDreamer(tmp_path / "out", verbose=False):
            review(file, ["a", "=b", "c  d\n"])
        assert ("1 rows of" in caplog.text and "other values in text" in caplog.text) is said


def cells_of(file: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline="")))


def test_lines_with_fewer_or_more_cells_than_columns_are_notes_that_stay(tmp_path: Path):
    file = tmp_path / "review.csv"
    with DataDreamer(tmp_path / "out", verbose=False):
        review(file, ["a", "b"])
    rows = cells_of(file)
    header, first, second = ([*row[1:], row[0]] for row in rows)  # the id comes last
    first[header.index("review")] = "fine"
    with file.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream).writerows([header, first, ["ask Ada"], [*second, "not sure"]])
    with DataDreamer(tmp_path / "out", verbose=False):
        assert list(review(file, ["a", "b", "new"]).output["review"]) == ["fine", None, None]
    kept = cells_of(file)
    assert kept[:4] == [header, first, ["ask Ada"], [*second, "not sure"]]
    assert [row[header.index("text")] for row in kept[4:]] == ["new"]


def changed(file: Path, **columns: Any) -> None:
    write(file, [{columns.get(name, name): value for name, value in row.items()} for row in read(file)])


def said(file: Path, *reviews: str) -> None:
    """Writes reviews of the first row."""
    write(file, [{**read(file)[0], "review": review} for review in reviews])


CHANGES: dict[str, Any] = {
    r"lacks the column review; it has: id, verdict, text": lambda file: changed(file, review="verdict"),
    r"lacks the column id, text; it has: ID, review, Text": lambda file: changed(file, id="ID", text="Text"),
    r"has the column review twice": lambda file: file.write_text(file.read_text().replace("text", "review,text", 1)),
    r"lacks the column id, review, text; it has: ": lambda file: file.write_text(""),
    r'row r\w+: the review "spma" is not among the labels spam, ham. Did you mean "spam"': lambda file: said(
        file, "spma"
    ),
    r"has two reviews of row r\w+: spam, ham": lambda file: said(file, "spam", "ham"),
    r"has reviews of other rows": lambda file: write(file, [{"id": "r0", "review": "spam", "text": "other"}]),
    r"is not UTF-8": lambda file: file.write_bytes(file.read_bytes() + b"\xe4"),
}


@pytest.mark.parametrize(("message", "change"), CHANGES.items())
def test_a_file_that_does_not_fit_is_refused_by_name_and_left_as_it_is(tmp_path: Path, message: str, change: Any):
    file = tmp_path / "review.csv"
    with DataDreamer(tmp_path / "out", verbose=False):
        review(file, ["a", "b"], labels=["spam", "ham"])
    change(file)
    before = file.read_bytes()
    with DataDreamer(tmp_path / "out", verbose=False), pytest.raises(DataError, match=message):
        review(file, ["a", "b"], labels=["spam", "ham"])
    assert file.read_bytes() == before


def test_arguments_that_do_not_fit_are_named(session: DataDreamer, tmp_path: Path):
    file = tmp_path / "review.csv"
    with pytest.raises(DefinitionError, match='show has "nte".*Did you mean "note"'):
        review(file, ["a"], show=["nte"])
    with pytest.raises(ArgumentTypeError, match="is a folder"):
        review(tmp_path, ["a"])
    with pytest.raises(DefinitionError, match="the same as text: 1, 1"):
        review(file, ["a"], labels=[1, "1"])
    rows = DataSource("Rows", {"review": ["a"]})
    with pytest.raises(DefinitionError, match='a column is named "review"'):
        ReviewFile("By hand", inputs={"inputs": rows.output["review"]}, args={"file": file})
    assert not file.exists()
