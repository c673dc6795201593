"""Faults go through the real pipeline, and recordings replay without a key."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flaky_server import FlakyServer, Reply

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    DataError,
    DefinitionError,
    MissingFile,
    ModelError,
    NewerFormat,
    OverBudget,
    RateLimited,
)
from datadreamer_like.models import LLM, Answer, OpenAI, Request, ToolPrompt
from datadreamer_like.steps import DataSource, Prompt
from datadreamer_like.testing import FakeLLM, Fault, Recorded, WithFaults, temporary_session

KEY = "sk-test-0123456789abcdef"


def echo() -> FakeLLM:
    return FakeLLM(lambda prompt: f"<{prompt} is a word>")


@pytest.mark.parametrize("kind", ["rate_limited", "timeout", "unavailable"])
def test_passing_faults_are_retried_and_all_rows_answered(kind: str) -> None:
    inner = echo()
    llm = WithFaults(inner, Fault(kind, at=[0, 2], times=2))
    with temporary_session():
        rows = DataSource("Rows", data={"text": list("abc")})
        step = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": llm})
        assert list(step.output["generations"]) == [f"<{text} is a word>" for text in "abc"]
        assert (step.usage.requests, step.errors) == (7, {})
    assert Counter(inner.prompts) == Counter("abc")


LOST = {
    "rate_limited": "429", "timeout": "no whole answer in time", "refused": "refused to answer",
    "filtered": "content filter", "too_long": "does not fit the context", "empty": "no text",
}  # fmt: skip


@pytest.mark.parametrize("kind", LOST)
def test_lasting_faults_fail_their_row_alone(kind: str) -> None:
    llm = WithFaults(echo(), Fault(kind, at=[1], times=None), max_tries=2)
    with temporary_session():
        rows = DataSource("Rows", data={"text": list("abc")})
        step = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": llm})
        assert list(step.output["generations"]) == ["<a is a word>", None, "<c is a word>"]
        assert list(step.errors) == [1]
        assert LOST[kind] in str(step.errors[1])


def test_a_malformed_response_is_asked_for_again() -> None:
    assert WithFaults(echo(), Fault("malformed", at=[0])).run(["a"]) == ["<a is a word>"]


def test_a_cut_off_answer_says_so_and_is_none_where_a_schema_needs_the_whole() -> None:
    llm = WithFaults(echo(), Fault("cut_off", at=[0], times=None))
    (answer,) = llm.answers(["a"])
    assert (answer.text, answer.finish_reasons) == ("<a is a", ["length"])
    whole = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    (failed,) = WithFaults(FakeLLM(), Fault("cut_off", at=[0], times=None)).answers(["a"], schema=whole)
    assert "cut off" in str(failed.error)


def test_a_wrong_key_ends_the_run() -> None:
    with pytest.raises(AuthenticationFailed, match="401"):
        WithFaults(echo(), Fault("wrong_key", at=[0])).run(["a", "b"])


def test_a_rate_chooses_its_prompts_by_the_seed_whatever_their_order() -> None:
    prompts = [f"q{number}" for number in range(400)]

    def lost(order: list[str], seed: int) -> set[str]:
        llm = WithFaults(echo(), Fault("refused", rate=0.1, times=None), seed=seed)
        return {prompt for prompt, text in zip(order, llm.run(order), strict=True) if text is None}

    first = lost(prompts, 1)
    assert first == lost(prompts[::-1], 1) != lost(prompts, 2)
    assert 20 <= len(first) <= 60  # 40 expected; the standard deviation is 6


class Batches(LLM):
    """An engine that takes batches."""

    model_name = "batches"

    def answer_batch(self, requests: Any) -> list[Answer]:
        return [Answer([f"<{request.prompt}>"]) for request in requests]


def test_scores_meet_faults_too() -> None:
    inner = FakeLLM(score=lambda prompt, text: -1.0 if text in prompt else -2.0)
    faults = (Fault("timeout", at=[0]), Fault("refused", at=[1], times=None), Fault("unavailable", at=[2], times=None))
    llm = WithFaults(inner, *faults, Fault("cut_off", at=[3]), max_tries=2)
    prompts = ["yes?", "no?", "yes or no?", "neither?"]
    lost = [math.nan, math.nan]
    np.testing.assert_array_equal(llm.score(prompts, ["yes", "no"]), [[-1.0, -2.0], lost, lost, [-2.0, -2.0]])
    with pytest.raises(DefinitionError, match="gives no log-probabilities"):
        WithFaults(Batches(), Fault("timeout", at=[0])).score(["a"], ["b"])


def test_any_llm_may_meet_faults() -> None:
    assert WithFaults(Batches(), Fault("unavailable", at=[0])).run(["a", "b"]) == ["<a>", "<b>"]


def test_the_budget_of_the_llm_inside_holds(tmp_path: Path) -> None:
    with FlakyServer() as server:
        given: dict[str, Any] = {"base_url": server.url, "prices": {"input": 1, "output": 1}, "budget": "0.0003 USD"}
        llm = OpenAI("m", **given, cache_folder_path=tmp_path)
        for outer in (WithFaults(llm, Fault("timeout", at=[0])), Recorded(tmp_path / "c.jsonl", llm)):
            with pytest.raises(OverBudget):
                outer.run([f"{outer.display_name} {number}" for number in range(100)], max_new_tokens=20)
        assert 0 < len(server.requests) <= 60  # of 5 tokens each, at a dollar per million


def test_faults_that_are_none_are_refused() -> None:
    with pytest.raises(DefinitionError, match='no fault "time_out". Did you mean "timeout"'):
        Fault("time_out", at=[0])
    with pytest.raises(DefinitionError, match=r"happens nowhere: give at=\[0\]"):
        Fault("timeout")
    with pytest.raises(ArgumentTypeError, match="at must be a list of positions"):
        Fault("timeout", at=3)  # type: ignore[arg-type]
    with pytest.raises(DefinitionError, match="at is -1"):
        Fault("timeout", at=[-1])
    with pytest.raises(DefinitionError, match="rate is 2"):
        Fault("timeout", rate=2)
    with pytest.raises(DefinitionError, match="needs faults"):
        WithFaults(echo())
    with pytest.raises(ArgumentTypeError, match="takes an LLM"):
        WithFaults("m", Fault("timeout", at=[0]))  # type: ignore[arg-type]


# Recordings


def recorded_by(server: FlakyServer, file: Path, **options: Any) -> Recorded:
    return Recorded(file, lambda: OpenAI("m", api_key=KEY, base_url=server.url, system_prompt="Brief."), **options)


def no_llm() -> LLM:
    raise AssertionError("a recording was replayed with a key")


def test_answers_are_recorded_once_with_a_key_and_replayed_without(tmp_path: Path) -> None:
    file = tmp_path / "tests" / "cassette.jsonl"
    options: dict[str, Any] = {"max_new_tokens": 9, "presence_penalty": 0.5}
    prompts: list[Any] = ["Sky?", [{"role": "user", "content": "Grass?"}]]
    with FlakyServer() as server:
        said = list(recorded_by(server, file).answers(prompts, **options))
        requests = len(server.requests)
    assert requests == 2
    replayed = Recorded(file, no_llm)
    again = list(replayed.answers(prompts, **options))
    assert [(each.text, each.prompt_tokens, each.finish_reasons) for each in again] == [
        (each.text, each.prompt_tokens, each.finish_reasons) for each in said
    ]
    assert [each.cost for each in again] == [0.0, 0.0]
    text = file.read_text(encoding="utf-8")
    assert KEY not in text
    assert len(text.splitlines()) == 3
    assert pickle.loads(pickle.dumps(replayed)).run(["Sky?"], **options) == [said[0].text]


def test_the_results_of_a_recording_are_those_of_its_replay(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"

    def work(make: Any) -> tuple[list[Any], int]:
        with DataDreamer(tmp_path / "out", verbose=False):
            rows = DataSource("Rows", data={"text": ["a", "b"]})
            step = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": make()})
            return list(step.output["generations"]), step.usage.requests

    inner = echo()
    first = work(lambda: Recorded(file, inner))
    assert first[1] == 2
    assert work(lambda: Recorded(file, no_llm)) == (first[0], 0)
    assert inner.prompts == ["a", "b"]


def test_a_prompt_that_is_not_recorded_is_one_error_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    Recorded(file, echo()).run(["a"], max_new_tokens=50)
    replayed = Recorded(file)
    with pytest.raises(DataError, match=r"no answer of FakeLLM \(fake\) to the prompt 'b'.*record=True"):
        replayed.run(["a", "b"], max_new_tokens=50)
    with pytest.raises(DataError, match=r'to the prompt \'a\'.*prompt with other options: {"max_new_tokens": 50}'):
        replayed.run(["a"], max_new_tokens=60)
    more = echo()
    assert len(Recorded(file, more, record=True).run(["a", "b"], max_new_tokens=50)) == 2
    assert more.prompts == ["b"]
    assert Recorded(file, record=False).run(["b"], max_new_tokens=50) == ["<b is a word>"]


def test_random_answers_are_replayed_in_turn_with_log_probabilities(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_logprobs": 2}
    first = list(Recorded(file, FakeLLM(["one", "two"])).answers(["a", "a"], **options))
    again = list(Recorded(file).answers(["a", "a"], **options))
    assert [each.text for each in again] == ["one", "two"]
    assert [each.logprobs for each in again] == [[list(each)] for each in [answer.logprobs[0] for answer in first]]  # type: ignore[index]


def test_lasting_failures_are_recorded_and_passing_ones_are_not(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    faults = Fault("too_long", at=[0], times=None), Fault("refused", at=[1], times=None), Fault("timeout", at=[2])
    failed = list(Recorded(file, WithFaults(echo(), *faults)).answers(["a", "b", "c"]))
    again = list(Recorded(file).answers(["a", "b", "c"]))
    assert [str(each.error) for each in again] == [str(each.error) for each in failed]
    assert [type(each.error) for each in again] == [type(each.error) for each in failed]
    assert again[2].text == "<c is a word>"


class Down(LLM):
    """A provider that refuses every request for now."""

    max_tries = 1

    async def answer(self, request: Request) -> Answer:
        raise RateLimited("slow down", 0.0)


def test_a_provider_that_is_down_leaves_nothing_in_the_recording(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    recording = Recorded(file, Down())
    recording.max_tries = 1
    with pytest.raises(ModelError, match="slow down"):
        recording.run(["a"])
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1


WRONG = [
    ("", "is empty"),
    ("a,b\n", "line 1 cannot be read"),
    ('{"text": "a"}\n', "line 1 cannot be read"),
    (None, "line 3 cannot be read"),  # the last line is cut
]


@pytest.mark.parametrize(("content", "said"), WRONG)
def test_a_file_that_is_no_cassette_is_one_error_with_its_line(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    if content is None:
        Recorded(file, echo()).run(["a", "b"])
        content = file.read_text(encoding="utf-8")[:-20]
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=f"cassette.jsonl.*{said}.*[Rr]ecord it"):
        Recorded(file)


def test_what_cannot_be_replayed_or_recorded_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArgumentTypeError, match="make_llm must be an LLM or a function that makes it, not 'gpt-5'"):
        Recorded(tmp_path / "new.jsonl", "gpt-5")  # type: ignore[arg-type]
    file = tmp_path / "cassette.jsonl"
    with pytest.raises(MissingFile, match="no cassette .* Record it once"):
        Recorded(file, no_llm, record=False)
    with pytest.raises(MissingFile, match="no cassette"):
        Recorded(file)
    with pytest.raises(ArgumentTypeError, match="takes an LLM"):
        Recorded(file, lambda: "m")  # type: ignore[arg-type,return-value]
    with pytest.raises(ArgumentTypeError, match="the path of a cassette, and then the LLM"):
        Recorded(echo(), file)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="record must be True, False or None"):
        Recorded(file, echo(), record="new")  # type: ignore[arg-type]
    Recorded(file, echo())
    about, *rest = file.read_text(encoding="utf-8").splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(about), "format": 2}), *rest]), encoding="utf-8")
    with pytest.raises(NewerFormat):
        Recorded(file)


def test_a_servers_rate_limit_is_not_part_of_a_recording(tmp_path: Path) -> None:
    def behave(body: Any, before: int) -> Reply:
        return Reply(status=429, body=b"{}", headers={"retry-after": "0"}) if not before else Reply("fine")

    with FlakyServer(behave) as server:
        assert recorded_by(server, tmp_path / "c.jsonl").run(["a"]) == ["fine"]
    assert Recorded(tmp_path / "c.jsonl").run(["a"]) == ["fine"]


RECORDING = """
import sys
from datadreamer_like.testing import FakeLLM, Recorded
llm = Recorded(sys.argv[1], FakeLLM(lambda prompt: prompt * 3_000), record=True)
assert llm.run([f"{sys.argv[2]}{index}." for index in range(40)])
"""


def test_two_processes_record_in_one_cassette(tmp_path: Path) -> None:
    file = tmp_path / "cassette.jsonl"
    running = [subprocess.Popen([sys.executable, "-c", RECORDING, str(file), name]) for name in "ab"]
    assert [process.wait() for process in running] == [0, 0]
    replayed = Recorded(file, record=False)
    asked = [f"{name}{index}." for name in "ab" for index in range(40)]
    assert replayed.run(asked) == [text * 3_000 for text in asked]
    assert [path.name for path in tmp_path.iterdir()] == ["cassette.jsonl"]


def test_calls_of_tools_are_recorded_and_replayed(tmp_path: Path) -> None:
    tool = {"name": "get_time", "parameters": {"type": "object", "properties": {"zone": {"enum": ["utc"]}}}}
    file = tmp_path / "cassette.jsonl"
    first = list(Recorded(file, FakeLLM()).answers(["Now?", ToolPrompt("Then?", [tool])], tools=[tool]))
    again = list(Recorded(file).answers(["Now?", ToolPrompt("Then?", [tool])], tools=[tool]))
    assert [answer.tool_calls for answer in again] == [answer.tool_calls for answer in first]
    assert first[0].tool_calls == [[{"id": "call_0", "name": "get_time", "arguments": {"zone": "utc"}}]]
    with pytest.raises(DataError, match="has no answer"):
        list(Recorded(file).answers(["Now?"]))


def test_prompts_with_images_are_faked_recorded_and_meet_faults_as_the_llm_takes_them(tmp_path: Path) -> None:
    def described(llm: LLM, text: str = "What is it?") -> list[str | None]:
        with temporary_session():
            rows = DataSource("Rows", data={"text": [text], "image": [b"\x89PNG\r\n\x1a\n"]}).output
            inputs = {"prompts": rows["text"], "images": rows["image"]}
            return list(Prompt("Ask", inputs=inputs, args={"llm": llm}).output["generations"])

    def fake() -> FakeLLM:
        return FakeLLM({"What is it": "A cat."})

    assert described(fake()) == ["A cat."]
    assert described(WithFaults(fake(), Fault("timeout", at=[0]))) == ["A cat."]
    assert described(Recorded(tmp_path / "images.jsonl", fake)) == ["A cat."]
    assert described(Recorded(tmp_path / "images.jsonl")) == ["A cat."]
    without = fake()
    without.takes_images = False
    Recorded(tmp_path / "without.jsonl", without)
    for llm in (WithFaults(without, Fault("timeout", at=[0])), Recorded(tmp_path / "without.jsonl")):
        with pytest.raises(DefinitionError, match="takes no images"):
            described(llm)
