"""Operations: the same rows whether they lie on disk or are made when asked for; exports."""

import csv
import datetime
import decimal
import io
import json
import os
import random

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from datadreamer_like import DataDreamer, concat, concurrent, wait, zipped
from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    EmptyDataset,
    NoSuchRow,
    StepOutputError,
    StorageError,
    UnknownColumn,
)
from datadreamer_like.graph.output import OutputDataset
from datadreamer_like.steps import DataSource, HFDatasetDataSource, JSONDataSource, LazyRows, Step

ROWS = [{"text": f"t{i}", "n": i, "label": "abc"[i % 3]} for i in range(30)]


class Lazy(Step):
    def setup(self):
        self.register_arg("rows")
        for name in self.columns:
            self.register_output(name)

    columns = ("text", "n", "label")

    def run(self):
        return LazyRows(lambda: iter(self.args["rows"]), total_num_rows=len(self.args["rows"]))


@pytest.fixture(params=["table", "made when asked for"])
def rows(request):
    with DataDreamer(":memory:"):
        if request.param == "table":
            yield DataSource("Rows", data=ROWS)
        else:
            yield Lazy("Rows", args={"rows": ROWS})


def values(step, column="n"):
    return list(step.output[column])


def test_operations_that_move_rows(rows):
    assert values(rows.select([3, 1, 3, 29])) == [3, 1, 3, 29]
    assert values(rows.take(4)) == [0, 1, 2, 3]
    assert values(rows.skip(27)) == [27, 28, 29]
    assert values(rows.take(99)) == list(range(30))
    assert values(rows.skip(99)) == []
    assert values(rows.reverse())[:3] == [29, 28, 27]
    assert values(rows.shard(num_shards=4, index=1)) == list(range(1, 30, 4))
    parts = [values(rows.shard(num_shards=4, index=i, contiguous=True)) for i in range(4)]
    assert sum(parts, []) == list(range(30))
    assert {len(part) for part in parts} <= {7, 8}


def test_shuffle_gives_every_row_once_and_the_same_order_for_a_seed(rows):
    once = values(rows.shuffle(seed=1))
    assert once != list(range(30))
    assert sorted(once) == list(range(30))
    assert values(rows.shuffle(seed=1)) == once
    assert values(rows.shuffle(seed=2)) != once
    assert values(rows.shuffle()) == values(rows.shuffle())


def test_sort_is_stable_and_places_missing_values():
    data = [{"a": a, "b": b} for a, b in [(2, 0), (None, 1), (1, 2), (2, 3), (1, 4), (None, 5)]]
    with DataDreamer(":memory:"):
        step = DataSource("Rows", data=data)
        assert values(step.sort("a"), "b") == [2, 4, 0, 3, 1, 5]
        assert values(step.sort("a", reverse=True), "b") == [0, 3, 2, 4, 1, 5]
        assert values(step.sort("a", null_placement="at_start"), "b") == [1, 5, 2, 4, 0, 3]
        assert values(step.sort(["a", "b"], reverse=[False, True]), "b") == [4, 2, 3, 0, 5, 1]
        with pytest.raises(DefinitionError, match="null_placement"):
            step.sort("a", null_placement="last")


def test_sort_has_one_order_for_missing_values_and_nan_at_every_level(session):
    nan = float("nan")
    columns = {
        "floats": ([2.0, nan, None, 1.0], [1.0, 2.0], [2.0, 1.0]),
        "lists": ([[nan], [2.0], None, [1.0, None], [1.0, 3.0]], [[1.0, 3.0], [1.0, None], [2.0], [nan]], None),
        "truth values": ([True, None, False], [False, True], [True, False]),
        "decimals": ([decimal.Decimal(2), None, decimal.Decimal("1.5")], [decimal.Decimal("1.5"), 2], [2, 1.5]),
        "differences": ([datetime.timedelta(2), None, datetime.timedelta(1)], [datetime.timedelta(1)], None),
    }
    for name, (given, upwards, downwards) in columns.items():
        rows = DataSource(name, data={"x": given})
        found = values(rows.sort("x"), "x")[: len(upwards)]
        assert found == upwards or repr(found) == repr(upwards)  # NaN is not equal to itself
        assert values(rows.sort("x"), "x")[-1] is None
        assert values(rows.sort("x", reverse=True), "x")[-1] is None
        if downwards is not None:
            assert values(rows.sort("x", reverse=True), "x")[: len(downwards)] == downwards
    with pytest.raises(DefinitionError, match='sort: column "x" holds values that have no order'):
        DataSource("Dictionaries", data={"x": [{"a": 1}, {"a": 2}]}).sort("x")


def test_lazy_rows_of_map_have_one_type_too(session):
    rows = DataSource("Rows", data={"n": list(range(2500))})
    lazy = rows.map(lambda row: {"x": 1 if row["n"] < 2000 else "x"})
    with pytest.raises(StepOutputError, match='map: column "x" mixes int64 and string'):
        list(lazy.output["x"])
    wider = rows.map(lambda row: {"x": 1 if row["n"] < 2000 else 0.5})
    assert [list(wider.output["x"])[place] for place in (0, -1)] == [1, 0.5]


def test_a_lazy_map_calls_its_function_once_a_row(session):
    rows = DataSource("Rows", data={"n": [1, 2, 3]})
    calls, factor = [], 10

    def multiplied(row):
        calls.append(row["n"])
        return {"x": row["n"] * factor}

    def numbered(row, index):
        calls.append(f"index {index}")
        return {"y": index}

    kept = rows.filter(lambda row: row["n"] > 1).map(multiplied).map(numbered, with_indices=True).save()
    assert list(kept.output) == [{"n": 2, "x": 20, "y": 0}, {"n": 3, "x": 30, "y": 1}]
    assert sorted(map(str, calls)) == ["2", "3", "index 0", "index 1"]
    calls.clear()
    same = rows.map(lambda row: calls.append(row["n"]) or {"n": row["n"]})  # tried on all, as it changes none
    assert list(same.output["n"]) == calls == [1, 2, 3]
    changed = rows.map(multiplied)
    factor = 100
    assert list(changed.output["x"]) == [100, 200, 300]  # not the first row by the old factor


def test_operations_on_columns(rows):
    assert rows.select_columns(["n", "text"]).output.column_names == ["n", "text"]
    assert rows.remove_columns("text").output.column_names == ["n", "label"]
    assert rows.rename_column("n", "m").output.column_names == ["text", "m", "label"]
    assert values(rows.rename_columns({"n": "text", "text": "n"}), "text") == list(range(30))
    with pytest.raises(DefinitionError, match="two columns would have the same name"):
        rows.rename_column("n", "text")
    for wrong in (rows.select_columns, rows.remove_columns, rows.sort):
        with pytest.raises(UnknownColumn, match='Did you mean "label"'):
            wrong("lable")


def test_map_in_all_its_forms(rows):
    assert values(rows.map(lambda row: {"m": row["n"] + 1}), "m") == list(range(1, 31))
    assert values(rows.map(lambda row: {"n": -row["n"]}))[:3] == [0, -1, -2]
    assert values(rows.map(lambda row, i: {"m": i - row["n"]}, with_indices=True), "m") == [0] * 30
    assert values(rows.map(lambda n, t: {"m": f"{t}{n}"}, input_columns=["n", "text"]), "m")[2] == "t22"
    batched = rows.map(lambda b: {"m": [sum(b["n"])] * len(b["n"])}, batched=True, batch_size=10)
    assert values(batched, "m") == [45] * 10 + [145] * 10 + [245] * 10
    fewer = rows.map(
        lambda b, i: {"m": [i[0]]}, batched=True, batch_size=7, with_indices=True, remove_columns=["text", "n", "label"]
    )
    assert values(fewer, "m") == [0, 7, 14, 21, 28]
    assert rows.map(lambda row: {"m": 1}, remove_columns="n").output.column_names == ["text", "label", "m"]
    assert values(rows.map(lambda row: {"m": row["n"]} if row["n"] % 2 else None), "m")[:4] == [None, 1, None, 3]
    saved = rows.map(lambda row: {"m": row["n"]}, lazy=False)
    assert isinstance(saved.output, OutputDataset)
    assert saved.output["m"][5] == 5


def test_a_function_that_fails_says_at_which_row(rows):
    with pytest.raises(ZeroDivisionError) as caught:
        rows.map(lambda row: {"m": 1 / (row["n"] - 7)}, lazy=False)
    assert "row 7 of its input" in caught.value.__notes__[0]


def test_chained_functions_are_tried_on_one_row_before_the_rows_are_asked_for(rows, tmp_path):
    log = tmp_path / "calls"

    def noted(name):
        def call(row):
            with log.open("a") as stream:
                stream.write(f"{name}{row['n']} ")
            return {name: row["n"]}

        return call

    chained = rows.map(noted("a")).filter(lambda row: row["a"] > 27).map(noted("b"))
    assert chained.output.column_names == ["text", "n", "label", "a", "b"]
    assert log.read_text() == "a0 b0 "
    assert values(chained, "b") == [28, 29]


def test_map_and_filter_refuse_what_does_not_fit(rows):
    with pytest.raises(StepOutputError, match="returned int for a row; expected a dict"):
        rows.map(lambda row: 1)
    with pytest.raises(StepOutputError, match=r"different lengths.*remove_columns"):
        rows.map(lambda batch: {"m": [1]}, batched=True).save()
    with pytest.raises(StepOutputError, match="different lengths: {'m': 1, 'n': 2}"):
        rows.map(lambda batch: {"m": [1], "n": [1, 2]}, batched=True, remove_columns=["text", "label"]).save()
    with pytest.raises(StepOutputError, match="returned 1 values for 30 rows"):
        rows.filter(lambda batch: [True], batched=True).save()


@pytest.mark.parametrize(
    "values", ["xyz", b"xyz", {"x": 1, "y": 2, "z": 3}, {1, 2, 3}, frozenset("xyz"), 3, np.array(3)]
)
def test_a_batched_function_returns_columns_not_single_values(session, values):
    three = DataSource("Three", data={"n": [1, 2, 3]})
    with pytest.raises(StepOutputError, match='map, column "m": the function returned .*; expected a list'):
        three.map(lambda batch: {"m": values}, batched=True, lazy=False)
    with pytest.raises(StepOutputError, match="filter: the function returned .*; expected a list"):
        three.filter(lambda batch: values, batched=True, lazy=False)


@pytest.mark.parametrize("number", [True, np.True_, torch.tensor(True), 1.0, np.float64(1), "1", None, slice(0, 1)])
def test_positions_are_whole_numbers_and_a_mask_is_not_taken_for_positions(session, number):
    three = DataSource("Three", data={"n": [1, 2, 3]})
    for use in (
        lambda: three.select([number, 0]),
        lambda: three.output[[number, 0, 0]],
        lambda: three.output["n"][(0, number)],
        lambda: three.trace(number),
        lambda: three.shuffle(buffer_size=number),
        lambda: three.take(number),
        lambda: three.skip(number),
        lambda: three.shard(number, 0),
        lambda: three.shard(2, number),
    ):
        with pytest.raises(ArgumentTypeError, match="expected whole numbers"):
            use()


def test_masks_of_every_library_are_refused_and_scalars_of_every_library_are_positions(session):
    output = DataSource("Three", data={"n": [1, 2, 3]}).output
    mask = [True, False, True]
    for one in (mask, np.array(mask), torch.tensor(mask), pd.Series(mask)):
        with pytest.raises(ArgumentTypeError, match="Keep rows by a mask with step.filter"):
            output[one]
    for two in (2, np.int8(2), np.array(2), torch.tensor(2), np.uint64(2)):
        assert output[two] == {"n": 3}
        assert output["n"][two] == 3
    with pytest.raises(NoSuchRow, match="larger than any row's number"):
        output[2**63]


def test_what_has_no_order_or_names_a_column_twice_is_refused_before_it_runs(rows):
    for use, said in (
        (lambda: rows.sort([]), "at least one column"),
        (lambda: rows.shuffle(seed=-1), "seed is -1"),
        (lambda: rows.shuffle(buffer_size=0), "buffer_size is 0"),
        (lambda: rows.select_columns(["n", "text", "n"]), "named twice: n, text, n"),
    ):
        with pytest.raises(DefinitionError, match=said):
            use()


def test_filter_in_all_its_forms(rows):
    assert values(rows.filter(lambda row: row["n"] % 10 == 0)) == [0, 10, 20]
    assert values(rows.filter(lambda row, i: i < 2, with_indices=True)) == [0, 1]
    assert values(rows.filter(lambda n: n > 27, input_columns="n")) == [28, 29]
    assert values(rows.filter(lambda b: [n == 3 for n in b["n"]], batched=True, batch_size=4)) == [3]
    nothing = rows.filter(lambda row: False)
    assert values(nothing) == []
    assert nothing.save().output.num_rows == 0
    assert nothing.save().output.column_names == ["text", "n", "label"]


def test_add_item_copy_and_save(rows):
    more = rows.add_item({"text": "new", "n": 99, "label": "a"})
    assert values(more)[-1] == 99
    assert list(rows.add_item({"text": "new"}).output)[-1] == {"text": "new", "n": None, "label": None}
    with pytest.raises(UnknownColumn, match='no column "txt"'):
        rows.add_item({"txt": "new"})
    assert values(rows.copy()) == list(range(30))
    assert type(rows.copy().output) is type(rows.output)
    assert isinstance(rows.copy("Mine", lazy=False).output, OutputDataset)
    saved = rows.save(name="Kept")
    assert saved.name == "Kept"
    assert list(saved.output) == ROWS


def test_concat_and_zipped(rows):
    both = concat(rows, rows.take(2))
    assert values(both) == [*range(30), 0, 1]
    swapped = concat(rows.take(1), rows.select_columns(["n", "label", "text"]).take(1))
    assert list(swapped.output) == [ROWS[0], ROWS[0]]
    side = zipped(rows.select_columns("n"), rows.select_columns("text").reverse())
    assert list(side.output)[0] == {"n": 0, "text": "t29"}
    assert both.name == "concat(Rows, Rows (take))"
    union = concat(rows.take(1), rows.remove_columns("n").take(1))
    assert list(union.output) == [ROWS[0], ROWS[0] | {"n": None}]
    with pytest.raises(DefinitionError, match="no column in common"):
        concat(rows.select_columns("n"), rows.select_columns("text"))
    with pytest.raises(DefinitionError, match="more than one step has the column n"):
        zipped(rows, rows.select_columns("n"))
    with pytest.raises(DefinitionError, match="different numbers of rows"):
        zipped(rows.select_columns("n"), rows.select_columns("text").take(3))
    with pytest.raises(DefinitionError, match="at least one step"):
        concat()


def test_splits_are_disjoint_complete_and_the_same_in_every_run(rows):
    splits = rows.splits(train_size=0.8, validation_size=0.1, test_size=0.1)
    assert list(splits) == ["train", "validation", "test"]
    parts = {name: values(step) for name, step in splits.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 24, "validation": 3, "test": 3}
    assert sorted(sum(parts.values(), [])) == list(range(30))
    assert parts["train"] != list(range(24))
    assert {name: values(step) for name, step in rows.splits(0.8, 0.1, 0.1).items()} == parts
    assert [len(values(step)) for step in rows.splits(train_size=20, test_size=5).values()] == [20, 5]
    assert {name: len(values(step)) for name, step in rows.splits(train_size=0.9).items()} == {"train": 27, "test": 3}


def test_stratified_splits_keep_the_shares_of_every_label():
    rng = random.Random(0)
    data = [{"n": i, "label": rng.choice("aaaaaabbbc")} for i in range(500)]
    with DataDreamer(":memory:"):
        splits = DataSource("Rows", data=data).splits(0.8, 0.1, 0.1, stratify_by_column="label")
        parts = {name: values(step, "label") for name, step in splits.items()}
        assert sorted(sum((values(step) for step in splits.values()), [])) == list(range(500))
    for label in "abc":
        total = sum(row["label"] == label for row in data)
        for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
            assert abs(parts[name].count(label) - share * total) <= 1.5


def test_a_label_with_too_few_rows_for_every_split_is_named(caplog: pytest.LogCaptureFixture):
    with DataDreamer(":memory:"):
        rows = DataSource("Rows", data={"label": [*"aaaaaab"]})
        splits = rows.splits(0.5, test_size=0.5, stratify_by_column="label")
        lacks = next(name for name, step in splits.items() if "b" not in values(step, "label"))
    assert caplog.text.count("too few") == 1
    assert f'the split "{lacks}" has no row with these values of "label"' in caplog.text


@pytest.mark.parametrize(
    ("count", "sizes", "expected"),
    [
        (10, {}, {"train": 10}),
        (10, {"train_size": 1}, {"train": 1, "test": 9}),
        (10, {"train_size": 1.0}, {"train": 10}),
        (10, {"test_size": 1}, {"train": 9, "test": 1}),
        (10, {"test_size": 0.3}, {"train": 7, "test": 3}),
        (10, {"train_size": 10}, {"train": 10}),
        (10, {"train_size": 0.9, "validation_size": 0}, {"train": 9, "test": 1}),
        (10, {"train_size": 0.9, "validation_size": 0.1, "test_size": 0.0}, {"train": 9, "validation": 1}),
        (10, {"train_size": 3, "test_size": 4}, {"train": 3, "test": 4}),
        (10, {"train_size": np.int64(4)}, {"train": 4, "test": 6}),
        (9, {"train_size": 0.7, "validation_size": 0.2, "test_size": 0.1}, {"train": 6, "validation": 2, "test": 1}),
        (5, {"train_size": 0.9, "test_size": 0.1}, {"train": 4, "test": 1}),
        (3, {"train_size": 0.98, "validation_size": 0.01, "test_size": 0.01}, {"train": 1, "validation": 1, "test": 1}),
        (2, {"train_size": 0.99}, {"train": 1, "test": 1}),
    ],
)
def test_sizes_of_splits(session, tmp_path, count, sizes, expected):
    rows = DataSource("Rows", data={"n": list(range(count))})
    for step in (rows, rows.filter(lambda row: True)):
        made = {name: values(part) for name, part in step.splits(**sizes).items()}
        assert {name: len(part) for name, part in made.items()} == expected
        assert len(set(sum(made.values(), []))) == sum(expected.values())
        exported = step.export_to_dict(**sizes)
        assert exported == {name: {"n": part} for name, part in made.items()} if len(made) > 1 else {"n": made["train"]}
        file = step.export_to_json(tmp_path / "x.json", **sizes)
        assert file == str(tmp_path / "x.json") if len(made) == 1 else set(file) == set(made)


def test_splits_refuse_sizes_that_do_not_fit(rows):
    for sizes, says in [
        ({"train_size": 20, "test_size": 20}, "exceed the 30 rows"),
        ({"train_size": 31}, "exceed the 30 rows"),
        ({"train_size": 0.8, "test_size": 0.3}, "sum to 1.1"),
        ({"train_size": 0.8, "test_size": 0.1}, "sum to 0.9"),
        ({"train_size": 1.5}, "sum to 1.5"),
        ({"train_size": 0.5, "test_size": 5}, "mixes shares"),
        ({"train_size": "big"}, "expected a share"),
        ({"train_size": True}, "expected a share"),
        ({"train_size": -1}, "expected a share"),
        ({"train_size": float("nan")}, "expected a share"),
    ]:
        with pytest.raises(DefinitionError, match=says):
            rows.splits(**sizes)
        with pytest.raises(DefinitionError, match=says):
            rows.export_to_list(**sizes)
    with pytest.raises(DefinitionError, match="1 rows are too few"):
        rows.take(1).splits(train_size=0.9, test_size=0.1)
    with pytest.raises(EmptyDataset):
        rows.filter(lambda row: False).splits(train_size=0.5)


def test_exported_splits_have_the_names_of_datadreamer_and_lazy_rows_are_made_once(session, tmp_path):
    calls = []
    lazy = DataSource("Rows", data={"n": list(range(20))}).map(lambda row: calls.append(row) or {"m": row["n"]})
    paths = lazy.export_to_csv(tmp_path / "new" / "x.csv", train_size=0.5, validation_size=0.3, test_size=0.2)
    assert len(calls) == 20
    assert {name: os.path.basename(path) for name, path in paths.items()} == {
        "train": "x.train.csv", "validation": "x.val.csv", "test": "x.test.csv",
    }  # fmt: skip


def test_names_of_operations_are_numbered_unless_given(rows):
    def same(row):
        return row

    assert [rows.map(same).name for _ in range(3)] == ["Rows (map)", "Rows (map #2)", "Rows (map #3)"]
    assert rows.map(same, name="Mine").name == "Mine"
    with pytest.raises(DefinitionError, match='no option "nmae".*Did you mean "name"'):
        rows.map(same, nmae="Mine")


def test_names_of_classes_stay_with_their_column(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    with DataDreamer(tmp_path):
        step = DataSource("Rows", data=datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}, features))
        moved = step.shuffle(seed=1).rename_column("label", "answer").save()
        assert moved.output.dataset.features["answer"].names == ["no", "yes"]
        assert moved.splits(train_size=1)["train"].output.dataset.features["answer"].names == ["no", "yes"]


def test_a_closures_value_decides_a_mapped_result(tmp_path):
    calls = []

    def scaled(factor):
        return lambda row: {"m": row["n"] * factor}

    for factor in (2, 2, 3, 2):
        with DataDreamer(tmp_path) as session:
            step = DataSource("Rows", data=ROWS).map(scaled(factor), lazy=False)
            assert values(step, "m")[1] == factor
            calls.append(session.folder.joinpath("rows-(map)", "node.json").stat().st_ino)
    assert calls[0] == calls[1] == calls[3] != calls[2]


def test_exports_agree(rows, tmp_path):
    assert rows.export_to_list() == ROWS
    assert rows.export_to_dict()["n"] == list(range(30))
    with open(rows.export_to_json(tmp_path / "a" / "rows.json")) as stream:
        assert [json.loads(line) for line in stream] == ROWS
    with open(rows.export_to_csv(tmp_path / "rows.csv", sep=";"), newline="") as stream:
        assert [row["text"] for row in csv.DictReader(stream, delimiter=";")] == [f"t{i}" for i in range(30)]
    assert rows.export_to_hf_dataset(tmp_path / "hf").to_list() == ROWS
    split = rows.export_to_hf_dataset(tmp_path / "split", train_size=0.9, test_size=0.1)
    assert {name: len(part) for name, part in split.items()} == {"train": 27, "test": 3}
    assert datasets.load_from_disk(str(tmp_path / "split"))["test"].to_list() == split["test"].to_list()
    paths = rows.export_to_json(tmp_path / "rows.jsonl", train_size=20, test_size=10)
    assert paths == {"train": str(tmp_path / "rows.train.jsonl"), "test": str(tmp_path / "rows.test.jsonl")}
    with pytest.raises(DefinitionError, match='no option "trian_size".*Did you mean "train_size"'):
        rows.export_to_list(trian_size=0.5)


def exported(tmp_path, data, **options):
    with open(
        DataSource("Data", data=data).export_to_json(tmp_path / "rows.json", **options), encoding="utf-8"
    ) as file:
        return file.read()


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([1e-12, 0.1 + 0.2, 1e22], ["1e-12", "0.30000000000000004", "1e+22"]),
        ([[1 / 3], [], None], ["[0.3333333333333333]", "[]", "null"]),
        ([2**62, None], [str(2**62), "null"]),
        ([{"a": 1}, {}], ['{"a": 1}', "{}"]),
        ([datetime.date(2020, 1, 2), None], ['"2020-01-02"', "null"]),
        ([datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC)], ['"2020-01-02T00:00:00+00:00"']),
        ([datetime.time(1, 2), None], ['"01:02:00"', "null"]),
        ([[datetime.timedelta(hours=1)]], ['["1:00:00"]']),
        ([decimal.Decimal("1.10")], ['"1.10"']),
        (["é"], ['"\\u00e9"']),
    ],
)
def test_json_holds_each_value_as_it_is(session, tmp_path, values, lines):
    assert exported(tmp_path, {"v": values}).splitlines() == [f'{{"v": {line}}}' for line in lines]


def test_json_holds_the_names_of_class_labels(session, tmp_path):
    label = datasets.ClassLabel(names=["cat", "dog"])
    features = datasets.Features({"one": label, "all": datasets.Sequence(label)})
    rows = datasets.Dataset.from_dict({"one": [1, -1, None], "all": [[0, 1], [], None]}, features=features)
    found = exported(tmp_path, rows).splitlines()
    assert [*map(json.loads, found)] == [
        {"one": "dog", "all": ["cat", "dog"]}, {"one": None, "all": []}, {"one": None, "all": None},
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [b"\xff", float("inf"), float("nan"), [[b"a"]], {"x": -float("inf")}])
def test_what_json_cannot_hold_is_refused_and_leaves_the_earlier_file(session, tmp_path, bad):
    whole = exported(tmp_path, {"ok": [1]})
    with pytest.raises(
        DefinitionError, match='column "bad" holds what JSON cannot: (a value of type bytes|Out of range)'
    ):
        exported(tmp_path, {"ok": [1, 2], "bad": [None, bad]})
    assert [(file.name, file.read_text()) for file in tmp_path.glob("*.json*")] == [("rows.json", whole)]
    assert not list(tmp_path.glob(".rows*"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lines": True, "orient": "records", "force_ascii": False}, '{"é": 1}\n{"é": 2}\n'),
        ({"ensure_ascii": False, "indent": 1, "lines": False}, '[\n{\n "é": 1\n},\n{\n "é": 2\n}\n]\n'),
        ({"lines": False}, '[\n{"\\u00e9": 1},\n{"\\u00e9": 2}\n]\n'),
    ],
)
def test_json_takes_the_options_of_scripts(session, tmp_path, options, text):
    assert exported(tmp_path, {"é": [1, 2]}, **options) == text


@pytest.mark.parametrize(
    ("options", "says"), [({"orient": "split"}, "records"), ({"indnt": 2}, 'Did you mean "indent"')]
)
def test_json_refuses_other_options(session, tmp_path, options, says):
    with pytest.raises(DefinitionError, match=says):
        exported(tmp_path, {"a": [1]}, **options)
    assert not list(tmp_path.glob("*rows*"))


def test_class_labels_are_names_in_files_wherever_they_stand(session, tmp_path):
    label = datasets.ClassLabel(names=["no", "yes, sir"])
    kinds = {
        "one": (label, [1, None], ["yes, sir", None]),
        "many": (datasets.List(label), [[0, 1], []], [["no", "yes, sir"], []]),
        "deep": (datasets.List(datasets.List(label)), [[[0], []], None], [[["no"], []], None]),
        "objects": (
            datasets.List({"kind": label, "n": datasets.Value("int64")}),
            [[{"kind": 1, "n": 1}], []],
            [[{"kind": "yes, sir", "n": 1}], []],
        ),
        "inside": (
            {"kinds": datasets.List(label)},
            [{"kinds": [0]}, {"kinds": None}],
            [{"kinds": ["no"]}, {"kinds": None}],
        ),
    }
    features = datasets.Features({name: kind for name, (kind, _, _) in kinds.items()})
    data = datasets.Dataset.from_dict({name: given for name, (_, given, _) in kinds.items()}, features=features)
    rows = DataSource("Rows", data=data).map(lambda row: row, lazy=False)
    expected = [{name: named[i] for name, (_, _, named) in kinds.items()} for i in range(2)]
    with open(rows.export_to_json(tmp_path / "rows.json")) as stream:
        assert [json.loads(line) for line in stream] == expected
    with open(rows.export_to_csv(tmp_path / "rows.csv"), newline="") as stream:
        first, second = csv.DictReader(stream)
    assert first == {name: value if name == "one" else json.dumps(value) for name, value in expected[0].items()}
    assert second == {"one": "", "many": "[]", "deep": "", "objects": "[]", "inside": '{"kinds": null}'}


def test_a_csv_has_one_header_however_many_rows_it_has(session, tmp_path):
    rows = DataSource("Rows", data={"n": range(2_500)})
    for header, first in ((["m"], "m"), (True, "n"), (False, "0")):
        with open(rows.export_to_csv(tmp_path / "rows.csv", header=header)) as stream:
            lines = stream.read().splitlines()
        assert lines[0] == first
        assert len(lines) == 2_500 + bool(header)


def test_lazy_rows_are_sharded_though_their_number_is_unknown(rows):
    odd = rows.filter(lambda row: row["n"] % 2)
    assert values(odd.shard(num_shards=4, index=1, contiguous=True)) == [9, 11, 13, 15]
    assert values(odd.shard(num_shards=4, index=1)) == [3, 11, 19, 27]


def test_a_shard_copies_no_other_rows(rows, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    lazy = rows.filter(lambda row: row["n"] != 3).map(lambda row: {"n": row["n"]})
    expected = [n for n in range(30) if n != 3]
    for size in (1, 4, 40):
        shards = [lazy.shard(size, index) for index in range(min(size, 29))]
        assert [values(shard) for shard in shards] == [expected[index::size] for index in range(len(shards))]
        assert shards[-1].trace(0).parents
    assert not list(tmp_path.iterdir())


def test_nested_values_can_be_read_back_from_csv(tmp_path):
    data = [
        {"g": ['it\'s, "a"', "b"], "e": [i / 7 for i in range(1500)], "d": {"k": 1}},
        {"g": [], "e": None, "d": None},
    ]
    with DataDreamer(":memory:"):
        path = DataSource("Rows", data=data).export_to_csv(tmp_path / "rows.csv")
        with pytest.raises(DefinitionError, match="pandas refuses the options"):
            DataSource("Rows", data=data).export_to_csv(tmp_path / "x.csv", indx=True)
    csv.field_size_limit(10**6)
    with open(path, newline="") as stream:
        read = [
            {name: json.loads(text) if text else None for name, text in row.items()} for row in csv.DictReader(stream)
        ]
    assert read == data


def test_concurrent_functions_make_steps_in_one_session(tmp_path):
    with DataDreamer(tmp_path):
        made = concurrent(*(lambda i=i: DataSource(f"Rows {i}", data={"n": [i]}) for i in range(4)))
        assert [values(step) for step in made] == [[0], [1], [2], [3]]
        later = [DataSource(f"Later {i}", data={"n": [i]}, background=True) for i in range(3)]
        wait(*later)
        assert [values(step) for step in later] == [[0], [1], [2]]


def test_fields_with_any_line_end_are_quoted_in_csv(session, tmp_path):
    texts = ["one\rtwo", "a\nb", "c\r\nd", "plain", 'q"', "x,y", "\r", None]
    rows = DataSource("Rows", data={"t": texts, "n": list(range(8))})
    for options, end in (({}, os.linesep), ({"lineterminator": "\r\n"}, "\r\n"), ({"quoting": csv.QUOTE_ALL}, "\n")):
        with open(rows.export_to_csv(tmp_path / "rows.csv", **options), newline="") as stream:
            text = stream.read()
        assert text.startswith(f"t,n{end}") or options.get("quoting") == csv.QUOTE_ALL
        read = list(csv.reader(io.StringIO(text, newline="")))
        assert read == [["t", "n"], *([t or "", str(n)] for n, t in enumerate(texts))]
    with pytest.raises(DefinitionError, match="pandas refuses the options"):
        rows.export_to_csv(tmp_path / "rows.csv", quoting=csv.QUOTE_NONE)


@pytest.mark.parametrize(
    "path",
    ["s3://bucket/x.csv", "hf://datasets/x", "gs:/bucket/x", "folder", "file/x.csv", "x" * 300, "", "a\0b", "~no-1/x"],
)
def test_paths_that_cannot_be_written_are_one_error(session, tmp_path, monkeypatch, path):
    (tmp_path / "here" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "folder" / "mine.txt").touch()
    (tmp_path / "here" / "file").touch()
    rows = DataSource("Rows", data={"n": [1]})
    for export in (rows.export_to_csv, rows.export_to_json, rows.export_to_hf_dataset):
        with pytest.raises(StorageError, match='Exporting "Rows"'):
            export(path)
    assert sorted(os.listdir()) == ["file", "folder"]
    assert os.listdir("folder") == ["mine.txt"]


def test_a_home_folder_is_meant_by_its_sign(session, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    rows = DataSource("Rows", data={"n": [1]})
    assert rows.export_to_json("~/files/x.json") == str(tmp_path / "files" / "x.json")
    rows.export_to_hf_dataset("~/hf")
    for again in (
        JSONDataSource("A file", data_files="~/files/x.json"),
        JSONDataSource("A pattern", data_files=["~/files/*.json"]),
        JSONDataSource("A folder", data_folder="~/files"),
        HFDatasetDataSource("A dataset", "~/hf"),
    ):
        assert list(again.output["n"]) == [1]


def test_an_exported_dataset_is_replaced_as_a_whole(session, tmp_path):
    rows = DataSource("Rows", data={"n": list(range(10))})
    rows.export_to_hf_dataset(tmp_path / "hf", train_size=0.5)
    assert rows.export_to_hf_dataset(tmp_path / "hf")["n"][:] == list(range(10))
    assert not (tmp_path / "hf" / "train").exists()
    again = DataSource("Again", data=datasets.load_from_disk(str(tmp_path / "hf"))).take(3)
    assert again.export_to_hf_dataset(tmp_path / "hf")["n"][:] == [0, 1, 2]
    (tmp_path / "link").symlink_to(tmp_path / "hf")
    rows.export_to_hf_dataset(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert len(datasets.load_from_disk(str(tmp_path / "hf"))) == 10
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "output") == ["hf", "link"]


def test_pickled_objects_are_restored_in_an_exported_dataset(session, tmp_path):
    rows = DataSource("Rows", data={"n": [0, 1]})
    made = rows.map(lambda row: {"o": rows.pickle({row["n"]})})
    for step in (made, made.save()):
        exported = step.export_to_hf_dataset(tmp_path / "hf")
        assert (exported[1], exported["o"][0]) == ({"n": 1, "o": {1}}, {0})
        split = step.export_to_hf_dataset(tmp_path / "hf", train_size=0.5)
        assert isinstance(split["train"][0]["o"], set)
    assert isinstance(datasets.load_from_disk(str(tmp_path / "hf" / "train"))[0]["o"], bytes)


def test_lazy_rows_need_no_room_outside_of_the_session(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with DataDreamer(tmp_path / "session", verbose=False):
        lazy = DataSource("Rows", data={"n": [2, 1]}).filter(lambda row: True)
        assert values(lazy.sort("n")) == [1, 2]
        assert lazy.export_to_hf_dataset(tmp_path / "hf")["n"][:] == [2, 1]
        assert values(lazy.splits(train_size=1)["train"])
        assert not list((tmp_path / "session").glob(".work/rows-*"))


def test_head_shows_a_frame(rows):
    assert rows.head(2)["text"].tolist() == ["t0", "t1"]
    shuffled = rows.head(5, shuffle=True, seed=3)["n"].tolist()
    assert len(set(shuffled)) == 5
    assert rows.head(5, shuffle=True, seed=3)["n"].tolist() == shuffled


@pytest.mark.parametrize("operation", ["map", "filter"])
@pytest.mark.parametrize("function", [None, "n"])
def test_what_is_no_function_is_refused_at_once(session, operation, function):
    with pytest.raises(ArgumentTypeError, match="expected a function"):
        getattr(DataSource("Rows", data={"n": [1]}), operation)(function)


def test_lazy_steps_of_different_lengths_are_not_zipped(session):
    rows = DataSource("Rows", data={"n": [1, 2, 3]})
    few = rows.filter(lambda row: row["n"] < 3, name="Few")
    many = rows.map(lambda row: {"m": row["n"]}, remove_columns=["n"])
    with pytest.raises(StepOutputError, match='"Few" ends after 2'):
        list(zipped(few, many).output)
