"""A change reruns what it decides and what hangs on it, nothing else; undoing it finds the older result again.

The table lists what the ancestor's cache did not see. Each line is a script with a value that changes in between.
"""

from __future__ import annotations

import json
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from user_scripts import made

from datadreamer_like import DataDreamer
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import (
    DataFromPrompt,
    DataSource,
    FilterWithPrompt,
    ProcessWithPrompt,
    Prompt,
    RankWithPrompt,
)

ASKING = """
    llm = OpenAI("m", base_url=URL)
    asked = DataSource("Questions", data={"prompts": ["one", "two"]})
    node = Prompt("Node", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm})
"""
ASKING_LOCALLY = """
    from datadreamer_like.models import HFTransformers

    llm = HFTransformers(MODEL, device="cpu")
    asked = DataSource("Questions", data={"prompts": ["The cat sat"]})
    node = Prompt("Node", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm, "max_new_tokens": 3})
"""
MAPPING = """
    numbers = DataSource("Numbers", data={"n": [1, 2, 3]})
    node = numbers.map(function, lazy=False, name="Node")
"""


@dataclass
class Change:
    """A script that makes `node`, with a text in it that is replaced by two others in turn.

    Attributes:
        what: What changes.
        script: The script.
        place: The text.
        first: What stands there at first, and again in the end.
        second: What stands there in between.
        asks_again: Whether requests show it.
    """

    what: str
    script: str
    place: str
    first: str
    second: str
    asks_again: bool = False


CHANGES = [
    Change(
        "the code of a step's run",
        """
        class Load(Step):
            def setup(self):
                self.register_output("text")

            def run(self):
                return ["VALUE"]

        node = Load("Node")
        """,
        "VALUE", "a", "b",
    ),
    Change(
        "the code of a function that a step's run calls",
        """
        def helper():
            return ["VALUE"]

        class Load(Step):
            def setup(self):
                self.register_output("text")

            def run(self):
                return helper()

        node = Load("Node")
        """,
        "VALUE", "a", "b",
    ),
    Change(
        "the value of a closure",
        "def times(factor):\n    return lambda row: {'n': row['n'] * factor}\nfunction = times(VALUE)"
        + textwrap.dedent(MAPPING),
        "VALUE", "2", "3",
    ),
    Change(
        "the value of a global",
        "FACTOR = VALUE\ndef function(row):\n    return {'n': row['n'] * FACTOR}" + textwrap.dedent(MAPPING),
        "VALUE", "2", "3",
    ),
    Change(
        "an attribute of a global object",
        "class Options:\n    pass\noptions = Options()\noptions.factor = VALUE\n"
        "def function(row):\n    return {'n': row['n'] * options.factor}" + textwrap.dedent(MAPPING),
        "VALUE", "2", "3",
    ),
    Change(
        "the type of a value",
        "FACTOR = VALUE\ndef function(row):\n    return {'n': row['n'] * FACTOR}" + textwrap.dedent(MAPPING),
        "VALUE", "2", "2.0",
    ),
    Change("an LLM's system prompt", ASKING, '"m"', '"m", system_prompt="Kind."', '"m", system_prompt="Rude."', True),
    Change("an LLM's base_url", ASKING, "URL", "URL + '/a'", "URL + '/b'", True),
    Change("an LLM's model name", ASKING, '"m"', '"m-1"', '"m-2"', True),
    Change("a sampling argument", ASKING, "llm}", 'llm, "top_p": 0.5}', 'llm, "top_p": 0.7}', True),
    Change(
        "an LLM's class",
        "class Shout(LLM):\n    model_name = 'm'\n    def answer_batch(self, requests):\n"
        "        return [Answer([str(request.prompt) + 'VALUE']) for request in requests]"
        + textwrap.dedent(ASKING.replace('OpenAI("m", base_url=URL)', "Shout()")),
        "VALUE", "!", "?",
    ),
    Change(
        "an LLM's chat template",
        ASKING_LOCALLY,
        '"cpu"',
        '"cpu", chat_prompt_template="{{ messages[-1].content }}"',
        '"cpu", chat_prompt_template="A dog ran"',
    ),
    Change("an LLM's adapter", ASKING_LOCALLY, '"cpu"', '"cpu"', '"cpu", adapter_name=ADAPTER'),
    Change(
        "the content of a data file",
        """
        (FOLDER / "data.csv").write_text("text\\nVALUE\\n")
        node = CSVDataSource("Node", data_files=str(FOLDER / "data.csv"))
        """,
        "VALUE", "a", "b",
    ),
    Change(
        "a CSV separator",
        """
        (FOLDER / "data.csv").write_text("x;y,z\\n1;2,3\\n")
        node = CSVDataSource("Node", data_files=str(FOLDER / "data.csv"), sep="VALUE")
        """,
        "VALUE", ",", ";",
    ),
    Change(
        "a retriever's corpus",
        """
        from datadreamer_like.models import EmbeddingRetriever, SentenceTransformersEmbedder
        from datadreamer_like.steps import Retrieve

        corpus = DataSource("Corpus", data={"text": ["a cat", "VALUE"]})
        embedder = SentenceTransformersEmbedder(EMBEDDER, device="cpu")
        retriever = EmbeddingRetriever(texts=corpus.output["text"], embedder=embedder)
        asked = DataSource("Queries", data={"queries": ["animals"]})
        node = Retrieve("Node", inputs={"queries": asked.output["queries"]}, args={"retriever": retriever, "k": 2})
        """,
        "VALUE", "a dog", "a house",
    ),
]  # fmt: skip


class Session:
    """Runs a changing script in one folder; its names are what a user would have imported."""

    def __init__(self, folder: Path, server: FlakyServer, request: pytest.FixtureRequest) -> None:
        self.folder = folder
        self.request = request
        self.names: dict[str, Any] = {"URL": server.url, "FOLDER": folder}

    def run(self, script: str) -> tuple[list[Any], list[int]]:
        """Returns the rows of `node` and of a step that hangs on it, and what tells their makings apart."""
        fixtures: dict[str, Callable[[], Any]] = {
            "MODEL": lambda: str(self.request.getfixturevalue("tiny_causal_lm")),
            "ADAPTER": lambda: str(self.request.getfixturevalue("tiny_adapter")),
            "EMBEDDER": lambda: str(self.request.getfixturevalue("minilm_path")),
        }
        wanted = {name: value() for name, value in fixtures.items() if name in script}
        source = _IMPORTS + textwrap.dedent(script)
        names: dict[str, Any] = {"__name__": "__main__", **self.names, **wanted}
        with DataDreamer(self.folder / "session"):
            exec(compile(source, "script.py", "exec"), names)
            below = names["node"].map(lambda row: row, lazy=False, name="Below")
            return [list(names["node"].output), list(below.output)], made(names["node"], below)


_IMPORTS = """
from datadreamer_like.models import LLM, Answer, OpenAI
from datadreamer_like.steps import CSVDataSource, DataSource, Prompt, Step
"""


@pytest.fixture
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    with FlakyServer(lambda body, before: Reply(json.dumps(body))) as server:
        made = Session(tmp_path, server, request)
        made.server = server  # type: ignore[attr-defined]
        yield made


@pytest.fixture(scope="session")
def tiny_adapter(tiny_causal_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a LoRA adapter that changes what `tiny_causal_lm` says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_causal_lm), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.what)
def test_a_change_reruns_the_step_and_what_hangs_on_it_and_its_undoing_finds_the_older_results(
    session: Any, change: Change
) -> None:
    first, second = (change.script.replace(change.place, value) for value in (change.first, change.second))
    assert first != second
    rows, results = session.run(first)
    asked = session.server.seen.total()
    assert session.run(first) == (rows, results)
    assert session.server.seen.total() == asked

    other_rows, other_results = session.run(second)
    assert not set(other_results) & set(results)
    assert session.server.seen.total() == (2 * asked if change.asks_again else asked)
    asked = session.server.seen.total()

    assert session.run(first) == (rows, results)
    assert session.run(second) == (other_rows, other_results)
    assert session.server.seen.total() == asked
    if change.what != "an LLM's base_url":  # this server answers the same at every address
        assert repr(rows) != repr(other_rows)


def test_renaming_an_upstream_step_reruns_nothing_that_hangs_on_it(tmp_path: Path, server: FlakyServer) -> None:
    def run(source_name: str, mapped_name: str) -> list[int]:
        with DataDreamer(tmp_path):
            asked = DataSource(source_name, data={"prompts": ["one", "two"]})
            mapped = asked.map(lambda row: {"prompts": row["prompts"] + "?"}, lazy=False, name=mapped_name)
            answers = Prompt(
                "Answers",
                inputs={"prompts": mapped.output["prompts"]},
                args={"llm": OpenAI("m", base_url=server.url)},
            )
            return made(answers, answers.save(name="Saved"))

    results = run("Questions", "With a mark")
    assert run("Prompts", "With a mark") == results
    assert run("Prompts", "Marked") == results
    assert server.seen.total() == 2


def test_a_change_reruns_nothing_beside_it(tmp_path: Path, server: FlakyServer) -> None:
    def run(greeting: str) -> tuple[list[int], list[int]]:
        with DataDreamer(tmp_path):
            asked = DataSource("Questions", data={"prompts": ["one", "two"]})
            llm = OpenAI("m", base_url=server.url)
            beside = Prompt("Beside", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm})
            greeted = asked.map(lambda row: {"prompts": greeting + row["prompts"]}, lazy=False, name="Greeted")
            below = Prompt("Below", inputs={"prompts": greeted.output["prompts"]}, args={"llm": llm})
            return made(asked, beside), made(greeted, below)

    beside, hanging = run("Hello ")
    again, other = run("Bye ")
    assert again == beside
    assert not set(hanging) & set(other)
    assert server.seen.total() == 6


def test_in_a_memory_session_the_llm_is_asked_once_a_prompt(server: FlakyServer) -> None:
    with DataDreamer(":memory:"):
        asked = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(30)]})
        llm = OpenAI("m", base_url=server.url)
        for lazy in (False, True):
            answers = Prompt(
                f"Answers {lazy}", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm, "lazy": lazy}
            )
            for _ in range(2):
                assert [row["generations"] for row in answers.output] == [f"echo: question {i}" for i in range(30)]
            answers.head(3)
            answers.export_to_list()
            answers.map(lambda row: row, lazy=False)
    assert set(server.seen.values()) == {1}


def bytes_written() -> int:
    """What this process has given to `write` so far."""
    return int(Path("/proc/self/io").read_text().split("wchar: ")[1].split()[0])


def test_a_dataset_is_written_once(tmp_path: Path) -> None:
    rows = [{"text": f"{i:06} " + "x" * 193} for i in range(20_000)]
    with DataDreamer(tmp_path):
        before = bytes_written()
        source = DataSource("Rows", data=rows)
        # Views and rows that are made on demand are written nowhere.
        source.shuffle(seed=1).select_columns("text").map(lambda row: row).take(5).head()
        written = bytes_written() - before
        on_disk = sum(path.stat().st_size for path in (tmp_path / "rows").rglob("*") if path.is_file())
        everything = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert on_disk > 20_000 * 200
    assert written < 1.1 * on_disk
    assert everything < 1.01 * on_disk


@pytest.mark.parametrize(
    ("values", "read"),
    [
        ([1] * 1500 + [2.5], [1.0] * 1500 + [2.5]),
        ([None] * 1500 + ["late"], [None] * 1500 + ["late"]),
        ([[]] * 1500 + [["a"]], [[]] * 1500 + [["a"]]),
        ([{"a": 1}] * 1500 + [{"a": None, "b": "x"}], [{"a": 1}] * 1500 + [{"a": None, "b": "x"}]),
        ([1, 2**40], [1, 2**40]),
        ([None, {"a": [None, 1]}], [None, {"a": [None, 1]}]),
    ],
    ids=["float after ints", "text after None", "list after empty ones", "new key", "large int", "nested"],
)
def test_the_type_of_a_column_is_not_that_of_its_first_row(tmp_path: Path, values: list[Any], read: list[Any]) -> None:
    with DataDreamer(tmp_path):
        source = DataSource("Rows", data={"value": values})
        assert list(source.output["value"]) == read
        mapped = source.map(lambda row: row, lazy=False)
        assert list(mapped.output["value"]) == read


def test_a_steps_answers_without_text_and_over_long_prompts_are_rows_without_an_answer(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        prompt = prompt_of(body)
        if "silent" in prompt:
            return Reply(text=None, finish_reason="content_filter")
        if len(prompt) > 1_000:
            message = "This model's maximum context length is 100 tokens."
            fields = {"message": message, "code": "context_length_exceeded", "type": "invalid_request_error"}
            return Reply(status=400, body=json.dumps({"error": fields}).encode())
        return Reply("7" if "number" in prompt else "Yes")

    texts = ["fine", "silent one", "long " * 1_000, "fine as well"]
    with FlakyServer(behave) as server, DataDreamer(tmp_path):
        llm = OpenAI("m", base_url=server.url)
        source = DataSource("Texts", data={"texts": texts, "number": [1, 2, 3, 4]})
        column, args = source.output["texts"], {"llm": llm, "instruction": "Is it?"}
        answers = Prompt("Prompt", inputs={"prompts": column}, args={"llm": llm})
        assert list(answers.output["generations"]) == ["Yes", None, None, "Yes"]
        assert sorted(answers.errors) == [1, 2]
        processed = ProcessWithPrompt("Process", inputs={"inputs": column}, args=args)
        assert list(processed.output["generations"]) == ["Yes", None, None, "Yes"]
        kept = FilterWithPrompt("Filter", inputs={"inputs": column}, args=args)
        assert list(kept.output["number"]) == [1, 4]
        ranked = RankWithPrompt("Rank", inputs={"inputs": column}, args=args)
        assert sorted(ranked.output["number"]) == [1, 2, 3, 4]
        assert [score for score in ranked.output["scores"] if score is not None] == [7.0, 7.0]
        made_up = DataFromPrompt("Data", args={"llm": llm, "instruction": "silent", "n": 3})
        assert list(made_up.output["generations"]) == [None, None, None]
