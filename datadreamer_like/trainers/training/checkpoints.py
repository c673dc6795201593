"""Checkpoints of the training loop: sealed with checksums, and the newest one that is complete and not damaged."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from datadreamer_like.errors import StorageError
from datadreamer_like.graph.places import work_key
from datadreamer_like.storage.folders import write_file
from datadreamer_like.storage.seals import SEAL_NAME, checksum, checksums, damaged_file

logger = logging.getLogger("datadreamer_like")

CHECKPOINTS = "checkpoints"
_STATE_NAME = "trainer_state.json"
_SUMS_NAME = "checksums.json"
_RUN_NAME = "run.json"


class Seal(TrainerCallback):
    """Adds to each checkpoint the run that it belongs to, and checksums."""

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Writes the run and the checksums of the checkpoint that was just written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            write_file(folder / _RUN_NAME, json.dumps(_run_of(folder)))
            write_file(folder / _SUMS_NAME, json.dumps(checksums(folder, but=(_SUMS_NAME, SEAL_NAME))))


@contextmanager
def own_names(model: nn.Module) -> Iterator[None]:
    """Inside, a model is saved with the names of its tensors, as a loop that resumes loads them.

    transformers saves a model as it was published: a mixture's experts one by one, old names of norms. Its `Trainer`
    loads a checkpoint without renaming, and so would leave these weights as they are.
    """
    models: list[Any] = [each for each in model.modules() if isinstance(each, PreTrainedModel)]
    before = [(each, vars(each)["_weight_conversions"]) for each in models if "_weight_conversions" in vars(each)]
    for each in models:
        each._weight_conversions = []
    try:
        yield
    finally:
        for each in models:
            del each._weight_conversions
        for each, conversions in before:
            each._weight_conversions = conversions


def newest_checkpoint(folder: Path) -> Path | None:
    """Finds the last checkpoint that is complete and not damaged, and removes those that are not.

    Raises:
        StorageError: One was written by another run, and copied here.
    """
    complete: dict[Path, Any] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            # Written last, so the checkpoint is complete if it can be read.
            state = json.loads((path / _STATE_NAME).read_text(encoding="utf-8"))
            _ = state["global_step"], state["epoch"]
            sums = path / _SUMS_NAME
            damage = damaged_file(path, json.loads(sums.read_text(encoding="utf-8"))) if sums.exists() else None
        except (OSError, ValueError, KeyError, TypeError):
            damage = f"{path} is not complete"
        if damage:
            logger.info("a checkpoint is not used: %s", damage)
            shutil.rmtree(path, ignore_errors=True)
        else:
            _check_run(path)
            complete[path] = state
    while complete:
        newest = max(complete, key=lambda path: complete[path]["global_step"])
        state = complete.pop(newest)
        best = state.get("best_model_checkpoint")
        moved = str(folder / Path(best).name) if best else None
        if moved is not None and not Path(moved).is_dir():  # the best one was damaged, and would be loaded at the end
            shutil.rmtree(newest, ignore_errors=True)
            continue
        if moved != best:  # the session's folder was moved in between
            state["best_model_checkpoint"] = moved
            sums = newest / _SUMS_NAME
            known = json.loads(sums.read_text(encoding="utf-8")) if sums.exists() else None
            sums.unlink(missing_ok=True)  # a kill leaves a checkpoint without checksums rather than with wrong ones
            write_file(newest / _STATE_NAME, json.dumps(state))
            if known is not None:
                known[_STATE_NAME] = checksum(newest / _STATE_NAME)
                write_file(sums, json.dumps(known))
        return newest
    return None


def _run_of(checkpoint: Path) -> str:
    """Returns the key of a checkpoint's run, which stands for all arguments, and its place in it; "" without one."""
    checkpoint = checkpoint.resolve()
    for work in checkpoint.parents:
        if key := work_key(work):
            return str(Path(key) / checkpoint.parent.relative_to(work))
    return ""


def _check_run(checkpoint: Path) -> None:
    file = checkpoint / _RUN_NAME
    written_by = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    if written_by not in (None, _run_of(checkpoint)):
        raise StorageError(
            f"{checkpoint} is a checkpoint of another run, {written_by}: training would go on from weights of other "
            "arguments. Move it away, and run again."
        )
