"""Signals from the log-probabilities that a prompting step stored: texts of tokens become ids of the student's."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import Any

import numpy as np

from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.signals import Columns, TopK, packed_ids
from datadreamer_like.distillation.stored_teacher import Generations
from datadreamer_like.distillation.tokens import token_text
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.evaluation.tasks.generation import Generation
from datadreamer_like.evaluation.tasks.task import Task

_PORTION = 500
_LEAST_MATCHED = 0.9  # of an answer's tokens; the first and the last may differ by blanks


def signals_of_generations(
    given: Generations, signals: TopK, task: Task, key_of: Callable[[Mapping[str, Any]], bytes], keys: Collection[bytes]
) -> Iterator[tuple[bytes, Columns]]:
    """Yields the key and the signals of each row with one of the `keys`, once.

    Raises:
        MethodMisfit: The task does not generate, a row has no signals, or its tokens are not the student's.
    """
    if not isinstance(task, Generation):
        raise MethodMisfit(f"Log-probabilities of generations teach TrainHFFineTune, not {task.kind}.")
    texts = _Texts(task.tokenizer)
    wanted = {*keys}
    found = matched = total = 0
    rows = zip(given.prompts.values(), given.generations.values(), given.logprobs.values(), strict=True)
    while part := list(islice(rows, _PORTION)):
        usable = [row for row in part if all(value is not None for value in row)]
        cuts = task.cut([(prompt, answer) for prompt, answer, _ in usable]) if usable else ()
        for (_, kept), (_, _, logprobs) in zip(cuts, usable, strict=True):
            if kept is None or not wanted:
                continue
            row = dict(zip(task.fields, kept, strict=True))
            key = key_of(row)
            if key not in wanted:
                continue
            wanted.remove(key)
            labels = [int(label) for label in row["labels"] if label != IGNORED_LABEL]
            columns, same = texts.columns(labels, logprobs, signals)
            found, matched, total = found + 1, matched + same, total + len(logprobs["tokens"])
            yield key, columns
    if wanted:
        raise MethodMisfit(
            f"{len(wanted):,} of the {found + len(wanted):,} rows have no signals in {given.node.name!r}. Train on the "
            f"columns that StoredTeacher.from_step(step, prompts=...) reads, with values as they are, and filter out "
            "rows without log-probabilities."
        )
    if matched < _LEAST_MATCHED * total:
        raise MethodMisfit(
            f"Only {matched:,} of the {total:,} tokens that {given.node.name!r} stored are tokens of the student. Its "
            "tokenizer must be of the teacher's family."
        )


class _Texts:
    """The tokens of a tokenizer by their text."""

    def __init__(self, tokenizer: Any) -> None:
        self.vocabulary = len(tokenizer)
        self.of = [token_text(tokenizer, token) for token in range(self.vocabulary)]
        self.ids: dict[str, int] = {}
        for token in reversed(range(self.vocabulary)):
            self.ids[self.of[token]] = token
        # Parts of characters all decode to the same mark.
        self.ids = {text: token for text, token in self.ids.items() if text and "\ufffd" not in text}

    def columns(self, labels: Sequence[int], logprobs: Mapping[str, Any], signals: TopK) -> tuple[Columns, int]:
        """Returns the signals at the labels' positions, as `TopK.capture` does, and the number of matched tokens."""
        ids = np.repeat(np.asarray(labels, dtype=np.int64)[:, None], signals.k, axis=1)
        # The token itself, certainly, where the teacher's tokens are not the labels.
        values = np.full(ids.shape, -np.inf, dtype=np.float64)
        values[:, 0] = 0.0
        rest = np.full((len(labels), 1), -np.inf, dtype=np.float64)
        ours, theirs = [self.of[label] for label in labels], list(logprobs["tokens"])
        matched = 0
        for start, other, size in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
            for place, position in zip(range(start, start + size), range(other, other + size), strict=True):
                matched += 1
                listed = self._listed(logprobs["top_tokens"][position], logprobs["top_logprobs"][position], signals.k)
                if listed:
                    values[place] = -np.inf
                    ids[place, : len(listed)], values[place, : len(listed)] = zip(*listed, strict=True)
                    rest[place] = _log_rest([value for _, value in listed])
        packed = {"ids": packed_ids(ids, self.vocabulary), "log_probs": values, "rest": rest}
        return {
            name: np.ravel(part if name == "ids" else part.astype(np.float16)) for name, part in packed.items()
        }, matched

    def _listed(self, tokens: Sequence[str], values: Sequence[float], k: int) -> list[tuple[int, float]]:
        """Returns ids and log-probabilities; tokens that the student does not have are left to the rest."""
        known = {self.ids[text]: value for text, value in zip(tokens, values, strict=True) if text in self.ids}
        return list(known.items())[:k]


def _log_rest(values: Sequence[float]) -> float:
    left = 1 - math.fsum(map(math.exp, values))
    return math.log(left) if left > 1e-7 else -math.inf
