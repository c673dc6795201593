"""Fine-tuning a language model to answer prompts."""

from __future__ import annotations

from typing import Any, Self, Unpack

import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from datadreamer_like.distillation import Objective, Supervised
from datadreamer_like.errors import MethodMisfit
from datadreamer_like.evaluation.columns import Columns
from datadreamer_like.evaluation.tasks.causal_lm import CausalLM
from datadreamer_like.evaluation.tasks.seq2seq_lm import Seq2SeqLM
from datadreamer_like.evaluation.tasks.task import Task
from datadreamer_like.graph.output import Column
from datadreamer_like.models.llms.chat_template import AUTO, AutoText, checked, checked_template
from datadreamer_like.models.trained.model_facts import is_bidirectional, model_max_length
from datadreamer_like.models.trained.prompt_template import set_prompt_template

from .training.hf import HFTrainer
from .training.loading import HFOptions
from .training.options import Training, TrainingOptions


class TrainHFFineTune(HFTrainer):
    """Fine-tunes a language model, causal or encoder-decoder, to answer each prompt as the training rows do.

    The loss is on the answers alone: prompts and padding carry none.

    Args:
        name: The trainer's name.
        model_name: Id on the Hub, folder, GGUF file, trainer, stage or `TrainedModel` to start from.
        chat_prompt_template: The prompt template: AUTO for the tokenizer's own chat template where it has one, Jinja
            code over `messages`, a text with the placeholder `{{prompt}}`, or None for the bare prompt. It becomes the
            chat template of the saved tokenizer, so that the model is always prompted in the same way.
        system_prompt: A system prompt, which becomes the template's default; AUTO leaves it to the template.
        **options: See `HFOptions`; further ones go to `from_pretrained`.

    Raises:
        DefinitionError: An option is unknown, or the template has no place for the prompt.
        ArgumentTypeError: A value is of the wrong type.

    Example:
        >>> trainer = TrainHFFineTune("Summaries", model_name="google/t5-efficient-tiny")
        >>> trainer.train(  # doctest: +SKIP
        ...     train_input=train.output["article"], train_output=train.output["summary"],
        ...     validation_input=validation.output["article"], validation_output=validation.output["summary"],
        ... )
        >>> HFTransformers(trainer.model_path).run(["..."])  # doctest: +SKIP
    """

    def __init__(
        self,
        name: str,
        model_name: Any,
        chat_prompt_template: AutoText = AUTO,
        system_prompt: AutoText = AUTO,
        **options: Unpack[HFOptions],
    ) -> None:
        super().__init__(name, model_name, options)
        self.chat_prompt_template = checked_template(chat_prompt_template)
        self.system_prompt = checked("system_prompt", system_prompt)

    @classmethod
    def example(cls) -> dict[str, Any]:
        """Returns the smallest arguments of `train`, for tests and documentation; columns are lists of values."""
        prompts, answers = ["the cat", "the dog"], ["sat on a mat", "ran to a tree"]
        columns = {"train_input": prompts, "train_output": answers}
        columns |= {"validation_input": prompts, "validation_output": answers}
        return {**columns, "epochs": 2, "batch_size": 2, "learning_rate": 1e-3}

    def train(
        self,
        train_input: Column,
        train_output: Column,
        validation_input: Column,
        validation_output: Column,
        *,
        objective: Objective | None = None,
        **options: Unpack[TrainingOptions],
    ) -> Self:
        """Trains the model, or finds it trained.

        Args:
            train_input: Prompts to learn from.
            train_output: Their answers.
            validation_input: Prompts by which the best epoch is chosen.
            validation_output: Their answers.
            objective: What is minimised; None for the supervised loss. A teacher reads each batch as it comes, and must
                have the student's vocabulary.
            **options: See `TrainingOptions`.

        Returns:
            The trainer, which now is a model.

        Raises:
            SessionError: The trainer was made outside a session.
            DefinitionError: Columns do not go together, an option is unknown, or the trainer is trained on other
                things already.
            ArgumentTypeError: An argument or a value in a column is of the wrong type.
            EmptyDataset: There are no rows.
            DataError: A value is missing, or nothing of any answer fits.
            NotTrained: The teacher, or the model to start from, is not trained yet.
            MethodMisfit: The model, or the teacher, does not fit.
        """
        self.need_session()
        training = Training.from_options(options, f'"{self.name}".train')
        columns = Columns.checked(
            train_input=train_input,
            train_output=train_output,
            validation_input=validation_input,
            validation_output=validation_output,
        )
        return self.run_training(
            columns,
            training,
            Supervised() if objective is None else objective,
            chat_prompt_template=self.chat_prompt_template,
            system_prompt=self.system_prompt,
        )

    def make_task(
        self,
        config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        columns: Columns,
        training: Training,
        objective: Objective,
    ) -> Task:
        """Returns a language modelling task, with the prompt template in the tokenizer."""
        if is_bidirectional(config) and not self.further.get("is_decoder"):
            raise MethodMisfit(
                f'"{self.name}": {self.source} is an encoder ({config.model_type}), which sees the target tokens that '
                "it is to predict. Start from a causal or encoder-decoder model, or train it with TrainHFClassifier."
            )
        set_prompt_template(
            tokenizer, self.chat_prompt_template, self.system_prompt, encoder_decoder=bool(config.is_encoder_decoder)
        )
        most = model_max_length(config, tokenizer)
        kind = Seq2SeqLM if config.is_encoder_decoder else CausalLM
        return kind(tokenizer, min(training.max_length or most, most), training.truncate)

    def load_model(self, config: PretrainedConfig, task: Task, options: dict[str, Any]) -> PreTrainedModel:
        """Returns the language model."""
        model: PreTrainedModel = _auto_class(config).from_pretrained(self.source, **options)
        return model

    def peft_task(self, config: PretrainedConfig) -> str:
        """Returns peft's name of the task."""
        return "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"

    @property
    def auto_cls(self) -> Any:
        """The transformers class that loads the model."""
        return _auto_class(transformers.AutoConfig.from_pretrained(self.source, **self.hub_options()))


def _auto_class(config: PretrainedConfig) -> Any:
    return transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
