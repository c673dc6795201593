"""Options for random answers next to the default of `top_p`, which DataDreamer has at 0.0: greedy."""

from __future__ import annotations

from typing import Any

import pytest

from datadreamer_like.models.llms import generation
from datadreamer_like.testing import FakeLLM


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.7}, "temperature=0.7, but top_p is 0.0 by default"),
        ({"n": 3}, "n=3, but top_p is 0.0 by default, which is greedy: all n answers are the same"),
        ({}, None),
        ({"temperature": 0.0}, None),
        ({"temperature": 0.7, "top_p": 1.0}, None),
        ({"n": 3, "top_p": 0.0}, None),
    ],
)
def test_options_without_effect_are_warned_of_once(
    options: dict[str, Any], words: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_warned", set())
    for _ in range(2):
        FakeLLM().run(["a"], **options)
    warned = [record.getMessage() for record in caplog.records if "by default" in record.getMessage()]
    assert len(warned) == (words is not None)
    assert words is None or words in warned[0]
