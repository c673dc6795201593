"""Fine-tuning a pretrained model to find spans in texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack, cast

import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, check_flag
from datadreamer_like.evaluation.columns import SUPERVISED, Columns, named_columns
from datadreamer_like.evaluation.soft_labels import ClassWeights
from datadreamer_like.evaluation.tasks.task import Task, row_limit
from datadreamer_like.evaluation.tasks.token_classification import TokenClassification, find_span_labels
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import task_of

from .classifier import check_weights, optional_labels
from .training.hf import HFTrainer
from .training.loop import Fit, Run
from .training.options import Training, TrainingOptions, takes_training_options
from .training.teaching import check_objective


class TrainHFTokenClassifier(HFTrainer):
    """Fine-tunes a pretrained model to find labelled spans in texts, such as names or product numbers.

    Spans become BIO tags ("B-place", "I-place", "O"), whose names are saved in the model's config: the result also
    loads in transformers' `pipeline("token-classification")`. A token has one tag, so spans may not overlap.

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from, with a fast tokenizer.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Example:
        >>> trainer = TrainHFTokenClassifier("Names", model_name="microsoft/xtremedistil-l6-h256-uncased")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["text"], train_output=train.output["spans"],
        ...     validation_input=validation.output["text"], validation_output=validation.output["spans"],
        ...     learning_rate=5e-5,
        ... )
        >>> trainer.spans(["A flight to Oslo."])  # doctest: +SKIP
        [[{'start': 12, 'end': 16, 'label': 'place', 'score': 0.98}]]
    """

    several_devices = True

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        texts = ["the cat sat", "a dog ran"]
        spans = [[{"start": 4, "end": 7, "label": "animal"}], [{"start": 2, "end": 5, "label": "animal"}]]
        return {**named_columns(SUPERVISED, *[(texts, spans)] * 2), "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    @takes_training_options
    def train(
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        objective: Objective | None = None,
        every_token: bool = False,
        snap: bool = False,
        class_weights: ClassWeights = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts; or lists of their tokens, which are joined by spaces.
            train_output: For texts, lists of spans `{"start": 0, "end": 3, "label": "place"}`, by characters; for
                tokens, lists of as many BIO tags. With a teacher, rows may have None, or the whole column may be None
                if the objective needs no labels.
            validation_input: Validation texts, used to choose the best epoch. The metrics are precision, recall and F1
                of whole spans, as in CoNLL-2003, in the part of a text that is not cut.
            validation_output: Their spans or tags, in the same form.
            objective: The objective to minimise, token by token; None for the supervised loss. A teacher must have the
                student's vocabulary and labels.
            every_token: Each token has a tag and a loss; otherwise the first of each word, whose tag is the word's.
            snap: Widen spans that cut a token (with `every_token`) or a word to the whole one, instead of refusing
                them.
            class_weights: Weights of the terms of the spans' loss by tag, such as "O" or "B-place", or by label for
                both its tags, 1 for one left out; "balanced" for `tagged tokens / (number of tags · tokens with the
                tag)`. The loss is the mean over tokens, not divided by the sum of the weights.
            **options: See `TrainingOptions`.

        Raises:
            DataError: A row has no spans or tags of this form, a span is outside its text, or spans overlap or cut a
                word.
            LabelError: There is no span, a label of the validation rows is not among those of the training rows, or a
                class weight is that of an unknown tag.
            MethodMisfit: The tokenizer gives no positions; the teacher is no token classifier, or has other tokens.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        objective = check_objective(objective)
        columns = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        for name, value in {"every_token": every_token, "snap": snap}.items():
            check_flag(value, f'"{self.name}".train: {name}')
        check_weights(self.name, class_weights, objective)
        self._every, self._snap, self._weights = every_token, snap, class_weights
        optional = optional_labels(self.name, columns, objective)
        own: dict[str, Any] = {"every_token": every_token, "snap": snap}
        own |= {} if class_weights is None else {"class_weights": class_weights}
        return self.run_training(columns, options, objective, own, optional)

    def fit(self, run: Run) -> Fit:
        """Trains the model, with balanced tags if that was asked for; see `HFTrainer.fit`."""
        if self._weights == "balanced":
            cast("TokenClassification", run.task).balance(run.train)
        return super().fit(run)

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> TokenClassification:
        """Returns a token classification task with the labels of the training rows or the teacher."""
        teacher: Any = objective.teacher
        tags = find_span_labels(columns["train"], optional=teacher is not None)
        theirs = () if teacher is None else _tags_of(getattr(teacher.model, "config", None))
        if not tags and (objective.needs_labels or not theirs):
            raise DefinitionError(
                f'"{self.name}": none of the training rows has spans, and {type(objective).__name__} needs some. Pass '
                "train_output, or learn from the teacher alone: SoftTargets(teacher, alpha=1.0)."
            )
        if not tags or ("logits" in objective.teacher_wants and {*tags} < {*theirs}):
            tags = theirs
        own = _tags_of(config)
        task = TokenClassification(
            tokenizer,
            own if {*tags} <= {*own} else tags,
            row_limit(config, tokenizer, training.max_length),
            training.truncate,
            every=self._every,
            snap=self._snap,
            optional=teacher is not None,
        )
        if isinstance(self._weights, Mapping):
            task.weigh(self._weights)
        return task

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the model with a head for the tags."""
        assert isinstance(task, TokenClassification)
        head = {
            "num_labels": len(task.tags),
            "id2label": dict(enumerate(task.tags)),
            "label2id": task.label2id,
            "ignore_mismatched_sizes": True,
        }
        model = super().load_model(config, task, {**head, **options})
        model.config.tag_every_token = task.every
        return model

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForTokenClassification

    def peft_task(self, config: PretrainedConfig) -> str:
        """Returns the task type of an adapter, by peft's name."""
        return "TOKEN_CLS"

    def spans(
        self, texts: Sequence[str], *, batch_size: int = 32, max_length: int | None = None
    ) -> list[list[dict[str, Any]]]:
        """Finds the spans of texts; see `TrainedModel.spans`."""
        return self.trained.spans(texts, batch_size=batch_size, max_length=max_length)


def _tags_of(config: Any) -> tuple[str, ...]:
    """Returns the tags of a token classifier, in its order; none for other models."""
    if config is None or task_of(config) != "token-classification":
        return ()
    return tuple(str(name) for _, name in sorted(config.id2label.items()))
