"""The check that a saved model predicts what the trained one does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor

from datadreamer_like.distillation.outputs import Outputs
from datadreamer_like.distillation.teacher import device_of, stays
from datadreamer_like.errors import StorageError
from datadreamer_like.evaluation.tasks.examples import Examples
from datadreamer_like.evaluation.tasks.task import Task, run_model
from datadreamer_like.models.trained.trained_model import TrainedModel

ROWS = 16
_TOKENS = 512
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_OF_HALF_PRECISION = 5e-2


def on_cpu(model: Any, dtype: str | torch.dtype | None) -> Any:
    """Moves a trained model to the CPU, and casts it to a data type unless some of its weights are codes.

    A model that another library quantized stays where it was loaded.
    """
    if stays(model):
        return model
    return model.to("cpu") if getattr(model, "is_quantized", False) else model.to(device="cpu", dtype=dtype)


def check_saved(saved: TrainedModel, model: Any, task: Task, validation: Examples) -> None:
    """Loads a saved model and compares its logits with those of the trained one on a few validation rows.

    There are at most 16 rows of 512 tokens in all. Raises `StorageError` if they differ by more than other kernels do.
    """
    rows, tokens = [0], int(validation.lengths[0])
    for row in range(1, min(ROWS, len(validation))):
        tokens += int(validation.lengths[row])
        if tokens > _TOKENS:
            break
        rows.append(row)
    model = extract_model_from_parallel(model, keep_fp32_wrapper=False)  # without the loop's mixed precision
    batch = task.collate([validation[row] for row in rows])
    wants = frozenset({"logits"})

    def logits(each: Any, run: Callable[..., Outputs]) -> Tensor | None:
        # See `on_cpu`: the trained model may be on another device.
        device = device_of(each)
        given = run(each, {name: value.to(device) for name, value in batch.items()}, wants).logits
        return None if given is None else given.cpu()

    with torch.no_grad():
        expected, found = (logits(each, task.forward) for each in (model, saved.model))
        if expected is not None and not expected.numel():  # prompts of one token have no next one
            run = partial(run_model, use_cache=False)
            expected, found = (logits(each, run) for each in (model, saved.model))
    assert expected is not None
    assert found is not None
    check_same_logits(expected, found, saved)


def check_same_logits(expected: Tensor, found: Tensor, saved: TrainedModel) -> None:
    """Raises `StorageError` if the logits of a saved model are not those `expected`."""
    tolerance = _TOLERANCE.get(expected.dtype, _OF_HALF_PRECISION)
    same_shape = expected.shape == found.shape
    off = float((expected.float() - found.float()).abs().max()) if same_shape else float("inf")
    if not off <= tolerance * max(1.0, float(expected.float().abs().max())):
        what = f"by up to {off:.3g}" if same_shape else f"in shape ({[*found.shape]}, expected {[*expected.shape]})"
        raise StorageError(
            f"The model saved to {saved.path} does not give the logits of the trained one: they differ {what}. "
            "Something that decides them is not in its files, such as a module that a callback added to the model. "
            "Leave it out, or train a class that saves it."
        )
