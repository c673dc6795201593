from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Echo

from datadreamer_like.errors import DefinitionError
from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import LLM, Answer, Rejected, Repeated, Request
from datadreamer_like.models.calls.llm_calls import Repetitions
from datadreamer_like.steps import (
    DataSource,
    FilterWithPrompt,
    JudgePairsWithPrompt,
    Prompt,
    RankWithPrompt,
)
from datadreamer_like.steps.base.row_answers import Questions


class Corrected(LLM):
    """Answers a text with "bad ...", and a follow-up with what `reply` makes of it; counts requests."""

    model_name = "corrected"
    takes_chat = True

    def __init__(self, reply: Any = lambda text: "42", seconds: float = 0.0) -> None:
        super().__init__()
        self.reply = reply
        self.seconds = seconds
        self.sent: Counter[str] = Counter()
        self.chats: list[list[dict[str, Any]]] = []
        self.in_flight = self.most_in_flight = 0

    async def answer(self, request: Request) -> Answer:
        self.sent[json.dumps(request.prompt)] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.in_flight, self.most_in_flight)
        await asyncio.sleep(self.seconds)
        self.in_flight -= 1
        if isinstance(request.prompt, str):
            good = request.prompt.startswith("good")
            return Answer(["7" if good else f"bad {request.prompt}"] * request.sampling.n, 1, 1, ["stop"])
        self.chats.append([dict(message) for message in request.prompt])
        return Answer([self.reply(request.prompt)] * request.sampling.n, 1, 1, ["stop"])


def number(answer: Answer, row: dict[str, Any]) -> Any:
    return int(answer.text) if answer.text.isdigit() else Rejected(f"{row['prompts']} needs a number.")


def ask(texts: list[Any], llm: LLM, **args: Any) -> Prompt:
    source = DataSource("Texts", data={"text": texts})
    return Prompt("Ask", inputs={"prompts": source.output["text"]}, args={"llm": llm, "parse": number, **args})


def test_a_rejected_answer_is_asked_again_with_the_reason_in_its_conversation(session: DataDreamer) -> None:
    llm = Corrected()
    made = ask(["good 0", "wrong 1", None, "good 3"], llm)
    assert list(made.output["generations"]) == [7, 42, None, 7]
    assert made.errors == {}
    assert llm.chats == [
        [
            {"role": "user", "content": "wrong 1"},
            {"role": "assistant", "content": "bad wrong 1"},
            {"role": "user", "content": "That answer cannot be used. wrong 1 needs a number. Answer again."},
        ]
    ]


def test_a_rerun_sends_nothing_twice_and_never_takes_a_rejected_answer(tmp_path: Path) -> None:
    texts = ["good 0", *[f"wrong {i}" for i in range(20)]]
    for sent in (len(texts) + 20, 0):
        llm = Corrected()
        with DataDreamer(tmp_path, verbose=False):
            # Another step name, so that the rows are made again from the answers.
            made = ask(texts, llm, lazy=True)
            assert list(made.output["generations"]) == [7] + [42] * 20
        assert llm.sent.total() == sent


def test_repetitions_that_are_rejected_alike_get_follow_ups_of_their_own(session: DataDreamer) -> None:
    llm = Corrected()
    ask(["wrong"] * 3, llm, temperature=1.0, top_p=1.0)
    assert sorted(llm.sent.values()) == [3, 3]


def test_follow_ups_are_in_flight_together_and_keep_the_order(session: DataDreamer) -> None:
    llm = Corrected(lambda chat: chat[0]["content"].split()[1], seconds=0.02)
    made = ask([f"wrong {i}" for i in range(64)], llm, concurrency=16)
    assert list(made.output["generations"]) == list(range(64))
    assert llm.most_in_flight == 16


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_row_that_is_rejected_for_good_keeps_its_error_and_its_last_answer(session: DataDreamer, most: int) -> None:
    llm = Corrected(lambda chat: f"still bad {len(chat)}")
    made = ask(["good 0", "wrong 1"], llm, max_follow_ups=most)
    assert list(made.output["generations"]) == [7, None]
    last = f"still bad {2 * most + 1}" if most else "bad wrong 1"
    assert made.errors == {1: f"wrong 1 needs a number. The last answer was: {last!r}."}
    assert llm.sent.total() == 2 + most


def test_of_several_answers_the_rejected_are_none_and_only_all_of_them_are_asked_again(session: DataDreamer) -> None:
    class Mixed(Corrected):
        async def answer(self, request: Request) -> Answer:
            answer = await super().answer(request)
            return Answer([answer.text, "9"], 1, 1) if request.prompt == "mixed" else answer

    llm = Mixed()
    made = ask(["mixed", "wrong"], llm, n=2)
    assert list(made.output["generations"]) == [[None, 9], [42, 42]]
    assert llm.sent.total() == 3


class Negative(ValueError):
    pass


def fails_on_owl(text: Any, *_: Any) -> Any:
    if "OWL" in str(text):
        raise Negative("an owl")
    return getattr(text, "text", text)


@pytest.mark.parametrize("name", ["post_process", "parse"])
def test_a_function_that_raises_on_one_answer_fails_that_row_by_name(session: DataDreamer, name: str) -> None:
    made = ask(["cat", "owl"], Echo(), **{"parse": None, name: fails_on_owl})
    assert made.output["generations"][1] is None
    assert made.errors == {1: f"{name} raised Negative: an owl. The last answer was: 'OWL'."}


def test_filter_and_judgement_functions_that_raise_fail_their_row_by_name(session: DataDreamer) -> None:
    pets = DataSource("Pets", data={"pet": ["cat", "owl"], "other": ["ant", "bee"]})
    llm = Echo(lambda prompt: "OWL" if "owl" in prompt else "Input A")
    args = {"llm": llm, "instruction": "Soft?"}
    soft = {**args, "filter_func": lambda text: bool(fails_on_owl(text))}
    kept = FilterWithPrompt("Keep", {"inputs": pets.output["pet"]}, soft)
    assert list(kept.output["pet"]) == ["cat"]
    assert kept.errors == {1: "filter_func raised Negative: an owl. The last answer was: 'OWL'."}
    pair = {"a": pets.output["pet"], "b": pets.output["other"]}
    judged = JudgePairsWithPrompt("Judge", pair, {**args, "judgement_func": fails_on_owl})
    assert judged.output["judgements"][1] is None
    assert judged.output["judge_generations"][1] == "OWL"
    assert "judgement_func raised Negative" in judged.errors[1]


@pytest.mark.parametrize("step", [FilterWithPrompt, RankWithPrompt])
def test_an_unreadable_verdict_is_asked_again_once(session: DataDreamer, step: Any) -> None:
    pets = DataSource("Pets", data={"pet": ["cat", "dog"]})
    reply = "3" if step is RankWithPrompt else "yes"
    llm = Echo(lambda prompt: "Hm." if "cannot be used" not in prompt else "no" if "cat" in prompt else reply)
    made = step("Judge", {"inputs": pets.output["pet"]}, {"llm": llm, "instruction": "Well?", "score_threshold": 1}
                if step is RankWithPrompt else {"llm": llm, "instruction": "Well?"})  # fmt: skip
    assert list(made.output["pet"]) == ["dog"]
    assert len(llm.asked) == 4


def test_a_parse_argument_gives_the_verdict(session: DataDreamer) -> None:
    pets = DataSource("Pets", data={"pet": ["cat", "horse"]})
    args = {"llm": Echo(), "instruction": "Go.", "parse": lambda answer, row: float(len(row["pet"]))}
    ranked = RankWithPrompt("Rank", {"inputs": pets.output["pet"]}, args)
    assert list(ranked.output["scores"]) == [5.0, 3.0]
    scored = RankWithPrompt("Rank each of two", {"inputs": pets.output["pet"]}, {**args, "n": 2})
    assert list(scored.output["scores"]) == [5.0, 3.0]
    with pytest.raises(DefinitionError, match="filter_func or parse"):
        FilterWithPrompt("Keep", {"inputs": pets.output["pet"]}, {**args, "filter_func": len})


@pytest.mark.parametrize("several", [{}, {"n": 2}])
def test_a_score_that_is_not_a_number_fails_its_row(session: DataDreamer, several: dict[str, int], caplog: Any) -> None:
    pets = DataSource("Pets", data={"pet": ["cat", "owl", "dog", "ant"]})
    scores = {"cat": 1, "owl": "high", "dog": np.float32(2.5), "ant": None}
    args = {"llm": Echo(lambda prompt: "?"), "instruction": "Go.", "parse": lambda answer, row: scores[row["pet"]]}
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        ranked = RankWithPrompt("Rank", {"inputs": pets.output["pet"]}, {**args, **several})
    assert list(ranked.output["pet"]) == ["dog", "cat", "owl", "ant"]
    assert list(ranked.output["scores"]) == [2.5, 1.0, None, None]
    assert ranked.errors[2].startswith("parse returned 'high'; a score must be a number. The last answer was: '?")
    assert list(ranked.errors) == [2]
    assert "1 of its rows failed and have no value; the first is row 2" in caplog.text


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"post_process": len}, "post_process or parse"),
        ({"max_follow_ups": -1}, "0 or more"),
        ({"output_schema": {"type": "object", "properties": {"x": {}}}}, "parse or output_schema"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(session: DataDreamer, args: dict[str, Any], says: str) -> None:
    llm = Corrected()
    with pytest.raises(DefinitionError, match=says):
        ask(["a"], llm, **args)
    assert not llm.sent


def test_rows_answered_in_parts_are_those_answered_as_a_whole(session: DataDreamer) -> None:
    """What an engine that runs parts elsewhere does: the repetitions are counted over all prompts, the rest by part."""
    texts = ["wrong", "good", "wrong", None, "good", "wrong"]
    llm = Corrected(lambda chat: "1")
    source = DataSource("Texts", data={"text": texts})
    args = {"llm": llm, "parse": number, "temperature": 1.0, "top_p": 1.0}
    step = Prompt("Whole", inputs={"prompts": source.output["text"]}, args=args)
    sent, repetitions = llm.sent.total(), Repetitions()
    made = []
    for start in (0, 3):
        batch = {"prompts": texts[start : start + 3]}
        prompts = iter(repetitions.number([text for text in batch["prompts"] if text is not None]))
        numbered: list[Repeated | None] = [None if text is None else next(prompts) for text in batch["prompts"]]
        for rows in step.answers([Questions(numbered, batch)]):
            made += step.output_batch(rows)["generations"]
    assert made == list(step.output["generations"])
    assert llm.sent.total() == sent


def test_a_subclass_that_overrides_run_alone_is_asked_again_too(tmp_path: Path) -> None:
    class Own(LLM):
        takes_chat = True

        def run(self, prompts: Any, **options: Any) -> Any:
            return ("no" if isinstance(prompt, str) else str(len(prompt)) for prompt in prompts)

    answers = Own().answers(["a"], check=lambda _, answer: Rejected("Bad.") if answer.text == "no" else answer)
    assert [answer.text for answer in answers] == ["3"]


class OfBatches(LLM):
    """Writes what a script's own LLM does: it takes texts, and nothing else."""

    model_name = "batches"

    def answer_batch(self, requests: Any) -> list[Answer]:
        return [Answer([f"maybe {request.prompt.upper()}"]) for request in requests]


class OfAServer(LLM):
    model_name = "server"

    async def answer(self, request: Request) -> Answer:
        return Answer([f"maybe {request.prompt.upper()}"])


class OfTheAncestor(LLM):
    model_name = "ancestor"

    def run(self, prompts: Any, return_generator: bool = False, **options: Any) -> Any:  # type: ignore[override]
        answers = (f"maybe {prompt.upper()}" for prompt in prompts)
        return answers if return_generator else list(answers)


@pytest.mark.parametrize("kind", [OfBatches, OfAServer, OfTheAncestor])
def test_an_llm_that_takes_texts_gets_texts_when_it_is_asked_again(session: DataDreamer, kind: type[LLM]) -> None:
    rows = DataSource("Rows", data={"text": ["a", "b"], "other": ["c", "d"]}).output
    args = {"llm": kind(), "instruction": "Good?"}
    pairs = {"a": rows["text"], "b": rows["other"]}
    steps = [
        FilterWithPrompt("Filtered", inputs={"inputs": rows["text"]}, args=args),
        RankWithPrompt("Ranked", inputs={"inputs": rows["text"]}, args=args),
        JudgePairsWithPrompt("Judged", inputs=pairs, args={"llm": kind(), "instruction": "Which?"}),
        Prompt("Shaped", inputs={"prompts": rows["text"]}, args={"llm": kind(), "parse": number}),
    ]
    for step in steps:
        assert sorted(step.errors) == [0, 1]
        assert "MAYBE" in str(step.errors[0]), "the rejected answer is part of the second prompt"
