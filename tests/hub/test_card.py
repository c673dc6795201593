"""The text of a card: whatever is in prompts and names, it stays Markdown that says what was made of what."""

from __future__ import annotations

import re

import pytest
import yaml
from hostile import HOSTILE

from datadreamer_like.graph.card import Card
from datadreamer_like.hub.card import fence, readme
from datadreamer_like.hub.metadata import LICENSES, card_metadata, dataset_keys, is_local, public_name
from datadreamer_like.storage.shown import clean, markdown

ODD_PROMPTS = [
    "plain",
    "```\ncode\n```\nand after",
    "````text\nfour\n````",
    "---\nlicense: evil\n---",
    "<!-- datadreamer-like: end 0 -->",
    "tabs\tand\r\nline ends\rand \x00 nulls \x1b[31m",
    "emoji 🙂, العربية, and a lone surrogate \ud800",
]


def metadata(card: Card, rows: int = 5) -> dict[str, object]:
    return card_metadata(card, [], True, **dataset_keys(card, rows, [], lambda kind, name: True))


def written(card: Card) -> str:
    return readme("dataset", card, metadata(card), load="load()").over(None)


def fenced(markdown: str) -> list[str]:
    """The contents of fenced blocks, as CommonMark reads them: a fence ends with one at least as long."""
    blocks: list[str] = []
    lines = iter(markdown.split("\n"))
    for line in lines:
        if start := re.match(r"(`{3,})[^`]*$", line):
            inside = []
            for line in lines:
                if re.fullmatch(rf"`{{{len(start[1])},}}\s*", line):
                    break
                inside.append(line)
            blocks.append("\n".join(inside))
    return blocks


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_a_prompt_cannot_leave_its_block(prompt: str) -> None:
    text = written(Card("Rows", "step", "Prompt", prompts=[prompt], package_version="0.1.0"))
    shown = fenced(text)[1]
    kept = prompt.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").replace("\x1b", "")
    assert shown == kept.encode("utf-8", "replace").decode()
    assert text.encode().decode() == text
    assert set(yaml.safe_load(text.split("\n---\n")[0][4:])) == {"pretty_name", "size_categories", "tags"}


@pytest.mark.parametrize("prompt", ODD_PROMPTS)
def test_a_card_with_any_prompt_is_known_again(prompt: str) -> None:
    card = Card("Rows", "step", "Prompt", prompts=[prompt])
    first = readme("dataset", card, metadata(card), load="load()")
    assert first.over(first.over(None)) == first.over(None)
    changed = readme("dataset", card, metadata(card, rows=5000), load="load()")
    again = changed.over(first.over(None))
    assert again == changed.over(None)


def test_the_table_shows_each_node_of_a_lineage_once_with_its_price() -> None:
    source = Card("Real", "step", "CSVDataSource", rows=100, seconds=1.0)
    made = Card(
        "Made | up", "step", "DataFromPrompt", rows=50, seconds=61.0, models=["gpt-5-mini"], parents=[source],
        prompt_tokens=1000, completion_tokens=234, cost=0.25,
    )  # fmt: skip
    kept = Card("Kept", "step", "FilterWithPrompt", rows=120, failed_rows=3, parents=[source, made])
    text = written(kept)
    assert text.count("| Real | CSVDataSource |") == 1
    assert r"| Made \| up | DataFromPrompt | Real | gpt-5-mini | 50 | 1 min | 1,234 | 0.2500 |" in text
    assert r"| Kept | FilterWithPrompt | Real, Made \| up |" in text
    assert "1,000 tokens sent to models and 234 received, cost in US dollars: 0.2500; 3 rows failed." in text


@pytest.mark.parametrize(
    ("stated", "license_id"),
    [
        ([], None),
        (["mit"], "mit"),
        (["Apache-2.0", "apache 2.0"], "apache-2.0"),
        (["mit", "cc-by-4.0"], "other"),
        (["My own terms"], "other"),
    ],
)
def test_only_licences_that_the_hub_knows_are_named(stated: list[str], license_id: str | None) -> None:
    found = metadata(Card("Rows", "step", "Prompt", licenses=stated)).get("license")
    assert found == license_id
    assert found is None or found in LICENSES | {"other"}


@pytest.mark.parametrize(
    ("rows", "size"), [(1, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**13, "n>1T")]
)
def test_the_size_is_one_of_the_hubs_classes(rows: int, size: str) -> None:
    assert metadata(Card("Rows", "step", "Prompt"), rows)["size_categories"] == [size]


@pytest.mark.parametrize(
    ("name", "local", "shown"),
    [
        ("org/name", False, "org/name"),
        ("gpt-5-mini", False, "gpt-5-mini"),
        ("/home/me/models/student", True, "student (local)"),
        ("./student/", True, "student (local)"),
        ("../a/b.csv", True, "b.csv (local)"),
        ("~/x", True, "x (local)"),
        (r"D:\data\rows.csv", True, "rows.csv (local)"),
        ("LlamaCPP('/home/me/llm.gguf', n=2)", False, "LlamaCPP('llm.gguf (local)', n=2)"),
        (r"128 rows of C:\data\rows.csv and org/name", False, "128 rows of rows.csv (local) and org/name"),
        ("s3://user:key@bucket/rows.csv?X-Amz-Signature=abc", False, "s3://bucket/rows.csv"),
        ("https://example.org/rows.csv", False, "https://example.org/rows.csv"),
    ],
)
def test_names_are_shown_without_this_machine_or_secrets(name: str, local: bool, shown: str) -> None:
    assert is_local(name) is local
    assert public_name(name) == shown


def test_a_fence_is_longer_than_any_inside() -> None:
    assert fence("a ````` b").startswith("``````text\n")
    assert markdown("a|b\n<script>*x*") == r"a\|b \<script\>\*x\*"


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_card_shows_names_as_names(name: str) -> None:
    card = Card(name, "step", "Prompt", prompts=[name], facts={"fact": name}, datasets=[name], licenses=[name])
    card.parents = [Card(name, "step", "DataSource")]
    text = written(card)
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["pretty_name"] == clean(name) or yaml.safe_load(front)["pretty_name"] == name
    assert set(yaml.safe_load(front)) <= {"pretty_name", "size_categories", "source_datasets", "license", "tags"}
    blocks = fenced(body)
    assert clean(name) in blocks
    outside = body
    for block in blocks:
        outside = outside.replace(f"\n{block}\n", "\n\n")
    headings = [line for line in outside.split("\n") if line.startswith("# ")]
    assert headings == [f"# {markdown(name)}"]
    assert not re.search(r"(?<![\\])<(?!!-- datadreamer-like)", outside)
    assert readme("dataset", card, metadata(card), load="load()").over(text) == text
