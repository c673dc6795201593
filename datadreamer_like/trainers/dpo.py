"""Direct preference optimization: trl's loop over our columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, Unpack, cast

from transformers import PretrainedConfig, PreTrainedModel, TrainingArguments

from datadreamer_like.distillation import Objective, check_same_vocabulary
from datadreamer_like.errors import DefinitionError, check_number, did_you_mean, require_extra
from datadreamer_like.evaluation.columns import named_columns
from datadreamer_like.evaluation.tasks.generation import Preferences
from datadreamer_like.graph.output import Column
from datadreamer_like.graph.positions import by_position
from datadreamer_like.models.trained.model_node import as_torch_model

from .fine_tune import TrainHFFineTune
from .reward_model import PREFERENCES, TrainHFRewardModel
from .training.loop import Fit, Run, fit
from .training.options import TRAIN_DEFAULTS, TrainingOptions
from .training.trl_loop import TRLLoop

require_extra("trl", "trl", what="TrainHFDPO")

import datasets  # noqa: E402
from trl.trainer.dpo_config import DPOConfig  # noqa: E402
from trl.trainer.dpo_trainer import DPOTrainer  # noqa: E402

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_CITATION = """@inproceedings{rafailov2023direct,
  title={Direct Preference Optimization: Your Language Model is Secretly a Reward Model},
  author={Rafailov, Rafael and Sharma, Archit and Mitchell, Eric and Manning, Christopher D. and Ermon, Stefano and
    Finn, Chelsea},
  booktitle={Advances in Neural Information Processing Systems 36},
  year={2023}
}"""


class TrainHFDPO(TrainHFFineTune):
    """Trains a causal language model to prefer chosen answers to rejected ones, by DPO and its variants.

    Rafailov et al. 2023, arXiv:2305.18290: the loss is `-log σ(β (Δ_chosen - Δ_rejected))`, where Δ is how much more
    likely the model finds an answer than the reference model does, in nats summed over its tokens. The loop and the
    losses are trl's. For the arguments and errors see `TrainHFFineTune`; the best start is a model that was fine-tuned
    on similar answers.

    Raises:
        MissingExtra: trl is not installed.

    Example:
        >>> trainer = TrainHFDPO("Aligned", model_name="HuggingFaceTB/SmolLM2-135M-Instruct")
        >>> trainer.train(**columns, learning_rate=5e-6)  # doctest: +SKIP
    """

    several_devices = False
    result_version = 2
    papers: ClassVar[Sequence[str]] = (_CITATION,)
    arguments: ClassVar[type[TrainingArguments]] = DPOConfig
    decided: ClassVar = {"beta", "loss_type", "disable_dropout", "precompute_ref_log_probs", "padding_free"}
    _how: Mapping[str, Any] = {}

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        return TrainHFRewardModel.example()

    @by_position({**TRAIN_DEFAULTS, "dpo_beta": 0.1, "loss_type": "sigmoid", "disable_dropout": True, "seed": 42})
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
        """Trains the model, or loads the cached result, and returns the trainer.

        Args:
            train_prompts: Training prompts.
            train_chosen: The better answer to each.
            train_rejected: The worse one.
            validation_prompts: Validation prompts, used to choose the best epoch.
            validation_chosen: The better answer to each.
            validation_rejected: The worse one.
            dpo_beta: β: the larger, the closer the model stays to the reference.
            loss_type: A loss of trl's `DPOTrainer`, or several, weighted by the option `loss_weights=[...]`.
            disable_dropout: Train without dropout.
            ref_model: Trainer, stage, `TrainedModel`, folder or Hub id of the reference; None for the model that
                training starts from, which with a `peft_config` needs no second copy in memory.
            **options: See `TrainingOptions`; also fields of `trl.DPOConfig`.

        Raises:
            NotTrained: The reference, or the model to start from, is not trained yet.
            MethodMisfit: The model or the reference is not a causal language model, or their vocabularies differ.
            DataDreamerError: See `TrainHFFineTune.train`.
        """
        losses = [loss_type] if isinstance(loss_type, str) else list(loss_type)
        for loss in losses:
            if loss not in LOSS_TYPES:
                gone = " It was removed from trl; bco_pair and apo_zero are near it." if loss == "kto_pair" else ""
                raise DefinitionError(
                    f'"{self.name}".train: loss_type "{loss}" is unknown.{gone or did_you_mean(loss, LOSS_TYPES)} '
                    f"There are: {', '.join(LOSS_TYPES)}."
                )
        check_number(dpo_beta, f'"{self.name}".train: dpo_beta', over=True)
        train = train_prompts, train_chosen, train_rejected
        columns = named_columns(PREFERENCES, train, (validation_prompts, validation_chosen, validation_rejected))
        self._how = {
            "dpo_beta": float(dpo_beta),
            "loss_type": losses,
            "disable_dropout": bool(disable_dropout),
            "ref_model": None if ref_model is None else as_torch_model(ref_model, f'"{self.name}".train: ref_model'),
        }
        template = {"chat_prompt_template": self.chat_prompt_template, "system_prompt": self.system_prompt}
        return self.run_training(columns, options, own={**template, **self._how})

    def task_class(self, config: PretrainedConfig) -> type[Preferences]:
        """Returns `Preferences`; see `TrainHFFineTune.task_class`."""
        self.check_causal(config, self.source)
        return Preferences

    def fit(self, run: Run) -> Fit:
        """Trains `run.model` with trl's loop."""
        fitted = fit(
            run,
            lambda **options: _Loop(reference=self._reference(run), **options),
            DPOConfig,
            beta=self._how["dpo_beta"],
            loss_type=self._how["loss_type"],
            disable_dropout=self._how["disable_dropout"],
            max_length=None,  # the rows are already cut
            activation_checkpointing=False,  # trl's default saves memory, but costs a fifth of the time
        )
        if "ref" in getattr(run.model, "peft_config", {}):
            run.model.delete_adapter("ref")  # trl's copy of the untrained adapter
        return fitted

    def _reference(self, run: Run) -> PreTrainedModel | None:
        """Returns the reference, if it fits the model; None if trl gets it by switching the adapter off."""
        reference: Any = self._how["ref_model"]
        if reference is None and self.peft_config is not None:
            return None
        if reference is not None:
            self.check_causal(reference.config, f"the reference, {reference.path},")
            check_same_vocabulary(reference, run.task.tokenizer, ("the reference", "the model"))
        model: Any = reference.model if reference else self.load_model(run.model.config, run.task, self.load_options())
        return cast("PreTrainedModel", model.to(run.device))

    def fill_card(self, metrics: Mapping[str, float], objective: Objective | None) -> None:
        """Records the origin of the model, the method and the metrics on the card."""
        super().fill_card(metrics, objective)
        losses = ", ".join(self._how["loss_type"])
        self.card.facts["Method"] = f"DPO with trl's loss {losses}, beta {self._how['dpo_beta']:g}"
        reference = self._how["ref_model"]
        if reference is not None and reference.node is None:
            self.card.register("Model Name", reference.path)


class _Loop(TRLLoop, DPOTrainer):
    """trl's loop over tokenized rows."""

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
