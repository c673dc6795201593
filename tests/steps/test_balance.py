"""Balance draws exact counts; FindLabelErrors finds planted errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    DataError,
    DefinitionError,
    EmptyDataset,
    LabelError,
    UnknownColumn,
)
from datadreamer_like.steps import Balance, DataSource, FindLabelErrors, Step


def balanced(labels: list[Any], **args: Any) -> Step:
    rows = DataSource("Rows", {"label": labels, "row": list(range(len(labels)))})
    return Balance("Even", inputs={"inputs": rows.output["label"]}, args=args)


@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    weights=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    n=st.integers(1, 60),
    seed=st.integers(0, 5),
)
def test_counts_are_those_of_the_shares_to_within_rounding(counts: list[int], weights: list[int], n: int, seed: int):
    labels = [name for name, count in zip("abcd", counts, strict=False) for _ in range(count)]
    shares = {name: weight for name, weight in zip("abcd", weights, strict=True) if name in labels}
    have, sum_of = Counter(labels), sum(shares.values())
    with DataDreamer(":memory:", verbose=False):
        for args in ({"by": "down"}, {"by": "up"}, {"n": n}):
            step = balanced(labels, shares=shares, seed=seed, **args)
            rows, drawn = Counter(step.output["row"]), Counter(step.output["label"])
            total = drawn.total()
            for name, share in shares.items():
                assert abs(drawn[name] - total * share / sum_of) < 1
                times = [rows[row] for row, label in enumerate(labels) if label == name]
                assert max(times) - min(times) <= 1 or drawn[name] <= have[name]
                assert max(times) <= max(1, -(-drawn[name] // have[name]))  # repeated only if there are too few
            if args == {"by": "down"}:  # one more row of each would need rows that are not there
                assert max(rows.values(), default=1) == 1
                assert any((total + sum_of) * share / sum_of > have[name] for name, share in shares.items())
            elif args == {"by": "up"}:
                assert set(rows) == {*range(len(labels))}
            else:
                assert total == n
            assert list(step.output["row"]) == sorted(step.output["row"])


def test_equal_shares_are_the_default_and_both_distributions_are_reported(session: DataDreamer):
    labels = ["a"] * 6 + ["b"] * 2 + ["c"] * 3
    step = balanced(labels)
    assert Counter(step.output["label"]) == {"a": 2, "b": 2, "c": 2}
    assert step.card.facts["Distribution"] == (
        "a 2 (33.3 %), b 2 (33.3 %), c 2 (33.3 %); before: a 6 (54.5 %), c 3 (27.3 %), b 2 (18.2 %)"
    )
    assert [step.trace(place).parents[0].index for place in range(6)] == list(step.output["row"])
    up = balanced(labels, by="up")
    assert Counter(up.output["label"]) == {"a": 6, "b": 6, "c": 6}
    assert [up.trace(place).parents[0].index for place in range(18)] == list(up.output["row"])
    left_out = balanced(labels, shares={"a": 1, "b": 1, "c": 0})
    assert Counter(left_out.output["label"]) == {"a": 2, "b": 2}
    assert Counter(balanced([True, True, False]).output["label"]) == {True: 1, False: 1}


def test_rows_of_one_label_have_nothing_to_balance(session: DataDreamer, caplog: pytest.LogCaptureFixture):
    assert list(balanced(["a"] * 3).output["row"]) == [0, 1, 2]
    assert "all rows have the label 'a'" in caplog.text


def test_a_seed_decides_which_rows_are_drawn(session: DataDreamer):
    labels = ["a"] * 50 + ["b"] * 5
    drawn = [list(balanced(labels, seed=seed).output["row"]) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("labels", "args", "error", "message"),
    [
        (["a", None], {}, LabelError, "row 1 has the label None"),
        ([["a"], ["b"]], {}, LabelError, r"row 0 has the label \['a'\]; expected one label"),
        (["spam", "ham"], {"shares": {"spam": 1, "hum": 1}}, LabelError, "'ham', which is not in shares.*Did you mean"),
        (["a"], {"shares": {"a": 1, "b": 1}}, LabelError, "no row has the label 'b'"),
        (["a"], {"shares": {"a": 0}}, DefinitionError, "no label in shares has a share"),
        (["a"], {"shares": {"a": -1}}, DefinitionError, "the share of 'a' is -1"),
        (["a"], {"shares": {"a": "half"}}, ArgumentTypeError, "the share of 'a' must be a number"),
        (["a"], {"by": "sideways"}, DefinitionError, 'expected "down" or "up"'),
        (["a"], {"n": 0}, DefinitionError, "n is 0"),
    ],
)
def test_labels_and_shares_that_do_not_fit_are_named(
    session: DataDreamer, labels: list[Any], args: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        balanced(labels, **args)


def noisy(rows: int = 240) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """Three clusters, with every tenth label moved to the next cluster."""
    rng = np.random.default_rng(0)
    true = rng.integers(3, size=rows)
    vectors = np.eye(3)[true] * 7 + rng.normal(size=(rows, 3))
    given = np.where(np.arange(rows) % 10 == 0, (true + 1) % 3, true)
    return vectors, [f"class {label}" for label in given], [f"class {label}" for label in true]


def test_planted_label_errors_are_found_with_the_right_label(session: DataDreamer):
    vectors, labels, true = noisy()
    rows = DataSource("Rows", {"vector": [*vectors.tolist(), None], "label": [*labels, "class 0"], "true": [*true, ""]})
    inputs = {"inputs": rows.output["vector"], "labels": rows.output["label"]}
    found = FindLabelErrors("Suspects", inputs=inputs)
    assert len(found.output) == 241
    wrong = {row for row in range(240) if labels[row] != true[row]}
    suspects = [found.rejected.trace(row).parents[0].index for row in range(len(found.rejected.output))]
    assert len(wrong & {*suspects}) >= 0.85 * len(wrong)
    assert len({*suspects} - wrong) <= 0.15 * len(wrong)
    right = sum(row["suggested_label"] == row["true"] for row in found.rejected.output)
    assert right >= 0.9 * len(suspects)
    assert found.output[240]["reason"] is None
    assert found.output[240]["error_probability"] is None
    assert "of the labels are estimated to be wrong" in found.card.facts["Label noise"]
    dropped = FindLabelErrors("Clean", inputs=inputs, args={"drop": True})
    assert len(dropped.output) == 241 - len(suspects)
    assert dropped.output.column_names == ["vector", "label", "true"]


def test_trusted_rows_are_no_suspects_and_columns_of_other_steps_are_refused(session: DataDreamer):
    vectors, labels, true = noisy()
    trusted = [row % 20 == 0 for row in range(240)]
    rows = DataSource("Rows", {"vector": vectors.tolist(), "label": labels, "trusted": trusted})
    inputs = {"inputs": rows.output["vector"], "labels": rows.output["label"], "trusted": rows.output["trusted"]}
    found = FindLabelErrors("Suspects", inputs=inputs)
    assert not any(row["trusted"] for row in found.rejected.output)
    other = DataSource("Other", {"label": labels})
    with pytest.raises(UnknownColumn, match='input "labels" must be a column of "Rows"'):
        FindLabelErrors("Suspects", inputs={"inputs": rows.output["vector"], "labels": other.output["label"]})
    nothing = DataSource("Nothing", {"text": ["a", None], "label": [None, "x"]})
    with pytest.raises(EmptyDataset, match='"Suspects #2": no row has both an input and a label'):
        FindLabelErrors("Suspects", inputs={"inputs": nothing.output["text"], "labels": nothing.output["label"]})
    few = DataSource("Few", {"text": ["a b", "c d"], "label": ["x", "y"]})
    with pytest.raises(DataError, match="fewer rows than the 5 folds"):
        FindLabelErrors("Suspects", inputs={"inputs": few.output["text"], "labels": few.output["label"]})


def test_a_rerun_finds_its_draw(tmp_path: Path):
    drawn = []
    for _ in range(2):
        with DataDreamer(tmp_path / "out", verbose=False):
            drawn.append(list(balanced(["a"] * 9 + ["b"] * 3).output["row"]))
    assert drawn[0] == drawn[1]
