from __future__ import annotations

import json
import logging
import os
import pickle
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion, error, prompt_of
from warm import WarmProcess

from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    PromptTooLong,
    Unavailable,
    UnknownModel,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models import LLM, MistralAI, Ollama, OpenAI
from datadreamer_like.storage.answers import AnswerStore

PROMPTS = [f"prompt {number}" for number in range(40)]


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(autouse=True)
def _quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LLM, "retry_seconds", 0.005)


def client(server: FlakyServer, folder: Path, **options: Any) -> OpenAI:
    return OpenAI("m", base_url=server.url, cache_folder_path=folder, **options)


def echoes(prompts: list[str]) -> list[str]:
    return [f"echo: {prompt}" for prompt in prompts]


# Against a real server with a real model


@pytest.fixture(scope="module")
def llama_url(smollm_gguf: Path) -> Iterator[str]:
    import xllamacpp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm_gguf)
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads, params.port, params.verbosity = 1_024, 2, 1, port, 0
    server = xllamacpp.Server(params)
    yield f"http://127.0.0.1:{port}/v1"
    del server


def test_a_real_server_answers_in_words_with_usage(llama_url: str, tmp_path: Path) -> None:
    llm = OpenAI("smollm", base_url=llama_url, cache_folder_path=tmp_path)
    prompts = ["What is the capital of France?", "Name a colour."]
    paris, colour = llm.answers(prompts, max_new_tokens=24, concurrency=2)
    assert len(str(paris.text).split()) > 2
    assert colour.text
    assert paris.prompt_tokens > 5
    assert 1 <= paris.completion_tokens <= 24
    assert set(paris.finish_reasons) <= {"stop", "length"}
    assert llm.run(prompts, max_new_tokens=24, cache_only=True) == [paris.text, colour.text]


def test_a_real_server_gives_n_samples_with_log_probabilities(llama_url: str, tmp_path: Path) -> None:
    llm = OpenAI("smollm", base_url=llama_url, cache_folder_path=tmp_path)
    (answer,) = llm.answers(["Name an animal."], n=3, max_new_tokens=6, top_p=1.0, top_logprobs=4, seed=5)
    assert len(answer.texts) == 3
    assert len(set(answer.texts)) > 1
    assert answer.logprobs is not None
    for text, tokens in zip(answer.texts, answer.logprobs, strict=True):
        assert "".join(token.token for token in tokens).strip().startswith(str(text).strip())
        for token in tokens:
            assert token.logprob <= 0
            assert len(token.top) == 4
            assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)


def test_a_real_server_refuses_an_over_long_prompt_and_the_others_are_answered(llama_url: str, tmp_path: Path) -> None:
    llm = OpenAI("smollm", base_url=llama_url, cache_folder_path=tmp_path)
    before, long, after = llm.answers(["Say hi.", "long " * 2_000, "Say bye."], max_new_tokens=4)
    assert before.text
    assert after.text
    assert isinstance(long.error, PromptTooLong)
    assert "2031" in str(long.error)


def test_a_real_server_honours_a_json_schema(llama_url: str, tmp_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}},
        "required": ["city"],
        "additionalProperties": False,
    }
    llm = OpenAI("smollm", base_url=llama_url, cache_folder_path=tmp_path)
    (text,) = llm.run(["The capital of France, as JSON."], schema=schema, max_new_tokens=40)
    assert set(json.loads(text)) == {"city"}


def test_the_context_window_is_what_the_server_says(llama_url: str, tmp_path: Path) -> None:
    llm = OpenAI("smollm", base_url=llama_url, cache_folder_path=tmp_path)
    assert llm.get_max_context_length(max_new_tokens=100) == 512 - 100
    prompt = llm.format_prompt(100, "Sort these.", ["word " * 20] * 100, "Begin.")
    assert 3 < prompt.count("\n") < 100
    (answer,) = llm.answers([prompt], max_new_tokens=2)
    assert answer.error is None
    llm.unload_model()


# What a healthy server does not do


def test_429_is_waited_out_as_retry_after_says_and_requests_grow_fewer(tmp_path: Path) -> None:
    arrived: list[float] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        arrived.append(time.monotonic())
        if len(arrived) <= 4:
            return error(429, "slow down", headers={"retry-after": "0.5"})
        return Reply("fine", seconds=0.01)

    with FlakyServer(behave) as server:
        assert client(server, tmp_path).run(PROMPTS, concurrency=4) == ["fine"] * 40
    assert arrived[4] - arrived[3] >= 0.45
    assert sum(server.seen.values()) == 44


@pytest.mark.parametrize(
    "trouble",
    [
        error(500, "oops"),
        error(503, "busy", headers={"retry-after": "0"}),
        error(408, "slow"),
        error(409, "conflict"),
        Reply(status=502, body=b"<html>bad gateway</html>", headers={"content-type": "text/html"}),
        Reply(drop=True),
        Reply(seconds=30),
        Reply(body=b'{"id": "x", "choi'),
        Reply(body=b'{"id": "x", "choi', headers={"content-length": "500"}, close=True),
        Reply(body=b'{"id": "x"}'),
        Reply(body=b"[1, 2]"),
        Reply(body=b"<html>hello</html>", headers={"content-type": "text/html"}),
        Reply(choices=0),
        Reply(body=b'{"choices": [{}]}'),
        Reply(body=b'{"choices": ["x"]}'),
    ],
    ids=[
        "500", "503", "408", "409", "502", "drop", "hang", "cut", "closed", "empty", "list", "html", "no-choices",
        "no-message", "text-choice",
    ],
)  # fmt: skip
def test_trouble_that_passes_is_retried_and_every_row_answered(trouble: Reply, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return (
            trouble if before == 0 and int(prompt_of(body).split()[1]) % 4 == 1 else Reply(f"echo: {prompt_of(body)}")
        )

    with FlakyServer(behave) as server:
        assert client(server, tmp_path, timeout=3.0).run(PROMPTS) == echoes(PROMPTS)
    assert sum(server.seen.values()) == 50


def test_trouble_that_stays_fails_its_row_alone_and_is_sent_again_by_the_next_run(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return error(500, "poison") if prompt_of(body) == "prompt 3" else Reply(f"echo: {prompt_of(body)}")

    expected: list[Any] = echoes(PROMPTS)
    expected[3] = None
    with FlakyServer(behave) as server:
        llm = client(server, tmp_path)
        llm.max_tries = 3
        usage = Usage()
        with counting(usage):
            answers = list(llm.answers(PROMPTS))
        assert [answer.text for answer in answers] == expected
        assert server.seen["prompt 3"] == 3
        assert [index for index, answer in enumerate(answers) if answer.error is not None] == [3]
        assert "poison" in str(answers[3].error)
        assert (usage.prompt_tokens, usage.completion_tokens) == (39 * 3, 39 * 2)
        assert llm.run(PROMPTS) == expected
        assert sum(server.seen.values()) == 39 + 6


@pytest.mark.parametrize("words", ["not allowed (request id: {}), n {}", "not allowed {}{}"])
def test_a_refusal_of_every_request_ends_the_run_whatever_ids_are_in_it(words: str, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return error(400, words.format(uuid.uuid4(), len(prompt_of(body))))

    with FlakyServer(behave) as server:
        with pytest.raises(BadRequest, match="The first 20 requests have all been refused in the same words"):
            client(server, tmp_path).run([f"prompt {number}" for number in range(200)])
        assert sum(server.seen.values()) < 100


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (error(401, "Incorrect API key provided: sk-secret-123456.", code="invalid_api_key"), AuthenticationFailed),
        (error(403, "not for you"), AuthenticationFailed),
        (error(429, "no credit", code="insufficient_quota"), AuthenticationFailed),
        (error(404, "no such model", code="model_not_found"), UnknownModel),
    ],
)
def test_what_no_retry_can_mend_ends_the_run_at_once(reply: Reply, kind: type[ModelError], tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: reply) as server:
        llm = client(server, tmp_path, api_key="sk-secret-123456")
        with pytest.raises(kind) as caught:
            llm.run((f"{number}" for number in range(100_000)), concurrency=4)
    assert sum(server.seen.values()) <= 4
    assert "secret" not in str(caught.value)


def test_no_server_at_all_is_said_and_not_tried_a_million_times(tmp_path: Path) -> None:
    llm = OpenAI("m", base_url="http://127.0.0.1:9/v1", cache_folder_path=tmp_path)
    llm.max_tries = 2
    with pytest.raises(Unavailable, match="127.0.0.1:9"):
        llm.run((f"{number}" for number in range(1_000_000)), concurrency=3)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(None, finish_reason="content_filter"), ModelError, "content filter"),
        (Reply(None, finish_reason="length"), ModelError, "max_new_tokens"),
        (error(400, "flagged", code="content_policy_violation"), BadRequest, "flagged"),
        (error(400, "This model's maximum context length is 10 tokens"), PromptTooLong, "context window"),
        (error(413, "huge"), PromptTooLong, "huge"),
        (error(422, "odd"), BadRequest, "odd"),
    ],
)
def test_a_row_without_text_is_kept_with_its_error_and_never_ends_the_run(
    reply: Reply, kind: type[ModelError], said: str, tmp_path: Path
) -> None:
    with FlakyServer(lambda body, before: reply if prompt_of(body) == "bad" else Reply("fine")) as server:
        good, bad, also_good = client(server, tmp_path).answers(["good", "bad", "also good"])
    assert (good.text, bad.text, also_good.text) == ("fine", None, "fine")
    assert type(bad.error) is kind
    assert said in str(bad.error)
    assert server.seen["bad"] == 1


def test_an_empty_answer_is_asked_for_again_however_often_the_request_had_failed_before(tmp_path: Path) -> None:
    replies = [error(500, "oops")] * 3 + [Reply(""), Reply(""), Reply("fine")]
    with FlakyServer(lambda body, before: replies[before]) as server:
        assert client(server, tmp_path).run(["a"]) == ["fine"]
        assert server.seen["a"] == 6


@pytest.mark.parametrize(
    "odd",
    [
        {"usage": {"prompt_tokens": "3", "completion_tokens": None}},
        {"usage": [1]},
        {"usage": "none"},
        {"usage": {"prompt_tokens": 1e999, "completion_tokens": -1, "prompt_tokens_details": {"cached_tokens": "1"}}},
        {"finish_reason": {"type": "stop"}},
        {"finish_reason": 0},
    ],
    ids=str,
)
def test_odd_facts_next_to_a_text_cost_no_answer(odd: dict[str, Any], tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        whole = completion(Reply("fine"), body)
        whole["usage"] = odd.get("usage", whole["usage"])
        whole["choices"][0]["finish_reason"] = odd.get("finish_reason", "stop")
        return Reply(body=json.dumps(whole).encode())

    with FlakyServer(behave) as server:
        assert client(server, tmp_path).run(PROMPTS[:3]) == ["fine"] * 3
    assert len(server.requests) == 3


@pytest.mark.parametrize("text", ["", None])
def test_an_answer_without_a_text_is_asked_for_again_and_paid_for_until_its_row_fails(
    text: str | None, tmp_path: Path
) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return Reply(text) if prompt_of(body) == "never" or before == 0 else Reply("at last")

    with FlakyServer(behave) as server, counting(usage := Usage()):
        late, never = client(server, tmp_path).answers(["late", "never"])
    assert (late.text, late.error, never.text) == ("at last", None, None)
    assert isinstance(never.error, MalformedAnswer)
    assert server.seen == {"late": 2, "never": 3}
    assert (usage.prompt_tokens, usage.completion_tokens) == (5 * 3, 5 * 2)


def test_a_text_with_half_a_character_can_be_written_to_a_file(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply("ok \ud83d 🤖")) as server:
        (text,) = client(server, tmp_path).run(["a"])
    assert text.encode() == "ok \ufffd 🤖".encode()


# Scheduling


def test_every_slot_is_kept_busy_when_latencies_vary(tmp_path: Path) -> None:
    latencies = random.Random(0)
    shares = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        if sum(server.seen.values()) == 130:
            shares.append(server.mean_at_once() / 10)
        return Reply("fine", seconds=latencies.expovariate(1 / 0.15))

    with FlakyServer(behave) as server:
        client(server, tmp_path).run([f"{number}" for number in range(150)], concurrency=10)
    assert server.most_at_once == 10
    # Batches of ten would keep a third of the slots busy: the slowest of ten such latencies is three times their mean.
    assert shares[0] >= 0.6


def test_the_server_never_sees_more_at_once_than_was_asked_for(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply("fine", seconds=0.02)) as server:
        client(server, tmp_path).run(PROMPTS, concurrency=3)
    assert server.most_at_once == 3


_KILLED = """
import sys
from datadreamer_like.models import OpenAI
llm = OpenAI("m", base_url=sys.argv[1], cache_folder_path=sys.argv[2])
for text in llm.run((f"prompt {n}" for n in range(200)), concurrency=8, return_generator=True):
    print(text, flush=True)
"""


def started(folder: Path, server: FlakyServer) -> WarmProcess:
    (folder / "script.py").write_text(_KILLED)
    return WarmProcess(folder / "script.py", [server.url, str(folder)], dict(os.environ), folder)


def test_a_run_killed_again_and_again_repeats_no_more_than_was_under_way(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return Reply(f"echo: {prompt_of(body)}", seconds=0.02)

    kill_after = random.Random(1)
    output, under_way = "", 0
    with FlakyServer(behave) as server:
        for _ in range(3):
            process = started(tmp_path, server)
            wanted = sum(server.seen.values()) + kill_after.randint(20, 50)
            while sum(server.seen.values()) < wanted and process.poll() is None:
                time.sleep(0.005)
            process.kill()
            process.communicate()
            under_way += 8
        process = started(tmp_path, server)
        output, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    assert output.splitlines() == echoes([f"prompt {number}" for number in range(200)])
    assert sum(server.seen.values()) - 200 <= under_way


def test_two_processes_share_one_store(tmp_path: Path) -> None:
    with FlakyServer(lambda body, before: Reply(f"echo: {prompt_of(body)}", seconds=0.005)) as server:
        both = [started(tmp_path, server) for _ in range(2)]
        outputs = [process.communicate(timeout=200)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0]
        assert outputs[0].splitlines() == outputs[1].splitlines() == echoes([f"prompt {n}" for n in range(200)])
        asked = sum(server.seen.values())
        client(server, tmp_path).run([f"prompt {number}" for number in range(200)])
        assert sum(server.seen.values()) == asked
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


def test_clients_and_threads_are_gone_when_a_run_ends(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = client(server, tmp_path)
        llm.run(PROMPTS)
        assert llm._clients == {}
        texts = llm.run((f"other {number}" for number in range(10_000)), return_generator=True)
        next(texts)
        texts.close()
        assert llm._clients == {}
        assert not any(thread.name == "datadreamer_like-requests" for thread in threading.enumerate())


# Requests


def test_a_request_says_what_was_asked_and_no_more(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = client(server, tmp_path, system_prompt="Be brief.")
        llm.run(["a"])
        llm.run(
            [[{"role": "system", "content": "Be long."}, {"role": "user", "content": "b"}]],
            max_new_tokens=7, temperature=0.5, top_p=0.9, stop=["x", "y"], seed=3, logit_bias={5: -1.0},
            repetition_penalty=1.2, presence_penalty=0.1, top_logprobs=0, response_format={"type": "json_object"},
        )  # fmt: skip
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}]
    assert server.requests[0] == {"model": "m", "messages": messages, "temperature": 0.0}
    assert server.requests[1] == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be long."}, {"role": "user", "content": "b"}],
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "stop": ["x", "y"], "seed": 3, "logit_bias": {"5": -1.0},
        "repetition_penalty": 1.2, "repeat_penalty": 1.2, "presence_penalty": 0.1, "logprobs": True,
        "response_format": {"type": "json_object"},
    }  # fmt: skip


@pytest.mark.parametrize("refusing", [False, True])
def test_n_answers_come_one_by_one_from_a_server_without_n(refusing: bool, tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        if refusing and "n" in body:
            return error(400, "no n", param="n", code="unsupported_parameter")
        return Reply(f"{before}", choices=1)

    with FlakyServer(behave) as server:
        (texts,) = client(server, tmp_path).run(["a"], n=3, top_p=1.0, seed=5)
    assert len(texts) == 3
    assert [body["seed"] for body in server.requests][-3:] == ([5, 6, 7])
    assert sum(server.seen.values()) == 3 + refusing


def test_a_parameter_that_the_model_does_not_take_is_left_out_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        for name in ("max_tokens", "temperature"):
            if name in body:
                return error(400, f"Unsupported: {name}", param=name, code="unsupported_parameter")
        return Reply("fine")

    with FlakyServer(behave) as server, caplog.at_level(logging.WARNING, "datadreamer_like"):
        llm = client(server, tmp_path)
        assert llm.run(PROMPTS, max_new_tokens=5, concurrency=4) == ["fine"] * 40
        assert sum(server.seen.values()) <= 40 + 2 * 4
        assert server.requests[-1]["max_completion_tokens"] == 5
        assert [record.message for record in caplog.records if "temperature" in record.message] == [
            "OpenAI (m) does not support temperature=0.0; it is left out, and the default applies."
        ]


# Identity and secrets


def test_what_decides_an_answer_is_in_the_fingerprint_and_the_key_is_not() -> None:
    def of(**options: Any) -> str:
        return fingerprint(OpenAI(**{"model_name": "m", "base_url": "http://a/v1", "api_key": "k", **options}))

    same = of()
    assert of(api_key="other") == of(timeout=3.0) == of(retry_on_fail=False) == of(organization="o") == same
    assert of(base_url="http://user:password@a/v1/?key=k") == same
    others = [of(model_name="m2"), of(base_url="http://b/v1"), of(system_prompt="s"), of(system_prompt="")]
    assert len({same, *others}) == 5


def test_another_system_prompt_or_server_is_another_question(tmp_path: Path) -> None:
    with FlakyServer() as server, FlakyServer() as other:
        client(server, tmp_path).run(["a"])
        client(server, tmp_path).run(["a"])
        assert server.seen == {"a": 1}
        client(server, tmp_path, system_prompt="Be brief.").run(["a"])
        client(other, tmp_path).run(["a"])
        assert (server.seen, other.seen) == ({"a": 2}, {"a": 1})


def test_the_key_comes_from_the_environment_reaches_the_server_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG, "datadreamer_like")
    reply = error(400, "bad request with sk-very-secret")
    with FlakyServer(lambda body, before: reply if before else Reply("fine")) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        llm = OpenAI("m", cache_folder_path=tmp_path)
        answers = list(llm.answers(["a", "b", "a"], temperature=1.0, top_p=1.0))
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    written = files + pickle.dumps(llm) + repr(llm).encode() + repr(answers).encode() + caplog.text.encode()
    assert sorted(answer.error is None for answer in answers) == [False, True, True]  # of the equal ones, either
    assert b"very-secret" not in written
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("OPENAI_BASE_URL")
    explicit = OpenAI("m", api_key="sk-very-secret")
    assert b"very-secret" not in pickle.dumps(explicit)


def test_a_missing_key_is_said_at_construction_unless_the_server_is_ones_own() -> None:
    with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
        OpenAI("gpt-5-mini")
    assert OpenAI("m", base_url="http://localhost:1/v1").display_name == "OpenAI (m)"


def test_a_pickled_llm_answers(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = client(server, tmp_path)
        assert llm.client.base_url.port == server.port
        llm.run(["a"])
        again = pickle.loads(pickle.dumps(llm))
        assert again.run(["a"], cache_only=True) == ["echo: a"]
        assert again.run(["b"]) == ["echo: b"]
        llm.unload_model()


def test_openais_own_api_has_a_known_window() -> None:
    llm = OpenAI("gpt-5-mini", api_key="k")
    assert llm.get_max_context_length(1_000) == 127_000
    assert OpenAI("m", api_key="k", max_context_length=50).get_max_context_length(10) == 40


def test_answers_are_stored_before_the_next_request_of_their_slot(tmp_path: Path) -> None:
    stored_when_asked: list[int] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        paths = list(tmp_path.glob("*.sqlite"))
        with AnswerStore(paths[0]) as store:
            stored_when_asked.append(len(store))
        return Reply("fine")

    with FlakyServer(behave) as server:
        client(server, tmp_path).run(PROMPTS, concurrency=1)
    assert stored_when_asked == list(range(40))


def test_an_address_without_http_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="base_url is 'localhost:8080/v1'; it must start with http"):
        OpenAI("m", base_url="me:secret@localhost:8080/v1?key=secret", cache_folder_path=tmp_path)


def test_an_address_or_a_name_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ArgumentTypeError, match="base_url must be a text, not int"):
        OpenAI("m", base_url=8080)  # type: ignore[arg-type]
    for llm in (OpenAI, MistralAI, Ollama):
        with pytest.raises(ArgumentTypeError, match="model_name must be a text.*NoneType"):
            llm(None, api_key="k")
        with pytest.raises(DefinitionError, match="model_name is empty"):
            llm(" ", api_key="k")


def test_one_text_in_place_of_a_list_of_prompts_is_refused(tmp_path: Path) -> None:
    llm = OpenAI("m", base_url="http://localhost:9/v1", cache_folder_path=tmp_path)
    with pytest.raises(ArgumentTypeError, match="prompts is one text, 'abc'"):
        llm.run("abc")
    for wrong in (None, {"prompt": "abc"}, 5):
        with pytest.raises(ArgumentTypeError, match="expected a list of texts"):
            llm.run(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"user": "me"}, {"user": "me"}),
        ({"logprobs": True}, {"logprobs": True}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"logprobs": False}, {}),
    ],
)
def test_options_in_the_protocols_own_spelling(options: dict[str, Any], sent: dict[str, Any], tmp_path: Path) -> None:
    with FlakyServer() as server:
        client(server, tmp_path).run(["one"], **options)
        body = server.requests[0]
    assert {name: body[name] for name in ("user", "logprobs", "top_logprobs") if name in body} == sent


INVALID: list[dict[str, Any]] = [
    {"logit_bias": {5: float("inf")}}, {"logit_bias": {5: 101}}, {"logit_bias": {5: float("nan")}}, {"seed": 2**63},
    {"seed": float("inf")}, {"max_new_tokens": 2**31}, {"max_new_tokens": 0}, {"n": 0}, {"n": True}, {"n": 1.5},
    {"stop": "\ud83d"}, {"stop": ["a", 1]}, {"concurrency": 10**8}, {"temperature": float("nan")}, {"top_p": -0.1},
    {"repetition_penalty": -1}, {"repetition_penalty": float("inf")}, {"presence_penalty": 3}, {"top_logprobs": -1},
    {"extra_body": {"x": float("nan")}}, {"extra_body": {"x": {1, 2}}},
]  # fmt: skip


@pytest.mark.parametrize("options", INVALID, ids=str)
def test_an_option_that_no_engine_takes_is_refused_by_name_and_nothing_is_sent(
    options: dict[str, Any], tmp_path: Path
) -> None:
    with FlakyServer() as server:
        with pytest.raises(DefinitionError, match=next(iter(options))):
            client(server, tmp_path).run(["one", "two"], **options)
        assert not server.requests


@pytest.mark.parametrize("prompt", ["half \ud83d", [{"role": "user", "content": "\udc00"}]])
def test_a_prompt_with_half_a_surrogate_fails_alone_and_is_not_sent(prompt: Any, tmp_path: Path) -> None:
    with FlakyServer() as server:
        answers = list(client(server, tmp_path).answers([prompt, "nul \0 and \x1b are text"]))
        assert isinstance(answers[0].error, BadRequest)
        assert answers[1].text == "echo: nul \0 and \x1b are text"
        assert len(server.requests) == 1


def test_a_server_without_a_list_of_models_has_an_unknown_window() -> None:
    with FlakyServer() as server:
        server.models = None
        with pytest.raises(NotImplementedError, match="does not define the length of its context window"):
            OpenAI("m", api_key="k", base_url=server.url).get_max_context_length(10)
