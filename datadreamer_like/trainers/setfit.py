"""Classifiers from few labels: an encoder trained on pairs of texts, then a logistic head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack, get_args

import numpy as np
from transformers import PretrainedConfig

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, check_number, did_you_mean
from datadreamer_like.evaluation.columns import SUPERVISED, named_columns
from datadreamer_like.evaluation.soft_labels import ClassWeights
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.llms.chat_template import AUTO, AutoText
from datadreamer_like.models.trained.trained_model import TrainedModel

from .classifier import label_options
from .embedding_classifier import TrainEmbeddingClassifier
from .training.loop import Fit, Run, fit
from .training.options import HFOptions
from .training.pairs import PairTask, SameClass, Sampling, pair_examples
from .training.teaching import check_objective

_VALIDATION_PARTNERS = 4
_NODE = {"force": False, "verbose": None, "log_level": None}
_BY_POSITION = {"multi_target_strategy": AUTO, "device": None, "dtype": None, "peft_config": None, **_NODE}
_OPTIONS = {
    "truncate": True, "sampling_strategy": "oversampling", "end_to_end": False, "epochs": 3.0, "batch_size": 8,
    "body_learning_rate": 1e-3, "head_learning_rate": 1e-3, "weight_decay": 0.01, "warmup_steps": 0, "seed": 42,
}  # fmt: skip
_CITATION = """@misc{tunstall2022efficient,
  title={Efficient Few-Shot Learning Without Prompts},
  author={Tunstall, Lewis and Reimers, Nils and Jo, Unso Eun Seo and Bates, Luke and Korat, Daniel and Wasserblat, Moshe
    and Pereg, Oren},
  year={2022},
  eprint={2209.11055},
  archivePrefix={arXiv}
}"""


class TrainSetFitClassifier(TrainEmbeddingClassifier):
    """Trains a classifier from few labelled texts: first the encoder, on pairs of texts, then a logistic head.

    Tunstall et al. 2022, arXiv:2209.11055. In the first phase the cosine of two texts' embeddings learns to be 1 for
    texts of one class and 0 for others, by the squared error; many pairs can be made of few texts. The second phase is
    that of `TrainEmbeddingClassifier`. The result is a classifier as any other.

    Args:
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from; best an embedder.
        multi_target_strategy: For texts with several labels each is a decision of its own ("one-vs-rest", "AUTO").
        pooling, normalize: See `TrainEmbeddingClassifier`.
        **options: See `HFOptions`; further ones go to `from_pretrained`. An adapter is one on the encoder, which is
            merged into it; it is not passed on alone.

    Example:
        >>> trainer = TrainSetFitClassifier("Few", model_name="sentence-transformers/all-MiniLM-L6-v2")
        >>> how = {"epochs": 1, "batch_size": 16, "body_learning_rate": 2e-5, "num_iterations": 20}
        >>> trainer.train(**columns, **how)  # doctest: +SKIP
        >>> trainer.predict(["A parser for command-line options."]).labels  # doctest: +SKIP
        ['cli']
    """

    papers: ClassVar[Sequence[str]] = (_CITATION,)
    frozen: ClassVar[bool] = False

    @by_position(_BY_POSITION)
    def __init__(
        self, name: str, model_name: Any, *, multi_target_strategy: AutoText = AUTO, **options: Unpack[HFOptions]
    ) -> None:
        if multi_target_strategy not in (AUTO, None, "one-vs-rest", "multi-output"):
            raise DefinitionError(
                f'{type(self).__name__}: multi_target_strategy "{multi_target_strategy}" is not available; each '
                'label is a decision of its own here. Leave it out, or pass "one-vs-rest".'
            )
        super().__init__(name, model_name, **options)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        return {**super().example(), "epochs": 2, "batch_size": 4, "num_iterations": 2}

    @by_position(_OPTIONS)
    def train(
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        sampling_strategy: Sampling = "oversampling",
        num_iterations: int | None = None,
        objective: Objective | None = None,
        classes: Sequence[str] | None = None,
        multi_label: bool = False,
        class_weights: ClassWeights = None,
        C: float | Sequence[float] | None = None,
        end_to_end: bool = False,
        epochs: float | Sequence[float] = 3.0,
        batch_size: int | Sequence[int] = 8,
        body_learning_rate: float | Sequence[float] = 1e-3,
        head_learning_rate: float = 1e-3,
        **options: Any,
    ) -> Self:
        """Trains the classifier, or loads the cached result, and returns the trainer.

        Args:
            train_input: Training texts.
            train_output: Their labels; texts with lists of labels are similar if they share one. Of soft labels (see
                `TrainHFClassifier.train`) the head learns the probabilities, and pairs are of the likeliest classes.
            validation_input: Validation texts, used to choose the best epoch of the encoder, and C.
            validation_output: Their labels.
            sampling_strategy: How pairs of one class and of two are balanced. "oversampling" repeats the fewer ones,
                "undersampling" draws as many of the others, "unique" takes each pair once.
            num_iterations: Instead of all pairs, draw so many of one class and as many of two for each text, as in the
                paper (20); needed for thousands of texts, whose pairs are too many.
            objective: What the head minimises, on logits; None for the labels.
            classes: The classes of soft labels, in the order of lists; None for the keys of mappings, sorted.
            multi_label: Whether each probability of a soft label is that of a separate yes-or-no decision.
            class_weights: Weights of classes in the loss of the head; see `TrainHFClassifier.train`.
            C: Inverse strength of the penalty on the head's weights; see `TrainEmbeddingClassifier.train`.
            end_to_end: Not available; to train all weights on the labels, start a `TrainHFClassifier` from the result.
            epochs: Passes over the pairs. Of two numbers, as DataDreamer takes them, the first one is used.
            batch_size: Pairs in a batch, in the same way.
            body_learning_rate: Highest learning rate of the encoder, in the same way; 2e-5 is usual.
            head_learning_rate: Not used: the head is fitted to its optimum.
            **options: See `TrainingOptions`.

        Raises:
            LabelError: No class has two texts, or there is only one class.
            DefinitionError: There are too many pairs, an option is unknown, or asks for what is not available.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        who = f'"{self.name}".train'
        known = get_args(Sampling)
        if sampling_strategy not in known:
            hint = did_you_mean(str(sampling_strategy), known)
            raise DefinitionError(
                f'{who}: there is no sampling_strategy "{sampling_strategy}".{hint} There are: {", ".join(known)}.'
            )
        if end_to_end:
            raise DefinitionError(
                f"{who}: end_to_end is not available. Train without it, then a TrainHFClassifier from the result."
            )
        check_number(num_iterations, f"{who}: num_iterations", 1, whole=True, optional=True)
        columns = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        given: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "learning_rate": body_learning_rate}
        given = {name: value[0] if isinstance(value, Sequence) else value for name, value in given.items()}
        objective = check_objective(objective)
        self._label_options = label_options(self.name, objective, classes, multi_label, class_weights)
        self._strategy, self._partners = sampling_strategy, num_iterations
        own = {**self._label_options, "sampling_strategy": sampling_strategy, "num_iterations": num_iterations}
        return self.run_logistic(columns, {**options, **given}, objective, C, own)

    def fit(self, run: Run) -> Fit:
        """Trains the encoder on pairs, then fits the head; a killed run resumes in either phase."""
        generator = np.random.default_rng(run.training.seed)
        names = [f'"{self.name}", {split}_input' for split in ("train", "validation")]
        train = pair_examples(run.train, self._strategy, self._partners, generator, names[0])
        validation = pair_examples(
            run.validation, self._strategy, self._partners or _VALIDATION_PARTNERS, generator, names[1]
        )
        task = PairTask(run.task.tokenizer, run.task.max_length)
        untaught = dict.fromkeys(("train", "validation"), lambda batch, student_logits: None)
        body = fit(
            Run(
                run.model, task, train, validation, run.training, run.folder / "pairs", run.device, run.autocast,
                SameClass(), untaught, None,
            )
        )  # fmt: skip
        head = super().fit(run)
        history = [{f"pair_{name}": value for name, value in epoch.items()} for epoch in body.history]
        metrics = {**head.metrics, "pair_loss": body.metrics["loss"]}
        return Fit(metrics, body.epochs, [*history, *head.history], body.curves)

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        self.card.facts["Method"] = "SetFit: cosine similarity of pairs, then logistic regression"

    def adapter(self) -> TrainedModel:
        """Refuses to pass on the adapter alone; see `adapter_options`."""
        self.adapter_options(self.trained.config)
        return super().adapter()

    def adapter_options(self, config: PretrainedConfig) -> dict[str, Any]:
        """Raises `DefinitionError`: the base of the adapter is a classifier that no library makes from the encoder."""
        raise DefinitionError(
            f'"{self.name}": its adapter is on the encoder inside a classifier that datadreamer_like makes, so there '
            "is no base model to load it on. Pass on the whole classifier, with the adapter merged: leave adapter_only "
            "out."
        )

    def publish_to_hf_hub(  # type: ignore[override]  # the adapter is not published alone
        self,
        repo_id: str,
        branch: str | None = None,
        private: bool = False,
        token: str | None = None,
        is_synthetic: bool | None = None,
        **kwargs: Any,
    ) -> str:
        """Publishes the classifier; see `TrainedModel.publish_to_hf_hub`."""
        return self.trained.publish_to_hf_hub(repo_id, branch, private, token, is_synthetic=is_synthetic, **kwargs)
