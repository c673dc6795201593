"""The base of the stages that make a model smaller, pruning and quantization, and their calibration data."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, TypedDict

import torch  # noqa: TID253  (imported with the first stage that compresses, whose methods need it anyway)

from datadreamer_like.compression import CompressionMethod
from datadreamer_like.distillation.losses import IGNORED_LABEL
from datadreamer_like.distillation.tokens import padded_inputs, padding_id
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit, check_number
from datadreamer_like.evaluation.columns import check_column, check_lengths, read_rows, read_texts
from datadreamer_like.evaluation.costs import size_of
from datadreamer_like.evaluation.labels import LabelSet, class_names
from datadreamer_like.evaluation.tasks.task import row_limit, tokenize
from datadreamer_like.graph import Node, current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.identity import class_part
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.graph.results import Kept
from datadreamer_like.models.quiet import quiet
from datadreamer_like.models.trained.embedder_files import copy_modules
from datadreamer_like.models.trained.model_files import write_card
from datadreamer_like.models.trained.model_node import ModelNode
from datadreamer_like.models.trained.trained_model import TrainedModel, loaded

from .stage import Stage, model_argument, origins

logger = logging.getLogger("datadreamer_like")


class CompressionOptions(TypedDict, total=False):
    """Further arguments of `Compression`, which describes them."""

    batch_size: int
    max_length: int | None
    device: str | int | torch.device | None
    force: bool
    progress_interval: float | None


class Compression(Stage, ModelNode):
    """Applies a compression method to a model; the result is a model.

    The result is cached: a rerun loads it, and it is made again if the model, method or calibration column changed.

    Args:
        model: The model to compress: a trainer, a stage, a `TrainedModel`, a folder, or an id on the Hub. It is not
            changed.
        method: The method with its options.
        calibration: Column of texts for methods that measure activations or gradients; they are tokenized with the
            model's tokenizer. A method that changes the tokenizer gets the texts themselves.
        calibration_labels: Column of their labels, for classifiers. Without it, a method that needs a loss uses a
            classifier's most likely class, or a language model's input, as the label.
        batch_size: Texts in a calibration batch.
        max_length: Calibration texts are cut at this many tokens; None for the model's own limit.
        device: Device for the work and the result, such as "cuda"; None for the device of `model`.

    Raises:
        SessionError: There is no session.
        NotTrained: The model is a trainer that was not trained yet.
        MethodMisfit: The method does not fit the model; raised before any work.
        DefinitionError: The method needs calibration data and got none.
        ArgumentTypeError: An argument has the wrong type.
        DataError, EmptyDataset, LabelError: Calibration texts or labels are missing, or other than the model's classes.
    """

    method_kind: ClassVar[str]
    """`kind` of the methods that the stage accepts."""

    @only_known
    def __init__(
        self,
        name: str,
        model: object,
        method: CompressionMethod,
        calibration: Column | None = None,
        calibration_labels: Column | None = None,
        *,
        batch_size: int = 32,
        max_length: int | None = None,
        device: str | int | torch.device | None = None,
        force: bool = False,
        progress_interval: float | None = 60,
    ) -> None:
        super().__init__(name, force=force, progress_interval=progress_interval)
        self.source = model_argument(model, f'"{self.name}": model', device, weights=True)
        self.device, self.dtype = self.source.device, self.source.dtype
        if not isinstance(method, CompressionMethod) or method.kind != self.method_kind:
            hint = " Create an instance of it, with its options." if isinstance(method, type) else ""
            raise ArgumentTypeError(
                f'"{self.name}": method is {method!r}; {type(self).__name__} takes a method of '
                f"datadreamer_like.{self.method_kind}.{hint}"
            )
        self.method = method
        columns = {"calibration": calibration, "calibration_labels": calibration_labels}
        self._calibration = {
            argument: check_column(column, f'"{self.name}": {argument}')
            for argument, column in columns.items()
            if column is not None
        }
        self.batch_size, self.max_length = batch_size, max_length
        self._check_calibration()
        self.prepare()
        self.parents = self.origins()
        self.find_or_make()

    def prepare(self) -> None:
        """Checks a subclass's own arguments, before any work."""

    def columns(self) -> dict[str, Column]:
        """Returns the stage's columns by argument name."""
        return dict(self._calibration)

    def origins(self) -> list[Node]:
        """Returns the parent nodes, without duplicates."""
        return origins([self.source], self.columns().values())

    def fingerprint_parts(self) -> dict[str, str]:
        """Returns the fingerprints of everything that determines the result, by name."""
        parts = class_part(type(self)) | {"model": fingerprint(self.source, "model"), **_method_parts(self.method)}
        for name, column in self.columns().items():
            parts[f"input {name}"] = fingerprint(column, name)
        if self._calibration:
            parts["argument batch_size"] = fingerprint(self.batch_size)
            parts["argument max_length"] = fingerprint(self.max_length)
        return parts

    @property
    def needs_calibration(self) -> bool:
        """Whether the method needs calibration data in this stage."""
        return self.method.needs_calibration

    def apply(self, source: TrainedModel, data: Any) -> tuple[Any, Any]:
        """Hook for subclasses: returns the smaller model with its tokenizer."""
        return self.method.apply(source.model, data, tokenizer=source.tokenizer)

    def finish(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """Hook for subclasses: processes the smaller model before it is saved."""
        return model, tokenizer

    def build(self, draft: Path) -> Kept:
        """Applies the method and saves the smaller model."""
        folder = draft / self.MODEL_FOLDER
        with quiet():
            with loaded(self.source) as source:
                self.usage.note = f"loading {source!r}"
                before = size_of(source.model)
                reason = self.method.why_not(source.model)
                if reason:
                    fits_not = f"{self.method} does not fit {type(source.model).__name__}: {reason}"
                    raise MethodMisfit(f'"{self.name}": {fits_not}')
                if only_here := self.method.why_only_here(source.model):
                    logger.info(
                        "%s: %s, so it loads in transformers after `import datadreamer_like.formats`, not in vLLM or "
                        "llama.cpp; for these use Layers, or Width with sizes that the config states",
                        self.name,
                        only_here,
                    )
                self.usage.note = f"applying {self.method}"
                data: Any = None
                if self._calibration:
                    data = Calibration(self._calibration, source, self.batch_size, self.max_length)
                    if self.method.changes_tokenizer:
                        data = read_texts(self._calibration["calibration"], "calibration")
                model, tokenizer = self.apply(source, data)
            model, tokenizer = self.finish(model, tokenizer)
            model.eval()
            self.usage.note = "saving"
            saved = TrainedModel.save(model, tokenizer, folder)
            copy_modules(self.source.path, folder)
            facts = before.facts(size_of(model))
            if Path(self.source.path).is_dir():
                facts["Bytes on disk"] = f"{self.source.bytes_on_disk:,} → {saved.bytes_on_disk:,}"
            self._register(facts)
            write_card(folder, self.card)
            return self.kept()

    def _register(self, facts: dict[str, str]) -> None:
        card = self.card
        card.facts["Method"] = str(self.method)
        card.facts.update(facts)
        for paper in self.method.papers:
            card.register("Citation Information", f"{type(self.method).__name__}: arXiv:{paper}")
            card.register("URL", f"https://arxiv.org/abs/{paper}")
        if self.source.node is None:
            card.register("Model Name", self.source.path)
            card.base_model = self.source.card.base_model or self.source.path

    def _check_calibration(self) -> None:
        check_number(self.batch_size, f'"{self.name}": batch_size', 1, whole=True)
        check_number(self.max_length, f'"{self.name}": max_length', 1, whole=True, optional=True)
        if "calibration_labels" in self._calibration and "calibration" not in self._calibration:
            raise DefinitionError(f'"{self.name}": calibration_labels are labels of texts. Pass calibration=... too.')
        if not self._calibration and self.needs_calibration:
            raise DefinitionError(
                f'"{self.name}": {self.method} measures the model on data. Pass calibration=step.output[...], a column '
                "of typical texts; a few hundred are enough."
            )
        if len(self._calibration) == 2:
            check_lengths(self._calibration)


def _method_parts(method: Any) -> dict[str, str]:
    """Returns one part per option, so that a rerun reports which option changed."""
    if not dataclasses.is_dataclass(method) or hasattr(method, "__fingerprint__"):
        return {"method": fingerprint(method, "method")}
    options = {f"method {f.name}": fingerprint(getattr(method, f.name), f.name) for f in dataclasses.fields(method)}
    return {"method": fingerprint(type(method), "method"), **options}


class Calibration:
    """Rows of one or two columns, read again at each pass, so that only one batch is in memory.

    The columns are `calibration`, of texts, and optionally `calibration_labels`.
    """

    def __init__(
        self, columns: dict[str, Column], trained: TrainedModel, batch_size: int, max_length: int | None
    ) -> None:
        self.columns, self.trained, self.batch_size = columns, trained, batch_size
        self.max_length = row_limit(trained.config, trained.tokenizer, max_length)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches: `input_ids` and `attention_mask` [batch, seq], and `labels` where there are any."""
        tokenizer: Any = self.trained.tokenizer
        name = "calibration_labels"
        known, naming = None, None
        if name in self.columns:
            known = LabelSet(tuple(self.trained.labels), self.trained.is_multi_label)
            naming = class_names(self.columns[name])
        usage = current_usage()
        usage.rows, usage.total_rows = 0, self.columns["calibration"].num_rows
        start = 0
        for rows in read_rows(self.columns, labels=name, portion=self.batch_size):
            usage.note = f"measuring on batches of {self.batch_size}"
            ids = tokenize(tokenizer, [row[0] for row in rows], max_length=self.max_length)
            batch = padded_inputs(ids, padding_id(tokenizer))
            if known is not None:
                batch["labels"] = torch.from_numpy(known.targets([row[1] for row in rows], name, start, naming))
            elif self.trained.task == "text2text-generation":
                batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED_LABEL)
            yield batch
            start += len(rows)
            usage.add(rows=len(rows))
