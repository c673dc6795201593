"""Panels of judges whose habits are planted: a position bias, ties, answers that name nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import Echo
from flaky_server import FlakyServer, Reply, prompt_of
from sklearn.metrics import cohen_kappa_score
from user_scripts import Script

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, EmptyDataset, LabelError
from datadreamer_like.steps import DataSource, Judges
from datadreamer_like.steps.prompting.answer_readers import read_winner_or_tie
from datadreamer_like.testing import FakeLLM

PAIRS = 40


def scores_in(prompt: str) -> list[int]:
    """The numbers of the response shown first and of the second."""
    return [int(line.rpartition(" ")[2]) for line in prompt.splitlines() if line.startswith("Response ")]


def honest(prompt: str) -> str:
    first, second = scores_in(prompt)
    return "Tie." if first == second else f"Response {'A' if first > second else 'B'}"


def first_shown(prompt: str) -> str:
    return "Response A is better."


def contrary(prompt: str) -> str:
    return {"Response A": "Response B", "Response B": "Response A"}.get(honest(prompt), "Tie")


def silent(prompt: str) -> str:
    return "It depends on taste."


def cautious(prompt: str) -> str:
    return "I cannot say." if sum(scores_in(prompt)) < 2 else honest(prompt)


def named(reply: Any, name: str) -> Echo:
    llm = Echo(reply)
    llm.model_name = name  # type: ignore[misc]
    return llm


def pairs(gold: int = PAIRS) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, (PAIRS, 2))
    truth = ["tie" if a == b else "a" if a > b else "b" for a, b in numbers]
    data = DataSource("Pairs", {
        "a": [f"points {a}" for a, _ in numbers], "b": [f"points {b}" for _, b in numbers],
        "gold": [label if row < gold else None for row, label in enumerate(truth)], "truth": truth,
    })  # fmt: skip
    return {name: data.output[name] for name in ("a", "b", "gold", "truth")}


def panel(llms: Any, gold: int = PAIRS, **args: Any) -> tuple[Judges, list[str]]:
    columns = pairs(gold)
    truth = list(columns.pop("truth"))
    return Judges("Panel", inputs=columns, args={"llms": llms, **args}), truth


def test_a_position_bias_is_measured_and_its_verdicts_are_ties(session: DataDreamer):
    step, truth = panel({"fair": named(honest, "x"), "lazy": named(first_shown, "y")})
    rows = {row["judge"]: row for row in step.summary().rows}
    assert list(step.output["fair"]) == truth
    assert {*step.output["lazy"]} == {"tie"}
    assert {*step.output["lazy, a first"]} == {"a"}
    assert {*step.output["lazy, b first"]} == {"b"}
    assert (rows["fair"]["same"].value, rows["fair"]["first"].value, rows["fair"]["accuracy"].value) == (1, 0.5, 1)
    assert (rows["lazy"]["same"].value, rows["lazy"]["first"].value, rows["lazy"]["ties"]) == (0, 1, 1)
    assert rows["lazy"]["accuracy"].value == truth.count("tie") / PAIRS
    assert rows["lazy"]["kappa"].value == 0
    assert list(step.output["verdicts"]) == truth  # the other judge says nothing, so it has no weight


def test_a_judge_that_is_mostly_wrong_on_gold_rows_counts_against_what_it_says(session: DataDreamer):
    step, truth = panel([named(contrary, "one"), named(contrary, "two")], gold=20)
    held_out = list(zip(step.output["verdicts"], truth, strict=True))[20:]
    assert all(verdict == label for verdict, label in held_out if label != "tie")
    assert list(step.output["one"])[0] != truth[0] or truth[0] == "tie"
    (between,) = step.agreement().rows
    assert (between["first"], between["other"], between["rows"], between["same"].value) == ("one", "two", PAIRS, 1)
    rows = {row["judge"]: row for row in step.summary().rows}
    assert rows["one"]["gold"] == 20
    verdicts = list(step.output["one"])
    assert rows["one"]["kappa"].value == pytest.approx(cohen_kappa_score(verdicts[:20], truth[:20]))
    assert rows["Panel"]["accuracy"].value > 0.8 > rows["one"]["accuracy"].value


def test_the_panels_accuracy_on_a_gold_row_is_not_learned_from_that_row(session: DataDreamer):
    """With one gold row the panel has nothing to go by there."""
    step, _ = panel([named(honest, "x")], gold=1)
    (own, whole) = step.summary().rows
    assert own["gold"] == 1
    assert whole["gold"] == 0


def test_a_judge_that_names_nobody_is_asked_again_and_then_counted_without_a_verdict(session: DataDreamer):
    quiet = named(silent, "quiet")
    step, truth = panel({"quiet": quiet, "fair": named(honest, "x")})
    assert {*step.output["quiet"]} == {None}
    assert {len(request.prompt) for request in quiet.asked if not isinstance(request.prompt, str)} == {3}  # again
    rows = {row["judge"]: row for row in step.summary().rows}
    assert (rows["quiet"]["none"], rows["quiet"]["gold"], rows["quiet"].get("accuracy")) == (1.0, 0, None)
    assert list(step.output["verdicts"]) == truth
    alone, _ = panel([named(silent, "quiet")])
    assert {*alone.output["verdicts"]} == {*alone.output["soft_labels"]} == {None}
    assert step.agreement().rows[0]["rows"] == 0


def test_a_panel_without_a_verdict_on_a_gold_row_is_refused_and_does_not_call_all_others_ties(session: DataDreamer):
    rows = DataSource("Few", {"a": ["points 0", "points 2"], "b": ["points 1", "points 0"], "gold": ["b", None]}).output
    columns = {name: rows[name] for name in ("a", "b", "gold")}
    with pytest.raises(DataError, match="no judge has a verdict on any of the 1 gold rows"):
        Judges("Panel", inputs=columns, args={"llms": [named(cautious, "x")]})


def test_a_judge_whose_request_failed_says_nothing_of_the_pair(session: DataDreamer):
    """Without a tie among the gold rows, nothing is known of what a judge says of ties."""
    columns = {"a": [f"points {9 - row}" for row in range(8)], "b": ["points 0"] * 8, "gold": ["a"] * 6 + [None] * 2}
    rows = DataSource("Pairs", columns).output
    failing = FakeLLM(lambda prompt: None if "points 2" in prompt else honest(prompt))
    step = Judges(
        "Panel", inputs={name: rows[name] for name in columns}, args={"llms": {"x": named(honest, "x"), "y": failing}}
    )
    assert list(step.output["y"])[6:] == ["a", None]
    assert list(step.output["verdicts"]) == ["a"] * 8
    both, one = list(step.output["soft_labels"])[6:]
    assert both["a"] > one["a"] > 0.5
    assert one["tie"] < 0.2


def test_a_gold_row_is_not_held_out_if_no_judge_has_a_verdict_on_the_others(session: DataDreamer):
    rows = DataSource("Few", {"a": ["points 0", "points 2"], "b": ["points 1", "points 0"], "gold": ["b", "a"]}).output
    columns = {name: rows[name] for name in ("a", "b", "gold")}
    step = Judges("Panel", inputs=columns, args={"llms": [named(cautious, "x")]})
    assert list(step.output["verdicts"]) == [None, "a"]
    judge, whole = step.summary().rows
    assert judge["gold"] == 1
    assert whole["gold"] == 0  # nothing else is known of the judge


def test_swapping_the_candidates_of_every_pair_swaps_the_verdicts(session: DataDreamer):
    columns = pairs(gold=15)
    flip = {"a": "b", "b": "a"}
    gold = [flip.get(label, label) for label in columns["gold"]]
    other = DataSource("Swapped", {"a": list(columns["b"]), "b": list(columns["a"]), "gold": gold}).output

    def half(prompt: str) -> str:
        return first_shown(prompt) if sum(scores_in(prompt)) % 2 else honest(prompt)

    llms = {"half": named(half, "x"), "fair": named(honest, "y")}
    del columns["truth"]
    first = Judges("Panel", inputs=columns, args={"llms": llms})
    second = Judges("Panel", inputs={name: other[name] for name in columns}, args={"llms": llms})
    assert list(second.output["verdicts"]) == [flip.get(one, one) for one in first.output["verdicts"]]
    assert list(second.output["probabilities"]) == pytest.approx(list(first.output["probabilities"]))


def test_prompts_are_shown_and_options_reach_the_llms(session: DataDreamer):
    llm = named(honest, "x")
    columns = pairs()
    del columns["truth"]
    asked = DataSource("Asked", {"prompt": ["How many?"] * PAIRS}).output["prompt"]
    args = {"llms": [llm], "instruction": "More points win: Response A, Response B or Tie?", "max_new_tokens": 7}
    Judges("Panel", inputs={**columns, "prompts": asked}, args=args)
    assert {request.sampling.max_new_tokens for request in llm.asked} == {7}
    prompt = str(llm.asked[0].prompt)
    assert prompt.startswith("Prompt: How many?")
    assert prompt.endswith("More points win: Response A, Response B or Tie?")


@pytest.mark.parametrize(
    ("llms", "args", "error", "message"),
    [
        ([], {}, DefinitionError, "llms is empty"),
        (["gpt"], {}, ArgumentTypeError, "llms has 'gpt', which is not an LLM"),
        ([Echo(), Echo()], {}, DefinitionError, 'two judges are called "echo"'),
        ({"verdicts": Echo()}, {}, DefinitionError, 'two columns are called "verdicts"'),
        ({"x": Echo(), "x, a first": Echo()}, {}, DefinitionError, 'two columns are called "x, a first"'),
        ([Echo()], {"max_new_token": 5}, DefinitionError, 'no argument "max_new_token".*"max_new_tokens"'),
    ],
)
def test_wrong_judges_are_refused(session: DataDreamer, llms: Any, args: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        panel(llms, **args)


@pytest.mark.parametrize(
    ("gold", "error", "message"),
    [(["A", None], LabelError, '"Panel": gold has "A" in row 0'), ([None, None], EmptyDataset, "gold has no label")],
)
def test_wrong_gold_verdicts_are_refused_before_a_judge_is_asked(
    session: DataDreamer, gold: Any, error: type[Exception], message: str
):
    llm = Echo()
    data = DataSource("Pairs", {"a": ["x", "y"], "b": ["z", "w"], "gold": gold}).output
    with pytest.raises(error, match=message):
        Judges("Panel", inputs={name: data[name] for name in ("a", "b", "gold")}, args={"llms": [llm]})
    assert llm.asked == []


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Tie", "tie"),
        ("**Tie.**", "tie"),
        ("It's a draw", "tie"),
        ("Both are good.\nVerdict: tie", "tie"),
        ("They are equally good.", "tie"),
        ('{"winner": "tie"}', "tie"),
        ("Neither", "tie"),
        ("The answer is 'Tie'", "tie"),
        ("I would respond with 'Tie'.", "tie"),
        ("Response: Tie", "tie"),
        ("Tie - both are brief.", "tie"),
        ("Tie, because both say the same.", "tie"),
        ("Tie. Both of them answer the question.", "tie"),
        ("They say the same. So, it's a tie between them.", "tie"),
        ("Response A and Response B are equally good.", "tie"),
        ("Response A", "a"),
        ("Tie, but Response B is better.", "b"),
        ("Tie: not at all.", None),
        ("Tie is one of the three answers.", None),
        ("I would not respond with 'Tie'.", None),
        ("Is it a tie?", None),
        ("Respond with 'Response A', 'Response B' or 'Tie'.", None),
        ("Not a tie: Response B is better.", "b"),
        ("A tie would be too kind.", None),
        ("It is hard to say.", None),
        ("", None),
    ],
)
def test_ties_are_read_where_they_are_the_verdict(text: str, verdict: str | None):
    assert read_winner_or_tie(text, "Response A:", "Response B:") == verdict


SCRIPT = """
    import json, sys
    from datadreamer_like import DataDreamer
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Judges

    folder, url, result = sys.argv[1:]
    with DataDreamer(folder):
        pairs = {"a": [f"points {2 * i}" for i in range(60)], "b": ["points 59"] * 60}
        rows = DataSource("Pairs", {**pairs, "gold": ["b"] * 10 + [None] * 50}).output
        args = {"llms": {"one": OpenAI("m", base_url=url)}, "concurrency": 4}
        panel = Judges("Panel", inputs={name: rows[name] for name in ("a", "b", "gold")}, args=args)
        json.dump(list(panel.output["verdicts"]), open(result, "w"))
"""


def test_a_killed_panel_asks_only_what_was_in_flight_again(tmp_path: Path):
    def behave(body: dict[str, Any], before: int) -> Reply:
        return Reply(honest(prompt_of(body)), seconds=0.01)

    result = tmp_path / "result.json"
    with FlakyServer(behave) as server:
        script = Script(SCRIPT, tmp_path / "panel.py", warm=True)
        process = script.start(str(tmp_path / "out"), server.url, str(result))
        while len(server.requests) < 80:  # the second order has begun
            assert process.poll() is None, process.communicate()
        process.kill()
        process.communicate()
        while server.under_way:
            pass
        script.run(str(tmp_path / "out"), server.url, str(result))
        assert len(server.requests) <= 120 + 4
        assert json.loads(result.read_text()) == ["b"] * 30 + ["a"] * 30
        script.run(str(tmp_path / "out"), server.url, str(result))
        assert len(server.requests) <= 120 + 4


def test_gold_verdicts_without_a_winner_are_warned_of(session: DataDreamer, caplog: pytest.LogCaptureFixture) -> None:
    rows = DataSource("Rows", {"a": ["x", "y"], "b": ["x", "z"], "gold": ["tie", None]}).output
    llms = [FakeLLM(lambda prompt: "Tie")]
    Judges("Panel", inputs={name: rows[name] for name in ("a", "b", "gold")}, args={"llms": llms})
    assert "all gold verdicts are ties" in caplog.text
