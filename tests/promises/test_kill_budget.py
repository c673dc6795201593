"""kill -9 while money is spent: never more than the budget by the server's own count, whatever was in flight."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion, prompt_of
from test_kill_prompt import answers_on_disk, kill_during
from user_scripts import Script

CONCURRENCY = 64
PROMPTS = 900
INPUT, OUTPUT, NEW_TOKENS = 15.0, 60.0, 40

SCRIPT = f"""
    import json, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.errors import OverBudget
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Prompt

    folder, url, result, own, whole = sys.argv[1:]
    with DataDreamer(folder, budget=whole or None):
        llm = OpenAI("m", base_url=url, prices={{"input": {INPUT}, "output": {OUTPUT}}}, budget=own or None)
        asked = DataSource("Questions", data={{"prompts": [f"question {{i}}" for i in range({PROMPTS})]}})
        answers = Prompt(
            "Answers",
            inputs={{"prompts": asked.output["prompts"]}},
            args={{"llm": llm, "concurrency": {CONCURRENCY}, "max_new_tokens": {NEW_TOKENS}}},
        )
        json.dump(list(answers.output["generations"]), open(result, "w"))
"""


class Bill:
    """Bills every request when it arrives, as a provider may, for a part of what it may cost at most."""

    def __init__(self) -> None:
        self.dollars = 0.0

    def __call__(self, body: dict[str, Any], before: int) -> Reply:
        prompt = prompt_of(body)
        choice = random.Random(f"{prompt} {before}")
        prompt_tokens, new_tokens = len(prompt) + 8, choice.randint(NEW_TOKENS // 2, body["max_tokens"])
        self.dollars += (prompt_tokens * INPUT + new_tokens * OUTPUT) / 1e6
        answer = completion(Reply(f"echo: {prompt}"), body)
        answer["usage"] = {"prompt_tokens": prompt_tokens, "completion_tokens": new_tokens, "total_tokens": 0}
        return Reply(body=json.dumps(answer).encode(), seconds=choice.uniform(0.01, 0.06))


@pytest.mark.kill
@pytest.mark.slow
def test_no_kill_makes_a_run_spend_more_than_its_budget(tmp_path: Path, kill_seed: int) -> None:
    folder, result, moments = tmp_path / "session", tmp_path / "result.json", random.Random(kill_seed)
    bill = Bill()
    with FlakyServer(bill) as server:
        arguments = [str(folder), server.url, str(result)]

        def budget(amount: str) -> list[str]:
            return ["", amount] if kill_seed % 2 else [amount, ""]  # of the model, or of the session

        script = Script(SCRIPT, tmp_path / "script.py", arguments, warm=True)
        in_flight = 0
        for _ in range(3):
            sent = len(server.seen)
            process = script.start(*budget("1 USD"))
            kill_during(process, server, server.seen.total() + moments.randrange(1, 80), moments.uniform(0, 0.05))
            assert bill.dollars <= 1.0
            in_flight = len(server.seen) - answers_on_disk(folder)
            assert len(server.seen) - sent <= 80 + 2 * CONCURRENCY
        assert in_flight <= 3 * CONCURRENCY

        ended = script.run(*budget("1 USD"), fails=True)
        assert "is used up" in ended.stderr
        assert "are left" in ended.stderr
        assert 0.4 < bill.dollars <= 1.0
        stored, seen = answers_on_disk(folder), server.seen.total()
        # Nothing more is sent, and everything that was received is kept.
        script.run(*budget("1 USD"), fails=True)
        assert server.seen.total() == seen
        assert answers_on_disk(folder) == stored

        script.run(*budget("9 USD"))
        assert json.loads(result.read_text()) == [f"echo: question {i}" for i in range(PROMPTS)]
        # Each prompt once, and again those that were in flight at one of the three kills.
        assert server.seen.total() <= PROMPTS + 3 * CONCURRENCY
