"""Splits by groups: no group is ever cut, groups come from a column or from the seeds that rows grew from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like import DataDreamer, concat, zipped
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, UnknownColumn
from datadreamer_like.steps import CritiqueAndRevise, DataSource, Deduplicate, From, Personas, Step, Traced
from datadreamer_like.testing import FakeLLM


@settings(max_examples=10, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=12, max_size=60),
    shares=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.6, None, 0.4), (9, 2, None)]),
)
def test_no_group_is_cut_and_all_rows_are_there(groups: list[int], shares: tuple[Any, Any, Any]):
    sizes = dict(zip(("train_size", "validation_size", "test_size"), shares, strict=True))
    with DataDreamer(":memory:", verbose=False):
        rows = DataSource("Rows", {"group": groups, "row": list(range(len(groups)))})
        names = [name for name in sizes if sizes[name]]
        if len(set(groups)) < len(names):
            with pytest.raises(DefinitionError, match="too few for"):
                rows.splits(**sizes, group_by="group")
            return
        parts = rows.splits(**sizes, group_by="group")
        found = {name: {*step.output["group"]} for name, step in parts.items()}
        assert all(found.values())
        assert sum(map(len, found.values())) == len(set.union(*found.values()))  # none in two
        taken = sorted(row for step in parts.values() for row in step.output["row"])
        assert len(taken) == len(set(taken))
        if isinstance(shares[0], float):
            assert taken == list(range(len(groups)))
        for name in set.union(*found.values()):  # none partly left out
            assert sum(label == name for label in groups) == sum(groups[row] == name for row in taken)


def test_sizes_are_met_to_within_a_group(session: DataDreamer):
    groups = [row // 4 for row in range(400)]
    parts = DataSource("Rows", {"group": groups}).splits(
        train_size=0.7, validation_size=0.1, test_size=0.2, group_by="group"
    )
    for name, share in (("train", 280), ("validation", 40), ("test", 80)):
        assert abs(len(parts[name].output) - share) <= 4
    again = DataSource("Again", {"group": groups}).splits(
        train_size=0.7, validation_size=0.1, test_size=0.2, group_by="group"
    )
    assert list(again["test"].output["group"]) == list(parts["test"].output["group"])
    assert len(set(parts["test"].output["group"])) < max(parts["test"].output["group"])  # drawn, not the last ones


def test_a_split_is_filled_with_a_group_that_is_left_out_and_not_with_the_only_one_of_another(session: DataDreamer):
    rows = DataSource("Rows", {"group": [0] * 5 + [1] * 5})
    parts = rows.splits(train_size=3, test_size=1, group_by="group")
    train, test = (list(parts[name].output["group"]) for name in ("train", "test"))
    assert sorted([train, test]) == [[0] * 5, [1] * 5]


class Grow(Step):
    """Three rows from each seed; every fifth row also from the next seed."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_output("text")

    def run(self) -> Any:
        texts = list(self.inputs["texts"])
        rows = [[seed, (seed + 1) % len(texts)] if seed % 5 == 4 else [seed] for seed in range(len(texts))] * 3
        return Traced({"text": [f"{texts[row[0]]}, grown" for row in rows]}, From("texts", rows))


class Forgetful(Step):
    """Does not state where its rows come from."""

    def setup(self) -> None:
        self.register_input("texts")
        self.register_output("text")

    def run(self) -> Any:
        return [text for text in self.inputs["texts"] for _ in range(2)]


def seeds_of(step: Step, name: str) -> list[set[int]]:
    """The seeds of each row, as `trace` shows them."""
    return [
        {each.index for each in step.trace(row).walk() if each.node == name and each.index is not None}
        for row in range(len(step.output))
    ]


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_grown_from_one_seed_are_in_one_split_through_any_steps(tmp_path: Path, lazy: bool):
    sizes: dict[str, Any] = {"train_size": 0.7, "test_size": 0.3}
    tests = []
    for run in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            seeds = DataSource("Seeds", {"text": [f"seed {n}" for n in range(40)]})
            grown = Grow("Grown", inputs={"texts": seeds.output["text"]})
            longer = grown.map(lambda row: {"length": len(row["text"])}, lazy=lazy).filter(lambda row: True, lazy=lazy)
            other = DataSource("Others", {"text": [f"other {n}" for n in range(10)]})
            rows = concat(seeds, longer, other, lazy=lazy).shuffle(seed=1, lazy=False)
            once = Deduplicate("Once", inputs={"inputs": rows.output["text"]})
            parts = once.splits(**sizes, group_by=seeds, name=f"Parts of run {run}")
            of = {name: seeds_of(part, "Seeds") for name, part in parts.items()}
            split = {name: set().union(*found) for name, found in of.items()}
            assert not split["train"] & split["test"]
            assert split["train"] | split["test"] == {*range(40)}
            assert sum(len(part.output) for part in parts.values()) == len(once.output)
            assert any(text.startswith("other") for text in parts["train"].output["text"])
            assert 5 < len(parts["test"].output) < 35
            tests.append(list(parts["test"].output["text"]))
    assert tests[0] == tests[1]


def test_rows_grown_from_one_seed_by_steps_of_several_rounds_are_in_one_split(tmp_path: Path):
    for sizes in ((0.5, 0.5), (0.4, 0.6)):  # the second run loads the results of the steps, not those inside them
        with DataDreamer(tmp_path / "out", verbose=False):
            args = {"llm": FakeLLM(lambda prompt: "Yes." if "good as it is" in prompt else f"Said {len(prompt)}.")}
            seeds = DataSource("Seeds", {"text": [f"seed {'x' * n}" for n in range(12)]})
            people = Personas("People", {"texts": seeds.output["text"]}, {**args, "expansions": 1})
            better = CritiqueAndRevise("Better", {"prompts": people.output["personas"]}, args)
            rows = better.filter(lambda row: row["content"], lazy=True)
            parts = rows.splits(train_size=sizes[0], test_size=sizes[1], group_by=seeds)
            train, test = (set().union(*seeds_of(part, "Seeds")) for part in parts.values())
            assert not train & test
            assert train | test == {*range(12)}
            assert sum(len(part.output) for part in parts.values()) == 24
            assert [row.index for row in better.trace(13).walk() if row.node == "Seeds"] == [1]


def test_seeds_that_share_a_row_are_one_group(session: DataDreamer):
    seeds = DataSource("Seeds", {"text": ["a", "b", "c", "d", "e", "f"]})
    grown = Grow("Grown", inputs={"texts": seeds.output["text"]})  # e's row is of f too
    parts = grown.splits(train_size=0.5, test_size=0.5, group_by=seeds)
    together = [{*part.output["text"]} for part in parts.values()]
    assert any({"e, grown", "f, grown"} <= texts for texts in together)


def test_what_rows_cannot_be_grouped_by_is_named(session: DataDreamer):
    seeds = DataSource("Seeds", {"text": ["a", "b", "c", "d"]})
    other = DataSource("Other", {"number": [1, 2, 3, 4]})
    with pytest.raises(ArgumentTypeError, match="group_by is 5; expected the name of a column, or a step"):
        seeds.splits(train_size=0.5, test_size=0.5, group_by=5)  # type: ignore[arg-type]
    with pytest.raises(UnknownColumn, match='has no column "txt"'):
        seeds.splits(train_size=0.5, test_size=0.5, group_by="txt")
    with pytest.raises(DefinitionError, match='"Seeds" is not made from "Other"'):
        seeds.splits(train_size=0.5, test_size=0.5, group_by=other)
    with pytest.raises(DefinitionError, match="stratify_by_column or group_by, not both"):
        seeds.splits(train_size=0.5, test_size=0.5, group_by="text", stratify_by_column="text")
    forgetful = Forgetful("Forgetful", inputs={"texts": seeds.output["text"]})
    with pytest.raises(DefinitionError, match='The origin of the rows of "Forgetful" is unknown.*Traced'):
        forgetful.splits(train_size=0.5, test_size=0.5, group_by=seeds)
    parts = zipped(seeds, other).splits(train_size=0.5, test_size=0.5, group_by=other)
    assert sorted(len(part.output) for part in parts.values()) == [2, 2]
