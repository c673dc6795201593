"""Direct preference optimization: trl's loop over our columns."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self, Unpack, cast

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import ArgumentTypeError, DefinitionError, MethodMisfit, did_you_mean, require_extra
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.preferences import Preferences
from datadreamer_like.graph.output import Column
from datadreamer_like.models.trained.model_facts import is_bidirectional, model_max_length
from datadreamer_like.models.trained.model_node import as_trained_model
from datadreamer_like.models.trained.prompt_template import set_prompt_template

from .fine_tune import TrainHFFineTune
from .training.loop import LoopOverExamples, fit
from .training.options import Training, TrainingOptions
from .training.run import Fit, Run

require_extra("trl", "trl", what="TrainHFDPO")

import datasets  # noqa: E402
from trl.trainer.dpo_config import DPOConfig  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_DECIDED_HERE = {"beta", "loss_type", "disable_dropout", "precompute_ref_log_probs", "padding_free"}
_CITATION = """@inproceedings{rafailov2023direct,
  title={Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author={Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano and
    Finn, Chelsea},
  booktitle={Advances in Neural Information Processing Systems 36},
  year={2023}
}"""


class TrainHFDPO(TrainHFFineTune):
    """Trains a causal language model to prefer the chosen answers to the rejected ones, by DPO and its variants.

    Rafailov et al. 2023, arXiv:2305.18290: the loss is `-log σ(β (Δ_chosen - Δ_rejected))`, where Δ is how much more
    likely the model finds an answer than the reference model does, in nats summed over its tokens. The loop and the
    losses are trl's. The prompt template becomes the tokenizer's, as with `TrainHFFineTune`.

    Args:
        name: The trainer's name.
        model_name: Id on the Hub, folder, trainer, stage or `TrainedModel` to start from: best a model that was
            fine-tuned on such answers.
        chat_prompt_template: See `TrainHFFineTune`.
        system_prompt: See `TrainHFFineTune`.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Raises:
        MissingExtra: trl is not installed.
        DefinitionError: An option is unknown, or the template has no place for the prompt.
        ArgumentTypeError: A value is of the wrong type.

    Example:
        >>> trainer = TrainHFDPO("Aligned", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_prompts=train.output["prompt"], train_chosen=train.output["chosen"],
        ...     train_rejected=train.output["rejected"], validation_prompts=validation.output["prompt"],
        ...     validation_chosen=validation.output["chosen"], validation_rejected=validation.output["rejected"],
        ...     learning_rate=5e-6,
        ... )
    """

    _how: Mapping[str, Any] = {}

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`, for tests and documentation; columns are lists of values."""
        columns = [["the cat", "the dog"], ["sat on a mat", "ran to a tree"], ["ran", "sat"]]
        names = ("prompts", "chosen", "rejected")
        pairs = {f"{s}_{n}": c for s in ("train", "validation") for n, c in zip(names, columns, strict=True)}
        return {**pairs, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    def train(  # type: ignore[override]  # preferences have three columns, and no objective
        self,
        train_prompts: Column,
        train_chosen: Column,
        train_rejected: Column,
        validation_prompts: Column,
        validation_chosen: Column,
        validation_rejected: Column,
        *,
        dpo_beta: float = 0.1,
        loss_type: str | Sequence[str] = "sigmoid",
        disable_dropout: bool = True,
        ref_model: object = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or finds it trained.

        Args:
            train_prompts: Prompts to learn from.
            train_chosen: The better answer to each.
            train_rejected: The worse one.
            validation_prompts: Prompts by which the best epoch is chosen.
            validation_chosen: The better answer to each.
            validation_rejected: The worse one.
            dpo_beta: β: the larger, the nearer the model stays to the reference.
            loss_type: A loss of trl's `DPOTrainer`, or several; with `loss_weights=[...]` they are weighed.
            disable_dropout: Train without dropout.
            ref_model: Trainer, stage, `TrainedModel`, folder or Hub id of the reference; None for the model that
                training starts from, which with a `peft_config` needs no second copy in memory.
            **options: See `TrainingOptions`; fields of `trl.DPOConfig` too.

        Returns:
            The trainer, which now is a model.

        Raises:
            SessionError: The trainer was made outside a session.
            DefinitionError: Columns do not go together, an option is unknown, or the trainer is trained on other
                things already.
            ArgumentTypeError: An argument or a value in a column is of the wrong type.
            EmptyDataset: There are no rows.
            DataError: A value is missing, or nothing of any answer fits.
            NotTrained: The reference, or the model to start from, is not trained yet.
            MethodMisfit: The model is not a causal language model.
        """
        self.need_session()
        training = Training.from_options(options, f'"{self.name}".train', DPOConfig, _DECIDED_HERE)
        losses = [loss_type] if isinstance(loss_type, str) else list(loss_type)
        for loss in losses:
            if loss not in LOSS_TYPES:
                gone = " It was removed from trl; bco_pair and apo_zero are near it." if loss == "kto_pair" else ""
                raise DefinitionError(
                    f'"{self.name}".train: loss_type "{loss}" is unknown.{gone}{did_you_mean(loss, LOSS_TYPES)} '
                    f"There are: {', '.join(LOSS_TYPES)}."
                )
        if not isinstance(dpo_beta, int | float) or isinstance(dpo_beta, bool):
            raise ArgumentTypeError(f'"{self.name}".train: dpo_beta must be a number, not {dpo_beta!r}.')
        if dpo_beta <= 0:
            raise DefinitionError(f'"{self.name}".train: dpo_beta is {dpo_beta}; it must be over 0.')
        reference = None if ref_model is None else as_trained_model(ref_model, "ref_model")
        columns = Columns.checked(
            train_prompts=train_prompts,
            train_chosen=train_chosen,
            train_rejected=train_rejected,
            validation_prompts=validation_prompts,
            validation_chosen=validation_chosen,
            validation_rejected=validation_rejected,
        )
        self._how = {
            "dpo_beta": float(dpo_beta),
            "loss_type": losses,
            "disable_dropout": bool(disable_dropout),
            "ref_model": reference,
        }
        return self.run_training(
            columns,
            training,
            chat_prompt_template=self.chat_prompt_template,
            system_prompt=self.system_prompt,
            **self._how,
        )

    def make_task(
        self,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns,
        training: Training,
        objective: Objective,
    ) -> Preferences:
        """Returns a task of preferences, with the prompt template in the tokenizer."""
        if config.is_encoder_decoder or is_bidirectional(config):
            raise MethodMisfit(
                f'"{self.name}": {self.source} is not a causal language model ({config.model_type}), and trl optimizes '
                "preferences of such models only. Start from a causal one."
            )
        set_prompt_template(tokenizer, self.chat_prompt_template, self.system_prompt)
        most = model_max_length(config, tokenizer)
        return Preferences(tokenizer, min(training.max_length or most, most), training.truncate)

    def fit(self, run: Run) -> Fit:
        """Trains `run.model` with trl's loop."""
        given = run.training.further
        # trl's own default costs a fifth of the time, to save memory.
        own = {} if "gradient_checkpointing" in given else {"activation_checkpointing": False}
        with warnings.catch_warnings():
            # trl reads a transformers property by its deprecated name; users cannot fix that.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            fitted = fit(
                run,
                lambda **options: _Loop(reference=self._reference(run), **options),
                DPOConfig,
                beta=self._how["dpo_beta"],
                loss_type=self._how["loss_type"],
                disable_dropout=self._how["disable_dropout"],
                max_length=None,  # the rows are cut already
                **own,
            )
        if "ref" in getattr(run.model, "peft_config", {}):
            run.model.delete_adapter("ref")  # trl's copy of the untrained adapter
        return fitted

    def _reference(self, run: Run) -> PreTrainedModel | None:
        """The reference model; None where trl gets it by switching the adapter off."""
        reference = self._how["ref_model"]
        if reference is None:
            if self.peft_config is not None:
                return None
            model = self.load_model(run.model.config, run.task, self.load_options())
        else:
            model = reference.model
        placed: Any = model
        return cast("PreTrainedModel", placed.to(run.device))

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Writes on the card what the model comes from, the method and how good it is."""
        super().fill_card(metrics, objective)
        losses = ", ".join(self._how["loss_type"])
        self.card.facts["Method"] = f"DPO with trl's loss {losses}, beta {self._how['dpo_beta']:g}"
        reference = self._how["ref_model"]
        if reference is not None and reference.node is None:
            self.card.register("Model Name", reference.path)

    @property
    def citation(self) -> list[str]:
        """The paper of the method, and those of the model that training starts from."""
        return [_CITATION, *(super().citation or [])]


class _Loop(LoopOverExamples, DPOTrainer):
    """trl's loop over rows that are tokenized already."""

    def __init__(self, run: Run, reference: PreTrainedModel | None, **options: Any) -> None:
        # trl reads a dataset's first row before it calls `_prepare_dataset`.
        first = datasets.Dataset.from_dict({"prompt": [""]})
        super().__init__(
            run,
            ref_model=reference,
            train_dataset=first,
            eval_dataset=first,
            data_collator=run.task.collate,
            processing_class=run.task.tokenizer,
            **options,
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return self.run.train if dataset_name == "train" else self.run.validation

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes none: the trainer does."""
