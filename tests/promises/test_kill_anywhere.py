"""kill -9 at random moments of a script with every kind of node: nothing is lost, and nothing wrong is served."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, prompt_of
from user_scripts import Script, files_of

pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow, pytest.mark.kill]

CONCURRENCY = 4
KILLS = 4
"""Kills of one seed, each of a run that goes on where the one before was killed."""

EVERY_KIND = f"""
    import csv, json, sys
    from pathlib import Path

    import numpy as np

    from datadreamer_like import DataDreamer, concurrent, pruning, quantization
    from datadreamer_like.models import Embedder, EmbeddingRetriever, OpenAI
    from datadreamer_like.stages import Compare, Prune, Quantize
    from datadreamer_like.steps import (
        CSVDataSource, DataSource, Embed, FilterWithPrompt, Prompt, RankWithPrompt, Retrieve, concat,
    )
    from datadreamer_like.trainers import TrainHFClassifier

    folder, url, base, result = sys.argv[1:]
    exports = Path(folder).parent / (Path(folder).name + "-exports")
    exports.mkdir(exist_ok=True)

    class Lengths(Embedder):
        def __init__(self):
            super().__init__("lengths")

        def compute(self, texts, **options):
            return np.array([[len(text), text.count("a"), 1] for text in texts], dtype=np.float32)

        def count_tokens(self, value):
            return len(value)

        model_max_length = 1000
        dims = 3

    def at(name):
        print("at", name, flush=True)

    with DataDreamer(folder, verbose=False):
        llm, embedder = OpenAI("m", base_url=url), Lengths()
        options = {{"llm": llm, "concurrency": {CONCURRENCY}}}
        at("source")
        rows = CSVDataSource("Rows", data_files="rows.csv")
        at("map")
        longer = rows.map(lambda row: {{"size": len(row["text"])}}, lazy=False, name="Longer")
        at("filter")
        kept = longer.filter(lambda row: row["size"] % 7, lazy=False, name="Kept")
        at("sort")
        ordered = kept.sort("size", name="Ordered")
        at("shuffle")
        mixed = ordered.shuffle(seed=3, lazy=False, name="Mixed")
        at("background")
        behind = mixed.map(lambda row: {{"twice": 2 * row["size"]}}, lazy=False, name="Behind", background=True)
        at("prompt")
        few = mixed.take(60, lazy=False, name="Few")
        asked = Prompt("Asked", inputs={{"prompts": few.output["text"]}}, args=options)
        at("judge")
        good, ranked = concurrent(
            lambda: FilterWithPrompt(
                "Good", inputs={{"inputs": few.output["text"]}}, args={{**options, "instruction": "Good? yes or no"}}
            ),
            lambda: RankWithPrompt(
                "Ranked", inputs={{"inputs": few.output["text"]}}, args={{**options, "instruction": "Give a number"}}
            ),
        )
        at("embed")
        embedded = Embed("Embedded", inputs={{"texts": few.output["text"]}}, args={{"embedder": embedder}})
        at("retrieve")
        retriever = EmbeddingRetriever(texts=ordered.output["text"], embedder=embedder)
        found = Retrieve("Found", inputs={{"queries": few.output["text"]}}, args={{"retriever": retriever, "k": 2}})
        at("export")
        asked.export_to_csv(str(exports / "asked.csv"))
        ordered.export_to_json(str(exports / "ordered.json"))
        at("train")
        columns = {{
            f"{{split}}_{{kind}}": few.output[column]
            for split in ("train", "validation")
            for kind, column in (("input", "text"), ("output", "label"))
        }}
        fit = {{"epochs": 2, "batch_size": 10, "learning_rate": 1e-3}}
        teacher = TrainHFClassifier("Teacher", model_name=base, device="cpu").train(**columns, **fit)
        at("prune")
        slim = Prune("Slim", model=teacher, method=pruning.Magnitude(sparsity=0.5), retrain={{**columns, **fit}})
        at("quantize")
        small = Quantize("Small", model=slim, method=quantization.DynamicInt8())
        at("compare")
        compared = Compare(
            "Compared", [teacher, slim, small], few.output["text"], few.output["label"],
            repeats=1, latency_texts=4, throughput_texts=8, resamples=100,
        )
        at("end")
        steps = [rows, longer, kept, ordered, mixed, behind, asked, good, ranked, embedded, found]
        texts = few.output["text"][:8]
        json.dump(
            {{
                "rows": [[repr(row) for row in step.output] for step in steps],
                "errors": [step.errors for step in steps],
                "predicted": [model.predict(texts).probabilities.tolist() for model in (teacher, slim, small)],
                "scores": [model.quality for model in compared.comparison.models],
                "exports": [(exports / name).read_text() for name in ("asked.csv", "ordered.json")],
            }},
            open(result, "w"),
        )
"""


def answered(body: dict[str, Any], before: int) -> Reply:
    """Answers by the prompt alone, in 5 to 30 ms."""
    prompt = prompt_of(body)
    chance = random.Random(prompt)
    text = "yes" if "yes or no" in prompt and chance.random() < 0.5 else "no" if "yes or no" in prompt else None
    text = text or (str(chance.randrange(100)) if "number" in prompt else f"echo: {prompt}")
    return Reply(text, seconds=chance.uniform(0.005, 0.03))


def moments(process: Any) -> dict[str, float]:
    """Returns when the script came to each of its parts, in seconds."""
    assert process.stdout is not None
    found = {line.split()[1]: time.monotonic() for line in process.stdout if line.startswith("at ")}
    _, log = process.communicate()
    assert process.returncode == 0, log
    return found


def kill_in(process: Any, part: str, seconds: float) -> bool:
    """Kills a process some time after it came to a part of its script; returns whether it was still at work."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == f"at {part}":
            break
    time.sleep(seconds)
    process.kill()
    _, log = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), log
    return process.returncode != 0


def test_a_script_killed_in_nodes_of_every_kind_ends_with_the_results_of_a_calm_one(
    tmp_path: Path, tiny_classifier_base: Path, kill_seed: int
) -> None:
    words = ["cat", "dog", "train", "tea", "sun", "bread"]
    table = [f'"The {words[i % 6]} was {"very " * (i % 9)}number {i}.",{"ab"[i % 6 < 2]}' for i in range(3000)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *table]) + "\n")

    with FlakyServer(answered) as server:
        calm = tmp_path / "calm.json"
        arguments = [str(tmp_path / "calm"), server.url, str(tiny_classifier_base), str(calm)]
        at = moments(Script(EVERY_KIND, tmp_path / "calm.py", arguments, warm=True).start())
        prompts = len(server.seen)
        assert server.seen.total() == prompts
    parts = list(at)[:-1]
    seconds = {part: after - at[part] for part, after in zip(parts, list(at.values())[1:], strict=True)}

    chance = random.Random(kill_seed)
    folder, result = tmp_path / "session", tmp_path / "result.json"
    with FlakyServer(answered) as server:
        arguments = [str(folder), server.url, str(tiny_classifier_base), str(result)]
        script = Script(EVERY_KIND, tmp_path / "script.py", arguments, warm=True)
        killed = 0
        for part in sorted(chance.sample(parts, KILLS), key=parts.index):
            killed += kill_in(script.start(), part, chance.uniform(0, 1.2 * seconds[part]))
            nodes = [json.loads(file.read_text()) for file in folder.glob("*/node.json")]
            assert all(node["fingerprint"] for node in nodes)
        assert killed
        script.run()
        assert json.loads(result.read_text()) == json.loads(calm.read_text())
        assert len(server.seen) == prompts
        # Two steps ask at once in "judge".
        assert server.seen.total() - prompts <= killed * 2 * CONCURRENCY
        assert not [path for path in folder.rglob("*") if path.name.startswith(".draft")]

        sent, files = server.seen.total(), files_of(folder)
        script.run()
        assert server.seen.total() == sent
        assert files_of(folder) == files
