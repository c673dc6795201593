"""Batches of scripts that are killed at any of their requests: each is submitted once, and none is paid for twice."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from batch_server import BatchServer
from user_scripts import Script

from datadreamer_like.storage.ledger import LEDGER_NAME, Ledger

SCRIPT = """
    import json, sys
    from datadreamer_like import DataDreamer, models
    from datadreamer_like.models.calls.batch_api import BatchAPI
    from datadreamer_like.steps import DataSource, Prompt

    BatchAPI.poll_seconds = 0.01
    folder, url, name, result = sys.argv[1:]
    prices = {"input": 10.0, "output": 100.0}
    with DataDreamer(folder, budget="1 USD", verbose=False):
        llm = getattr(models, name)("m", api_key="k", base_url=url, batch=True, prices=prices)
        rows = DataSource("Rows", data={"p": [f"question {i}" for i in range(20)]})
        asked = Prompt("Ask", inputs={"prompts": rows.output["p"]}, args={"llm": llm, "max_new_tokens": 50})
        json.dump(list(asked.output["generations"]), open(result, "w"))
"""
CREATE = "POST (/batches|/batch/jobs|/messages/batches)"
MOMENTS = {
    "OpenAI": ["POST /files", CREATE, "GET /batches/[^/]*", "GET /files/.*/content"],
    "MistralAI": ["POST /files", CREATE],
    "Anthropic": [CREATE, "GET .*/results"],
}


@pytest.mark.kill
@pytest.mark.parametrize("name", MOMENTS)
def test_a_script_with_batches_that_is_killed_at_any_request_goes_on_with_the_same_batch(
    name: str, tmp_path: Path
) -> None:
    folder, result = tmp_path / "session", tmp_path / "result.json"
    with BatchServer({"OpenAI": "openai", "MistralAI": "mistral", "Anthropic": "anthropic"}[name]) as server:
        script = Script(SCRIPT, tmp_path / "script.py", [str(folder), server.url, name, str(result)], warm=True)
        for moment in MOMENTS[name]:
            for when in ("before", "after"):
                server.drop = lambda *_: None
                process = script.start()

                def kill(
                    method: str, path: str, moment: str = moment, when: str = when, pid: int = process.pid
                ) -> str | None:
                    if not re.fullmatch(moment, f"{method} {path}"):
                        return None
                    os.kill(pid, signal.SIGKILL)
                    return when

                server.drop = kill
                process.communicate(timeout=60)
                assert process.returncode == -signal.SIGKILL, moment
                assert not result.exists()
        server.drop = lambda *_: None
        script.run()
        assert json.loads(result.read_text()) == [f"echo: question {index}" for index in range(20)]
        assert len(server.jobs) == 1
        assert set(server.billed.values()) == {1}
    ledger = Ledger(folder / ".cache" / LEDGER_NAME)
    try:
        assert ledger.spent() / 1e9 == pytest.approx(20 * (3 * 10.0 + 2 * 100.0) / 2 / 1e6)
    finally:
        ledger.close()
    assert not list((folder / ".cache").glob("*.batches"))
