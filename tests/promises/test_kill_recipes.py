"""kill -9 at random requests of the recipes: a killed round asks only for what it has no answer to."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from user_scripts import Script, files_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow, pytest.mark.kill]

CONCURRENCY, KILLS = 4, 3

RECIPES = f"""
    import json, sys
    from functools import partial

    from datadreamer_like import DataDreamer
    from datadreamer_like.models import HFTransformers, OpenAI
    from datadreamer_like.recipes import DistillationLoop, Prompt2Model, SelfInstruct, SelfRewarding
    from datadreamer_like.steps import DataSource, ProcessWithPrompt
    from datadreamer_like.trainers import TrainHFDPO, TrainLinearClassifier

    folder, url, base, result = sys.argv[1:]
    linear = partial(TrainLinearClassifier, char_ngrams=None, max_features=100)
    texts = [f"{{word}} {{thing}} {{number}}" for number in range(6) for word in ("good", "bad")
             for thing in ("tea", "day", "film", "book")]

    def labelled(column):
        args = {{"llm": llm, "instruction": "Is it good or bad?", "concurrency": {CONCURRENCY}}}
        return ProcessWithPrompt("Labels", inputs={{"inputs": column}}, args=args).output["generations"]

    with DataDreamer(folder, verbose=False):
        llm = OpenAI("m", base_url=url, api_key="none")
        tasks = ["Sort these words by length.", "Decide whether the review is good.", "Give three uses of newspapers."]
        seed = DataSource("Seed", {{"task": tasks, "input": ["a bee", "I loved it.", ""], "output": [*"abc"]}}).output
        grown = SelfInstruct(
            "Grown", llm, seed["task"], seed["input"], seed["output"], rounds=2, prompts_per_round=3,
            concurrency={CONCURRENCY},
        )
        test = DataSource("Test", {{"text": texts[:8], "label": [text.split()[0] for text in texts[:8]]}}).output
        prompt = "Say if a review is good or bad.\\n\\nInput: fine\\nOutput: good"
        made = Prompt2Model(
            "Made", llm, prompt, linear, labels=["good", "bad"], rows=16, test_input=test["text"],
            test_output=test["label"],
        )
        pool = DataSource("Pool", {{"text": texts[8:]}}).output["text"]
        loop = DistillationLoop(
            "Loop", linear, labelled, pool, test["text"], test["label"], rows_per_round=8, budget_rows=24
        )
        prompts = DataSource("Prompts", {{"prompt": ["The cat", "A dog", "The sun", "Rain"]}}).output["prompt"]
        taught = SelfRewarding(
            "Taught", base, prompts, partial(TrainHFDPO, device="cpu"), judge=llm, iterations=2, candidates=3,
            judgements=2, max_new_tokens=6, temperature=1.0, llm=partial(HFTransformers, device="cpu"),
            epochs=1, batch_size=4, learning_rate=1e-3,
        )
        found = {{
            "grown": [[*grown.rows.output], grown.rounds, grown.rejected],
            "made": [[*made.rows.output], made.metrics],
            "loop": [[*loop.rows.output], loop.curve],
            "taught": [[*pairs.output] for pairs in taught.pairs],
        }}
        json.dump(found, open(result, "w"))
"""
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "islet", "jetty", "knoll"]


def answered(body: dict[str, Any], before: int) -> Reply:
    """Answers by the prompt alone, in 5 to 30 ms."""
    prompt = prompt_of(body)
    chance = random.Random(prompt)
    return Reply(answer(prompt, chance), seconds=chance.uniform(0.005, 0.03))


def answer(prompt: str, chance: random.Random) -> str:
    if prompt.startswith("Below"):  # SelfInstruct: tasks, kinds, instances
        return "\n".join(f"Task {number}: Explain {' '.join(chance.sample(WORDS, 5))}" for number in range(9, 13))
    if prompt.startswith("Is this"):
        return chance.choice(["Yes.", "No."])
    if prompt.startswith("Write an example"):
        last = prompt.rpartition("Task:")[2].strip()
        return f"Class label: fit\nInput: {last}" if "class labels" in prompt else f"Input: {last}\nOutput: done"
    if prompt.startswith("Write one new example"):  # Prompt2Model
        label = re.findall(r'Its output is "(\w+)"', prompt)[0]
        return f"Input: a {label} {chance.choice(WORDS)} {chance.choice(WORDS)}\nOutput: {label}"
    if "good or bad?" in prompt:  # DistillationLoop
        return "good" if "good" in prompt.partition("\n")[0] else "bad"
    return f"Score: {chance.randrange(6)}"  # SelfRewarding


Calm = tuple[dict[str, Any], "FlakyServer"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, tiny_causal_lm: Path) -> Calm:
    """What a run without kills comes to, and the server that it asked."""
    folder = tmp_path_factory.mktemp("calm")
    with FlakyServer(answered) as server:
        ended(script(folder, server, tiny_causal_lm).start())
    return json.loads((folder / "result.json").read_text()), server


def script(folder: Path, server: FlakyServer, model: Path) -> Script:
    arguments = [str(folder / "session"), server.url, str(model), str(folder / "result.json")]
    return Script(RECIPES, folder / "script.py", arguments, warm=True)


def ended(process: Any, code: int = 0) -> None:
    """Waits for a process; a slower machine takes its time."""
    _, log = process.communicate(timeout=600)
    assert process.returncode == code, log


def kill_at(request: int, process: list[Any]) -> Callable[[dict[str, Any], int], Reply]:
    """Returns a server's behaviour: it kills the process at its n-th request from now, and does not answer it."""
    count = 0

    def behave(body: dict[str, Any], before: int) -> Reply:
        nonlocal count
        count += 1
        if count == request:
            os.kill(process[0].pid, signal.SIGKILL)
            return Reply(drop=True)
        return answered(body, before)

    return behave


def test_recipes_killed_at_random_requests_pay_for_no_answer_twice(
    tmp_path: Path, tiny_causal_lm: Path, calm: Calm, kill_seed: int
) -> None:
    expected, calm_server = calm
    whole = calm_server.seen.total()
    chance = random.Random(kill_seed)
    moments = sorted(chance.sample(range(2, whole), KILLS))
    with FlakyServer(answered) as server:
        run = script(tmp_path, server, tiny_causal_lm)
        for moment, earlier in zip(moments, [0, *moments], strict=False):
            process: list[Any] = []
            server._behave = kill_at(moment - earlier, process)
            process.append(run.start())
            ended(process[0], -signal.SIGKILL)
        server._behave = answered
        ended(run.start())
        assert json.loads((tmp_path / "result.json").read_text()) == expected
        assert set(server.seen) == set(calm_server.seen)
        assert whole < server.seen.total() <= whole + KILLS * 2 * server.most_at_once

        sent, files = server.seen.total(), files_of(tmp_path / "session")
        ended(run.start())
        assert server.seen.total() == sent
        assert files_of(tmp_path / "session") == files
