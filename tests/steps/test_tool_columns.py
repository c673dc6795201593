"""Tools of prompting steps: one list for all rows, or a column of them, and the column of calls."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph.engine import Engine
from datadreamer_like.models import LLM, OpenAI, Rejected
from datadreamer_like.steps import CritiqueAndRevise, DataSource, ProcessWithPrompt, Prompt, TemplatePrompt
from datadreamer_like.testing import FakeLLM


def get_weather(city: str, unit: Literal["celsius", "fahrenheit"] = "celsius") -> str:
    """Returns the weather of a city."""
    raise AssertionError("a tool is never executed")


WEATHER = {
    "name": "get_weather",
    "description": "",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "description": "", "parameters": {"type": "object", "properties": {"zone": {"enum": [1]}}}}
ROME = [{"name": "get_weather", "arguments": {"city": "Rome"}}]


def _calls(*calls: tuple[str, dict[str, Any]]) -> list[dict[str, str]]:
    return [{"id": f"call_{i}", "name": name, "arguments": json.dumps(a)} for i, (name, a) in enumerate(calls)]


def _column(*texts: str) -> Any:
    return DataSource("Rows", data={"texts": list(texts)}).output["texts"]


def test_one_list_of_tools_for_all_rows_gives_a_typed_column_of_calls(tmp_path: Path) -> None:
    llm = FakeLLM({"Rome": ROME, "two": [*ROME, *ROME], "None": None, ".*": "No call."})
    for _ in range(2):  # a rerun does no work
        with DataDreamer(tmp_path):
            rows = DataSource("Questions", data={"prompts": ["Rome?", "hello", "two?", "None?"]})
            step = Prompt("Ask", inputs={"prompts": rows.output["prompts"]}, args={"llm": llm, "tools": [get_weather]})
        rome = ("get_weather", {"city": "Rome"})
        assert list(step.output["tool_calls"]) == [_calls(rome), [], _calls(rome, rome), None]
        assert list(step.output["generations"]) == [None, "No call.", None, None]
        assert list(step.errors) == [3]
        assert llm.asked[0].tools[0]["parameters"]["properties"].keys() == {"city", "unit"}
        assert len(llm.asked) == 4
        table = (
            step.output.dataset.data.table if hasattr(step.output.dataset.data, "table") else step.output.dataset.data
        )
        calls = pa.list_(pa.struct({"id": pa.string(), "name": pa.string(), "arguments": pa.string()}))
        assert table.schema.field("tool_calls").type.equals(calls, check_metadata=False)


@pytest.mark.parametrize("as_json", [True, False])
def test_each_row_may_have_tools_of_its_own(as_json: bool, tmp_path: Path) -> None:
    cells: list[Any] = [[WEATHER], [TIME], None, [WEATHER, TIME]]
    llm = FakeLLM()
    with DataDreamer(tmp_path):
        given = [json.dumps(cell) for cell in cells] if as_json else cells
        rows = DataSource("Rows", data={"q": ["a", "b", "c", "d"], "tools": given})
        inputs = {"prompts": rows.output["q"], "tools": rows.output["tools"]}
        step = Prompt("Ask", inputs=inputs, args={"llm": llm, "temperature": 0.0})
        templated = TemplatePrompt(
            "Fill",
            inputs={"q": rows.output["q"], "functions": rows.output["tools"]},
            args={"llm": llm, "template": "{{ q }}", "tools": "functions", "temperature": 0.0},
        )
    assert list(step.output["prompts"]) == ["a", "b", "c", "d"]
    sent = {request.prompt: [tool["name"] for tool in request.tools] for request in llm.asked}
    assert sent == {"a": ["get_weather"], "b": ["get_time"], "c": [], "d": ["get_weather", "get_time"]}
    assert llm.asked[0].tools[0] == WEATHER  # without the fields that a column of structs fills with None
    assert len(llm.asked) == 4  # the second step asks the same
    assert list(templated.output["tool_calls"]) == list(step.output["tool_calls"])
    kinds = [None if calls is None else [call["name"] for call in calls] for calls in step.output["tool_calls"]]
    assert kinds[:3] == [["get_weather"], ["get_time"], []]


def test_tools_that_cannot_be_read_fail_their_row(tmp_path: Path) -> None:
    with DataDreamer(tmp_path):
        rows = DataSource("Rows", data={"q": ["a", "b"], "tools": ['[{"name": "a b"}]', json.dumps([WEATHER])]})
        inputs = {"prompts": rows.output["q"], "tools": rows.output["tools"]}
        step = Prompt("Ask", inputs=inputs, args={"llm": FakeLLM()})
    assert list(step.errors) == [0]
    assert "letters, digits" in str(step.errors[0])
    assert list(step.output["tool_calls"])[0] is None


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (json.dumps([WEATHER]), 'tool_choice cannot be "get_time".*get_weather'),
        ("get_time", "'get_time' is not JSON"),
        (json.dumps(TIME), "must be a list of functions or dictionaries"),
    ],
)
def test_a_row_whose_tools_do_not_suit_fails_alone(cell: str, words: str, tmp_path: Path) -> None:
    llm = FakeLLM()
    with DataDreamer(tmp_path):
        rows = DataSource("Rows", data={"q": ["a", "b", "c"], "tools": [cell, json.dumps([WEATHER, TIME]), None]})
        inputs = {"prompts": rows.output["q"], "tools": rows.output["tools"]}
        step = Prompt("Ask", inputs=inputs, args={"llm": llm, "tool_choice": "get_time"})
    assert list(step.errors) == [0]
    assert re.search(words, str(step.errors[0]))
    assert [calls and calls[0]["name"] for calls in step.output["tool_calls"]] == [None, "get_time", []]
    assert step.output["generations"][2] == "Answer to: c"  # a row without tools is asked without them


def test_post_process_gets_texts_only(tmp_path: Path) -> None:
    llm = FakeLLM({"Rome": ROME, ".*": " No call. "})
    with DataDreamer(tmp_path):
        args = {"llm": llm, "tools": [WEATHER], "post_process": str.strip}
        step = Prompt("Ask", inputs={"prompts": _column("Rome?", "hello")}, args=args)
    assert step.errors == {}
    assert list(step.output["generations"]) == [None, "No call."]


def test_calls_that_do_not_fit_fail_their_row_and_are_kept(tmp_path: Path) -> None:
    llm = FakeLLM(lambda prompt: [{"name": "get_weather", "arguments": {"city": 3}}])
    with DataDreamer(tmp_path):
        step = Prompt("Ask", inputs={"prompts": _column("Rome?")}, args={"llm": llm, "tools": [WEATHER]})
    assert "city: 3 is not of type" in str(step.errors[0])
    assert list(step.output["tool_calls"]) == [_calls(("get_weather", {"city": 3}))]
    assert len(llm.asked) == 2


def test_parse_gets_the_calls_and_several_answers_are_lists(tmp_path: Path) -> None:
    def parse(answer: Any, row: dict[str, Any]) -> Any:
        return answer.tool_calls[0][0]["arguments"]["city"] if answer.tool_calls else Rejected("Call the tool.")

    with DataDreamer(tmp_path):
        step = Prompt(
            "Ask",
            inputs={"prompts": _column("Rome?")},
            args={"llm": FakeLLM([ROME]), "tools": [WEATHER], "parse": parse},
        )
        several = ProcessWithPrompt(
            "Several",
            inputs={"inputs": _column("Rome?")},
            args={"llm": FakeLLM([ROME, "text"]), "instruction": "Look it up.", "tools": [WEATHER], "n": 2,
                  "temperature": 1.0, "top_p": 1.0},
        )  # fmt: skip
    assert list(step.output["generations"]) == ["Rome"]
    assert list(several.output["generations"]) == [[None, "text"]]
    assert list(several.output["tool_calls"]) == [[_calls(("get_weather", {"city": "Rome"})), []]]


class _NoTools(LLM):
    model_name = "no tools"

    def answer_batch(self, requests: Any) -> Any:
        raise AssertionError("nothing may be sent")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"llm": _NoTools(), "tools": [WEATHER]}, '"Ask": .*takes no tools'),
        ({"tools": [WEATHER, WEATHER]}, '"Ask": tools has two tools'),
        ({"tools": [WEATHER], "tool_choice": "get_time"}, "tool_choice cannot be"),
        ({"tool_choice": "required"}, "needs tools"),
        ({"tools": "functions"}, "as the name of an input; the inputs are: prompts"),
        ({"tools": [WEATHER], "output_schema": WEATHER["parameters"]}, "schema or tools, not both"),
    ],
)
def test_wrong_arguments_are_refused_before_the_first_row(args: dict[str, Any], words: str, tmp_path: Path) -> None:
    with DataDreamer(tmp_path), pytest.raises(DefinitionError, match=words):
        Prompt("Ask", inputs={"prompts": _column("a")}, args={"llm": FakeLLM(), **args})


def test_steps_of_several_rounds_have_no_column_for_calls_and_refuse_tools(tmp_path: Path) -> None:
    llm = FakeLLM()
    args = {"llm": llm, "tools": [WEATHER]}
    with DataDreamer(tmp_path), pytest.raises(DefinitionError, match="CritiqueAndRevise has no column for calls"):
        CritiqueAndRevise("Revise", inputs={"prompts": _column("a"), "answers": _column("b")}, args=args)
    assert llm.asked == []


def test_a_plan_counts_the_tools_of_each_row(tmp_path: Path) -> None:
    def planned(tools: list[Any]) -> Any:
        llm = OpenAI("m", api_key="k", base_url="http://localhost:9/v1", prices={"input": 1.0, "output": 1.0})
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            rows = DataSource("Rows", data={"q": ["a", "b"], "tools": [json.dumps(tools)] * 2})
            inputs = {"prompts": rows.output["q"], "tools": rows.output["tools"]}
            Prompt("Ask", inputs=inputs, args={"llm": llm, "max_new_tokens": 10})
        return plan

    # A token has at least one byte, and a price is for a million.
    assert planned([WEATHER]).most_cost - planned([]).most_cost >= 2 * len(json.dumps(WEATHER)) / 1e6


class _Copying(Engine):
    """Works as an engine of other processes does: on copies, two rows at a time."""

    batch_size = 2

    def batches(self, process: Any, batches: Any, what: str, parts: Any) -> Any:
        work = pickle.dumps(process)
        for batch in batches:
            yield from pickle.loads(work)(iter([pickle.loads(pickle.dumps(batch))]))


def test_other_processes_answer_rows_with_their_own_tools_as_this_one_does(tmp_path: Path) -> None:
    def rows_of(folder: Path, engine: Any) -> list[dict[str, Any]]:
        with DataDreamer(folder, engine=engine, verbose=False):
            cells = [json.dumps([WEATHER]), None, json.dumps([TIME, WEATHER])]
            rows = DataSource("Rows", data={"q": ["a", "b", "a"] * 3, "tools": cells * 3})
            inputs = {"prompts": rows.output["q"], "tools": rows.output["tools"]}
            args = {"llm": FakeLLM(), "n": 2, "top_p": 1.0, "seed": 1}
            return list(Prompt("Ask", inputs=inputs, args=args).output)

    here = rows_of(tmp_path / "here", "local")
    assert rows_of(tmp_path / "there", _Copying()) == here
    # Each repetition of a prompt with the same tools has calls of its own.
    assert len({json.dumps(row["tool_calls"]) for row in here[0::3]}) == 3
    assert [row["prompts"] for row in here[:3]] == ["a", "b", "a"]


def test_a_change_of_the_tools_asks_again(tmp_path: Path) -> None:
    llm = FakeLLM()
    for tools in ([WEATHER], [TIME], [WEATHER]):
        with DataDreamer(tmp_path):
            Prompt("Ask", inputs={"prompts": _column("a")}, args={"llm": llm, "tools": tools})
    assert [request.tools[0]["name"] for request in llm.asked] == ["get_weather", "get_time"]
