"""Callbacks of the training loop: progress, stopping early, keeping pruned weights zero, and compression."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from datadreamer_like.compression import CompressesWhileTraining
from datadreamer_like.compression.experts import take_apart
from datadreamer_like.formats import put_together
from datadreamer_like.graph import current_usage
from datadreamer_like.graph.threads import interrupt_check
from datadreamer_like.pruning import masks, reapply


class Report(TrainerCallback):
    """Reports training progress to the node's usage."""

    def __init__(self, rows: int) -> None:
        self.rows, self.words = rows, ""

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Sets the total number of examples."""
        self._check = interrupt_check()
        rows = self.rows * args.num_train_epochs
        if args.max_steps > 0:
            rows = args.max_steps * args.train_batch_size * args.gradient_accumulation_steps
        current_usage().total_rows = round(rows)

    def on_epoch_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Shows the epoch."""
        self._note(args, state)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Counts the examples seen; ends a training in which a callback or a reward of the script caught Ctrl-C."""
        self._check()
        usage = current_usage()
        usage.add(rows=round(self.rows * (state.epoch or 0.0)) - usage.rows)
        # Reading a loss waits for the GPU, so not after each batch.
        if state.global_step % max(1, state.max_steps // 50) == 0:
            control.should_log = True

    def on_epoch_end(self, args: Any, state: Any, control: TrainerControl, **_: Any) -> None:
        """Logs the loss before the checkpoint, so that a run that resumes from it logs the same losses."""
        control.should_log = True

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **_: Any) -> None:
        """Shows the loss, or after an evaluation the validation loss."""
        shown_as = {"loss": "loss", "eval_loss": "validation loss", "eval_reward": "validation reward"}
        for name, shown in shown_as.items():
            if name in (logs or {}):
                self.words = f", {shown} {float(logs[name]):.3g}"
        self._note(args, state)

    def _note(self, args: TrainingArguments, state: TrainerState) -> None:
        epochs = max(1, -int(-args.num_train_epochs // 1))
        current_usage().note = f"epoch {min(int(state.epoch or 0) + 1, epochs)} of {epochs}{self.words}"


class EarlyStop(TrainerCallback):
    """Stops training when the validation metric has not improved for some epochs.

    It evaluates the whole history each time, so it has no state to restore on resume.
    """

    def __init__(self, patience: int, threshold: float) -> None:
        self.patience, self.threshold = patience, threshold

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops training when patience has run out."""
        if self.is_over(args, state):
            control.should_training_stop = True

    def is_over(self, args: TrainingArguments, state: TrainerState) -> bool:
        """Whether patience has run out."""
        name = "eval_" + str(args.metric_for_best_model).removeprefix("eval_")
        sign = 1.0 if args.greater_is_better else -1.0
        best, since = -float("inf"), 0
        for entry in state.log_history:
            if name in entry:
                value = sign * entry[name]
                better = value > best + self.threshold
                best, since = max(best, value), 0 if better else since + 1
        return since >= self.patience


class StopAfter(TrainerCallback):
    """Stops training after some steps of the optimizer; the schedules are those of the whole training."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops training when the steps are done."""
        if state.global_step >= self.steps:
            control.should_training_stop = True


class KeepZeros(TrainerCallback):
    """Sets pruned weights back to zero after each step of the optimizer.

    It goes before a callback that changes the model at the end, when layers may be codes.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Notes which weights are zero; their modules may have been replaced since they were pruned."""
        self._kept = masks(model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Sets the pruned weights to zero."""
        reapply(model, self._kept)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Sets those of the best epoch to zero."""
        reapply(model, self._kept)


class CompressWhileTraining(TrainerCallback):
    """Compresses while the model is trained; the best epoch is one of those in which it has its final size."""

    def __init__(self, method: CompressesWhileTraining) -> None:
        self.method = method

    def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Prepares the model, before the optimizer is made and a checkpoint is loaded."""
        if self.method.layer_by_layer:
            take_apart(model, getattr(self.method, "exclude", ()))
        self.method.begin(model)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, model: Any = None, **_: Any) -> None:
        """Changes the model."""
        self.method.after_step(model, state.global_step, state.max_steps)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Forgets the best epoch so far if the model did not have its final size."""
        if (state.best_global_step or 0) < self.method.final_from(state.max_steps):
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Gives the model of the best epoch its small form."""
        self.method.end(model)
        put_together(model)
