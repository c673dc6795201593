"""Rows drawn at random: shares, limits, and rows that do not depend on how many there are."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from typing import Any

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, UnknownColumn
from datadreamer_like.steps import Category, Date, Number, Person, Sample, SubCategory

COLUMNS = {
    "kind": SubCategory("pet", {"cat": {"tabby": 1, "siamese": 3}, "dog": ["pug"], "fish": ["koi"]}),
    "pet": Category({"cat": 6, "dog": 3, "fish": 1, "bird": 0}),
    "age": Number(1, 4, integer=True),
    "weight": Number(0.5, 2.5),
    "day": Date("2024-02-28", datetime.date(2024, 3, 1)),
}


def drawn(n: int, columns: dict[str, Any] = COLUMNS, **args: Any) -> list[dict[str, Any]]:
    return list(Sample("Rows", args={"n": n, "columns": columns, **args}).output)


def fits(counts: Counter[Any], expected: dict[Any, float]) -> bool:
    """Whether each count is within five standard errors of its expectation, and nothing else was drawn."""
    n = sum(counts.values())
    return set(counts) <= set(expected) and all(
        abs(counts[value] - n * share) <= 5 * math.sqrt(n * share * (1 - share)) for value, share in expected.items()
    )


def test_values_come_with_their_shares_and_within_their_limits() -> None:
    with DataDreamer(":memory:", verbose=False):
        rows = drawn(20_000)
    assert list(rows[0]) == list(COLUMNS)
    assert fits(Counter(row["pet"] for row in rows), {"cat": 0.6, "dog": 0.3, "fish": 0.1})
    assert fits(Counter(row["kind"] for row in rows if row["pet"] == "cat"), {"tabby": 0.25, "siamese": 0.75})
    assert {row["kind"] for row in rows if row["pet"] == "dog"} == {"pug"}
    assert fits(Counter(row["age"] for row in rows), dict.fromkeys([1, 2, 3, 4], 0.25))
    days = [datetime.date(2024, 2, 28), datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)]
    assert fits(Counter(row["day"] for row in rows), dict.fromkeys(days, 1 / 3))
    weights = [row["weight"] for row in rows]
    assert 0.5 <= min(weights) < 0.51
    assert 2.49 < max(weights) < 2.5
    assert abs(sum(weights) / len(rows) - 1.5) < 5 * (2 / math.sqrt(12)) / math.sqrt(len(rows))
    # Columns are independent of each other.
    share = sum(row["pet"] == "cat" and row["age"] == 1 for row in rows) / len(rows)
    assert abs(share - 0.6 * 0.25) < 5 * math.sqrt(0.15 * 0.85 / len(rows))


def test_more_rows_extend_the_same_ones_and_a_further_column_changes_no_other() -> None:
    with DataDreamer(":memory:", verbose=False):
        few = drawn(1_050)
        assert drawn(2_100)[:1_050] == few
        assert [{name: row[name] for name in COLUMNS} for row in drawn(1_050, {"x": Number(0, 1), **COLUMNS})] == few
        assert drawn(1_050, seed=1) != few
        assert drawn(1_050, lazy=True) == few


def test_the_order_of_columns_and_values_is_part_of_the_fingerprint() -> None:
    with DataDreamer(":memory:", verbose=False):
        rows = drawn(5, {"a": Number(0, 1), "b": Category({"x": 1, "y": 2})})
        other = drawn(5, {"b": Category({"y": 2, "x": 1}), "a": Number(0, 1)})
    assert (list(rows[0]), list(other[0])) == (["a", "b"], ["b", "a"])


def test_the_report_shows_what_was_drawn_next_to_what_was_expected() -> None:
    with DataDreamer(":memory:", verbose=False):
        columns = {**COLUMNS, "year": Number(1990, 2022, integer=True)}
        step = Sample("Pets", args={"n": 500, "columns": columns}, outputs={"pet": "animal"})
        table, rows = step.report(), list(step.output)
        counts = Counter(row["animal"] for row in rows)
    shown = {(row["column"], row["value"]): row for row in table.rows}
    assert {value: shown["pet", value]["rows"] for value in counts} == dict(counts)
    assert shown["pet", "cat"]["expected"] == 0.6
    assert shown["pet", "cat"]["drawn"] == counts["cat"] / 500
    assert shown["kind", "siamese"]["expected"] == pytest.approx(0.45)
    ages, days = Counter(row["age"] for row in rows), Counter(row["day"] for row in rows)
    assert [(shown["age", str(age)]["rows"], shown["age", str(age)]["expected"]) for age in range(1, 5)] == [
        (ages[age], 0.25) for age in range(1, 5)
    ]
    assert shown["day", "2024-02-29"]["rows"] == days[datetime.date(2024, 2, 29)]
    assert shown["weight", "0.9 to 1.3"]["rows"] == sum(0.9 <= row["weight"] < 1.3 for row in rows)
    assert shown["year", "1,996 to 2,002"]["expected"] == 7 / 33
    assert shown["year", "1,996 to 2,002"]["rows"] == sum(1996 <= row["year"] <= 2002 for row in rows)
    assert sum(row["rows"] for row in table.rows if row["column"] == "year") == 500
    assert "Pets: 500 rows" in str(table)


def test_persons_are_of_their_locale_and_the_same_each_time() -> None:
    columns = {"who": Person("de_DE")}
    with DataDreamer(":memory:", verbose=False):
        people = [row["who"] for row in drawn(60, columns)]
        assert [row["who"] for row in drawn(20, columns)] == people[:20]
        assert {row["who"]["sex"] for row in drawn(20, columns)} == {"female", "male"}
    assert len({person["name"] for person in people}) > 50
    assert all(person["name"] == f"{person['first_name']} {person['last_name']}" for person in people)
    columns = {"ja": Person("ja_JP"), "zh": Person("zh_CN")}
    with DataDreamer(":memory:", verbose=False):
        row = drawn(1, columns)[0]
    assert row["ja"]["name"] == f"{row['ja']['last_name']} {row['ja']['first_name']}"
    assert row["zh"]["name"] == f"{row['zh']['last_name']}{row['zh']['first_name']}"
    assert all(person["email"].isascii() and person["email"].endswith("@example.com") for person in people)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Category([]), DefinitionError, "no values"),
        (lambda: Category("abc"), ArgumentTypeError, "'abc'"),
        (lambda: Category({"a": -1}), DefinitionError, "weight of 'a' is -1"),
        (lambda: Category({"a": float("nan")}), DefinitionError, "finite"),
        (lambda: Category({"a": 0, "b": 0}), DefinitionError, "all weights are 0"),
        (lambda: Category(["a", "a"]), DefinitionError, "listed twice"),
        (lambda: Category([True, 1]), DefinitionError, "listed twice"),
        (lambda: Category([["a"], ["b"]]), ArgumentTypeError, r"the value \['a'\] is not a text, number or date"),
        (lambda: SubCategory("a", ["b"]), ArgumentTypeError, "SubCategory takes"),  # type: ignore[arg-type]
        (lambda: Number(2, 1), DefinitionError, "more than high"),
        (lambda: Number(0.5, 2, integer=True), ArgumentTypeError, "low must be a whole number"),
        (lambda: Date("2024-02-30", "2024-03-01"), DefinitionError, "2024-02-30"),
        (lambda: Date("2024-02-02", "2024-02-01"), DefinitionError, "after end"),
        (lambda: Person("de_XX"), DefinitionError, "no locale 'de_XX'"),
    ],
)
def test_bad_samplers_are_named(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    ("args", "error", "says"),
    [
        ({"n": 0}, DefinitionError, "n is 0"),
        ({"seed": -1}, DefinitionError, "seed is -1"),
        ({"columns": {}}, DefinitionError, "columns is empty"),
        ({"columns": {"": Category(["x"])}}, DefinitionError, "column name '' is empty"),
        ({"columns": {"a": ["x"]}}, ArgumentTypeError, 'column "a" is'),
        ({"columns": {"a": SubCategory("topics", {}), "topic": Category(["x"])}}, UnknownColumn, 'mean "topic"'),
        ({"columns": {"a": SubCategory("b", {"x": ["y"]}), "b": Category(["x", "z"])}}, DefinitionError, "\"b\" = 'z'"),
        ({"columns": {one: SubCategory(of, {"x": ["x"]}) for one, of in ("ab", "ba")}}, DefinitionError, "each other"),
        ({"columns": {"a": SubCategory("b", {1: ["x"]}), "b": Number(1, 2)}}, DefinitionError, "neither a Category"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(args: dict[str, Any], error: type[Exception], says: str) -> None:
    with DataDreamer(":memory:", verbose=False), pytest.raises(error, match=says):
        Sample("Rows", args={"n": 2, "columns": COLUMNS, **args})
