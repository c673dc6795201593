"""Answers that the limit of tokens cut off: their rows keep them, the step says how many they are, and names them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from datadreamer_like.graph import DataDreamer
from datadreamer_like.models import Answer
from datadreamer_like.steps import Conversation, CritiqueAndRevise, DataSource, Personas, Prompt
from datadreamer_like.testing import FakeLLM

SAID = "Yes, it is a long story. It has no end."


def said(prompt: str) -> str:
    return "Short." if prompt.endswith("short") else SAID


def whole_sentences(text: str) -> str:
    return text[: text.rfind(".") + 1]


def ask(kind: Any = Prompt, name: str = "prompts", texts: Any = ("short", "b", None, "c"), **args: Any) -> Any:
    rows = DataSource("Rows", data={name: list(texts)}).output
    return kind("It", inputs={name: rows[name]}, args={"llm": FakeLLM(said), "max_new_tokens": 6, **args})


def test_rows_whose_answer_was_cut_off_keep_it_and_are_counted_and_named_also_in_a_rerun(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        with DataDreamer(tmp_path, verbose=False), caplog.at_level(logging.WARNING, "datadreamer_like"):
            made = ask()
        assert list(made.output["generations"])[1].startswith("Yes, it is")
        assert made.cut_off == [1, 3]
        assert not made.errors
        (warning,) = caplog.messages
        assert "the limit of tokens cut off the answers of 2 of its rows" in warning


def test_lazy_rows_are_named_after_each_pass(session: DataDreamer, caplog: pytest.LogCaptureFixture) -> None:
    made = ask(lazy=True)
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        for _ in range(2):
            list(made.output)
            assert made.cut_off == [1, 3]
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("kind", "name", "args", "rows"),
    [
        (Personas, "texts", {"expansions": 1}, [0, 1, 3, 4, 5, 7]),
        (Conversation, "openings", {"turns": 1}, [1, 3]),
        (CritiqueAndRevise, "prompts", {"rounds": 1}, [0, 1, 3]),
        (Prompt, "prompts", {"n": 2}, [1, 3]),
        (Prompt, "prompts", {"post_process": str.upper}, [1, 3]),
        (Prompt, "prompts", {"post_process": lambda text: text.startswith("Yes")}, []),
        (Prompt, "prompts", {"parse": lambda answer, row: answer.text.split(" ")[:-1]}, []),
        (Prompt, "prompts", {"max_new_tokens": 1}, []),
        (Prompt, "prompts", {"post_process": whole_sentences, "max_new_tokens": 8}, []),
        (Prompt, "prompts", {"max_new_tokens": 8}, [1, 3]),
    ],
    ids=[
        "rounds",
        "talk",
        "critique",
        "n",
        "text read",
        "verdict read",
        "last part left out",
        "labels",
        "whole sentences read",
        "sentence at the limit",
    ],
)
def test_a_row_counts_if_it_keeps_the_end_of_a_text(
    session: DataDreamer, kind: Any, name: str, args: dict[str, Any], rows: list[int]
) -> None:
    assert ask(kind, name, **args).cut_off == rows


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length"])
def test_what_cut_an_answer_off_is_read_in_the_words_of_each_server(reason: str) -> None:
    assert Answer(["a", "b"], finish_reasons=["stop", reason]).cut_off
    assert not Answer(["a"], finish_reasons=["stop"]).cut_off
    assert not Answer(["a"], finish_reasons=[None]).cut_off
