"""What a user can get wrong: one clear error of the project's own, before work is lost."""

from __future__ import annotations

import os
import stat
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from flaky_server import FlakyServer, Reply, error, prompt_of
from user_scripts import Script, files_of

from datadreamer_like import DataDreamer, errors
from datadreamer_like.graph import Card
from datadreamer_like.models import OpenAI
from datadreamer_like.models.trained.model_files import check_saved_files, write_card
from datadreamer_like.steps import (
    CSVDataSource,
    DataFromPrompt,
    DataSource,
    FilterWithPrompt,
    HFDatasetDataSource,
    JSONDataSource,
    Prompt,
    Step,
    TextDataSource,
    concat,
)
from datadreamer_like.storage.seals import read_sealed, sealed


@dataclass
class Mistake:
    """One way to be wrong.

    Attributes:
        what: The mistake, for the test's name.
        make: Makes it, in an open session, given a folder for files, a finished step and an LLM.
        error: The class of the error.
        says: What its message must name, so that a user finds the place and the way out.
    """

    what: str
    make: Callable[[Path, Any, Any], Any]
    error: type[errors.DataDreamerError]
    says: tuple[str, ...]


def wrote(path: Path, content: str | bytes) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def added(numbers: Any, row: Any) -> Any:
    return {"number": next(numbers)}


def asked(column: Any, llm: Any, **args: Any) -> Any:
    return Prompt("Asked", inputs={"prompts": column}, args={"llm": llm, **args})


MISTAKES = [
    Mistake(
        "an unknown column",
        lambda folder, rows, llm: asked(rows.output["txt"], llm),
        errors.UnknownColumn,
        ('"Rows"', '"txt"', "text", 'Did you mean "text"?'),
    ),
    Mistake(
        "an unknown column in an operation",
        lambda folder, rows, llm: rows.select_columns(["txt"]),
        errors.UnknownColumn,
        ('"Rows"', '"txt"', 'Did you mean "text"?'),
    ),
    Mistake(
        "an unknown input",
        lambda folder, rows, llm: Prompt("Asked", inputs={"prompt": rows.output["text"]}, args={"llm": llm}),
        errors.DefinitionError,
        ('"Asked"', '"prompt"', 'Did you mean "prompts"?'),
    ),
    Mistake(
        "a text in place of a column",
        lambda folder, rows, llm: asked("text", llm),
        errors.ArgumentTypeError,
        ('"Asked"', '"prompts"', "'text'", "column"),
    ),
    Mistake(
        "a dataset in place of a column",
        lambda folder, rows, llm: asked(rows.output, llm),
        errors.ArgumentTypeError,
        ('"Asked"', '"prompts"', "column"),
    ),
    Mistake(
        "an argument of the wrong type",
        lambda folder, rows, llm: DataFromPrompt("Made", args={"llm": llm, "instruction": "Write.", "n": "5"}),
        errors.ArgumentTypeError,
        ('"Made"', '"n"', "'5'", "int"),
    ),
    Mistake(
        "a model's name in place of the model",
        lambda folder, rows, llm: asked(rows.output["text"], "gpt-5"),
        errors.ArgumentTypeError,
        ('"Asked"', '"llm"', "'gpt-5'", "LLM"),
    ),
    Mistake(
        "a missing argument",
        lambda folder, rows, llm: DataFromPrompt("Made", args={"llm": llm, "n": 5}),
        errors.DefinitionError,
        ('"Made"', '"instruction"'),
    ),
    Mistake(
        "a missing input",
        lambda folder, rows, llm: Prompt("Asked", args={"llm": llm}),
        errors.DefinitionError,
        ('"Asked"', '"prompts"'),
    ),
    Mistake(
        "a misspelt option of the LLM",
        lambda folder, rows, llm: asked(rows.output["text"], llm, temprature=0.5),
        errors.DefinitionError,
        ('"Asked"', '"temprature"', 'Did you mean "temperature"?'),
    ),
    Mistake(
        "an option of the LLM with a senseless value",
        lambda folder, rows, llm: asked(rows.output["text"], llm, temperature=-1),
        errors.DefinitionError,
        ("temperature", "-1"),
    ),
    Mistake(
        "a function that cannot be fingerprinted",
        lambda folder, rows, llm: rows.map(partial(added, iter([1])), lazy=False),
        errors.FingerprintError,
        ("Rows", "function", "iterator"),
    ),
    Mistake(
        "splits of an empty dataset",
        lambda folder, rows, llm: DataSource("None", data={"text": []}).splits(train_size=0.9, validation_size=0.1),
        errors.EmptyDataset,
        ("None",),
    ),
    Mistake(
        "columns that do not go together",
        lambda folder, rows, llm: concat(rows, DataSource("Other", data={"txt": ["a"]})),
        errors.DefinitionError,
        ('"Other"', "txt", "text"),
    ),
    Mistake(
        "a file that is not there",
        lambda folder, rows, llm: CSVDataSource("Read", data_files=str(folder / "nothing.csv")),
        errors.DataDreamerError,
        ("nothing.csv",),
    ),
    Mistake(
        "a folder in place of a file",
        lambda folder, rows, llm: TextDataSource("Read", data_files=str(folder)),
        errors.DataDreamerError,
        (str(Path("data")),),
    ),
    Mistake(
        "a file that is not text",
        lambda folder, rows, llm: TextDataSource("Read", data_files=wrote(folder / "a.txt", b"good\n\xff\x00bad\n")),
        errors.DataError,
        ("a.txt",),
    ),
    Mistake(
        "an empty file",
        lambda folder, rows, llm: CSVDataSource("Read", data_files=wrote(folder / "a.csv", "")),
        errors.EmptyDataset,
        ("a.csv",),
    ),
    Mistake(
        "a CSV line with too many values",
        lambda folder, rows, llm: CSVDataSource("Read", data_files=wrote(folder / "a.csv", "x,y\n1,2\n3,4\n5,6,7\n")),
        errors.DataError,
        ("a.csv", "line 4"),
    ),
    Mistake(
        "a CSV line with too few values",
        lambda folder, rows, llm: CSVDataSource("Read", data_files=wrote(folder / "a.csv", "x,y\n1,2\n3\n5,6\n")),
        errors.DataError,
        ("a.csv", "line 3"),
    ),
    Mistake(
        "a malformed JSON line",
        lambda folder, rows, llm: JSONDataSource(
            "Read", data_files=wrote(folder / "a.jsonl", '{"x": 1}\n{"x": 2}\n{"x": \n{"x": 4}\n')
        ),
        errors.DataError,
        ("a.jsonl", "line 3"),
    ),
    Mistake(
        "a JSON line that is no row",
        lambda folder, rows, llm: JSONDataSource("Read", data_files=wrote(folder / "a.jsonl", '{"x": 1}\n[1, 2]\n')),
        errors.DataError,
        ("a.jsonl", "line 2"),
    ),
    Mistake(
        "a folder that is no dataset",
        lambda folder, rows, llm: HFDatasetDataSource("Read", dataset_path=str(folder)),
        errors.DataDreamerError,
        (str(Path("data")),),
    ),
    Mistake(
        "a column of mixed types",
        lambda folder, rows, llm: DataSource("Mixed", data={"x": [1, "a"]}),
        errors.StepOutputTypeError,
        ('"Mixed"', '"x"', "int", "str"),
    ),
    Mistake(
        "a step that returns other columns than it registered",
        lambda folder, rows, llm: WrongColumns("Wrong"),
        errors.StepOutputError,
        ('"Wrong"', "texts", "text"),
    ),
    Mistake(
        "inputs of different lengths",
        lambda folder, rows, llm: FilterWithPrompt(
            "Kept", inputs={"inputs": rows.output["nothing"]}, args={"llm": llm, "instruction": "Good?"}
        ),
        errors.UnknownColumn,
        ("nothing",),
    ),
    Mistake(
        "a name with a slash",
        lambda folder, rows, llm: DataSource("a/b", data={"x": [1]}),
        errors.DefinitionError,
        ("a/b",),
    ),
    Mistake(
        "a session in a session",
        lambda folder, rows, llm: DataDreamer(folder).start(),
        errors.SessionError,
        ("open",),
    ),
]


class WrongColumns(Step):
    def setup(self) -> None:
        self.register_output("text")

    def run(self) -> Any:
        return {"texts": ["a"]}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_a_mistake_is_one_clear_error_that_names_the_place_and_costs_nothing(
    tmp_path: Path, server: FlakyServer, mistake: Mistake
) -> None:
    (tmp_path / "data").mkdir()
    with DataDreamer(tmp_path / "session"):
        rows = DataSource("Rows", data={"text": ["a", "b"], "label": ["x", "y"]})
        kept = files_of(tmp_path / "session" / "rows")
        with pytest.raises(mistake.error) as caught:
            mistake.make(tmp_path / "data", rows, OpenAI("m", base_url=server.url))
        message = str(caught.value)
        for part in mistake.says:
            assert part in message, message
        assert 20 < len(message) < 800
        assert "Traceback" not in message
        # What was made before is untouched, and nothing half-made is left.
        assert files_of(tmp_path / "session" / "rows") == kept
        assert list(rows.output["text"]) == ["a", "b"]
    assert server.requests == []
    assert {path.name for path in (tmp_path / "session").glob("[!.]*")} <= {"rows", "none", "other"}


@pytest.mark.parametrize(
    ("reply", "expected", "says"),
    [
        (error(401, "Incorrect API key provided"), errors.AuthenticationFailed, "key"),
        (error(404, "The model `m` does not exist", code="model_not_found"), errors.UnknownModel, "m"),
    ],
    ids=["wrong key", "unknown model"],
)
def test_a_wrong_key_and_an_unknown_model_end_the_run_at_once(
    tmp_path: Path, reply: Reply, expected: type[Exception], says: str
) -> None:
    with FlakyServer(lambda body, before: reply) as server, DataDreamer(tmp_path):
        source = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(500)]})
        with pytest.raises(expected, match=says):
            asked(source.output["prompts"], OpenAI("m", base_url=server.url), concurrency=4)
        assert len(server.requests) <= 4
        assert set(server.seen.values()) == {1}
    assert not (tmp_path / "asked").exists()


def test_what_was_paid_for_before_a_key_was_revoked_is_not_paid_for_again(tmp_path: Path) -> None:
    revoked = True

    def behave(body: dict[str, Any], before: int) -> Reply:
        if revoked and len(server.requests) > 50:
            return error(401, "Incorrect API key provided")
        return Reply("fine")

    def run() -> Any:
        with DataDreamer(tmp_path):
            source = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(100)]})
            return asked(source.output["prompts"], OpenAI("m", base_url=server.url), concurrency=1)

    with FlakyServer(behave) as server:
        with pytest.raises(errors.AuthenticationFailed):
            run()
        revoked = False
        assert len(list(run().output)) == 100
        assert server.seen.total() == 101


def test_a_prompt_beyond_the_context_window_fails_its_row_and_the_run_goes_on(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], before: int) -> Reply:
        if len(prompt_of(body)) > 100:
            return error(400, "This model's maximum context length is 10 tokens.", code="context_length_exceeded")
        return Reply("fine")

    prompts = ["short"] * 3 + ["long " * 100] + [f"short {i}" for i in range(50)]
    with FlakyServer(behave) as server, DataDreamer(tmp_path):
        source = DataSource("Questions", data={"prompts": prompts})
        answers = asked(source.output["prompts"], OpenAI("m", base_url=server.url))
        assert [text is None for text in answers.output["generations"]] == [len(p) > 100 for p in prompts]
        assert list(answers.errors) == [3]
        assert "10 tokens" in answers.errors[3]
        assert server.seen["long " * 100] == 1
        with pytest.raises(errors.PromptTooLong):
            Prompt(
                "Strict",
                inputs={"prompts": source.output["prompts"]},
                args={"llm": OpenAI("m", base_url=server.url), "on_error": "raise"},
            )


LABELS = """
    import sys
    from datadreamer_like import DataDreamer, errors
    from datadreamer_like.steps import DataSource
    from datadreamer_like.trainers import TrainHFClassifier

    folder, base = sys.argv[1:]
    with DataDreamer(folder):
        train = DataSource("Train", data={"text": ["a cat", "a dog"] * 4, "label": ["x", "y"] * 4})
        rest = DataSource("Rest", data={"text": ["a cat", "a train"], "label": ["x", "z"]})
        none = DataSource("None", data={"text": ["a"], "label": ["x"]}).filter(lambda row: False, lazy=False)
        for name, rows in (("outside", rest), ("empty", none), ("untrained", None)):
            trainer = TrainHFClassifier(name, model_name=base, device="cpu")
            try:
                if rows is None:
                    trainer.predict(["a"])
                trainer.train(
                    train_input=train.output["text"], train_output=train.output["label"],
                    validation_input=rows.output["text"], validation_output=rows.output["label"], epochs=1,
                )
            except errors.DataDreamerError as error:
                print(type(error).__name__, error)
"""


def test_labels_outside_the_set_no_rows_and_no_training_are_said_before_anything_is_trained(
    tmp_path: Path, tiny_classifier_base: Path
) -> None:
    script = Script(LABELS, tmp_path / "script.py", [str(tmp_path / "session"), str(tiny_classifier_base)], warm=True)
    outside, empty, untrained = script.run().stdout.splitlines()
    assert outside.startswith("LabelError")
    assert '"z"' in outside
    assert "validation_output" in outside
    assert empty.startswith("EmptyDataset")
    assert "validation_input" in empty
    assert untrained.startswith("NotTrained")
    assert '"untrained"' in untrained


@pytest.mark.parametrize("note", [".session.json", "rows/node.json"])
def test_a_folder_of_a_newer_version_is_refused_and_left_as_it_is(tmp_path: Path, note: str) -> None:
    def run() -> None:
        with DataDreamer(tmp_path):
            DataSource("Rows", data={"text": ["a"]})

    run()
    file = tmp_path / note
    file.write_text(sealed(read_sealed(file) | {"format": 1_000}))
    files = {name: what for name, what in files_of(tmp_path).items() if not name.startswith(".locks")}
    with pytest.raises(errors.NewerFormat, match=r"newer version.*1000.*pip"):
        run()
    assert {name: what for name, what in files_of(tmp_path).items() if not name.startswith(".locks")} == files


FULL_DISK = """
    import resource, signal, sys
    from datadreamer_like import DataDreamer, errors
    from datadreamer_like.models import OpenAI
    from datadreamer_like.steps import DataSource, Prompt

    folder, url, when = sys.argv[1:]

    def full_disk(now):
        # The system refuses to make a file any larger, as a full disk does.
        if now:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with DataDreamer(folder):
        asked = DataSource("Questions", data={"prompts": [f"question {i}" for i in range(300)]})
        llm = OpenAI("m", base_url=url)
        try:
            full_disk(when == "asking")
            args = {"llm": llm, "concurrency": 4}
            answers = Prompt("Answers", inputs={"prompts": asked.output["prompts"]}, args=args)
            full_disk(when == "saving")
            print(len(answers.map(lambda row: {"text": row["generations"] * 3}, lazy=False).output))
        except errors.DataDreamerError as error:
            print(type(error).__name__, error)
"""


@pytest.mark.parametrize("when", ["asking", "saving"])
def test_a_full_disk_is_one_clear_error_and_what_was_paid_for_is_kept(tmp_path: Path, when: str) -> None:
    folder = tmp_path / "session"
    # Slower than a transaction, as every provider is: only quicker requests give their slot back before they are saved.
    with FlakyServer(lambda body, before: Reply(f"{len(server.requests):06} " * 100, seconds=0.005)) as server:
        script = Script(FULL_DISK, tmp_path / "script.py", [str(folder), server.url], warm=True)
        said = script.run(when).stdout
        assert said.startswith("StorageError"), said
        assert "run" in said
        assert "full" in said or "space" in said
        assert sorted(path.name for path in folder.glob("[!.]*")) == ["answers", "questions"][when == "asking" :]
        answered = len(server.seen)
        assert 4 < answered <= 300  # how many fit depends on how many are saved at once
        assert script.run("never").stdout.strip() == "300"
        # Of what was answered, only what was in flight when the disk said no is sent again.
        assert server.seen.total() - 300 <= 4


def as_nobody(work: Callable[[], object]) -> str:
    """Does work in a process whose user owns nothing, and returns the error that it ended with."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65_534)
                os.setuid(65_534)
            work()
            os.write(writer, b"no error")
        except BaseException as error:
            mro = [cls.__name__ for cls in type(error).__mro__]
            known = isinstance(error, errors.DataDreamerError)
            text = str(error) if known else traceback.format_exc()
            os.write(writer, f"{'ours' if known else 'not ours'} {mro} {text}".encode()[:8_000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return said


def test_no_permission_is_one_clear_error(tmp_path: Path) -> None:
    folder = tmp_path / "session"
    secret = tmp_path / "secret.csv"
    secret.write_text("text\na\n")
    with DataDreamer(folder):
        DataSource("Rows", data={"text": ["a"]})
        # All that the other user will do, so that every module is loaded that it might not be able to read.
        CSVDataSource("Read", data_files=str(secret)).export_to_csv(tmp_path / "rows.csv")
    model = tmp_path / "model"
    model.mkdir()
    weights = model / "model.safetensors"
    weights.write_bytes(b"weights")
    write_card(model, Card("Model", "trainer", "TrainHFClassifier"))
    secret.chmod(0)
    weights.chmod(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    public = [path for path in (tmp_path, *tmp_path.parents) if not path.stat().st_mode & stat.S_IXOTH]
    modes = [stat.S_IMODE(path.stat().st_mode) for path in public]
    free = tmp_path / "free"
    free.mkdir()
    free.chmod(0o777)
    for path in public:
        path.chmod(0o755)

    def write_there() -> None:
        with DataDreamer(folder):
            DataSource("Other", data={"text": ["a"]})

    def make_it_there() -> None:
        with DataDreamer(folder / "deeper"):
            pass

    def read_that() -> None:
        with DataDreamer(free / "session"):
            CSVDataSource("Read", data_files=str(secret))

    def export_there() -> None:
        with DataDreamer(free / "session"):
            DataSource("Rows", data={"text": ["a"]}).export_to_csv(folder / "rows.csv")

    def load_that() -> None:
        check_saved_files(model)

    try:
        for work, place in (
            (load_that, weights),
            (write_there, folder),
            (make_it_there, folder / "deeper"),
            (read_that, secret),
            (export_there, folder / "rows.csv"),
        ):
            said = as_nobody(work)
            assert said.startswith("ours "), said
            assert "permission" in said.lower(), said
            assert str(place) in said, said
    finally:
        for path, mode in zip(public, modes, strict=True):
            path.chmod(mode)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)


def test_an_error_of_ours_is_the_last_line_that_a_user_sees(tmp_path: Path) -> None:
    script = Script(
        """
        import sys
        from datadreamer_like import DataDreamer
        from datadreamer_like.steps import CSVDataSource

        with DataDreamer(sys.argv[1]):
            CSVDataSource("Read", data_files="nothing.csv")
        """,
        tmp_path / "script.py",
        [str(tmp_path / "session")],
    )
    last = script.run(fails=True).stderr.strip().splitlines()[-1]
    assert last.startswith('MissingFile: "Read"')
    assert "nothing.csv" in last
