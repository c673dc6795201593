"""What scripts ask of steps: refusals with DataDreamer's builtin errors, progress, attributes, cards, positions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from datadreamer_like import DataDreamer
from datadreamer_like.datasets import (
    OutputDataset,
    OutputDatasetColumn,
    OutputIterableDataset,
    OutputIterableDatasetColumn,
)
from datadreamer_like.errors import DataDreamerError, StepOutputError
from datadreamer_like.steps import (
    CSVDataSource,
    DataCardType,
    DataSource,
    HFDatasetDataSource,
    JSONDataSource,
    LazyRows,
    Step,
    TextDataSource,
    concat,
    concurrent,
    wait,
    zipped,
)

TABLE = Dataset.from_dict({"a": [1], "b": [2]})
ITERABLE = TABLE.to_iterable_dataset()


class Copies(Step):
    def setup(self) -> None:
        self.register_input("i")
        self.register_arg("x", required=False, default=1)
        self.register_output("o")

    def run(self) -> Any:
        return self.inputs["i"]


class ReadsItself(Step):
    def setup(self) -> None:
        self.register_output("o")

    def run(self) -> Any:
        return self.output


class MakesAStep(ReadsItself):
    def run(self) -> Any:
        return DataSource("Inner", {"a": [1]}).output["a"]


class NoSetup(Step):
    def run(self) -> Any:
        return 1


class NoRun(Step):
    def setup(self) -> None:
        self.register_output("o")


class NoOutput(Step):
    def setup(self) -> None: ...


def registering(method: str, *values: Any) -> Callable[..., Step]:
    class Registers(Step):
        def setup(self) -> None:
            self.register_output("o")
            getattr(self, method)(*values)

        def run(self) -> Any:
            return 1

    return Registers


def overriding_init(column: Any) -> Any:
    class Own(Step):
        def __init__(self) -> None: ...

    return Own()


def on_a_file(column: Any) -> Any:
    with DataDreamer(__file__):
        raise AssertionError("the session opened")


def splits_folder(column: Any, name: str = "splits") -> Any:
    folder = Path(column.step.session.folder) / name
    DatasetDict({"train": TABLE}).save_to_disk(folder) if name == "splits" else folder.mkdir()
    return HFDatasetDataSource("D", folder)


REFUSALS: dict[str, tuple[type[Exception], Callable[[Any], Any]]] = {
    "an output dataset of no step": (ValueError, lambda c: OutputDataset(5, TABLE)),  # type: ignore[arg-type]
    "an output dataset of an iterable": (ValueError, lambda c: OutputDataset(c.step, ITERABLE)),
    "an output iterable of a table": (ValueError, lambda c: OutputIterableDataset(c.step, TABLE)),
    "a column of two": (ValueError, lambda c: OutputDatasetColumn(c.step, TABLE)),
    "a lazy column of two": (ValueError, lambda c: OutputIterableDatasetColumn(c.step, ITERABLE)),
    "an empty name": (ValueError, lambda c: DataSource("", {"a": [1]})),
    "a slash in a name": (ValueError, lambda c: DataSource("a/b", {"a": [1]})),
    "no output": (ValueError, lambda c: NoOutput("N")),
    "a missing input": (ValueError, lambda c: Copies("C")),
    "an unknown input": (ValueError, lambda c: Copies("C", inputs={"i": c, "j": c})),
    "an unknown argument": (ValueError, lambda c: Copies("C", inputs={"i": c}, args={"y": 1})),
    "an unknown output": (ValueError, lambda c: Copies("C", inputs={"i": c}, outputs={"y": "z"})),
    "concat of nothing": (ValueError, lambda c: concat()),
    "zipped of nothing": (ValueError, lambda c: zipped()),
    "several splits": (ValueError, lambda c: DataSource("D", DatasetDict({"train": TABLE}))),  # type: ignore[arg-type]
    "a session on a file": (ValueError, on_a_file),
    "an input that is no column": (TypeError, lambda c: Copies("C", inputs={"i": [1]})),  # type: ignore[dict-item]
    "an input's name that is no text": (TypeError, lambda c: registering("register_input", 5)("R")),
    "an argument's name that is no text": (TypeError, lambda c: registering("register_arg", 5)("R")),
    "an output's name that is no text": (TypeError, lambda c: registering("register_output", 5)("R")),
    "a heading that is no text": (TypeError, lambda c: registering("register_data_card", 5, "x")("R")),
    "waiting for a number": (TypeError, lambda c: wait(5)),  # type: ignore[arg-type]
    "running a number": (TypeError, lambda c: concurrent(5)),  # type: ignore[arg-type]
    "concat of a number": (TypeError, lambda c: concat(5)),  # type: ignore[arg-type]
    "zipped with a number": (TypeError, lambda c: zipped(5)),  # type: ignore[arg-type]
    "no setup": (NotImplementedError, lambda c: NoSetup("N")),
    "no run": (NotImplementedError, lambda c: NoRun("N")),
    "a late input": (RuntimeError, lambda c: Copies("C", inputs={"i": c}).register_input("z")),
    "a late argument": (RuntimeError, lambda c: Copies("C", inputs={"i": c}).register_arg("z")),
    "a late output": (RuntimeError, lambda c: Copies("C", inputs={"i": c}).register_output("z")),
    "a step in a plain step": (RuntimeError, lambda c: MakesAStep("M")),
    "nested sessions": (RuntimeError, lambda c: DataDreamer(":memory:").start()),
    "the path of lazy rows": (RuntimeError, lambda c: DataSource("L", lambda: iter([{"a": 1}])).dataset_path),
    "an own __init__": (AttributeError, overriding_init),
    "its own output in run": (StepOutputError, lambda c: ReadsItself("R")),
    "no CSV file": (FileNotFoundError, lambda c: CSVDataSource("C", data_files="nowhere.csv")),
    "no JSON file": (FileNotFoundError, lambda c: JSONDataSource("J", data_files="nowhere.json")),
    "no text folder": (FileNotFoundError, lambda c: TextDataSource("T", data_folder="nowhere")),
    "no dataset folder": (FileNotFoundError, lambda c: HFDatasetDataSource("D", "nowhere")),
    "a folder of splits": (FileNotFoundError, splits_folder),
    "a folder without a dataset": (FileNotFoundError, lambda c: splits_folder(c, "empty")),
}
"""What is refused, the builtin that catches it, and the call; its argument is a column of a saved step."""


@pytest.fixture
def column() -> Iterator[Any]:
    with DataDreamer(":memory:"):
        yield DataSource("Rows", {"a": [1, 2]}).output["a"]


@pytest.mark.parametrize("what", REFUSALS)
def test_a_refusal_is_caught_by_the_ancestors_builtin(column: Any, what: str) -> None:
    builtin, call = REFUSALS[what]
    with pytest.raises(builtin) as caught:
        call(column)
    assert isinstance(caught.value, DataDreamerError | NotImplementedError)
    assert str(caught.value)


def test_outside_a_session_names_and_outputs_are_refused_too() -> None:
    with pytest.raises(ValueError, match="name"):
        NoRun("")
    with pytest.raises(NotImplementedError, match="setup"):
        NoSetup("N")
    with pytest.raises(StepOutputError, match="outside a session"):
        _ = NoRun("N").output


def test_a_fact_may_be_registered_after_construction(column: Any) -> None:
    Copies("C", inputs={"i": column}).register_data_card("URL", "https://example.org")


class Watched(Step):
    def setup(self) -> None:
        self.register_input("i", required=False)
        self.register_input("j", required=False)
        self.register_arg("**kwargs", required=False)
        self.register_arg("k", required=False, default=1)
        self.register_arg("k", required=False, default=2)
        self.register_output("o")
        self.register_output("p")

    def run(self) -> Any:
        seen["step"] = {name: getattr(self, name) for name in ATTRIBUTES}
        seen["progress"] = [self.progress]
        for share in (0.5, 0.2, 7):
            self.progress = share
            seen["progress"].append(self.progress)
        return [(1, 2)]


ATTRIBUTES = {
    "name": "W", "inputs": {"i": None}, "args": {"k": 2, "z": 5}, "progress_interval": 7, "force": False,
    "verbose": True, "log_level": 20, "save_num_proc": 3, "save_num_shards": None, "background": False,
    "output_names": ("oo", "p"), "output_name_mapping": {"o": "oo", "p": "p"},
}  # fmt: skip
seen: dict[str, Any] = {}


def test_a_step_sees_its_attributes_and_its_progress_in_run(column: Any) -> None:
    given: dict[str, Any] = {"inputs": {"i": None}, "args": {"z": 5}, "outputs": {"o": "oo"}, "progress_interval": 7}
    step = Watched("W", **given, verbose=True, log_level=20, save_num_proc=3)
    assert seen["step"] == ATTRIBUTES
    assert seen["progress"] == [None, 0.5, 0.5, 1.0]
    assert {name: getattr(step, name) for name in ATTRIBUTES} == ATTRIBUTES


def test_progress_is_set_and_read_back_outside_a_session() -> None:
    step = NoRun("N")
    assert step.progress is None
    shares = []
    for share in (0.25, -1, 0.1, 0.75):
        step.progress = share
        shares.append(step.progress)
    assert shares == [0.25, 0.25, 0.25, 0.75]


def test_a_table_is_done_also_when_it_is_found_again(tmp_path: Path) -> None:
    for _ in range(2):
        with DataDreamer(tmp_path / "output"):
            assert DataSource("Rows", {"a": [1, 2]}).progress == 1.0


@pytest.mark.parametrize("total", [4, None])
@pytest.mark.parametrize("read", [lambda step: step.output, lambda step: step.output["a"]], ids=["rows", "column"])
def test_the_progress_of_lazy_rows_is_the_share_that_was_read(column: Any, total: int | None, read: Any) -> None:
    step = DataSource("Lazy", lambda: ({"a": number} for number in range(4)), total_num_rows=total)
    assert step.progress == 0.0
    assert [step.progress for _ in read(step)] == ([0.25, 0.5, 0.75, 1.0] if total else [0.0] * 4)
    assert step.progress == 1.0
    next(iter(read(step)))
    assert step.progress == 1.0


def test_a_lazy_step_that_another_one_reads_is_done(column: Any) -> None:
    lazy = DataSource("Lazy", lambda: ({"a": number} for number in range(4)))
    mapped = lazy.map(lambda row: {"b": row["a"]})
    mapped.save()
    assert lazy.progress == mapped.progress == 1.0


def test_a_data_card_is_printed_by_heading(column: Any, capsys: pytest.CaptureFixture[str]) -> None:
    step = registering("register_data_card", "Citation Information", "Somebody, 2024")("Cited")
    assert step.data_card() is None  # type: ignore[func-returns-value]
    printed = json.loads(capsys.readouterr().out)
    assert printed["Cited"]["Citation Information"] == ["Somebody, 2024"]
    assert list(printed["Cited"])[0] == "Date & Time"


def test_every_heading_of_a_data_card_keeps_its_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Described(Step):
        def setup(self) -> None:
            self.register_output("o")
            for kind in DataCardType:
                if kind != DataCardType.DATETIME:
                    self.register_data_card(kind, f"the {kind.value}")
                    self.register_data_card(kind, f"another {kind.value}")

        def run(self) -> Any:
            return [1]

    for _ in range(2):  # also of a result that is found again
        with DataDreamer(tmp_path / "output", verbose=False):
            Described("Described").data_card()
        printed = json.loads(capsys.readouterr().out)
        (facts,) = printed.values()
        assert list(facts) == [kind.value for kind in DataCardType]
        for kind in DataCardType:
            if kind != DataCardType.DATETIME:
                assert facts[kind.value] == [f"the {kind.value}", f"another {kind.value}"]


def test_options_reach_their_place_by_position(column: Any, tmp_path: Path) -> None:
    rows = column.step
    assert rows.take(1, "One").name == "One"
    mapped = rows.map(lambda row: {"b": 1}, False, None, False, 1000, None, None, True, "M", False)
    assert (mapped.name, type(mapped.output)) == ("M", OutputDataset)
    assert rows.save("Kept").name == "Kept"
    assert rows.export_to_list(0.5, 0.5).keys() == {"train", "validation"}
    assert Copies("C", {"i": column}, {"x": 2}, {"o": "p"}).output.column_names == ["p"]
    saved = DataSource("Saved", lambda: iter([{"a": 1}]), None, True, 60, True, save=True)
    assert saved.force
    assert isinstance(saved.output, OutputDataset)


def test_lazy_rows_show_what_they_wrap() -> None:
    assert LazyRows([1, 2]).value == [1, 2]
