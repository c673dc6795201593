"""A logistic regression on the embeddings of a frozen encoder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from datadreamer_like.distillation import Objective, SignalStore
from datadreamer_like.distillation.signal_store import Part, row_key
from datadreamer_like.distillation.tokens import max_tokens
from datadreamer_like.errors import DefinitionError, MethodMisfit, did_you_mean
from datadreamer_like.evaluation.columns import SUPERVISED, Columns, named_columns
from datadreamer_like.evaluation.soft_labels import ClassWeights
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.evaluation.tasks.examples import Examples, sorted_batches
from datadreamer_like.evaluation.tasks.task import Task
from datadreamer_like.formats.classifiers.embedding import (
    POOLINGS,
    EmbeddingConfig,
    EmbeddingForSequenceClassification,
)
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.fingerprint import fingerprint
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import only_known
from datadreamer_like.graph.session import current_session
from datadreamer_like.models.llms.chat_template import AUTO, AutoText

from .classifier import TrainHFClassifier, head_options, label_options, logistic_example, optional_labels
from .training.logistic import Rows, check_logistic, fit_logistic
from .training.loop import Fit, Run
from .training.options import HFOptions, Training
from .training.teaching import check_objective

_PORTION = 2048


class TrainEmbeddingClassifier(TrainHFClassifier):
    """Fits a logistic regression on the embeddings of a frozen encoder: one pass over the rows, no fine-tuning.

    The embeddings are pooled from the encoder's last hidden states and scaled to length 1. The regression minimises any
    objective on logits (labels, soft or hard targets of a teacher) plus `‖weight‖² / (2 C rows)`, by L-BFGS.

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` whose encoder is used.
        pooling: "mean" of the tokens, the "first" token or the "last" one; AUTO for what the files of a
            sentence-transformers model state, else the mean.
        normalize: Scale embeddings to length 1.
        **options: See `HFOptions`; further ones go to `from_pretrained`. There is no adapter.

    Example:
        >>> trainer = TrainEmbeddingClassifier("Frozen", model_name="sentence-transformers/all-MiniLM-L6-v2")
        >>> trainer.train(**columns)  # doctest: +SKIP
        >>> trainer.predict(["A parser for command-line options."]).labels  # doctest: +SKIP
        ['cli']
    """

    frozen: ClassVar[bool] = True
    """Whether the encoder keeps its weights."""

    several_devices = False

    def __init__(
        self,
        name: str,
        model_name: Any,
        *,
        pooling: AutoText = AUTO,
        normalize: bool = True,
        **options: Unpack[HFOptions],
    ) -> None:
        super().__init__(name, model_name, **options)
        if self.peft_config is not None and self.frozen:
            raise DefinitionError(
                f"{type(self).__name__}: the encoder is frozen, so there is no adapter to train. Leave peft_config and "
                "qlora out."
            )
        if pooling is not AUTO and pooling not in POOLINGS:
            raise DefinitionError(
                f'{type(self).__name__}: there is no pooling "{pooling}".{did_you_mean(str(pooling), POOLINGS)} '
                f"There are: {', '.join(POOLINGS)}."
            )
        self.pooling, self.normalize = pooling, bool(normalize)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        return logistic_example()

    @only_known
    def train(  # type: ignore[override]  # a regression has other options than a training loop
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        objective: Objective | None = None,
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        class_weights: ClassWeights = None,
        C: float | Sequence[float] | None = None,
        truncate: bool = True,
        max_length: int | None = None,
        batch_size: int = 32,
    ) -> Self:
        """Fits the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts.
            train_output: Their labels, or soft labels; see `TrainHFClassifier.train`.
            validation_input: Validation texts, used to choose C.
            validation_output: Their labels.
            objective: The objective to minimise, on logits; None for the labels alone.
            classes: The classes of soft labels, in the order of lists; None for the keys of mappings, sorted.
            multi_label: Whether each probability of a soft label is that of a separate yes-or-no decision.
            class_weights: Weights of classes in the loss of the labels; see `TrainHFClassifier.train`.
            C: Inverse strength of the penalty on the weights; see `TrainLinearClassifier.train`.
            truncate: Cut texts that are longer than the maximum; False raises an error instead.
            max_length: Maximum length of a text in tokens; None for the model's own limit.
            batch_size: Texts that are embedded together.

        Raises:
            MethodMisfit: The objective needs hidden states, or the model is compressed.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        columns = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        options = {"truncate": truncate, "max_length": max_length, "batch_size": batch_size}
        objective = check_objective(objective)
        self._label_options = label_options(self.name, objective, classes, multi_label, class_weights)
        return self.run_logistic(columns, options, objective, C, self._label_options)

    def run_logistic(
        self,
        columns: Mapping[str, object],
        options: Mapping[str, Any],
        objective: Objective | None,
        c: float | Sequence[float] | None,
        own: Mapping[str, object] = MappingProxyType({}),
    ) -> Self:
        """Finds or trains the model, whose head has the strength `c`; see `HFTrainer.run_training`."""
        objective = check_objective(objective)
        check_logistic(objective, c, f'"{self.name}".train')
        self._c = c
        own = {"C": c, "pooling": str(self.pooling), "normalize": self.normalize, **own}
        return self.run_training(columns, options, objective, own, optional_labels(self.name, columns, objective))

    def make_task(
        self, config: PretrainedConfig, tokenizer: Any, columns: Columns, training: Training, objective: Objective
    ) -> Classification:
        """Returns a classification task; see `TrainHFClassifier.make_task`."""
        if getattr(config, "quantization_config", None) is not None:
            raise MethodMisfit(
                f'"{self.name}": {self.source} is compressed, and its layout cannot be kept inside a classifier. Start '
                "from the uncompressed model, and prune or quantize the result."
            )
        task = super().make_task(config, tokenizer, columns, training, objective)
        # The config of the classifier has no number of positions.
        tokenizer.model_max_length = max_tokens(config, tokenizer) or tokenizer.model_max_length
        return task

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the encoder with a head for the classes, whose weights are not fitted yet."""
        assert isinstance(task, Classification)
        encoder = transformers.AutoModel.from_pretrained(self.source, **options)
        pooling = stated_pooling(self.source) if self.pooling is AUTO else str(self.pooling)
        own = EmbeddingConfig(encoder.config, pooling, self.normalize, **head_options(task.labels))
        model = EmbeddingForSequenceClassification(own)
        model.encoder = encoder
        return model

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForSequenceClassification

    def fit(self, run: Run) -> Fit:
        """Embeds the rows and fits the head; the embeddings and each fit are kept, so that a killed run resumes."""
        model, classes, task = run.model, run.model.config.num_labels, run.task
        assert isinstance(task, Classification)
        store, parts = self._store(run), list[Rows]()
        for split, examples in (("train", run.train), ("validation", run.validation)):
            batch = {**task.label_batch(examples.fields), "rows": torch.arange(len(examples))}
            features = self._embeddings(run, examples, split, store)
            parts.append(Rows(features, batch, run.teachers[split](batch, classes)))
        train, validation = parts
        head, history = fit_logistic(
            train, validation, run.objective, classes, self._c, run.task.measure, run.folder / "fits"
        )
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(head.weight))
            model.classifier.bias.copy_(torch.from_numpy(head.bias))
        model.eval()
        return Fit(head.metrics, 1.0, history)

    def _store(self, run: Run) -> SignalStore:
        """Returns the embeddings in the session's cache folder, of the encoder's weights: a subclass may train them."""
        session, config = current_session(), run.model.config
        cache = (session.cache_folder if session is not None else None) or run.folder
        weights = {name: value.cpu() for name, value in run.model.encoder.state_dict().items()}
        of = [self.start or self._origin.identity, self.further, weights, config.pooling, self.normalize]
        # The weights of an adapter do not say how it counts them.
        of += [config.to_dict() for config in (self.peft_config, self.quantization_config) if config is not None]
        return SignalStore(cache / "embeddings" / fingerprint(of, "the encoder"), "the embeddings")

    def _embeddings(self, run: Run, examples: Examples, split: str, store: SignalStore) -> np.ndarray[Any, Any]:
        """Returns the embeddings of a split's rows, after computing those that are not stored."""
        model, task, usage = run.model.to(run.device).eval(), run.task, current_usage()
        usage.total_rows = len(run.train) + len(run.validation)
        usage.note = f"embedding the {split} rows"

        def embedded(rows: Sequence[int]) -> Iterator[Part]:
            for portion in (rows[start : start + _PORTION] for start in range(0, len(rows), _PORTION)):
                found: list[tuple[int, dict[str, np.ndarray[Any, Any]]]] = []
                for places in sorted_batches(examples.lengths[list(portion)], run.training.batch_size):
                    part = [portion[place] for place in places]
                    batch = task.collate([examples[row] for row in part])
                    inputs = {name: batch[name].to(run.device) for name in ("input_ids", "attention_mask")}
                    with torch.no_grad():
                        values = model.embed(**inputs).float().cpu().numpy()
                    usage.add(rows=len(part))
                    found += zip(part, ({"embedding": value} for value in values), strict=True)
                yield found

        before = usage.rows
        keys = [row_key(examples[row], task.read_by_model) for row in range(len(examples))]
        found = store.collect(keys, embedded).batch(range(len(examples)))["embedding"]
        usage.add(rows=before + len(examples) - usage.rows)
        return found.reshape(len(examples), model.classifier.in_features)


def stated_pooling(source: str) -> str:
    """Returns the pooling that the files of a sentence-transformers model state; "mean" if there are none."""
    try:
        file = cached_file(source, "1_Pooling/config.json")
        stated = json.loads(Path(str(file)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    modes = {"first": ("cls", "pooling_mode_cls_token"), "last": ("lasttoken", "pooling_mode_lasttoken")}
    for pooling, (mode, flag) in modes.items():
        if stated.get("pooling_mode") == mode or stated.get(flag) is True:
            return pooling
    return "mean"
