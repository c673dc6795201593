"""The options of trainers and of training: names and types for the calls, defaults and checks."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from datadreamer_like.errors import (
    ArgumentTypeError,
    DefinitionError,
    check_flag,
    check_number,
    did_you_mean,
    require_extra,
)
from datadreamer_like.evaluation.columns import plain
from datadreamer_like.graph.positions import by_position, defaults_of
from datadreamer_like.models.known_options import refuse_unknown_loading
from datadreamer_like.models.llms.chat_template import AUTO
from datadreamer_like.models.model import checked_dtype
from datadreamer_like.models.trained.hf_source import HFSource


class HFOptions(TypedDict, total=False):
    """How a trainer loads its model and logs; any other name goes to `from_pretrained`."""

    revision: str | None
    """Branch, tag or commit of a model on the Hub."""
    trust_remote_code: bool
    """Run code that comes with the model."""
    device: Any
    """Where to train, such as "cpu" or "cuda:0"; None for a GPU if there is one. A list, `["cuda:0", "cuda:1"]`, starts
    a process for each device, among which each batch is divided."""
    dtype: str | torch.dtype | None
    """Precision; None for float32. With "bfloat16" or "float16" a full fine-tuning runs in mixed precision on float32
    weights, an adapter's on a base model in that type."""
    quantization_config: Any
    """A transformers quantization config, to train an adapter on a quantized model (QLoRA)."""
    peft_config: Any
    """A peft config, such as `LoraConfig()`: an adapter is trained and merged into the model at the end."""
    qlora: bool
    """Train an adapter on 4-bit weights (Dettmers et al. 2023, arXiv:2305.14314): NF4 by bitsandbytes with doubly
    quantized scales, and LoRA of rank 16 on every linear layer. A `quantization_config` or `peft_config` replaces its
    own. The adapter is merged into the dequantized weights. `gradient_checkpointing=True` in `train` saves more."""
    distributed_config: Any
    """Accepted for DataDreamer scripts, like the next two; a model is not split over devices."""
    fsdp: Any
    fsdp_config: Any
    force: bool
    """Train again even if the result exists."""
    verbose: bool | None
    """False shows only warnings of this trainer."""
    log_level: int | None
    """A level of `logging` that overrides `verbose`."""
    progress_interval: float | None
    """Seconds between progress lines without a terminal; None for none."""


class TrainingOptions(TypedDict, total=False):
    """Options of `train` in addition to its columns; other fields of `transformers.TrainingArguments` are passed on."""

    truncate: bool
    """Cut texts that are longer than the maximum; False raises an error instead."""
    max_length: int | None
    """Maximum length of a text in tokens; None for the model's own limit."""
    epochs: float
    """Passes over the training rows."""
    batch_size: int
    """Rows in a batch; on several devices, of all of them together."""
    optim: str
    """Optimizer, by the name that transformers uses."""
    learning_rate: float
    """Highest learning rate. The default, DataDreamer's, suits adapters; for a full encoder about 5e-5 is usual."""
    weight_decay: float
    """Weight decay."""
    lr_scheduler_type: str
    """Learning rate schedule, by the name that transformers uses."""
    warmup_steps: float
    """Batches during which the learning rate rises; below 1, a share of all batches."""
    neftune_noise_alpha: float | None
    """Noise on the embeddings (NEFTune, Jain 2023, arXiv:2310.05914); None for none."""
    early_stopping_patience: int | None
    """Stop after this many epochs without a better validation result; None trains all epochs."""
    early_stopping_threshold: float
    """Minimum improvement that counts as better."""
    seed: int
    """Seed of shuffling, dropout and new weights."""
    callbacks: Sequence[Any]
    """`transformers.TrainerCallback` objects; their code and state determine the result. Only the state of one that is
    an `ExportableState` is restored when a killed training resumes."""


# transformers' names, of today and before, of options that have another name here.
_OUR_NAMES = {
    "num_train_epochs": "epochs", "per_device_train_batch_size": "batch_size", "max_seq_length": "max_length",
    "per_gpu_train_batch_size": "batch_size", "train_batch_size": "batch_size", "lr": "learning_rate",
}  # fmt: skip
# Names of transformers that it has replaced, by the new ones.
_RENAMED = {
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
_EPOCHS = "each epoch is evaluated and saved, so that a killed training resumes and the best epoch is kept"
_RESUMED = "a killed training resumes by itself when the script runs again"
_PUBLISHED = "call publish_to_hf_hub(...) when the training is done"
_DEVICE = "pass device= where the trainer is made"
_ONE_DEVICE = "each device holds the whole model, and device=[...] names several"
_BATCHES = "the trainer makes its own batches, of rows of similar length"
# Options that trainers decide: the values that say the same, and why others are refused.
_DECIDED: dict[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(("eval_strategy", "evaluation_strategy", "save_strategy"), (("epoch",), _EPOCHS)),
    **dict.fromkeys(("eval_steps", "save_steps"), ((), _EPOCHS)),
    **dict.fromkeys(("load_best_model_at_end", "do_train", "do_eval"), ((True,), _EPOCHS)),
    **dict.fromkeys(("eval_delay", "save_only_model"), ((0, False), _EPOCHS)),
    "output_dir": ((), "checkpoints are in the session's folder, and export_to_disk(path) writes the model"),
    **dict.fromkeys(("resume_from_checkpoint", "overwrite_output_dir"), ((None, False, True), _RESUMED)),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token"), ((None, False), _PUBLISHED)),
    **dict.fromkeys(("use_cpu", "no_cuda"), ((False,), _DEVICE)),
    **dict.fromkeys(("fsdp", "fsdp_config", "deepspeed", "parallelism_config"), ((None, "", False), _ONE_DEVICE)),
    **dict.fromkeys(("remove_unused_columns", "label_names", "train_sampling_strategy"), ((), _BATCHES)),
    "group_by_length": ((True,), _BATCHES),
    "dataloader_drop_last": ((False,), "every row is learned from"),
    "label_smoothing_factor": ((0,), "the objective is the loss"),
    "data_seed": ((), "seed= seeds everything"),
    "do_predict": ((False,), "predict with the trainer when the training is done"),
    "objective": ((), "it is an argument of its own"),
}
_UNDECIDING = {
    "logging_strategy", "logging_steps", "logging_first_step", "logging_dir", "report_to", "run_name", "project",
    "disable_tqdm", "log_level", "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory",
}  # fmt: skip
"""Options that are passed on and do not determine the result."""

_LEAST = {
    "epochs": 0, "batch_size": 1, "max_length": 2, "learning_rate": 0, "weight_decay": 0, "warmup_steps": 0,
    "neftune_noise_alpha": 0, "early_stopping_patience": 1, "early_stopping_threshold": 0, "seed": 0,
}  # fmt: skip
# Of those that are passed on, which a mistake makes fail after work was done
_LEAST_PASSED_ON = {"gradient_accumulation_steps": 1, "per_device_eval_batch_size": 1}
_WHOLE = {"batch_size", "max_length", "early_stopping_patience", "seed"}
_MAY_BE_NONE = {"max_length", "neftune_noise_alpha", "early_stopping_patience"}


@dataclass(frozen=True)
class Training:
    """Checked training options with their defaults; `further` ones go to `transformers.TrainingArguments`."""

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
    callbacks: tuple[TrainerCallback, ...] = ()
    further: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        options: Mapping[str, Any],
        what: str = "train",
        arguments: type[TrainingArguments] = TrainingArguments,
        refused: Collection[str] = (),
        trainer: type | None = None,
    ) -> Self:
        """Checks the options of a call, named `what` in messages.

        Fields of `arguments`, the class of the loop's arguments, are options too, except those that all trainers set
        themselves and those `refused`. An unknown name may also mean another argument of the `trainer`'s `train`.

        Raises:
            DefinitionError: A name is unknown, or a value is out of range.
            ArgumentTypeError: A value is of the wrong type.
        """
        own = [f.name for f in dataclasses.fields(cls) if f.name != "further"]
        known = {f.name for f in dataclasses.fields(arguments) if f.init}
        new = {old: name for old, name in _RENAMED.items() if name in known}
        further = {new.get(name, name): plain(value) for name, value in options.items() if name not in own}
        for name in further:
            if name in _OUR_NAMES:
                raise DefinitionError(f'{what} has no option "{name}"; here it is called "{_OUR_NAMES[name]}".')
            if name in refused:
                raise DefinitionError(f'{what} decides "{name}" itself. Leave it out.')
            if name in _DECIDED:
                same, reason = _DECIDED[name]
                if getattr(further[name], "value", further[name]) not in same:
                    raise DefinitionError(f'{what} decides "{name}" itself: {reason}. Leave it out.')
                continue
            if name in HFOptions.__annotations__ and name not in known:
                where = what.removesuffix(".train")
                raise DefinitionError(f'{what} has no option "{name}": pass it where the trainer is made, to {where}.')
            if name not in known:
                hint = did_you_mean(name, [*own, *_arguments_of_train(trainer), *known])
                raise DefinitionError(
                    f'{what} has no option "{name}".{hint} It takes {", ".join(own)}, '
                    "and the fields of transformers.TrainingArguments."
                )
        given = {name: plain(getattr(value, "value", value)) for name, value in options.items() if name in own}
        callbacks = given.pop("callbacks", None)
        if callbacks is not None:
            given["callbacks"] = _checked_callbacks(callbacks, what)
        training = cls(**given, further={name: value for name, value in further.items() if name not in _DECIDED})
        training._check(what)
        return training

    def _check(self, what: str) -> None:
        for name, least in _LEAST.items():
            options = {"whole": name in _WHOLE, "over": name == "epochs", "optional": name in _MAY_BE_NONE}
            check_number(getattr(self, name), f"{what}: {name}", least, **options)
        for name, least in _LEAST_PASSED_ON.items():
            check_number(self.further.get(name), f"{what}: {name}", least, whole=True, optional=True)
        chosen_by = str(self.further.get("metric_for_best_model") or "loss").removeprefix("eval_")
        if chosen_by == "loss" and self.further.get("greater_is_better"):
            raise DefinitionError(
                f"{what}: greater_is_better=True would choose the epoch with the highest loss. Leave it out, or name "
                'another metric, such as metric_for_best_model="accuracy".'
            )
        check_flag(self.truncate, f"{what}: truncate")
        for name, kind in (("optim", OptimizerNames), ("lr_scheduler_type", SchedulerType)):
            value, names = str(getattr(self, name)), [member.value for member in kind]
            if value not in names:
                raise DefinitionError(
                    f'{what}: {name} "{value}" is unknown.{did_you_mean(value, names)} There are: {", ".join(names)}.'
                )
        if _OF_BITSANDBYTES.search(str(self.optim)):
            require_extra("qlora", "bitsandbytes", what=f'{what}: optim="{self.optim}"')
        makes: Any = TYPE_TO_SCHEDULER_FUNCTION.get(SchedulerType(self.lr_scheduler_type))
        known = {} if makes is None else inspect.signature(makes).parameters
        takes_all = any(each.kind is each.VAR_KEYWORD for each in known.values())
        for name in self.further.get("lr_scheduler_kwargs") or ():
            if known and not takes_all and name not in known:
                raise DefinitionError(
                    f'{what}: lr_scheduler_kwargs has "{name}", which the schedule "{self.lr_scheduler_type}" does not '
                    f"take.{did_you_mean(name, known)} It takes: {', '.join(sorted(known))}."
                )

    def values(self) -> dict[str, Any]:
        """Returns the options that determine the result by name, including those that are passed on."""
        own = {name: value for name, value in vars(self).items() if name not in ("further", "callbacks")}
        given = {"callbacks": list(self.callbacks)} if self.callbacks else {}
        return {**own, **given, **{name: value for name, value in self.further.items() if name not in _UNDECIDING}}

    def autocast(self, dtype: str | torch.dtype | None) -> str | None:
        """Returns the type of mixed precision, "bf16" or "fp16": of a trainer's `dtype`, or asked for by that name."""
        asked = next((name for name in ("bf16", "fp16") if self.further.get(name)), None)
        known: dict[object, str] = {torch.bfloat16: "bf16", torch.float16: "fp16"}
        return asked or known.get(dtype)


def _arguments_of_train(trainer: type | None) -> set[str]:
    """Returns the names of the arguments of a trainer's `train`, with those that it passes on to a base class."""
    kinds = () if trainer is None else trainer.__mro__
    calls = [vars(kind)["train"] for kind in kinds if "train" in vars(kind)]
    return {name for call in calls for name in inspect.signature(call).parameters}


def _checked_callbacks(callbacks: Any, what: str) -> tuple[TrainerCallback, ...]:
    """Returns the callbacks as objects; classes are made into objects without arguments, as transformers does."""
    listed = callbacks if isinstance(callbacks, list | tuple) else [callbacks]
    made = [each() if isinstance(each, type) and issubclass(each, TrainerCallback) else each for each in listed]
    for each in made:
        if not isinstance(each, TrainerCallback):
            raise ArgumentTypeError(f"{what}: callbacks must be transformers.TrainerCallback objects, not {each!r}.")
    return tuple(made)


_OF_BITSANDBYTES = re.compile("^(?!adamw_torch|galore).*(bnb|8bit|paged)|^lion|^ademamix")

_SHARED = (
    "truncate", "epochs", "batch_size", "optim", "learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps",
    "neftune_noise_alpha",
)  # fmt: skip

TRAIN_DEFAULTS = defaults_of(_SHARED, Training)
"""The options of every `train` in DataDreamer's order, for calls by position; `seed` is the last."""

_SEVERAL_DEVICES = dict.fromkeys(("distributed_config", "fsdp", "fsdp_config"), AUTO)
_MODEL = ("revision", "trust_remote_code", "device", "dtype", "quantization_config", "peft_config")
_NODE = {"force": False, "verbose": None, "log_level": None}

takes_training_options = by_position({**TRAIN_DEFAULTS, "seed": 42})
takes_trainer_options = by_position(
    {**dict.fromkeys(_MODEL), "trust_remote_code": False, **_SEVERAL_DEVICES, **_NODE, "progress_interval": 60}
)


def refuse_unknown_options(
    trainer: type, given: Mapping[str, Any], source: HFSource, fetched: Mapping[str, Any]
) -> None:
    """Refuses options of a trainer that `from_pretrained` does not take for a model; `fetched` say how it is fetched.

    Raises:
        DefinitionError: A name is unknown.
    """
    instead = dict.fromkeys(TrainingOptions.__annotations__, "It is an option of train.")
    refuse_unknown_loading(trainer, given.keys(), source, fetched, HFOptions.__annotations__, instead)


def a_dtype(dtype: Any) -> torch.dtype | None:
    """Returns the data type that an argument names; None for float32, the default."""
    found: torch.dtype = torch.float32 if dtype in (None, "auto") else checked_dtype(dtype)
    return None if found == torch.float32 else found


def check_configs(kind: str, quantization: Any, adapter: Any) -> None:
    """Refuses a quantization config without an adapter to train, and an adapter that is no config of peft.

    Raises:
        MissingExtra: The quantization needs bitsandbytes, which is not installed.
        DefinitionError: There is no adapter.
        ArgumentTypeError: It is no config of peft.
    """
    if type(quantization).__name__ == "BitsAndBytesConfig":
        require_extra("qlora", "bitsandbytes", what=f"{kind} with a BitsAndBytesConfig")
    if quantization is not None and adapter is None:
        raise DefinitionError(
            f"{kind}: quantized weights cannot be trained. Pass a peft_config too, to train an "
            "adapter on them (qlora=True has one), or leave quantization_config out and quantize the result."
        )
    if adapter is not None:
        from peft import PeftConfig

        if not isinstance(adapter, PeftConfig):
            raise ArgumentTypeError(
                f"peft_config must be a peft config, such as peft.LoraConfig(r=8), not {adapter!r}."
            )
