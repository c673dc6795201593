from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic_server import AnthropicServer, message
from flaky_server import FlakyServer, Reply, completion, error, prompt_of

from datadreamer_like.models import Anthropic, DeepSeek, LlamaCPPServer

SHORT = 0.01
PRICES = {"input": 10.0, "output": 100.0, "cached_input": 1.0, "cache_write": 12.5}


class CachingServer(FlakyServer):
    """Caches the first 4,000 characters of a prompt, when its answer has been sent."""

    def __init__(self, fails: int = 0) -> None:
        self.cached: set[str] = set()
        self.at_once: list[int] = []

        def behave(body: dict[str, Any], before: int) -> Reply:
            text = "".join(message["content"] for message in body["messages"])
            self.at_once.append(self.under_way)
            if len(self.requests) <= fails:
                return error(500, "later", headers={"retry-after-ms": "1"})
            found = completion(Reply(f"echo: {prompt_of(body)[-4:]}"), body)
            hit = 800 if text[:4_000] in self.cached else 0
            found["usage"] |= {"prompt_tokens": 1_000, "prompt_tokens_details": {"cached_tokens": hit}}
            self._loop.call_later(SHORT, self.cached.add, text[:4_000])
            return Reply(body=json.dumps(found).encode(), seconds=2 * SHORT)

        super().__init__(behave)


@pytest.mark.parametrize("in_system_prompt", [True, False])
def test_the_first_request_of_a_long_prefix_is_answered_before_the_others_are_sent(in_system_prompt: bool) -> None:
    prefix = "Be brief. " * 600  # 6,000 characters are more than 1,024 tokens
    texts = [f"t {index:02}" for index in range(16)]
    with CachingServer() as server:
        system = prefix if in_system_prompt else None
        llm = DeepSeek("m", api_key="k", base_url=server.url, system_prompt=system, prices=PRICES)
        answers = list(llm.answers([text if in_system_prompt else prefix + text for text in texts], concurrency=16))
        assert [answer.text for answer in answers] == [f"echo: {text}" for text in texts]
    assert server.at_once[0] == 1
    assert max(server.at_once) > 4
    assert [answer.cached_tokens for answer in answers] == [0] + [800] * 15
    rest = 2 * 100.0 / 1e6
    assert answers[0].cost == pytest.approx(1_000 * 10.0 / 1e6 + rest)
    assert answers[5].cost == pytest.approx((200 * 10.0 + 800 * 1.0) / 1e6 + rest)


def test_short_and_different_prefixes_and_other_servers_wait_for_nothing() -> None:
    texts = [f"{index:05} " * 1_000 for index in range(8)]
    for make, prompts in (
        (DeepSeek, texts),
        (DeepSeek, [f"the same words {index}" for index in range(8)]),
        (LlamaCPPServer, ["the same words " * 1_000 + str(index) for index in range(8)]),
    ):
        with FlakyServer(lambda body, before: Reply("fine", seconds=0.3)) as server:
            make("m", api_key="k", base_url=server.url).run(prompts, concurrency=8)
            assert server.most_at_once == 8


def test_the_others_are_sent_if_the_first_request_fails() -> None:
    prefix = "Be brief. " * 600
    with CachingServer(fails=1) as server:
        llm = DeepSeek("m", api_key="k", base_url=server.url, retry_on_fail=False)
        found = llm.run([f"{prefix}t {index:02}" for index in range(4)])
        assert found.count(None) == 1


def test_a_system_prompt_of_claude_is_marked_and_read_from_the_second_request_on(tmp_path: Path) -> None:
    system = "Be brief. " * 2_100
    marked: list[bool] = []

    def behave(body: dict[str, Any], before: int) -> Any:
        mark = isinstance(body["system"], list)
        usage = {"input_tokens": 5_000}
        if mark:
            assert body["system"] == [{"type": "text", "text": system, "cache_control": {"type": "ephemeral"}}]
            kind = "cache_read_input_tokens" if any(marked) else "cache_creation_input_tokens"
            usage = {"input_tokens": 1_000, kind: 4_000}
        marked.append(mark)
        found = message(f"echo: {body['messages'][-1]['content']}", usage=usage)
        return Reply(body=json.dumps(found).encode(), seconds=2 * SHORT)

    with AnthropicServer(behave) as server:
        llm = Anthropic("m", api_key="k", base_url=server.url, system_prompt=system, prices=PRICES)
        assert llm.run(["alone"]) == ["echo: alone"]
        assert marked == [False]  # a single request costs no more
        del marked[:]
        answers = list(llm.answers([f"t {index}" for index in range(12)], concurrency=12))
        assert marked == [False] + [True] * 11
    read = [answer.cached_tokens for answer in answers]
    assert sorted(read) == [0, 0] + [4_000] * 10
    costs = sorted(answer.cost or 0 for answer in answers)
    rest = 1_000 * 10.0 + 2 * 100.0
    assert costs[0] == pytest.approx((rest + 4_000 * 1.0) / 1e6)
    assert costs[-1] == pytest.approx((rest + 4_000 * 12.5) / 1e6)

    with AnthropicServer(lambda body, before: message(str(type(body["system"]).__name__))) as server:
        short = Anthropic("m", api_key="k", base_url=server.url, system_prompt="Be brief.")
        assert short.run(["a", "b", "c"]) == ["str"] * 3
        own = Anthropic("m", api_key="k", base_url=server.url, system_prompt=system)
        assert own.run(["a", "b", "c"], cache_control={"type": "ephemeral"}) == ["str"] * 3
