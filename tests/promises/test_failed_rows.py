"""A rerun requests the rows that failed, and only them; what depends on the step reruns only if a row has changed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error, prompt_of

from datadreamer_like import DataDreamer
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import DataSource, Prompt, SuperStep

PROMPTS = [f"q{i}" for i in range(6)]


class Asking(SuperStep):
    """Prompts in an inner step."""

    neutral_args = SuperStep.neutral_args | {"on_error"}

    def setup(self) -> None:
        self.register_input("prompts")
        self.register_arg("llm")
        self.register_arg("on_error", required=False)
        self.register_output("generations")

    def run(self) -> Any:
        options = {name: self.args[name] for name in ("llm", "on_error") if self.args[name] is not None}
        return Prompt("Inner", inputs={"prompts": self.inputs["prompts"]}, args=options).output["generations"]


class Session:
    """Runs a script of three steps with a server that refuses some prompts."""

    def __init__(self, folder: Path, make: type) -> None:
        self.folder, self.make = folder, make
        self.refused: dict[str, str] = {}
        self.cut_off: set[str] = set()
        self.filtered: set[str] = set()
        self.server = FlakyServer(self.reply)

    def reply(self, body: Any, before: int) -> Reply:
        prompt = prompt_of(body)
        if prompt in self.cut_off:
            return Reply("", finish_reason="length")
        if prompt in self.filtered:
            return error(400, "Refused.", code="content_filter")
        return Reply(self.refused[prompt], status=400) if prompt in self.refused else Reply(f"answer {prompt}")

    def script(self, calls: list[int], **args: Any) -> Any:
        """Makes the steps, and returns the one that asks."""
        asked = DataSource("Questions", data={"prompts": PROMPTS})
        llm = OpenAI("m", base_url=self.server.url, api_key="x")
        answers = self.make("Ask", inputs={"prompts": asked.output["prompts"]}, args={"llm": llm, **args})
        answers.map(lambda row, calls=calls: calls.append(1) or row, lazy=False, name="Below")
        return answers

    def run(self, **args: Any) -> tuple[list[Any], int, int]:
        """Returns the answers, the number of requests sent, and how many of the dependent steps ran."""
        calls: list[int] = []
        sent = self.server.seen.total()
        with DataDreamer(self.folder):
            answers = self.script(calls, **args)
            return list(answers.output["generations"]), self.server.seen.total() - sent, len(calls) // len(PROMPTS)


@pytest.fixture(params=[Prompt, Asking], ids=["a step", "a step in a step"])
def session(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    made = Session(tmp_path, request.param)
    with made.server:
        yield made


def answers(*failed: int) -> list[str | None]:
    return [None if i in failed else f"answer {prompt}" for i, prompt in enumerate(PROMPTS)]


def test_only_failed_rows_are_requested_again_and_dependents_run_if_a_row_changed(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "datadreamer_like")
    session.refused = {"q1": "bad", "q4": "bad"}
    assert session.run() == (answers(1, 4), 6, 1)
    assert "2 of its rows failed" in caplog.text
    for _ in range(2):
        caplog.clear()
        assert session.run() == (answers(1, 4), 2, 0)
        assert 'requesting 2 failed rows again; on_error="keep" leaves them' in caplog.text
    session.refused = {"q4": "another reason"}
    assert session.run() == (answers(4), 2, 1)
    assert session.run(on_error="keep") == (answers(4), 0, 0)
    session.refused = {}
    assert session.run() == (answers(), 1, 1)
    assert session.run() == (answers(), 0, 0)


def test_answers_that_cannot_be_used_are_not_paid_for_again(session: Session) -> None:
    session.refused = {"q1": "bad", "q4": "bad"}
    session.cut_off = {"q2", "q3"}
    assert session.run() == (answers(1, 2, 3, 4), 6, 1)
    with DataDreamer(session.folder).plan() as plan:
        session.script([])
    assert plan.requests == 2
    assert plan.cost is None
    assert "2 requests to send, cost unknown" in str(plan)
    assert session.run() == (answers(1, 2, 3, 4), 2, 0)
    session.refused = {}
    assert session.run() == (answers(2, 3), 2, 1)
    assert session.run() == (answers(2, 3), 0, 0)


def test_a_prompt_that_a_filter_refuses_is_sent_again_only_by_force(session: Session) -> None:
    session.filtered = {"q1"}
    session.refused = {"q4": "bad"}
    assert session.run() == (answers(1, 4), 6, 1)
    session.refused = {}
    assert session.run() == (answers(1), 1, 1)
    assert session.run() == (answers(1), 0, 0)
    session.filtered = set()
    assert session.run() == (answers(1), 0, 0)
    if session.make is Prompt:
        assert session.run(force=True) == (answers(), 6, 1)


def test_a_server_that_is_gone_leaves_the_earlier_result_in_use(session: Session) -> None:
    session.refused = {"q2": "bad"}
    assert session.run() == (answers(2), 6, 1)
    session.refused = dict.fromkeys(PROMPTS, "bad")
    assert session.run()[0] == answers(2)
