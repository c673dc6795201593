"""kill -9 while an LLM is asked: every answer that came is kept, and only what was in flight is sent again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from user_scripts import Script, files_of

from datadreamer_like.storage.answers import AnswerStore

CONCURRENCY = 8
PROMPTS = 240

PROMPT_STEP = f"""
    import json, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Prompt

    folder, url, result = sys.argv[1:]
    with DataDreamer(folder):
        llm = OpenAI("m", base_url=url)
        asked = DataSource("Questions", data={{"prompts": [f"question {{i}}" for i in range({PROMPTS})]}})
        answers = Prompt(
            "Answers", inputs={{"prompts": asked.output["prompts"]}}, args={{"llm": llm, "concurrency": {CONCURRENCY}}}
        )
        kept = answers.map(lambda row: {{"length": len(row["generations"])}}, lazy=False)
        json.dump([list(answers.output), list(kept.output)], open(result, "w"))
"""

ATTRIBUTED_STEP = f"""
    import json, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataFromAttributedPrompt

    folder, url, result = sys.argv[1:]
    with DataDreamer(folder):
        made = DataFromAttributedPrompt(
            "Made",
            args={{
                "llm": OpenAI("m", base_url=url),
                "instruction": "Write about {{topic}} in a {{tone}} tone. {{examples}}",
                "attributes": {{"topic": [f"topic {{i}}" for i in range(60)], "tone": ["calm", "loud", "sad", "dry"]}},
                "examples": {{f"topic {{i}}": [f"example {{i}} {{j}}" for j in range(9)] for i in range(60)}},
                "examples_attribute": "topic",
                "n": {PROMPTS},
                "seed": 7,
                "concurrency": {CONCURRENCY},
            }},
        )
        json.dump(list(made.output), open(result, "w"))
"""


def slow_echo(body: dict[str, Any], before: int) -> Reply:
    """Takes from 2 to 30 ms, by prompt, so that answers come back out of order."""
    prompt = prompt_of(body)
    return Reply(f"echo: {prompt}", seconds=random.Random(prompt).uniform(0.002, 0.03))


def kill_during(process: subprocess.Popen[str], server: FlakyServer, requests: int, seconds: float) -> None:
    """Kills a process some time after the server has got so many requests, and lets the server notice."""
    while len(server.requests) < requests:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    time.sleep(seconds)
    process.kill()
    _, log = process.communicate()
    assert process.returncode == -signal.SIGKILL, log
    while server.under_way:
        time.sleep(0.01)
    time.sleep(0.05)  # for what lay unread in a socket


def answers_on_disk(folder: Path) -> int:
    stored = 0
    for file in folder.glob(".cache/*.sqlite"):
        with AnswerStore(file) as store:
            stored += len(store)
    return stored


@pytest.mark.kill
@pytest.mark.parametrize(
    ("source", "kills"), [(PROMPT_STEP, 3), (ATTRIBUTED_STEP, 1)], ids=["Prompt", "DataFromAttributedPrompt"]
)
def test_a_killed_prompt_step_resends_only_what_was_in_flight(
    tmp_path: Path, source: str, kills: int, kill_seed: int
) -> None:
    with FlakyServer(slow_echo) as server:
        Script(
            source, tmp_path / "calm.py", [str(tmp_path / "calm"), server.url, str(tmp_path / "calm.json")], warm=True
        ).run()
        assert server.seen.total() == len(server.seen) == PROMPTS

    folder, result = tmp_path / "session", tmp_path / "result.json"
    moments = random.Random(10 + kill_seed)
    with FlakyServer(slow_echo) as server:
        script = Script(source, tmp_path / "script.py", [str(folder), server.url, str(result)], warm=True)
        in_flight = []
        for _ in range(kills):
            enough = len(server.requests) + moments.randrange(CONCURRENCY, PROMPTS // kills)
            kill_during(script.start(), server, enough, moments.uniform(0, 0.03))
            in_flight.append(len(server.seen) - answers_on_disk(folder))
            assert 0 <= in_flight[-1] <= CONCURRENCY
        assert not result.exists()
        assert sum(in_flight) > 0

        script.run()
        repeated = server.seen.total() - len(server.seen)
        assert set(server.seen.values()) <= set(range(1, kills + 2))
        assert len(server.seen) == PROMPTS
        assert repeated <= sum(in_flight)
        assert json.loads(result.read_text()) == json.loads((tmp_path / "calm.json").read_text())

        sent, files = server.seen.total(), files_of(folder)
        script.run()
        assert server.seen.total() == sent
        assert files_of(folder) == files
