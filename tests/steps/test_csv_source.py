from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, UnknownColumn
from datadreamer_like.graph import DataDreamer
from datadreamer_like.steps import CSVDataSource
from datadreamer_like.steps.sources.encodings import fault


def write(folder: Path, text: str | bytes, name: str = "rows.csv") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_types_come_from_all_rows(session: DataDreamer, tmp_path: Path) -> None:
    lines = ["whole,decimal,truth,late,mixed,zip,id,empty"]
    lines += [f"{i},{i}.5,True,{i},{i},{i:05},{i}," for i in range(10_500)]
    lines += ["-7,1e3,false,2.5,x,00007,12345678901234567890,"]
    rows = CSVDataSource("rows", data_files=write(tmp_path, "\n".join(lines)), dtype={"zip": str})
    assert rows.output.num_rows == 10_501
    assert rows.output[0] == {
        "whole": 0, "decimal": 0.5, "truth": True, "late": 0.0, "mixed": "0", "zip": "00000", "id": "0", "empty": None,
    }  # fmt: skip
    assert rows.output[10_500] == {
        "whole": -7, "decimal": 1000.0, "truth": False, "late": 2.5, "mixed": "x", "zip": "00007",
        "id": "12345678901234567890", "empty": None,
    }  # fmt: skip
    assert isinstance(rows.output[0]["late"], float)


def test_text_is_kept_as_it_stands_in_the_file(session: DataDreamer, tmp_path: Path) -> None:
    values = ["a,b", 'say "hi"', "two\nlines", "two\r\nlines", " spaces ", "NA", "None", "ünï", "007x"]
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([["text"], *([value] for value in values)])
    assert list(CSVDataSource("rows", data_files=str(path)).output["text"]) == values


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a,b\n1,\n,x\n", {}, {"a": [1, None], "b": [None, "x"]}),
        ("a,b\n01234,00.5\n56789,1.5\n", {}, {"a": ["01234", "56789"], "b": ["00.5", "1.5"]}),
        ("a,b\n-007,0\n1,0.5\n", {}, {"a": ["-007", "1"], "b": [0.0, 0.5]}),
        ("a,b\n007,010\n1,2\n", {"dtype": {"a": int, "b": float}}, {"a": [7, 1], "b": [10.0, 2.0]}),
        ("a\n0\n-0\n", {}, {"a": [0, 0]}),
        ("a,b\nNaN,True\n2,NA\n", {}, {"a": [None, 2], "b": [True, None]}),
        ("a,b\n1,\n2,x\n", {"keep_default_na": False}, {"a": [1, 2], "b": ["", "x"]}),
        ("a\n1\n-\n", {"na_values": ["-"]}, {"a": [1, None]}),
        ("a,b\n1,-\n--,2\n", {"na_values": "--"}, {"a": [1, None], "b": ["-", "2"]}),
        ("a\nnone\n1\n", {"na_values": "none"}, {"a": [None, 1]}),
        ("a\nn\n1\n", {"na_values": "none"}, {"a": ["n", "1"]}),
        ("a,b\n1,2\n", {"usecols": [1]}, {"b": [2]}),
        ("a,b\n1,2\n", {"usecols": {"a"}}, {"a": [1]}),
        ("a;b\n1;2,5\n", {"sep": ";"}, {"a": [1], "b": ["2,5"]}),
        ("\ufeffa,b\n1,2\n", {}, {"a": [1], "b": [2]}),
        ("1,2\n3,4\n", {"header": None}, {"0": [1, 3], "1": [2, 4]}),
        ("1,2\n3,4\n", {"column_names": ["x", "y"]}, {"x": [1, 3], "y": [2, 4]}),
        ("1,2\n3,4\n", {"names": ["x", "y"]}, {"x": [1, 3], "y": [2, 4]}),
        ("note\n\na,b\n1,2\n", {"skiprows": 2}, {"a": [1], "b": [2]}),
        ("a,b\n1,2\n3,4\n", {"usecols": ["b"]}, {"b": [2, 4]}),
        ("a,b\n1,2\n3,4\n", {"nrows": 1}, {"a": [1], "b": [2]}),
        ("a,b\n'x,y',2\n", {"quotechar": "'"}, {"a": ["x,y"], "b": [2]}),
        ('a\n5" pipe\n', {"quotechar": None}, {"a": ['5" pipe']}),
        ("a\r\n1\r\n\r\n2\r\n", {}, {"a": [1, 2]}),
        ("a\n0x1F\n", {}, {"a": ["0x1F"]}),
        ("a\n1_000\n", {}, {"a": ["1_000"]}),
        ("a\n1\n2\n", {"dtype": float}, {"a": [1.0, 2.0]}),
    ],
)
def test_options(session: DataDreamer, tmp_path: Path, text: str, options: dict, expected: dict) -> None:
    output = CSVDataSource("rows", data_files=write(tmp_path, text), **options).output
    assert {name: list(output[name]) for name in output.column_names} == expected


def test_encodings_and_compression(session: DataDreamer, tmp_path: Path) -> None:
    latin = write(tmp_path, "text\ncafé\n".encode("latin-1"), "latin.csv")
    assert CSVDataSource("latin", data_files=latin, encoding="latin-1").output["text"][0] == "café"
    wide = write(tmp_path, "text\ncafé\n".encode("utf-16"), "wide.csv")
    assert CSVDataSource("wide", data_files=wide, encoding="utf-16").output["text"][0] == "café"
    packed = write(tmp_path, gzip.compress("text\ncafé\n".encode()), "packed.csv.gz")
    assert CSVDataSource("packed", data_files=packed).output["text"][0] == "café"


@pytest.mark.parametrize(
    ("text", "options", "says"),
    [
        ("a,b\n1,2\n1,2,3\n", {}, ["rows.csv, line 3 has 3 fields", "the header has 2"]),
        ('a,b\n"x\ny",2\n1\n', {}, ["rows.csv, line 4 has 1 fields", "the header has 2"]),
        ("skip\na,b\n1\n", {"skiprows": 1}, ["line 3 has 1 fields"]),
        ('a,b\n1,2\n"open,3\n4,5\n', {}, ["rows.csv, line 3", "is not closed"]),
        ('a\n"x"y\n', {}, ["rows.csv, line 2 is malformed", "written twice"]),
        ("a,a\n1,2\n", {}, ['has the column "a" twice']),
        ("1,2\n", {"names": ["x"]}, ["line 1 has 2 fields", "there are names for 1"]),
        (b"a\nok\ncaf\xe9\n", {}, ["rows.csv, line 3", "byte 0xe9 (byte 8 of the file) is not utf-8", "cp1252"]),
        ("a\nx\n", {"dtype": int}, ['column "a" has dtype int', "'x'"]),
    ],
)
def test_a_malformed_file_is_one_clear_error(
    session: DataDreamer, tmp_path: Path, text: str | bytes, options: dict, says: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        CSVDataSource("rows", data_files=write(tmp_path, text), **options)
    for part in says:
        assert part in str(caught.value)
    assert not (session.folder / "rows").exists()


def test_a_wrong_byte_far_into_a_file_is_found(session: DataDreamer, tmp_path: Path) -> None:
    text = b"a\n" + b"\xc3\xa9\n" * 100_000 + b"\xff\n"
    with pytest.raises(DataError, match=r"line 100002: byte 0xff \(byte 300002 of the file\)"):
        CSVDataSource("rows", data_files=write(tmp_path, text))


def test_the_search_for_a_wrong_byte_ends_if_the_file_has_been_corrected(tmp_path: Path) -> None:
    assert fault(write(tmp_path, "a\nb\n"), "utf-8") is None


@pytest.mark.parametrize(("text", "kind"), [("", EmptyDataset), ("a,b\n", EmptyDataset)])
def test_an_empty_file_is_refused(session: DataDreamer, tmp_path: Path, text: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="no rows"):
        CSVDataSource("rows", data_files=write(tmp_path, text))


def test_a_damaged_archive_is_refused(session: DataDreamer, tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"a\n" + b"x\n" * 1000)[:-12], "rows.csv.gz")
    with pytest.raises(DataError, match="is damaged"):
        CSVDataSource("rows", data_files=path)


def test_files_are_looked_for_before_anything_runs(tmp_path: Path) -> None:
    write(tmp_path, "a\n1\n")
    with pytest.raises(DataError, match='there is no file .*row.csv. Did you mean "rows.csv"'):
        CSVDataSource("rows", data_files=str(tmp_path / "row.csv"))
    with pytest.raises(DataError, match="no file matches"):
        CSVDataSource("rows", data_files=str(tmp_path / "x*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no file that ends in .csv or .tsv"):
        CSVDataSource("rows", data_folder=str(tmp_path / "empty"))
    with pytest.raises(DataError, match="is not a folder"):
        CSVDataSource("rows", data_folder=str(tmp_path / "rows.csv"))
    with pytest.raises(DefinitionError, match="give data_files"):
        CSVDataSource("rows")
    with pytest.raises(DefinitionError, match='no option "quotchar".*Did you mean "quotechar"'):
        CSVDataSource("rows", data_files=str(tmp_path / "rows.csv"), quotchar="'")
    with pytest.raises(DefinitionError, match="no encoding"):
        CSVDataSource("rows", data_files=str(tmp_path / "rows.csv"), encoding="utf8-ish")
    with pytest.raises(DefinitionError, match="expected one character"):
        CSVDataSource("rows", data_files=str(tmp_path / "rows.csv"), sep="||")
    with pytest.raises(ArgumentTypeError, match="dictionary of splits"):
        CSVDataSource("rows", data_files={"train": "rows.csv"})


def test_wrong_columns_are_named(session: DataDreamer, tmp_path: Path) -> None:
    path = write(tmp_path, "name\nx\n")
    with pytest.raises(UnknownColumn, match='"names"; the files have: name. Did you mean "name"'):
        CSVDataSource("rows", data_files=path, usecols=["names"])
    with pytest.raises(UnknownColumn, match='"age"; there are: name'):
        CSVDataSource("rows", data_files=path, dtype={"age": int})


@pytest.mark.parametrize("dtype", ["category", "datetime64[ns]", "period[D]", "interval", bytes, complex, "text"])
def test_other_types_than_those_of_columns_are_refused(session: DataDreamer, tmp_path: Path, dtype: object) -> None:
    for given in (dtype, {"name": dtype}):
        with pytest.raises(ArgumentTypeError, match="expected str, int, float or bool"):
            CSVDataSource("rows", data_files=write(tmp_path, "name\nx\n"), dtype=given)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [(str, "1"), ("string", "1"), (object, "1"), (int, 1), ("int64", 1), (float, 1.0), ("float64", 1.0)],
)
def test_types_are_given_as_in_pandas(session: DataDreamer, tmp_path: Path, dtype: object, value: object) -> None:
    rows = CSVDataSource("rows", data_files=write(tmp_path, "a\n1\n"), dtype=dtype)
    assert list(map(repr, rows.output["a"])) == [repr(value)]


def test_several_files_are_one_table(session: DataDreamer, tmp_path: Path) -> None:
    write(tmp_path, "a,b\n1,x\n", "1.csv")
    write(tmp_path, "b,a\ny,2.5\n", "2.csv")
    rows = CSVDataSource("rows", data_folder=str(tmp_path), data_files="*.csv")
    assert list(rows.output) == [{"a": 1.0, "b": "x"}, {"a": 2.5, "b": "y"}]
    assert list(CSVDataSource("all", data_folder=str(tmp_path)).output) == list(rows.output)
    write(tmp_path, "a,c\n1,x\n", "3.csv")
    with pytest.raises(DataError, match=r"3.csv has the columns a, c; .*1.csv has a, b"):
        CSVDataSource("rows", data_files=str(tmp_path / "*.csv"))


def test_content_and_separator_decide_the_rows_but_not_the_place(tmp_path: Path) -> None:
    def run(path: Path, **options: object) -> tuple[str, list]:
        with DataDreamer(tmp_path / "output", verbose=False):
            rows = CSVDataSource("rows", data_files=path, **options)
            return rows.fingerprint, list(rows.output)

    path = write(tmp_path, "a;b\n1;2\n")
    semicolons, rows = run(path, sep=";")
    assert rows == [{"a": 1, "b": 2}]
    assert run(path) == (run(path)[0], [{"a;b": "1;2"}])
    moved = tmp_path / "elsewhere.csv"
    path.rename(moved)
    assert run(moved, sep=";") == (semicolons, rows)
    moved.write_text("a;b\n1;3\n")
    assert run(moved, sep=";")[1] == [{"a": 1, "b": 3}]


@pytest.mark.parametrize("suffix", [".tsv", ".TSV", ".tab", ".tsv.gz"])
def test_the_suffix_says_that_tabs_separate(session: DataDreamer, tmp_path: Path, suffix: str) -> None:
    text = b"id\ttext\n1\ta,b\n"
    path = write(tmp_path, gzip.compress(text) if suffix.endswith("gz") else text, f"rows{suffix}")
    assert list(CSVDataSource("rows", data_files=path).output) == [{"id": 1, "text": "a,b"}]
    assert list(CSVDataSource("rows", data_folder=tmp_path).output) == [{"id": 1, "text": "a,b"}]
    with pytest.raises(DataError, match="line 2 has 2 fields; the header has 1"):
        CSVDataSource("rows", data_files=path, sep=",")


def test_files_of_other_separators_are_read_together(session: DataDreamer, tmp_path: Path) -> None:
    files = [write(tmp_path, "a,b\n1,2\n", "x.csv"), write(tmp_path, "b\ta\n4\t3\n", "y.tsv")]
    both = CSVDataSource("rows", data_files=files)
    assert list(both.output) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    renamed = write(tmp_path, "b\ta\n4\t3\n", "y.csv")
    assert (
        CSVDataSource("rows", data_files=renamed).fingerprint != CSVDataSource("rows", data_files=files[1]).fingerprint
    )


def test_a_separator_that_was_not_given_is_noticed(
    session: DataDreamer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for text in ("a;b\n1;2\n", "a|b\n1|2\n", "a\tb\n1\t2\n"):
        caplog.clear()
        CSVDataSource("rows", data_files=write(tmp_path, text))
        assert f"set sep={text[1]!r}" in caplog.text
    caplog.clear()
    CSVDataSource("rows", data_files=write(tmp_path, "a;b\nno separator here\n"))
    CSVDataSource("rows", data_files=write(tmp_path, "a;b\n1;2\n"), sep=",")
    assert "set sep" not in caplog.text


TEXT = "id,text\n1,“smart” – é\n2,naïve\n"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_the_advice_on_the_encoding_leads_to_the_text(session: DataDreamer, tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, TEXT.encode(encoding), "rows.csv")
    for wrong in {"utf-8", "ascii"}:
        with pytest.raises(DataError, match=r"rows.csv") as caught:
            CSVDataSource("rows", data_files=path, encoding=wrong)
        advice = re.search(r'encoding="([^"]+)"', str(caught.value))
        assert advice is not None
        assert CSVDataSource("rows", data_files=path, encoding=advice[1]).output["text"][0] == "“smart” – é"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (TEXT.encode("utf-8-sig"), "utf-8"),
        (TEXT.encode("utf-8"), "utf-8"),
        (TEXT.encode("utf-16"), "utf-16"),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), "utf-16-le"),
        (TEXT.encode("utf-16-be"), "utf-16-be"),
    ],
)
def test_marks_of_encodings_are_not_part_of_the_text(
    session: DataDreamer, tmp_path: Path, content: bytes, encoding: str
) -> None:
    rows = CSVDataSource("rows", data_files=write(tmp_path, content, "rows.csv"), encoding=encoding)
    assert rows.output[0] == {"id": 1, "text": "“smart” – é"}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252"])
def test_a_wrong_encoding_with_other_symptoms(session: DataDreamer, tmp_path: Path, encoding: str) -> None:
    with pytest.raises(DataError, match='set encoding="utf-8"'):
        CSVDataSource("rows", data_files=write(tmp_path, TEXT.encode("utf-8-sig"), "rows.csv"), encoding=encoding)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["1" * 5000, "1"], ["1" * 5000, "1"]),
        (["0" * 5000, "1"], ["0" * 5000, "1"]),
        (["9223372036854775807", "1"], [2**63 - 1, 1]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["1e999", "1"], ["1e999", "1"]),
        (["inf", "1.5"], [float("inf"), 1.5]),
        (["1." + "0" * 5000, "1"], [1.0, 1.0]),
    ],
)
def test_numbers_that_no_type_holds_are_texts(
    session: DataDreamer, tmp_path: Path, texts: list[str], expected: list[object]
) -> None:
    path = write(tmp_path, "".join(f"{text}\n" for text in ["x", *texts]))
    assert list(CSVDataSource("rows", data_files=path).output["x"]) == expected


def test_nul_and_carriage_returns_are_text(session: DataDreamer, tmp_path: Path) -> None:
    path = write(tmp_path, b'a,b\n"x\ry",1\n"p\0q",2\n')
    assert list(CSVDataSource("rows", data_files=path).output["a"]) == ["x\ry", "p\0q"]


@pytest.mark.parametrize("whole", ["9007199254740993", "-9007199254740993", "9223372036854775807"])
def test_an_integer_that_no_float_holds_keeps_its_digits(session: DataDreamer, tmp_path: Path, whole: str) -> None:
    path = write(tmp_path, f"id\n{whole}\n0.5\n")
    assert list(CSVDataSource("rows", data_files=path).output["id"]) == [whole, "0.5"]


def test_names_replace_a_header_that_is_there(session: DataDreamer, tmp_path: Path) -> None:
    path = write(tmp_path, "a,b\n1,2\n")
    rows = CSVDataSource(
        "rows", data_files=[path, write(tmp_path, "c,d\n3,4\n", "more.csv")], names=["x", "y"], header=0
    )
    assert list(rows.output) == [{"x": 1, "y": 2}, {"x": 3, "y": 4}]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nrows", True), ("nrows", -1), ("nrows", 1.0), ("skiprows", True), ("skiprows", [1]), ("header", False),
        ("header", 1), ("usecols", lambda name: True), ("usecols", "ab"), ("usecols", [-1]), ("usecols", [True]),
        ("usecols", []), ("names", "ab"), ("names", {"a": 1}), ("column_names", "ab"), ("column_names", {"a", "b"}),
        ("quotechar", "''"), ("quotechar", ""), ("quotechar", ","), ("quotechar", "\n"), ("escapechar", "ab"),
        ("escapechar", 1), ("escapechar", '"'), ("sep", "\n"), ("sep", "\r"), ("sep", '"'), ("sep", ""), ("sep", 1),
        ("doublequote", "no"), ("skipinitialspace", "no"), ("keep_default_na", "no"), ("na_values", [-1]),
        ("na_values", -1), ("na_values", {"a": "-"}), ("encoding", "rot13"), ("encoding", "base64"),
        ("encoding", "hex"), ("encoding", "utf-8\0"), ("encoding", None),
    ],
)  # fmt: skip
def test_a_value_that_an_option_does_not_take_is_refused(
    session: DataDreamer, tmp_path: Path, option: str, value: object
) -> None:
    with pytest.raises(DefinitionError, match=f'"rows": .*{"encoding" if option == "encoding" else ""}'):
        CSVDataSource("rows", data_files=write(tmp_path, "a,b\n1,2\n3,4\n"), **{option: value})
    assert not (session.folder / "rows").exists()


def _of_pandas(method: str, folder: Path) -> bytes:
    path = folder / "made"
    getattr(pd.DataFrame({"a": [1, 2]}), method)(path)
    return path.read_bytes()


def _zipped(folder: Path) -> bytes:
    with zipfile.ZipFile(folder / "made", "w") as archive:
        archive.writestr("rows.csv", "a\n1\n")
    return (folder / "made").read_bytes()


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.zst", "rows.csv.xz"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "cp1252", "utf-16"])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda _: gzip.compress(b"a\n1\n"), "holds gzip data: add .*gz"),
        (lambda _: bz2.compress(b"a\n1\n"), "holds bzip2 data: add .*bz2"),
        (lambda _: bz2.compress(b""), "holds bzip2 data"),
        (lambda _: lzma.compress(b"a\n1\n"), "holds xz data: add .*xz"),
        (lambda _: bytes(pa.compress(b"a\n1\n", "zstd", asbytes=True)), "holds Zstandard data: decompress"),
        (_zipped, "holds a zip archive"),
        (partial(_of_pandas, "to_parquet"), "holds a Parquet file: read it with ParquetDataSource"),
        (partial(_of_pandas, "to_feather"), "holds an Arrow file"),
    ],
)
def test_a_file_that_is_no_text_is_named(
    session: DataDreamer, tmp_path: Path, made: Callable[[Path], bytes], says: str, encoding: str, name: str
) -> None:
    content = made(tmp_path)
    file = write(tmp_path, lzma.compress(content) if name.endswith(".xz") else content, name)
    with pytest.raises(DataError, match=says):
        CSVDataSource("rows", data_files=file, encoding=encoding)


@pytest.mark.parametrize("text", ["PAR1", "BZh", "BZh9", "PK", "ARROW1", "7z", "SQLite format 3"])
def test_a_text_may_start_like_the_name_of_a_format(session: DataDreamer, tmp_path: Path, text: str) -> None:
    assert list(CSVDataSource("rows", data_files=write(tmp_path, f"{text}\n1\n")).output[text]) == [1]
