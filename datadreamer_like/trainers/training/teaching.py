"""A teacher's outputs for a student's batches, computed live or stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from datadreamer_like.distillation import (
    Factors,
    HiddenStates,
    Objective,
    Outputs,
    StoredAnswers,
    StoredTeacher,
    Supervised,
    TinyBERT,
    has_plain_head,
)
from datadreamer_like.distillation.stored_teacher import Described, described
from datadreamer_like.distillation.teacher import (
    Named,
    check_logits,
    check_same_vocabulary,
    eval_mode,
    move_teacher,
    teacher_logits_for_texts,
    tokens_teacher,
)
from datadreamer_like.errors import ArgumentTypeError, MethodMisfit
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch, Task, check_attentions
from datadreamer_like.graph import Node, current_session, current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.trained.model_node import ModelNode

from .finite import check_weights
from .own_tokens import named_row, own_tokens_teacher
from .signals import SignalReader, unload_teacher

TeacherAnswers = Callable[[Batch, int], Outputs | None]
"""Returns a teacher's outputs for a batch of a student that has this number of classes or tokens; None if untaught."""


@dataclass(frozen=True)
class Teaching:
    """A teacher's answers by split, the model that an objective's `modules` reads, and a line for the card.

    If `factored`, no answer has logits, so that the student may give factors too.
    """

    answers: Mapping[str, TeacherAnswers]
    model: nn.Module | None = None
    facts: str | None = None
    factored: bool = False


def check_objective(objective: object) -> Objective:
    """Returns an argument that must be an objective with a trained teacher, if any; `Supervised()` for None."""
    if objective is None:
        return Supervised()
    if not isinstance(objective, Objective):
        raise ArgumentTypeError(
            f"objective must be an objective, such as SoftTargets(teacher), not {objective!r}. "
            "See datadreamer_like.distillation."
        )
    teacher = itself(objective.teacher)
    if isinstance(teacher, ModelNode):
        _ = teacher.trained
    return objective


def check_mapped_layers(objective: Objective, config: PretrainedConfig, options: Mapping[str, Any]) -> None:
    """Refuses an objective that maps layers which the student or its teacher lacks, before either is loaded.

    `config` is that of the model to start from, and `options` those of `from_pretrained`, which may change it.

    Raises:
        MethodMisfit: A layer is missing.
    """
    if any(hasattr(config, name) for name in options):
        return  # the model is made with another config, and its layers are checked once it is
    for each in getattr(objective, "objectives", (objective,)):
        layers, teacher = getattr(each, "layers", None), described(each.teacher)
        if isinstance(each, HiddenStates | TinyBERT) and layers is not None and teacher.config is not None:
            HiddenStates(each.teacher, layers=layers).check_depths(Described(config), teacher)


def itself(teacher: object) -> object:
    """Returns the teacher behind a `StoredTeacher`, or the one given."""
    return teacher.teacher if isinstance(teacher, StoredTeacher) else teacher


def node_of(teacher: object) -> Node | None:
    """Returns the node that a teacher comes from, if it comes from one."""
    teacher = itself(teacher)
    return teacher if isinstance(teacher, Node) else getattr(teacher, "node", None)


def prepare_teacher(
    objective: Objective,
    task: Task,
    columns: Columns,
    examples: Mapping[str, Examples],
    config: PretrainedConfig,
    device: torch.device,
    max_length: int | None,
    scratch: Path,
) -> Teaching:
    """Checks the teacher, and asks it for all rows if its answers can be stored; before the student is loaded.

    Outputs that a text alone decides are stored under it, and those of a `StoredTeacher` under the tokens of a row, in
    the session's cache folder (in `scratch` if there is none): the next student finds them. Others are computed on each
    batch. `config` is the student's, `device` where it will be; a teacher of texts reads the first column of each
    split, cut at `max_length` tokens (None for its own limit).

    Raises:
        MethodMisfit: The teacher does not fit the task, or must share the student's tokens and does not.
        LabelError: It has other classes.
    """
    teacher, wants = objective.teacher, objective.teacher_wants
    task.check_labels(objective)
    if teacher is None or not wants:
        untaught = dict.fromkeys(examples, lambda batch, student_logits: None)
        return Teaching(untaught, factored=objective.takes_factors)
    if objective.own_tokens and not isinstance(teacher, StoredTeacher):
        reader = tokens_teacher(teacher, "next-token logits")
        check_weights(reader.model, "The teacher")
        return Teaching(own_tokens_teacher(reader, task, columns, examples, max_length, scratch), reader.model)
    session = current_session()
    cache = (session.cache_folder if session is not None else None) or scratch
    if isinstance(teacher, StoredTeacher):
        if objective.completions or objective.beams or objective.own_tokens or task.draws:
            raise MethodMisfit(
                f"{type(objective).__name__} reads other tokens than those of the rows, for which a StoredTeacher has "
                "no signals. Pass the teacher itself."
            )
        # A classifier's logits are stored for each text: together with other signals, they come from there.
        given = wants & task.stored if wants - task.stored else frozenset[str]()
        given -= {each.reads for each in teacher.kinds}
        signals = SignalReader(teacher, objective, task, examples, config, device, cache, given)
        answers: dict[str, TeacherAnswers] = {split: partial(signals.outputs, split) for split in examples}
        if given:
            own: Any = teacher.teacher
            task.check_teacher(own)
            with unload_teacher(own):
                logits = _of_texts(own, task, columns, device, max_length, cache)
            answers = {split: partial(_both, answers[split], logits[split]) for split in answers}
        return Teaching(answers, teacher.model, signals.facts, objective.takes_factors)
    if "logits" in wants:
        task.check_teacher(teacher)
    if not wants <= task.stored:
        return _live(objective, task, examples)
    return Teaching(_of_texts(teacher, task, columns, device, max_length, cache))


def _both(signals: TeacherAnswers, logits: TeacherAnswers, batch: Batch, student_logits: int) -> Outputs | None:
    found, of_texts = signals(batch, student_logits), logits(batch, student_logits)
    assert found is not None
    assert of_texts is not None
    return replace(found, logits=of_texts.logits)


def _of_texts(
    teacher: Any, task: Task, columns: Columns, device: torch.device, max_length: int | None, cache: Path
) -> dict[str, TeacherAnswers]:
    """The logits that a teacher of classes gives to each text, by split; asked for once, and stored."""
    store = StoredAnswers(cache / "teachers" / fingerprint([teacher, max_length], "the objective's teacher"))
    usage, asked = current_usage(), 0

    def say(rows: int) -> None:
        nonlocal asked
        asked += rows
        usage.note = f"asking the teacher, {asked:,} rows so far"

    def ask(texts: Sequence[str]) -> torch.Tensor:
        return teacher_logits_for_texts(teacher, texts, max_length=max_length, device=device, on_rows=say)

    def stored(split: Mapping[str, Any]) -> TeacherAnswers:
        rows = store.rows(next(iter(split.values())).values(), ask)
        return lambda batch, student_logits: Outputs(logits=task.aligned(teacher, rows[batch["rows"]], student_logits))

    return {split: stored(each) for split, each in columns.items()}


def _live(objective: Objective, task: Task, examples: Mapping[str, Examples]) -> Teaching:
    assert objective.teacher is not None
    wants = objective.teacher_wants
    teacher = tokens_teacher(objective.teacher, " and ".join(sorted(wants)).replace("_", " "))
    check_weights(teacher.model, "The teacher")
    check_same_vocabulary(teacher, task.tokenizer)
    check_attentions(teacher.model, wants, "the teacher")

    factored = objective.takes_factors and has_plain_head(teacher.model)
    wants |= {"factors"} if factored else set()

    def live(split: str, batch: Batch, student_logits: int) -> Outputs:
        move_teacher(teacher.model, batch["input_ids"].device)
        with torch.no_grad(), eval_mode(teacher.model):
            found = task.forward(teacher.model, batch, wants)
        _check_outputs(found, task, batch, named_row(split, examples[split], batch))
        if found.factors is not None:
            weight, bias = task.aligned(teacher, found.factors.weight.T, student_logits).T, found.factors.bias
            bias = None if bias is None else task.aligned(teacher, bias, student_logits)
            return replace(found, factors=Factors(found.factors.states, weight, bias))
        if found.logits is None:
            return found
        return replace(found, logits=task.aligned(teacher, found.logits, student_logits))

    answers = {split: partial(live, split) for split in examples}
    return Teaching(answers, teacher.model, factored=factored)


def _check_outputs(found: Outputs, task: Task, batch: Batch, named: Named) -> None:
    """Refuses what a teacher gave for a batch if it is not finite where it counts."""
    if found.logits is not None:
        check_logits(found.logits, batch["mask"], named)
    if found.factors is not None:
        check_logits(found.factors.states.abs(), batch["mask"], named)
    states = [*(found.hidden_states or ())[-1:]]
    for each in found.projections or ():
        states += [part.transpose(1, 2).flatten(2) for part in (each.queries, each.keys, each.values)]
    for part in states:
        check_logits(part.abs(), task.state_mask(batch), named)
