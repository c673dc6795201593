from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_server import EXPIRED, BatchServer
from flaky_server import FlakyServer, Reply, completion, prompt_of
from responses_server import response

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    BadRequest,
    DefinitionError,
    MalformedAnswer,
    ModelError,
    OverBudget,
    StorageError,
)
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models import (
    LLM,
    Anthropic,
    Azure,
    Bedrock,
    Groq,
    MistralAI,
    OpenAI,
    OpenAIResponses,
    ParallelLLM,
)
from datadreamer_like.models.calls.batch_api import BatchAPI, BatchLimits
from datadreamer_like.models.calls.batch_rows import BatchRows
from datadreamer_like.models.calls.budget import worst_case
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.steps import DataSource, Prompt
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger
from datadreamer_like.storage.seals import read_sealed, sealed

# The SDK's client is closed when it is collected, in any order with its sockets.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

PRICES = {"input": 10.0, "output": 100.0}
KINDS = {"openai": OpenAI, "anthropic": Anthropic, "mistral": MistralAI}
KEY = "sk-batch-0123456789abcdef"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BatchAPI, "poll_seconds", 0.01)
    monkeypatch.setattr(LLM, "retry_seconds", 0.005)


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[BatchServer]:
    with BatchServer(request.param) as server:
        yield server


def model(server: BatchServer, folder: Path | None, **options: Any) -> Any:
    given = {"batch": True, "prices": PRICES, **options}
    return KINDS[server.kind]("m", api_key=KEY, base_url=server.url, cache_folder_path=folder, **given)


def prompts(count: int) -> list[str]:
    return [f"question {index}" for index in range(count)]


def echoes(asked: list[str]) -> list[str]:
    return [f"echo: {prompt}" for prompt in asked]


def creations(server: BatchServer) -> int:
    return server.count("POST", "/batches|/batch/jobs|/messages/batches")


def left_in(folder: Path) -> list[Path]:
    return [file for place in folder.glob("*.batches") for file in place.iterdir()]


def test_a_batch_answers_in_order_at_half_the_price_and_shares_its_answers_with_single_requests(
    server: BatchServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [*prompts(20), "question 3"]
    llm = model(server, tmp_path)
    with caplog.at_level(logging.INFO, "datadreamer_like"):
        answers = list(llm.answers(asked, max_new_tokens=50, verbose=True))
    assert [answer.text for answer in answers] == echoes(asked)
    assert creations(server) == 1
    assert server.billed == dict.fromkeys(prompts(20), 1)
    # 3 tokens of a prompt and 2 of an answer.
    assert answers[0].cost == pytest.approx((3 * 10.0 + 2 * 100.0) / 2 / 1e6)
    assert left_in(tmp_path) == []
    assert "submitted batch" in caplog.text
    assert "0 of 20 requests done" in caplog.text
    # Another model and another process, without batches.
    plain = model(server, tmp_path, batch=False)
    assert fingerprint(plain) == fingerprint(llm)
    assert plain.run(asked, max_new_tokens=50, cache_only=True) == echoes(asked)
    assert model(server, tmp_path).run(asked, max_new_tokens=50) == echoes(asked)
    assert creations(server) == 1


def test_a_step_with_batches_is_found_again_without_them(tmp_path: Path) -> None:
    def run(batch: bool, server: BatchServer) -> Any:
        with DataDreamer(tmp_path, verbose=False):
            llm = OpenAI("m", api_key=KEY, base_url=server.url, batch=batch)
            rows = DataSource("Rows", data={"p": prompts(5)})
            return Prompt("Ask", inputs={"prompts": rows.output["p"]}, args={"llm": llm}).output["generations"]

    with BatchServer("openai") as server:
        assert list(run(True, server)) == echoes(prompts(5))
        requests = len(server.requests)
        assert list(run(False, server)) == echoes(prompts(5))
        assert len(server.requests) == requests
        for file in tmp_path.rglob("*"):
            assert file.is_dir() or KEY.encode() not in file.read_bytes()


def test_each_of_n_answers_and_each_repetition_is_asked_for_with_its_seed(server: BatchServer, tmp_path: Path) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        if server.kind == "anthropic":
            answer = server.echo(body)
            answer["content"][0]["text"] = f"{prompt_of(body)} {before}"
            return answer
        seed = body["random_seed" if server.kind == "mistral" else "seed"]
        answer = completion(Reply(), body)
        for index, choice in enumerate(answer["choices"]):
            choice["message"]["content"] = f"{prompt_of(body)} {seed + index - 7}"
        return answer

    server.fate = fate
    found = model(server, tmp_path).run(["a", "b", "a"], n=2, seed=7, temperature=1.0, top_p=1.0)
    assert [sorted(texts) for texts in (found[0] + found[2], found[1])] == [
        ["a 0", "a 1", "a 2", "a 3"],
        ["b 0", "b 1"],
    ]
    if server.kind != "anthropic":
        assert found == [["a 0", "a 1"], ["b 0", "b 1"], ["a 2", "a 3"]]


def test_a_server_that_gives_one_of_n_answers_is_asked_for_the_others(tmp_path: Path) -> None:
    with BatchServer("openai", lambda body, before: completion(Reply(f"{before}", choices=1), body)) as server:
        assert model(server, tmp_path).run(["a"], n=3, temperature=1.0, top_p=1.0) == [["0", "1", "2"]]
    assert [len(job.lines) for job in server.jobs] == [1, 2]
    assert left_in(tmp_path) == []


def test_an_answer_that_does_not_fit_a_schema_is_asked_for_again(server: BatchServer, tmp_path: Path) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        follows_up = len([message for message in body["messages"] if message["role"] == "assistant"])
        text = json.dumps({"age": 3 if follows_up or prompt_of(body) == "good" else "three"})
        answer = server.echo(body)
        if server.kind == "anthropic":
            answer["content"] = [{"type": "text", "text": text}]
        else:
            answer["choices"][0]["message"]["content"] = text
        return answer

    server.fate = fate
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    found = model(server, tmp_path).run(["good", "bad"], schema=schema)
    assert [json.loads(text) for text in found] == [{"age": 3}, {"age": 3}]
    assert [len(job.lines) for job in server.jobs] == [2, 1]


def error_of(kind: str, status: int, words: str) -> tuple[int, Any]:
    named = {400: "invalid_request_error", 529: "overloaded_error", 401: "authentication_error"}[status]
    said = {"message": words, "type": named}
    return status, said if kind == "anthropic" else {"error": {**said, "param": None, "code": None}}


def test_rows_that_failed_keep_their_error_or_are_asked_again_and_expired_ones_too(
    server: BatchServer, tmp_path: Path
) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        prompt = prompt_of(body)
        if prompt == "question 1":
            return error_of(server.kind, 400, "The messages are not fine.")
        if prompt in ("question 2", "question 3") and not before:
            return EXPIRED if prompt == "question 2" else error_of(server.kind, 529, "Overloaded.")
        return EXPIRED if prompt == "question 4" else server.echo(body)

    server.fate = fate
    server.ends = {
        "openai": lambda number: "expired", "mistral": lambda number: "TIMEOUT_EXCEEDED",
        "anthropic": lambda number: "",
    }[server.kind]  # fmt: skip
    answers = list(model(server, tmp_path).answers(prompts(6)))
    texts = ["echo: question 0", None, "echo: question 2", "echo: question 3", None, "echo: question 5"]
    assert [answer.text for answer in answers] == texts
    assert type(answers[1].error) is BadRequest
    assert "The messages are not fine." in str(answers[1].error)
    assert "did not process the prompt in 3 batches" in str(answers[4].error)
    assert [len(job.lines) for job in server.jobs] == [6, 3, 1]
    assert server.billed == {f"question {index}": 1 for index in (0, 2, 3, 5)} | {"question 1": 0, "question 4": 0}


def test_an_empty_answer_is_asked_for_again_and_never_stored(server: BatchServer, tmp_path: Path) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        answer = server.echo(body)
        if prompt_of(body) == "question 0" or (prompt_of(body) == "question 1" and not before):
            if server.kind == "anthropic":
                return {**answer, "content": [{"type": "text", "text": ""}]}
            answer["choices"][0]["message"]["content"] = ""
        return answer

    server.fate = fate
    with counting(Usage()) as usage:
        answers = list(model(server, tmp_path).answers(prompts(3), max_new_tokens=50))
    assert [answer.text for answer in answers] == [None, "echo: question 1", "echo: question 2"]
    assert "empty" in str(answers[0].error)
    assert [len(job.lines) for job in server.jobs] == [3, 2, 1]
    assert usage.completion_tokens == 6 * 2  # empty ones are paid for too
    with pytest.raises(ModelError, match="no cached answer"):
        model(server, tmp_path).run(prompts(1), max_new_tokens=50, cache_only=True)


def test_a_refused_parameter_is_left_out_of_another_batch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        said = {"message": "Unsupported value: temperature", "param": "temperature", "code": "unsupported_parameter"}
        return (400, {"error": said}) if "temperature" in body else server.echo(body)

    with BatchServer("openai", fate) as server:
        assert model(server, tmp_path).run(prompts(4)) == echoes(prompts(4))
    assert [len(job.lines) for job in server.jobs] == [4, 4]
    assert caplog.text.count("does not support temperature") == 1


def test_an_error_that_all_rows_meet_ends_the_run_after_the_answers_are_stored(
    server: BatchServer, tmp_path: Path
) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        bad = prompt_of(body) == "question 0" and not before
        return error_of(server.kind, 401, "invalid key") if bad else server.echo(body)

    server.fate = fate
    with pytest.raises(ModelError, match="refuses the key"):
        model(server, tmp_path).run(prompts(4))
    assert model(server, tmp_path).run(prompts(4)) == echoes(prompts(4))
    assert [len(job.lines) for job in server.jobs] == [4, 1]


def test_a_cancelled_batch_is_one_error_its_answers_are_kept_and_the_next_run_submits_the_others(
    server: BatchServer, tmp_path: Path
) -> None:
    cancelled = {"openai": "cancelled", "mistral": "CANCELLED", "anthropic": "canceled"}[server.kind]
    ends = server.ends
    server.ends = lambda number: ends(number) if number else cancelled
    server.fate = lambda body, before: (
        EXPIRED if not before and prompt_of(body) in ("question 2", "question 3") else server.echo(body)
    )
    with pytest.raises(ModelError, match="was cancelled at the provider: 2 of its 5 prompts have no answer"):
        model(server, tmp_path).run(prompts(5))
    assert model(server, tmp_path).run(prompts(5)) == echoes(prompts(5))
    assert [len(job.lines) for job in server.jobs] == [5, 2]
    assert set(server.billed.values()) == {1}


def test_a_batch_that_is_refused_as_a_whole_is_an_error_with_the_reason(tmp_path: Path) -> None:
    for kind in ("openai", "mistral"):
        with BatchServer(kind) as server:
            server.failure = lambda lines: {"code": "invalid_json_line", "message": "This line is no request."}
            with pytest.raises(BadRequest, match="refuses the batch batch_0 as a whole: This line is no request"):
                model(server, tmp_path / kind).run(prompts(2))
            server.failure = lambda lines: None
            assert model(server, tmp_path / kind).run(prompts(2)) == echoes(prompts(2))


def test_batches_that_the_provider_has_no_room_for_wait_and_are_halved(tmp_path: Path) -> None:
    with BatchServer("openai") as server:
        full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached."}
        server.failure = lambda lines: full if len(lines) > 3 else None
        assert model(server, tmp_path).run(prompts(10)) == echoes(prompts(10))
    assert [len(job.lines) for job in server.jobs][:2] == [10, 5]
    assert sum(len(job.lines) for job in server.jobs if len(job.lines) <= 3) == 10
    assert set(server.billed.values()) == {1}


def test_batches_keep_the_limits_of_rows_and_bytes(server: BatchServer, tmp_path: Path) -> None:
    class SmallBatches(type(model(server, tmp_path).batch_api())):  # type: ignore[misc]
        limits = BatchLimits(4, 3_000)

    class OfSmallBatches(KINDS[server.kind]):  # type: ignore[misc]
        def batch_api(self) -> BatchAPI:
            return SmallBatches(self)

    asked = [*prompts(9), "x" * 1_400, "y" * 1_400, "z" * 5_000]
    llm = OfSmallBatches("m", api_key=KEY, base_url=server.url, cache_folder_path=tmp_path, batch=True)
    found = list(llm.answers(iter(asked)))
    assert [answer.text for answer in found] == [*echoes(asked[:-1]), None]
    assert "a batch takes at most 3,000 bytes in 4 lines" in str(found[-1].error)
    assert sum(len(job.lines) for job in server.jobs) == 11
    assert all(len(job.lines) <= 4 for job in server.jobs)
    if server.kind != "anthropic":
        assert all(len(server.files[job.file][1]) <= 3_000 for job in server.jobs)
    else:
        assert all(sum(len(json.dumps(line)) for line in job.lines) <= 3_000 for job in server.jobs)


@pytest.mark.parametrize("when", ["before", "after"])
def test_lost_connections_make_no_second_batch(server: BatchServer, when: str, tmp_path: Path) -> None:
    lost: set[tuple[str, str]] = set()

    def drop(method: str, path: str) -> str | None:
        if (method, path) in lost:
            return None
        lost.add((method, path))  # each request is lost once
        return when

    server.drop = drop
    assert model(server, tmp_path).run(prompts(3)) == echoes(prompts(3))
    assert len(lost) >= 4
    assert len(server.jobs) == 1
    assert len([name for name, _ in server.files.values() if name.startswith("datadreamer")]) <= 1
    assert set(server.billed.values()) == {1}


def test_a_batch_of_somebody_else_is_not_taken_for_one_whose_id_was_lost(server: BatchServer, tmp_path: Path) -> None:
    model(server, tmp_path / "other").run(["another"] * 3, temperature=1.0, top_p=1.0)
    creates = "/batches|/batch/jobs|/messages/batches"
    server.drop = lambda method, path: "before" if server.count("POST", creates) == 2 and method == "POST" else None
    assert model(server, tmp_path).run(prompts(3)) == echoes(prompts(3))
    assert [len(job.lines) for job in server.jobs] == [3, 3]


def test_a_run_that_was_interrupted_waits_for_the_same_batch_and_takes_what_it_does_not_ask_for(
    server: BatchServer, tmp_path: Path
) -> None:
    server.polls = 10**9
    llm = model(server, tmp_path)
    failed: list[BaseException] = []
    stop = threading.Event()

    def interrupt(method: str, path: str) -> str | None:
        if method == "GET" and creations(server):
            stop.set()
        return None

    server.drop = interrupt

    def run() -> None:
        def asked() -> Iterator[str]:
            yield from prompts(6)

        answers = llm.answers(asked())
        try:
            next(answers)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert stop.wait(10)
    # Another run of the same prompts, while the first one waits: it submits nothing, and waits for the first one.
    found: list[Any] = []
    second = threading.Thread(target=lambda: found.extend(model(server, tmp_path).run(prompts(4))), daemon=True)
    second.start()
    time.sleep(0.3)
    server.polls = 0
    for each in (thread, second):
        each.join(20)
    assert failed == []
    assert found == echoes(prompts(4))
    assert creations(server) == 1
    assert set(server.billed.values()) == {1}


def spent_in(folder: Path) -> float:
    ledger = Ledger(folder / LEDGER_NAME)
    try:
        return ledger.spent() / 1e9
    finally:
        ledger.close()


def test_a_budget_reserves_batches_at_half_the_price_as_many_rows_as_fit(server: BatchServer, tmp_path: Path) -> None:
    llm = model(server, tmp_path, budget="0.05 USD")
    worst = worst_case(llm, Request("question 00", Sampling(max_new_tokens=50))) / 1e9
    assert worst == pytest.approx(
        worst_case(model(server, tmp_path, batch=False), Request("question 00", Sampling(max_new_tokens=50))) / 2e9,
        rel=1e-6,
    )
    fits = int(0.05 / worst)
    asked = [f"question {index:02}" for index in range(2 * fits)]
    assert llm.run(asked, max_new_tokens=50) == echoes(asked)
    assert len(server.jobs[0].lines) == fits
    cost = len(asked) * (3 * 10.0 + 2 * 100.0) / 2 / 1e6
    assert spent_in(tmp_path) == pytest.approx(cost)
    with pytest.raises(OverBudget, match="used up"):
        model(server, tmp_path, budget=f"{cost + worst / 2:.6f} USD").run(["question 99"], max_new_tokens=50)


def test_what_a_batch_may_cost_stays_reserved_while_nobody_waits_for_it_and_is_paid_once(
    server: BatchServer, tmp_path: Path
) -> None:
    server.drop = lambda method, path: "before" if path.endswith(("content", "results")) else None
    failing = model(server, tmp_path, budget="1 USD", retry_on_fail=False)
    with pytest.raises(ModelError):
        failing.run(prompts(3), max_new_tokens=50)
    worst = 3 * worst_case(failing, Request(prompts(1)[0], Sampling(max_new_tokens=50))) / 1e9
    assert spent_in(tmp_path) == pytest.approx(worst)
    other = model(server, tmp_path, budget=f"{worst:.6f} USD")
    with pytest.raises(OverBudget, match="used up"):
        other.run(["something else"], max_new_tokens=50)
    server.drop = lambda method, path: None
    assert model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50) == echoes(prompts(3))
    assert spent_in(tmp_path) == pytest.approx(3 * (3 * 10.0 + 2 * 100.0) / 2 / 1e6)
    assert len(server.jobs) == 1


def test_what_a_batch_that_the_provider_lost_may_cost_stays_counted_as_its_error_says(
    server: BatchServer, tmp_path: Path
) -> None:
    server.drop = lambda method, path: "before" if path.endswith(("content", "results")) else None
    with pytest.raises(ModelError):
        model(server, tmp_path, budget="1 USD", retry_on_fail=False).run(prompts(3), max_new_tokens=50)
    server.drop = lambda method, path: None
    worst = spent_in(tmp_path)
    (state,) = [file for file in left_in(tmp_path) if file.suffix == ".json"]
    put_another_batch(state)
    with pytest.raises(ModelError, match=r"worst case of (\S+) USD then stays counted as spent") as raised:
        model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50)
    (said,) = re.findall(r"worst case of (\S+) USD", str(raised.value))
    assert float(said) == pytest.approx(worst, rel=1e-2)
    state.unlink()
    assert model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50) == echoes(prompts(3))
    assert spent_in(tmp_path) == pytest.approx(worst + 3 * (3 * 10.0 + 2 * 100.0) / 2 / 1e6)


def test_a_plan_has_the_price_of_batches(tmp_path: Path) -> None:
    def planned(batch: bool) -> float:
        llm = OpenAI("m", api_key=KEY, base_url="http://localhost:9/v1", prices=PRICES, batch=batch)
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            rows = DataSource("Rows", data={"p": prompts(5)})
            Prompt("Ask", inputs={"prompts": rows.output["p"]}, args={"llm": llm, "max_new_tokens": 50})
        assert plan.most_cost is not None
        return plan.most_cost

    assert planned(True) == pytest.approx(planned(False) / 2)


def test_the_responses_api_has_batches_too(tmp_path: Path) -> None:
    def fate(body: dict[str, Any], before: int) -> Any:
        body_of = response(f"echo: {prompt_of(body)}").body
        assert body_of is not None
        return json.loads(body_of)

    with BatchServer("openai", fate) as server:
        llm = OpenAIResponses("m", api_key=KEY, base_url=server.url, batch=True, cache_folder_path=tmp_path)
        assert llm.run(prompts(3), n=2, temperature=1.0, top_p=1.0) == [[text] * 2 for text in echoes(prompts(3))]
    assert len(server.jobs[0].lines) == 6
    assert {line["url"] for line in server.jobs[0].lines} == {"/v1/responses"}


def test_what_has_no_batches_says_so_before_anything_is_sent(tmp_path: Path) -> None:
    for make in (
        lambda: Groq("m", api_key=KEY, batch=True),
        lambda: Azure("m", api_key=KEY, base_url="https://x.openai.azure.com", batch=True),
        lambda: Bedrock("m", batch=True, aws_region_name="eu-central-1"),
    ):
        with pytest.raises(DefinitionError, match="has no batch API. OpenAI, Anthropic"):
            make()
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, batch=True)
        with pytest.raises(DefinitionError, match="needs a folder that keeps the ids"):
            llm.run(["Hello"])
        with pytest.raises(DefinitionError, match="without batch=True"):
            ParallelLLM(llm, llm)
        with pytest.raises(DefinitionError, match="Scores are not sent in batches"):
            llm.score(["Hello"], [" you"])
        assert server.requests == []


def put_another_batch(state: Path) -> None:
    """Writes the id of a batch that the provider does not have into the state of one."""
    content = read_sealed(state)
    content["ids"]["batch"] = content["ids"]["batch"].replace("batch_0", "batch_7")
    state.write_text(sealed(content))


def flip(file: Path, within: bytes) -> None:
    """Changes a letter inside a text that a file has."""
    content = bytearray(file.read_bytes())
    content[content.index(within) + len(within) // 2] ^= 1
    file.write_bytes(content)


def test_damaged_results_on_disk_are_fetched_again(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BatchRows, "read", killed)
        with pytest.raises(KeyboardInterrupt):
            model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50)
    spent = spent_in(tmp_path)
    (results,) = [file for file in left_in(tmp_path) if file.suffix == ".results"]
    flip(results, prompts(3)[1].encode())
    flip(results.with_suffix(".jsonl"), b'"model"')
    assert model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50) == echoes(prompts(3))
    assert len(server.jobs) == 1
    assert left_in(tmp_path) == []
    assert spent_in(tmp_path) == spent


def test_damaged_lines_are_not_submitted(server: BatchServer, tmp_path: Path) -> None:
    server.drop = lambda method, path: "before" if method == "POST" else None
    with pytest.raises(ModelError):
        model(server, tmp_path, retry_on_fail=False).run(prompts(3))
    server.drop = lambda method, path: None
    (lines,) = [file for file in left_in(tmp_path) if file.suffix == ".jsonl"]
    flip(lines, prompts(3)[2].encode())
    for _ in range(2):
        with pytest.raises(StorageError, match=f"{lines.name} is damaged, so it is not submitted") as raised:
            model(server, tmp_path).run(prompts(3))
    assert str(lines.with_suffix(".json")) in str(raised.value)
    assert server.jobs == []
    lines.with_suffix(".json").unlink()
    assert model(server, tmp_path).run(prompts(3)) == echoes(prompts(3))


def test_a_damaged_batch_on_disk_is_an_error_before_anything_is_sent(server: BatchServer, tmp_path: Path) -> None:
    server.drop = lambda method, path: "before" if path.endswith(("content", "results")) else None
    with pytest.raises(ModelError):
        model(server, tmp_path, retry_on_fail=False).run(prompts(3))
    server.drop = lambda method, path: None
    (state,) = [file for file in left_in(tmp_path) if file.suffix == ".json"]
    whole = state.read_text()
    requests = len(server.requests)
    key = json.loads(whole)["rows"][0][0]
    of_another_row = whole.replace(key, key[1:] + key[0])
    for damaged in (whole[:50], "", "[]", whole.replace('"begun"', '"other"'), of_another_row):
        assert damaged != whole
        state.write_text(damaged)
        with pytest.raises(StorageError, match="may have been paid for, so nothing is sent"):
            model(server, tmp_path).run(prompts(3))
    assert len(server.requests) == requests
    state.write_text(whole)
    put_another_batch(state)
    with pytest.raises(ModelError, match="does not have the batch (msg)?batch_7 any more, or not for this key"):
        model(server, tmp_path).run(prompts(3))
    state.write_text(whole)
    assert model(server, tmp_path).run(prompts(3)) == echoes(prompts(3))
    assert len(server.jobs) == 1


def test_what_is_no_results_is_fetched_again_and_nothing_is_paid_twice(server: BatchServer, tmp_path: Path) -> None:
    answered, sent = server.answer, [(200, b"<html>a proxy's page</html>\n")] * LLM.max_tries

    def answer(method: str, path: str, *rest: Any) -> tuple[int, Any]:
        found = answered(method, path, *rest)
        return sent.pop() if path.endswith(("/content", "/results")) and sent else found

    server.answer = answer  # type: ignore[method-assign]
    with pytest.raises(MalformedAnswer, match="batch_0 is something else. The batch is kept"):
        model(server, tmp_path).run(prompts(3), max_new_tokens=5)
    sent.append((404, {"error": {"message": "No such file", "type": "not_found_error"}}))
    with pytest.raises(ModelError, match=r"does not have the results of the batch \S+ any more.*remove .*\.json"):
        model(server, tmp_path).run(prompts(3), max_new_tokens=5)
    shown = server.shown
    if server.kind != "mistral":  # the batch says that it ended, and what it answered is not kept any more
        server.shown = lambda job: {**shown(job), "results_url": None, "output_file_id": None}  # type: ignore[method-assign]
        with pytest.raises(ModelError, match=r"does not have the results of the batch"):
            model(server, tmp_path).run(prompts(3), max_new_tokens=5)
        server.shown = shown  # type: ignore[method-assign]
    assert model(server, tmp_path).run(prompts(3), max_new_tokens=5) == echoes(prompts(3))
    assert (creations(server), set(server.billed.values())) == (1, {1})


@pytest.mark.parametrize("always", [False, True])
def test_results_that_were_cut_are_fetched_again_before_their_rows_are_submitted_again(
    server: BatchServer, always: bool, tmp_path: Path
) -> None:
    answered, fetched = server.answer, 0

    def answer(method: str, path: str, *rest: Any) -> tuple[int, Any]:
        nonlocal fetched
        status, content = answered(method, path, *rest)
        if path.endswith(("/content", "/results")) and len(server.jobs) == 1:
            fetched += 1
            content = content.rstrip()[:-30] if always or fetched == 1 else content
        return status, content

    server.answer = answer  # type: ignore[method-assign]
    assert model(server, tmp_path).run(prompts(3)) == echoes(prompts(3))
    assert fetched == 2
    assert [len(job.lines) for job in server.jobs] == ([3, 1] if always else [3])


@pytest.mark.parametrize("always", [False, True])
def test_lines_that_lack_in_the_results_are_looked_for_again_and_then_alone_submitted_and_counted(
    server: BatchServer, always: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered, fetched = server.answer, 0

    def answer(method: str, path: str, *rest: Any) -> tuple[int, Any]:
        nonlocal fetched
        status, content = answered(method, path, *rest)
        if path.endswith(("/content", "/results")) and len(server.jobs) == 1:
            fetched += 1
            content = b"\n".join(content.splitlines()[:-1]) if always or fetched == 1 else content
        return status, content

    server.answer = answer  # type: ignore[method-assign]
    usage = Usage()
    with counting(usage):
        assert model(server, tmp_path, budget="1 USD").run(prompts(3), max_new_tokens=50) == echoes(prompts(3))
    assert fetched == 2
    assert [len(job.lines) for job in server.jobs] == ([3, 1] if always else [3])
    assert usage.requests == (4 if always else 3)
    assert ("lack 1 of its 3 lines; their prompts are submitted again" in caplog.text) == always


def test_a_run_closes_the_client_that_it_opened_and_leaves_the_script_s_own(
    server: BatchServer, tmp_path: Path
) -> None:
    llm = model(server, tmp_path)
    llm.run(prompts(2), max_new_tokens=50)
    assert "client" not in vars(llm)
    own = llm.client
    llm.run(prompts(3), max_new_tokens=50)
    assert llm.client is own
    llm.unload_model()


@pytest.mark.parametrize("batch", ["no", 1, None])
def test_what_is_neither_true_nor_false_is_refused(batch: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="batch must be True or False"):
        OpenAI("m", api_key=KEY, batch=batch)
