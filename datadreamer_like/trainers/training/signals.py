"""A stored teacher's signals: asked for before the student is loaded, and read for each batch of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from datadreamer_like.distillation import (
    Combined,
    Objective,
    Outputs,
    SignalStore,
    StoredTeacher,
    check_same_vocabulary,
)
from datadreamer_like.distillation.signal_store import Part, row_key
from datadreamer_like.distillation.signals import Columns, Hidden, TopK
from datadreamer_like.distillation.stored_teacher import Described, Generations
from datadreamer_like.distillation.teacher import eval_mode, stays
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch, Task
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel

from .finite import check_weights
from .generated_signals import signals_of_generations

logger = logging.getLogger("datadreamer_like")

_POSITIONS = "positions"  # the column with the number of positions of each row
_LOGITS_A_BATCH = 1 << 26  # 256 MB in fp32


class SignalReader:
    """The signals of a stored teacher for the rows of a training; `outputs` gives those of a batch.

    Made before the student is loaded: the teacher is loaded if rows are missing, and unloaded again. What the objective
    reads of the teacher, but for what is `given` otherwise, must be among the signals.

    Raises:
        MethodMisfit, DefinitionError: The teacher or its signals do not fit the task, the objective or the student's
            tokenizer.
    """

    def __init__(
        self,
        stored: StoredTeacher,
        objective: Objective,
        task: Task,
        examples: Mapping[str, Examples],
        config: PretrainedConfig,
        device: torch.device,
        folder: Path,
        given: frozenset[str] = frozenset(),
    ) -> None:
        self.stored, self.task, self.device = stored, task, device
        self.kinds = tuple(each.at(objective.temperatures) for each in stored.kinds)
        self._check(objective, config, given)
        self.tokens = len(task.tokenizer)
        self._check_head(getattr(config.get_text_config(), "vocab_size", self.tokens))
        self._examples = [(split, row) for split in examples.values() for row in range(len(split))]
        self._starts = dict(zip(examples, np.cumsum([0, *map(len, examples.values())]).tolist(), strict=False))
        self._keys = [row_key(split[row], task.read_by_model) for split, row in self._examples]
        generated = isinstance(stored.teacher, Generations)
        # Texts of tokens become ids by the student's tokenizer.
        what = [stored.teacher, *self.kinds, task.tokenizer.get_vocab() if generated else None]
        store = SignalStore(folder / "signals" / fingerprint(what, "the objective's teacher"))
        self._asked = 0
        self._rows = store.collect(self._keys, self._matched if generated else self._ask)
        self.facts = self._described()

    def __getstate__(self) -> dict[str, Any]:
        # A process that trains on another device asks for nothing.
        return {name: value for name, value in vars(self).items() if name not in ("_examples", "_keys")}

    def outputs(self, split: str, batch: Batch, student_logits: int) -> Outputs:
        """Returns the teacher's outputs for a batch of a student with this number of logits."""
        columns = self._rows.batch((batch["rows"] + self._starts[split]).tolist())
        fields: dict[str, Any] = {}
        for signals in self.kinds:
            if signals.reads == "logits":
                self._check_head(student_logits)
            fields |= signals.restore(columns, self._mask(signals.reads, batch))
        return Outputs(**fields)

    def _check(self, objective: Objective, config: PretrainedConfig, given: frozenset[str]) -> None:
        kinds, wants = self.kinds, objective.teacher_wants - given
        names = " and ".join(type(each).__name__ for each in kinds)
        if "logits" in wants & self.task.stored:
            raise MethodMisfit(
                "A classifier's logits are stored for each text without a StoredTeacher. Pass the teacher itself."
            )
        if missing := sorted(wants - {each.reads for each in kinds}):
            stored = "signals for them, StoredTeacher(teacher, [TopK(16), Hidden([6])]), or "
            other = stored if wants <= {TopK.reads, Hidden.reads} else ""  # no signals keep other outputs
            raise MethodMisfit(
                f"{type(objective).__name__} reads {' and '.join(missing).replace('_', ' ')} of its teacher, and this "
                f"StoredTeacher keeps {names}. Pass {other}the teacher itself."
            )
        if "logits" in wants and self.task.kind not in ("generation", "masked"):
            raise MethodMisfit(
                "A StoredTeacher keeps next-token logits of language models, and this teacher gives others. Pass the "
                "teacher itself."
            )
        if isinstance(self.stored.teacher, Generations):
            return objective.check_signals(kinds, Described(config), self.stored.model)
        if self.stored.tokenizer is None:
            raise MethodMisfit(
                f"{self.stored.teacher!r} has no next-token logits to store: it gives probabilities of classes. Choose "
                "a transformers model as teacher."
            )
        check_same_vocabulary(self.stored, self.task.tokenizer)
        for each in _parts(objective):
            if each.teacher_wants - given:
                each.check_signals(kinds, Described(config), self.stored.model)

    def _check_head(self, student_logits: int) -> None:
        if student_logits < self.tokens:
            raise MethodMisfit(
                f"The student has logits for {student_logits:,} tokens, but its teacher's vocabulary has "
                f"{self.tokens:,}. Token-level distillation needs models with the same vocabulary."
            )

    def _mask(self, reads: str, batch: Batch) -> torch.Tensor:
        return batch["mask"].bool() if reads == "logits" else self.task.state_mask(batch)

    def _matched(self, rows: Sequence[int]) -> Iterator[Part]:
        """Yields the signals that a prompting step stored."""
        given, (signals,) = self.stored.teacher, self.kinds
        assert isinstance(given, Generations)
        assert isinstance(signals, TopK)
        places = {self._keys[row]: row for row in rows}
        key_of = partial(row_key, names=self.task.read_by_model)
        for key, columns in signals_of_generations(given, signals, self.task, key_of, places):
            self._asked += 1
            count = len(columns["log_probs"]) // signals.k
            yield [(places[key], {_POSITIONS: np.asarray([count], dtype=np.int32), **columns})]

    def _ask(self, rows: Sequence[int]) -> Iterator[Part]:
        teacher: Any = self.stored.teacher
        task, usage = self.task, current_usage()
        wants = frozenset(each.reads for each in self.kinds)
        with unload_teacher(teacher):
            if "logits" in wants:
                task.check_teacher(teacher)
            model: Any = teacher.model
            check_weights(model, "The teacher")
            with torch.no_grad(), eval_mode(model, None if stays(model) else self.device):
                for part in self._batches(rows, int(getattr(model.config, "vocab_size", None) or self.tokens)):
                    batch = task.collate([self._examples[row][0][self._examples[row][1]] for row in part])
                    batch = {name: value.to(self.device) for name, value in batch.items()}
                    found = task.forward(model, batch, wants)
                    counts = self._mask(self.kinds[0].reads, batch).sum(-1).int().cpu().numpy()
                    columns: list[Columns] = [{_POSITIONS: count} for count in counts[:, None]]
                    for signals in self.kinds:
                        values = getattr(found, signals.reads)
                        if signals.reads == "logits":  # the rest is padding of the head
                            values = values[..., : self.tokens]
                        keys = [self._keys[row] for row in part]
                        named = partial(self._named, part)
                        captured = signals.capture(values, self._mask(signals.reads, batch), keys, named)
                        columns = [one | other for one, other in zip(columns, captured, strict=True)]
                    self._asked += len(part)
                    usage.note = f"asking the teacher, {self._asked:,} of {len(rows):,} rows"
                    yield [*zip(part, columns, strict=True)]

    def _named(self, part: Sequence[int], index: int) -> str:
        examples, row = self._examples[part[index]]
        split = next(name for name, start in self._starts.items() if start == part[index] - row)
        return f"row {int(examples.numbers[row])} of the {split} rows"

    def _batches(self, rows: Sequence[int], vocabulary: int) -> Iterator[list[int]]:
        """Yields rows of similar length, as many as their logits fit the memory for a batch."""
        lengths = {row: int(self._examples[row][0].lengths[self._examples[row][1]]) for row in rows}
        part: list[int] = []
        for row in sorted(rows, key=lambda row: -lengths[row]):
            if part and (len(part) + 1) * lengths[part[0]] * vocabulary > _LOGITS_A_BATCH:
                yield part
                part = []
            part.append(row)
        if part:
            yield part

    def _described(self) -> str:
        tokens, rows = self._rows.total(_POSITIONS), len({*self._keys})
        kinds, size = " and ".join(map(repr, self.kinds)), self._rows.num_bytes() / max(1, tokens)
        logger.info(
            "the teacher was asked for %s of %s rows; %s are stored, %.0f bytes a token",
            f"{self._asked:,}", f"{rows:,}", kinds, size,
        )  # fmt: skip
        return f"{kinds} of {rows:,} rows, {tokens:,} tokens, {size:.0f} bytes a token"


def _parts(objective: Objective) -> Iterator[Objective]:
    """The objectives that a `Combined` one adds up, or the one given."""
    if isinstance(objective, Combined):
        for each in objective.objectives:
            yield from _parts(each)
    else:
        yield objective


@contextmanager
def unload_teacher(teacher: Any) -> Iterator[None]:
    """Frees the memory of a teacher after the block, unless it was loaded before."""
    trained = teacher.trained if isinstance(teacher, ModelNode) else teacher
    was_loaded = not isinstance(trained, TrainedModel) or "model" in vars(trained)
    try:
        yield
    finally:
        if not was_loaded:
            trained.unload_model()
