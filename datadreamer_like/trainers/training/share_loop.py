"""The training loop of one of several processes, each of which learns from its share of the rows of every batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Batch
from datadreamer_like.graph import current_usage
from datadreamer_like.storage.folders import write_file

from .loop import ObjectiveLoop

_SHARE = "share"  # 1 in a batch that is learned from, 0 where there were fewer rows than processes
_SECONDS = 0.5


class ShareLoop(ObjectiveLoop):
    """The objective's loop in a process group: the batches are those of one process, each divided among all.

    Each mean in a loss is weighted by what it is the mean over, so the averaged gradient is that of the whole batch.
    The validation batches are divided too, and all processes have the figures of all.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, with dropout that differs among the processes."""
        torch.manual_seed(self.args.seed + self.args.process_index)
        return super().train(*args, **kwargs)

    def loader(self, examples: Examples, batches: Any) -> DataLoader[Any]:
        """Returns what loads this process's share of each training batch, and its validation batches."""
        collate, process, processes = self.run.task.collate, self.args.process_index, self.args.world_size
        if examples is self.run.train:
            collate = partial(share_of_batch, collate, process, processes)
        else:
            batches = batches[process::processes]
        loader: Any = DataLoader(
            examples,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        # It would divide the batches among the processes, and repeat rows so that each has as many.
        alone = prepare_data_loader(loader, self.args.device, num_processes=1, process_index=0, put_on_device=True)
        return cast("DataLoader[Any]", alone)

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the loss of this process's share, so weighted that the mean over the processes is the batch's."""
        batch = {name: value for name, value in inputs.items() if name != _SHARE}
        batch = self.drawn(model, batch, "train")

        def lesson(module: Any) -> torch.Tensor:
            means = self.means(*self.outputs(module, batch, "train"), batch)
            values = torch.stack([each.value for each in means])
            weights = torch.stack([each.weight.to(values) for each in means]) * inputs[_SHARE]
            totals = weights.clone()
            torch.distributed.all_reduce(totals)
            loss: torch.Tensor = (values * weights / totals.clamp(min=1e-12)).sum() * self.args.world_size
            return loss

        return as_forward(model, lesson)

    def gathered(self, found: list[Any]) -> list[Any]:
        """Returns what all processes have found in their validation batches."""
        return cast("list[Any]", gather_object(found))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # Each process has written a file, after which the first one writes the state that makes a checkpoint complete.
        self.accelerator.wait_for_everyone()


class WriteProgress(TrainerCallback):
    """Writes the progress of the first process to a file, which the process that started it reads."""

    def __init__(self, path: Path) -> None:
        self.path, self.written = path, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes it at most twice a second."""
        if time.monotonic() - self.written > _SECONDS:
            self.on_train_end(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Writes it."""
        if state.is_world_process_zero:
            usage = current_usage()
            found = {"rows": usage.rows, "total_rows": usage.total_rows, "note": usage.note}
            write_file(self.path, json.dumps(found))
        self.written = time.monotonic()


def share_of_batch(
    collate: Callable[[Sequence[Mapping[str, Any]]], Batch], process: int, processes: int, rows: Sequence[Any]
) -> Batch:
    """Returns the batch of a process's share of rows: every row of a batch is in one share.

    Where there are fewer rows than processes, it is a row whose loss counts nothing, as all processes take each step.
    """
    mine = rows[process::processes]
    return {**collate(mine or rows[:1]), _SHARE: torch.tensor(1.0 if mine else 0.0)}


def as_forward(model: Any, function: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """Returns what a function of the module inside `DistributedDataParallel` returns, run as its forward pass.

    DDP averages the gradients of all parameters on which the result of a forward pass depends: with an objective these
    are also those of its own modules, or of a head that is applied to hidden states.
    """
    if not isinstance(model, DistributedDataParallel):
        return function(model)
    module = model.module
    own = vars(module).get("forward")  # of mixed precision

    def restore() -> None:
        if own is None:
            vars(module).pop("forward", None)
        else:
            module.forward = own

    def once() -> torch.Tensor:
        restore()
        return function(module)

    module.forward = once
    try:
        return cast("torch.Tensor", model())
    finally:
        restore()
