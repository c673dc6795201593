"""Teachers: the protocol, checks against the student, and a classifier's logits for texts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from datadreamer_like.errors import ArgumentTypeError, DataError, LabelError, MethodMisfit

_NO_LIMIT = 10**9
_POSITIONS_AFTER_PADDING = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet"}


class Teacher(Protocol):
    """A transformers model and its tokenizer: a trainer, a stage, a `TrainedModel`, a `TeacherModel`."""

    @property
    def model(self) -> Any:
        """The transformers model."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""


@dataclass(frozen=True, eq=False, repr=False)
class TeacherModel:
    """A model and its tokenizer as a teacher, outside of any session.

    Attributes:
        model: A transformers model.
        tokenizer: Its tokenizer.
    """

    model: nn.Module
    tokenizer: Any

    def __repr__(self) -> str:
        return f"TeacherModel({type(self.model).__name__})"

    def __fingerprint__(self) -> dict[str, Any]:
        """Class, config, weights and tokenizer, by content."""
        config = getattr(self.model, "config", None)
        return {
            "class": type(self.model).__qualname__,
            "config": None if config is None else config.to_json_string(),
            "weights": _digest(self.model.state_dict()),
            "tokenizer": _tokenizer_content(self.tokenizer),
        }


def check_teacher(teacher: object) -> None:
    """Checks that an object is a `Teacher`, without loading its model.

    Raises:
        ArgumentTypeError: It has no `model` or no `tokenizer`.
    """
    known = {*dir(type(teacher)), *getattr(teacher, "__dict__", ())}
    missing = [name for name in ("model", "tokenizer") if name not in known]
    if missing:
        raise ArgumentTypeError(
            f"A {type(teacher).__name__} cannot be a teacher: it has no {' and no '.join(missing)}. Pass a trainer, a "
            "stage, a TrainedModel, or distillation.TeacherModel(model, tokenizer)."
        )


@torch.inference_mode()
def teacher_logits_for_texts(
    teacher: Teacher,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    device: torch.device | str | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Tensor:
    """Returns a classifier's logits for texts, tokenized with its own tokenizer.

    Texts are batched by length, to reduce padding, and run in eval mode.

    Args:
        teacher: The teacher.
        texts: The texts.
        batch_size: Texts in a batch.
        max_length: Texts are cut at this many tokens; None for the teacher's own limit, which also caps it.
        device: Device for the computation; the model is moved back afterwards. None for the model's current device.
        on_rows: Called after each batch with its number of rows.

    Returns:
        Logits [rows, classes], fp32 on the CPU, in the order of the texts and of the teacher's classes.

    Raises:
        DataError: One of the texts is not a text.
        MethodMisfit: The teacher gives no logits of this shape.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"Text {index} is {type(text).__name__}, not a text. Filter such rows out first.")
    model, tokenizer = teacher.model, teacher.tokenizer
    longest = min(max_length or _NO_LIMIT, _most_tokens(model, tokenizer))
    order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
    with eval_mode(model, device):
        found = None
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            logits = getattr(model(**batch.to(device_of(model))), "logits", None)
            if not isinstance(logits, Tensor) or logits.dim() != 2:
                raise MethodMisfit(
                    f"The teacher, {type(model).__name__}, gives no logits [rows, classes], so it cannot teach a "
                    "classifier. Load it as a model for sequence classification."
                )
            if found is None:
                found = _ordinary_tensor(len(texts), logits.shape[-1])
            found[rows] = logits.float().cpu()
            if on_rows is not None:
                on_rows(len(rows))
    if found is None:
        return _ordinary_tensor(0, int(getattr(getattr(model, "config", None), "num_labels", 0)))
    return found


def check_same_vocabulary(teacher: Teacher, tokenizer: Any) -> None:
    """Checks that teacher and student have the same token ids; otherwise logits would be mixed up silently.

    Args:
        teacher: The teacher.
        tokenizer: The student's tokenizer.

    Raises:
        MethodMisfit: The vocabularies differ.
    """
    theirs, ours = teacher.tokenizer.get_vocab(), tokenizer.get_vocab()
    if theirs == ours:
        return
    moved = sorted((token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token)), key=repr)
    first = moved[0]
    raise MethodMisfit(
        f"Teacher and student have different vocabularies: {len(moved):,} tokens have different ids or are missing in "
        f"one of them, for instance {first!r} (teacher: {theirs.get(first)}, student: {ours.get(first)}). Token-level "
        "soft targets need the same tokenizer: start the student from a model of the teacher's family, or train it on "
        "texts that the teacher generates."
    )


def align_labels(
    teacher_logits: Tensor, teacher_label2id: Mapping[str, int], student_label2id: Mapping[str, int]
) -> Tensor:
    """Reorders a teacher's logits to the student's classes, by name.

    Args:
        teacher_logits: [..., classes] in the teacher's order.
        teacher_label2id: The teacher's classes and their positions.
        student_label2id: The student's classes and their positions.

    Returns:
        Logits [..., classes] in the student's order.

    Raises:
        LabelError: Teacher and student have different classes.
    """
    order = label_order(teacher_label2id, student_label2id)
    if order == list(range(teacher_logits.shape[-1])):
        return teacher_logits
    return teacher_logits[..., torch.tensor(order, device=teacher_logits.device)]


def label_order(teacher_label2id: Mapping[str, int], student_label2id: Mapping[str, int]) -> list[int]:
    """Returns the teacher's position of each student class, in the student's order.

    Raises:
        LabelError: Teacher and student have different classes.
    """
    lacking = sorted(student_label2id.keys() - teacher_label2id.keys())
    unknown = sorted(teacher_label2id.keys() - student_label2id.keys())
    if lacking or unknown:
        parts = [f"the teacher lacks {', '.join(lacking)}"] if lacking else []
        parts += [f"the student lacks {', '.join(unknown)}"] if unknown else []
        raise LabelError(
            f"Teacher and student have different classes: {'; '.join(parts)}. Train both on the same set of labels, "
            "or rename the teacher's classes in its config (label2id and id2label)."
        )
    return [teacher_label2id[name] for name in sorted(student_label2id, key=lambda name: student_label2id[name])]


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
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return torch.device("cpu")


@torch.inference_mode(False)
def _ordinary_tensor(rows: int, classes: int) -> Tensor:
    # A tensor created in inference mode could not be used in training.
    return torch.empty(rows, classes, dtype=torch.float32)


def _most_tokens(model: Any, tokenizer: Any) -> int:
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None) or _NO_LIMIT
    if getattr(config, "model_type", None) in _POSITIONS_AFTER_PADDING:
        positions -= cast(Any, config).pad_token_id + 1
    return int(min(tokenizer.model_max_length, positions))


def _digest(state: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(f"\0{name}\0".encode())
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _tokenizer_content(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        vocabulary = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
        return {"class": type(tokenizer).__qualname__, "vocabulary": vocabulary}
    content = json.loads(backend.to_str())
    # The last call to the tokenizer leaves these two behind.
    content |= {"truncation": None, "padding": None}
    sides = [getattr(tokenizer, name, None) for name in ("padding_side", "truncation_side", "model_max_length")]
    return {"content": hashlib.sha256(json.dumps(content).encode()).hexdigest(), "sides": sides}
