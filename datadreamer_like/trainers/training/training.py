"""The training loop: transformers' own, made quiet, resumable after a kill, and true to an objective."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from datadreamer_like.distillation import Objective
from datadreamer_like.errors import DefinitionError, MethodMisfit
from datadreamer_like.formats.stored import untrainable
from datadreamer_like.models.quiet import quiet
from datadreamer_like.pruning import masks, reapply

from .callbacks import EarlyStop, KeepZeros, Report
from .examples import Examples, ShuffledBatches, SortedBatches
from .objectives import training_loss
from .options import Training
from .tasks import Batch, Task

logger = logging.getLogger("datadreamer_like")

CHECKPOINTS = "checkpoints"
# The same algorithm in one kernel: on a processor a third of the time of a small model's step is the plain one's.
_FASTER = {"adamw_torch": "adamw_torch_fused"}


@dataclass(frozen=True)
class Fit:
    """What a training came to.

    Attributes:
        metrics: Validation figures of the best epoch, which is the one that the model was left in.
        epochs: How many passes were made.
        history: Validation figures of each epoch.
    """

    metrics: dict[str, float]
    epochs: float
    history: list[dict[str, float]]


def fit(
    model: PreTrainedModel,
    task: Task,
    train: Examples,
    validation: Examples,
    training: Training,
    folder: Path,
    *,
    objective: Objective,
    device: torch.device,
    autocast: str | None = None,
) -> Fit:
    """Trains a model in place and leaves it as it was after its best epoch.

    After each epoch a checkpoint is written below `folder`; called again with the same arguments after the process was
    killed, it goes on from there, and on a processor comes to the same weights as an undisturbed run. A model with
    zeros that pruning left keeps them.

    Args:
        model: The model; a peft model trains its adapter alone.
        task: What the rows are.
        train: Rows to learn from.
        validation: Rows by which the best epoch is chosen.
        training: The options.
        folder: Where checkpoints stand; the caller removes it when the model is safe.
        objective: What is minimised.
        device: Where to train.
        autocast: "bf16" or "fp16" for mixed precision.

    Raises:
        MethodMisfit: The model's weights are quantized, so they cannot be trained.
        DefinitionError: transformers refuses the options.
    """
    check_trainable(model)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        arguments = _arguments(training, folder / CHECKPOINTS, device, autocast)
        kept = masks(model)
        callbacks: list[TrainerCallback] = [Report(len(train))]
        stop: EarlyStop | None = None
        if training.early_stopping_patience is not None:
            stop = EarlyStop(training.early_stopping_patience, training.early_stopping_threshold)
            callbacks.append(stop)
        if kept:
            callbacks.append(KeepZeros(kept))
        checkpoint = _newest_checkpoint(folder / CHECKPOINTS)
        if checkpoint is not None:
            so_far = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            logger.info("going on after epoch %s, where the training was interrupted", f"{so_far.epoch:g}")
            if stop is not None and stop.is_over(arguments, so_far):
                arguments.num_train_epochs = so_far.epoch
        loop = _Loop(model=model, args=arguments, train_dataset=train, eval_dataset=validation, callbacks=callbacks)
        loop.take(task, objective)
        loop.remove_callback(PrinterCallback)
        loop.train(resume_from_checkpoint=checkpoint)
        if kept:
            reapply(model, kept)
    state = loop.state
    measured = [entry for entry in state.log_history if "eval_loss" in entry]
    best = next((entry for entry in measured if entry["step"] == state.best_global_step), None)
    if best is None:
        raise DefinitionError(
            f"The validation loss was {measured[-1]['eval_loss']} after every epoch: the training diverged. "
            f"Lower learning_rate, which was {training.learning_rate}."
        )
    model.train(False)
    return Fit(_figures(best), float(state.epoch or 0.0), [_figures(entry) for entry in measured])


def _figures(entry: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("eval_"): float(value) for name, value in entry.items() if name.startswith("eval_")}


def check_trainable(model: PreTrainedModel) -> None:
    """Refuses a model whose weights, or the adapters on them, cannot be trained because they are codes.

    Raises:
        MethodMisfit: They cannot.
    """
    reason = untrainable(model, adapters=hasattr(model, "peft_config"))
    if reason:
        raise MethodMisfit(f"{reason[0].upper()}{reason[1:]} Train before quantizing.")


def _arguments(training: Training, folder: Path, device: torch.device, autocast: str | None) -> TrainingArguments:
    options: dict[str, Any] = {
        "per_device_eval_batch_size": 2 * training.batch_size,
        "logging_nan_inf_filter": False,
        "metric_for_best_model": "loss",
        "save_total_limit": 1,
        **training.further,
    }
    use_cpu = device.type == "cpu"
    try:
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=training.epochs,
            per_device_train_batch_size=training.batch_size,
            optim=_FASTER.get(training.optim, training.optim),
            learning_rate=training.learning_rate,
            weight_decay=training.weight_decay,
            lr_scheduler_type=training.lr_scheduler_type,
            warmup_steps=training.warmup_steps,
            neftune_noise_alpha=training.neftune_noise_alpha,
            seed=training.seed,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            use_cpu=use_cpu,
            bf16=autocast == "bf16",
            fp16=autocast == "fp16",
            dataloader_pin_memory=not use_cpu and torch.cuda.is_available(),
            **options,
        )
    except (ValueError, TypeError) as error:
        raise DefinitionError(f"transformers refuses these training options: {error}") from error
    # One process trains on one device: its DataParallel over all GPUs is slower and changes the batch size.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _newest_checkpoint(folder: Path) -> str | None:
    """Finds the last complete checkpoint and removes those that a killed process left half written."""
    complete: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            # Written last: where it can be read, all else is there.
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
            continue
        complete[int(state["global_step"])] = path
    if not complete:
        return None
    newest = complete[max(complete)]
    state = json.loads((newest / "trainer_state.json").read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best and Path(best).parent != folder:  # the session's folder was moved in between
        state["best_model_checkpoint"] = str(folder / Path(best).name)
        (newest / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return str(newest)


class _Loop(transformers.Trainer):
    """transformers' loop with our batches, our loss and our measures."""

    task: Task
    objective: Objective

    def take(self, task: Task, objective: Objective) -> None:
        self.task = task
        self.objective = objective
        # The loss of a batch is its mean; the loop divides it where batches are accumulated.
        self.loss_is_scaled_for_ga = False
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader[Any]:
        train = cast(Examples, self.train_dataset)
        batches = ShuffledBatches(train.lengths, self._train_batch_size, self.args.seed)
        return self._loader(train, batches)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return self._validation_loader

    @cached_property
    def _validation_loader(self) -> DataLoader[Any]:
        validation = cast(Examples, self.eval_dataset)
        return self._loader(validation, SortedBatches(validation.lengths, self.args.eval_batch_size))

    def _loader(self, examples: Examples, batches: Any) -> DataLoader[Any]:
        loader = DataLoader(
            examples,
            batch_sampler=batches,
            collate_fn=self.task.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return cast("DataLoader[Any]", self.accelerator.prepare(loader))

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, logits = training_loss(model, self.task, self.objective, inputs)
        return (loss, logits) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        model: Any = self.model
        model.eval()
        measure, total, rows = self.task.measure(), 0.0, 0
        with torch.no_grad():
            for inputs in self.get_eval_dataloader():
                batch = self._prepare_inputs(inputs)
                with self.compute_loss_context_manager():
                    loss, logits = self.compute_loss(model, batch, return_outputs=True)
                size = len(batch["labels"])
                total, rows = total + float(loss) * size, rows + size
                measure.add(logits, batch)
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in {"loss": total / rows, **measure.result()}.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draws all that is random inside the block from a seed, and leaves the generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        transformers.set_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
