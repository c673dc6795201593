"""Objectives that choose the answers to learn: the teacher's beams, the student's own samples, other tokens."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from datadreamer_like.distillation import (
    ULD,
    Combined,
    Completions,
    OnPolicy,
    SequenceInterpolation,
    SequenceLevel,
    Supervised,
    TeacherModel,
    WordLevel,
    sentence_bleu,
)
from datadreamer_like.errors import ArgumentTypeError, DataError, DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.examples import Examples, Paired
from datadreamer_like.evaluation.tasks.generation import CausalLM, Seq2SeqLM
from datadreamer_like.models import HFTransformers
from datadreamer_like.models.trained.trained_model import TrainedModel
from datadreamer_like.trainers import TrainHFClassifier, TrainHFFineTune

from .conftest import opinions

ROWS = {
    "text": ["The cat sat", "A dog ran", "The bird sang", "Rain fell"] * 2,
    "label": ["on the warm mat.", "after the red ball.", "in the old tree.", "on the quiet town."] * 2,
}
BEAMS: dict[str, Any] = {"max_new_tokens": 6, "temperature": 0.0, "num_beams": 3}


def token_ids(folder: Path, prompt: str, answer: str) -> tuple[list[int], int]:
    """Prompt and answer by the chat template of the test's tokenizer, and the length of the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.encode(f"<|user|>{prompt}<eos><|assistant|>", add_special_tokens=False)
    return asked + tokenizer.encode(f"{answer}<eos>", add_special_tokens=False), len(asked)


def likelihood(model: Any, folder: Path, pairs: list[tuple[str, str]]) -> float:
    losses = []
    for prompt, answer in pairs:
        ids, start = token_ids(folder, prompt, answer)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
        losses.append(F.cross_entropy(logits, torch.tensor(ids[start:]), reduction="none"))
    return float(torch.cat(losses).mean())


def test_beams_are_the_models_best_answers_the_likeliest_first(tiny_causal_lm):
    llm, prompts = HFTransformers(str(tiny_causal_lm)), ["The cat", "Rain fell on"]
    found = llm.run(prompts, n=3, **BEAMS)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_causal_lm), llm.tokenizer
    for prompt, texts in zip(prompts, found, strict=True):
        ids = torch.tensor([token_ids(tiny_causal_lm, prompt, "")[0][:-1]])
        rows = model.generate(ids, num_beams=3, num_return_sequences=3, max_new_tokens=6, do_sample=False)
        wanted = tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)
        assert texts == [text.strip() for text in wanted]
    assert llm.run(prompts, **BEAMS) == [texts[0] for texts in found]
    with pytest.raises(DefinitionError, match="more answers than num_beams=3"):
        llm.run(prompts, n=4, **BEAMS)


def test_sequence_level_learns_what_the_teacher_writes_without_references(session, tiny_causal_lm, data, tmp_path):
    teacher = TrainHFFineTune("Teacher", str(tiny_causal_lm)).train(**data(ROWS, ROWS), epochs=3, learning_rate=3e-3)
    columns = {**data(ROWS, ROWS), "train_output": None, "validation_output": None}
    objective = SequenceLevel(teacher, beam_size=3, max_new_tokens=6)
    student = TrainHFFineTune("Student", str(tiny_causal_lm))
    student.train(**columns, objective=objective, epochs=2, batch_size=8, learning_rate=3e-3)
    prompts = ROWS["text"][:4]
    written = HFTransformers(teacher).run(prompts, **BEAMS)
    pairs = list(zip(prompts, written, strict=True))
    assert student.metrics["loss"] == pytest.approx(likelihood(student.model, tiny_causal_lm, pairs), abs=1e-4)
    # The teacher's answers are in the session's cache: the next student, without the teacher's weights, finds them.
    files = {file: count(file) for file in tmp_path.rglob("*.sqlite")}
    other = TrainHFFineTune("Other", str(tiny_causal_lm))
    combined = Combined([objective, Supervised()], [0.5, 0.5])
    other.train(**columns, objective=combined, epochs=1, batch_size=8, learning_rate=3e-3)
    assert {file: count(file) for file in tmp_path.rglob("*.sqlite")} == files
    assert "Teacher" in [card.name for card in student.card.lineage()]
    assert "SequenceLevel" in str(student.card.facts)


def count(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return sum(connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for (name,) in tables)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_references_and_the_teachers_answers_are_learnt_in_one_batch(session, tiny_causal_lm, tiny_seq2seq, data, kind):
    folder = tiny_causal_lm if kind == "causal" else tiny_seq2seq
    objective = SequenceLevel(TrainedModel(folder), beam_size=2, alpha=0.25, max_new_tokens=5)
    student = TrainHFFineTune("Student", str(folder)).train(
        **data(ROWS, ROWS), objective=objective, epochs=1, batch_size=8, learning_rate=0.0
    )
    prompts, answers = ROWS["text"][:4], ROWS["label"][:4]
    written = HFTransformers(str(folder)).run(prompts, **{**BEAMS, "num_beams": 2, "max_new_tokens": 5})
    if kind == "causal":
        model = AutoModelForCausalLM.from_pretrained(folder)
        own, taught = (likelihood(model, folder, list(zip(prompts, each, strict=True))) for each in (answers, written))
    else:
        model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
        found = []
        for texts in (answers, written):
            losses = []
            for prompt, text in zip(prompts, texts, strict=True):
                labels = torch.tensor(
                    [[*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]]
                )
                with torch.no_grad():
                    logits = model(**tokenizer(prompt, return_tensors="pt"), labels=labels).logits
                losses.append(F.cross_entropy(logits[0], labels[0], reduction="none"))
            found.append(float(torch.cat(losses).mean()))
        own, taught = found
    assert student.metrics["loss"] == pytest.approx(0.25 * taught + 0.75 * own, abs=1e-4)


def test_interpolation_trains_on_the_beam_next_to_the_reference(session, tiny_causal_lm, data):
    objective = SequenceInterpolation(TrainedModel(tiny_causal_lm), beam_size=3, max_new_tokens=6)
    student = TrainHFFineTune("Student", str(tiny_causal_lm)).train(
        **data(ROWS, ROWS), objective=objective, epochs=1, batch_size=8, learning_rate=0.0
    )
    beams = HFTransformers(str(tiny_causal_lm)).run(ROWS["text"][:4], n=3, **BEAMS)
    chosen = [
        max(texts, key=lambda text: sentence_bleu(text, reference))
        for texts, reference in zip(beams, ROWS["label"], strict=False)
    ]
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    wanted = likelihood(model, tiny_causal_lm, list(zip(ROWS["text"], chosen, strict=False)))
    assert student.metrics["loss"] == pytest.approx(wanted, abs=1e-4)


def a_task(folder: Path, kind: str) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task: Any = (CausalLM if kind == "causal" else Seq2SeqLM)(tokenizer, 40)
    loader = AutoModelForCausalLM if kind == "causal" else AutoModelForSeq2SeqLM
    rows = list(task.cut(list(zip(ROWS["text"][:3], ROWS["label"][:3], strict=True))))
    examples = [{"row": i, **dict(zip(task.fields, kept, strict=True))} for i, (_, kept) in enumerate(rows)]
    return task, loader.from_pretrained(folder).train(), task.collate(examples)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_sampled_answers_follow_their_prompts_and_come_from_the_student(tiny_causal_lm, tiny_seq2seq, kind):
    task, model, batch = a_task(tiny_causal_lm if kind == "causal" else tiny_seq2seq, kind)
    almost_greedy = Completions(1.0, 7, 1e-4)
    found = task.sampled(model, batch, almost_greedy)
    assert model.training
    assert not (found["labels"] != -100).any()
    assert found["rows"].tolist() == [0, 1, 2]
    model.eval()
    for row, prompt in enumerate(task.prompts_of(batch)):
        ids = torch.tensor([prompt])
        wanted = model.generate(ids, do_sample=False, max_new_tokens=7, attention_mask=torch.ones_like(ids))[0].tolist()
        if kind == "causal":
            length = int(found["attention_mask"][row].sum())
            assert found["input_ids"][row, :length].tolist() == wanted[:length]
            # The mask is at the positions that predict the answer.
            assert found["mask"][row].nonzero()[:, 0].tolist() == list(range(len(prompt) - 1, length - 1))
        else:
            length = int(found["mask"][row].sum())
            assert found["decoder_input_ids"][row, :length].tolist() == wanted[:length]
        assert length < len(batch["input_ids"][row]) + 8
    with torch.random.fork_rng():
        torch.manual_seed(1)
        hot = [task.sampled(model, batch, Completions(1.0, 7, 5.0))["input_ids" if kind == "causal" else "mask"]
               for _ in range(2)]  # fmt: skip
    assert hot[0].shape != hot[1].shape or not torch.equal(*hot) or kind == "seq2seq"


def test_on_policy_batches_are_sampled_with_the_given_probability_and_validation_is_not(
    session, tiny_causal_lm, data, monkeypatch
):
    seen: list[bool] = []
    sampled = CausalLM.sampled

    def counted(self: Any, model: Any, batch: Any, completions: Any) -> Any:
        seen.append(model.training)
        return sampled(self, model, batch, completions)

    monkeypatch.setattr(CausalLM, "sampled", counted)
    columns, teacher = data(ROWS, ROWS), TrainedModel(tiny_causal_lm)
    options = {"epochs": 3, "batch_size": 2, "learning_rate": 1e-3}
    counts = {}
    for fraction in (0.0, 0.5, 1.0):
        seen.clear()
        objective = OnPolicy(teacher, fraction=fraction, max_new_tokens=4)
        TrainHFFineTune(f"F {fraction}", str(tiny_causal_lm)).train(**columns, objective=objective, **options)
        counts[fraction] = len(seen)
    assert counts[0.0] == 0
    assert counts[1.0] == 12
    assert 2 <= counts[0.5] <= 10
    never = TrainHFFineTune("WordLevel", str(tiny_causal_lm))
    same = WordLevel(teacher, alpha=1.0, kind="jsd")
    never.train(**columns, objective=same, **options)
    assert never.metrics["loss"] == pytest.approx(0.0, abs=0.05)


def test_on_policy_steps_are_those_of_a_hand_written_loop(session, tiny_causal_lm, tiny_seq2seq, data, monkeypatch):
    """One step on samples: the loss is the divergence on the sampled tokens, with no gradient through sampling."""
    batches = []
    sampled = CausalLM.sampled

    def kept(self: Any, model: Any, batch: Any, completions: Any) -> Any:
        batches.append(sampled(self, model, batch, completions))
        return batches[-1]

    monkeypatch.setattr(CausalLM, "sampled", kept)
    teacher = TrainHFFineTune("Teacher", str(tiny_causal_lm)).train(**data(ROWS, ROWS), epochs=2, learning_rate=1e-2)
    student = TrainHFFineTune("Student", str(tiny_causal_lm))
    student.train(
        **data(ROWS, ROWS), objective=OnPolicy(teacher, fraction=1.0, kind="reverse_kl", max_new_tokens=5), epochs=1,
        batch_size=8, learning_rate=1e-2, weight_decay=0.0, adam_epsilon=1e-3, lr_scheduler_type="constant",
    )  # fmt: skip
    (batch,) = batches
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_lm)
    losses = []
    for row in range(8):
        ids = batch["input_ids"][row : row + 1, : int(batch["attention_mask"][row].sum())]
        ours, theirs = model(ids).logits[0, :-1], teacher.model(ids).logits[0, :-1].detach()
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        losses.append((p.exp() * (p - q)).sum(-1)[batch["mask"][row, : len(ours)]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0, eps=1e-3)
    torch.cat(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight, student.model.get_parameter(name), atol=2e-5), name


def test_a_teacher_with_other_tokens_and_of_another_kind_teaches_by_rank(session, tiny_causal_lm, tiny_seq2seq, data):
    objective = ULD(TrainedModel(tiny_seq2seq), weight=1.0)
    student = TrainHFFineTune("Student", str(tiny_causal_lm)).train(
        **data(ROWS, ROWS), objective=objective, epochs=1, batch_size=8, learning_rate=0.0
    )
    model, teacher = AutoModelForCausalLM.from_pretrained(tiny_causal_lm), objective.teacher.model
    tokenizer, losses, apart = objective.teacher.tokenizer, [], []
    for prompt, answer in zip(ROWS["text"][:4], ROWS["label"][:4], strict=True):
        ids, start = token_ids(tiny_causal_lm, prompt, answer)
        labels = torch.tensor([[*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]])
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            theirs = teacher(**tokenizer(prompt, return_tensors="pt"), labels=labels).logits[0]
        losses.append(F.cross_entropy(ours, torch.tensor(ids[start:]), reduction="none"))
        shorter = min(len(ours), len(theirs))
        p, q = (side[:shorter].softmax(-1).sort(-1, descending=True).values for side in (ours, theirs))
        width = max(p.shape[-1], q.shape[-1])
        p, q = (F.pad(side, (0, width - side.shape[-1])) for side in (p, q))
        apart.append((p - q).abs().sum(-1))
    wanted = float(torch.cat(losses).mean() + torch.cat(apart).mean())
    assert student.metrics["loss"] == pytest.approx(wanted, abs=1e-4)


def test_pairs_keep_the_rows_that_both_have():
    def rows(lengths: list[int], dropped: list[int]) -> Examples:
        values = np.array(lengths)
        return Examples({"input_ids": values}, values, dropped)

    pairs = Paired(rows([1, 2, 4], [3]), rows([10, 30], [1, 2]))  # rows 0, 1, 2 and rows 0, 3 of four
    assert len(pairs) == 1
    assert pairs[0] == {"row": 0, "input_ids": 1, "written": {"row": 0, "input_ids": 10}}
    assert pairs.dropped == [1, 2, 3]
    assert pairs.lengths.tolist() == [10]


def test_objectives_are_refused_where_they_do_not_fit(session, tiny_encoder, tiny_causal_lm, data):
    teacher = TrainedModel(tiny_causal_lm)
    for objective in (WordLevel(teacher), SequenceLevel(teacher), OnPolicy(teacher), ULD(teacher)):
        with pytest.raises(MethodMisfit, match="is an objective for TrainHFFineTune"):
            TrainHFClassifier("A", str(tiny_encoder)).train(**data(opinions(8), opinions(8)), objective=objective)
    in_memory = TeacherModel(AutoModelForCausalLM.from_pretrained(tiny_causal_lm), teacher.tokenizer)
    with pytest.raises(ArgumentTypeError, match=r"stored by its folder.*TrainedModel\(folder\)"):
        TrainHFFineTune("B", str(tiny_causal_lm)).train(**data(ROWS, ROWS), objective=SequenceLevel(in_memory))
    long = {"text": ["The cat sat on the warm mat. " * 30], "label": ["It did."]}
    with pytest.raises(DataError, match=r"could not answer row 0, 'The cat sat.*Filter such rows out"):
        TrainHFFineTune("C", str(tiny_causal_lm)).train(
            **data(long, long), objective=SequenceLevel(teacher, max_new_tokens=8)
        )
    with pytest.raises(ArgumentTypeError, match="train_output is of type NoneType"):
        TrainHFFineTune("D", str(tiny_causal_lm)).train(
            **{**data(ROWS, ROWS), "train_output": None}, objective=SequenceLevel(teacher, alpha=0.5)
        )
