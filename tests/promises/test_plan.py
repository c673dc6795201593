"""A plan says what a script would do, and what that costs; it sends nothing and changes nothing."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, completion, prompt_of
from user_scripts import files_of

from datadreamer_like import DataDreamer, cli, concurrent
from datadreamer_like.errors import DefinitionError, NotMade
from datadreamer_like.graph.plan import Plan
from datadreamer_like.models import OpenAI, TaskModel
from datadreamer_like.models.calls.budget import worst_case
from datadreamer_like.models.llms.generation import Request, Sampling
from datadreamer_like.steps import CSVDataSource, DataSource, ProcessWithPrompt, Prompt, RunTaskModel
from datadreamer_like.trainers import TrainHFClassifier

PRICES = {"input": 10.0, "output": 100.0}
TOKENS = 50


def counted(body: dict[str, Any], before: int) -> Reply:
    """Answers with 11 tokens a prompt and 7 tokens an answer."""
    answer = completion(Reply(f"echo: {prompt_of(body)}"), body)
    answer["usage"] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return Reply(body=json.dumps(answer).encode())


def pipeline(url: str, count: int, instruction: str = "Repeat it.", prices: Any = PRICES, **more: Any) -> OpenAI:
    llm = OpenAI("m", base_url=url, prices=prices)
    data = {"text": [f"text {index}" for index in range(count)]}
    rows = DataSource("Rows", data=data).map(lambda row: {"text": row["text"].upper()}, lazy=False, name="Upper")
    args = {"llm": llm, "max_new_tokens": TOKENS, **more}
    asked = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args=args)
    ProcessWithPrompt(
        "Again", inputs={"inputs": asked.output["generations"]}, args={**args, "instruction": instruction}
    )
    return llm


def states(plan: Plan) -> dict[str, tuple[str, str]]:
    return {node.name: (node.state, node.why) for node in plan.nodes}


def test_a_plan_tells_cached_new_and_changed_apart_with_their_requests_and_money(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    with FlakyServer(counted) as server:
        # Before the first run: the rows of local data are known, those of models are not.
        with DataDreamer(folder, verbose=False).plan() as plan:
            llm = pipeline(server.url, 40)
        assert not folder.exists()
        rows, upper, ask, again = plan.nodes
        assert {node.state for node in plan.nodes} == {"new"}
        assert (rows.forecast.rows, upper.forecast.rows, ask.forecast.rows) == (40, 40, 40)
        assert (ask.forecast.stored, ask.forecast.requests) == (0, 40)
        prompts = [f"TEXT {index}" for index in range(40)]
        worst = sum(worst_case(llm, Request(prompt, Sampling(max_new_tokens=TOKENS))) for prompt in prompts) / 1e9
        assert ask.forecast.most_cost == pytest.approx(worst)
        assert ask.forecast.cost is None
        assert 'it needs the rows of "Ask", which has not run' in again.forecast.unknown
        assert plan.unknown == ["Ask", "Again"]
        assert plan.requests is None
        assert plan.cost is None
        assert server.requests == []

        with DataDreamer(folder, verbose=False):
            pipeline(server.url, 40)
        sent, before = len(server.requests), files_of(folder)
        assert sent == 80

        # As it is: all cached.
        with DataDreamer(folder, verbose=False).plan() as plan:
            pipeline(server.url, 40)
        assert set(states(plan).values()) == {("cached", "")}
        assert [node.rows for node in plan.nodes] == [40] * 4
        assert (plan.requests, plan.cost, plan.most_cost, plan.unknown) == (0, 0.0, 0.0, [])

        # Ten rows more: their answers are to be requested, at the lengths of the others.
        with DataDreamer(folder, verbose=False).plan() as plan:
            pipeline(server.url, 50)
        ask = plan.nodes[2]
        assert (ask.state, ask.why) == ("changed", "input prompts changed")
        assert (ask.forecast.rows, ask.forecast.stored, ask.forecast.requests) == (50, 40, 10)
        assert ask.forecast.cost == pytest.approx(10 * (11 * 10.0 + 7 * 100.0) / 1e6)
        assert ask.forecast.most_cost > ask.forecast.cost
        assert ask.forecast.seconds is not None
        assert plan.nodes[3].why == "input inputs changed"

        # Another instruction: what comes before it stays.
        with DataDreamer(folder, verbose=False).plan() as plan:
            pipeline(server.url, 40, instruction="Say it.")
        assert states(plan) == {
            "Rows": ("cached", ""),
            "Upper": ("cached", ""),
            "Ask": ("cached", ""),
            "Again": ("changed", "argument instruction changed"),
        }
        again = plan.nodes[3].forecast
        assert (again.rows, again.stored, again.requests) == (40, 0, 40)
        assert again.cost == pytest.approx(40 * (11 * 10.0 + 7 * 100.0) / 1e6)
        assert "changed (argument instruction changed), 40 rows, 0 answers stored, 40 requests to send" in str(plan)

        assert len(server.requests) == sent
        assert files_of(folder) == before


def test_the_run_sends_what_the_plan_said(tmp_path: Path) -> None:
    with FlakyServer(counted) as server:
        with DataDreamer(tmp_path, verbose=False):
            pipeline(server.url, 20)
        sent = len(server.requests)
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            pipeline(server.url, 33)
        planned = plan.nodes[2].forecast
        with DataDreamer(tmp_path, verbose=False):
            pipeline(server.url, 33)
    asked = [body for body in server.requests[sent:] if prompt_of(body).startswith("TEXT")]
    assert planned.requests == len(asked) == 13


def test_prompts_that_steps_have_in_common_are_planned_once_as_they_are_paid_once(tmp_path: Path) -> None:
    def script(url: str, **more: Any) -> None:
        llm = OpenAI("m", base_url=url, prices=PRICES)
        rows = DataSource("Rows", data={"text": [f"text {index}" for index in range(30)]})
        args = {"llm": llm, "max_new_tokens": TOKENS}
        asked = rows.select(range(20)).output["text"], rows.select(range(5, 30)).output["text"]
        concurrent(
            lambda: Prompt("One", inputs={"prompts": asked[0]}, args=args),
            lambda: Prompt("Other", inputs={"prompts": asked[1]}, args={**args, **more}),
        )

    with FlakyServer(counted) as server:
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            script(server.url)
        assert plan.requests == 30
        counts = [(node.forecast.requests, node.forecast.shared) for node in plan.nodes if node.forecast.requests]
        assert sorted(counts) in ([(10, 15), (20, 0)], [(5, 15), (25, 0)])
        assert ", 15 prompts of earlier steps, " in str(plan)
        with DataDreamer(tmp_path, verbose=False):
            script(server.url)
        assert len(server.requests) == 30
        # Longer and more answers than those that are stored: their cost is not foretold from these.
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            script(server.url, n=3, max_new_tokens=500)
        assert plan.requests == 25
        assert plan.cost is None
        assert plan.unknown == ["Other"]


def test_failed_rows_and_unknown_prices_are_said(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        return Reply(body=b"{", status=400) if prompt_of(body) in ("TEXT 3", "TEXT 4") else counted(body, before)

    with FlakyServer(behave) as server:
        with DataDreamer(tmp_path, verbose=False):
            pipeline(server.url, 10, prices=None)
        sent = len(server.requests)
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            pipeline(server.url, 10, prices=None)
        ask = plan.nodes[2]
        assert (ask.state, ask.failed_rows, ask.retried_rows) == ("cached", 2, 2)
        assert "2 failed, 2 of them to be requested again" in str(plan)
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            pipeline(server.url, 11, prices=None)
        assert plan.nodes[2].forecast.cost is None
        assert "prices of" in plan.nodes[2].forecast.unknown
        assert "cost unknown" in str(plan)
        assert len(server.requests) == sent


def test_a_plan_ends_where_the_script_needs_what_does_not_exist(tmp_path: Path) -> None:
    reached = []
    with FlakyServer() as server, DataDreamer(tmp_path, verbose=False).plan() as plan:
        rows = DataSource("Rows", data={"text": ["a", "b"]})
        args = {"llm": OpenAI("m", base_url=server.url)}
        asked = Prompt("Ask", inputs={"prompts": rows.output["text"]}, args=args)
        reached.append(asked.output.column_names)
        with pytest.raises(DefinitionError, match='"Ask" has no column "generation"'):
            asked.output["generation"]
        list(asked.output)
        reached.append("not this")
    assert reached == [["prompts", "generations"]]
    assert plan.ends_at == 'it needs the rows of "Ask", which has not run.'
    assert 'The plan ends here: it needs the rows of "Ask"' in str(plan)
    assert "2 requests to send up to where the plan ends, cost unknown" in str(plan)
    assert server.requests == []


class Length(TaskModel):
    """The number of letters."""

    model_name = "length"

    def run_batch(self, texts: Any) -> list[int]:
        raise AssertionError("a plan asks no model")


def test_models_and_trainers_are_not_run(tmp_path: Path) -> None:
    with FlakyServer() as server:
        with DataDreamer(tmp_path, verbose=False).plan() as plan:
            rows = DataSource("Rows", data={"text": ["a", "b"], "label": ["x", "y"]})
            RunTaskModel("Count", inputs={"texts": rows.output["text"]}, args={"model": Length()})
            trainer = TrainHFClassifier("Train", model_name=str(tmp_path / "none"))
            OpenAI("m", base_url=server.url).run(["Hello"])
            trainer.train()
        assert "answers of OpenAI (m), and a plan sends nothing" in plan.ends_at
        assert states(plan)["Train"] == ("unknown", "")
        assert states(plan)["Count"] == ("new", "")
        assert plan.nodes[1].forecast.requests == 2
        assert server.requests == []


def test_an_open_session_plans_a_block_and_goes_on_after_it(tmp_path: Path) -> None:
    with DataDreamer(tmp_path, verbose=False) as session:
        with session.plan() as plan:
            DataSource("Rows", data={"text": ["a"]})
        assert states(plan) == {"Rows": ("new", "")}
        assert not (tmp_path / "rows").exists()
        assert list(DataSource("Rows", data={"text": ["a"]}).output["text"]) == ["a"]


def test_bad_arguments_are_found_by_a_plan(tmp_path: Path) -> None:
    session = DataDreamer(tmp_path, verbose=False)

    def build() -> None:
        with session.plan():
            Prompt("Ask", inputs={}, args={})

    with pytest.raises(DefinitionError, match="lacks"):
        build()
    assert session.planned is None


SCRIPT = """
import sys
from datadreamer_like import DataDreamer
from datadreamer_like.models import OpenAI
from datadreamer_like.steps import CSVDataSource, Prompt
from beside import NAME

with DataDreamer(sys.argv[1]):
    rows = CSVDataSource("Rows", data_files=sys.argv[2])
    args = {"llm": OpenAI("m", base_url=sys.argv[3], prices={"input": 10, "output": 100}), "max_new_tokens": 50}
    asked = Prompt(NAME, inputs={"prompts": rows.output["text"]}, args=args)
    print(list(asked.output["generations"]))
"""


def test_the_command_line_plans_a_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "beside.py").write_text('NAME = "Ask"')
    script, rows, folder = tmp_path / "script.py", tmp_path / "rows.csv", tmp_path / "session"
    script.write_text(textwrap.dedent(SCRIPT))
    rows.write_text("text\nA\nB\nC\n")
    with FlakyServer() as server:
        assert cli.main(["plan", str(script), str(folder), str(rows), server.url]) == 0
        out = capsys.readouterr().out
        assert server.requests == []
    assert not folder.exists()
    assert f"Plan of {folder}; nothing was sent, trained or saved." in out
    assert "new, 3 rows, 0 answers stored, 3 requests to send, at most" in out
    assert 'The plan ends here: it needs the rows of "Ask"' in out
    assert "echo" not in out

    assert cli.main(["plan", str(tmp_path / "none.py")]) == 1
    (tmp_path / "empty.py").write_text("")
    assert cli.main(["plan", str(tmp_path / "empty.py")]) == 1
    assert "opens no session" in capsys.readouterr().err


@pytest.mark.parametrize("of", ["model", "session"])
def test_a_plan_says_when_the_worst_case_passes_the_budget(of: str, tmp_path: Path) -> None:
    def plan(budget: str) -> str:
        with DataDreamer(tmp_path, budget=budget if of == "session" else None).plan() as made:
            llm = OpenAI("m", base_url="http://127.0.0.1:9/v1", prices=PRICES, budget=budget if of == "model" else None)
            rows = DataSource("Rows", data={"text": ["a", "b"]})
            Prompt("Ask", inputs={"prompts": rows.output["text"]}, args={"llm": llm, "max_new_tokens": TOKENS})
        return str(made)

    what = "the budget" if of == "model" else "the session's budget"
    assert f"USD, which may pass {what} of 0.01 USD" in plan("0.01 USD")
    assert "may pass" not in plan("1 USD")


@pytest.mark.parametrize(("of", "models"), [("model", 1), ("model", 2), ("session", 1), ("session", 2)])
def test_a_plan_says_when_steps_pass_a_budget_together(of: str, models: int, tmp_path: Path) -> None:
    def plan(budget: str, steps: int) -> list[str]:
        with DataDreamer(tmp_path, budget=budget if of == "session" else None).plan() as made:
            for number in range(steps):
                name, own = f"m{number % models}", budget if of == "model" else None
                llm = OpenAI(name, base_url="http://127.0.0.1:9/v1", prices=PRICES, budget=own)
                rows = DataSource(f"Rows {number}", data={"text": [f"a{number}", f"b{number}"]})
                args = {"llm": llm, "max_new_tokens": TOKENS}
                Prompt(f"Ask {number}", inputs={"prompts": rows.output["text"]}, args=args)
        return [node.forecast.over for node in made.nodes if node.name.startswith("Ask")]

    one = 0.012  # a little more than the worst case of one step
    assert plan(f"{one} USD", 1) == [""]
    first, second, third = plan(f"{one} USD", 3)
    assert first == ""
    own_each = of == "model" and models == 2  # each model has a budget of its own
    assert bool(second) == (not own_each)
    assert "of which earlier steps may spend 0.0" in third


def test_the_error_of_a_script_shows_its_own_frames_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("def outer():\n    return {}['x']\n\nouter()\n")
    assert cli.main(["plan", str(script)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[1].strip() for line in lines if line.startswith("  File")] == ["line 4", "line 2"]
    assert lines[-1] == "KeyError: 'x'"
    assert "runpy" not in "".join(lines)


def test_nothing_of_a_plan_is_left_when_it_is_over(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), DataDreamer(tmp_path, verbose=False).plan():
        raise ZeroDivisionError
    rows = tmp_path / "rows.csv"
    rows.write_text("text\nA\n")
    with DataDreamer(tmp_path, verbose=False) as session:
        assert session.planned is None
        assert CSVDataSource("Rows", data_files=str(rows)).output["text"][0] == "A"
    assert issubclass(NotMade, RuntimeError)
