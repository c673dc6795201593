from __future__ import annotations

import csv
import os
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy
import pandas
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from PIL import Image

from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset, MissingExtra, StepOutputTypeError
from datadreamer_like.graph import DataDreamer, OutputDataset, OutputIterableDataset
from datadreamer_like.steps import DataSource, HFDatasetDataSource


def numbers() -> Iterator[dict[str, int]]:
    yield from ({"n": i} for i in range(2_500))


@pytest.mark.parametrize(
    "data",
    [
        {"a": [1, 2], "b": ["x", None]},
        [{"a": 1, "b": "x"}, {"a": 2}],
        Dataset.from_dict({"a": [1, 2], "b": ["x", None]}),
    ],
)
def test_rows_are_saved(session: DataDreamer, data: Any) -> None:
    source = DataSource("rows", data=data)
    assert isinstance(source.output, OutputDataset)
    assert list(source.output) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


@pytest.mark.parametrize("data", [numbers, IterableDataset.from_generator(numbers)])
def test_streams_are_read_anew_in_each_pass(session: DataDreamer, data: Any) -> None:
    source = DataSource("rows", data=data, total_num_rows=2_500)
    assert isinstance(source.output, OutputIterableDataset)
    assert source.output.num_rows == 2_500
    for _ in range(2):
        assert list(source.output["n"]) == list(range(2_500))


def test_an_endless_function_can_be_taken_from(session: DataDreamer) -> None:
    def endless() -> Iterator[dict[str, int]]:
        n = 0
        while True:
            yield {"n": n}
            n += 1

    assert list(DataSource("rows", data=endless).take(3).output["n"]) == [0, 1, 2]


def test_what_a_generator_function_closes_over_decides_its_rows(session: DataDreamer) -> None:
    def counting(step: int) -> Any:
        def rows() -> Iterator[dict[str, int]]:
            yield {"n": step}

        return rows

    first, again, other = (DataSource(f"rows {i}", data=counting(step)) for i, step in enumerate((1, 1, 2)))
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_content_of_a_dataset_decides_and_the_order_of_columns(session: DataDreamer) -> None:
    rows = {"a": [1, 2], "b": [3, 4]}
    fingerprints = [
        DataSource(f"rows {i}", data=data).fingerprint
        for i, data in enumerate(
            [
                Dataset.from_dict(rows),
                Dataset.from_dict({"a": [0, 1, 2], "b": [0, 3, 4]}).select([1, 2]),
                Dataset.from_dict({"a": [1, 3], "b": [3, 4]}),
                rows,
                {"b": [3, 4], "a": [1, 2]},
            ]
        )
    ]
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == 4


@pytest.mark.parametrize(
    ("data", "kind", "says"),
    [
        ({"a": [1], "b": [1, 2]}, DataError, "different lengths"),
        ({"a": []}, EmptyDataset, "no rows"),
        ({}, EmptyDataset, "no rows"),
        ([], EmptyDataset, "no rows"),
        ([{}], DataError, "the rows have no columns"),
        ([{}, {}], DataError, "the rows have no columns"),
        (lambda: iter([{}]), DataError, "the rows have no columns"),
        (lambda: iter([{}, {"a": 1}]), DataError, "the rows have no columns"),
        (Dataset.from_dict({"a": []}), EmptyDataset, "no rows"),
        ({"a": "text"}, ArgumentTypeError, 'column "a" is str; expected a list'),
        ({"a": {"x", "y"}, "b": [1, 2]}, ArgumentTypeError, 'column "a" is set; expected a list'),
        ({"a": {"x": 1}}, ArgumentTypeError, 'column "a" is dict; expected a list'),
        ({"a": pandas.DataFrame({"x": [1], "y": [2]})}, ArgumentTypeError, 'column "a" is DataFrame; expected a list'),
        ({"a": numpy.array(5)}, ArgumentTypeError, 'column "a" is ndarray; expected a list'),
        ([{"a": 1}, "x"], DataError, "row 1 is str"),
        (5, ArgumentTypeError, "data is int"),
        (DatasetDict({"train": Dataset.from_dict({"a": [1]})}), ArgumentTypeError, "with the splits train. Give one"),
        (lambda: iter([]), EmptyDataset, "yields none"),
        (lambda: iter([1]), DataError, "row 0 is int"),
    ],
)
def test_bad_data(session: DataDreamer, data: Any, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        DataSource("rows", data=data)


def test_a_later_row_with_another_column(session: DataDreamer) -> None:
    source = DataSource("rows", data=lambda: iter([{"text": "a"}, {"txt": "b"}]))
    with pytest.raises(DataError, match='row 1 has the column "txt".*Did you mean "text"'):
        list(source.output)


def test_a_saved_dataset(session: DataDreamer, tmp_path: Path) -> None:
    Dataset.from_dict({"a": [1, 2]}).save_to_disk(str(tmp_path / "one"))
    source = HFDatasetDataSource("rows", str(tmp_path / "one"))
    assert list(source.output["a"]) == [1, 2]
    DatasetDict({"train": Dataset.from_dict({"a": [1]})}).save_to_disk(str(tmp_path / "many"))
    with pytest.raises(DataError, match=r"several splits \(train\).*many/train"):
        HFDatasetDataSource("rows", str(tmp_path / "many"))
    with pytest.raises(DataError, match="is not a folder"):
        HFDatasetDataSource("rows", str(tmp_path / "none"))
    with pytest.raises(ArgumentTypeError, match="must be a folder.*to DataSource"):
        HFDatasetDataSource("rows", Dataset.from_dict({"a": [1]}))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        HFDatasetDataSource("rows", str(tmp_path / "other"))
    Dataset.from_dict({"a": [1, 3]}).save_to_disk(str(tmp_path / "one"))
    assert HFDatasetDataSource("rows", str(tmp_path / "one")).fingerprint != source.fingerprint


@pytest.mark.parametrize("data", [{1: ["x"]}, [{"a": 1}, {1: "x"}], lambda: iter([{1: "x"}])])
def test_column_names_are_texts(session: DataDreamer, data: Any) -> None:
    with pytest.raises(DataError, match="Use '1'"):
        DataSource("rows", data=data)


def test_images_are_rows_and_what_a_function_refers_to(tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (2, 3), colour) for colour in ("red", "blue"))
    with DataDreamer(tmp_path, verbose=False):
        given = DataSource("Given", data={"image": [red, blue, None]})
        made = given.map(lambda row: {"same": (row["image"] or blue).tobytes() == red.tobytes()}, lazy=False)
        assert list(made.output["same"]) == [True, False, False]
        assert [image and image.getpixel((0, 0)) for image in given.output["image"]] == [(255, 0, 0), (0, 0, 255), None]


@pytest.mark.parametrize("by", ["open", "Path", "closure", "several", "csv"])
def test_a_changed_file_is_seen_by_what_is_saved_of_a_functions_rows(tmp_path: Path, by: str) -> None:
    file, other = tmp_path / "rows.txt", tmp_path / "other.txt"
    calls = []

    def rows() -> Iterator[dict[str, Any]]:
        name = os.path.join(str(tmp_path), "rows" + ".txt")
        if by == "several":
            with open(other) as stream:
                stream.read()
        if by == "csv":
            with open(name, newline="") as stream:
                lines = [row[0] for row in csv.reader(stream)]
        else:
            lines = (file if by == "closure" else Path(name)).read_text().splitlines()
        yield from ({"text": line} for line in lines)

    def saved() -> list[Any]:
        with DataDreamer(tmp_path / "session", verbose=False):
            made = DataSource("Rows", data=rows).map(lambda row: calls.append(row) or {}, lazy=False)  # type: ignore[func-returns-value]
            return list(made.output["text"])

    other.write_text("")
    for content, runs in (("a\nb", 1), ("a\nb", 0), ("a\nc", 1), ("a\nb", 0)):
        file.write_text(content)
        calls.clear()
        assert saved() == content.splitlines()
        assert len(calls) == 2 * runs


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no file system in memory")
def test_a_changed_file_in_memory_is_seen_too() -> None:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        test_a_changed_file_is_seen_by_what_is_saved_of_a_functions_rows(Path(folder), "open")


def test_files_that_are_written_or_belong_to_python_do_not_count(tmp_path: Path) -> None:
    def rows() -> Iterator[dict[str, Any]]:
        import wave  # a module of the standard library

        (tmp_path / "log.txt").write_text(str(time.time()))
        yield {"n": wave.WAVE_FORMAT_PCM}

    def fingerprint() -> str:
        with DataDreamer(tmp_path / "session", verbose=False):
            return DataSource("Rows", data=rows).fingerprint

    assert fingerprint() == fingerprint()


@pytest.mark.parametrize("name", ["\ud800", "a\udfff", "\0", "a\0b"])
def test_column_names_are_valid_unicode(session: DataDreamer, name: str) -> None:
    for data in ({name: [1]}, [{name: 1}], lambda: iter([{name: 1}])):
        with pytest.raises(DataError, match="not valid Unicode"):
            DataSource("Rows", data=data)
    with pytest.raises(StepOutputTypeError, match="not valid Unicode"):
        DataSource("Rows", data={"n": [1]}).map(lambda row: {name: 1}, lazy=False)


def test_a_decoder_that_is_missing_is_named(session: DataDreamer, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **options: Any) -> Any:
        raise ImportError("To support decoding audio data, please install 'torchcodec'.")

    monkeypatch.setattr(datasets.Audio, "decode_example", missing)
    sound = datasets.Dataset.from_dict({"sound": [{"bytes": b"RIFF", "path": None}], "n": [1]})
    rows = DataSource("Rows", data=sound.cast_column("sound", datasets.Audio()))
    kept = rows.filter(lambda n: n == 1, input_columns="n").save()
    assert isinstance(kept.output.info.features["sound"], datasets.Audio)
    with pytest.raises(MissingExtra, match=r'Column "sound" cannot be decoded.*torchcodec.*decode=False'):
        rows.filter(lambda row: row["n"] == 1).save()
    undecoded = DataSource("Undecoded", data=sound.cast_column("sound", datasets.Audio(decode=False)))
    assert undecoded.filter(lambda row: True).output.rows.batches().__next__()["sound"][0]["bytes"] == b"RIFF"
