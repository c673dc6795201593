"""The options of training, written down once: names and types for the call, defaults and checks in a frozen object."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

import transformers
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from datadreamer_like.errors import ArgumentTypeError, DefinitionError, did_you_mean


class TrainingOptions(TypedDict, total=False):
    """What `train` takes in addition to its columns; other fields of `transformers.TrainingArguments` are passed on."""

    truncate: bool
    """Cut texts that are longer than the model takes; False refuses them instead."""
    max_length: int | None
    """Longest text in tokens; None for what the model takes."""
    epochs: float
    """Passes over the training rows."""
    batch_size: int
    """Rows in a batch."""
    optim: str
    """Optimizer, in transformers' words."""
    learning_rate: float
    """Highest learning rate. The default, DataDreamer's, suits adapters; whole encoders want about 5e-5."""
    weight_decay: float
    """Weight decay."""
    lr_scheduler_type: str
    """How the learning rate goes down, in transformers' words."""
    warmup_steps: float
    """Batches during which the learning rate rises; a share of all where it is under 1."""
    neftune_noise_alpha: float | None
    """Noise on the embeddings (NEFTune, Jain 2023, arXiv:2310.05914); None for none."""
    early_stopping_patience: int | None
    """End after this many epochs without a better validation result; None trains all epochs."""
    early_stopping_threshold: float
    """By how much a result must be better to count."""
    seed: int
    """Seed of the shuffling, of dropout and of new weights."""


# transformers' names of what has one here, and of what a trainer decides itself.
_OUR_NAMES = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "max_seq_length": "max_length",
}
_OURS = {
    "output_dir", "eval_strategy", "save_strategy", "eval_steps", "save_steps", "load_best_model_at_end", "data_seed",
    "disable_tqdm", "report_to", "push_to_hub", "hub_token", "hub_model_id", "resume_from_checkpoint", "use_cpu",
    "do_train", "do_eval", "do_predict", "save_total_limit", "remove_unused_columns", "train_sampling_strategy",
    "bf16", "fp16", "max_steps", "save_only_model", "label_names", "logging_strategy", "logging_steps",
}  # fmt: skip


@dataclass(frozen=True)
class Training:
    """Checked training options with their defaults; see `TrainingOptions` for what they mean.

    Attributes:
        further: Fields that are passed on to `transformers.TrainingArguments`.
    """

    truncate: bool = True
    max_length: int | None = None
    epochs: float = 3.0
    batch_size: int = 8
    optim: str = "adamw_torch"
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    lr_scheduler_type: str = "linear"
    warmup_steps: float = 0
    neftune_noise_alpha: float | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    seed: int = 42
    further: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Any],
        what: str = "train",
        arguments: type[transformers.TrainingArguments] = transformers.TrainingArguments,
        refused: Collection[str] = (),
    ) -> Self:
        """Takes the options of a call.

        Args:
            options: The options, by name.
            what: The call, for messages.
            arguments: Class of the loop's arguments, whose fields may be options too.
            refused: Fields that the trainer decides itself, besides those that every trainer does.

        Raises:
            DefinitionError: A name is unknown, or a value makes no sense.
            ArgumentTypeError: A value is of the wrong type.
        """
        own = {f.name: f for f in dataclasses.fields(cls) if f.name != "further"}
        known = {f.name for f in dataclasses.fields(arguments) if f.init}
        further = {}
        for name, value in options.items():
            if name in own:
                continue
            if name in _OUR_NAMES:
                raise DefinitionError(f'{what} has no option "{name}"; here it is called "{_OUR_NAMES[name]}".')
            if name in _OURS or name in refused:
                raise DefinitionError(f'{what} decides "{name}" itself. Leave it out.')
            if name not in known:
                hint = did_you_mean(name, [*own, *known])
                raise DefinitionError(
                    f'{what} has no option "{name}".{hint} It takes {", ".join(own)}, and the fields of '
                    "transformers.TrainingArguments."
                )
            further[name] = value
        given = {name: getattr(value, "value", value) for name, value in options.items() if name in own}
        training = cls(**given, further=further)
        training._check(what)
        return training

    def _check(self, what: str) -> None:
        for name, (kinds, least, open_end) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_NONE:
                continue
            if not isinstance(value, kinds) or isinstance(value, bool):
                wanted = "a whole number" if kinds is int else "a number"
                raise ArgumentTypeError(f"{what}: {name} must be {wanted}, not {value!r}.")
            if value < least or (open_end and value == least):
                raise DefinitionError(
                    f"{what}: {name} is {value}; it must be {'over' if open_end else 'at least'} {least}."
                )
        if not isinstance(self.truncate, bool):
            raise ArgumentTypeError(f"{what}: truncate must be True or False, not {self.truncate!r}.")
        for name, kind in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
            value, names = str(getattr(self, name)), [member.value for member in kind]
            if value not in names:
                raise DefinitionError(
                    f'{what}: {name} "{value}" is unknown.{did_you_mean(value, names)} There are: {", ".join(names)}.'
                )

    def values(self) -> dict[str, Any]:
        """Returns all options by name, those that are passed on among them."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "further"}
        return {**own, **self.further}


_RANGES: dict[str, tuple[Any, float, bool]] = {
    "epochs": ((int, float), 0, True),
    "batch_size": (int, 1, False),
    "max_length": (int, 2, False),
    "learning_rate": ((int, float), 0, False),
    "weight_decay": ((int, float), 0, False),
    "warmup_steps": ((int, float), 0, False),
    "neftune_noise_alpha": ((int, float), 0, False),
    "early_stopping_patience": (int, 1, False),
    "early_stopping_threshold": ((int, float), 0, False),
    "seed": (int, 0, False),
}
_MAY_BE_NONE = {"max_length", "neftune_noise_alpha", "early_stopping_patience"}
