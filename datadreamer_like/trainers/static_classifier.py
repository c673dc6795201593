"""A classifier on static embeddings distilled from an encoder, trained end to end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Self, Unpack

import torch
import transformers
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from datadreamer_like.distillation import Objective
from datadreamer_like.distillation.words import token_ids
from datadreamer_like.errors import DefinitionError, check_number
from datadreamer_like.evaluation.columns import Columns, read_texts
from datadreamer_like.evaluation.labels import LabelSet
from datadreamer_like.evaluation.tasks.classification import Classification
from datadreamer_like.evaluation.tasks.task import Task
from datadreamer_like.formats.classifiers.embedding import pool
from datadreamer_like.formats.classifiers.static import StaticConfig, StaticForSequenceClassification, token_vectors
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.trained.hf_source import loading
from datadreamer_like.pruning import Vocabulary

from .classifier import TrainHFClassifier, head_options
from .training.devices import training_device
from .training.logistic import check_needs_logits_only
from .training.options import TRAIN_DEFAULTS, HFOptions, Training
from .training.teaching import check_objective

_AT_ONCE = 256
_DEFAULTS = {"epochs": 20.0, "batch_size": 32, "learning_rate": 3e-3}
_SPECIAL = ("pad_token", "unk_token", "cls_token", "sep_token", "bos_token", "eos_token")


class TrainStaticClassifier(TrainHFClassifier):
    """Trains a classifier on static embeddings: hundreds of times the speed of its encoder, a few megabytes.

    As in model2vec (Tulkens and van Dongen 2024), each token goes through the encoder once; its vector is reduced by
    PCA and weighted by its frequency. The vocabulary is that of the training texts. The mean of a text's vectors goes
    to a light head, and both are trained on the objective (labels, soft or hard targets of a teacher).

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` whose encoder gives the first vectors; the
            teacher is a good choice.
        dimensions: Size of the vectors.
        vocabulary: Maximum number of tokens, the most frequent ones in the training texts.
        hidden_units: Size of a hidden layer before the logits; 0 for none.
        dropout: Share of the head's inputs that are dropped while training.
        **options: See `HFOptions`; further ones go to `from_pretrained`. There is no adapter.

    Example:
        >>> trainer = TrainStaticClassifier("Static", model_name="sentence-transformers/all-MiniLM-L6-v2")
        >>> trainer.train(**columns)  # doctest: +SKIP
        >>> trainer.predict(["A parser for command-line options."]).labels  # doctest: +SKIP
        ['cli']
    """

    several_devices = False

    def __init__(
        self,
        name: str,
        model_name: Any,
        *,
        dimensions: int = 256,
        vocabulary: int = 6_000,
        hidden_units: int = 0,
        dropout: float = 0.2,
        **options: Unpack[HFOptions],
    ) -> None:
        super().__init__(name, model_name, **options)
        who = type(self).__name__
        if self.peft_config is not None:
            raise DefinitionError(f"{who}: there is no adapter to train. Leave peft_config and qlora out.")
        for argument, value, least in (
            ("dimensions", dimensions, 1),
            ("vocabulary", vocabulary, 1),
            ("hidden_units", hidden_units, 0),
        ):
            check_number(value, f"{who}: {argument}", least, whole=True)
        check_number(dropout, f"{who}: dropout", 0)
        if dropout >= 1:
            raise DefinitionError(f"{who}: dropout is {dropout}; it must be below 1.")
        self.dimensions, self.vocabulary = int(dimensions), int(vocabulary)
        self.hidden_units, self.dropout = int(hidden_units), float(dropout)

    @by_position({**TRAIN_DEFAULTS, **_DEFAULTS, "seed": 42})
    def train(
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        objective: Objective | None = None,
        **options: Any,
    ) -> Self:
        """Trains the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts, whose tokens become the vocabulary.
            train_output: Their labels; see `TrainHFClassifier.train`.
            validation_input: Validation texts, used to choose the best epoch.
            validation_output: Their labels.
            objective: The objective to minimise, on logits; None for the labels alone.
            **options: See `TrainHFClassifier.train`. The defaults suit a model this small: 20 epochs in batches of 32,
                at a learning rate of 0.003.

        Raises:
            MethodMisfit: The objective needs hidden states, or the tokenizer cannot be trimmed to `vocabulary`.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        check_needs_logits_only(check_objective(objective), f'"{self.name}".train')
        given: Any = {**_DEFAULTS, **options}
        return super().train(
            train_input, train_output, validation_input, validation_output, objective=objective, **given
        )

    def run_training(
        self,
        columns: Mapping[str, object],
        options: Mapping[str, Any],
        objective: Objective | None = None,
        own: Mapping[str, object] = MappingProxyType({}),
        optional: Collection[str] = (),
    ) -> Self:
        """Finds or trains the model; see `HFTrainer.run_training`."""
        sizes = {name: getattr(self, name) for name in ("dimensions", "vocabulary", "hidden_units", "dropout")}
        return super().run_training(columns, options, objective, {**own, **sizes}, optional)

    def make_task(
        self, config: PretrainedConfig, tokenizer: Any, columns: Columns, training: Training, objective: Objective
    ) -> Classification:
        """Returns a classification task with the trimmed tokenizer, and the tokens' vectors."""
        task = super().make_task(config, tokenizer, columns, training, objective)
        current_usage().note = "distilling the encoder's tokens"
        with loading(self._origin, weights=True):
            encoder = transformers.AutoModel.from_pretrained(self.source, **self.load_options())
        texts = [*read_texts(columns["train"]["train_input"], "train_input")]
        trimmed, trim = tokenizer, Vocabulary(size=self.vocabulary)
        # A small vocabulary of a kind that cannot be trimmed is kept whole.
        if trim.fits_tokenizer(encoder, tokenizer) is None or len(tokenizer) > self.vocabulary:
            encoder, trimmed = trim.apply(encoder, texts, tokenizer=tokenizer)
        vectors = encoded_tokens(encoder.to(training_device(self.device)), trimmed)
        plain = without_special_tokens(trimmed)
        counts = Counter(token for ids in token_ids(plain, texts) for token in ids)
        vectors = token_vectors(vectors, self.dimensions, [counts[token] for token in range(len(vectors))])
        return _StaticTask(
            plain, vectors, task.labels, task.max_length, task.truncate, task.optional, soft_classes=task.soft_classes,
            class_weights=task.class_weights, label_smoothing=task.label_smoothing,
        )  # fmt: skip

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the model with the distilled vectors and a new head."""
        assert isinstance(task, _StaticTask)
        sizes = {"vocab_size": len(task.vectors), "dimensions": self.dimensions, "hidden_units": self.hidden_units}
        model = StaticForSequenceClassification(
            StaticConfig(**sizes, dropout=self.dropout, **head_options(task.labels))
        )
        with torch.no_grad():
            model.embedding.weight.copy_(task.vectors)
        return model


class _StaticTask(Classification):
    """Classification with the first vectors of the tokens."""

    def __init__(
        self,
        tokenizer: Any,
        vectors: Tensor,
        labels: LabelSet,
        max_length: int,
        truncate: bool,
        optional: bool,
        **of_labels: Any,
    ) -> None:
        super().__init__(tokenizer, labels, max_length, truncate, optional, **of_labels)
        self.vectors = vectors


@torch.no_grad()
def encoded_tokens(encoder: Any, tokenizer: Any) -> Tensor:
    """Returns the encoder's mean output vector for each token of its tokenizer [tokens, hidden], fp32 on the CPU.

    Each token is read on its own, between the special tokens that the tokenizer puts around a text.
    """
    whole, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = whole[:start], whole[start + len(bare) :]
    encoder.eval()
    found = []
    for part in torch.arange(encoder.get_input_embeddings().num_embeddings).split(_AT_ONCE):  # type: ignore[no-untyped-call]
        columns = [torch.full_like(part, token) for token in before], [torch.full_like(part, token) for token in after]
        ids = torch.stack([*columns[0], part, *columns[1]], 1).to(encoder.device)
        mask = torch.ones_like(ids)
        found.append(pool(encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask, "mean").float().cpu())
    return torch.cat(found)


def without_special_tokens(tokenizer: Any) -> PreTrainedTokenizerFast:
    """Returns a tokenizer of the same tokens that puts no special tokens around a text."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None, "truncation": None}
    special = {name: token for name in _SPECIAL if (token := getattr(tokenizer, name, None)) is not None}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer.from_str(json.dumps(rules | {"padding": None})),
        model_max_length=tokenizer.model_max_length,
        **special,
    )
