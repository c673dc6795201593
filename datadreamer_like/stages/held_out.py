"""The base of the stages that fit something on rows held out from training: a temperature, a threshold."""

from __future__ import annotations

import logging
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datadreamer_like.errors import MethodMisfit, check_number
from datadreamer_like.evaluation.columns import check_column, check_lengths, read_rows
from datadreamer_like.evaluation.judge import NAMES
from datadreamer_like.evaluation.labels import LabelSet, class_names
from datadreamer_like.graph import Node
from datadreamer_like.graph.card import oldest_first
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.confidence import Confidence
from datadreamer_like.models.trained.model_files import write_card
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded

from .stage import Stage, model_argument, origins

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("datadreamer_like")


@dataclass(frozen=True)
class HeldOutRows:
    """A classifier's logits for rows [rows, classes], and their targets, as `LabelSet.targets` returns them."""

    logits: np.ndarray[Any, np.dtype[np.float64]]
    targets: np.ndarray[Any, Any]
    multi_label: bool

    @property
    def correct(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether the most likely class, or each of the classes of a multi-label model, is right [rows]."""
        found: np.ndarray[Any, np.dtype[np.bool_]]
        if self.multi_label:
            found = ((self.logits > 0) == (self.targets > 0)).all(axis=1)
        else:
            found = self.logits.argmax(axis=1) == self.targets
        return found


class HeldOutStage(Stage, ModelNode):
    """Base of stages that copy a classifier, and fit on held-out rows what is saved next to its weights.

    An export that was loaded with `runtime="onnx"` is copied and run there, and so is the result.

    Texts that the model was trained on in this session are warned of: a column each time, and single texts, wherever
    else they are from, when the stage runs.

    A subclass writes `fit`, and passes its own arguments that determine the result to `__init__`.
    """

    papers: ClassVar[tuple[str, ...]] = ()
    """arXiv ids of the method."""
    held_out_from: ClassVar[tuple[str, ...]] = ("input train_",)
    """Parts of the models behind this one, by the start of their names, whose column must not be `inputs`."""

    def __init__(
        self,
        name: str,
        model: object,
        inputs: Column,
        labels: Column,
        own: dict[str, Any],
        *,
        batch_size: int,
        max_length: int | None,
        device: str | int | torch.device | None,
        force: bool,
        progress_interval: float | None,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.source = model_argument(model, f'"{self.name}": model', device)
        self.device, self.dtype, self.runtime = self.source.device, self.source.dtype, self.source.runtime
        self.inputs = check_column(inputs, f'"{self.name}": inputs')
        self.labels = check_column(labels, f'"{self.name}": labels')
        check_lengths(self._columns)
        check_number(batch_size, f'"{self.name}": batch_size', 1, whole=True)
        check_number(max_length, f'"{self.name}": max_length', 2, whole=True, optional=True)
        if self.source.task != "text-classification":
            raise MethodMisfit(
                f'"{self.name}": {self.source!r} does {self.source.task}; {type(self).__name__} takes a classifier.'
            )
        if len(self.source.labels) < 2 and not self.source.is_multi_label:
            raise MethodMisfit(
                f'"{self.name}": {self.source!r} has one output, as those that give a score do, so it never chooses '
                f"between classes. {type(self).__name__} takes a classifier of two classes or more."
            )
        self.batch_size, self.max_length, self._own = batch_size, max_length, own
        self.parents = origins([self.source], self._columns.values())
        self._warn_of_seen_rows()
        self.find_or_make()

    def _read_before(self) -> Iterator[tuple[Node, str, str]]:
        """Yields each model behind this one with the arguments and fingerprints of the columns of `held_out_from`."""
        for node in oldest_first(self.source.node, lambda each: each.parents) if self.source.node is not None else ():
            for name, read in node.parts.items() if isinstance(node, ModelNode) else ():
                if name.startswith(self.held_out_from):
                    yield node, name.removeprefix("input "), read

    def _warn_of_seen_rows(self) -> None:
        own = fingerprint(self.inputs, "inputs")
        for node, argument, read in self._read_before():
            if read == own:
                logger.warning(
                    '%s: inputs is the column that "%s" read as %s, so what is fitted on it holds for rows that '
                    "the model has seen, and for no others. Pass rows that were held out.",
                    self.name, node.name, argument,
                )  # fmt: skip

    def _warn_of_seen_texts(self, texts: Sequence[str]) -> None:
        """Compares texts with those of columns that are not `inputs`; the columns are found again by fingerprint."""
        wanted, own = {*texts}, fingerprint(self.inputs, "inputs")
        for node, argument, read in self._read_before():
            column = None if read == own else _column_of(node, read)
            seen = {text for text in column or () if isinstance(text, str) and text in wanted}
            if seen:
                count = sum(text in seen for text in texts)
                self.card.facts["Rows seen before"] = f'{count:,} of {len(texts):,}, by "{node.name}" as {argument}'
                logger.warning(
                    '%s: %s of the %s rows of inputs have a text that "%s" read as %s, so the model may know them '
                    "better than later rows. Filter them out, unless later rows repeat its texts as often.",
                    self.name, f"{count:,}", f"{len(texts):,}", node.name, argument,
                )  # fmt: skip

    @abstractmethod
    def fit(self, rows: HeldOutRows, before: Confidence) -> Confidence:
        """Returns what to save, given that of the model so far; notes figures on the card."""

    @property
    def _columns(self) -> dict[str, Column]:
        return dict(zip(NAMES, (self.inputs, self.labels), strict=True))

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        parts = class_part(type(self)) | {"model": fingerprint(self.source, "model")}
        parts |= {f"input {name}": fingerprint(column, name) for name, column in self._columns.items()}
        own = {**self._own, "max_length": self.max_length}
        return parts | {f"argument {name}": fingerprint(value, name) for name, value in own.items()}

    def build(self, draft: Path) -> Kept:
        """Copies the model, runs the copy on the rows, fits, and saves."""
        folder = draft / self.MODEL_FOLDER
        with quiet():
            if Path(self.source.path).is_dir():
                shutil.copytree(self.source.path, folder)  # with the card, which its weights are checked against
            else:
                TrainedModel.save(self.source.model, self.source.tokenizer, folder)
            copied = TrainedModel(folder, device=self.device, dtype=self.dtype, runtime=self.runtime)
            before = copied.confidence
            with loaded(copied):
                rows = self._run(copied)
        for paper in self.papers:
            self.card.register("Citation Information", f"{type(self).__name__}: arXiv:{paper}")
            self.card.register("URL", f"https://arxiv.org/abs/{paper}")
        if self.source.node is None:
            self.card.register("Model Name", self.source.path)
        self.card.base_model = self.source.card.base_model
        self.card.facts["Rows held out"] = f"{len(rows.logits):,}"
        self.fit(rows, before).write(folder)
        write_card(folder, self.card)
        return self.kept()

    def _run(self, model: TrainedModel) -> HeldOutRows:
        known, naming = LabelSet(tuple(model.labels), model.is_multi_label), class_names(self.labels)
        self.usage.total_rows, logits, targets = self.inputs.num_rows, [], []
        start = 0
        # All labels are read, and checked, before the model runs.
        parts = list(read_rows(self._columns, labels=NAMES[1]))
        for part in parts:
            targets.append(known.targets([label for _, label in part], NAMES[1], start, naming))
            start += len(part)
        self._warn_of_seen_texts([text for part in parts for text, _ in part])
        for part in parts:
            self.usage.note = "running the model"
            texts = [text for text, _ in part]
            logits.append(model.logits(texts, batch_size=self.batch_size, max_length=self.max_length))
            self.usage.add(rows=len(part))
        return HeldOutRows(np.concatenate(logits).astype(np.float64), np.concatenate(targets), known.multi)


def _column_of(node: Node, wanted: str) -> Column | None:
    """Returns the column with this fingerprint among those of a node's parents."""
    for parent in node.parents:
        output = None if isinstance(parent, ModelNode) else getattr(parent, "output", None)
        for name in getattr(output, "column_names", ()):
            column: Column = output[name]  # type: ignore[index]
            if fingerprint(column, name) == wanted:
                return column
    return None
