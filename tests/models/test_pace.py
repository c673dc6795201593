"""Caps and reported limits: at most so many requests and tokens per time."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message
from flaky_server import FlakyServer, Reply, error

from datadreamer_like.errors import DefinitionError
from datadreamer_like.models import Anthropic, Ollama, OpenAI
from datadreamer_like.models.calls.pace import Bucket


def client(server: FlakyServer, folder: Path, **options: Any) -> OpenAI:
    return OpenAI("m", base_url=server.url, api_key="k", cache_folder_path=folder, **options)


class Limiting:
    """A provider's token bucket of `rate` per second, with its headers: those of OpenAI, or of Anthropic."""

    def __init__(self, rate: float, headers: Any) -> None:
        self.rate, self.level, self.at, self.rejected = rate, rate, time.monotonic(), 0
        self._headers = headers

    def admit(self) -> tuple[bool, dict[str, str]]:
        now = time.monotonic()
        self.level, self.at = min(self.rate, self.level + (now - self.at) * self.rate), now
        admitted = self.level >= 1
        self.level -= admitted
        self.rejected += not admitted
        return admitted, self._headers(self.rate, int(self.level), (self.rate - self.level) / self.rate)


def openai_headers(limit: float, remaining: int, reset: float) -> dict[str, str]:
    return {
        "x-ratelimit-limit-requests": f"{limit:.0f}",
        "x-ratelimit-remaining-requests": str(remaining),
        "x-ratelimit-reset-requests": f"{1e3 * reset:.0f}ms",
    }


# Caps


@pytest.mark.parametrize("cap", [1, 2, 7, 60, 90, 1_000, 6_000])
def test_no_minute_has_more_than_the_cap_and_nearly_as_much_is_sent(cap: int) -> None:
    bucket, chance = Bucket.per_minute(cap), random.Random(cap)
    bucket.at = now = 0.0
    sent: list[float] = []
    while now < 300.0:
        if (wait := bucket.wait(1.0, now)) > 0:
            now += wait + chance.random() * 0.005  # timers are late
            continue
        bucket.take(1.0, now)
        sent.append(now)
    start = 0
    for end, at in enumerate(sent):
        while sent[start] <= at - 60.0:
            start += 1
        assert end - start + 1 <= cap
    assert len(sent) >= 0.95 * cap * 5 - 1


def test_a_cap_on_requests_holds_at_the_server(tmp_path: Path) -> None:
    arrived: list[float] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        arrived.append(time.monotonic())
        return Reply("fine")

    with FlakyServer(behave) as server:
        llm = client(server, tmp_path, requests_per_minute=1_200)
        assert llm.run([f"{number}" for number in range(30)]) == ["fine"] * 30
        assert llm.run([f"{number}" for number in range(30, 40)]) == ["fine"] * 10  # a run later, the same cap
    assert arrived[-1] - arrived[0] >= (40 - 20) / 20 - 0.1
    assert all(later - earlier >= 0.4 for earlier, later in zip(arrived, arrived[30:], strict=False))


def test_a_cap_on_tokens_counts_what_answers_took(tmp_path: Path) -> None:
    with FlakyServer() as server:
        llm = client(server, tmp_path, tokens_per_minute=6_000)
        started = time.monotonic()
        llm.run([f"{number}" for number in range(50)], max_new_tokens=60)
        took = time.monotonic() - started
    # 50 answers of 5 tokens, 100 a second, after a burst of 100. With the 60 that each may take it is 30 s.
    assert took >= 1.3
    assert took < 15


@pytest.mark.parametrize(("tokens", "warned"), [(2_000, 1), (5_000, 1), (900, 0)])
def test_a_cap_that_is_less_than_one_request_may_take_is_warned_of_once_before_it_is_sent(
    tokens: int, warned: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[int] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        seen.append(caplog.text.count("tokens_per_minute is 1,000"))
        return Reply("fine")

    with FlakyServer(behave) as server:
        llm = client(server, tmp_path, tokens_per_minute=1_000)
        for prompt in "ab":
            assert llm.run([prompt], max_new_tokens=tokens) == ["fine"]
    assert {*seen} == {warned}
    assert caplog.text.count(f"{llm.display_name}: a request may take {tokens // 1_000},") == warned


@pytest.mark.parametrize("cap", [0, -1, float("nan"), float("inf"), "10", True])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_cap_that_is_no_number_is_refused(name: str, cap: Any) -> None:
    with pytest.raises(DefinitionError, match=f"{name} cannot be"):
        OpenAI("m", api_key="k", **{name: cap})


# Limits of a provider


def test_openais_headers_keep_a_run_within_the_limit(tmp_path: Path) -> None:
    limit = Limiting(50.0, openai_headers)

    def behave(body: dict[str, Any], before: int) -> Reply:
        admitted, headers = limit.admit()
        if admitted:
            return Reply("fine", headers=headers, seconds=0.02)
        return error(429, "slow down", headers={**headers, "retry-after": "1"})

    with FlakyServer(behave) as server:
        started = time.monotonic()
        assert client(server, tmp_path).run([f"{number}" for number in range(150)], concurrency=20) == ["fine"] * 150
        took = time.monotonic() - started
    assert limit.rejected <= 7
    assert took < 10


def test_anthropics_headers_keep_a_run_within_the_limit(tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta
    from email.utils import format_datetime

    def headers(limit: float, remaining: int, reset: float) -> dict[str, str]:
        its_clock = datetime.now(UTC) - timedelta(hours=1)
        return {
            "date": format_datetime(its_clock, usegmt=True),
            "anthropic-ratelimit-requests-limit": f"{limit:.0f}",
            "anthropic-ratelimit-requests-remaining": str(remaining),
            "anthropic-ratelimit-requests-reset": (its_clock + timedelta(seconds=reset)).isoformat(),
        }

    limit = Limiting(30.0, headers)

    def behave(body: dict[str, Any], before: int) -> Reply:
        import json

        admitted, sent = limit.admit()
        if admitted:
            return Reply(body=json.dumps(message("fine")).encode(), headers=sent, seconds=0.02)
        return error(429, "slow down", headers={**sent, "retry-after": "1"})

    with AnthropicServer(behave) as server:
        llm = Anthropic("m", base_url=server.url.removesuffix("/v1"), api_key="k", cache_folder_path=tmp_path)
        assert llm.run([f"{number}" for number in range(70)], concurrency=10) == ["fine"] * 70
    assert limit.rejected <= 4


def test_retry_after_holds_back_all_requests(tmp_path: Path) -> None:
    arrived: list[float] = []

    def behave(body: dict[str, Any], before: int) -> Reply:
        arrived.append(time.monotonic())
        return error(503, "overloaded", headers={"retry-after": "0.7"}) if len(arrived) == 5 else Reply("fine")

    with FlakyServer(behave) as server:
        assert client(server, tmp_path).run([f"{number}" for number in range(40)], concurrency=4) == ["fine"] * 40
    # The three that were under way, and their successors whose answers had come before it.
    late = [at for at in arrived if at - arrived[4] > 0.6]
    assert len(late) >= 40 - 5 - 2 * 3


# The number of requests at once


def test_a_run_without_concurrency_grows_beyond_its_start_and_one_with_it_does_not(tmp_path: Path) -> None:
    prompts = [f"{number}" for number in range(500)]
    with FlakyServer(lambda body, before: Reply("fine", seconds=0.25)) as server:
        client(server, tmp_path).run(prompts)
        assert 40 < server.most_at_once <= 256
    with FlakyServer(lambda body, before: Reply("fine", seconds=0.05)) as server:
        Ollama("m", base_url=server.url, cache_folder_path=tmp_path).run(prompts[:100])
        assert server.most_at_once <= 32
