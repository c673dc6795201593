"""What promise tests share: scripts in processes of their own (`user_scripts.py`) and a server that counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from flaky_server import FlakyServer


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    """A server that echoes every prompt."""
    with FlakyServer() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_key_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture(scope="session")
def tiny_classifier_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an untrained BERT of two layers to fine-tune within a second."""
    import tiny_models

    tokenizer = tiny_models.word_pieces(
        ["The cat and the dog had tea, bread and sun on the train; it was number 0123456789."]
    )
    return tiny_models.save(tiny_models.bert(tokenizer), tokenizer, tmp_path_factory.mktemp("tiny-classifier"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs tests that kill at random for one seed, or for as many as the environment's KILL_SEEDS says."""
    if "kill_seed" in metafunc.fixturenames:
        metafunc.parametrize("kill_seed", range(int(os.environ.get("KILL_SEEDS", "1"))))
