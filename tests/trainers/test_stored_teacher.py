"""A stored teacher answers each row once, for every student, and is never loaded while one trains."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

from datadreamer_like.distillation import (
    Combined,
    HardTargets,
    Hidden,
    HiddenStates,
    Relations,
    Sampled,
    SoftTargets,
    StoredTeacher,
    Supervised,
    TeacherModel,
    TopK,
    WordLevel,
)
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainEmbeddingClassifier, TrainHFClassifier, TrainHFFineTune

from .conftest import opinions

ROWS = {
    "text": ["The cat sat", "A dog ran", "The bird sang", "Rain fell"] * 4,
    "label": ["on the warm mat.", "after the red ball.", "in the old tree.", "on the quiet town."] * 4,
}
OTHER = {"text": ["The sun rose", "She read"], "label": ["over the cold sea.", "a long book."]}
OPTIONS: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


class Counted(TeacherModel):
    """A teacher that counts the rows it reads."""

    rows = 0

    @classmethod
    def of(cls, folder: Path, kind: Any = AutoModelForCausalLM) -> Counted:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        teacher = cls(kind.from_pretrained(folder).eval(), tokenizer)
        teacher.model.register_forward_pre_hook(teacher.count, with_kwargs=True)
        return teacher

    def count(self, model: Any, args: Any, kwargs: Any) -> None:
        object.__setattr__(self, "rows", self.rows + len(kwargs["input_ids"]))


@pytest.fixture(scope="module")
def students(tiny_causal_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Random models of two sizes with the teacher's tokenizer."""
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_causal_lm)
    folders = {}
    for name, hidden in (("small", 32), ("larger", 48)):
        model = tiny_models.llama(tokenizer, hidden_size=hidden, num_hidden_layers=1, intermediate_size=64)
        folders[name] = str(tiny_models.save(model, tokenizer, tmp_path_factory.mktemp(name)))
    return folders


def history(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.manifest.result["history"]]


def different(rows: dict[str, list[str]], other: dict[str, list[str]]) -> int:
    return len({*zip(rows["text"], rows["label"], strict=True), *zip(other["text"], other["label"], strict=True)})


def test_one_run_of_the_teacher_serves_students_of_two_sizes_seeds_and_epochs(session, tiny_causal_lm, students, data):
    teacher = Counted.of(tiny_causal_lm)
    objective = SoftTargets(StoredTeacher(teacher, TopK(8)), temperature=2.0, alpha=1.0)
    columns = data(ROWS, OTHER)
    trained = []
    for size in ("small", "larger"):
        for seed in (1, 2):
            trainer = TrainHFFineTune(f"{size} {seed}", students[size])
            trained.append(trainer.train(**columns, objective=objective, seed=seed, **OPTIONS))
    assert teacher.rows == different(ROWS, OTHER)
    assert all(history(each)[-1] < history(each)[0] for each in trained)
    assert len({json.dumps(history(each)) for each in trained}) == 4


def test_all_tokens_stored_teach_as_the_live_teacher_does(session, tiny_causal_lm, students, data):
    teacher, columns = TrainedModel.load(tiny_causal_lm), data(ROWS, OTHER)
    curves = {}
    for name, each in (("live", teacher), ("stored", StoredTeacher(teacher, TopK(1000)))):
        objective = SoftTargets(each, alpha=0.7)
        curves[name] = history(
            TrainHFFineTune(name, students["small"]).train(**columns, objective=objective, **OPTIONS)
        )
    assert curves["stored"] == pytest.approx(curves["live"], rel=5e-3)


def test_an_encoder_decoder_learns_from_stored_signals_too(session, tiny_seq2seq, data):
    teacher, columns = Counted.of(tiny_seq2seq, AutoModelForSeq2SeqLM), data(ROWS, OTHER)
    curves = {}
    for name, each in (
        ("live", teacher),
        ("stored", StoredTeacher(teacher, TopK(1000))),
        ("drawn", StoredTeacher(teacher, Sampled(64))),
    ):
        objective = SoftTargets(each, temperature=1.0, alpha=0.5)
        trainer = TrainHFFineTune(name, str(tiny_seq2seq)).train(**columns, objective=objective, **OPTIONS)
        curves[name] = history(trainer)
    assert curves["stored"] == pytest.approx(curves["live"], rel=5e-3)
    assert curves["drawn"] == pytest.approx(curves["live"], rel=0.1)


def test_samples_are_drawn_at_the_temperature_of_the_objective(session, tiny_causal_lm, students, data):
    teacher, columns = Counted.of(tiny_causal_lm), data(ROWS, OTHER)
    stored, asked = StoredTeacher(teacher), []
    for objective in (
        SoftTargets(stored, temperature=2.0),
        Combined([SoftTargets(stored, temperature=2.0), WordLevel(stored, temperature=2.0)], [1.0, 1.0]),
        WordLevel(stored, temperature=1.5),
        SoftTargets(StoredTeacher(teacher, Sampled(16, temperature=1.5)), temperature=1.5, alpha=1.0),
    ):
        trainer = TrainHFFineTune(f"Student {len(asked)}", students["small"])
        trainer.train(**columns, objective=objective, **{**OPTIONS, "epochs": 1})
        asked.append(teacher.rows)
        assert f"temperature={2.0 if len(asked) < 3 else 1.5}" in trainer.card.facts["Stored Teacher"]
    rows = different(ROWS, OTHER)
    assert asked == [rows, rows, 2 * rows, 2 * rows], "a temperature is a draw of its own"


def test_hard_targets_need_one_stored_token(session, tiny_causal_lm, students, data):
    teacher, columns = TrainedModel.load(tiny_causal_lm), data(ROWS, OTHER)
    curves = [
        history(TrainHFFineTune(name, students["small"]).train(**columns, objective=HardTargets(each), **OPTIONS))
        for name, each in (("live", teacher), ("stored", StoredTeacher(teacher, TopK(1))))
    ]
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_stored_hidden_states_teach_as_live_ones_with_a_projection(session, tiny_causal_lm, students, data):
    teacher, columns = TrainedModel.load(tiny_causal_lm), data(ROWS, OTHER)
    curves = []
    for name, each in (("live", teacher), ("stored", StoredTeacher(teacher, [TopK(1000), Hidden([2])]))):
        objective = Combined([SoftTargets(each), HiddenStates(each)], [1.0, 0.5])
        curves.append(
            history(TrainHFFineTune(name, students["small"]).train(**columns, objective=objective, **OPTIONS))
        )
    assert curves[1] == pytest.approx(curves[0], rel=5e-3)


def test_a_classifier_learns_stored_hidden_states(session, tiny_encoder, data):
    columns = data(opinions(24), opinions(8, seed=1))
    first = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, **OPTIONS)
    teacher = Counted.of(Path(first.model_path), AutoModelForSequenceClassification)
    curves = []
    for name, each in (("live", teacher), ("stored", StoredTeacher(teacher, Hidden([1, 2])))):
        objective = Combined([Supervised(), HiddenStates(each)], [1.0, 1.0])
        trainer = TrainHFClassifier(name, str(tiny_encoder)).train(**columns, objective=objective, **OPTIONS)
        curves.append(history(trainer))
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_a_classifier_learns_stored_hidden_states_and_logits_at_once(session, tiny_encoder, data, labelled):
    columns = data(opinions(24), opinions(8, seed=1))
    first = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, **OPTIONS)
    teacher = Counted.of(Path(first.model_path), AutoModelForSequenceClassification)
    columns = columns if labelled else {**columns, "train_output": None}
    stored, curves, asked = StoredTeacher(teacher, Hidden([1, 2])), [], []
    alpha = 0.5 if labelled else 1.0
    for name, states, logits in (
        ("live", teacher, teacher), ("stored", stored, stored),
        ("stored apart", StoredTeacher(teacher, Hidden([1, 2])), teacher),
    ):  # fmt: skip
        objective = Combined([HiddenStates(states), SoftTargets(logits, alpha=alpha)], [1.0, 1.0])
        trainer = TrainHFClassifier(name, str(tiny_encoder)).train(**columns, objective=objective, **OPTIONS)
        curves.append(history(trainer))
        asked.append(teacher.rows)
    assert curves[1] == pytest.approx(curves[0], rel=2e-3)
    assert curves[2] == curves[1]
    texts = {*opinions(24)["text"], *opinions(8, seed=1)["text"]}
    assert asked[2] == asked[1] == asked[0] + 2 * len(texts)  # once for its states, once for its logits


def test_signals_of_one_teacher_that_differ_are_refused(session, tiny_encoder):
    teacher = TrainedModel(tiny_encoder)
    first, second = (StoredTeacher(teacher, Hidden([layer])) for layer in (1, 2))
    with pytest.raises(DefinitionError, match="different signals of one teacher.*one StoredTeacher with a list"):
        Combined([HiddenStates(first), HiddenStates(second)], [1.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("all stored, a list", r"logits are stored for each text without a StoredTeacher"),
        ("logits of hidden states", r"logits are stored for each text without a StoredTeacher"),
        ("hidden states of logits", r"logits are stored for each text without a StoredTeacher"),
        ("queries and keys", r"reads projections of its teacher, and .* keeps Hidden\. Pass the teacher itself\."),
    ],
)
def test_what_a_classifier_is_told_to_pass_is_taken(session, tiny_encoder, data, kind, message):
    columns = data(opinions(8), opinions(4))
    teacher = TrainHFClassifier("Teacher", str(tiny_encoder)).train(**columns, **OPTIONS)

    def objective(hidden: Any, logits: Any) -> Any:
        return Combined([HiddenStates(hidden), SoftTargets(logits)], [1.0, 1.0])

    both = StoredTeacher(teacher, [TopK(2), Hidden([1, 2])])
    states, default = StoredTeacher(teacher, Hidden([1, 2])), StoredTeacher(teacher)
    refused, taken = {
        "all stored, a list": (objective(both, both), objective(states, teacher)),
        "logits of hidden states": (SoftTargets(states), SoftTargets(teacher)),
        "hidden states of logits": (objective(teacher, default), objective(teacher, teacher)),
        "queries and keys": (Relations(states), Relations(teacher)),
    }[kind]
    with pytest.raises(MethodMisfit, match=message):
        TrainHFClassifier("Refused", str(tiny_encoder)).train(**columns, objective=refused, **OPTIONS)
    trainer = TrainHFClassifier("Student", str(tiny_encoder)).train(**columns, objective=taken, **OPTIONS)
    assert len(history(trainer)) == OPTIONS["epochs"]


def test_only_changed_rows_are_asked(session, tiny_causal_lm, students, data):
    teacher = Counted.of(tiny_causal_lm)
    objective = SoftTargets(StoredTeacher(teacher, TopK(4)), alpha=1.0)
    TrainHFFineTune("First", students["small"]).train(**data(ROWS, OTHER), objective=objective, **OPTIONS)
    seen = teacher.rows
    more = {"text": [*ROWS["text"], "They built"], "label": [*ROWS["label"], "a small house."]}
    more["label"][0] = "on the cold sea."  # one new row, and one that is new in one place, where the old one is too
    second = TrainHFFineTune("Second", students["small"])
    second.train(**data(more, OTHER), objective=objective, **OPTIONS)
    assert teacher.rows - seen == 2
    # Other signals, and the same of another teacher, are stored separately.
    third = SoftTargets(StoredTeacher(teacher, TopK(5)), alpha=1.0)
    TrainHFFineTune("Third", students["small"]).train(**data(ROWS, OTHER), objective=third, **OPTIONS)
    assert teacher.rows - seen == 2 + different(ROWS, OTHER)


def test_the_teacher_is_not_loaded_while_the_student_trains(session, tiny_causal_lm, students, data, monkeypatch):
    teacher = TrainedModel.load(tiny_causal_lm)
    loaded: list[bool] = []
    fit = TrainHFFineTune.fit
    monkeypatch.setattr(
        TrainHFFineTune, "fit", lambda self, run: (loaded.append("model" in vars(teacher)), fit(self, run))[1]
    )
    objective = SoftTargets(StoredTeacher(teacher, TopK(4)), alpha=1.0)
    TrainHFFineTune("Student", students["small"]).train(**data(ROWS, OTHER), objective=objective, **OPTIONS)
    live = SoftTargets(teacher, alpha=1.0)
    TrainHFFineTune("Live", students["small"]).train(**data(ROWS, OTHER), objective=live, **OPTIONS)
    assert loaded == [False, True]


def test_bytes_a_token_are_on_the_card_and_in_the_log(session, tiny_causal_lm, students, data, caplog):
    objective = SoftTargets(StoredTeacher(TrainedModel.load(tiny_causal_lm), TopK(16)), alpha=1.0)
    with caplog.at_level(logging.INFO, logger="datadreamer_like"):
        trainer = TrainHFFineTune("Student", students["small"])
        trainer.train(**data(ROWS, OTHER), objective=objective, **OPTIONS)
    fact = trainer.card.facts["Stored Teacher"]
    size = int(fact.split(" bytes a token")[0].split()[-1])
    (folder,) = Path(trainer.session.cache_folder).glob("signals/*")
    stored = sum(file.stat().st_size for file in folder.glob("*.bin"))
    tokens = int(fact.split(" tokens")[0].split()[-1].replace(",", ""))
    assert size == round(stored / tokens)
    assert size <= 120
    assert f"{size} bytes a token" in caplog.text


def test_what_cannot_be_learned_from_stored_signals_is_refused_before_the_teacher_is_asked(
    session, tiny_causal_lm, students, data, tiny_encoder, tmp_path
):
    teacher, columns = Counted.of(tiny_causal_lm), data(ROWS, OTHER)

    def refused(objective: Any, message: str, error: Any = MethodMisfit, student: str = students["small"]) -> None:
        with pytest.raises(error, match=message):
            TrainHFFineTune("Student", student).train(**columns, objective=objective, **OPTIONS)

    class LogitDistance(SoftTargets):
        check_signals = Supervised.check_signals

    refused(LogitDistance(StoredTeacher(teacher)), "LogitDistance needs all logits of its teacher")
    refused(SoftTargets(StoredTeacher(teacher, TopK()), temperature=3.0), r"temperature 3.*1, 2, 4", DefinitionError)
    drawn = StoredTeacher(teacher, Sampled(4, temperature=1.0))
    refused(SoftTargets(drawn), r"stored for 1\..*Sampled\(temperature", DefinitionError)
    both = Combined([SoftTargets(each := StoredTeacher(teacher, Sampled(4))), WordLevel(each)], [1.0, 1.0])
    refused(both, r"temperature 2.*stored for 1\.", DefinitionError)
    refused(WordLevel(drawn, kind="reverse_kl"), "forward KL only, not reverse_kl", DefinitionError)
    refused(HardTargets(StoredTeacher(teacher, Sampled(4))), r"TopK\(1\) instead of Sampled")
    refused(SoftTargets(StoredTeacher(teacher, Hidden([1]))), "reads logits of its teacher.*keeps Hidden")
    refused(HiddenStates(StoredTeacher(teacher, Hidden([1]))), r"reads the teacher's layers 2, and .* keeps 1\.")
    refused(SoftTargets(StoredTeacher(teacher)), "vocabularies of the teacher and the student differ",
            student=other_tokenizer(tiny_causal_lm, tmp_path))  # fmt: skip
    assert teacher.rows == 0
    classifier = Counted.of(tiny_encoder, AutoModelForSequenceClassification)
    tokenizer = TeacherModel(classifier.model, teacher.tokenizer)
    refused(SoftTargets(StoredTeacher(tokenizer)), "is not a language model, so it cannot teach one")
    refused(SoftTargets(StoredTeacher(Classes())), "has no next-token logits to store")
    with pytest.raises(MethodMisfit, match="stored for each text without a StoredTeacher"):
        TrainHFClassifier("Classifier", str(tiny_encoder)).train(
            **data(opinions(8), opinions(4)), objective=SoftTargets(StoredTeacher(classifier, TopK(2))), **OPTIONS
        )
    columns = {**data(opinions(8), opinions(4)), "train_output": None}
    with pytest.raises(MethodMisfit, match="stored for each text without a StoredTeacher"):
        TrainHFClassifier("No labels", str(tiny_encoder)).train(
            **columns, objective=SoftTargets(StoredTeacher(Opinions()), alpha=1.0), **OPTIONS
        )


class Opinions:
    classes = ("negative", "positive")

    def class_logits(self, texts: Any) -> torch.Tensor:
        return torch.zeros(len(texts), 2)


class Classes:
    classes = ("yes", "no")

    def class_logits(self, texts: Any) -> torch.Tensor:
        return torch.zeros(len(texts), 2)


def other_tokenizer(folder: Path, to: Any) -> str:
    """The model with a tokenizer in which two tokens have changed places."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    path = Path(str(to)) / ".other"
    tiny_models.save(model, tokenizer, path)
    content = json.loads((path / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [*vocabulary][-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (path / "tokenizer.json").write_text(json.dumps(content))
    return str(path)


def test_arguments_that_are_no_teacher_or_signals_are_refused(tiny_causal_lm):
    teacher = TrainedModel.load(tiny_causal_lm)
    for wrong, error in (
        (lambda: StoredTeacher("gpt2"), ArgumentTypeError),
        (lambda: StoredTeacher(teacher, 16), ArgumentTypeError),
        (lambda: StoredTeacher(teacher, []), ArgumentTypeError),
        (lambda: StoredTeacher(StoredTeacher(teacher)), ArgumentTypeError),
        (lambda: StoredTeacher(teacher, [TopK(2), Sampled(3)]), DefinitionError),
        (lambda: Hidden([]), DefinitionError),
        (lambda: Hidden([-1]), DefinitionError),
        (lambda: TopK(1.5), ArgumentTypeError),
        (lambda: TopK(2, temperatures=[]), DefinitionError),
    ):
        with pytest.raises(error):
            wrong()


def test_a_classifier_on_a_frozen_encoder_teaches_its_hidden_states_live_and_stored(session, tiny_encoder, data):
    columns = data()
    teacher = TrainEmbeddingClassifier("Teacher", str(tiny_encoder)).train(**columns, C=1.0)
    losses = {}
    for name, start, source in (
        ("itself", teacher, StoredTeacher(teacher, Hidden([1, 2]))),
        ("live", str(tiny_encoder), teacher),
        ("stored", str(tiny_encoder), StoredTeacher(teacher, Hidden([1, 2]))),
    ):
        objective = HiddenStates(source, layers={1: 2} if name != "itself" else None)
        student = TrainHFClassifier(name, start)
        losses[name] = student.train(**columns, objective=objective, epochs=1, learning_rate=0.0).metrics["loss"]
    assert losses["itself"] == pytest.approx(0, abs=1e-5)  # what fp16 rounds
    assert losses["live"] > 0.01
    assert losses["stored"] == pytest.approx(losses["live"], rel=1e-3)
