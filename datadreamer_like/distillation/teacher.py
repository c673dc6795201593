"""Teachers: the protocol, checks against the student, and a classifier's logits for texts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import getattr_static
from itertools import chain
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from datadreamer_like.errors import ArgumentTypeError, DataError, LabelError, MethodMisfit, with_article
from datadreamer_like.formats import layouts

from .tokens import NO_LIMIT, batch_of, flat_batch_of, max_tokens, parts_in_cache

Named = Callable[[int], str]
"""Returns what a message calls a row of a batch, by its index in the batch."""


class Teacher(Protocol):
    """A transformers model and its tokenizer: a trainer, a stage, a `TrainedModel`, a `TeacherModel`."""

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""


@runtime_checkable
class TextTeacher(Protocol):
    """A teacher of classes that reads texts itself: no transformers model, or none that gives logits for tokens.

    An attribute `multi_label`, if true, makes its logits those of binary decisions, one per class.

    Its fingerprint, from `__fingerprint__` or its attributes, must include all that decides its answers. A `model` of a
    `Teacher` that has these two is asked in the same way.
    """

    @property
    def classes(self) -> Sequence[str]:
        """The classes, in the order of its logits."""

    def class_logits(self, texts: Sequence[str]) -> Tensor:
        """Returns logits [texts, classes], such as log-probabilities; fp32 on the CPU."""


@dataclass(frozen=True, eq=False, repr=False)
class TeacherModel:
    """A transformers model and its tokenizer as a teacher, outside of any session."""

    model: nn.Module
    tokenizer: Any

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module) or not callable(self.tokenizer):
            raise ArgumentTypeError(
                f"A TeacherModel is a model and its tokenizer, not {self.model!r:.60} and {self.tokenizer!r:.60}. Pass "
                "what AutoModel... and AutoTokenizer.from_pretrained return."
            )

    def __repr__(self) -> str:
        return f"TeacherModel({type(self.model).__name__})"

    def __fingerprint__(self) -> dict[str, Any]:
        """Class, config, weights and tokenizer, by content."""
        config, backend = getattr(self.model, "config", None), getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            rules = self.tokenizer.get_vocab()
        else:
            # The last call to the tokenizer leaves truncation and padding behind. One text is hashed much faster than
            # the entries of a large vocabulary.
            rules = json.dumps(json.loads(backend.to_str()) | {"truncation": None, "padding": None}, sort_keys=True)
        names = ("padding_side", "truncation_side", "model_max_length")
        return {
            "class": type(self.model).__qualname__,
            "config": None if config is None else config.to_json_string(),
            "weights": self.model.state_dict(),
            "tokenizer": [rules, *(getattr(self.tokenizer, name, None) for name in names)],
        }


def check_teacher(teacher: object) -> None:
    """Checks that an object is a `TextTeacher`, or has a `model` and a `tokenizer`, without loading them.

    Raises:
        ArgumentTypeError: It is neither.
    """
    if getattr_static(teacher, "class_logits", None) is not None:
        return
    if missing := [name for name in ("model", "tokenizer") if getattr_static(teacher, name, ...) is ...]:
        raise ArgumentTypeError(
            f"{with_article(type(teacher), 'A')} cannot be a teacher: it has no {' and no '.join(missing)}. Pass a "
            "trainer, a stage, a TrainedModel, or distillation.TeacherModel(model, tokenizer). A column of "
            "probabilities teaches as train_output."
        )


def text_teacher(teacher: Teacher | TextTeacher) -> TextTeacher | None:
    """Returns the teacher, or its model, if it reads texts itself; None for a model that reads tokens."""
    if getattr_static(teacher, "class_logits", None) is not None:
        return cast("TextTeacher", teacher)
    model = cast("Teacher", teacher).model
    return cast("TextTeacher", model) if hasattr(model, "class_logits") else None


def classes_of(teacher: Teacher | TextTeacher) -> dict[str, int]:
    """Returns a teacher's classes and their positions in its logits; empty for a model without classes."""
    reader = text_teacher(teacher)
    if reader is not None:
        return {str(name): position for position, name in enumerate(reader.classes)}
    return dict(getattr(getattr(cast("Teacher", teacher).model, "config", None), "label2id", None) or {})


def is_multi_label(teacher: Teacher | TextTeacher) -> bool:
    """Whether a teacher's logits are binary decisions: a `TextTeacher` says so by an attribute `multi_label`."""
    reader: Any = text_teacher(teacher) or cast("Teacher", teacher).model
    stated = getattr(getattr(reader, "config", None), "problem_type", None)
    return bool(getattr(reader, "multi_label", stated == "multi_label_classification"))


def scaled_logits(teacher: Teacher | TextTeacher, logits: Tensor) -> Tensor:
    """Returns a teacher's logits [..., classes], divided by the temperature that `stages.Calibrate` fitted, if any.

    Their probabilities are then those that the teacher predicts.
    """
    fitted = getattr(getattr(teacher, "trained", teacher), "confidence", None)
    temperature = getattr(fitted, "temperature", None)
    return logits if temperature is None else logits / torch.as_tensor(temperature, device=logits.device)


def tokens_teacher(teacher: Teacher | TextTeacher, needed: str) -> Teacher:
    """Returns a teacher that must read the student's tokens; `MethodMisfit` if it gives classes of texts only.

    It must be a transformers model. `needed` is what the objective needs of it, for the message.
    """
    model = None if text_teacher(teacher) is not None else cast("Teacher", teacher).model
    if getattr(model, "only_logits", not hasattr(model, "config")):
        raise MethodMisfit(
            f"The objective needs {needed} of its teacher, which {teacher!r} does not give. Choose a transformers "
            "model as teacher, or an objective on logits of classes: SoftTargets(teacher)."
        )
    return cast("Teacher", teacher)


@torch.no_grad()
def teacher_logits_for_texts(
    teacher: Teacher | TextTeacher,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    device: torch.device | str | None = None,
    on_rows: Callable[[int], None] | None = None,
    called: str = "the teacher",
) -> Tensor:
    """Returns a classifier's logits [rows, classes] for texts, tokenized with its own tokenizer; fp32 on the CPU.

    Rows are in the order of the texts, and classes in that of the teacher. Texts are batched by length, to reduce
    padding, on a CPU in parts that stay in its cache, and run in eval mode on `device`, to which the model is moved
    meanwhile. They are cut at `max_length` tokens, at most the teacher's own limit. `on_rows` is called after each
    batch with its number of rows; `called` is what messages call the classifier. Raises `DataError` if one of the texts
    is not a text or its logits are not numbers, and `MethodMisfit` if the teacher gives no logits of this shape.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"Text {index} is {type(text).__name__}, not a text. Filter such rows out first.")
    reader = text_teacher(teacher)
    if reader is not None:
        return _logits_of_reader(reader, texts, batch_size, on_rows, called)
    model, tokenizer = cast("Teacher", teacher).model, cast("Teacher", teacher).tokenizer
    config = getattr(model, "config", None)
    longest = min(max_length or NO_LIMIT, max_tokens(config, tokenizer) or NO_LIMIT)
    encode = flat_batch_of if getattr(model, "flat_inputs", False) else batch_of
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    found = torch.empty(0, int(getattr(config, "num_labels", 0)))
    with eval_mode(model, device):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = encode(tokenizer, [texts[row] for row in rows], longest)
            home = device_of(model)
            parts = parts_in_cache(batch, home) if encode is batch_of else [(range(len(rows)), batch)]
            for part, inputs in parts:
                found_now = model(**{name: value.to(home) for name, value in inputs.items()})
                logits = getattr(found_now, "logits", None)
                if not isinstance(logits, Tensor) or logits.dim() != 2:
                    raise MethodMisfit(
                        f"The teacher, {type(model).__name__}, gives no logits [rows, classes], so it cannot teach a "
                        "classifier. Load it as a model for sequence classification."
                    )
                check_logits(logits, named=named_text([texts[rows[index]] for index in part]), called=called)
                if not len(found):
                    found = torch.empty(len(texts), logits.shape[-1])
                found[[rows[index] for index in part]] = logits.float().cpu()
            if on_rows is not None:
                on_rows(len(rows))
    return found


def check_logits(
    logits: Tensor, mask: Tensor | None = None, named: Named | None = None, *, called: str = "the teacher"
) -> None:
    """Raises `DataError` if a model's logits [rows, ..., classes] have a NaN or +∞, or if all of a position are -∞.

    One -∞ is a probability of 0. Only the positions that `mask` [rows, ...] keeps count. `named` returns what the
    message calls a row, and `called` is what it calls the model.
    """
    if not logits.numel():
        return
    wrong = ~logits.amax(-1).isfinite()  # the maximum of a NaN is NaN
    if mask is not None:
        wrong &= mask.bool()
    if wrong.any():
        where = "" if named is None else f" for {named(int(wrong.nonzero()[0, 0]))}"
        raise DataError(
            f"The outputs of {called}{where} are NaN or infinite, so they cannot be used. Check its weights, and its "
            "dtype, in which it may overflow: try dtype=torch.float32. If only a few rows are concerned, filter them "
            "out."
        )


def named_text(texts: Sequence[str]) -> Named:
    """Returns what a message calls one of the texts, by its index."""
    return lambda index: f"the text {texts[index][:60]!r}"


def _logits_of_reader(
    reader: TextTeacher, texts: Sequence[str], batch_size: int, on_rows: Callable[[int], None] | None, called: str
) -> Tensor:
    parts = [torch.empty(0, len(reader.classes))]
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        logits = torch.as_tensor(reader.class_logits(part)).float().cpu()
        if logits.shape != (len(part), len(reader.classes)):
            raise MethodMisfit(
                f"{reader!r} returned logits of shape {tuple(logits.shape)} for {len(part)} texts and "
                f"{len(reader.classes)} classes. Expected one row per text and one column per class."
            )
        check_logits(logits, named=named_text(part), called=called)
        parts.append(logits)
        if on_rows is not None:
            on_rows(len(part))
    return torch.cat(parts)


def check_same_vocabulary(
    teacher: Teacher, tokenizer: Any, names: tuple[str, str] = ("the teacher", "the student")
) -> None:
    """Raises `MethodMisfit` if the student's tokenizer has other token ids: tokens would be mixed up silently."""
    theirs, ours = teacher.tokenizer.get_vocab(), tokenizer.get_vocab()
    if theirs == ours:
        return
    moved = sorted((token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)), key=repr)
    first = moved[0]
    raise MethodMisfit(
        f"The vocabularies of {' and '.join(names)} differ: {len(moved):,} tokens have different ids or are missing in "
        f"one of them, for instance {first!r} ({theirs.get(first)} and {ours.get(first)}). They are compared token by "
        "token, which needs the same tokenizer: choose models of one family. A student of another family can be "
        "trained on texts that the teacher generates."
    )


def align_labels(
    teacher_logits: Tensor, teacher_label2id: Mapping[str, int], student_label2id: Mapping[str, int]
) -> Tensor:
    """Reorders a teacher's logits [..., classes] to the student's classes, by name; see `label_order` for errors."""
    return teacher_logits[..., label_order(teacher_label2id, student_label2id)]


def label_order(
    teacher_label2id: Mapping[str, int],
    student_label2id: Mapping[str, int],
    names: tuple[str, str] = ("the teacher", "the student"),
) -> list[int]:
    """Returns the teacher's position of each class in the student's order; `LabelError` if their classes differ.

    `names` are what the two are called in the message.
    """
    lacking = {
        names[0]: sorted(student_label2id.keys() - teacher_label2id.keys()),
        names[1]: sorted(teacher_label2id.keys() - student_label2id.keys()),
    }
    if parts := [f"{who} lacks {', '.join(classes)}" for who, classes in lacking.items() if classes]:
        raise LabelError(
            f"{' and '.join(names).capitalize()} have different classes: {'; '.join(parts)}. Train both on "
            "the same set of labels, or rename the teacher's classes in its config (label2id and id2label)."
        )
    return [teacher_label2id[name] for name in sorted(student_label2id, key=student_label2id.__getitem__)]


def move_teacher(model: nn.Module, device: torch.device) -> None:
    """Moves a live teacher to the device of the student's batches, if it can be moved."""
    if device_of(model) != device and not stays(model):
        model.to(device)


def stays(model: nn.Module) -> bool:
    """Whether a model stays on the device where it was loaded, as those that other libraries quantized may have to."""
    return bool(getattr(model, "is_quantized", False)) and not layouts(model)


@contextlib.contextmanager
def eval_mode(model: nn.Module, device: torch.device | str | None = None) -> Iterator[None]:
    """Puts a model into eval mode and on a device inside the block, and restores both afterwards."""
    home = device_of(model)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        if device is not None:
            model.to(device)
        yield
    finally:
        if device is not None:
            model.to(home)
        for module in training:
            module.training = True


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's weights; those of a quantized model may all be buffers."""
    return next(chain(model.parameters(), model.buffers()), torch.empty(0)).device
