from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion, error, prompt_of

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, OverBudget, StorageError
from datadreamer_like.models import Anthropic, OpenAI
from datadreamer_like.models.calls.budget import worst_case
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.models.llms.prices import Prices
from datadreamer_like.models.llms.scoring import ScoreRequest
from datadreamer_like.steps import DataSource, Prompt
from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger

PRICES = {"input": 10.0, "output": 100.0}
TOKENS = 50


def billing(bill: list[float], seconds: float = 0.0) -> Callable[[dict[str, Any], int], Reply]:
    """Bills one token a character, and half of the tokens that may be written."""

    def behave(body: dict[str, Any], before: int) -> Reply:
        prompt, written = len(prompt_of(body)), body["max_tokens"] // 2 * (body.get("n") or 1)
        bill.append((prompt * PRICES["input"] + written * PRICES["output"]) / 1e6)
        answer = completion(Reply(f"echo: {prompt_of(body)}"), body)
        answer["usage"] = {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}
        return Reply(body=json.dumps(answer).encode(), seconds=seconds)

    return behave


def spent_in(folder: Path) -> float:
    ledger = Ledger(folder / LEDGER_NAME)
    try:
        assert ledger.reserved() == 0
        return ledger.spent() / 1e9
    finally:
        ledger.close()


def test_the_worst_case_is_more_than_any_tokenizer_and_any_cache_make_of_a_request() -> None:
    prices = Prices(2.0, 10.0, cached_input=0.2, cache_write=2.5, cache_write_1h=4.0)
    llm = OpenAI("m", api_key="k", base_url="http://localhost:9/v1", prices=prices, system_prompt="Be süß.")
    prompt = "Füße" * 100
    least = (len(prompt.encode()) + len("Be süß.".encode())) * 4.0 + 30 * 10.0  # in dollars of 10⁻⁶
    for n in (1, 3):
        found = worst_case(llm, Request(prompt, Sampling(max_new_tokens=30, n=n))) / 1e3
        assert n * least < found < n * (least + 200 * 4.0)
    schema = {"type": "object", "properties": {"a": {"type": "string", "description": "x" * 500}}}
    shaped = worst_case(llm, Request(prompt, Sampling(max_new_tokens=30, schema=schema))) / 1e3
    assert shaped > least + 2 * 500 * 4.0
    scores = worst_case(llm, ScoreRequest("How?", (" so", " not so"))) / 1e3
    texts = [llm.system_prompt + "How?" + each for each in (" so", " not so")]
    assert sum(len(text.encode()) for text in texts) * 4.0 + 2 * 10.0 < scores


def test_a_run_ends_below_its_budget_with_what_is_left_to_do_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    bill: list[float] = []
    prompts = [f"question {index}" for index in range(60)]
    with FlakyServer(billing(bill, seconds=0.01)) as server:

        def llm(budget: str) -> OpenAI:
            return OpenAI("m", base_url=server.url, prices=PRICES, budget=budget, cache_folder_path=tmp_path)

        options: dict[str, Any] = {"max_new_tokens": TOKENS, "concurrency": 64}
        with pytest.raises(OverBudget) as ended:
            llm("0.10 USD").run(prompts, **options)
        assert sum(bill) <= 0.10
        # The next request might have passed it.
        worst = worst_case(llm("1 USD"), Request(prompts[-1], Sampling(max_new_tokens=TOKENS))) / 1e9
        assert sum(bill) + worst > 0.10
        assert spent_in(tmp_path) == pytest.approx(sum(bill))
        done = len(bill)
        words = f'for "m" is used up: {sum(bill):.4g} USD are spent'
        assert words in str(ended.value)
        assert f"{done} prompts answered, {60 - done} are left" in str(ended.value)
        with pytest.raises(OverBudget, match="raise the budget and run again"):
            llm("0.10 USD").run(prompts, **options)
        assert len(bill) == done

        assert llm("1 USD").run(prompts, **options) == [f"echo: {prompt}" for prompt in prompts]
        assert set(server.seen.values()) == {1}
        assert spent_in(tmp_path) == pytest.approx(sum(bill))


def test_prompts_that_were_not_read_when_the_budget_ended_are_not_counted_as_left() -> None:
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, prices=PRICES, budget="0.0001 USD")
        many = (f"question {index}" for index in range(1_000_000))
        with pytest.raises(OverBudget, match="At least 0 prompts answered, at most 1,000,000 are left"):
            llm.run(many, max_new_tokens=TOKENS, total_num_prompts=1_000_000)
        assert server.requests == []


def test_a_prompt_that_passes_the_whole_budget_fails_alone_and_is_sent_with_a_larger_one(tmp_path: Path) -> None:
    bill: list[float] = []
    prompts = ["one", "long" * 4_000, "two"]
    with FlakyServer(billing(bill)) as server:

        def asked(budget: str) -> Any:
            with DataDreamer(tmp_path, verbose=False):
                llm = OpenAI("m", base_url=server.url, prices=PRICES, budget=budget)
                inputs = {"prompts": DataSource("Rows", {"prompts": prompts}).output["prompts"]}
                return Prompt("Asked", inputs=inputs, args={"llm": llm, "max_new_tokens": TOKENS})

        step = asked("0.10 USD")
        assert list(step.output["generations"]) == ["echo: one", None, "echo: two"]
        assert "more than the whole budget of 0.10 USD" in str(step.errors[1])
        assert list(asked("1 USD").output["generations"]) == [f"echo: {prompt}" for prompt in prompts]
        assert set(server.seen.values()) == {1}


def refused(error_type: type[Exception], match: str, **changed: Any) -> Any:
    return pytest.param(error_type, match, changed, id=match)


@pytest.mark.parametrize(
    ("error_type", "match", "changed"),
    [
        refused(DefinitionError, 'those of "m" at http://.* are not known', prices=None),
        refused(OverBudget, "too small for one request, which may cost up to 0.00", budget="0.0001 USD"),
        refused(DefinitionError, "needs max_new_tokens", max_new_tokens=None),
        refused(DefinitionError, "service_tier='priority' are not known", service_tier="priority"),
        refused(DefinitionError, "so a budget is too", budget="5 EUR"),
        refused(ArgumentTypeError, "with the currency", budget=5),
        refused(DefinitionError, "max_context_length", prompt=[{"type": "image_url", "image_url": {"url": "x"}}]),
    ],
)
@pytest.mark.parametrize("scope", ["model", "session"])
def test_a_budget_that_cannot_be_kept_is_refused_before_anything_is_sent(
    scope: str, error_type: type[Exception], match: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    budget = changed.get("budget", "5 USD")
    of_model, of_session = (budget, None) if scope == "model" else (None, budget)
    tier = {name: changed[name] for name in ("service_tier",) if name in changed}
    prompt: Any = [{"role": "user", "content": changed["prompt"]}] if "prompt" in changed else "Hello"

    def run(url: str) -> None:
        with DataDreamer(tmp_path, budget=of_session, verbose=False):
            llm = OpenAI("m", base_url=url, prices=changed.get("prices", PRICES), budget=of_model)
            llm.run([prompt], max_new_tokens=changed.get("max_new_tokens", TOKENS), **tier)

    with FlakyServer() as server:
        with pytest.raises(error_type, match=match):
            run(server.url)
        assert server.requests == []


def test_a_damaged_ledger_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / LEDGER_NAME).write_bytes(b"")
    with FlakyServer() as server:
        llm = OpenAI("m", base_url=server.url, prices=PRICES, budget="5 USD", cache_folder_path=tmp_path)
        with pytest.raises(StorageError, match="damaged, so it is not known how much of the budget is spent"):
            llm.run(["Hello"], max_new_tokens=TOKENS)
        assert server.requests == []


def test_a_damaged_ledger_is_found_when_a_session_starts(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / LEDGER_NAME).write_bytes(b"")
    with pytest.raises(StorageError, match="nothing is sent"), DataDreamer(tmp_path, budget="5 USD", verbose=False):
        pass


@pytest.mark.parametrize(
    ("failure", "share"),
    [
        (error(429, "slow down", headers={"retry-after": "0"}), 0.0),
        (error(500, "oops"), 0.0),
        (error(400, "no"), 0.0),
        (error(504, "gateway time-out"), 1.0),
        (Reply(drop=True), 1.0),
        (Reply(body=b"{"), 1.0),
    ],
    ids=["429", "500", "400", "504", "dropped", "malformed"],
)
def test_a_failed_request_costs_nothing_if_it_was_refused_and_its_worst_case_if_it_may_be_billed(
    failure: Reply, share: float, tmp_path: Path
) -> None:
    bill: list[float] = []
    good = billing(bill)
    with FlakyServer(lambda body, before: failure if before < 1 else good(body, before)) as server:
        llm = OpenAI("m", base_url=server.url, prices=PRICES, budget="5 USD", cache_folder_path=tmp_path)
        answers = list(llm.answers(["Hello"], max_new_tokens=TOKENS))
    assert server.seen.total() == 1 + len(bill)
    worst = worst_case(llm, Request("Hello", Sampling(max_new_tokens=TOKENS))) / 1e9
    assert spent_in(tmp_path) == pytest.approx(sum(bill) + share * worst)
    assert (answers[0].error is None) == bool(bill)


def test_an_unreachable_server_costs_nothing(tmp_path: Path) -> None:
    address = "http://127.0.0.1:9/v1"
    llm = OpenAI("m", base_url=address, prices=PRICES, budget="5 USD", cache_folder_path=tmp_path, retry_on_fail=False)
    with pytest.raises(Exception, match="did not answer"):
        llm.run(["Hello"], max_new_tokens=TOKENS)
    assert spent_in(tmp_path) == 0.0


def test_several_answers_that_a_server_gives_singly_are_all_counted(tmp_path: Path) -> None:
    bill: list[float] = []
    single = billing(bill)
    with FlakyServer(lambda body, before: single({**body, "n": 1}, before)) as server:
        llm = OpenAI("m", base_url=server.url, prices=PRICES, budget="5 USD", cache_folder_path=tmp_path)
        (texts,) = llm.run(["Hello"], max_new_tokens=TOKENS, n=3)
    assert texts == ["echo: Hello"] * 3
    assert len(bill) == 3
    assert spent_in(tmp_path) == pytest.approx(sum(bill))


def test_a_budget_of_a_session_is_shared_by_its_models_and_each_keeps_its_own(tmp_path: Path) -> None:
    bill: list[float] = []
    with FlakyServer(billing(bill)) as server:

        def run(name: str, count: int, whole: str | None, own: str | None) -> None:
            with DataDreamer(tmp_path, budget=whole, verbose=False):
                llm = OpenAI(name, base_url=server.url, prices=PRICES, budget=own)
                rows = DataSource("Rows", data={"p": [f"{name} {index}" for index in range(count)]})
                args = {"llm": llm, "max_new_tokens": TOKENS}
                Prompt(f"Ask {name}", inputs={"prompts": rows.output["p"]}, args=args)

        run("a", 5, "0.03 USD", None)
        with pytest.raises(OverBudget, match=r'The budget of 0\.02 USD for "b"'):
            run("b", 20, "1 USD", "0.02 USD")
        spent = sum(bill)
        assert spent <= 0.0125 + 0.02 + 5e-4
        with pytest.raises(OverBudget, match=r"The budget of 0\.03 USD for the session"):
            run("c", 20, "0.03 USD", "1 USD")
        assert sum(bill) <= 0.03 + 5e-4
        run("c", 20, None, None)
        assert len(bill) == len(server.seen)
    assert spent_in(tmp_path / ".cache") < sum(bill)  # the last run had no budget


@pytest.mark.parametrize("in_session", [True, False])
def test_a_budget_holds_without_a_folder_too(in_session: bool) -> None:
    bill: list[float] = []

    def ask(url: str) -> None:
        llm = OpenAI("m", base_url=url, prices=PRICES, budget="0.02 USD")
        for index in range(20):
            llm.run([f"question {index}"], max_new_tokens=TOKENS)

    def spend(url: str) -> None:
        with DataDreamer(":memory:", verbose=False) if in_session else nullcontext():
            ask(url)

    with FlakyServer(billing(bill)) as server, pytest.raises(OverBudget, match="used up"):
        spend(server.url)
    assert 3 < len(bill) < 20
    assert sum(bill) <= 0.02


def test_a_request_dearer_than_its_worst_case_is_counted_in_full_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        answer = completion(Reply("fine"), body)
        answer["usage"] = {"prompt_tokens": 9_000, "completion_tokens": 9_000, "total_tokens": 18_000}
        return Reply(body=json.dumps(answer).encode())

    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, prices=PRICES, budget="5 USD", cache_folder_path=tmp_path)
        llm.run(["Hello"], max_new_tokens=TOKENS)
    assert spent_in(tmp_path) == pytest.approx(0.99)
    assert "more than its worst case" in caplog.text


def test_models_whose_longest_answer_is_known_need_no_limit() -> None:
    claude = Anthropic("claude-haiku-5-5", api_key="k", budget="5 USD")
    found = worst_case(claude, Request("Hello", Sampling())) / 1e9
    assert found == pytest.approx(16_384 * 0.5 / 1e6, rel=0.01)
    given = {"input": 1.0, "output": 2.0, "max_output": 4_096}
    llm = OpenAI("m", api_key="k", base_url="http://localhost:9/v1", prices=given, budget="5 USD")
    assert worst_case(llm, Request("Hello", Sampling())) / 1e9 == pytest.approx(4_096 * 2.0 / 1e6, rel=0.02)


def test_nothing_is_opened_or_written_without_a_budget(tmp_path: Path) -> None:
    with FlakyServer() as server:
        OpenAI("m", base_url=server.url, cache_folder_path=tmp_path).run(["Hello"])
    assert [file.name for file in tmp_path.iterdir() if "ledger" in file.name] == []


@pytest.mark.parametrize(
    ("usage", "cost"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5}, 20e-6),
        ({"prompt_tokens": 10**30, "completion_tokens": 5}, None),
        ({"prompt_tokens": None, "completion_tokens": 5}, None),
        ({"prompt_tokens": float("nan"), "completion_tokens": 5}, None),
        ({"prompt_tokens": 10}, None),
        # A server that counts what was cached apart.
        ({"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 100}}, 20e-6),
    ],
)
def test_an_answer_whose_tokens_cannot_be_right_counts_its_worst_case(
    usage: dict[str, Any], cost: float | None, tmp_path: Path
) -> None:
    body = json.dumps({**completion(Reply("ok"), {}), "usage": usage}).encode()
    with FlakyServer(lambda _, before: Reply(body=body)) as server:
        prices = {"input": 1.0, "output": 2.0, "cached_input": 0.1}
        llm = OpenAI("m", base_url=server.url, api_key="k", cache_folder_path=tmp_path, prices=prices, budget="1 USD")
        (answer,) = llm.answers(["a"], max_new_tokens=5)
    assert answer.texts == ["ok"]
    assert answer.cost == (None if cost is None else pytest.approx(cost))
    most = worst_case(llm, Request("a", Sampling(max_new_tokens=5))) / 1e9
    assert spent_in(tmp_path) == pytest.approx(most if cost is None else cost)
