"""Models that are NaN or infinite: no teacher, start or student of that kind goes through a training unnoticed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from datadreamer_like.distillation import (
    ULD,
    HardTargets,
    HiddenStates,
    OnPolicy,
    Relations,
    Sampled,
    SequenceInterpolation,
    SequenceLevel,
    StoredTeacher,
    TeacherModel,
    TopK,
    WordLevel,
)
from datadreamer_like.errors import DataError, DefinitionError, MethodMisfit
from datadreamer_like.models import HFTransformers, TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune

from .conftest import opinions

ROWS = {
    "text": ["The cat sat", "A dog ran", "The bird sang", "Rain fell"],
    "label": ["on the warm mat.", "after the red ball.", "in the old tree.", "on the quiet town."],
}
OPTIONS: dict[str, Any] = {"epochs": 1, "batch_size": 2}


@pytest.fixture
def overflowing(tiny_causal_lm) -> TeacherModel:
    """A teacher of finite weights that is infinite where a text has the word of row 2, "bird"."""
    model, tokenizer = (kind.from_pretrained(tiny_causal_lm) for kind in (AutoModelForCausalLM, AutoTokenizer))
    token = tokenizer(" bird", add_special_tokens=False)["input_ids"][-1]
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda _, ids, out: out.masked_fill((ids[0] == token)[..., None], math.inf))
    return TeacherModel(model, tokenizer)


def broken(folder: Any, to: Any) -> str:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return str(to)


@pytest.mark.parametrize(
    "objective",
    [
        WordLevel,
        ULD,
        HiddenStates,
        lambda teacher: Relations(teacher, kinds=("vv",)),
        lambda teacher: WordLevel(StoredTeacher(teacher, TopK(4))),
        lambda teacher: WordLevel(StoredTeacher(teacher, Sampled(4))),
    ],
)
def test_a_teacher_that_overflows_on_a_row_is_refused_with_the_row(
    session, tiny_causal_lm, overflowing, data, objective
):
    trainer = TrainHFFineTune("LM", str(tiny_causal_lm))
    with pytest.raises(DataError, match="for row 2 of the (train|validation) rows are NaN or infinite"):
        trainer.train(**data(ROWS, ROWS), objective=objective(overflowing), **OPTIONS)


def test_a_teacher_of_nan_weights_writes_no_answers(session, tiny_causal_lm, tmp_path, data):
    teacher = HFTransformers(broken(tiny_causal_lm, tmp_path / "broken"))
    for options in ({}, {"num_beams": 2, "n": 2}, {"temperature": 1.0, "top_p": 1.0}):
        assert [answer.texts for answer in teacher.answers(["a", "b"], max_new_tokens=2, **options)] == [(), ()]
    objective = SequenceLevel(TrainedModel(teacher.model_name), beam_size=2, max_new_tokens=2)
    with pytest.raises(DataError, match="could not answer row 0.*NaN or infinite"):
        TrainHFFineTune("LM", str(tiny_causal_lm)).train(**data(ROWS, ROWS), objective=objective, **OPTIONS)


def test_the_references_that_choose_an_answer_are_read_before_the_teacher_answers(session, tiny_causal_lm, data):
    objective = SequenceInterpolation(TrainedModel(str(tiny_causal_lm)), beam_size=2, max_new_tokens=2)
    rows = {**ROWS, "label": [*ROWS["label"][:3], None]}
    with pytest.raises(DataError, match="train_output.*is None in row 3"):
        TrainHFFineTune("LM", str(tiny_causal_lm)).train(**data(rows, ROWS), objective=objective, **OPTIONS)


def test_a_model_of_nan_weights_is_not_trained(session, tiny_causal_lm, tmp_path, data):
    trainer = TrainHFFineTune("LM", broken(tiny_causal_lm, tmp_path / "broken"))
    with pytest.raises(MethodMisfit, match=r'The model to train, .*the weight of "model.norm" holds'):
        trainer.train(**data(ROWS, ROWS), **OPTIONS)


def test_a_student_that_diverges_while_it_samples_says_so(session, tiny_causal_lm, data):
    model, tokenizer = (kind.from_pretrained(tiny_causal_lm) for kind in (AutoModelForCausalLM, AutoTokenizer))
    objective = OnPolicy(TeacherModel(model, tokenizer), fraction=1.0, max_new_tokens=2)
    with pytest.raises(DefinitionError, match="training diverged. Lower learning_rate, which was 1e\\+30"):
        TrainHFFineTune("LM", str(tiny_causal_lm)).train(
            **data(ROWS, ROWS), objective=objective, **OPTIONS, learning_rate=1e30
        )


def test_a_student_of_nan_weights_is_not_kept_for_a_metric_that_has_a_value_for_it(session, tiny_encoder, data):
    with pytest.raises(DefinitionError, match="best accuracy the weights were NaN"):
        TrainHFClassifier("Student", str(tiny_encoder)).train(
            **data(opinions(8), opinions(8)), **OPTIONS, learning_rate=1e36, metric_for_best_model="accuracy"
        )


def test_a_teacher_of_texts_that_gives_a_row_no_class_is_refused(session, tiny_encoder, data):
    class Unsure:
        classes = ("negative", "positive")

        def class_logits(self, texts: Any) -> torch.Tensor:
            return torch.tensor([[-math.inf, -math.inf] if "tea" in text else [0.0, -math.inf] for text in texts])

    rows = {"text": ["a good film", "good tea"], "label": ["positive", "positive"]}
    with pytest.raises(DataError, match="for the text 'good tea' are NaN or infinite"):
        TrainHFClassifier("Student", str(tiny_encoder)).train(
            **data(rows, opinions(4)), **OPTIONS, objective=HardTargets(Unsure())
        )
