"""Results: kept where they belong or made on demand; failed rows are part of them; a crash leaves both old and new."""

import json
import logging
import os
import pickle
import random

import pytest

from datadreamer_like import DataDreamer
from datadreamer_like.errors import ModelError, RejectedAnswer, Unavailable
from datadreamer_like.graph import results
from datadreamer_like.graph.engine import Engine
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.manifest import Manifest, row_ranges
from datadreamer_like.graph.node import Node
from datadreamer_like.graph.results import Kept, OnDemand, Results, Wanted


class Counts(Node):
    """Counts to its argument, and fails the rows that it is told to."""

    kind = "step"

    def __init__(self, name, rows, failing=(), lazy=False, error=Unavailable):
        self.rows, self.failing, self.lazy, self.error = rows, failing, lazy, error
        super().__init__(name)
        self.outcome = self.find_or_make()

    def fingerprint_parts(self):
        return {"rows": fingerprint(self.rows), "failing": fingerprint(list(self.failing))}

    def build(self, draft):
        if self.lazy:
            return OnDemand(lambda: range(self.rows))
        for row in self.failing:
            self.usage.row_failed(row, self.error(f"row {row} is odd"))
        (draft / "rows").write_text(str(self.rows))
        return self.kept(rows=self.rows)


def test_a_result_on_demand_is_returned_and_nothing_of_it_is_kept(tmp_path):
    with DataDreamer(tmp_path):
        node = Counts("Lazy", 3, lazy=True)
        assert isinstance(node.outcome, OnDemand)
        assert list(node.outcome.value()) == [0, 1, 2]
        assert node.manifest is None
    assert [file.name for file in tmp_path.rglob("*") if file.is_file() and file.parent.name != ".locks"] == [
        ".session.json"
    ]
    assert not list(tmp_path.rglob("*draft*"))


def test_a_kept_result_says_whether_it_was_found(tmp_path):
    for found in (False, True):
        with DataDreamer(tmp_path):
            outcome = Counts("Two", 2).outcome
        assert isinstance(outcome, Kept)
        assert outcome.found is found
        assert outcome.manifest.rows == 2


def test_failed_rows_are_part_of_the_result_and_all_are_known_again(tmp_path):
    failing = sorted(random.Random(0).sample(range(10_000), 3_000))
    for _ in range(2):
        with DataDreamer(tmp_path, verbose=False):
            node = Counts("Some fail", 10_000, failing)
        assert node.manifest.failed == failing
        assert node.card.failed_rows == 3_000
        assert len(node.manifest.failures) == 1_000
        assert node.manifest.failures[str(failing[0])] == f"row {failing[0]} is odd"
    assert len(json.loads((tmp_path / "some-fail" / "node.json").read_text())["failed_rows"]) < 20_000


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (Unavailable, "The next run requests them again."),
        (RejectedAnswer, "They would fail again; force=True tries them anyway."),
        (
            lambda text: (Unavailable if "20" in text else RejectedAnswer)(text),
            "The next run requests 1 of them again.",
        ),
    ],
)
def test_every_run_says_how_many_rows_failed_and_what_becomes_of_them(tmp_path, caplog, error, hint):
    caplog.set_level(logging.INFO, "datadreamer_like")
    for _ in range(2):
        caplog.clear()
        with DataDreamer(tmp_path):
            node = Counts("Some fail", 30, [20, 3], error=error)
        (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        said = "Some fail: 2 of its rows failed and have no value; the first is row 3: row 3 is odd"
        assert warning == f"{said} {hint}"
    assert node.outcome.found is (error is RejectedAnswer)
    assert "2 failed" in caplog.text


def test_a_result_stays_in_use_where_its_failed_rows_cannot_be_requested_again(tmp_path, caplog):
    class Unreachable(Counts):
        def build(self, draft):
            raise ModelError("no network")

        def fingerprint_parts(self):
            return {"rows": fingerprint(self.rows), "failing": fingerprint(list(self.failing))}

    with DataDreamer(tmp_path):
        first = Counts("Some fail", 30, [3])
    with DataDreamer(tmp_path):
        second = Unreachable("Some fail", 30, [3])
    assert second.outcome.found
    assert second.result_folder == first.result_folder
    assert "cannot be requested again now, so the earlier result is used: no network" in caplog.text


@pytest.mark.parametrize("rows", [[], [0], [3, 7, 8, 9], [9, 8, 8, 1], list(range(1_000_000))])
def test_row_indices_survive_as_ranges(rows):
    text = row_ranges(rows)
    assert Manifest("", "", "", {}, failed_rows=text).failed == sorted(set(rows))
    assert len(text) < 20


def test_whoever_dies_while_a_result_is_promoted_leaves_both_findable(tmp_path, monkeypatch):
    results = Results(tmp_path)
    results.open()
    _, folder = results.claim("It")

    def wanted(content):
        return Wanted("It", folder, content, {"content": content})

    def build(content):
        def made(draft):
            (draft / "content").write_text(content)
            return Kept(Manifest("It", "X", content, {"content": content}))

        return made

    results.make(wanted("old"), build("old"))
    replace, done = os.replace, []

    def dies_at(step):
        def replaced(source, target):
            if len(done) == step:
                raise KeyboardInterrupt
            done.append(target)
            replace(source, target)

        return replaced

    for step in range(3):  # the seal, the manifest, the link
        done.clear()
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", dies_at(step))
            with pytest.raises(KeyboardInterrupt):
                results.make(wanted(f"new {step}"), build(f"new {step}"))
        for content in ("old", *([f"new {step}"] if step == 2 else [])):
            found = results.make(wanted(content), build("made again"))
            assert found.found, f"{content} is lost where it died at step {step}"
            assert (found.place / "content").read_text() == content
            assert (folder / "content").read_text() == content


def test_results_survive_a_pickle_with_their_node(tmp_path):
    again = pickle.loads(pickle.dumps(Results(tmp_path)))
    assert again.folder == tmp_path
    assert again.claim("It") == ("It", tmp_path / "it")


@pytest.mark.parametrize("inside", [None, "Outer"])
def test_names_in_use_get_the_next_number_also_the_thousandth(tmp_path, inside, monkeypatch):
    slugs = []
    monkeypatch.setattr(results, "_slug", lambda name: slugs.append(name) or name.lower())
    claimed = Results(tmp_path)
    prefix = "" if inside is None else f"{inside} / "
    assert claimed.claim("Step #3", inside)[0] == f"{prefix}Step #3"
    names = [claimed.claim("Step", inside)[0].removeprefix(prefix) for _ in range(1_000)]
    assert names == ["Step", "Step #2", *(f"Step #{count}" for count in range(4, 1_002))]
    assert len(slugs) < 8_000  # not quadratic


def test_a_free_name_that_is_not_claimed_stays_free(tmp_path):
    claimed = Results(tmp_path)
    for expected in ["Rows (map)", "Rows (map #2)", "Rows (map #3)", "Rows (map #4)"]:
        for _ in range(3):
            assert claimed.free_name("Rows (map)", lambda count: f"Rows (map #{count})") == expected
        assert claimed.claim(expected)[0] == expected
    assert [claimed.claim("rows (MAP)")[0] for _ in range(2)] == ["rows (MAP) #2", "rows (MAP) #3"]


def test_the_local_engine_applies_a_function_in_order_and_no_further_than_asked():
    read = []

    def batches():
        for index in range(5):
            read.append(index)
            yield [index]

    def doubled(given):
        return ([2 * value for value in batch] for batch in given)

    made = Engine().batches(doubled, batches(), "the test", {})
    assert next(made) == [0]
    assert read == [0]
    assert list(made) == [[2], [4], [6], [8]]
