"""TrainOpenAIFineTune: what the server receives, once each whatever is killed or lost, and what becomes of the job."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from warm import CONTEXT

from datadreamer_like import DataDreamer
from datadreamer_like.errors import (
    ArgumentTypeError,
    AuthenticationFailed,
    DataError,
    DefinitionError,
    ModelError,
    NotTrained,
    StorageError,
    Unavailable,
)
from datadreamer_like.models import OpenAI
from datadreamer_like.stages import Compare
from datadreamer_like.trainers import TrainOpenAIFineTune

from .conftest import Rows
from .fine_tuning_server import FineTuningServer

PROMPTS = [*(f"{n} + 1 =" for n in range(9)), 'Say "é🙂"\n\ttwice \\ '] * 2
ANSWERS = [*(str(n + 1) for n in range(9)), "é🙂\u2028é🙂"] * 2
RUNNING = [{"status": "validating_files"}, {"status": "queued"}, {"status": "running"}]
JOBS = "POST /fine_tuning/jobs"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setattr(OpenAI, "retry_seconds", 0.005)
    monkeypatch.setattr(TrainOpenAIFineTune, "poll_seconds", 0.01)


@pytest.fixture
def server() -> Iterator[FineTuningServer]:
    with FineTuningServer([*RUNNING, {"status": "succeeded"}]) as serving:
        yield serving


def trainer(server: FineTuningServer, name: str = "It", **options: Any) -> TrainOpenAIFineTune:
    return TrainOpenAIFineTune(name, "base", base_url=server.url, **options)


def columns(prompts: list[Any] = PROMPTS, answers: list[Any] = ANSWERS, validation: int = 3) -> dict[str, Any]:
    train = Rows("Train", {"prompt": prompts, "answer": answers}).output
    names = {"train_input": train["prompt"], "train_output": train["answer"]}
    if not validation:
        return {**names, "validation_input": None, "validation_output": None}
    held_out = Rows("Validation", {"prompt": prompts[:validation], "answer": answers[:validation]}).output
    return {**names, "validation_input": held_out["prompt"], "validation_output": held_out["answer"]}


def expected(prompts: list[str], answers: list[str], system: str = "") -> bytes:
    """The format that the API documents: JSON lines of chats."""
    start = f'{{"role": "system", "content": {json.dumps(system, ensure_ascii=False)}}}, ' if system else ""
    return "".join(
        f'{{"messages": [{start}{{"role": "user", "content": {json.dumps(prompt, ensure_ascii=False)}}}, '
        f'{{"role": "assistant", "content": {json.dumps(answer, ensure_ascii=False)}}}]}}\n'
        for prompt, answer in zip(prompts, answers, strict=True)
    ).encode()


# What is sent


def test_the_server_receives_the_rows_byte_for_byte_and_the_hyperparameters(session, server):
    it = trainer(server, system_prompt='Be "brief".\n').train(
        **columns(), epochs=2.0, batch_size=4, learning_rate_multiplier=0.5, seed=7, suffix="sums"
    )
    (train, validation), (settings,) = server.files.values(), server.created
    assert server.contents[train["id"]] == expected(PROMPTS, ANSWERS, 'Be "brief".\n')
    assert server.contents[validation["id"]] == expected(PROMPTS[:3], ANSWERS[:3], 'Be "brief".\n')
    assert {file["purpose"] for file in server.files.values()} == {"fine-tune"}
    chosen = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert settings == {
        "model": "base", "training_file": train["id"], "validation_file": validation["id"], "seed": 7, "suffix": "sums",
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
    }  # fmt: skip
    assert it.model == it.model_path == "ft:base:org::ftjob-0"


def test_what_is_auto_is_left_to_the_server_and_validation_rows_are_optional(session, server):
    trainer(server).train(**columns(validation=0))
    assert server.created == [{"model": "base", "training_file": "file-0", "method": {"type": "supervised"}}]
    assert list(server.contents.values()) == [expected(PROMPTS, ANSWERS)]


def test_the_key_of_the_environment_is_not_sent_to_another_server(session, server, monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment-key")
    trainer(server, "One").train(**columns())
    trainer(server, "Two", api_key="sk-given-key", organization="org-1").train(**columns(), seed=1)
    assert {each["authorization"] for each in server.headers} == {"Bearer none", "Bearer sk-given-key"}
    assert server.headers[-1]["openai-organization"] == "org-1"
    written = [path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()]
    assert not any(b"sk-given-key" in content for content in written)


@pytest.mark.parametrize("truncate", [True, False])
def test_prompts_are_cut_to_the_context_window_or_their_rows_refused(session, server, truncate, caplog):
    long = ["short"] * 9 + ["word " * 200]
    it = trainer(server, max_context_length=100)
    if not truncate:
        with pytest.raises(DataError, match=r"train_input: row 9 and its answer exceed the 100 tokens.*truncate=True"):
            it.train(**columns(long, ["yes"] * 10), truncate=False)
        assert not server.files
        return
    with caplog.at_level(logging.WARNING, "datadreamer_like"):
        it.train(**columns(long, ["yes"] * 10))
    assert "1 rows exceed the context window" in caplog.text
    *others, cut = map(json.loads, server.contents["file-0"].splitlines())
    assert [row["messages"][0]["content"] for row in others] == ["short"] * 9
    sent = cut["messages"][0]["content"]
    assert long[9].startswith(sent)
    limit = it.get_max_context_length(0) - it.count_tokens("yes")
    assert it.llm.final_count_tokens(sent) <= limit < it.llm.final_count_tokens(long[9][: len(sent) + 1])


# What becomes of it


def test_the_state_and_the_losses_are_shown_while_the_job_runs(session, server):
    it = trainer(server, training_price=3.0)
    notes: list[str] = []  # what is shown when the server is asked again: the state before

    def report(request: str, done: bool) -> None:
        if request != "GET /fine_tuning/jobs/ID":
            return
        if not done:
            notes.append(it.usage.note)
        elif len(notes) == 3:
            for step in range(1, 6):
                server.metrics(step, train_loss=1 / step, valid_loss=2.0)
            server.metrics(10, train_loss=0.125, valid_loss=2.0, full_valid_loss=0.25)

    server.fault = report
    it.train(**columns())
    assert notes[1] == "job ftjob-0 validating files"
    assert notes[3] == "job ftjob-0 running, step 10 of 10, training loss 0.125, validation loss 0.250"
    assert it.metrics == {"loss": 0.125, "eval_loss": 0.25}
    assert [(p["step"], p["epoch"], p["loss"]) for p in it.curves] == [
        *((n, pytest.approx(3 * n / 10), 1 / n) for n in range(1, 6)), (10, 3, 0.125),
    ]  # fmt: skip
    assert it.card.base_model == "base"
    assert it.card.facts["Trained Tokens"] == "1234"
    assert it.card.cost == pytest.approx(3.0 * 1_234 / 1e6)


@pytest.mark.parametrize(("price", "shown"), [(None, "unknown"), (3.0, "0.003702 USD"), (1e6, "1234.00 USD")])
def test_the_cost_is_shown_with_its_digits_or_as_unknown(session, server, capsys, price, shown):
    it = trainer(server, training_price=price).train(**columns())
    assert it.card.cost == (None if price is None else pytest.approx(price * 1_234 / 1e6))
    it.model_card()
    facts = json.loads(capsys.readouterr().out)["It"]
    assert (facts["Cost"], facts["Fine-tuned Model"]) == ([shown], [it.model])


def test_the_fine_tuned_model_is_prompted_as_it_was_trained(session, server):
    it = trainer(server, system_prompt="Sum.", api_key="sk-given-key", organization="org-1", timeout=5.0)
    with pytest.raises(NotTrained, match=r'TrainOpenAIFineTune "It" is not trained yet'):
        _ = it.model
    with pytest.raises(NotTrained):
        OpenAI(it)
    it.train(**columns())
    llm = OpenAI(it)
    assert (llm.model_name, llm.base_url, llm.key) == (it.model, server.url, "sk-given-key")
    assert (llm.system_prompt, llm.organization, llm.timeout) == ("Sum.", "org-1", 5.0)
    assert OpenAI(it, system_prompt="Other.").system_prompt == "Other."
    elsewhere = OpenAI(it, base_url="http://localhost:1/v1")
    assert (elsewhere.base_url, elsewhere.key) == ("http://localhost:1/v1", "none")
    assert OpenAI(it.model, base_url=server.url).model_name == llm.model_name
    with pytest.raises(ArgumentTypeError, match="model_name must be a text"):
        OpenAI(3)


def test_a_finished_training_is_loaded_and_a_changed_or_forced_one_is_another_job(tmp_path, server):
    for changes, jobs in (({}, 1), ({}, 1), ({"epochs": 1}, 2), ({}, 2)):
        with DataDreamer(tmp_path / "output", verbose=False):
            it = trainer(server).train(**columns(), **changes)
        assert len(server.jobs) == jobs
    assert it.model == "ft:base:org::ftjob-0"
    with DataDreamer(tmp_path / "output", verbose=False):
        assert trainer(server, force=True).train(**columns()).model == "ft:base:org::ftjob-2"
    assert server.files["file-4"]["filename"] != server.files["file-0"]["filename"]


def test_another_timeout_is_not_another_job(tmp_path, server):
    for waiting in ({}, {"timeout": 20}, {"timeout": 60.0}):
        with DataDreamer(tmp_path / "output", verbose=False):
            trainer(server).train(**columns(), **waiting)
    assert len(server.jobs) == 1


def test_what_needs_files_of_the_model_says_that_it_is_on_a_server(session, server):
    it = trainer(server).train(**columns())
    rows = Rows("Test", {"text": ["a"], "label": ["b"]}).output
    for use in (
        lambda: it.predict(["a"]),
        lambda: it.export_to_disk("x"),
        lambda: Compare("It", models=[it], inputs=rows["text"], labels=rows["label"]),
    ):
        with pytest.raises(DefinitionError, match=r'"It" is the model ft:base:org::ftjob-0 on a server, .*OpenAI\('):
            use()


# Failures


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            {"status": "failed", "error": {"code": "", "message": "Row 3 is unsafe (key sk-given-key).", "param": ""}},
            r'"It": the fine-tuning job ftjob-0 at http://[^ ]+ failed: Row 3 is unsafe \(key \.\.\.\)\. If',
        ),
        ({"status": "cancelled"}, r"ftjob-0 at http://[^ ]+ was cancelled: the server gives no reason\. If"),
    ],
    ids=["failed", "cancelled"],
)  # fmt: skip
def test_a_failed_or_cancelled_job_is_one_error_with_the_servers_words_and_the_next_run_makes_another(
    tmp_path, server, state, words
):
    server.states = [{"status": "running"}, state]
    with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(ModelError, match=words):
        trainer(server, api_key="sk-given-key").train(**columns())
    server.states = [{"status": "succeeded"}]
    with DataDreamer(tmp_path / "output", verbose=False):
        it = trainer(server, api_key="sk-given-key").train(**columns())
    assert it.model == "ft:base:org::ftjob-1"


@pytest.mark.parametrize("fault", [(429, "slow down"), (503, "busy"), "drop"], ids=["429", "503", "lost"])
@pytest.mark.parametrize("done", [False, True], ids=["refused", "answer lost"])
def test_every_request_is_sent_again_after_a_temporary_failure_and_nothing_is_made_twice(session, server, fault, done):
    failed: set[str] = set()

    def once(request: str, handled: bool) -> Any:
        if handled == done and request not in failed and request != "GET /models":
            failed.add(request)
            return fault
        return None

    server.fault = once
    it = trainer(server).train(**columns())
    assert it.model == "ft:base:org::ftjob-0"
    assert failed >= {"POST /files", JOBS, "GET /fine_tuning/jobs/ID", "GET /fine_tuning/jobs/ID/events"}
    assert (len(server.files), len(server.jobs)) == (2, 1)


LISTED = "GET /files"


def lost(*moments: tuple[str, bool]) -> Callable[[str, bool], Any]:
    """A fault that loses connections, at each moment once."""
    left = [*moments]

    def fault(request: str, done: bool) -> str | None:
        if (request, done) not in left:
            return None
        left.remove((request, done))
        return "drop"

    return fault


def test_a_server_without_events_gives_its_model_and_no_curve_with_one_warning(session, server, caplog):
    server.fault = lambda request, done: (404, "not here") if request.endswith("/events") else None
    it = trainer(server).train(**columns())
    assert it.model == "ft:base:org::ftjob-0"
    assert it.curves == []
    assert caplog.text.count("does not have the events of the job ftjob-0") == 1


@pytest.mark.parametrize("status", [429, 503])
def test_the_list_of_models_is_asked_for_again_after_a_temporary_failure(session, server, status):
    answers = [(status, "busy"), (status, "busy")]
    server.fault = lambda request, done: answers.pop() if request == "GET /models" and answers else None
    assert trainer(server).train(**columns()).model == "ft:base:org::ftjob-0"
    assert not answers


@pytest.mark.parametrize("gone", [(), ("file-1",), ("file-0", "file-1")], ids=["both", "one", "none"])
def test_a_job_after_a_failed_one_reuses_the_files_that_the_server_still_has(tmp_path, server, gone):
    server.states = [{"status": "failed", "error": None}]
    for _ in range(2):
        with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(ModelError, match="failed"):
            trainer(server).train(**columns())
    assert server.count("POST /files") == 2
    assert len(server.jobs) == 2
    for file in gone:
        del server.files[file]
    server.states = [{"status": "succeeded"}]
    server.fault = lost((JOBS, True))  # its own job is found, not one of those that failed
    with DataDreamer(tmp_path / "output", verbose=False):
        assert trainer(server).train(**columns()).model == "ft:base:org::ftjob-2"
    assert len(server.jobs) == 3
    assert server.count("POST /files") == 2 + len(gone)
    last = server.created[-1]
    assert {last["training_file"], last["validation_file"]} == set(server.files)


def test_a_server_that_does_not_list_jobs_or_files_is_named_where_a_job_may_be_paid_for(tmp_path, server):
    drop = lost(("POST /files", True), (JOBS, True))
    unlisted = {"GET /fine_tuning/jobs", LISTED}
    server.fault = lambda request, done: (404, "no list") if request in unlisted else drop(request, done)
    words = r"does not list its jobs, so there may be one.*training file file-\d, cancel it.*delete .*run again"
    for _ in range(2):
        with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(ModelError, match=words):
            trainer(server).train(**columns())
    assert len(server.jobs) == 1


def test_a_refused_key_ends_the_run_at_once_and_without_retries_so_does_a_busy_server(session, server):
    server.fault = lambda request, done: (401, "no such key")
    with pytest.raises(AuthenticationFailed, match="no such key"):
        trainer(server, "One").train(**columns())
    assert len(server.requests) == 1
    server.fault = lambda request, done: (503, "busy") if request == "POST /files" else None
    with pytest.raises(Unavailable):
        trainer(server, "Two", retry_on_fail=False).train(**columns(), seed=1)
    assert server.count("POST /files") == 1


def test_a_job_that_the_server_has_no_longer_is_not_paid_for_again_without_a_word(tmp_path, server):
    server.states = [{"status": "running"}]
    server.fault = lambda request, done: (400, "stop") if request.endswith("/events") else None
    with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(ModelError):
        trainer(server).train(**columns())
    server.jobs.clear()
    with DataDreamer(tmp_path / "output", verbose=False), pytest.raises(ModelError, match="does not have the fine-tun"):
        trainer(server).train(**columns())
    assert server.count(JOBS) == 1


@pytest.mark.parametrize("damage", [lambda text: text[:40], lambda text: text.replace("ftjob", "ftjoc"), lambda _: ""])
def test_a_damaged_note_of_a_job_is_named_and_no_other_job_is_paid_for(tmp_path, server, damage):
    server.states = [{"status": "running"}]
    server.fault = lambda request, done: (400, "stop") if request.endswith("/events") else None
    with DataDreamer(tmp_path, verbose=False), pytest.raises(ModelError):
        trainer(server).train(**columns())
    server.fault = lambda request, done: None
    (note,) = tmp_path.glob(".work/*/job.json")
    whole = note.read_text()
    note.write_text(damage(whole))
    assert note.read_text() != whole
    with DataDreamer(tmp_path, verbose=False), pytest.raises(StorageError, match=r'"It": .*job.json is damaged .*job'):
        trainer(server).train(**columns())
    assert server.count(JOBS) == 1
    assert server.count("POST /files") == 2


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = {
    "few rows": ({"prompts": PROMPTS[:9], "answers": ANSWERS[:9]}, {}, DataError, "has 9 rows; .* at least 10"),
    "empty answer": ({"answers": [*ANSWERS[:19], " "]}, {}, DataError, "train_output is empty in row 19"),
    "none": ({"prompts": [*PROMPTS[:19], None]}, {}, DataError, "train_input, .* is None in row 19"),
    "no text": ({"answers": list(range(20))}, {}, ArgumentTypeError, "train_output must contain texts; row 0 has 0"),
    "half": ({}, {"validation_output": None}, DefinitionError, "validation_input and validation_output both"),
    "epochs": ({}, {"epochs": 1.5}, DefinitionError, "epochs is 1.5; the API takes whole epochs"),
    "no epochs": ({}, {"epochs": 0}, DefinitionError, "epochs is 0; it must be at least 1"),
    "batch": ({}, {"batch_size": 2.0}, ArgumentTypeError, "batch_size must be a whole number"),
    "rate": ({}, {"learning_rate_multiplier": 0}, DefinitionError, "must be over 0"),
    "truncate": ({}, {"truncate": "no"}, ArgumentTypeError, "truncate must be True or False"),
    "unknown": ({}, {"sufix": "x"}, DefinitionError, 'no argument "sufix".*suffix'),
    "ours": ({}, {"method": {}}, DefinitionError, 'sets "method" itself'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_refused_before_anything_is_uploaded(session, server, kind):
    rows, arguments, error, words = BAD[kind]
    with pytest.raises(error, match=words):
        trainer(server).train(**{**columns(**rows), **arguments})
    assert not server.files


def test_a_prompt_cannot_make_room_for_an_answer_that_is_too_long(session, server):
    with pytest.raises(DataError, match=r"row 9 and its answer exceed the 100 tokens.*Shorten the answer"):
        trainer(server, max_context_length=100).train(**columns(["a"] * 10, ["b"] * 9 + ["c" * 400]))
    assert not server.files


# Kills


def run(url: str, folder: Path) -> None:
    TrainOpenAIFineTune.poll_seconds = 0.01  # type: ignore[misc]
    with DataDreamer(folder, verbose=False):
        it = TrainOpenAIFineTune("It", "base", base_url=url).train(**columns())
    (folder.parent / "model").write_text(it.model)


@pytest.fixture(scope="module")
def start() -> Callable[[str, Path], Any]:
    """Starts a process of its own; the libraries are loaded once for all of them."""

    def call(url: str, folder: Path) -> Any:
        process = CONTEXT.Process(target=run, args=(url, folder))
        process.start()
        return process

    return call


ASK = "GET /fine_tuning/jobs/ID"
MOMENTS = [
    ("POST /files", False, 0, 0),
    ("POST /files", True, 1, 0),
    ("POST /files", False, 1, 0),  # the other file: the first is found
    ("POST /files", True, 2, 0),
    (JOBS, False, 2, 0),
    (JOBS, True, 2, 1),
    (ASK, True, 2, 1),
    ("GET /fine_tuning/jobs/ID/events", True, 2, 1),
]
"""A request, whether it was handled when the process is killed, and how many files and jobs there are then."""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_uploads_and_pays_once(tmp_path, server, start):
    running: list[Any] = []
    for request, done, files, jobs in MOMENTS:

        def kill(asked: str, handled: bool, moment: Any = (request, done)) -> str | None:
            if (asked, handled) != moment:
                return None
            os.kill(running[-1].pid, signal.SIGKILL)
            return "drop"

        server.fault = kill
        running.append(start(server.url, tmp_path / "output"))
        running[-1].join(timeout=120)
        assert running[-1].exitcode == -signal.SIGKILL, (request, done)
        assert not (tmp_path / "output/it").exists()
        assert (len(server.files), len(server.jobs)) == (files, jobs), (request, done)
    server.fault = lambda request, done: None
    process = start(server.url, tmp_path / "output")
    process.join(timeout=120)
    assert process.exitcode == 0
    assert (tmp_path / "model").read_text() == "ft:base:org::ftjob-0"
    assert list(server.contents.values()) == [expected(PROMPTS, ANSWERS), expected(PROMPTS[:3], ANSWERS[:3])]
    assert (server.count("POST /files"), server.count(JOBS), len(server.jobs)) == (4, 2, 1)
    assert not list((tmp_path / "output").glob(".work/*"))
