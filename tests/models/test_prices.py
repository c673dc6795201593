from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DataError, DefinitionError, MissingFile
from datadreamer_like.graph.progress import describe_usage
from datadreamer_like.graph.usage import Usage, counting
from datadreamer_like.models import OpenAI
from datadreamer_like.models.llms import prices as prices_module
from datadreamer_like.models.llms.prices import Prices, counted, given_prices, known_prices
from datadreamer_like.models.llms.prices import Usage as RequestUsage
from datadreamer_like.steps import DataSource, Prompt


def test_a_request_costs_its_tokens_each_at_its_price() -> None:
    prices = Prices(input=4.0, output=20.0, cached_input=0.2, cache_write=5.0, cache_write_1h=8.0)
    dollars = prices.cost(1_000_000, 100_000, cached=500_000, written=200_000, written_1h=100_000)
    assert dollars == pytest.approx(0.2 * 4 + 0.5 * 0.2 + 0.2 * 5 + 0.1 * 8 + 0.1 * 20)
    assert Prices(1.0, 2.0).cost(1_000_000, 0, cached=500_000, written=100_000, written_1h=100_000) == 1.0
    assert Prices(1.0, 2.0, up_to=100).cost(101, 1) is None


def test_the_table_is_dated_and_knows_exact_names_only() -> None:
    table = tomllib.loads(Path(prices_module.__file__).with_name("prices.toml").read_text(encoding="utf-8"))
    assert datetime.date.fromisoformat(str(table["as_of"])) >= datetime.date(2026, 11, 1)
    assert known_prices("openai", "gpt-5-mini") == Prices(0.25, 2.0, cached_input=0.025, max_output=128_000)
    assert known_prices("openai", "gpt-5-mini-of-mine") is None
    assert known_prices("nobody", "gpt-5-mini") is None


@pytest.mark.parametrize(
    ("prices", "match"),
    [
        (3, "prices cannot be 3"),
        ({"input": 1.0}, "both input and output"),
        ({"input": 1.0, "outputs": 2.0}, 'Did you mean "output"'),
        ({"input": -1.0, "output": 2.0}, '"input" cannot be -1.0'),
        ({"input": "1", "output": 2.0}, "\"input\" cannot be '1'"),
        ({"input": None, "output": 2.0}, "both input and output"),
        ({"input": 1.0, "output": 2.0, "max_output": 0}, '"max_output" cannot be 0; expected a number of tokens'),
        ({"input": 1.0, "output": 2.0, "up_to": 0.5}, '"up_to" cannot be 0.5'),
        ({"input": 1.0, "output": 2.0, "batch": 2}, '"batch" cannot be 2; it is the share of the other prices'),
        (Prices(1.0, 2.0, batch=1.01), '"batch" cannot be 1.01'),
        (Prices("1", 2.0), "\"input\" cannot be '1'"),  # type: ignore[arg-type]
    ],
)
def test_malformed_prices_are_refused(prices: Any, match: str) -> None:
    with pytest.raises(DefinitionError, match=match):
        OpenAI("m", api_key="k", prices=prices)


def test_published_prices_hold_at_the_providers_own_server_only() -> None:
    assert OpenAI("gpt-5-mini", api_key="k").prices == known_prices("openai", "gpt-5-mini")
    assert OpenAI("gpt-5-mini", base_url="http://localhost:9/v1").prices is None
    assert OpenAI("gpt-5-mini", api_key="k", prices={"input": 1, "output": 2}).prices == Prices(1, 2)
    assert given_prices(None) is None


def test_prices_of_the_script_s_file_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        """
        [openai.models]
        "gpt-5-mini" = { input = 0.2, output = 1.5 }
        "gpt-of-mine" = { input = 1, output = 2, max_output = 4096 }
        ["http://localhost:9/v1".models]
        "m" = { input = 0, output = 0 }
        """
    )

    def prices(name: str, **options: Any) -> Prices | None:
        return OpenAI(name, api_key="k", **options).prices

    published = known_prices("openai", "gpt-5-mini")
    with DataDreamer(":memory:", verbose=False, prices=file):
        assert prices("gpt-5-mini") == Prices(0.2, 1.5)
        assert prices("gpt-of-mine") == Prices(1, 2, max_output=4096)
        assert prices("gpt-5-nano") == known_prices("openai", "gpt-5-nano") is not None
        assert prices("m", base_url="http://localhost:9/v1/") == Prices(0, 0)
        assert prices("gpt-5-mini", prices={"input": 9, "output": 9}) == Prices(9, 9)
    assert prices("gpt-5-mini") == published
    monkeypatch.setenv("DATADREAMER_LIKE_PRICES", str(file))
    assert prices("gpt-5-mini") == Prices(0.2, 1.5)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("not = = toml", "is not TOML"),
        ("[openai]\nmodel = 3", 'has no table "models" in "openai"'),
        ("[openai.models]\nm = 3", 'model "m" of "openai": prices cannot be 3'),
        ("[openai.models]\nm = { input = 1 }", "both input and output"),
        ("[openai.models]\nm = { input = true, output = 1 }", '"input" cannot be True'),
        ("[openai.models]\nm = { input = 1, output = nan }", '"output" cannot be nan'),
    ],
)
def test_a_malformed_prices_file_is_refused_with_its_name(text: str, match: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with DataDreamer(":memory:", verbose=False, prices=file), pytest.raises(DataError, match=match) as refused:
        OpenAI("m", api_key="k")
    assert "mine.toml" in str(refused.value)


def test_a_missing_prices_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingFile, match=r"no prices file .*none\.toml"):
        DataDreamer(":memory:", prices=tmp_path / "none.toml")
    with pytest.raises(DefinitionError, match="takes the path of a file"):
        DataDreamer(":memory:", prices={"input": 1, "output": 2})
    monkeypatch.setenv("DATADREAMER_LIKE_PRICES", str(tmp_path / "none.toml"))
    with pytest.raises(MissingFile, match=r"no prices file .*none\.toml"):
        OpenAI("m", api_key="k")


def test_a_sum_with_an_unknown_part_is_unknown() -> None:
    prices = Prices(input=1_000_000.0, output=0.0)
    assert counted([RequestUsage(5), RequestUsage(2)], prices)["cost"] == 7.0
    assert counted([RequestUsage(5), RequestUsage()], prices)["cost"] is None
    assert counted([RequestUsage(5)], None)["cost"] is None
    usage = Usage()
    usage.add(cost=0.5)
    usage.add(cost=None)
    usage.add(cost=0.5)
    assert usage.cost is None
    assert describe_usage(usage) == ["cost unknown"]


def test_what_was_paid_is_counted_once_with_cached_prompt_tokens_cheaper(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        import json

        answer = completion(Reply("fine"), body)
        answer["usage"] = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
        answer["usage"]["prompt_tokens_details"] = {"cached_tokens": 600}
        return Reply(body=json.dumps(answer).encode())

    prices = {"input": 2.0, "output": 10.0, "cached_input": 0.2}
    with FlakyServer(behave) as server:
        llm = OpenAI("m", base_url=server.url, cache_folder_path=tmp_path, prices=prices)
        usage = Usage()
        with counting(usage):
            first, second = llm.answers(["a", "b"])
            (again,) = llm.answers(["a"])
    assert first.cost == pytest.approx((400 * 2.0 + 600 * 0.2 + 100 * 10.0) / 1e6)
    assert first.cached_tokens == second.cached_tokens == 600
    assert again.cost == 0.0
    assert usage.cost == pytest.approx(2 * first.cost)


@pytest.mark.parametrize("prices", [None, {"input": 0.0, "output": 0.0}, {"input": 1.0, "output": 1.0}])
def test_a_card_says_what_a_step_cost_or_that_it_is_unknown(prices: Any, tmp_path: Path) -> None:
    with FlakyServer() as server, DataDreamer(str(tmp_path), verbose=False):
        llm = OpenAI("m", base_url=server.url, prices=prices)
        rows = DataSource("Rows", data={"p": ["a", "b"]})
        step = Prompt("Ask", inputs={"prompts": rows.output["p"]}, args={"llm": llm})
        assert list(step.output["generations"]) == ["echo: a", "echo: b"]
    expected = {None: None, 0.0: 0.0, 1.0: pytest.approx(2 * 5 / 1e6)}[prices and prices["input"]]
    assert step.card.cost == expected
    assert rows.card.cost == 0.0


@pytest.mark.parametrize("section", ["openai", "OpenAI", "http://localhost:1/v1/"])
def test_a_section_may_have_capitals_and_a_last_slash_and_the_file_a_byte_order_mark(
    section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(f'["{section}".models]\n"m" = {{ input = 3, output = 4 }}\n', encoding="utf-8-sig")
    monkeypatch.setenv(prices_module.PRICES_VARIABLE, str(file))
    base_url = "http://localhost:1/v1" if "/" in section else None
    assert OpenAI("m", api_key="k", base_url=base_url).prices == Prices(3, 4)


def test_a_misspelt_provider_in_a_prices_file_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "prices.toml"
    line = '"m" = { input = 1.0, output = 2.0 }'
    file.write_text(f"[opnai.models]\n{line}\n")
    with DataDreamer(":memory:", verbose=False, prices=file), pytest.raises(DataError, match='"opnai", .*"openai"'):
        OpenAI("m", api_key="k")
    file = tmp_path / "others.toml"
    file.write_text(f'[mine.models]\n{line}\n["http://gpu-box:8000/v1".models]\n{line}\n[mistralai.models]\n{line}\n')
    with DataDreamer(":memory:", verbose=False, prices=file):
        OpenAI("m", api_key="k")
    warned = [record.getMessage() for record in caplog.records if "no provider of this package" in record.getMessage()]
    assert len(warned) == 1
    assert '"mine"' in warned[0]
