"""`step.trace(i)`: the rows that made a row, through every operation and step, against a model that carries row ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Echo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datadreamer_like import DataDreamer, concat, zipped
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, NoSuchRow, SessionError, StepOutputError
from datadreamer_like.models import EmbeddingRetriever
from datadreamer_like.steps import (
    DataFromAttributedPrompt,
    DataSource,
    FewShotPrompt,
    FewShotPromptWithRetrieval,
    FilterWithPrompt,
    From,
    JudgePairsWithPrompt,
    LazyRowBatches,
    LazyRows,
    Prompt,
    RAGPrompt,
    RankWithPrompt,
    Retrieve,
    Step,
    SuperStep,
    Trace,
    Traced,
    step,
)
from datadreamer_like.testing import FakeEmbedder

ROWS = [{"id": i, "n": (i * 7) % 5, "text": f"t{i}"} for i in range(23)]


def sources(trace: Trace, node: str = "Rows") -> list[int]:
    """Positions of the rows of a source that a traced row came from."""
    return sorted({part.index for part in trace.walk() if part.node == node and part.index is not None})


class Lazy(Step):
    def setup(self) -> None:
        self.register_output("id")
        self.register_output("n")
        self.register_output("text")

    def run(self) -> LazyRows:
        return LazyRows(lambda: iter(ROWS), total_num_rows=len(ROWS))


Operation = Callable[[Any], Any]

# Each with what it does to a list of rows; a row is the list of ids that it came from.
ONE: dict[str, tuple[Operation, Callable[[list[list[int]]], list[list[int]]]]] = {
    "take": (lambda s: s.take(9), lambda rows: rows[:9]),
    "skip": (lambda s: s.skip(2), lambda rows: rows[2:]),
    "reverse": (lambda s: s.reverse(), lambda rows: rows[::-1]),
    "shard": (lambda s: s.shard(2, 1), lambda rows: rows[1::2]),
    "filter": (lambda s: s.filter(lambda row: row["id"] % 3 != 0), lambda rows: [r for r in rows if r[-1] % 3]),
    "filter on disk": (
        lambda s: s.filter(lambda row: row["id"] % 4 != 1, lazy=False),
        lambda rows: [r for r in rows if r[-1] % 4 != 1],
    ),
    "map": (lambda s: s.map(lambda row: {"n": row["n"] + 1}), lambda rows: rows),
    "map on disk": (lambda s: s.map(lambda row: {"text": row["text"] + "!"}, lazy=False), lambda rows: rows),
    "sort": (lambda s: s.sort("id", reverse=True), lambda rows: sorted(rows, key=lambda r: -r[-1])),
    "save": (lambda s: s.save(), lambda rows: rows),
    "columns": (lambda s: s.select_columns(["text", "id", "n"]), lambda rows: rows),
    "twice": (lambda s: concat(s, s), lambda rows: rows + rows),
    "with its reverse": (lambda s: concat(s, s.reverse(), lazy=False), lambda rows: rows + rows[::-1]),
}


@pytest.mark.parametrize("lazy", [False, True])
@given(chain=st.lists(st.sampled_from(sorted(ONE)), max_size=5))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
def test_chains_of_operations_lead_back_to_the_rows_that_they_moved(lazy: bool, chain: list[str]) -> None:
    with DataDreamer(":memory:", verbose=False):
        made: Any = Lazy("Rows") if lazy else DataSource("Rows", data=ROWS)
        expected = [[row["id"]] for row in ROWS]
        for name in chain:
            operation, model = ONE[name]
            made, expected = operation(made), model(expected)
            if not expected:
                return
        assert [row["id"] for row in made.output] == [ids[-1] for ids in expected]
        for index in {0, len(expected) // 2, len(expected) - 1}:
            trace = made.trace(index)
            assert sources(trace) == expected[index]
            assert trace.values is not None
            assert trace.values["id"] == expected[index][-1]


@pytest.fixture(params=[False, True], ids=["table", "lazy"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with DataDreamer(tmp_path / "session", verbose=False):
        yield Lazy("Rows") if request.param else DataSource("Rows", data=ROWS)


def test_select_shuffle_splits_shards_and_added_rows(rows: Any) -> None:
    def ids(made: Any) -> list[int]:
        return [row["id"] for row in made.output]

    for made in (
        rows.select([5, 3, 3, 20]),
        rows.shuffle(seed=3, buffer_size=4),
        rows.shuffle(seed=3, buffer_size=4).save(),
        rows.splits(0.5, 0.5)["validation"],
        rows.shard(3, 1, contiguous=True),
        rows.shard(3, 2),
        rows.filter(lambda row: row["id"] != 3).shard(4, 2),
        rows.rename_column("n", "m").remove_columns("text"),
    ):
        assert [sources(made.trace(index)) for index in range(len(ids(made)))] == [[one] for one in ids(made)]
    more = rows.add_item({"id": 99})
    assert sources(more.trace(4)) == sources(more.trace(np.int64(4))) == [4]
    for index in ("a", 1.0, None):
        with pytest.raises(ArgumentTypeError, match="expected whole numbers"):
            more.trace(index)
    assert sources(more.trace(len(ROWS))) == []


def test_zipped_rows_have_a_parent_in_each_step(rows: Any) -> None:
    both = zipped(rows.select_columns("id"), rows.select_columns("text").reverse())
    for made in (both, both.save()):
        assert sources(made.trace(2)) == [2, len(ROWS) - 3]


def test_a_batched_map_that_changes_the_number_of_rows_leads_to_its_batch(rows: Any) -> None:
    def first(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"first": batch["id"][:1]}

    made = rows.map(first, batched=True, batch_size=4, remove_columns=["id", "n", "text"])
    for one in (made, made.save()):
        assert sources(one.trace(1)) == [4, 5, 6, 7]
        assert sources(one.trace(5)) == [20, 21, 22]
    same = rows.map(lambda batch: {"n": batch["n"]}, batched=True, batch_size=4)
    assert sources(same.trace(9)) == [9]


class Upper(Step):
    def setup(self) -> None:
        self.register_input("texts")
        self.register_output("upper")

    def process(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
        return {"upper": [text.upper() for text in batch["texts"]]}


@step
def letters(text: str) -> Iterator[str]:
    yield from text


@step(batched=True, batch_size=5)
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


def test_process_and_decorated_functions_are_traced(rows: Any) -> None:
    upper = Upper("Upper", inputs={"texts": rows.filter(lambda row: row["id"] > 3).output["text"]})
    assert upper.output["upper"][2] == "T6"
    assert sources(upper.trace(2)) == [6]
    each = letters(rows.output["text"])
    assert list(each.output["letters"])[:4] == ["t", "0", "t", "1"]
    assert [sources(each.trace(index)) for index in range(4)] == [[0], [0], [1], [1]]
    assert sources(lengths(rows.output["text"]).trace(7)) == [7]


@pytest.mark.parametrize(
    "made",
    [
        {"upper": ["A"]}, {"other": ["A"]}, ["A"], {"upper": range(99)},
        {"upper": "AB"}, {"upper": b"AB"}, {"upper": {"k": 1, "l": 2}}, {"upper": {"A", "B"}}, {"upper": 5},
    ],
)  # fmt: skip
def test_process_that_returns_other_rows_or_columns_is_refused(session: DataDreamer, made: Any) -> None:
    class Wrong(Upper):
        def process(self, batch: dict[str, list[Any]]) -> Any:
            return made

    texts = DataSource("Rows", data={"text": ["a", "b"]}).output["text"]
    with pytest.raises(StepOutputError, match=r'"Wrong": process\(\) returned .*rows 0 to 1'):
        Wrong("Wrong", inputs={"texts": texts})


def test_process_without_inputs_is_refused(session: DataDreamer) -> None:
    class Nothing(Step):
        def setup(self) -> None:
            self.register_output("x")

        def process(self, batch: dict[str, list[Any]]) -> dict[str, Any]:
            return batch

    with pytest.raises(DefinitionError, match="needs an input"):
        Nothing("Nothing")


class Pairs(Step):
    """Makes a row of every two, and says so or not."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_arg("says", type=bool)
        self.register_output("pair")

    def run(self) -> Any:
        texts = list(self.inputs["texts"])
        pairs = [" ".join(texts[i : i + 2]) for i in range(0, len(texts), 2)]
        if not self.args["says"]:
            return pairs
        rows = [list(range(i, min(i + 2, len(texts)))) for i in range(0, len(texts), 2)]
        return Traced(pairs, From("texts", rows))


def test_run_that_states_its_origin_is_traced_and_one_that_does_not_names_its_parents(rows: Any) -> None:
    column = rows.output["text"]
    said = Pairs("Said", inputs={"texts": column}, args={"says": True})
    assert sources(said.trace(3)) == [6, 7]
    assert sources(said.trace(-1)) == [22]
    silent = Pairs("Silent", inputs={"texts": column}, args={"says": False}).trace(3)
    (parent,) = silent.parents
    assert (parent.node, parent.index, parent.values) == ("Rows", None, None)


def test_a_source_that_is_not_an_input_is_refused(session: DataDreamer) -> None:
    class Wrong(Pairs):
        def run(self) -> Any:
            return LazyRowBatches(lambda: iter([Traced({"pair": ["x"]}, From("txts", [0]))]), save=True)

    texts = DataSource("Rows", data={"text": ["a", "b"]}).output["text"]
    with pytest.raises(DefinitionError, match=r'From\(\'txts\'\).*Did you mean "texts"'):
        Wrong("Wrong", inputs={"texts": texts}, args={"says": True})


@pytest.mark.parametrize("origin", [[1], [0, 1, 0], range(3), np.array([0]), [[0, 1]], []])
@pytest.mark.parametrize("in_batches", [False, True])
def test_an_origin_of_another_number_of_rows_is_refused(session: DataDreamer, origin: Any, in_batches: bool) -> None:
    class Wrong(Pairs):
        def run(self) -> Any:
            said = Traced({"pair": ["x", "y"]}, From("texts", origin))
            return LazyRowBatches(lambda: iter([said]), save=True) if in_batches else said

    texts = DataSource("Rows", data={"text": ["a", "b", "c"]}).output["text"]
    with pytest.raises(StepOutputError, match=rf"origin of {len(origin)} rows; there are 2\."):
        Wrong("Wrong", inputs={"texts": texts}, args={"says": True})


def test_rows_of_a_super_step_lead_into_it(tmp_path: Path) -> None:
    class Outer(SuperStep):
        def setup(self) -> None:
            self.register_input("texts")
            self.register_output("upper")

        def run(self) -> Any:
            return Upper("Inner", inputs={"texts": self.inputs["texts"]}).output

    for _ in range(2):  # in the second run the inner step is not made again
        with DataDreamer(tmp_path, verbose=False):
            texts = DataSource("Rows", data=ROWS).output["text"]
            trace = Outer("Outer", inputs={"texts": texts}).trace(5)
            inner = trace.parents[0]
            assert (inner.node, inner.class_name, inner.index) == ("Outer / Inner", "Upper", 5)


def test_a_finished_script_traces_without_reading_lazy_rows_again_for_their_positions(tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def keep(row: dict[str, Any]) -> bool:
        with calls.open("a") as stream:
            stream.write("x")
        return bool(row["id"] % 2)

    shown = []
    for _ in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            kept = DataSource("Rows", data=ROWS).filter(keep).save()
            trace = kept.trace(3)
            shown.append(str(trace))
            assert sources(trace) == [7]
    assert shown[0] == shown[1]
    assert len(calls.read_text()) == len(ROWS)


def test_a_trace_can_be_read(rows: Any) -> None:
    made = Upper("Upper", inputs={"texts": rows.output["text"]}).filter(lambda row: row["upper"] == "T20").save()
    lines = str(made.trace(0)).splitlines()
    assert lines[0] == "row: Upper (filter) (save) (Derived), row 0"
    assert lines[1] == "    upper = 'T20'"
    assert any(line.strip() == f"input: Rows ({type(rows).__name__}), row 20" for line in lines)


@pytest.mark.parametrize("index", [23, -24, 1000])
def test_a_row_that_is_not_there_is_refused(rows: Any, index: int) -> None:
    with pytest.raises(IndexError, match=rf'"Rows" has no row {index}') as caught:
        rows.trace(index)
    assert isinstance(caught.value, NoSuchRow)


def test_a_lazy_row_beyond_an_unknown_end_is_refused(rows: Any) -> None:
    kept = rows.filter(lambda row: row["id"] < 2)
    with pytest.raises(NoSuchRow, match="has no row 2"):
        kept.trace(2)


def test_a_step_outside_a_session_has_no_rows_to_trace() -> None:
    with pytest.raises(SessionError, match="made outside a session"):
        DataSource("Rows", data=ROWS).trace(0)


def shown(trace: Trace, role: str) -> list[Any]:
    """What the parents of a row in one role hold in their first column."""
    return [next(iter((part.values or {}).values())) for part in trace.parents if part.role == role]


def test_prompting_steps_show_inputs_examples_and_documents(session: DataDreamer, tmp_path: Path) -> None:
    pets = DataSource("Pets", data={"pet": ["cat", "dog", "owl"], "legs": [4, 4, 2]})
    llm = Echo()
    prompt = Prompt("Ask", inputs={"prompts": pets.output["pet"]}, args={"llm": llm}).trace(1)
    assert (prompt.prompt, shown(prompt, "input")) == ("dog", ["dog"])

    known = DataSource("Known", data={"q": ["hen", None, "cow"], "a": ["cluck", "?", "moo"]})
    examples = {"input_examples": known.output["q"], "output_examples": known.output["a"]}
    few = FewShotPrompt("Few", inputs={**examples, "inputs": pets.output["pet"]}, args={"llm": llm}).trace(2)
    assert (shown(few, "input"), shown(few, "example")) == (["owl"], ["hen", "cow"])
    small = {"llm": Echo(context=11), "max_new_tokens": 2}
    fewer = FewShotPrompt("Fewer", inputs={**examples, "inputs": pets.output["pet"]}, args=small).trace(2)
    assert shown(fewer, "example") == ["hen"]

    embedder = FakeEmbedder(lambda text: [text.count(chr(97 + i)) for i in range(26)], dims=26)
    alike = FewShotPromptWithRetrieval(
        "Alike", inputs={**examples, "inputs": pets.output["pet"]}, args={"llm": llm, "embedder": embedder, "k": 1}
    )
    assert shown(alike.trace(2), "example") == ["cow"]  # owl shares o and w with cow

    texts = DataSource("Texts", data={"text": ["a dog barks", "a cat meows", "an owl hoots"]})
    retriever = EmbeddingRetriever(texts.output["text"], embedder)
    found = Retrieve("Find", inputs={"queries": pets.output["pet"]}, args={"retriever": retriever, "k": 2})
    first = found.output[0]["results"]["texts"]
    assert shown(found.trace(0), "document") == first
    rag = RAGPrompt("Answer", inputs={"prompts": pets.output["pet"]}, args={"llm": llm, "retriever": retriever, "k": 2})
    assert shown(rag.trace(0), "document") == first
    assert "a cat meows" in rag.trace(0).prompt

    args = {"instruction": "A {kind} pet.", "attributes": {"kind": ["x"]}, "n": 3, "num_examples": 1, "llm": llm}
    real = DataSource("Real", data={"text": ["one", "two"], "kind": ["x", "x"]})
    seeds = {"examples": real.output["text"], "example_attributes": real.output["kind"]}
    made = DataFromAttributedPrompt("Made", inputs=seeds, args=args)
    assert [shown(made.trace(index), "example")[0] in made.trace(index).prompt for index in range(3)] == [True] * 3
    assert {shown(made.trace(index), "example")[0] for index in range(2)} == {"one", "two"}


def test_kept_ranked_and_judged_rows_are_traced(session: DataDreamer) -> None:
    pets = DataSource("Rows", data={"pet": ["cat", "dog", "owl"], "legs": [4, 4, 2]})
    keep = Echo(lambda prompt: "no" if "dog" in prompt else "yes")
    kept = FilterWithPrompt("Keep", {"inputs": pets.output["pet"]}, {"llm": keep, "instruction": "Soft?"})
    assert [sources(kept.trace(index)) for index in range(2)] == [[0], [2]]
    assert "owl" in kept.trace(1).prompt
    assert kept.trace(1).prompt in [asked.prompt for asked in keep.asked]
    score = Echo(
        lambda prompt: {"cat": "2", "dog": "3", "owl": "1"}[next(p for p in ("cat", "dog", "owl") if p in prompt)]
    )
    for limit, expected in ((None, [[1], [0], [2]]), (2, [[1], [0]])):
        ranked = RankWithPrompt(
            f"Rank {limit}",
            {"inputs": pets.output["pet"]},
            {"llm": score, "instruction": "Rate.", "score_threshold": limit},
        )
        assert [sources(ranked.trace(index)) for index in range(len(expected))] == expected
        assert "dog" in ranked.trace(0).prompt
    pair = {"a": pets.output["pet"], "b": pets.reverse().output["pet"]}
    judged = JudgePairsWithPrompt("Judge", pair, {"llm": Echo(lambda prompt: "Input A")})
    assert sources(judged.trace(0)) == [0, 2]
    assert "cat" in judged.trace(0).prompt


def test_few_bytes_a_row_are_kept(tmp_path: Path) -> None:
    count = 100_000
    with DataDreamer(tmp_path, verbose=False):
        numbers = DataSource("Rows", data={"n": np.arange(count)})
        made = numbers.shuffle(seed=1, lazy=False), numbers.filter(lambda row: row["n"] % 2 == 0).save()
        for one in made:
            stored = sum(file.stat().st_size for file in one.folder.glob("*.npy"))
            assert stored < 5 * count
        assert numbers.save().folder is not None
        assert not list(numbers.save().folder.glob("*.npy"))
