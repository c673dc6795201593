from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from PIL import Image

from datadreamer_like.errors import ArgumentTypeError, DataError, EmptyDataset
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
