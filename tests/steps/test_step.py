"""The protocol of a step: what it registers, what it refuses, what its `run` may return."""

import threading

import datasets
import pandas as pd
import pyarrow as pa
import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    SessionError,
    StepOutputError,
    StepOutputTypeError,
    UnknownColumn,
)
from datadreamer_like.graph.output import OutputDataset, OutputIterableDataset
from datadreamer_like.steps import LazyRowBatches, LazyRows, Prompt, Step, SuperStep


def returning(value, *outputs, name="Load", **kwargs):
    """Makes a step whose run returns what `value()` gives."""

    class Returning(Step):
        def setup(self):
            for output in outputs or ("out1",):
                self.register_output(output)

        def run(self):
            return value(self) if callable(value) else value

    return Returning(name, **kwargs)


@pytest.fixture
def session():
    with DataDreamer(":memory:") as session:
        yield session


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (None, []),
        (5, [5]),
        ("text", ["text"]),
        ([], []),
        (["a", "b"], ["a", "b"]),
        ([["a"], ["b", "c"]], [["a"], ["b", "c"]]),
        (lambda self: iter(["a", "b"]), ["a", "b"]),
        (lambda self: range(3), [0, 1, 2]),
        ({"out1": ["a", "b"]}, ["a", "b"]),
        ({"out1": "a"}, ["a"]),
        ([{"out1": "a"}, {"out1": "b"}], ["a", "b"]),
        ([{"other": 1}, {"other": 2}], [{"other": 1}, {"other": 2}]),
        ([("a",), ("b",)], ["a", "b"]),
        (datasets.Dataset.from_dict({"out1": ["a", "b"]}), ["a", "b"]),
        (datasets.Dataset.from_dict({"any": ["a", "b"]}), ["a", "b"]),
        (LazyRows(lambda: iter(["a", "b"])), ["a", "b"]),
        (LazyRows(lambda: ({"out1": x} for x in "ab")), ["a", "b"]),
        (LazyRowBatches(lambda: iter([["a"], ["b", "c"]])), ["a", "b", "c"]),
        (LazyRowBatches(lambda: iter([{"out1": ["a", "b"]}, {"out1": ["c"]}])), ["a", "b", "c"]),
    ],
)
def test_one_output_from_any_shape(session, value, rows):
    step = returning(value)
    assert list(step.output["out1"]) == rows
    assert step.output.num_rows in (len(rows), None)


TWO = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}, {"a": 3, "b": "z"}]


@pytest.mark.parametrize(
    "value",
    [
        TWO,
        {"a": [1, 2, 3], "b": ["x", "y", "z"]},
        {"b": ["x", "y", "z"], "a": [1, 2, 3]},
        [(1, "x"), (2, "y"), (3, "z")],
        [[1, "x"], [2, "y"], [3, "z"]],
        ([1, 2, 3], ["x", "y", "z"]),
        [[1, 2, 3], ["x", "y", "z"]],
        lambda self: iter(TWO),
        lambda self: (tuple(row.values()) for row in TWO),
        datasets.Dataset.from_list(TWO),
        [datasets.Dataset.from_dict({"a": [1, 2, 3]}), datasets.Dataset.from_dict({"b": ["x", "y", "z"]})],
        {"a": datasets.Dataset.from_dict({"k": [1, 2, 3]}), "b": datasets.Dataset.from_dict({"k": ["x", "y", "z"]})},
        LazyRows(lambda: iter(TWO)),
        LazyRows(lambda: iter([(1, "x"), (2, "y"), (3, "z")])),
        LazyRows(datasets.Dataset.from_list(TWO).to_iterable_dataset()),
        LazyRows(lambda: iter(TWO), save=True),
        LazyRowBatches(lambda: iter([TWO[:2], TWO[2:]])),
        LazyRowBatches(lambda: iter([([1, 2], ["x", "y"]), ([3], ["z"])])),
    ],
)
def test_two_outputs_from_any_shape(session, value):
    step = returning(value, "a", "b")
    assert list(step.output) == TWO
    assert step.output.column_names == ["a", "b"]


@pytest.mark.parametrize("frame", [pa.table, pd.DataFrame, lambda columns: pa.table(columns).to_batches()[0]])
def test_a_table_or_data_frame_is_rows(session, frame):
    both = {name: [row[name] for row in TWO] for name in ("b", "a")}
    assert list(returning(frame(both), "a", "b").output) == TWO
    assert list(returning(frame({"b": both["b"]}), "new").output["new"]) == both["b"]
    with pytest.raises(StepOutputError, match="returned the columns b, a; expected a"):
        returning(frame(both), "a")
    mapped = returning(both, "a", "b").map(lambda batch: frame({"c": batch["b"]}), batched=True, lazy=False)
    assert list(mapped.output["c"]) == both["b"]


def test_bytes_marked_as_pickled_in_a_returned_table_stay_bytes(session):
    harmful = pa.field("x", pa.binary(), metadata={b"pickled": b"1"})
    step = returning(pa.table({"x": [b"\x80\x04N."]}, schema=pa.schema([harmful])), "x")
    assert list(step.map(lambda row: row, lazy=False).output["x"]) == [b"\x80\x04N."]


def test_a_steps_own_columns_may_be_returned(session):
    load = returning(TWO, "a", "b")
    assert list(returning(load.output, "a", "b").output) == TWO
    assert list(returning(load.output["b"], "new").output) == [{"new": x} for x in "xyz"]
    assert list(returning([load.output["b"], load.output["a"]], "n", "m").output)[0] == {"n": "x", "m": 1}
    assert list(returning({"n": load.output["b"], "m": load.output["a"]}, "n", "m").output)[2] == {"n": "z", "m": 3}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"a": 1}], "a row has the columns a; expected a, b"),
        ([{"a": 1, "b": 2, "c": 3}], "expected a, b"),
        ({"a": [1]}, "returned the columns a; expected a, b"),
        ({"a": [1], "b": [1, 2]}, "different lengths"),
        ([(1, 2), (1, 2, 3)], "a row has 3 values; expected 2"),
        ([1, 2, 3], "a row has int; expected 2"),
        (datasets.Dataset.from_dict({"a": [1], "c": [1]}), "expected a, b"),
        (datasets.Dataset.from_dict({"a": [1], "b": [1]}).to_iterable_dataset(), r"Return LazyRows\(dataset\)"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({"a": [1], "b": [1]})}), "several splits"),
        (
            [datasets.Dataset.from_dict({"a": [1]}), datasets.Dataset.from_dict({"b": [1, 2]})],
            "datasets of different lengths",
        ),
    ],
)
def test_what_does_not_fit_the_outputs_is_refused(session, value, message):
    with pytest.raises(StepOutputError, match=message):
        returning(value, "a", "b")


def test_mixed_types_are_refused_as_a_type_error(session):
    with pytest.raises(TypeError, match=r'"Load": column "out1" mixes int and str') as caught:
        returning([1, "a"])
    assert isinstance(caught.value, StepOutputTypeError)


def test_the_type_of_a_column_is_not_that_of_its_first_row(session):
    rows = [None] * 1500 + ["text"]
    assert list(returning(rows).output["out1"]) == rows
    assert list(returning([1] * 1500 + [0.5], name="b").output["out1"])[-2:] == [1.0, 0.5]


def test_lazy_rows_stay_lazy_and_saved_ones_do_not(session):
    passes = []

    def rows():
        passes.append(1)
        yield from range(3)

    lazy = returning(LazyRows(rows, total_num_rows=3))
    assert isinstance(lazy.output, OutputIterableDataset)
    assert not passes
    assert lazy.output.num_rows == 3
    assert list(lazy.output["out1"]) == list(lazy.output["out1"]) == [0, 1, 2]
    assert len(passes) == 2
    saved = returning(LazyRows(rows, save=True), name="saved")
    assert isinstance(saved.output, OutputDataset)
    assert len(passes) == 3
    with pytest.raises(TypeError, match="have no positions"):
        lazy.output[0]
    with pytest.raises(SessionError, match="not on disk"):
        _ = lazy.dataset_path
    assert datasets.load_from_disk(saved.dataset_path)["out1"][:] == [0, 1, 2]


def test_python_objects_are_pickled_and_restored(tmp_path):
    class Local:
        def __init__(self, value):
            self.value = value

    for _ in range(2):
        with DataDreamer(tmp_path):
            step = returning(lambda self: [self.pickle(Local(i)) for i in range(3)])
            assert [item.value for item in step.output["out1"]] == [0, 1, 2]
            assert step.output[1]["out1"].value == 1
            assert [item.value for item in step.output["out1"][1:]] == [1, 2]
            doubled = step.map(lambda row: {"n": row["out1"].value * 2}).save()
            assert [(row["out1"].value, row["n"]) for row in doubled.output] == [(0, 0), (1, 2), (2, 4)]


class Shout(Step):
    """Says it louder."""

    def setup(self):
        self.register_input("texts", help="what to say")
        self.register_arg("mark", required=False, default="!", help="put behind", type=str)
        self.register_arg("times", required=False, default=1, type=int)
        self.register_output("shouts", help="the text, louder")

    def run(self):
        return [text.upper() + self.args["mark"] * self.args["times"] for text in self.inputs["texts"]]


@pytest.fixture
def load(session):
    return returning([{"text": "a", "n": 1}, {"text": "b", "n": 2}], "text", "n")


def test_inputs_arguments_and_renamed_outputs_work(load):
    step = Shout("Shout", inputs={"texts": load.output["text"]}, args={"times": 2}, outputs={"shouts": "loud"})
    assert step.output["loud"][:] == ["A!!", "B!!"]
    assert step.args == {"mark": "!", "times": 2}
    assert step.inputs["texts"].column_names == ["text"]
    assert step.parents == [load]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, DefinitionError, 'lacks the input "texts"'),
        ({"inputs": {"text": "T"}}, DefinitionError, r'has no input "text"; it takes: texts\. Did you mean "texts"'),
        ({"inputs": {"texts": "T", "more": "T"}}, DefinitionError, 'has no input "more"'),
        ({"inputs": {"texts": ["a"]}}, ArgumentTypeError, "expected a column of a step"),
        ({"inputs": "T"}, ArgumentTypeError, "must be a dictionary"),
        ({"inputs": {"texts": "T"}, "args": {"marc": "?"}}, DefinitionError, 'Did you mean "mark"'),
        ({"inputs": {"texts": "T"}, "args": {"mark": 3}}, ArgumentTypeError, r'"mark" is 3 \(int\); expected str'),
        ({"inputs": {"texts": "T"}, "args": {"times": True}}, ArgumentTypeError, "expected int"),
        ({"inputs": {"texts": "T"}, "outputs": {"shout": "x"}}, UnknownColumn, 'Did you mean "shouts"'),
    ],
)
def test_wrong_definitions_are_refused_before_anything_runs(load, kwargs, error, message):
    column = load.output["text"]
    if isinstance(kwargs.get("inputs"), dict):
        kwargs = {**kwargs, "inputs": {k: column if v == "T" else v for k, v in kwargs["inputs"].items()}}
    with pytest.raises(error, match=message):
        Shout("Shout", **kwargs)


def test_a_column_that_is_not_there_is_named_with_those_that_are(load):
    with pytest.raises(KeyError, match=r'"Load" has no column "txt"; it offers: text, n\. Did you mean "text"\?'):
        load.output["txt"]


def test_outside_a_session_a_step_only_checks_itself(load):
    column = load.output["text"]
    load.session.stop()
    step = Shout("Shout", inputs={"texts": column})
    with pytest.raises(SessionError, match="made outside a session"):
        _ = step.output
    with pytest.raises(DefinitionError):
        Shout("Shout")


def test_a_process_that_run_would_never_call_is_refused():
    with pytest.raises(DefinitionError, match="Both: process.. would never be called, since it defines both"):
        type("Both", (Step,), {"run": lambda self: [1], "process": lambda self, batch: batch})
    with pytest.raises(DefinitionError, match=r"its run\(\) is that of PromptStep"):
        type("Asks", (Prompt,), {"process": lambda self, batch: batch})
    type("Calls", (Step,), {"run": lambda self: [self.process(x) for x in "ab"], "process": lambda self, x: x})
    type("Passes", (Step,), {"run": lambda self: super().run(), "process": lambda self, batch: batch})
    type("Helped", (Step,), {
        "run": lambda self: self.work(), "work": lambda self: self.process(1), "process": lambda self, x: x,
    })  # fmt: skip


def test_malformed_classes_are_refused():
    def override_init():
        class Bad(Step):
            def __init__(self):
                pass

        return Bad

    with pytest.raises(DefinitionError, match="overrides __init__"):
        override_init()

    class NoOutput(Step):
        def setup(self):
            self.register_arg("x", required=False)

    with pytest.raises(ValueError, match="registers no output"):
        NoOutput("x")


def test_a_subclass_registers_a_name_again_with_another_default(load):
    class Louder(Shout):
        def setup(self):
            super().setup()
            self.register_arg("mark", required=False, default="!!")

    assert Louder("Louder", inputs={"texts": load.output["text"]}).args["mark"] == "!!"


def test_registering_after_construction_is_refused(load):
    with pytest.raises(DefinitionError, match="already constructed"):
        load.register_output("late")


def test_help_lists_what_a_step_takes_and_gives(load):
    text = Shout.help
    assert text.startswith("Shout: Says it louder.")
    assert "texts: what to say" in text
    assert "mark (optional, default: '!'): put behind" in text
    assert "shouts: the text, louder" in text
    assert Shout("Shout", inputs={"texts": load.output["text"]}).help == text


def test_a_step_inside_a_step_needs_a_super_step(session):
    with pytest.raises(SessionError, match='"Inner" is created inside "Outer", which is not a SuperStep'):
        returning(lambda self: returning([1], name="Inner").output, name="Outer")


def test_a_super_step_makes_named_steps_that_are_found_again(tmp_path):
    log = tmp_path / "log"

    def numbers(step):
        with log.open("a") as stream:
            stream.write(step.name + "\n")
        return [1, 2]

    class Outer(SuperStep):
        def setup(self):
            self.register_output("out1")

        def run(self):
            inner = returning(numbers, name="Inner")
            if not (tmp_path / "go").exists():
                raise ZeroDivisionError
            return inner.map(lambda row: {"out1": row["out1"] + 1}).output

    with DataDreamer(tmp_path / "out"), pytest.raises(ZeroDivisionError):
        Outer("Outer")
    (tmp_path / "go").touch()
    with DataDreamer(tmp_path / "out"):
        assert list(Outer("Outer").output["out1"]) == [2, 3]
    assert log.read_text() == "Outer / Inner\n"


def test_rows_of_an_iterator_are_read_once_and_kept(session):
    rows, batches = lambda: iter(range(2500)), lambda: iter([list(range(2000)), list(range(500))])
    for make in (lambda step: LazyRows(rows()), lambda step: LazyRowBatches(batches())):
        step = returning(make)
        assert len(step.map(lambda row: {"twice": 2 * row["out1"]}).output["twice"].head(3000)) == 2500
        assert len(list(step.output)) == 2500


def test_a_table_is_ones_own_when_a_later_session_has_replaced_it(tmp_path):
    with DataDreamer(tmp_path, verbose=False):
        first = returning([1, 2])
    with DataDreamer(tmp_path, verbose=False):
        second = returning([3])
    assert list(first.output["out1"]) == [1, 2]
    assert list(second.output["out1"]) == [3]
    assert list(datasets.load_from_disk(first.dataset_path)["out1"]) == [1, 2]


def test_a_quiet_step_says_nothing(tmp_path, caplog):
    with DataDreamer(tmp_path):
        returning([1], name="Loud")
        returning([1], name="Quiet", verbose=False)
    said = " ".join(caplog.messages)
    assert "Loud: done" in said
    assert "Quiet" not in said


def test_a_background_step_runs_beside_and_raises_when_asked(tmp_path):
    gate = threading.Event()
    with DataDreamer(tmp_path):
        slow = returning(lambda self: gate.wait(60) and [1], name="Slow", background=True)
        fails = returning(lambda self: 1 / 0, name="Fails", background=True)
        gate.set()
        assert list(slow.output["out1"]) == [1]
        with pytest.raises(ZeroDivisionError):
            _ = fails.output


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("background", [True, False])
def test_a_step_that_reads_the_output_of_one_that_it_runs_in_is_refused(depth, background):
    gate, made = threading.Event(), []

    class Outer(SuperStep):
        def setup(self):
            self.register_arg("depth")
            self.register_output("out1")

        def run(self):
            made.append(self)
            gate.wait(60)
            depth = self.args["depth"]
            return Outer("Inner", args={"depth": depth - 1}).output if depth else made[0].output

    def run():
        if not background:
            gate.set()
        step = Outer("Outer", args={"depth": depth}, background=background)
        gate.set()
        step.wait()

    with DataDreamer(":memory:"), pytest.raises(SessionError, match='"Outer" has no output yet: it is still running'):
        run()


def test_a_session_ends_when_its_background_steps_have_and_raises_what_nobody_asked_for():
    gate = threading.Event()

    def run():
        with DataDreamer(":memory:"):
            made.append(returning(lambda self: gate.wait(60) and [1], name="Slow", background=True))
            returning(lambda self: 1 / 0, name="Fails", background=True)
            threading.Timer(0.2, gate.set).start()

    made = []
    with pytest.raises(ZeroDivisionError):
        run()
    assert list(made[0].output["out1"]) == [1]
    assert not DataDreamer.initialized()


def test_an_error_in_the_script_is_not_hidden_by_one_in_the_background():
    def run():
        with DataDreamer(":memory:"):
            returning(lambda self: 1 / 0, name="Fails", background=True)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run()


def test_files_beside_the_rows_are_kept(tmp_path):
    def run(self):
        with open(f"{self.get_run_output_folder_path()}/notes.txt", "w") as stream:
            stream.write("kept")
        return [1]

    for _ in range(2):
        with DataDreamer(tmp_path):
            step = returning(run)
            with open(f"{step.get_run_output_folder_path()}/notes.txt") as stream:
                assert stream.read() == "kept"


def test_what_a_step_registers_is_on_its_card_in_every_run(tmp_path):
    class Cited(Shout):
        def setup(self):
            super().setup()
            self.register_data_card("Model Name", "org/model")
            self.register_data_card("Speed", "fast")

    for _ in range(2):
        with DataDreamer(tmp_path):
            load = returning(["a"], "text")
            step = Cited("Cited", inputs={"texts": load.output["text"]})
            assert step.card.models == ["org/model"]
            assert step.card.facts == {"Speed": "fast"}
            assert [card.name for card in step.card.lineage()] == ["Load", "Cited"]


def test_a_changed_run_reruns_and_a_renamed_parent_does_not(tmp_path):
    log = tmp_path / "log"

    def times(factor):
        class Times(Step):
            def setup(self):
                self.register_input("n")
                self.register_output("m")

            def run(self):
                with log.open("a") as stream:
                    stream.write(f"{factor}\n")
                return [n * factor for n in self.inputs["n"]]

        return Times

    for factor, parent in ((2, "Load"), (2, "Renamed"), (3, "Renamed"), (2, "Load")):
        with DataDreamer(tmp_path / "out"):
            load = returning([1, 2], "n", name=parent)
            step = times(factor)("Times", inputs={"n": load.output["n"]})
            assert list(step.output["m"]) == [factor, 2 * factor]
    assert log.read_text() == "2\n3\n"


def test_progress_is_read_back_and_never_falls(tmp_path):
    seen = []

    class Own(Step):
        def setup(self):
            self.register_output("y")

        def run(self):
            seen.append(self.progress)
            for value in (0.5, 0.2, -1):
                self.progress = value
                seen.append(self.progress)
            self.progress += 0.25
            seen.append(self.progress)
            self.progress = 7
            seen.append(self.progress)
            return [1, 2]

    for expected in ([None, 0.5, 0.5, 0.5, 0.75, 1.0], []):
        seen.clear()
        with DataDreamer(str(tmp_path / "out")):
            own = Own("Own")
            assert seen == expected
            assert own.progress == 1.0
            assert own.take(1).progress == 1.0
            lazy = own.map(lambda row: {"z": 1})
            assert lazy.progress == 0.0
            list(lazy.output)
            assert lazy.progress == 1.0
            next(iter(lazy.output))
            assert lazy.progress == 1.0
    outside = Own("Outside")
    assert outside.progress is None
    outside.progress = 0.3
    assert outside.progress == 0.3
