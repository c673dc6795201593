"""The training loop: transformers' own, made quiet, resumable after a kill, and minimising an objective."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import transformers
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from datadreamer_like.compression.method import why_not_finite
from datadreamer_like.distillation import Objective, Outputs, has_plain_head
from datadreamer_like.distillation.outputs import WeightedMean
from datadreamer_like.errors import DataDreamerError, DefinitionError, MethodMisfit
from datadreamer_like.evaluation.tasks.examples import Examples, ShuffledBatches, sorted_batches
from datadreamer_like.evaluation.tasks.task import Batch, Task
from datadreamer_like.formats.quantizer import untrainable
from datadreamer_like.pruning import masks
from datadreamer_like.pruning.while_training import ScoredMask
from datadreamer_like.storage.folders import system_errors

from .callbacks import EarlyStop, KeepZeros, Report
from .checkpoints import CHECKPOINTS, Seal, newest_checkpoint, own_names
from .curves import points
from .finite import check_weights, diverged
from .noise import noise_in_all_embeddings
from .options import Training
from .pruned_adapters import as_saved
from .seeds import forked_torch
from .teaching import TeacherAnswers

logger = logging.getLogger("datadreamer_like")

MODULES_NAME = "objective.safetensors"
_ADAPTER_ADVICE = " Train an adapter on them instead, by a peft_config, or train before quantizing."
# The same algorithm in one kernel; on a CPU the plain one takes a third of the time of a small model's step.
_FASTER = {"adamw_torch": "adamw_torch_fused"}


@dataclass
class Run:
    """A model with its data and options, ready to be trained.

    Attributes:
        model: The model, trained in place; of a peft model only the adapter is trained.
        folder: Folder for checkpoints; needed until the model is saved.
        autocast: "bf16" or "fp16" for mixed precision.
        teachers: The teacher's answers for "train" and for "validation".
        modules: The objective's own modules, trained along with the model.
        factored: The objective takes the student's factors with what the teacher gives.
        kept: The masks of the model's pruned weights, without an adapter.
    """

    model: Any
    task: Task
    train: Examples
    validation: Examples
    training: Training
    folder: Path
    device: torch.device
    autocast: str | None
    objective: Objective
    teachers: Mapping[str, TeacherAnswers]
    modules: nn.Module | None
    factored: bool = False
    kept: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Fit(NamedTuple):
    """The validation metrics of the best epoch, whose weights the model has; epochs trained; metrics of each epoch.

    `curves` are the figures by step; see `training.curves.points`.
    """

    metrics: dict[str, float]
    epochs: float
    history: list[dict[str, float]]
    curves: Sequence[dict[str, float]] = ()


def fit(
    run: Run,
    make_loop: Callable[..., LoopOverExamples] | None = None,
    arguments: type[TrainingArguments] = TrainingArguments,
    **options: Any,
) -> Fit:
    """Trains a model in place, inside `quiet`, and leaves it with the weights of its best epoch.

    After each epoch a checkpoint is written to `run.folder`; called again with the same arguments after the process was
    killed, training resumes from it, and on a CPU gives the same weights as an uninterrupted run. Pruned weights stay
    zero.

    `make_loop` returns the loop for `run`, `args` and `callbacks`; None for `ObjectiveLoop`. `options` are defaults for
    further arguments of the class `arguments`.

    Raises:
        MethodMisfit: The model's weights are quantized, so they cannot be trained.
        DefinitionError: The options are refused, or the training diverged.
    """
    model, training = run.model, run.training
    reason = untrainable(model, adapters=hasattr(model, "peft_config"))
    if reason:
        advice = " Train before quantizing." if untrainable(model, adapters=True) else _ADAPTER_ADVICE
        raise MethodMisfit(f"{reason[0].upper()}{reason[1:]}{advice}")
    check_weights(model, "The model to train")
    run.folder.mkdir(parents=True, exist_ok=True)
    args = _arguments(arguments, run, options)
    callbacks: list[TrainerCallback] = [Report(len(run.train)), Seal()]
    stop: EarlyStop | None = None
    if training.early_stopping_patience is not None:
        stop = EarlyStop(training.early_stopping_patience, training.early_stopping_threshold)
        callbacks.append(stop)
    if masks(model):
        callbacks.append(KeepZeros())
    callbacks += training.callbacks
    checkpoint = newest_checkpoint(run.folder / CHECKPOINTS)
    if checkpoint is not None:
        so_far = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        logger.info("resuming after epoch %s, where training was interrupted", f"{so_far.epoch:g}")
        if stop is not None and stop.is_over(args, so_far):
            args.num_train_epochs = so_far.epoch
    try:
        loop = (make_loop or ObjectiveLoop)(run=run, args=args, callbacks=callbacks)
    except DataDreamerError:
        raise
    except (ValueError, NotImplementedError) as error:  # options that do not go together, in another library's loop
        raise _refused(error) from error
    loop.remove_callback(PrinterCallback)
    try:
        with system_errors(), own_names(model), noise_in_all_embeddings(model, training.neftune_noise_alpha):
            loop.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except RuntimeError as error:  # such as of sampling from probabilities that are NaN
        if why_not_finite(model.named_parameters()):
            raise diverged("The weights became NaN or infinite", training.learning_rate) from error
        raise
    state = loop.state
    chosen_by = str(args.metric_for_best_model).removeprefix("eval_")
    measured = [entry for entry in state.log_history if f"eval_{chosen_by}" in entry]
    best = next((entry for entry in measured if entry["step"] == state.best_global_step), None)
    if best is None:
        last = measured[-1][f"eval_{chosen_by}"]
        raise diverged(f"The validation {chosen_by} was {last} after every epoch", training.learning_rate)
    if why_not_finite(model.named_parameters()):
        raise diverged(f"In the epoch with the best {chosen_by} the weights were NaN", training.learning_rate)
    model.train(False)
    history = [_figures(entry) for entry in measured]
    return Fit(_figures(best), float(state.epoch or 0.0), history, points(state.log_history))


def _refused(error: Exception) -> DefinitionError:
    return DefinitionError(f"The training options are refused: {error}")


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    figures = {name.removeprefix("eval_"): float(value) for name, value in entry.items() if name.startswith("eval_")}
    # These do not depend on the model.
    for name in ("runtime", "samples_per_second", "steps_per_second", "num_tokens"):
        figures.pop(name, None)
    return figures


def _arguments(kind: type[TrainingArguments], run: Run, defaults: Mapping[str, Any]) -> TrainingArguments:
    training, use_cpu = run.training, run.device.type == "cpu"
    same = ("learning_rate", "weight_decay", "lr_scheduler_type", "warmup_steps", "neftune_noise_alpha", "seed")
    options: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * training.batch_size,
        "logging_nan_inf_filter": False,
        "metric_for_best_model": "loss",
        "save_total_limit": 1,
        "dataloader_pin_memory": not use_cpu and torch.cuda.is_available(),
        "logging_strategy": "steps" if {"logging_steps", "report_to"} & set(training.further) else "no",
        "report_to": "none",
        "disable_tqdm": True,
        **defaults,
        **{name: value for name, value in training.further.items() if name not in ("bf16", "fp16")},
        **{name: getattr(training, name) for name in same},
    }
    try:
        arguments = kind(
            output_dir=str(run.folder / CHECKPOINTS),
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            optim=_FASTER.get(training.optim, training.optim),
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=use_cpu,
            bf16=run.autocast == "bf16",
            fp16=run.autocast == "fp16",
            **options,
        )
    except (ValueError, TypeError) as error:
        raise _refused(error) from error
    # One process trains on one device: its DataParallel over all GPUs is slower and changes the batch size.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


class LoopOverExamples(transformers.Trainer):
    """The loop of transformers, or of a library that a subclass names after this class, over our batches."""

    def __init__(self, run: Run, **options: Any) -> None:
        self.run = run
        self._validation: DataLoader[Any] | None = None
        super().__init__(model=run.model, **options)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns the training batches in the order of the epoch."""
        lengths = self.run.train.lengths
        return self.loader(self.run.train, ShuffledBatches(lengths, self._train_batch_size, self.args.seed))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Returns the validation batches, longest rows first; they are made once."""
        if self._validation is None:
            batches = sorted_batches(self.run.validation.lengths, self.args.eval_batch_size)
            self._validation = self.loader(self.run.validation, batches)
        return self._validation

    def loader(self, examples: Examples, batches: Any) -> DataLoader[Any]:
        """Returns what loads the batches of examples that a sampler chooses."""
        loader = DataLoader(
            examples,
            batch_sampler=batches,
            collate_fn=self.run.task.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Returns the validation loss, in which each of the `counted` counts once, and the `validation_figures`.

        The library's own would weigh the last batch, which may be smaller, as the others.
        """
        model: Any = self.model
        model.eval()
        losses, sizes = [], []
        with torch.no_grad(), as_saved(model, self.run.kept):
            for inputs in self.get_eval_dataloader():
                sizes.append(self.counted(inputs))
                batch = self._prepare_inputs(inputs)
                with self.compute_loss_context_manager():
                    losses.append(float(self.validation_loss(model, batch)))
            found = {"loss": self.mean_loss(losses, sizes), **self.validation_figures(sizes)}
        metrics = {f"{metric_key_prefix}_{name}": float(value) for name, value in found.items()}
        chosen_by = f"{metric_key_prefix}_{str(self.args.metric_for_best_model).removeprefix('eval_')}"
        if chosen_by not in metrics:
            names = ", ".join(name.removeprefix(f"{metric_key_prefix}_") for name in metrics)
            raise DefinitionError(
                f'There is no metric "{self.args.metric_for_best_model}" to choose the best epoch by '
                f"(metric_for_best_model). The validation rows give: {names}."
            )
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def counted(self, inputs: Any) -> int:
        """Returns over how many rows, or tokens, the loss of a batch is the mean."""
        return len(inputs["rows"]) if isinstance(inputs, Mapping) else len(inputs)

    def validation_loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Returns the loss of a validation batch, the mean over the `counted`."""
        return cast("torch.Tensor", self.compute_loss(model, batch))

    def mean_loss(self, losses: Sequence[float], sizes: Sequence[int]) -> float:
        """Returns the validation loss from those of the batches, whose means are over `sizes` rows or tokens."""
        return float(np.average(losses, weights=sizes))

    def validation_figures(self, sizes: Sequence[int]) -> dict[str, float]:
        """Returns further figures of the validation rows, whose batches had these sizes."""
        return {}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Returns the names of the parameters that decay; not those of the scores of movement pruning."""
        scores = {id(each.scores) for each in model.modules() if isinstance(each, ScoredMask)}
        decaying = {name for name, each in model.named_parameters() if id(each) not in scores}
        return [name for name in super().get_decay_parameter_names(model) if name in decaying]

    def floating_point_ops(self, inputs: Any) -> int:
        """Counts nothing: it would cost time."""
        return 0


class ObjectiveLoop(LoopOverExamples):
    """The loop that minimises an objective; its own modules are part of the model while it runs."""

    def __init__(self, run: Run, **options: Any) -> None:
        if run.modules is not None:
            # As a part of the model they are moved, clipped and stepped with it.
            run.model.objective_modules = run.modules.to(run.device)
        super().__init__(run, train_dataset=run.train, eval_dataset=run.validation, **options)
        # The loss of a batch is its mean; the loop divides it where batches are accumulated.
        self.loss_is_scaled_for_ga = False
        self.model_accepts_loss_kwargs = False
        self._measure = run.task.measure()
        self._means: list[list[tuple[float, float]]] = []
        self._wants = run.objective.wants | {"logits"}
        # Half precision needs the gradients scaled before they are computed, which those of the fused loss are not.
        if run.factored and run.autocast != "fp16" and not self.args.torch_compile and has_plain_head(run.model):
            self._wants |= {"factors"}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, and takes the objective's modules out of the model again."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.run.modules is not None:
                del self.run.model.objective_modules

    def drawn(self, model: Any, batch: Batch, split: str) -> Batch:
        """Returns the batch to learn from: with what the task draws at random, or the student's own answers.

        What is drawn depends on the seed, the rows and in training on the step, so a resumed training run draws the
        same, and all epochs are measured on the same validation batches.
        """
        completions = self.run.objective.completions if split == "train" else None
        if completions is None and not self.run.task.draws:
            return batch
        step = self.state.global_step if split == "train" else -1
        words = repr((self.args.seed, step, batch["rows"].tolist()))
        seed = int.from_bytes(hashlib.blake2b(words.encode(), digest_size=7).digest(), "big")
        random = torch.Generator().manual_seed(seed)
        batch = self.run.task.drawn(batch, random)
        if completions is None or float(torch.rand((), generator=random)) >= completions.fraction:
            return batch
        with forked_torch(seed):
            return self.run.task.sampled(self.accelerator.unwrap_model(model), batch, completions)

    def outputs(self, model: Any, batch: Batch, split: str) -> tuple[Outputs, Outputs | None]:
        """Returns the outputs of the student and the teacher for a drawn batch."""
        student = self.run.task.forward(model, batch, self._wants)
        return student, self.run.teachers[split](batch, student.classes)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of a training batch, a scalar with gradients."""
        batch = self.drawn(model, inputs, "train")
        student, teacher = self.outputs(model, batch, "train")
        loss = self.run.objective.loss(student, teacher, batch, self.run.modules)
        return (loss, student) if return_outputs else loss

    def validation_loss(self, model: Any, batch: Any) -> torch.Tensor:
        """Returns the loss of a validation batch, whose outputs are measured."""
        batch = self.drawn(model, batch, "validation")
        student, teacher = self.outputs(model, batch, "validation")
        means = self.means(student, teacher, batch)
        self._means.append([(float(value), float(weight)) for value, weight in means])
        self._measure.add(student, batch)
        return torch.stack([each.value for each in means]).sum()

    def means(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> list[WeightedMean]:
        """Returns the loss of a batch as a sum of means; see `Objective.means`."""
        all_labelled = not self.run.task.optional
        return self.run.objective.means(student, teacher, batch, self.run.modules, all_labelled=all_labelled)

    def mean_loss(self, losses: Sequence[float], sizes: Sequence[int]) -> float:
        """Returns the validation loss of all rows, or tokens, from the means of the batches."""
        found, self._means = np.array(self.gathered(self._means), dtype=np.float64), []
        values, weights = found[..., 0], found[..., 1]  # [batches, means]
        return float(((values * weights).sum(0) / weights.sum(0).clip(min=1e-12)).sum())

    def validation_figures(self, sizes: Sequence[int]) -> dict[str, float]:
        """Returns the task's figures of the validation rows."""
        measure, *others = self.gathered([self._measure])
        self._measure = self.run.task.measure()
        for each in others:
            measure.join(each)
        return cast("dict[str, float]", measure.result())

    def gathered(self, found: list[Any]) -> list[Any]:
        """Returns what all processes have found in their validation batches; here one has all of them."""
        return found

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.run.modules is not None and self.args.should_save:  # an adapter's checkpoint has none but the adapter
            save_model(self.run.modules, str(Path(str(output_dir or self.args.output_dir)) / MODULES_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.run.modules is not None:
            load_model(self.run.modules, str(Path(resume_from_checkpoint) / MODULES_NAME))
