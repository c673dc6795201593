"""A session on Ray makes the rows of a local one, and a worker that dies costs what it had in flight."""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from flaky_server import FlakyServer, Reply, prompt_of

from datadreamer_like import DataDreamer
from datadreamer_like.errors import DefinitionError, SessionError, StepOutputError
from datadreamer_like.graph.ray_engine import RayEngine
from datadreamer_like.models import Embedder, LlamaCPP, OpenAI
from datadreamer_like.steps import DataSource, Embed, Prompt, Step, concurrent, zipped

# Ray deprecates options of its own, and leaves files of its own open.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\."),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
pytest.importorskip("ray", reason="Ray is not installed")

CONCURRENCY = 4


class Shout(Step):
    """A step that makes one row of each."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_arg("mark", required=False, default="!")
        self.register_output("shouts")

    def process(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"shouts": [text.upper() + self.args["mark"] for text in batch["texts"]]}


class Halves(Shout):
    def process(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        return {"shouts": batch["texts"][::2]}


class Lengths(Embedder):
    """Embeds a text as its number of characters and of words."""

    def __init__(self) -> None:
        super().__init__("lengths")

    def compute(self, texts: Sequence[str], **asks: Any) -> Any:
        return np.array([[len(text), len(text.split())] for text in texts], dtype=np.float32)

    def count_tokens(self, value: str) -> int:
        return len(value)

    @property
    def model_max_length(self) -> int:
        return 10

    @property
    def dims(self) -> int:
        return 2


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """A cluster on this machine that all sessions of this file use."""
    engine = RayEngine(num_workers=2)
    engine.open(print)
    yield
    engine.close()


def sampled(body: dict[str, Any], before: int) -> Reply:
    """Answers with the seed too, so that each repetition of a prompt has an answer of its own; calls the first tool."""
    if body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps({"of": prompt_of(body)})}
        said = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}
        return Reply(body=json.dumps({"choices": [{"message": said, "finish_reason": "tool_calls"}]}).encode())
    return Reply(f"{prompt_of(body)} {body.get('seed')}")


def all_kinds(folder: Path, engine: Any, url: str, gguf: Path) -> tuple[list[list[Any]], list[str]]:
    """Rows and fingerprints of each kind of work that an engine may run elsewhere."""
    with DataDreamer(folder, engine=engine, verbose=False):
        tools = [None, '[{"name": "look"}]', '[{"name": "search"}]']
        texts = [f"text {index % 30}" * (1 + index % 2) for index in range(90)]
        rows = DataSource("Rows", {"text": texts, "tools": tools * 30})
        column = rows.output["text"]
        few = rows.take(6, lazy=False).output["text"]
        sampling = {"temperature": 1.0, "top_p": 1.0, "seed": 5}
        steps: list[Any] = [
            Shout("Shout", inputs={"texts": column}, args={"mark": "?"}),
            rows.map(lambda row, index: {"length": len(row["text"]) + index}, with_indices=True, lazy=False),
            rows.filter(lambda row: row["text"].endswith("3"), lazy=False),
            Prompt(
                "Ask",
                inputs={"prompts": column, "tools": rows.output["tools"]},
                args={"llm": OpenAI("m", base_url=url), **sampling},
            ),
            Prompt(
                "Ask a model of one's own",
                inputs={"prompts": few},
                args={"llm": LlamaCPP(str(gguf), slots=2, threads=1), "max_new_tokens": 4},
            ),
            Embed("Embed", inputs={"texts": column}, args={"embedder": Lengths()}),
        ]
        errors = [step.errors for step in steps]
        found = [[*map(repr, step.output), error] for step, error in zip(steps, errors, strict=True)]
        return found, [step.fingerprint for step in steps]


def test_rows_order_errors_and_fingerprints_are_those_of_a_local_run(tmp_path: Path, smollm_gguf: Path) -> None:
    with FlakyServer(sampled) as server:
        expected = all_kinds(tmp_path / "local", "local", server.url, smollm_gguf)
        asked = len(server.requests)
        engine = RayEngine(num_workers=2, batch_size=16)
        found = all_kinds(tmp_path / "ray", engine, server.url, smollm_gguf)
        assert len(server.requests) == 2 * asked
        for index, rows in enumerate(expected[0]):
            assert found[0][index] == rows
        assert found[1] == expected[1]
        assert any(rows[-1] for rows in found[0]), "texts that are too long fail their rows"
        assert ["'name': 'look'" in str(row) for row in found[0][3][:3]] == [False, True, False]

        assert all_kinds(tmp_path / "ray", "local", server.url, smollm_gguf) == expected
        assert len(server.requests) == 2 * asked


def workers() -> list[psutil.Process]:
    """The worker processes of this test's own cluster."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or a killed one that its parent has not waited for
            if "ray::_Worker" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.kill
def test_a_worker_killed_at_random_costs_at_most_what_it_had_in_flight(tmp_path: Path, kill_seed: int) -> None:
    prompts = [f"question {index}" for index in range(90)]
    seeds, killed = range(2 * kill_seed, 2 * kill_seed + 2), []
    done = threading.Event()

    def slow_echo(body: dict[str, Any], before: int) -> Reply:
        return Reply(f"echo: {prompt_of(body)}", seconds=random.Random(prompt_of(body)).uniform(0.02, 0.08))

    with FlakyServer(slow_echo) as server:

        def kill() -> None:
            for seed in seeds:
                moments = random.Random(seed)
                enough = len(server.requests) + moments.randrange(5, 25)
                while len(server.requests) < enough or not workers():
                    if done.wait(0.005):
                        return
                victim = moments.choice(workers())
                victim.kill()
                killed.append(victim.pid)

        killer = threading.Thread(target=kill)
        killer.start()
        try:
            # Batches so small that the kills do not meet in one: five deaths at a batch end the run.
            with DataDreamer(tmp_path, engine=RayEngine(num_workers=2, batch_size=12), verbose=False):
                rows = DataSource("Questions", {"prompts": prompts})
                args = {"llm": OpenAI("m", base_url=server.url), "concurrency": CONCURRENCY}
                step = Prompt("Answers", inputs={"prompts": rows.output["prompts"]}, args=args)
                assert list(step.output["generations"]) == [f"echo: {prompt}" for prompt in prompts]
                assert step.errors == {}
        finally:
            done.set()
            killer.join()
        assert len(killed) == len(seeds)
        assert len(server.seen) == len(prompts)
        assert server.seen.total() - len(prompts) <= CONCURRENCY * len(killed)


def test_workers_that_died_while_they_were_idle_count_against_no_batch(tmp_path: Path) -> None:
    def double(row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.01)  # so that each worker has a batch
        return {"double": 2 * row["number"]}

    with DataDreamer(tmp_path, engine=RayEngine(num_workers=6, num_cpus=0.1, batch_size=1), verbose=False):
        rows = DataSource("Rows", {"number": list(range(60))})
        rows.map(double, lazy=False)
        killed = workers()
        assert len(killed) > 5, "as many deaths at a batch end a run"
        for worker in killed:
            worker.kill()
        one = rows.take(1, lazy=False)
        assert list(one.map(double, lazy=False).output["double"]) == [0]


def test_a_step_runs_on_the_workers_that_a_cluster_has_room_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ray = importlib.import_module("ray")

    @ray.remote
    class Holder:
        def holds(self) -> bool:
            return True

    cores = int(ray.cluster_resources()["CPU"])
    holders = [Holder.options(num_cpus=cores - 1).remote(), Holder.options(num_cpus=1).remote()]
    assert all(ray.get([holder.holds.remote() for holder in holders]))
    try:
        with DataDreamer(tmp_path, engine=RayEngine(num_workers=cores, batch_size=1, timeout=0.1), verbose=False):
            rows = DataSource("Rows", {"number": list(range(9))})
            releases = threading.Timer(0.5, lambda: ray.kill(holders[1]))  # of one core, the other ones stay held
            releases.start()
            step = rows.map(lambda row: {"double": 2 * row["number"]}, lazy=False)
            assert list(step.output["double"]) == [2 * number for number in range(9)]
            assert "waits until the Ray cluster starts a worker" in caplog.text
    finally:
        for holder in holders:
            ray.kill(holder)


def test_a_function_that_cannot_be_sent_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    lock = threading.Lock()

    def tidy(text: str) -> str:
        with lock:
            return text.strip()

    with FlakyServer() as server, DataDreamer(tmp_path, engine="ray", verbose=False):
        rows = DataSource("Rows", {"prompts": ["a", "b"]})
        inputs = {"prompts": rows.output["prompts"]}
        for argument in ("post_process", "parse"):
            args = {"llm": OpenAI("m", base_url=server.url), argument: tidy}
            with pytest.raises(
                DefinitionError, match=rf'"Ask.*" cannot be sent to Ray.*argument "{argument}" \(.*lock'
            ):
                Prompt("Ask", inputs=inputs, args=args)
        with pytest.raises(DefinitionError, match=r'map of "Rows" cannot be sent.*the function \(.*lock'):
            rows.map(lambda row: {"prompts": tidy(row["prompts"])}, lazy=False)
        assert server.requests == []
        assert Shout("Shout", inputs={"texts": inputs["prompts"]}).output["shouts"][1] == "B!"


def test_an_error_in_a_worker_is_the_error_that_a_local_run_raises(tmp_path: Path) -> None:
    class OwnError(Exception):
        """An error of a class that workers cannot import, as one of a script."""

    class TwoParts(Exception):
        def __init__(self, first: str, second: str) -> None:
            super().__init__(f"{first} and {second}")

    with DataDreamer(tmp_path, engine="ray", verbose=False):
        rows = DataSource("Rows", {"text": ["1", "2", "x"]})
        with pytest.raises(ValueError, match="invalid literal") as caught:
            rows.map(lambda row: {"number": int(row["text"])}, lazy=False)
        assert any("was given row 2 of its input" in note for note in caught.value.__notes__)
        frames = caught.value.__notes__[-1]
        assert "test_ray.py" in frames
        assert "row_functions.py" not in frames

        def refuses(row: dict[str, str]) -> dict[str, str]:
            raise OwnError("it is refused")

        def fails_in_two_parts(row: dict[str, str]) -> dict[str, str]:
            raise TwoParts("here", "there")

        with pytest.raises(OwnError, match="it is refused"):
            rows.map(refuses, lazy=False)
        with pytest.raises(RuntimeError, match="TwoParts: here and there"):  # as pickle cannot make it again
            rows.map(fails_in_two_parts, lazy=False)
        with pytest.raises(StepOutputError, match=r'map of "Rows" returned what a Ray worker cannot send.*generator'):
            rows.map(lambda row: {"parts": (part for part in row["text"])}, lazy=False)
        with pytest.raises(
            StepOutputError, match=r'"Halves": process\(\) returned 2 values of "shouts" for the 3 rows'
        ):
            Halves("Halves", inputs={"texts": rows.output["text"]})


@pytest.mark.timeout(300)
def test_a_row_that_kills_each_worker_ends_the_run(tmp_path: Path) -> None:
    engine = RayEngine(num_workers=1, batch_size=10)

    def ends_its_process(row: dict[str, int]) -> dict[str, int]:
        if row["number"] == 30:
            os._exit(3)
        return {"more": row["number"] + 1}

    with DataDreamer(tmp_path, engine=engine, verbose=False):
        rows = DataSource("Rows", {"number": list(range(50))})
        with pytest.raises(SessionError, match=r"map of \"Rows\".*5 workers died at the same batch.*\(batch 3,"):
            rows.map(ends_its_process, lazy=False)
        assert rows.map(lambda row: {"more": 1}, lazy=False).output.num_rows == 50


def test_the_same_workers_serve_all_steps_of_a_session_and_end_with_it(tmp_path: Path) -> None:
    def named(name: str) -> Any:
        return lambda row: {name: row["number"], f"{name} made by": os.getpid()}

    with DataDreamer(tmp_path, engine=RayEngine(num_workers=2, batch_size=10), verbose=False):
        rows = DataSource("Rows", {"number": list(range(40))})
        eager = [rows.map(named(name), remove_columns=["number"], lazy=False) for name in "ab"]
        lazy = [rows.map(named(name), remove_columns=["number"]) for name in "cd"]
        # Rows of two operations are made in turns while those of a third are.
        both = zipped(*eager, *lazy).map(
            lambda row: {"sum": row["a"] + row["b"] + row["c"] + row["d"], "made by": os.getpid()}, lazy=False
        )
        assert list(both.output["sum"]) == [4 * number for number in range(40)]
        made_by = [both.output[name] for name in ("a made by", "c made by", "d made by", "made by")]
        pids = {pid for processes in made_by for pid in processes} - {os.getpid()}
        assert len(pids) in {1, 2}, "one may have made all rows before the other had started"
        of_the_script = [list(processes).count(os.getpid()) for processes in made_by]
        assert of_the_script == [0, 1, 1, 0], "the first row of a lazy map shows its columns"
        with pytest.raises(SystemExit, match="7"):
            rows.map(lambda row: sys.exit(7), lazy=False)
        living = [psutil.Process(pid) for pid in pids]
    assert not psutil.wait_procs(living, timeout=30)[1]


def test_on_a_cluster_that_others_use_workers_end_with_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RayEngine, "_is_own", False)
    with DataDreamer(tmp_path, engine=RayEngine(num_workers=1, batch_size=10), verbose=False):
        rows = DataSource("Rows", {"number": list(range(20))})
        # The rows of the lazy operation are made while those of the other are, by the only worker.
        lazy = rows.map(lambda row: {"more": row["number"] + 1})
        both = lazy.map(lambda row: {"sum": row["number"] + row["more"], "made by": os.getpid()}, lazy=False)
        assert list(both.output["sum"]) == [2 * number + 1 for number in range(20)]
        (pid,) = set(both.output["made by"])
        living = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
        assert not psutil.wait_procs(living, timeout=30)[1]


def test_a_step_that_fails_ends_no_worker_of_another(tmp_path: Path) -> None:
    def slow(row: dict[str, int]) -> dict[str, int]:
        time.sleep(0.05)
        return {"made by": os.getpid()}

    def fails(row: dict[str, int]) -> dict[str, int]:
        if row["number"] == 0:
            time.sleep(0.3)  # until the batch after it is under way
            raise ValueError("it fails")
        return slow(row)

    with DataDreamer(tmp_path, engine=RayEngine(num_workers=2, batch_size=10), verbose=False):
        rows = DataSource("Rows", {"number": list(range(80))})
        rows.map(lambda row: {"ready": True}, lazy=False)

        def failures() -> None:
            time.sleep(0.7)  # both workers have made a batch of the slow step
            for _ in range(3):
                with pytest.raises(ValueError, match="it fails"):
                    rows.map(fails, lazy=False)

        made, _ = concurrent(lambda: rows.map(slow, lazy=False), failures)
        assert len(set(made.output["made by"])) == 2


def test_lazy_rows_that_a_script_reads_by_itself_start_no_worker(tmp_path: Path) -> None:
    with DataDreamer(tmp_path, engine="ray", verbose=False):
        rows = DataSource("Rows", {"text": ["1", "2"]})
        before = {worker.pid for worker in workers()}  # those of the last test may still be ending
        assert list(rows.map(lambda row: {"number": int(row["text"])}).output["number"]) == [1, 2]
        assert {worker.pid for worker in workers()} <= before
