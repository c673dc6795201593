from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error, prompt_of

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, OverBudget
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models import LLM, Answer, HFTransformers, OpenAI, ParallelLLM, Request


class Batches(LLM):
    """Answers batches in 20 ms, and records them."""

    model_name = "batches"

    def __init__(self, fits: int = 1_000) -> None:
        super().__init__()
        self.fits = fits
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def answer_batch(self, requests: Sequence[Request]) -> Sequence[Answer]:
        self.threads.add(threading.get_ident())
        if len(requests) > self.fits:
            raise MemoryError("too many")
        self.batches.append(len(requests))
        time.sleep(0.02)
        return [Answer([f"<{request.prompt}>"] * request.sampling.n) for request in requests]

    def identity(self) -> dict[str, Any]:
        return {}


class Slow(LLM):
    """Answers two requests at a time, each in `seconds`."""

    model_name = "slow"
    default_concurrency = 2

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.answered = self.at_once = self.most_at_once = 0
        self.ended = False

    async def answer(self, request: Request) -> Answer:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.seconds)
        self.at_once -= 1
        self.answered += 1
        return Answer([f"<{request.prompt}>"])

    async def end_run(self) -> None:
        self.ended = True

    def identity(self) -> dict[str, Any]:
        return {}


PROMPTS = [f"q{number}" for number in range(60)]
SAID = [f"<{prompt}>" for prompt in PROMPTS]


def test_models_that_take_batches_share_the_prompts_and_keep_their_order(tmp_path: Path) -> None:
    one, other = Batches(), Batches()
    llm = ParallelLLM(one, other)
    llm.cache_folder_path = tmp_path
    assert llm.run(PROMPTS, batch_size=20) == SAID
    assert sum(one.batches) + sum(other.batches) == 60
    assert min(sum(one.batches), sum(other.batches)) >= 15
    assert max(one.batches + other.batches) >= 5  # not one by one
    assert llm.run(PROMPTS, batch_size=20) == SAID
    assert sum(one.batches) + sum(other.batches) == 60  # cached


def test_a_faster_model_gets_more_and_none_more_than_it_takes_at_once(tmp_path: Path) -> None:
    slow, fast = Slow(0.04), Slow(0.004)
    llm = ParallelLLM(slow, fast)
    llm.cache_folder_path = tmp_path
    assert llm.default_concurrency == 4
    assert llm.run(PROMPTS) == SAID
    assert fast.answered > 2 * slow.answered > 0
    assert (slow.most_at_once, fast.most_at_once) == (2, 2)
    assert (slow.ended, fast.ended) == (True, True)


def test_kinds_mix_and_memory_that_runs_out_halves_a_batch(tmp_path: Path) -> None:
    small, slow = Batches(fits=3), Slow(0.01)
    llm = ParallelLLM(small, slow)
    llm.cache_folder_path = tmp_path
    assert llm.run(PROMPTS) == SAID
    assert 1 <= max(small.batches) <= 3
    assert slow.answered > 0
    full = ParallelLLM(Batches(fits=0))
    (answer,) = full.answers(["a"])
    assert "Memory ran out with this prompt alone" in str(answer.error)


def test_what_one_server_refuses_for_now_is_sent_again(tmp_path: Path) -> None:
    def busy(body: dict[str, Any], before: int) -> Reply:
        return error(429, "slow down", headers={"retry-after": "0.01"})

    with FlakyServer(busy) as limited, FlakyServer() as server:
        servers = [OpenAI("m", base_url=each.url, api_key="k") for each in (limited, server)]
        llm = ParallelLLM(*servers)
        llm.cache_folder_path = tmp_path
        assert llm.run(["a", "b"], concurrency=1) == ["echo: a", "echo: b"]
        assert fingerprint(llm) != fingerprint(servers[0])


@pytest.mark.parametrize(
    "reply",
    [
        Reply(""),
        Reply(body=b"<html>"),
        error(400, "maximum context length is 10", code="context_length_exceeded"),
        error(400, "content filtered"),
    ],
    ids=["empty", "html", "too-long", "refused"],
)
def test_what_one_model_fails_at_is_answered_by_another(reply: Reply, caplog: pytest.LogCaptureFixture) -> None:
    prompts = PROMPTS[:30]
    with FlakyServer(lambda body, before: reply) as broken, FlakyServer() as server:
        models = [OpenAI(name, base_url=each.url, api_key="k") for name, each in (("bad", broken), ("m", server))]
        for model in models:
            model.retry_seconds = 0.001
        found = list(ParallelLLM(*models).answers(prompts, concurrency=8))
        assert [answer.text for answer in found] == [f"echo: {prompt}" for prompt in prompts]
        assert broken.seen
        assert max((broken.seen + server.seen).values()) == 2  # each model once
    assert caplog.text.count("OpenAI (bad) fails at a prompt, which another model gets") == 1


def test_what_all_models_fail_at_fails_with_the_error_of_one_and_equal_models_are_not_asked_for_it() -> None:
    with FlakyServer(lambda body, before: error(400, "no") if prompt_of(body) == "q1" else Reply("fine")) as server:
        one, other = (OpenAI("m", base_url=server.url, api_key=key) for key in "ab")
        different = OpenAI("different", base_url=server.url, api_key="c")
        found = list(ParallelLLM(one, other).answers(PROMPTS[:3]))
        assert [str(answer.error)[-3:] if answer.error else None for answer in found] == [None, "no.", None]
        assert server.seen["q1"] == 1
        found = list(ParallelLLM(one, different).answers(PROMPTS[:3]))
        assert [answer.error is None for answer in found] == [True, False, True]
        assert server.seen["q1"] == 3


def test_a_prompt_without_memory_on_one_device_goes_to_another_and_a_wrong_member_is_named() -> None:
    llm = ParallelLLM(Batches(fits=0), Slow(0.001))
    assert llm.run(PROMPTS[:8]) == SAID[:8]

    class Wrong(Batches):
        model_name = "wrong"

        def __init__(self, answer: Callable[[], Any]) -> None:
            super().__init__()
            self.say = answer

        def answer_batch(self, requests: Sequence[Request]) -> Any:
            return self.say()

    def ends() -> Any:
        raise StopIteration

    for answer, match in ((ends, "raised StopIteration"), (list, "returned 0 answers"), (lambda: ["x"], "'x'")):
        with pytest.raises((DefinitionError, RuntimeError), match=rf"Wrong \(wrong\).*{match}"):
            ParallelLLM(Wrong(answer)).run(["a"])


def test_the_same_model_twice_has_the_answers_of_one(tmp_path: Path) -> None:
    with FlakyServer() as server:
        one, other = (OpenAI("m", base_url=server.url, api_key=key, cache_folder_path=tmp_path) for key in "ab")
        llm = ParallelLLM(one, other)
        assert fingerprint(llm) == fingerprint(one)
        assert llm.run(PROMPTS) == [f"echo: {prompt}" for prompt in PROMPTS]
        assert {header["authorization"] for header in server.headers} == {"Bearer a", "Bearer b"}
        assert one.run(PROMPTS) == [f"echo: {prompt}" for prompt in PROMPTS]
        assert len(server.requests) == 60
        assert b"Bearer" not in pickle.dumps(llm)
        with pytest.raises(DefinitionError, match="logit_bias"):
            llm.run(["a"], logit_bias={1: 1_000.0})


def test_each_keeps_its_own_budget(tmp_path: Path) -> None:
    with FlakyServer() as server:
        options: dict[str, Any] = {"base_url": server.url, "prices": {"input": 1.0, "output": 1.0}}
        poor = OpenAI("m", api_key="a", budget="0.00001 USD", **options, cache_folder_path=tmp_path)
        rich = OpenAI("m", api_key="b", budget="1 USD", **options, cache_folder_path=tmp_path)
        assert ParallelLLM(rich).run(["a"], max_new_tokens=5) == ["echo: a"]
        with pytest.raises(OverBudget, match="too small for one request"):
            ParallelLLM(poor).run(["b"], max_new_tokens=500)
    assert [header["authorization"] for header in server.headers] == ["Bearer b"]


def test_a_model_whose_budget_is_used_up_leaves_the_rest_to_the_others(tmp_path: Path) -> None:
    with FlakyServer() as server:
        options: dict[str, Any] = {"base_url": server.url, "prices": {"input": 1.0, "output": 100.0}}
        poor = OpenAI("m", api_key="a", budget="0.002 USD", **options)
        llm = ParallelLLM(poor, OpenAI("other", api_key="b", budget="1 USD", **options))
        prompts = [f"prompt {index}" for index in range(40)]
        with DataDreamer(tmp_path, verbose=False):
            assert llm.run(prompts, max_new_tokens=5) == [f"echo: {prompt}" for prompt in prompts]
            assert set(server.seen.values()) == {1}
        keys = [header["authorization"] for header in server.headers]
        assert 0 < keys.count("Bearer a") < 20


def test_two_transformers_models_answer_as_one_does(tiny_causal_lm: Path, tmp_path: Path) -> None:
    models = [HFTransformers(str(tiny_causal_lm), cache_folder_path=tmp_path / str(index)) for index in range(2)]
    prompts = ["The cat sat on", "A dog", "The sun"]
    assert ParallelLLM(*models).run(prompts, max_new_tokens=5) == models[1].run(prompts, max_new_tokens=5)


def test_it_takes_llms_alone_and_at_least_one() -> None:
    with pytest.raises(DefinitionError, match="at least one"):
        ParallelLLM()
    with pytest.raises(ArgumentTypeError, match="takes LLMs"):
        ParallelLLM(Batches(), "gpt-5")  # type: ignore[arg-type]

    class Old(LLM):
        def run(self, prompts: Any, **options: Any) -> Any:
            return []

    with pytest.raises(ArgumentTypeError, match="answer or answer_batch"):
        ParallelLLM(Old())


def test_it_has_what_all_of_them_have() -> None:
    short, long = Batches(), Batches()
    short.max_context_length, long.max_context_length = 50, 80
    llm = ParallelLLM(long, short)
    assert llm.get_max_context_length(10) == 40
    assert llm.display_name == "ParallelLLM (Batches (batches), Batches (batches))"
