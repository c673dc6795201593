"""Fine-tuning a language model to answer prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, Unpack

import torch
import transformers
from transformers import PretrainedConfig
from transformers import PreTrainedTokenizerBase as Tokenizer

from datadreamer_like.distillation import Objective, Outputs, StoredTeacher
from datadreamer_like.errors import DefinitionError, MethodMisfit, check_flag
from datadreamer_like.evaluation.columns import SUPERVISED, Columns, named_columns
from datadreamer_like.evaluation.tasks.chats import Chats, Turns
from datadreamer_like.evaluation.tasks.generation import CausalLM, Generation, Seq2SeqLM
from datadreamer_like.evaluation.tasks.packing import PackedExamples, check_packing
from datadreamer_like.evaluation.tasks.task import Batch, row_limit
from datadreamer_like.graph.output import Column
from datadreamer_like.models.llms.chat_template import AUTO, AutoText, checked, checked_template
from datadreamer_like.models.trained.model_facts import is_bidirectional, task_of
from datadreamer_like.models.trained.prompt_template import set_prompt_template

from .training.hf import HFTrainer
from .training.loop import Fit, Run
from .training.options import HFOptions, Training, TrainingOptions, takes_trainer_options, takes_training_options
from .training.teaching import TeacherAnswers, check_objective


class TrainHFFineTune(HFTrainer):
    """Fine-tunes a language model, causal or encoder-decoder, to answer each prompt as the training rows do.

    The loss is on the answers alone: prompts and padding carry none.

    Args:
        model_name: Id on the Hub, folder, GGUF file, trainer, stage or `TrainedModel` to start from.
        chat_prompt_template: The prompt template: AUTO for the tokenizer's own chat template where it has one, Jinja
            code over `messages`, a text with the placeholder `{{prompt}}`, or None for the bare prompt. It becomes the
            chat template of the saved tokenizer, so that the model is always prompted in the same way.
        system_prompt: A system prompt, which becomes the template's default; AUTO leaves it to the template.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Raises:
        DefinitionError, ArgumentTypeError: An option is unknown or of the wrong type, or the template lacks the prompt.

    Example:
        >>> trainer = TrainHFFineTune("Summaries", model_name="google/t5-efficient-tiny")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["article"], train_output=train.output["summary"],
        ...     validation_input=validation.output["article"], validation_output=validation.output["summary"],
        ... )
        >>> HFTransformers(trainer.model_path).run(["..."])  # doctest: +SKIP
    """

    _packing = False
    _turns: Turns = "all"

    @takes_trainer_options
    def __init__(
        self,
        name: str,
        model_name: Any,
        chat_prompt_template: AutoText = AUTO,
        system_prompt: AutoText = AUTO,
        **options: Unpack[HFOptions],
    ) -> None:
        super().__init__(name, model_name, **options)
        self.chat_prompt_template = checked_template(chat_prompt_template)
        self.system_prompt = checked("system_prompt", system_prompt)

    several_devices = True

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`; columns are lists of values."""
        prompts, answers = ["the cat", "the dog"], ["sat on a mat", "ran to a tree"]
        columns = named_columns(SUPERVISED, *[(prompts, answers)] * 2)
        return {**columns, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    @takes_training_options
    def train(
        self,
        train_input: Column,
        train_output: Column | None,
        validation_input: Column,
        validation_output: Column | None,
        *,
        objective: Objective | None = None,
        packing: bool = False,
        assistant_turns: Turns = "all",
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or loads the cached result, and returns the trainer.

        The columns are prompts and their answers; the validation rows choose the best epoch. An objective of None is
        the supervised loss; a teacher runs on each batch, and must have the student's vocabulary. Answers may be None
        if the teacher writes them: `SequenceLevel(teacher)`. For the options see `TrainingOptions`.

        Without `train_output` and `validation_output`, the rows are conversations: lists of messages with "role" and
        "content" that end with a turn of the assistant. All its turns carry loss, or with `assistant_turns="last"` the
        last one; where the chat template marks answers with `{% generation %}`, those tokens do.

        With `packing`, rows of a causal model are packed into sequences of up to `max_length` tokens, `batch_size` of
        which are a batch, so that short rows need no padding. A row attends to itself alone; a model or an objective
        with which it would not is refused.

        Raises:
            DataError: A value is missing, or no part of any answer fits.
            DataDreamerError: See `TrainHFClassifier.train`.
        """
        columns = named_columns(SUPERVISED, (train_input, train_output), (validation_input, validation_output))
        template = {"chat_prompt_template": self.chat_prompt_template, "system_prompt": self.system_prompt}
        objective = check_objective(objective)
        written = objective.beams is not None and not objective.beams.needs_reference
        outputs = {name: column for name, column in columns.items() if name.endswith("_output")}
        chats = not written and not any(column is not None for column in outputs.values())
        if objective.beams is not None and chats:
            raise MethodMisfit(
                f'"{self.name}".train: {type(objective).__name__} writes answers to prompts, not in conversations. '
                "Pass prompts, and their answers as train_output and validation_output."
            )
        own = template | self._packing_options(packing, objective, options)
        if chats:
            own["assistant_turns"] = self._turns = assistant_turns
        optional = outputs if written or chats else ()
        return self.run_training(columns, options, objective, own, optional)

    def _packing_options(self, packing: bool, objective: Objective, options: Mapping[str, Any]) -> dict[str, Any]:
        check_flag(packing, f'"{self.name}".train: packing')
        self._packing = packing
        if not packing:
            return {}
        if options.get("max_length") is None:
            raise DefinitionError(
                f'"{self.name}".train: packing=True packs rows into sequences of max_length tokens. Pass max_length, '
                "such as 2048."
            )
        own_rows = objective.own_tokens or objective.completions is not None or objective.beams is not None
        if own_rows or not objective.wants | objective.teacher_wants <= {"logits", "hidden_states"}:
            raise MethodMisfit(
                f'"{self.name}".train: {type(objective).__name__} needs each row alone, so rows cannot be packed. '
                "Leave packing out."
            )
        return {"packing": True}

    def fit(self, run: Run) -> Fit:
        """Trains the model, on packed rows if that was asked for; see `HFTrainer.fit`."""
        if not self._packing:
            return super().fit(run)
        if run.model.config.is_encoder_decoder:
            raise MethodMisfit(
                f'"{self.name}": {self.source} is an encoder-decoder, for which rows cannot be packed. Leave packing '
                "out."
            )
        objective, teacher = run.objective, run.objective.teacher
        two_answers = objective.beams is not None and objective.beams.keep_reference
        if objective.own_tokens or objective.completions or two_answers:
            raise MethodMisfit(
                f'"{self.name}": what {type(objective).__name__} needs of its teacher or student is that of single '
                "rows. Leave packing out."
            )
        vocabulary = len(run.task.tokenizer)
        check_packing(run.model, vocabulary, run.device, "The model")
        if teacher is not None and not isinstance(teacher, StoredTeacher):  # which is asked for single rows
            check_packing(getattr(teacher, "model", None), vocabulary, run.device, "The teacher")
        packed = PackedExamples(run.train, run.task.max_length, run.training.seed)
        teachers = dict(run.teachers)
        if isinstance(teacher, StoredTeacher):
            teachers["train"] = partial(_of_rows, packed.packs, teachers["train"])
        return super().fit(replace(run, train=packed, teachers=teachers))

    def make_task(
        self, config: PretrainedConfig, tokenizer: Tokenizer, columns: Columns, training: Training, objective: Objective
    ) -> Generation:
        """Returns a language modelling task, with the prompt template in the tokenizer."""
        kind = self.task_class(config)
        set_prompt_template(
            tokenizer, self.chat_prompt_template, self.system_prompt, encoder_decoder=bool(config.is_encoder_decoder)
        )
        limit = row_limit(config, tokenizer, training.max_length)
        writes = objective.beams is not None
        if [*columns["train"]] != ["train_input"] or writes:
            return kind(tokenizer, limit, training.truncate)
        if config.is_encoder_decoder:
            raise MethodMisfit(
                f'"{self.name}": {self.source} is an encoder-decoder, which learns no conversations. Pass prompts, and '
                "their answers as train_output and validation_output."
            )
        return Chats(tokenizer, limit, training.truncate, self._turns)

    def task_class(self, config: PretrainedConfig) -> type[Generation]:
        """Returns the class of the task, by the model's architecture.

        Raises:
            MethodMisfit: The model cannot be trained for it.
        """
        if is_bidirectional(config) and not self.further.get("is_decoder"):
            raise MethodMisfit(
                f'"{self.name}": {self.source} is an encoder ({config.model_type}), which sees the target tokens that '
                "it is to predict. Start from a causal or encoder-decoder model, or train it with TrainHFClassifier."
            )
        return Seq2SeqLM if config.is_encoder_decoder else CausalLM

    def check_causal(self, config: PretrainedConfig, what: str) -> None:
        """Raises `MethodMisfit` if a model, called `what`, is not a causal language model."""
        if config.is_encoder_decoder or is_bidirectional(config) or task_of(config) == "text-classification":
            raise MethodMisfit(
                f'"{self.name}": {what} is not a causal language model ({config.model_type}), and '
                f"{type(self).__name__} trains such models only. Choose a causal one."
            )

    def auto_class(self, config: PretrainedConfig) -> Any:
        """Returns the transformers class that loads the model."""
        return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM

    def peft_task(self, config: PretrainedConfig) -> str:
        """Returns the task type of an adapter, by peft's name."""
        return "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"


def _of_rows(packs: Sequence[Sequence[int]], answers: TeacherAnswers, batch: Batch, logits: int) -> Outputs | None:
    """A stored teacher's outputs for packed sequences: those of their rows follow each other."""
    rows = [row for pack in batch["rows"].tolist() for row in packs[pack]]
    return answers({**batch, "rows": torch.tensor(rows)}, logits)
