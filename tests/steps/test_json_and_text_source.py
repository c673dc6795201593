from __future__ import annotations

import json
from pathlib import Path

import pytest

from datadreamer_like.errors import DataError, DefinitionError, EmptyDataset
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import JSONDataSource, TextDataSource
from datadreamer_like.steps.sources.json_source import _CHUNK

ROWS = [
    {"text": "a\nb", "n": 1, "tags": ["x"], "inner": {"k": 1}},
    {"text": "ü]", "n": 2.5, "tags": [], "inner": None, "late": True},
]
FULL = [
    {"text": "a\nb", "n": 1.0, "tags": ["x"], "inner": {"k": 1}, "late": None},
    {"text": "ü]", "n": 2.5, "tags": [], "inner": None, "late": True},
]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps(row) for row in ROWS),
        "\n\n" + "\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\r\n",
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        "\ufeff \n" + json.dumps(ROWS),
    ],
)
def test_json_lines_and_arrays_give_the_same_rows(session: DataDreamer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8", newline="")
    assert list(JSONDataSource("rows", data_files=str(path)).output) == FULL


def test_a_long_array_is_read_element_by_element(session: DataDreamer, tmp_path: Path) -> None:
    rows = [{"i": i, "text": "é" * (i % 977), "list": [[i], {"a": "}],["}]} for i in range(3_000)]
    rows.append({"i": -1, "text": "x" * 5 * _CHUNK, "list": []})
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    plain = [{k: v for k, v in row.items() if k != "list"} for row in rows]
    path.write_text(json.dumps(plain, ensure_ascii=False, indent=1), encoding="utf-8")
    assert list(JSONDataSource("rows", data_files=str(path)).output) == plain


def test_plain_values_of_several_types_become_texts(session: DataDreamer, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n{"a": true}\n{"a": null}\n')
    assert list(JSONDataSource("rows", data_files=str(path)).output["a"]) == ["1", "x", "true", None]


def test_a_field_of_an_object(session: DataDreamer, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text('{"version": 1, "data": [{"a": 1}]}')
    assert list(JSONDataSource("rows", data_files=str(path), field="data").output) == [{"a": 1}]
    with pytest.raises(DataError, match='no array in a field "rows"; it holds the fields version, data'):
        JSONDataSource("wrong", data_files=str(path), field="rows")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1}\n\n{"a": \n', ["rows.json, line 3 is malformed", "a JSON object in each line"]),
        ('{"a": 1}\n[1, 2]\n', ["rows.json, line 2 is an array", "expected an object"]),
        ('[\n {"a": 1},\n {"a": 2}\n {"a": 3}\n]', ["rows.json, line 4 is malformed", "expected ',' or ']'"]),
        ('[\n {"a": 1},\n {"a": }\n]', ["rows.json, line 3 is malformed"]),
        ('[\n {"a": 1},\n "x"\n]', ["rows.json, line 3 is a text"]),
        ('[\n {"a": 1}\n', ["rows.json, line 3 is malformed", "the end of the file"]),
        ('[{"a": 1}]\n{}', ["line 2 is malformed", "more after the end"]),
        ('{"a": 1}\n{"a": [1]}\n', ['line 2: column "a" is an array; earlier rows have a number']),
    ],
)
def test_malformed_json_is_one_clear_error(session: DataDreamer, tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        JSONDataSource("rows", data_files=str(path))
    for part in says:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("element", "says"),
    [
        ('{"a": 1} {"a": 2}', "expected ',' or ']'"),
        ("]\n[", "more after the end"),
        ('{"a": }', "Expecting value"),
        ("{a: 1}", "Expecting property name"),
        ('{"a" 1}', "Expecting ':' delimiter"),
        ('{"a": "x\n"}', "Invalid control character"),
        ('{"a": "\\x"}', "escape"),
    ],
)
def test_malformed_json_is_found_without_reading_the_rest_of_the_file(
    session: DataDreamer, tmp_path: Path, element: str, says: str
) -> None:
    path = tmp_path / "rows.json"
    rest = ',\n{"a": 1}' * _CHUNK
    path.write_bytes(b'[{"a": 1}\n' + b"," * (element[0] != "]") + element.encode() + rest.encode() + b"]\xff")
    with pytest.raises(DataError, match=f"line [23] is malformed: .*{says}"):
        JSONDataSource("rows", data_files=str(path))


def test_an_array_may_be_cut_anywhere(session: DataDreamer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.json"
    rows = [{"a": -1.5e300, "b": "\U0001f600\n", "c": float("-inf"), "d": [True, None]}]
    path.write_text(json.dumps(rows))
    for size in range(1, len(json.dumps(rows)) + 1):
        monkeypatch.setattr("datadreamer_like.steps.sources.json_source._CHUNK", size)
        assert list(JSONDataSource("rows", data_files=str(path), force=True).output) == rows


@pytest.mark.parametrize("form", ["%s\n%s", "[%s,\n%s]", '{"rows": [%s, %s]}'])
def test_a_carriage_return_does_not_end_a_line(session: DataDreamer, tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes((form % ('{"a": 1,\r "b": 2}\r', '{"a": 3, "b": 4}')).encode())
    rows = JSONDataSource("rows", data_files=path, field="rows" if "rows" in form else None)
    assert list(rows.output) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize("text", ["", "[]", "\n \n"])
def test_json_without_rows_is_refused(session: DataDreamer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(EmptyDataset, match="rows.json is empty"):
        JSONDataSource("rows", data_files=str(path))


def test_a_line_a_row(session: DataDreamer, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes("one\r\n\n thrée \u2028same\nlast".encode())
    assert list(TextDataSource("rows", data_files=str(path)).output["text"]) == ["one", "", " thrée \u2028same", "last"]
    kept = TextDataSource("kept", data_files=str(path), keep_linebreaks=True)
    assert list(kept.output["text"]) == ["one\n", "\n", " thrée \u2028same\n", "last"]
    paragraphs = TextDataSource("paragraphs", data_files=str(path), sample_by="paragraph")
    assert list(paragraphs.output["text"]) == ["one", " thrée \u2028same\nlast"]
    whole = TextDataSource("whole", data_files=str(path), sample_by="document")
    assert list(whole.output["text"]) == ["one\n\n thrée \u2028same\nlast"]


def test_bad_text_files(session: DataDreamer, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"ok\ncaf\xe9")
    with pytest.raises(DataError, match="line 2: byte 0xe9"):
        TextDataSource("rows", data_files=str(path))
    path.write_bytes(b"")
    with pytest.raises(EmptyDataset):
        TextDataSource("rows", data_files=str(path))
    with pytest.raises(DefinitionError, match='expected "line"'):
        TextDataSource("rows", data_files=str(path), sample_by="word")


BIG = 2**64


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("1|18446744073709551616", ["1", str(BIG)]),
        ("-9223372036854775808|9223372036854775807", [-(2**63), 2**63 - 1]),
        ("1.5|-18446744073709551616", ["1.5", str(-BIG)]),
        ("true|18446744073709551616", ["true", str(BIG)]),
        ("[1]|[18446744073709551616, null]", [["1"], [str(BIG), None]]),
        ('{"k": [1]}|{"k": [18446744073709551616]}|{}', [{"k": ["1"]}, {"k": [str(BIG)]}, {}]),
        ('{"k": 1}|{"k": "x"}', [{"k": "1"}, {"k": "x"}]),
        ('[1, "x", true]|[]', [["1", "x", "true"], []]),
        ("1|1e999", ["1", "1e999"]),
        (f"{'7' * 5000}|1", ["7" * 5000, "1"]),
        ('"x"|NaN', ["x", None]),
        ('["x", NaN]|[]', [["x", None], []]),
        ("true|NaN", [True, None]),
        ('{"k": {"z": 1}}|{"k": NaN}', [{"k": {"z": 1}}, {"k": None}]),
        ('"a\\u0000b"|null', ["a\0b", None]),
    ],
)
@pytest.mark.parametrize("form", ["lines", "array", "field"])
def test_json_values_that_do_not_fit_one_type(
    session: DataDreamer, tmp_path: Path, rows: str, expected: list, form: str
) -> None:
    objects = [f'{{"x": {value}}}' for value in rows.split("|")]
    text = "\n".join(objects) if form == "lines" else f"[{', '.join(objects)}]"
    path = tmp_path / "rows.json"
    path.write_text(f'{{"all": {text}}}' if form == "field" else text)
    options = {"field": "all"} if form == "field" else {}
    assert list(JSONDataSource("rows", data_files=path, **options).output["x"]) == expected


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"y": "\\ud800"}', 'column "y" holds a text with half a surrogate pair'),
        ('{"y": {"k": ["\\ud800"]}}', 'column "y", key "k" holds a text with half'),
        ('{"x": {"\\ud800": 1}}', "holds a text with half"),
        ('{"\\ud800": 1}', "holds a text with half"),
        ('{"x": {"k": [{"a": 1}]}}', 'key "k" is an array; earlier rows have a number'),
        ('{"x": [1]}', "is an array; earlier rows have an object"),
    ],
)
def test_json_values_that_cannot_be_kept_are_named_with_file_and_line(
    session: DataDreamer, tmp_path: Path, row: str, says: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"x": {"k": 1}}\n\n' + row + "\n")
    with pytest.raises(DataError) as caught:
        JSONDataSource("rows", data_files=path)
    assert "rows.jsonl, line 3" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize("other", ["0.5", "NaN", "1e3"])
@pytest.mark.parametrize("shape", ["%s", "[%s]", '{"k": %s}', '[{"k": %s}]'])
def test_an_integer_that_no_float_holds_keeps_its_digits(
    session: DataDreamer, tmp_path: Path, shape: str, other: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"id": {shape % 9007199254740993}}}\n{{"id": {shape % other}}}\n{{"id": {shape % 7}}}\n')
    found = list(JSONDataSource("rows", data_files=path).output["id"])
    kept = None if other == "NaN" else str(float(other))
    assert found == [json.loads(shape % json.dumps(text)) for text in ("9007199254740993", kept, "7")]


@pytest.mark.parametrize(("before", "after"), [('{"a": 1}\n', ""), ('[{"a": 1},\n', "]")])
@pytest.mark.parametrize("depth", [101, 102, 500, 900, 1_100, 3_000])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"k":', "}"), ('[{"k":', "}]")])
def test_values_nested_too_deeply_are_named(
    session: DataDreamer, tmp_path: Path, before: str, after: str, depth: int, start: str, end: str
) -> None:
    path = tmp_path / "rows.json"
    path.write_text(before + '{"b": ' + start * depth + "1" + end * depth + "}" + after)
    with pytest.raises(DataError, match=r"rows.json, line 2 holds values that are nested too deeply"):
        JSONDataSource("rows", data_files=path)


@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"k":', "}")])
def test_values_nested_deeply_are_read(session: DataDreamer, tmp_path: Path, start: str, end: str) -> None:
    path = tmp_path / "rows.jsonl"
    value = start * 50 + "1" + end * 50
    path.write_text(f'{{"a": {value}}}')
    assert list(JSONDataSource("rows", data_files=path).output["a"]) == [json.loads(value)]


@pytest.mark.parametrize("text", ["a\0b", "a\0b\n", "\0", "ab\0c"])
def test_a_short_text_with_a_nul_character_is_text(session: DataDreamer, tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(text)
    assert list(TextDataSource("rows", data_files=path).output["text"]) == [text.removesuffix("\n")]
